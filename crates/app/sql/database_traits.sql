-- The cluster and the database of this session, as far as CREATE DATABASE asks for it. The ICU locale's column has
-- another name from PostgreSQL 17 on.
SELECT (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
       current_setting('server_version_num')::int AS version,
       pg_get_userbyid(d.datdba)::text AS owner,
       pg_encoding_to_char(d.encoding)::text AS encoding,
       d.datcollate::text AS collate,
       d.datctype::text AS ctype,
       CASE WHEN d.datlocprovider = 'i' THEN coalesce(to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale') END
           AS icu_locale
FROM pg_database AS d
WHERE d.datname = current_database()
