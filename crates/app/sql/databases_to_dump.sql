-- Every database that can be entered, templates excepted.
SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname
