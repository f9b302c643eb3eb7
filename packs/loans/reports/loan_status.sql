-- title: Loans by status
-- description: How many loans stand where, and what is still owed on them.
-- param: from date "From"
-- param: to date "To"
-- param: segment text "Segment"
-- choices: segment: SELECT DISTINCT segment FROM warehouse.dim_customer WHERE customer_sk <> 0 ORDER BY 1
-- param: branch text "Branch"
-- choices: branch: SELECT DISTINCT branch_code FROM warehouse.dim_loan WHERE loan_sk <> 0 ORDER BY 1
-- chart: pie
-- x: loan_status
-- y: loans
-- format: loans=integer, amount_lent=money, outstanding=money, collected=money
-- drill: loans_list(status=loan_status)

SELECT f.loan_status, count(*) AS loans, sum(f.principal_amount) AS amount_lent,
       sum(f.outstanding_balance) AS outstanding, sum(f.total_paid) AS collected
FROM warehouse.fact_loans f
WHERE f.loan_id IS NOT NULL
  AND (:from::date IS NULL OR f.date_sk >= extract(year FROM :from::date) * 10000 + extract(month FROM :from::date) * 100 + extract(day FROM :from::date))
  AND (:to::date IS NULL OR f.date_sk <= extract(year FROM :to::date) * 10000 + extract(month FROM :to::date) * 100 + extract(day FROM :to::date))
  AND (:segment::text IS NULL OR f.customer_sk IN (SELECT customer_sk FROM warehouse.dim_customer WHERE segment = :segment::text))
  AND (:branch::text IS NULL OR f.branch_code = :branch::text)
GROUP BY f.loan_status
ORDER BY loans DESC, f.loan_status
