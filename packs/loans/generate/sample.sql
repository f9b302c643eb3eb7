-- Sample data: a Kenyan microfinance company from 2018 to :today.
--
-- Parameters: :scale (1 = 2,000 customers, about 100,000 payments), :seed, :today (date).
-- The same three give the same rows on every server: all chance comes from hashint8extended (which
-- hash partitioning keeps the same in every version), all money is numeric, nothing is read from a clock.
-- Runs in one transaction of the loader, as the owner of the schema, on empty tables.
-- Locks: ROW EXCLUSIVE on customers, loans and payments. Oldest version: PostgreSQL 14.
--
-- Constraints, limits and the audit trail are in force: each loan leaves its INSERT in audit_log.

DO $$
BEGIN
    IF EXISTS (SELECT FROM operational.customers) OR EXISTS (SELECT FROM operational.loans)
       OR EXISTS (SELECT FROM operational.payments) THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'there are customers, loans or payments in the database already',
            HINT = 'sample data goes into empty tables only; make a new platform for it';
    END IF;
END $$;

-- a number in [0, 1) for a key; each salt is a sequence of its own
CREATE FUNCTION pg_temp.u(key bigint, salt integer) RETURNS float8 IMMUTABLE PARALLEL SAFE
    RETURN (hashint8extended(key, hashint8extended(:seed, salt)) & 9007199254740991)::float8 / 9007199254740992;

CREATE FUNCTION pg_temp.pick(list text[], key bigint, salt integer) RETURNS text IMMUTABLE PARALLEL SAFE
    RETURN list[1 + floor(pg_temp.u(key, salt) * cardinality(list))::integer];

------------------------------------------------------------------------------------------ branches
CREATE TEMP TABLE gen_branch ON COMMIT DROP AS
SELECT branch, city, branch_code,
       (sum(weight) OVER (ORDER BY branch) - weight)::float8 / 100 AS share_from,
       sum(weight) OVER (ORDER BY branch)::float8 / 100 AS share_to
FROM (VALUES
    (1, 'Nairobi', 'NBO-01', 22), (2, 'Nairobi', 'NBO-02', 14), (3, 'Mombasa', 'MSA-01', 14),
    (4, 'Kisumu', 'KSM-01', 10), (5, 'Nakuru', 'NKR-01', 9), (6, 'Eldoret', 'ELD-01', 8),
    (7, 'Thika', 'THK-01', 7), (8, 'Nyeri', 'NYR-01', 5), (9, 'Machakos', 'MCK-01', 4),
    (10, 'Meru', 'MER-01', 4), (11, 'Kisii', 'KSI-01', 3)) AS b (branch, city, branch_code, weight);

----------------------------------------------------------------------------------------- customers
CREATE TEMP TABLE gen_customer ON COMMIT DROP AS
SELECT c.customer_id, c.segment, b.branch, b.branch_code, b.city,
       c.joined_on, (c.joined_on + interval '5 hours' + floor(pg_temp.u(c.customer_id, 4) * 36000) * interval '1 second')
           AT TIME ZONE 'UTC' AS joined_at
FROM (
    SELECT id AS customer_id, pg_temp.u(id, 2) AS branch_at,
           CASE WHEN pg_temp.u(id, 1) < 0.78 THEN 'retail' WHEN pg_temp.u(id, 1) < 0.96 THEN 'sme' ELSE 'corporate' END AS segment,
           -- some come over in the first months, the others evenly with a little growth
           date '2018-01-01' + CASE WHEN pg_temp.u(id, 8) < 0.12 THEN floor(120 * pg_temp.u(id, 3))
               ELSE floor((:today - date '2018-01-01' - 20)
                   * (1.2 * pg_temp.u(id, 3) - 0.2 * pg_temp.u(id, 3) * pg_temp.u(id, 3))) END::integer AS joined_on
    FROM generate_series(1, 2000::bigint * :scale) AS id) AS c
JOIN gen_branch b ON c.branch_at >= b.share_from AND c.branch_at < b.share_to;

INSERT INTO operational.customers
    (customer_id, full_name, email, phone, national_id, city, country, segment, created_at, updated_at)
SELECT customer_id,
       CASE segment WHEN 'retail' THEN first_name || ' ' || last_name ELSE last_name || ' ' || trade END,
       regexp_replace(lower(CASE segment WHEN 'retail' THEN first_name || '.' || last_name ELSE 'office.' || last_name END), '[^a-z.]', '', 'g')
           || '.' || customer_id || '@example.com',
       -- multiplication by a number without a common factor: no two are the same
       '+2547' || lpad(((customer_id * 48271 + 1234567) % 100000000)::text, 8, '0'),
       (10000000 + (customer_id * 7368787 + 7654321) % 30000000)::text,
       city, 'Kenya', segment, joined_at, joined_at
FROM (
    SELECT c.*,
           pg_temp.pick(ARRAY['Wanjiru', 'Achieng', 'Njeri', 'Akinyi', 'Wambui', 'Chebet', 'Mwende', 'Halima', 'Nyambura',
               'Atieno', 'Jepkosgei', 'Kavata', 'Zawadi', 'Moraa', 'Wairimu', 'Faith', 'Mercy', 'Grace', 'Joyce', 'Esther',
               'Kamau', 'Otieno', 'Kiprop', 'Mutua', 'Juma', 'Omondi', 'Mwangi', 'Barasa', 'Kipchoge', 'Ochieng',
               'Brian', 'Kevin', 'Peter', 'Samuel', 'Daniel', 'Joseph', 'Hassan', 'Musyoka', 'Koech', 'Dennis'],
               customer_id, 5) AS first_name,
           pg_temp.pick(ARRAY['Kamau', 'Mwangi', 'Njoroge', 'Karanja', 'Kariuki', 'Maina', 'Ng''ang''a', 'Kimani', 'Waweru', 'Gitau',
               'Odhiambo', 'Otieno', 'Owino', 'Okoth', 'Onyango', 'Ouma', 'Were', 'Wanyama', 'Wekesa', 'Simiyu',
               'Mutua', 'Musyoka', 'Muthama', 'Kilonzo', 'Nzioka', 'Kiptoo', 'Cheruiyot', 'Korir', 'Rotich', 'Koech',
               'Kibet', 'Langat', 'Nyaga', 'Mugo', 'Kinyua', 'Mwenda', 'Abdi', 'Hassan', 'Salim', 'Mwakio',
               'Nyamweya', 'Ombati', 'Mogaka', 'Nyong''o', 'Adhiambo', 'Chege', 'Macharia', 'Wafula'],
               customer_id, 6) AS last_name,
           CASE segment
               WHEN 'sme' THEN pg_temp.pick(ARRAY['Hardware', 'General Stores', 'Tailors', 'Poultry Farm', 'Auto Spares', 'Bakery',
                   'Salon', 'Agrovet', 'Butchery', 'Dairy', 'Electronics', 'Timber Yard'], customer_id, 7)
               ELSE pg_temp.pick(ARRAY['Holdings Ltd', 'Tea Estates Ltd', 'Logistics Ltd', 'Construction Ltd', 'Millers Ltd',
                   'Properties Ltd', 'Schools Ltd', 'Exporters Ltd'], customer_id, 7)
           END AS trade
    FROM gen_customer c) AS named
ORDER BY customer_id;

