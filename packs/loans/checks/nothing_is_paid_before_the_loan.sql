-- nobody pays a loan back whose money has not been paid out
SELECT payment_id, loan_id, payments.amount
FROM operational.payments
JOIN operational.loans USING (loan_id)
WHERE status = 'pending'
