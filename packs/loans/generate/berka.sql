-- The PKDD'99 Czech bank as customers, loans and payments. Follows generate/berka.toml.
--
-- Runs in one transaction of the loader, as the owner of the schema, on empty tables; no parameters.
-- Locks: ROW EXCLUSIVE on customers, loan_products, loans and payments. Oldest version: PostgreSQL 14.
--
-- What is mapped, and what is not in the files:
--   customers   the 4,500 owners of accounts; those who may only use one are left out. The files have
--               no names, addresses or phones: a customer is called "Client <number>"
--   loans       all 682, with their own numbers. In the files the amount is months times payment: the
--               interest is within it and cannot be told apart, so the rate and every interest portion are 0
--   payments    the files have none for loans. They are DERIVED from the contract: one on each monthly
--               due date up to the end of 2018, where the files end. Their source is 'derived:contract'
--   status      A finished and paid, all payments: repaid.  B finished and not paid, payments stop between
--               a third and four fifths of the term: defaulted.  C running well, all that were due: active.
--               D running in debt, the last one to three that were due are missing: active
--   branch      the account's district. Amounts are crowns, shown in the pack's currency as they are

DO $$
BEGIN
    IF EXISTS (SELECT FROM operational.customers) OR EXISTS (SELECT FROM operational.loans)
       OR EXISTS (SELECT FROM operational.payments) THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'there are customers, loans or payments in the database already',
            HINT = 'the bank''s data goes into empty tables only; make a new platform for it';
    END IF;
    IF NOT EXISTS (SELECT FROM berka_loan) OR EXISTS (
        SELECT FROM berka_loan WHERE amount <> months * payment OR status NOT IN ('A', 'B', 'C', 'D')) THEN
        RAISE data_exception USING
            MESSAGE = 'fin_loan.tsv is not the bank''s file: amounts are not months times payment, or a status is unknown',
            HINT = 'use the files of the PKDD''99 financial data set';
    END IF;
END $$;

INSERT INTO operational.customers (customer_id, full_name, city, country, segment, created_at, updated_at)
SELECT c.client_id, 'Client ' || c.client_id, d.name, 'Czech Republic', 'retail', a.opened_at, a.opened_at
FROM (
    SELECT o.client_id, min(b.opened_on)::timestamp AT TIME ZONE 'UTC' AS opened_at
    FROM berka_disposition o
    JOIN berka_account b USING (account_id)
    WHERE o.kind = 'O'
    GROUP BY o.client_id) AS a
JOIN berka_client c USING (client_id)
JOIN berka_district d ON d.district_id = c.district_id
ORDER BY c.client_id;

INSERT INTO operational.loan_products
    (product_name, product_type, min_amount, max_amount, min_tenure_months, max_tenure_months, interest_rate)
SELECT 'Czech bank loan', 'personal', min(amount), max(amount), min(months), max(months), 0 FROM berka_loan;

CREATE TEMP TABLE berka_contract ON COMMIT DROP AS
SELECT l.*, o.client_id, 'D' || lpad(b.district_id::text, 2, '0') AS branch_code,
       greatest(0, CASE l.status
           WHEN 'A' THEN l.months
           -- which month is the loan number's choice, so that it is the same each time
           WHEN 'B' THEN l.months / 3 + l.loan_id % (l.months * 4 / 5 - l.months / 3)
           WHEN 'C' THEN due.payments
           ELSE due.payments - 1 - l.loan_id % 3 END) AS payments
FROM berka_loan l
JOIN berka_account b USING (account_id)
JOIN berka_disposition o ON o.account_id = l.account_id AND o.kind = 'O'
CROSS JOIN LATERAL (
    SELECT count(*)::integer AS payments FROM generate_series(1, l.months) AS k
    WHERE l.granted_on + k * interval '1 month' <= timestamp '2018-12-31') AS due;

INSERT INTO operational.loans
    (loan_id, customer_id, product_id, amount, interest_rate, tenure_months, status, outstanding_balance,
     disbursed_at, maturity_date, branch_code, created_at, updated_at)
SELECT c.loan_id, c.client_id, p.product_id, c.amount, 0, c.months,
       CASE c.status WHEN 'A' THEN 'repaid' WHEN 'B' THEN 'defaulted' ELSE 'active' END,
       c.amount - c.payments * c.payment, t.granted_at, (c.granted_on + c.months * interval '1 month')::date,
       c.branch_code, t.granted_at, t.granted_at
FROM berka_contract c
JOIN operational.loan_products p ON p.product_name = 'Czech bank loan'
CROSS JOIN LATERAL (SELECT c.granted_on::timestamp AT TIME ZONE 'UTC' AS granted_at) AS t
ORDER BY c.loan_id;

INSERT INTO operational.payments
    (payment_id, loan_id, amount, principal_portion, interest_portion, penalty_portion, payment_method, payment_date, source)
SELECT row_number() OVER (ORDER BY d.due_at, c.loan_id), c.loan_id, c.payment, c.payment, 0, 0, 'bank_transfer', d.due_at,
       'derived:contract'
FROM berka_contract c
CROSS JOIN LATERAL generate_series(1, c.payments) AS k
CROSS JOIN LATERAL (SELECT (c.granted_on + k * interval '1 month') AT TIME ZONE 'UTC' AS due_at) AS d
ORDER BY d.due_at, c.loan_id;

SELECT setval(pg_get_serial_sequence('operational.customers', 'customer_id'), (SELECT max(customer_id) FROM operational.customers)),
       setval(pg_get_serial_sequence('operational.loans', 'loan_id'), (SELECT max(loan_id) FROM operational.loans)),
       setval(pg_get_serial_sequence('operational.payments', 'payment_id'), (SELECT max(payment_id) FROM operational.payments));

ANALYZE operational.customers;
ANALYZE operational.loans;
ANALYZE operational.payments;
