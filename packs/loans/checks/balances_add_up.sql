-- a loan that has been paid out and not come back owes its amount less the principal that was paid
SELECT loan_id, status, amount, outstanding_balance, coalesce(paid.principal, 0) AS principal_paid
FROM operational.loans
LEFT JOIN (SELECT loan_id, sum(principal_portion) AS principal FROM operational.payments GROUP BY loan_id) AS paid
    USING (loan_id)
WHERE status IN ('active', 'defaulted') AND outstanding_balance <> amount - coalesce(paid.principal, 0)
