-- title: A customer's loans
-- description: Everything that one customer borrowed, the newest first; without a number, everyone's newest 1,000.
-- param: customer integer "Customer number"
-- chart: table
-- format: asked_on=date, amount=money, outstanding=money, paid=money, payments=integer

SELECT f.loan_id, d.full_date AS asked_on, c.customer_id, c.full_name, c.segment, c.city, f.branch_code,
       f.loan_status AS status, f.principal_amount AS amount, l.interest_rate, l.tenure_months,
       f.outstanding_balance AS outstanding, f.total_paid AS paid, f.payment_count AS payments
FROM warehouse.fact_loans f
JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
JOIN warehouse.dim_customer c ON c.customer_sk = f.customer_sk
JOIN warehouse.dim_loan l ON l.loan_sk = f.loan_sk
WHERE :customer::bigint IS NULL OR c.customer_id = :customer::bigint
ORDER BY f.date_sk DESC, f.loan_id DESC
LIMIT 1000
