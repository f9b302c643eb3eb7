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
    SELECT k.customer_id, sum(f.payment_amount) AS total_paid,
           sum(f.interest_portion + f.penalty_portion) AS revenue, count(*) AS payments
    FROM warehouse.fact_payments f
    JOIN warehouse.dim_customer k ON k.customer_sk = f.customer_sk
    JOIN warehouse.dim_date d ON d.date_sk = f.date_sk
    WHERE f.customer_sk <> 0
      AND (:from::date IS NULL OR d.full_date >= :from::date)
      AND (:to::date IS NULL OR d.full_date <= :to::date)
      AND (:segment::text IS NULL OR f.customer_segment = :segment::text)
      AND (:branch::text IS NULL OR f.branch_code = :branch::text)
    GROUP BY k.customer_id
    ORDER BY total_paid DESC, k.customer_id
    LIMIT coalesce(:limit::bigint, 10)) AS p
JOIN warehouse.dim_customer c ON c.customer_id = p.customer_id AND c.is_current
ORDER BY p.total_paid DESC, c.customer_id
