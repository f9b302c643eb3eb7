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

SELECT c.segment, round(sum(f.defaulted) * 1.0 / sum(f.loans), 4) AS default_rate,
       CAST(sum(f.loans) AS bigint) AS loans, CAST(sum(f.defaulted) AS bigint) AS defaulted, sum(f.lost) AS lost,
       'defaulted' AS status
FROM (
    -- a row a version of a customer, before anything is joined
    SELECT f.customer_sk, count(*) AS loans, sum(CASE WHEN f.is_defaulted THEN 1 ELSE 0 END) AS defaulted,
           sum(CASE WHEN f.is_defaulted THEN f.outstanding_balance ELSE 0 END) AS lost
    FROM warehouse.fact_loans f
    WHERE f.loan_status <> 'pending'
      AND (:from::date IS NULL OR f.date_sk >= extract(year FROM :from::date) * 10000 + extract(month FROM :from::date) * 100 + extract(day FROM :from::date))
      AND (:to::date IS NULL OR f.date_sk <= extract(year FROM :to::date) * 10000 + extract(month FROM :to::date) * 100 + extract(day FROM :to::date))
      AND (:segment::text IS NULL OR f.customer_sk IN (SELECT customer_sk FROM warehouse.dim_customer WHERE segment = :segment::text))
      AND (:branch::text IS NULL OR f.branch_code = :branch::text)
    GROUP BY f.customer_sk) AS f
JOIN warehouse.dim_customer c ON c.customer_sk = f.customer_sk
GROUP BY c.segment
ORDER BY c.segment
