-- Purpose: the indexes that a star in PostgreSQL is given: primary keys, and the facts' keys of dimensions and dates.
-- Locks: SHARE on the tables. Privileges: ownership. Oldest version: PostgreSQL 14.
ALTER TABLE dim_customer ADD PRIMARY KEY (customer_sk);
CREATE INDEX ON dim_customer (customer_id);
ALTER TABLE dim_loan ADD PRIMARY KEY (loan_sk);
CREATE INDEX ON dim_loan (loan_id);
ALTER TABLE dim_date ADD PRIMARY KEY (date_sk);
ALTER TABLE dim_payment_method ADD PRIMARY KEY (method_sk);
ALTER TABLE fact_payments ADD PRIMARY KEY (payment_id);
CREATE INDEX ON fact_payments (customer_sk);
CREATE INDEX ON fact_payments (loan_sk);
CREATE INDEX ON fact_payments (date_sk);
CREATE INDEX ON fact_payments (method_sk);
ALTER TABLE fact_loans ADD PRIMARY KEY (loan_id);
CREATE INDEX ON fact_loans (customer_sk);
CREATE INDEX ON fact_loans (loan_sk);
CREATE INDEX ON fact_loans (date_sk);
