-- title: Portfolio
-- description: Loans by the day they were asked for, payments by the day they were made. Revenue is what the company earns: interest and penalties; principal is its own money coming back.
-- param: from date "From"
-- param: to date "To"
-- param: segment text "Segment"
-- choices: segment: SELECT DISTINCT segment FROM warehouse.dim_customer WHERE customer_sk <> 0 ORDER BY 1
-- param: branch text "Branch"
-- choices: branch: SELECT DISTINCT branch_code FROM warehouse.dim_loan WHERE loan_sk <> 0 ORDER BY 1
-- chart: number
-- y: loans_issued, amount_lent, outstanding, total_collected, revenue
-- format: loans_issued=integer, amount_lent=money, outstanding=money, total_collected=money, revenue=money

SELECT l.loans_issued, l.amount_lent, l.outstanding, p.total_collected, p.revenue
FROM (
    SELECT count(*) AS loans_issued,
           coalesce(sum(f.principal_amount), 0) AS amount_lent,
           coalesce(sum(f.outstanding_balance), 0) AS outstanding
    FROM warehouse.fact_loans f
    WHERE f.loan_status <> 'pending'
      AND (:from::date IS NULL OR f.date_sk >= extract(year FROM :from::date) * 10000 + extract(month FROM :from::date) * 100 + extract(day FROM :from::date))
      AND (:to::date IS NULL OR f.date_sk <= extract(year FROM :to::date) * 10000 + extract(month FROM :to::date) * 100 + extract(day FROM :to::date))
      AND (:segment::text IS NULL OR f.customer_sk IN (SELECT customer_sk FROM warehouse.dim_customer WHERE segment = :segment::text))
      AND (:branch::text IS NULL OR f.branch_code = :branch::text)) AS l
CROSS JOIN (
    SELECT coalesce(sum(payment_amount), 0) AS total_collected,
           coalesce(sum(interest_portion), 0) + coalesce(sum(penalty_portion), 0) AS revenue
    FROM warehouse.fact_payments
    WHERE date_sk <> 0
      AND (:from::date IS NULL OR date_sk >= extract(year FROM :from::date) * 10000 + extract(month FROM :from::date) * 100 + extract(day FROM :from::date))
      AND (:to::date IS NULL OR date_sk <= extract(year FROM :to::date) * 10000 + extract(month FROM :to::date) * 100 + extract(day FROM :to::date))
      AND (:segment::text IS NULL OR customer_segment = :segment::text)
      AND (:branch::text IS NULL OR branch_code = :branch::text)) AS p