--------------------------------------------------------------------------------------------- loans
-- A customer's loans are spread over the time since they joined; loan numbers follow the applications.
CREATE TEMP TABLE gen_loan ON COMMIT DROP AS
WITH asked AS (
    SELECT c.customer_id, c.segment, c.branch, c.branch_code, i, key,
           c.joined_on + 1 + floor((i - 1 + pg_temp.u(key, 11)) * (:today - c.joined_on - 2) / loan_count)::integer AS applied_on
    FROM (
        SELECT c.*, 1 + floor(pg_temp.u(customer_id, 10)
            * CASE segment WHEN 'retail' THEN 10.3 WHEN 'sme' THEN 13.5 ELSE 14.5 END
            * (0.3 + 0.7 * (:today - joined_on)::float8 / (:today - date '2018-01-01')))::integer AS loan_count
        FROM gen_customer c) AS c
    CROSS JOIN LATERAL generate_series(1, c.loan_count) AS i
    CROSS JOIN LATERAL (SELECT c.customer_id * 32 + i AS key) AS k
), chosen AS (
    SELECT a.*,
           CASE a.segment
               WHEN 'retail' THEN CASE WHEN v < 0.62 THEN 'personal' WHEN v < 0.84 THEN 'education' WHEN v < 0.96 THEN 'auto' ELSE 'mortgage' END
               WHEN 'sme' THEN CASE WHEN v < 0.72 THEN 'business' WHEN v < 0.84 THEN 'personal' ELSE 'auto' END
               ELSE CASE WHEN v < 0.70 THEN 'business' WHEN v < 0.88 THEN 'auto' ELSE 'mortgage' END
           END AS product_type
    FROM asked a
    CROSS JOIN LATERAL (SELECT pg_temp.u(a.key, 12) AS v) AS r
), termed AS (
    SELECT h.*, p.product_id,
           -- many small loans, few large ones; to 500 shillings
           least(p.max_amount, p.min_amount + 500 * floor((p.max_amount - p.min_amount)::float8 / 500
               * pg_temp.u(h.key, 13) * pg_temp.u(h.key, 13) * pg_temp.u(h.key, 13)
               * CASE h.segment WHEN 'retail' THEN 0.6 WHEN 'sme' THEN 0.8 ELSE 1 END)::integer) AS amount,
           p.interest_rate + CASE h.segment WHEN 'retail' THEN 0 WHEN 'sme' THEN -0.5 ELSE -1.5 END
               + 0.5 * floor(pg_temp.u(h.key, 14) * 5)::integer AS interest_rate,
           pg_temp.pick(CASE h.product_type
               WHEN 'personal' THEN '{3,6,6,9,12,12,18,24}' WHEN 'business' THEN '{6,9,12,12,18,24,36}'
               WHEN 'mortgage' THEN '{60,84,120,180}' WHEN 'auto' THEN '{12,24,36,48,60}'
               ELSE '{6,12,12,18,24,36}' END::text[], h.key, 15)::integer AS tenure_months,
           (applied_on + interval '5 hours' + floor(pg_temp.u(h.key, 16) * 36000) * interval '1 second') AT TIME ZONE 'UTC' AS applied_at,
           applied_on + 1 + floor(pg_temp.u(h.key, 17) * 6)::integer AS disbursed_on
    FROM chosen h
    JOIN operational.loan_products p ON p.product_id <= 5 AND p.product_type = h.product_type
)
SELECT row_number() OVER (ORDER BY applied_at, t.key) AS loan_id, t.*,
       disbursed_on > :today AS is_pending,
       -- after how many payments a customer stops; never, for most
       CASE WHEN pg_temp.u(t.key, 18) < CASE t.segment WHEN 'retail' THEN 0.085 WHEN 'sme' THEN 0.065 ELSE 0.03 END
            THEN floor(tenure_months * (0.1 + 0.7 * pg_temp.u(t.key, 19)))::integer END AS stops_after,
       NULL::numeric AS instalment
FROM termed t;

