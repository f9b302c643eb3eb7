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
       sum(f.interest) AS interest, sum(f.penalties) AS penalties, sum(f.interest + f.penalties) AS revenue,
       sum(f.collected) AS collected, CAST(sum(f.payments) AS bigint) AS payments
FROM (
    -- a row a day, before anything is joined
    SELECT date_sk, sum(interest_portion) AS interest, sum(penalty_portion) AS penalties,
           sum(payment_amount) AS collected, count(*) AS payments
    FROM warehouse.fact_payments
    WHERE date_sk <> 0
      AND (:from::date IS NULL OR date_sk >= extract(year FROM :from::date) * 10000 + extract(month FROM :from::date) * 100 + extract(day FROM :from::date))
      AND (:to::date IS NULL OR date_sk <= extract(year FROM :to::date) * 10000 + extract(month FROM :to::date) * 100 + extract(day FROM :to::date))
      AND (:segment::text IS NULL OR customer_segment = :segment::text)
      AND (:branch::text IS NULL OR branch_code = :branch::text)
    GROUP BY date_sk) AS f
JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
GROUP BY d.year, d.month
ORDER BY d.year, d.month
