-- The SCRAM verifier of a role that may log in now; of superusers none, because who asks for them could be anywhere. Needs
-- a superuser, because pg_authid holds passwords; takes no locks.
SELECT rolpassword
FROM pg_catalog.pg_authid
WHERE rolname = $1 AND rolcanlogin AND NOT rolsuper AND rolpassword IS NOT NULL AND (rolvaliduntil IS NULL OR rolvaliduntil > now())