-- (1 + r)^k and 1 + (1 + r) + … + (1 + r)^(k - 1), for each rate in use; exact to 20 places
CREATE TEMP TABLE gen_factor ON COMMIT DROP AS
WITH RECURSIVE factor AS (
    SELECT interest_rate, round(interest_rate / 1200, 20) AS r, 0 AS k, 1::numeric AS growth, 0::numeric AS annuity
    FROM (SELECT DISTINCT interest_rate FROM gen_loan) AS rates
    UNION ALL
    SELECT interest_rate, r, k + 1, round(growth * (1 + r), 20), round(annuity * (1 + r) + 1, 20)
    FROM factor WHERE k < 180
)
SELECT interest_rate, k, r, growth, annuity,
       lag(growth) OVER steps AS growth_before, lag(annuity) OVER steps AS annuity_before
FROM factor WINDOW steps AS (PARTITION BY interest_rate ORDER BY k);

UPDATE gen_loan l SET instalment = round(l.amount * f.growth / f.annuity, 2)
FROM gen_factor f WHERE f.interest_rate = l.interest_rate AND f.k = l.tenure_months;
ANALYZE gen_loan;
ANALYZE gen_factor;

------------------------------------------------------------------------------------------ payments
-- The balance after k instalments in closed form; each is rounded by itself, so principal portions
-- are differences of balances and add up to the amount exactly.
CREATE TEMP TABLE gen_payment ON COMMIT DROP AS
WITH due AS (
    SELECT l.loan_id, l.segment, l.interest_rate, l.amount, l.instalment, l.tenure_months, k, pay AS key,
           (l.disbursed_on + k * interval '1 month')::date AS due_on,
           CASE WHEN k > l.stops_after - 2 THEN 10 + floor(pg_temp.u(pay, 21) * 15)::integer
                WHEN pg_temp.u(pay, 21) < 0.80 THEN floor(pg_temp.u(pay, 21) * 5)::integer
                WHEN pg_temp.u(pay, 21) < 0.94 THEN 4 + floor((pg_temp.u(pay, 21) - 0.80) * 40)::integer
                ELSE 10 + floor((pg_temp.u(pay, 21) - 0.94) * 250)::integer END AS days_late
    FROM gen_loan l
    CROSS JOIN LATERAL generate_series(1, least(l.tenure_months, coalesce(l.stops_after, l.tenure_months),
        (extract(year FROM :today)::integer - extract(year FROM l.disbursed_on)::integer) * 12
        + extract(month FROM :today)::integer - extract(month FROM l.disbursed_on)::integer)) AS k
    CROSS JOIN LATERAL (SELECT l.loan_id * 256 + k AS pay) AS keys
    WHERE NOT l.is_pending
), paid AS (
    SELECT d.*, due_on + days_late
               -- the branches are closed on Sundays
               + CASE WHEN extract(isodow FROM due_on + days_late) = 7 AND pg_temp.u(key, 22) < 0.4 THEN 1 ELSE 0 END AS paid_on,
           CASE WHEN days_late >= 10 THEN round(instalment * 0.05, 2) ELSE 0 END AS penalty,
           round(d.amount * f.growth_before - instalment * f.annuity_before, 2) AS balance_before,
           CASE WHEN k = tenure_months THEN 0 ELSE round(d.amount * f.growth - instalment * f.annuity, 2) END AS balance_after,
           f.r
    FROM due d
    JOIN gen_factor f USING (interest_rate, k)
)
SELECT loan_id, k, balance_after, penalty,
       balance_before - balance_after AS principal,
       CASE WHEN k = tenure_months THEN round(balance_before * r, 2)
            ELSE instalment - (balance_before - balance_after) END AS interest,
       (paid_on + interval '5 hours' + floor(pg_temp.u(key, 23) * 36000) * interval '1 second') AT TIME ZONE 'UTC' AS paid_at,
       CASE WHEN segment = 'corporate' THEN CASE WHEN v < 0.70 THEN 'bank_transfer' WHEN v < 0.86 THEN 'cheque' ELSE 'online' END
            WHEN segment = 'sme' THEN CASE WHEN v < 0.46 THEN 'mpesa' WHEN v < 0.76 THEN 'bank_transfer' WHEN v < 0.88 THEN 'cash'
                                           WHEN v < 0.94 THEN 'cheque' ELSE 'online' END
            ELSE CASE WHEN v < 0.71 THEN 'mpesa' WHEN v < 0.84 THEN 'cash' WHEN v < 0.93 THEN 'bank_transfer' ELSE 'online' END
       END AS payment_method
