-- name: loan applied for
-- weight: 2
-- description: A customer asks for a loan within a product's limits; it is pending.
--
-- r1 customer, r2 product, r3 amount, r4 term.

INSERT INTO operational.loans
    (customer_id, product_id, amount, interest_rate, tenure_months, branch_code, loan_officer)
SELECT c.customer_id, p.product_id,
       least(p.max_amount, p.min_amount + 500 * floor((p.max_amount - p.min_amount)::float8 / 500 * :r3 * :r3 * :r3)::integer),
       p.interest_rate,
       p.min_tenure_months + floor(:r4 * (p.max_tenure_months - p.min_tenure_months + 1))::integer,
       coalesce(l.branch_code, 'NBO-01'), l.loan_officer
FROM (
    SELECT customer_id FROM operational.customers
    WHERE customer_id >= (SELECT floor(:r1 * max(customer_id)) FROM operational.customers)
    ORDER BY customer_id LIMIT 1) AS c
CROSS JOIN (
    SELECT * FROM operational.loan_products
    ORDER BY product_id OFFSET floor(:r2 * (SELECT count(*) FROM operational.loan_products))::integer LIMIT 1) AS p
-- who has a loan goes to the same branch again
LEFT JOIN LATERAL (
    SELECT branch_code, loan_officer FROM operational.loans
    WHERE customer_id = c.customer_id ORDER BY loan_id DESC LIMIT 1) AS l ON true
RETURNING loan_id;
