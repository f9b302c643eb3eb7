-- name: loan defaulted
-- weight: 0.2
-- description: An active loan is given up.
--
-- r1 loan.

UPDATE operational.loans l
SET status = 'defaulted'
FROM (
    SELECT loan_id FROM operational.loans
    WHERE status = 'active' AND loan_id >= (SELECT floor(:r1 * max(loan_id)) FROM operational.loans)
    ORDER BY loan_id LIMIT 1 FOR UPDATE SKIP LOCKED) AS lost
WHERE l.loan_id = lost.loan_id
RETURNING l.loan_id;
