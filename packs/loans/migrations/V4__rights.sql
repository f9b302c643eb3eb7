-- Who may do what: each role the least it needs.
--
-- Locks: ACCESS SHARE. Needs: ownership of the schema; CREATEROLE if a role is absent.
-- Oldest version: PostgreSQL 14.
--
-- The platform makes the roles, with passwords, before it migrates. Where these scripts run without
-- it, an absent role is made without the right to log in.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['app_user', 'readonly_user', 'etl_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;
END $$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA operational FROM PUBLIC;
GRANT USAGE ON SCHEMA operational TO app_user, readonly_user, etl_reader;

-- The application works on customers, loans and payments. Products and the audit trail it only reads:
-- rows come into the trail through the trigger, and none leave it.
GRANT SELECT, INSERT, UPDATE, DELETE ON operational.customers, operational.loans, operational.payments TO app_user;
GRANT SELECT ON operational.loan_products, operational.audit_log TO app_user;

-- Whoever looks things up sees every table, those of later migrations too.
GRANT SELECT ON ALL TABLES IN SCHEMA operational TO readonly_user;
ALTER DEFAULT PRIVILEGES IN SCHEMA operational GRANT SELECT ON TABLES TO readonly_user;

-- Capture copies only what models are made of; a migration that adds such a table grants it.
GRANT SELECT ON operational.customers, operational.loan_products, operational.loans, operational.payments TO etl_reader;
