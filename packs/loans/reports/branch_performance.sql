-- title: Branches
-- description: What each branch lent, what came back, and what went wrong.
-- param: from date "From"
-- param: to date "To"
-- param: segment text "Segment"
-- choices: segment: SELECT DISTINCT segment FROM warehouse.dim_customer WHERE customer_sk <> 0 ORDER BY 1
-- param: branch text "Branch"
-- choices: branch: SELECT DISTINCT branch_code FROM warehouse.dim_loan WHERE loan_sk <> 0 ORDER BY 1
-- chart: bar
-- x: branch_code
-- y: amount_lent, collected
-- format: amount_lent=money, collected=money, outstanding=money, loans=integer, defaulted=integer, default_rate=percent
-- drill: loans_list(branch=branch_code)

SELECT f.branch_code, sum(f.principal_amount) AS amount_lent, sum(f.total_paid) AS collected,
       sum(f.outstanding_balance) AS outstanding, count(*) AS loans,
       sum(CASE WHEN f.is_defaulted THEN 1 ELSE 0 END) AS defaulted,
       round(sum(CASE WHEN f.is_defaulted THEN 1 ELSE 0 END) * 1.0 / count(*), 4) AS default_rate
FROM warehouse.fact_loans f
WHERE f.loan_status <> 'pending'
  AND (:from::date IS NULL OR f.date_sk >= extract(year FROM :from::date) * 10000 + extract(month FROM :from::date) * 100 + extract(day FROM :from::date))
  AND (:to::date IS NULL OR f.date_sk <= extract(year FROM :to::date) * 10000 + extract(month FROM :to::date) * 100 + extract(day FROM :to::date))
  AND (:segment::text IS NULL OR f.customer_sk IN (SELECT customer_sk FROM warehouse.dim_customer WHERE segment = :segment::text))
  AND (:branch::text IS NULL OR f.branch_code = :branch::text)
GROUP BY f.branch_code
ORDER BY amount_lent DESC, f.branch_code
