-- title: Payment methods
-- description: How customers pay.
-- param: from date "From"
-- param: to date "To"
-- param: segment text "Segment"
-- choices: segment: SELECT DISTINCT segment FROM warehouse.dim_customer WHERE customer_sk <> 0 ORDER BY 1
-- param: branch text "Branch"
-- choices: branch: SELECT DISTINCT branch_code FROM warehouse.dim_loan WHERE loan_sk <> 0 ORDER BY 1
-- chart: pie
-- x: method_name
-- y: collected
-- format: collected=money, payments=integer
-- drill: payments_list(method=method_code)

SELECT m.method_name, m.method_code, sum(f.payment_amount) AS collected, count(*) AS payments
FROM warehouse.fact_payments f
JOIN warehouse.dim_payment_method m ON m.method_sk = f.method_sk
JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
WHERE (:from::date IS NULL OR d.full_date >= :from::date)
  AND (:to::date IS NULL OR d.full_date <= :to::date)
  AND (:segment::text IS NULL OR f.customer_segment = :segment::text)
  AND (:branch::text IS NULL OR f.branch_code = :branch::text)
GROUP BY m.method_name, m.method_code
ORDER BY collected DESC, m.method_code