FROM paid
CROSS JOIN LATERAL (SELECT pg_temp.u(key, 24) AS v) AS r24
WHERE paid_on <= :today;
ANALYZE gen_payment;

INSERT INTO operational.loans
    (loan_id, customer_id, product_id, amount, interest_rate, tenure_months, status, outstanding_balance,
     disbursed_at, maturity_date, branch_code, loan_officer, created_at, updated_at)
SELECT l.loan_id, l.customer_id, l.product_id, l.amount, l.interest_rate, l.tenure_months, s.status,
       CASE WHEN s.status IN ('pending', 'repaid') THEN 0 ELSE coalesce(p.balance, l.amount) END,
       t.disbursed_at,
       CASE WHEN NOT l.is_pending THEN (l.disbursed_on + l.tenure_months * interval '1 month')::date END,
       l.branch_code,
       (ARRAY['A. Wanjala', 'B. Chepkoech', 'C. Muriuki', 'D. Odinga', 'E. Njuguna', 'F. Mutiso', 'G. Abdalla', 'H. Kerubo'])
           [1 + (l.branch * 3 + floor(pg_temp.u(l.key, 20) * 4)::integer) % 8],
       l.applied_at,
       coalesce(CASE s.status WHEN 'defaulted' THEN d.defaulted_at END, p.last_paid_at, t.disbursed_at, l.applied_at)
FROM gen_loan l
LEFT JOIN (
    SELECT loan_id, count(*) AS paid_count, min(balance_after) AS balance, max(paid_at) AS last_paid_at
    FROM gen_payment GROUP BY loan_id) AS p USING (loan_id)
CROSS JOIN LATERAL (
    SELECT CASE WHEN NOT l.is_pending THEN (l.disbursed_on + interval '11 hours') AT TIME ZONE 'UTC' END AS disbursed_at) AS t
-- three months without a payment that was due: given up
CROSS JOIN LATERAL (
    SELECT (l.disbursed_on + (l.stops_after + 1) * interval '1 month' + interval '90 days' + interval '6 hours')
           AT TIME ZONE 'UTC' AS defaulted_at) AS d
CROSS JOIN LATERAL (
    SELECT CASE WHEN l.is_pending THEN 'pending'
                WHEN p.paid_count = l.tenure_months THEN 'repaid'
                WHEN d.defaulted_at < :today::timestamp AT TIME ZONE 'UTC' THEN 'defaulted'
                ELSE 'active' END AS status) AS s
ORDER BY l.loan_id;

INSERT INTO operational.payments
    (payment_id, loan_id, amount, principal_portion, interest_portion, penalty_portion, payment_method, payment_date, source)
SELECT row_number() OVER (ORDER BY paid_at, loan_id, k), loan_id, principal + interest + penalty, principal, interest, penalty,
       payment_method, paid_at, 'sample'
FROM gen_payment
ORDER BY paid_at, loan_id, k;

------------------------------------------------------------------------- what comes next goes on here
SELECT setval(pg_get_serial_sequence('operational.customers', 'customer_id'), (SELECT max(customer_id) FROM operational.customers)),
       setval(pg_get_serial_sequence('operational.loans', 'loan_id'), (SELECT max(loan_id) FROM operational.loans)),
       setval(pg_get_serial_sequence('operational.payments', 'payment_id'), (SELECT max(payment_id) FROM operational.payments));

ANALYZE operational.customers;
ANALYZE operational.loans;
ANALYZE operational.payments;
