-- A small star for tests of the endpoint.
create table warehouse.dim_customer (customer_key bigint not null, full_name varchar not null, segment varchar,
    effective_date date not null, is_current boolean not null);
insert into warehouse.dim_customer values
    (1, 'Ann', 'retail', '2024-01-01', true), (2, 'Bob', null, '2024-02-01', true), (3, 'Ün''ï', 'sme', '2024-03-01', false);
create table warehouse.fact_payments (payment_id bigint not null, customer_key bigint, amount decimal(12,2), paid_at timestamp,
    noted_at timestamptz, ratio double, small smallint, id uuid, note json, raw blob, at_time time, tags varchar[]);
insert into warehouse.fact_payments values
    (1, 1, 100.50, '2024-01-05 10:00:00.5', '2024-01-05 10:00:00+00', 0.1, 7, '01234567-89ab-cdef-0123-456789abcdef', '{"a": 1}', 'ab'::blob, '10:11:12', ['x', 'y z']),
    (2, 1, 50.25, '2024-02-05 11:00:00', '2024-02-05 11:00:00+00', 'NaN', -7, null, null, null, null, []),
    (3, 2, -0.01, null, null, null, null, null, null, null, null, null);
create view warehouse.vw_monthly_revenue as
    select date_trunc('month', paid_at) as month, sum(amount) as revenue from warehouse.fact_payments group by all;
create table staging.loans (loan_id bigint, amount decimal(12,2), _commit_lsn ubigint);
insert into staging.loans values (1, 10.00, 18446744073709551615);
insert into audit.watermarks values ('primary', 1, 4096, '2024-02-05 11:00:00+00', 7, now());
