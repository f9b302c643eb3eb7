-- What a reader connection has before its first statement: PostgreSQL's division, and functions that DuckDB
-- lacks. Temporary: the file is not touched. Locks: none. DuckDB 1.5.
set integer_division = true;
-- of the whole instance, for good: no statement of anyone reaches files or the network; the attached file itself,
-- its log and the temporary directory stay usable
set enable_external_access = false;

create temp macro initcap(s) as array_to_string(list_transform(string_split(lower(s), ' '), lambda w: upper(left(w, 1)) || substring(w, 2)), ' ');
create temp macro btrim(s) as trim(s), (s, c) as trim(s, c);
create temp macro to_hex(n) as lower(hex(n));
create temp macro width_bucket(v, low, high, n) as
    case when v < low then 0 when v >= high then n + 1 else cast(floor((v - low) * n / (high - low)) as integer) + 1 end;
create temp macro quote_literal(s) as '''' || replace(s, '''', '''''') || '''';
create temp macro mr_quote_ident(s) as
    case when regexp_full_match(s, '[a-z_][a-z0-9_]*') then s else '"' || replace(s, '"', '""') || '"' end;
create temp macro mr_array_remove(l, e) as list_filter(l, lambda x: x is distinct from e);
create temp macro array_to_json(l) as to_json(l);
create temp macro generate_subscripts(l, d) as unnest(range(1, len(l) + 1));
create temp macro justify_days(i) as i;
create temp macro justify_hours(i) as i;

create temp macro mr_current_user() as 'warehouse_reader';
create temp macro mr_session_user() as 'warehouse_reader';
create temp macro mr_user() as 'warehouse_reader';
create temp macro mr_current_role() as 'warehouse_reader';
create temp macro mr_current_catalog() as 'warehouse';
create temp macro mr_current_database() as 'warehouse';
create temp macro mr_current_schema() as 'warehouse';
create temp macro mr_current_schemas(implicit) as
    case when implicit then ['pg_catalog', 'warehouse'] else ['warehouse'] end;
create temp macro mr_version() as 'PostgreSQL 15.0 (Millrace warehouse) on DuckDB';
create temp macro mr_pg_backend_pid() as 0;
create temp macro mr_pg_is_in_recovery() as false;
create temp macro mr_pg_postmaster_start_time() as now();
create temp macro mr_txid_current() as 1::bigint;
create temp macro mr_inet_client_addr() as null::varchar;
create temp macro mr_inet_server_addr() as null::varchar;
create temp macro mr_set_config(n, v, local) as v;
