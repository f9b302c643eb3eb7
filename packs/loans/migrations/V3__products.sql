-- The products on offer. Reference data: the application reads it, migrations change it.
--
-- Locks: ROW EXCLUSIVE on loan_products. Needs: INSERT on it. Oldest version: PostgreSQL 14.

INSERT INTO operational.loan_products
    (product_name, product_type, min_amount, max_amount, min_tenure_months, max_tenure_months, interest_rate)
VALUES
    ('Personal loan',  'personal',    5000,   500000,   3,  24, 18.00),
    ('Business loan',  'business',   50000,  5000000,   6,  36, 16.00),
    ('Home loan',      'mortgage',  500000, 10000000,  60, 180, 13.00),
    ('Vehicle loan',   'auto',      200000,  3000000,  12,  60, 15.00),
    ('Education loan', 'education',  20000,   800000,   6,  36, 14.00);
