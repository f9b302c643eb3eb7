-- title: Default rate by segment
-- description: The share of loans paid out that were given up, by what the customer was when asking.
-- param: from date "From"
-- param: to date "To"
-- param: segment text "Segment"
-- choices: segment: SELECT DISTINCT segment FROM warehouse.dim_customer WHERE customer_sk <> 0 ORDER BY 1
-- param: branch text "Branch"
-- choices: branch: SELECT DISTINCT branch_code FROM warehouse.dim_loan WHERE loan_sk <> 0 ORDER BY 1
-- chart: bar
-- x: segment
-- y: default_rate
-- format: default_rate=percent, loans=integer, defaulted=integer, lost=money
-- drill: loans_list(segment=segment, status=status)

SELECT c.segment, round(sum(CASE WHEN f.is_defaulted THEN 1 ELSE 0 END) * 1.0 / count(*), 4) AS default_rate,
       count(*) AS loans, sum(CASE WHEN f.is_defaulted THEN 1 ELSE 0 END) AS defaulted,
       sum(CASE WHEN f.is_defaulted THEN f.outstanding_balance ELSE 0 END) AS lost,
       'defaulted' AS status
FROM warehouse.fact_loans f
JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
JOIN warehouse.dim_customer c ON c.customer_sk = f.customer_sk
WHERE f.loan_status <> 'pending'
  AND (:from::date IS NULL OR d.full_date >= :from::date)
  AND (:to::date IS NULL OR d.full_date <= :to::date)
  AND (:segment::text IS NULL OR c.segment = :segment::text)
  AND (:branch::text IS NULL OR f.branch_code = :branch::text)
GROUP BY c.segment
ORDER BY c.segment
