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
    JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
    JOIN warehouse.dim_customer c ON c.customer_sk = f.customer_sk
    WHERE f.loan_status <> 'pending'
      AND (:from::date IS NULL OR d.full_date >= :from::date)
      AND (:to::date IS NULL OR d.full_date <= :to::date)
      AND (:segment::text IS NULL OR c.segment = :segment::text)
      AND (:branch::text IS NULL OR f.branch_code = :branch::text)) AS l
CROSS JOIN (
    SELECT coalesce(sum(f.payment_amount), 0) AS total_collected,
           coalesce(sum(f.interest_portion + f.penalty_portion), 0) AS revenue
    FROM warehouse.fact_payments f
    JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
    WHERE (:from::date IS NULL OR d.full_date >= :from::date)
      AND (:to::date IS NULL OR d.full_date <= :to::date)
      AND (:segment::text IS NULL OR f.customer_segment = :segment::text)
      AND (:branch::text IS NULL OR f.branch_code = :branch::text)) AS p
