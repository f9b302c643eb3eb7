-- name: instalment paid
-- weight: 12
-- description: A customer pays the next instalment; the loan is repaid when nothing is owed.
--
-- r1 loan, r2 lateness, r3 method. The loan's row is locked, so that two payments of one loan follow
-- each other. Interest is a month's on the balance; what is left of the annuity goes to the principal.

WITH loan AS (
    SELECT l.loan_id, l.amount, l.interest_rate, l.tenure_months, l.outstanding_balance
    FROM operational.loans l
    WHERE l.status = 'active'
      AND l.loan_id >= (SELECT floor(:r1 * max(loan_id)) FROM operational.loans)
    ORDER BY l.loan_id LIMIT 1
    FOR UPDATE
), instalment AS (
    SELECT loan.*, round(outstanding_balance * interest_rate / 1200, 2) AS interest,
           CASE WHEN interest_rate = 0 THEN round(amount / tenure_months, 2)
                ELSE round(amount * (interest_rate / 1200) / (1 - power(1 + interest_rate / 1200, -tenure_months)), 2)
           END AS annuity
    FROM loan
), split AS (
    SELECT loan_id, interest, outstanding_balance,
           -- a rest of a shilling is not worth a visit
           CASE WHEN outstanding_balance - (annuity - interest) < 1 THEN outstanding_balance ELSE annuity - interest END AS principal,
           CASE WHEN :r2 < 0.06 THEN round(annuity * 0.05, 2) ELSE 0 END AS penalty
    FROM instalment
), balance AS (
    UPDATE operational.loans l
    SET outstanding_balance = l.outstanding_balance - split.principal,
        status = CASE WHEN l.outstanding_balance = split.principal THEN 'repaid' ELSE l.status END
    FROM split
    WHERE l.loan_id = split.loan_id
    RETURNING l.loan_id
)
INSERT INTO operational.payments (loan_id, amount, principal_portion, interest_portion, penalty_portion, payment_method)
SELECT split.loan_id, principal + interest + penalty, principal, interest, penalty,
       CASE WHEN :r3 < 0.65 THEN 'mpesa' WHEN :r3 < 0.80 THEN 'bank_transfer' WHEN :r3 < 0.91 THEN 'cash'
            WHEN :r3 < 0.98 THEN 'online' ELSE 'cheque' END
FROM split
JOIN balance USING (loan_id)
RETURNING payment_id;
