-- Data for the parity suite, in words that both engines understand.
create table t (id integer, k text, i integer, amount numeric(12,2), d date, ts timestamp, b boolean, f double precision, big bigint);
insert into t values
    (1, 'a', 7, 100.50, '2024-01-05', '2024-01-05 10:11:12.5', true, 0.5, 9000000000),
    (2, 'b', -7, 50.25, '2024-02-29', '2024-02-29 23:59:59', false, 1.25, null),
    (3, 'a', null, -0.01, null, null, null, null, 3),
    (4, null, 0, null, '2023-12-31', '2023-12-31 00:00:00', true, 1e20, 4),
    (5, 'Ünï''q', 3, 12345678.90, '2024-03-01', '2024-03-01 12:00:00', false, -2.5, 5);
create table u (id integer, label text);
insert into u values (1, 'one'), (2, 'two'), (9, null);
