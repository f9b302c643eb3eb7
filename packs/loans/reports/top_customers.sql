-- title: Top customers
-- description: Those who paid most, under their present name and segment.
-- param: from date "From"
-- param: to date "To"
-- param: segment text "Segment"
-- choices: segment: SELECT DISTINCT segment FROM warehouse.dim_customer WHERE customer_sk <> 0 ORDER BY 1
-- param: branch text "Branch"
-- choices: branch: SELECT DISTINCT branch_code FROM warehouse.dim_loan WHERE loan_sk <> 0 ORDER BY 1
-- param: limit integer "How many" = 10
-- chart: horizontal_bar
-- x: full_name
-- y: total_paid
-- format: total_paid=money, revenue=money, payments=integer
-- drill: customer_loans(customer=customer_id)

SELECT c.full_name, c.customer_id, c.segment, c.city, p.total_paid, p.revenue, p.payments
FROM (
    SELECT k.customer_id, sum(f.total_paid) AS total_paid, sum(f.revenue) AS revenue,
           CAST(sum(f.payments) AS bigint) AS payments
    FROM (
        -- a row a version of a customer, before anything is joined
        SELECT customer_sk, sum(payment_amount) AS total_paid,
               sum(interest_portion) + sum(penalty_portion) AS revenue, count(*) AS payments
        FROM warehouse.fact_payments
        WHERE customer_sk <> 0
          AND (:from::date IS NULL OR date_sk >= extract(year FROM :from::date) * 10000 + extract(month FROM :from::date) * 100 + extract(day FROM :from::date))
          AND (:to::date IS NULL OR date_sk <= extract(year FROM :to::date) * 10000 + extract(month FROM :to::date) * 100 + extract(day FROM :to::date))
          AND (:segment::text IS NULL OR customer_segment = :segment::text)
          AND (:branch::text IS NULL OR branch_code = :branch::text)
        GROUP BY customer_sk) AS f
    JOIN warehouse.dim_customer k ON k.customer_sk = f.customer_sk
    GROUP BY k.customer_id
    ORDER BY total_paid DESC, k.customer_id
    LIMIT coalesce(:limit::bigint, 10)) AS p
JOIN warehouse.dim_customer c ON c.customer_id = p.customer_id AND c.is_current
ORDER BY p.total_paid DESC, c.customer_id
