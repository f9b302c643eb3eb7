-- name: loan disbursed
-- weight: 2
-- description: The oldest application that no one else works on is paid out.

UPDATE operational.loans l
SET status = 'active', outstanding_balance = l.amount, disbursed_at = now(),
    maturity_date = (now() AT TIME ZONE 'UTC' + l.tenure_months * interval '1 month')::date
FROM (
    SELECT loan_id FROM operational.loans
    WHERE status = 'pending' ORDER BY loan_id LIMIT 1 FOR UPDATE SKIP LOCKED) AS next
WHERE l.loan_id = next.loan_id
RETURNING l.loan_id;
