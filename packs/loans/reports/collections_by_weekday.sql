-- title: Collections by weekday
-- description: When customers pay.
-- param: from date "From"
-- param: to date "To"
-- param: segment text "Segment"
-- choices: segment: SELECT DISTINCT segment FROM warehouse.dim_customer WHERE customer_sk <> 0 ORDER BY 1
-- param: branch text "Branch"
-- choices: branch: SELECT DISTINCT branch_code FROM warehouse.dim_loan WHERE loan_sk <> 0 ORDER BY 1
-- chart: bar
-- x: day_name
-- y: collected
-- format: collected=money, payments=integer

SELECT d.day_name, sum(f.payment_amount) AS collected, count(*) AS payments
FROM warehouse.fact_payments f
JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
WHERE d.date_sk <> 0
  AND (:from::date IS NULL OR d.full_date >= :from::date)
  AND (:to::date IS NULL OR d.full_date <= :to::date)
  AND (:segment::text IS NULL OR f.customer_segment = :segment::text)
  AND (:branch::text IS NULL OR f.branch_code = :branch::text)
GROUP BY d.day_name, extract(isodow FROM d.full_date)
ORDER BY extract(isodow FROM d.full_date)
