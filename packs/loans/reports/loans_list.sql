-- title: Loans
-- description: One by one, the newest first; 1,000 at most.
-- param: from date "From"
-- param: to date "To"
-- param: segment text "Segment"
-- choices: segment: SELECT DISTINCT segment FROM warehouse.dim_customer WHERE customer_sk <> 0 ORDER BY 1
-- param: branch text "Branch"
-- choices: branch: SELECT DISTINCT branch_code FROM warehouse.dim_loan WHERE loan_sk <> 0 ORDER BY 1
-- param: status text "Status"
-- choices: status: SELECT DISTINCT loan_status FROM warehouse.fact_loans ORDER BY 1
-- chart: table
-- format: asked_on=date, amount=money, outstanding=money, paid=money, payments=integer
-- drill: customer_loans(customer=customer_id)

SELECT f.loan_id, d.full_date AS asked_on, c.customer_id, c.full_name, c.segment, f.branch_code, l.loan_officer,
       f.loan_status AS status, f.principal_amount AS amount, l.interest_rate, l.tenure_months,
       f.outstanding_balance AS outstanding, f.total_paid AS paid, f.payment_count AS payments
FROM warehouse.fact_loans f
JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
JOIN warehouse.dim_customer c ON c.customer_sk = f.customer_sk
JOIN warehouse.dim_loan l ON l.loan_sk = f.loan_sk
WHERE (:from::date IS NULL OR d.full_date >= :from::date)
  AND (:to::date IS NULL OR d.full_date <= :to::date)
  AND (:segment::text IS NULL OR c.segment = :segment::text)
  AND (:branch::text IS NULL OR f.branch_code = :branch::text)
  AND (:status::text IS NULL OR f.loan_status = :status::text)
ORDER BY f.date_sk DESC, f.loan_id DESC
LIMIT 1000
