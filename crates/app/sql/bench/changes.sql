-- Purpose: transactions like a lender's, of about ten rows: six payments come in, three balances
-- change (one in thirty of them with another loan officer, which changes its dimension), one payment is taken back.
-- Locks: rows only. Privileges: the superuser, on a throw-away server. Oldest version: PostgreSQL 14.
CREATE SCHEMA bench;

-- One transaction's statements; the number of rows changed.
CREATE FUNCTION bench.change(loan_max bigint, payment_max bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    changed integer;
    total integer;
    -- chosen once: in the statement it would be chosen again for each row
    taken_back bigint := 1 + floor(random() * payment_max);
BEGIN
    INSERT INTO operational.payments
        (loan_id, amount, principal_portion, interest_portion, penalty_portion, payment_method, source)
    SELECT 1 + floor(random() * loan_max)::bigint, 1000, 900, 100, 0, 'mpesa', 'sample' FROM generate_series(1, 6);
    GET DIAGNOSTICS total = ROW_COUNT;

    UPDATE operational.loans
    SET outstanding_balance = CASE WHEN status IN ('active', 'defaulted') THEN greatest(outstanding_balance - 1, 0.01) ELSE 0 END,
        loan_officer = CASE WHEN random() < 1 / 30.0 THEN 'Officer ' || floor(random() * 50) ELSE loan_officer END
    WHERE loan_id IN (SELECT 1 + floor(random() * loan_max)::bigint FROM generate_series(1, 3));
    GET DIAGNOSTICS changed = ROW_COUNT;
    total := total + changed;

    DELETE FROM operational.payments WHERE payment_id = taken_back;
    GET DIAGNOSTICS changed = ROW_COUNT;
    RETURN total + changed;
END $$;

-- Transactions until `wanted` rows have changed; in `changed` how many did.
CREATE PROCEDURE bench.backlog(wanted integer, loan_max bigint, payment_max bigint, INOUT changed integer DEFAULT 0)
LANGUAGE plpgsql AS $$
BEGIN
    WHILE changed < wanted LOOP
        changed := changed + bench.change(loan_max, payment_max);
        COMMIT;
    END LOOP;
END $$;
