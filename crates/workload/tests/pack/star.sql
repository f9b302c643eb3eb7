-- The star of the loans pack as views over the operational tables: what the reports' SQL is run on
-- in PostgreSQL. Columns as the models declare them; one version of each customer.
CREATE SCHEMA warehouse;
CREATE VIEW warehouse.dim_customer AS
SELECT customer_id AS customer_sk, customer_id, full_name, email, phone, city, country, segment,
       created_at AS effective_date, NULL::timestamptz AS valid_to, true AS is_current
FROM operational.customers;
CREATE VIEW warehouse.dim_loan AS
SELECT loan_id AS loan_sk, loan_id, amount, interest_rate, tenure_months, status, branch_code, loan_officer
FROM operational.loans;
CREATE VIEW warehouse.dim_payment_method AS
SELECT n AS method_sk, code AS method_code, code AS method_name
FROM unnest(ARRAY['mpesa', 'bank_transfer', 'cash', 'cheque', 'online']) WITH ORDINALITY AS m (code, n);
CREATE TABLE warehouse.dim_date AS
SELECT to_char(day, 'YYYYMMDD')::integer AS date_sk, day::date AS full_date, extract(day FROM day)::integer AS day,
       extract(month FROM day)::integer AS month, to_char(day, 'FMMonth') AS month_name,
       extract(quarter FROM day)::integer AS quarter, extract(year FROM day)::integer AS year,
       extract(week FROM day)::integer AS week_of_year, to_char(day, 'FMDay') AS day_name,
       extract(isodow FROM day) > 5 AS is_weekend, day = date_trunc('month', day + interval '1 month') - interval '1 day' AS is_month_end
FROM generate_series(timestamp '2018-01-01', timestamp '2050-12-31', interval '1 day') AS day;
CREATE VIEW warehouse.fact_payments AS
SELECT p.payment_id, l.customer_id AS customer_sk, l.loan_id AS loan_sk,
       to_char(p.payment_date AT TIME ZONE 'UTC', 'YYYYMMDD')::integer AS date_sk, m.method_sk, p.amount AS payment_amount,
       p.principal_portion, p.interest_portion, p.penalty_portion, l.amount AS loan_amount, c.segment AS customer_segment,
       l.status AS loan_status, l.branch_code
FROM operational.payments p
JOIN operational.loans l USING (loan_id)
JOIN operational.customers c USING (customer_id)
JOIN warehouse.dim_payment_method m ON m.method_code = p.payment_method;
CREATE VIEW warehouse.fact_loans AS
SELECT l.loan_id, l.customer_id AS customer_sk, l.loan_id AS loan_sk,
       to_char(l.created_at AT TIME ZONE 'UTC', 'YYYYMMDD')::integer AS date_sk,
       coalesce(p.total_paid, 0) AS total_paid, coalesce(p.payment_count, 0) AS payment_count,
       l.amount AS principal_amount, l.outstanding_balance, l.status AS loan_status, l.branch_code,
       l.status = 'active' AS is_active, l.status = 'defaulted' AS is_defaulted, l.status = 'repaid' AS is_repaid
FROM operational.loans l
LEFT JOIN (SELECT loan_id, sum(amount) AS total_paid, count(*) AS payment_count FROM operational.payments GROUP BY loan_id) p
    USING (loan_id);
