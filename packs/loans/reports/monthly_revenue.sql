-- title: Monthly revenue
-- description: Interest and penalties by the month in which they were paid.
-- param: from date "From"
-- param: to date "To"
-- param: segment text "Segment"
-- choices: segment: SELECT DISTINCT segment FROM warehouse.dim_customer WHERE customer_sk <> 0 ORDER BY 1
-- param: branch text "Branch"
-- choices: branch: SELECT DISTINCT branch_code FROM warehouse.dim_loan WHERE loan_sk <> 0 ORDER BY 1
-- chart: bar
-- x: month
-- y: interest, penalties
-- format: month=month, month_end=date, interest=money, penalties=money, revenue=money, collected=money, payments=integer
-- drill: payments_list(from=month, to=month_end)

SELECT make_date(d.year, d.month, 1) AS month, max(d.full_date) AS month_end,
       sum(f.interest_portion) AS interest, sum(f.penalty_portion) AS penalties,
       sum(f.interest_portion + f.penalty_portion) AS revenue,
       sum(f.payment_amount) AS collected, count(*) AS payments
FROM warehouse.fact_payments f
JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
WHERE d.date_sk <> 0
  AND (:from::date IS NULL OR d.full_date >= :from::date)
  AND (:to::date IS NULL OR d.full_date <= :to::date)
  AND (:segment::text IS NULL OR f.customer_segment = :segment::text)
  AND (:branch::text IS NULL OR f.branch_code = :branch::text)
GROUP BY d.year, d.month
ORDER BY d.year, d.month
