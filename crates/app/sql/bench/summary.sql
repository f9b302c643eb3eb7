-- Purpose: counts and sums that are the same wherever the same rows are. SCHEMA is replaced.
-- Locks: none that anyone waits for. Privileges: SELECT. Runs on PostgreSQL and on the warehouse.
SELECT (SELECT count(*)::text FROM SCHEMA.customers) AS customers,
       (SELECT count(*)::text FROM SCHEMA.loans) AS loans,
       (SELECT sum(outstanding_balance)::text FROM SCHEMA.loans) AS outstanding,
       (SELECT count(*)::text FROM SCHEMA.payments) AS payments,
       (SELECT sum(amount)::text FROM SCHEMA.payments) AS paid
