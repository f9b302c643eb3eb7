-- The SCRAM verifier of a role that may log in now. Needs a superuser, because pg_authid holds passwords; takes no locks.
SELECT rolpassword
FROM pg_catalog.pg_authid
WHERE rolname = $1 AND rolcanlogin AND rolpassword IS NOT NULL AND (rolvaliduntil IS NULL OR rolvaliduntil > now())
