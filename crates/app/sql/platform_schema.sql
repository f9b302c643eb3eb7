-- Purpose: the platform's own tables, in the database `millrace` on the primary.
-- Locks: none that anyone waits for; only new objects are made. Privileges: the superuser. Oldest version: PostgreSQL 14.
CREATE TABLE IF NOT EXISTS console_users (
    name text PRIMARY KEY CHECK (name <> '' AND length(name) <= 100),
    password_hash text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now()
);
