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

SELECT d.day_name, sum(f.collected) AS collected, CAST(sum(f.payments) AS bigint) AS payments
FROM (
    -- a row a day, before anything is joined
    SELECT date_sk, sum(payment_amount) AS collected, count(*) AS payments
    FROM warehouse.fact_payments
    WHERE date_sk <> 0
      AND (:from::date IS NULL OR date_sk >= extract(year FROM :from::date) * 10000 + extract(month FROM :from::date) * 100 + extract(day FROM :from::date))
      AND (:to::date IS NULL OR date_sk <= extract(year FROM :to::date) * 10000 + extract(month FROM :to::date) * 100 + extract(day FROM :to::date))
      AND (:segment::text IS NULL OR customer_segment = :segment::text)
      AND (:branch::text IS NULL OR branch_code = :branch::text)
    GROUP BY date_sk) AS f
JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
GROUP BY d.day_name, extract(isodow FROM d.full_date)
ORDER BY extract(isodow FROM d.full_date)
