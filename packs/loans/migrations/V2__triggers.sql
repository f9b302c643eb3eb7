-- Times of change, the products' limits, and the audit trail of loans.
--
-- Locks: SHARE ROW EXCLUSIVE on the tables that get triggers. Needs: ownership of the schema.
-- Oldest version: PostgreSQL 14.
--
-- Functions that run as their owner have a fixed search_path, so that no caller can slip an object
-- of their own under a name that the function uses.

CREATE FUNCTION operational.set_updated_at() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END $$;

CREATE TRIGGER customers_set_updated_at BEFORE UPDATE ON operational.customers
    FOR EACH ROW EXECUTE FUNCTION operational.set_updated_at();
CREATE TRIGGER loan_products_set_updated_at BEFORE UPDATE ON operational.loan_products
    FOR EACH ROW EXECUTE FUNCTION operational.set_updated_at();
CREATE TRIGGER loans_set_updated_at BEFORE UPDATE ON operational.loans
    FOR EACH ROW EXECUTE FUNCTION operational.set_updated_at();

-- A loan keeps to its product's limits when it is made or its terms change; limits that are changed
-- later do not reach back.
CREATE FUNCTION operational.check_loan_terms() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    product operational.loan_products;
BEGIN
    SELECT * INTO product FROM operational.loan_products p WHERE p.product_id = NEW.product_id;
    IF NOT FOUND THEN
        RETURN NEW; -- the foreign key says so
    END IF;
    IF NEW.amount NOT BETWEEN product.min_amount AND product.max_amount THEN
        RAISE check_violation USING
            MESSAGE = format('a loan of %s is outside the limits of "%s"', NEW.amount, product.product_name),
            HINT = format('lend between %s and %s', product.min_amount, product.max_amount),
            TABLE = 'loans', COLUMN = 'amount';
    END IF;
    IF NEW.tenure_months NOT BETWEEN product.min_tenure_months AND product.max_tenure_months THEN
        RAISE check_violation USING
            MESSAGE = format('%s months are outside the limits of "%s"', NEW.tenure_months, product.product_name),
            HINT = format('choose between %s and %s months', product.min_tenure_months, product.max_tenure_months),
            TABLE = 'loans', COLUMN = 'tenure_months';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER loans_check_terms BEFORE INSERT OR UPDATE OF product_id, amount, tenure_months ON operational.loans
    FOR EACH ROW EXECUTE FUNCTION operational.check_loan_terms();

CREATE TABLE operational.audit_log (
    log_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name  text NOT NULL,
    operation   text NOT NULL CHECK (operation IN ('INSERT', 'UPDATE', 'DELETE')),
    record_id   bigint NOT NULL,
    old_values  jsonb,
    new_values  jsonb,
    changed_by  text NOT NULL DEFAULT session_user,
    change_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_log_record_idx ON operational.audit_log (table_name, record_id);

-- Writes as its owner: those who change loans need no right on the trail, and so cannot forge it.
CREATE FUNCTION operational.audit_loans() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO operational.audit_log (table_name, operation, record_id, old_values, new_values)
    VALUES (
        TG_TABLE_NAME,
        TG_OP,
        CASE TG_OP WHEN 'DELETE' THEN OLD.loan_id ELSE NEW.loan_id END,
        CASE TG_OP WHEN 'INSERT' THEN NULL ELSE to_jsonb(OLD) END,
        CASE TG_OP WHEN 'DELETE' THEN NULL ELSE to_jsonb(NEW) END);
    RETURN NULL;
END $$;

CREATE TRIGGER loans_audit AFTER INSERT OR UPDATE OR DELETE ON operational.loans
    FOR EACH ROW EXECUTE FUNCTION operational.audit_loans();
