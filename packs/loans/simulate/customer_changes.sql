-- name: customer changes
-- weight: 0.8
-- description: A customer moves, or grows into another segment.
--
-- r1 customer, r2 what changes, r3 to what.

UPDATE operational.customers c
SET city = CASE WHEN :r2 < 0.6
        THEN (ARRAY['Nairobi', 'Mombasa', 'Kisumu', 'Nakuru', 'Eldoret', 'Thika', 'Nyeri', 'Meru'])[1 + floor(:r3 * 8)::integer]
        ELSE c.city END,
    segment = CASE WHEN :r2 >= 0.6
        THEN (ARRAY['retail', 'sme', 'sme', 'corporate'])[1 + floor(:r3 * 4)::integer]
        ELSE c.segment END
FROM (
    SELECT customer_id FROM operational.customers
    WHERE customer_id >= (SELECT floor(:r1 * max(customer_id)) FROM operational.customers)
    ORDER BY customer_id LIMIT 1 FOR UPDATE SKIP LOCKED) AS chosen
WHERE c.customer_id = chosen.customer_id
RETURNING c.customer_id;
