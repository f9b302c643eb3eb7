-- What people ask the operational database most. Runs again whenever this text changes.
--
-- Locks: ACCESS EXCLUSIVE on the views, for the moment. Needs: ownership of the schema.
-- Oldest version: PostgreSQL 14.

DROP VIEW IF EXISTS operational.vw_active_loans, operational.vw_customer_payment_summary;

CREATE VIEW operational.vw_active_loans AS
SELECT l.loan_id, l.customer_id, c.full_name, c.segment, p.product_name, l.amount, l.interest_rate,
       l.tenure_months, l.outstanding_balance, l.disbursed_at, l.maturity_date,
       l.maturity_date < CURRENT_DATE AS is_past_maturity, l.branch_code, l.loan_officer
FROM operational.loans l
JOIN operational.customers c USING (customer_id)
JOIN operational.loan_products p USING (product_id)
WHERE l.status = 'active';

CREATE VIEW operational.vw_customer_payment_summary AS
SELECT c.customer_id, c.full_name, c.segment, l.loan_count, l.total_borrowed, l.total_outstanding,
       coalesce(p.payment_count, 0) AS payment_count, coalesce(p.total_paid, 0) AS total_paid,
       coalesce(p.total_interest, 0) AS total_interest, coalesce(p.total_penalty, 0) AS total_penalty,
       p.last_payment_date
FROM operational.customers c
CROSS JOIN LATERAL (
    SELECT count(*) AS loan_count, coalesce(sum(amount), 0) AS total_borrowed,
           coalesce(sum(outstanding_balance), 0) AS total_outstanding
    FROM operational.loans
    WHERE customer_id = c.customer_id AND status <> 'pending') l
CROSS JOIN LATERAL (
    SELECT count(*) AS payment_count, sum(y.amount) AS total_paid, sum(y.interest_portion) AS total_interest,
           sum(y.penalty_portion) AS total_penalty, max(y.payment_date) AS last_payment_date
    FROM operational.payments y
    JOIN operational.loans o USING (loan_id)
    WHERE o.customer_id = c.customer_id) p;

GRANT SELECT ON operational.vw_active_loans, operational.vw_customer_payment_summary TO app_user, readonly_user;
