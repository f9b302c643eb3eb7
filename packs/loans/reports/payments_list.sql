-- title: Payments
-- description: One by one, the newest first; 1,000 at most.
-- param: from date "From"
-- param: to date "To"
-- param: segment text "Segment"
-- choices: segment: SELECT DISTINCT segment FROM warehouse.dim_customer WHERE customer_sk <> 0 ORDER BY 1
-- param: branch text "Branch"
-- choices: branch: SELECT DISTINCT branch_code FROM warehouse.dim_loan WHERE loan_sk <> 0 ORDER BY 1
-- param: method text "Method"
-- choices: method: SELECT method_code FROM warehouse.dim_payment_method WHERE method_sk <> 0 ORDER BY 1
-- chart: table
-- format: paid_on=date, amount=money, principal=money, interest=money, penalty=money
-- drill: customer_loans(customer=customer_id)

SELECT f.payment_id, d.full_date AS paid_on, c.customer_id, c.full_name, f.customer_segment AS segment, l.loan_id,
       f.branch_code, m.method_name, f.payment_amount AS amount, f.principal_portion AS principal,
       f.interest_portion AS interest, f.penalty_portion AS penalty
FROM warehouse.fact_payments f
JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
JOIN warehouse.dim_customer c ON c.customer_sk = f.customer_sk
JOIN warehouse.dim_loan l ON l.loan_sk = f.loan_sk
JOIN warehouse.dim_payment_method m ON m.method_sk = f.method_sk
WHERE (:from::date IS NULL OR d.full_date >= :from::date)
  AND (:to::date IS NULL OR d.full_date <= :to::date)
  AND (:segment::text IS NULL OR f.customer_segment = :segment::text)
  AND (:branch::text IS NULL OR f.branch_code = :branch::text)
  AND (:method::text IS NULL OR m.method_code = :method::text)
ORDER BY f.date_sk DESC, f.payment_id DESC
LIMIT 1000
