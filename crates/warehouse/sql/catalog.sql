-- PostgreSQL's catalog as views over DuckDB's, for psql and drivers (PostgreSQL 15 manual, "System Catalogs").
-- Temporary: the file is not touched. Locks: none. DuckDB 1.5.

create temp macro mr_setting(n) as case lower(n)
    when 'server_version' then '15.0' when 'server_version_num' then '150000' when 'server_encoding' then 'UTF8'
    when 'client_encoding' then 'UTF8' when 'timezone' then 'UTC' when 'datestyle' then 'ISO, MDY'
    when 'intervalstyle' then 'postgres' when 'integer_datetimes' then 'on' when 'search_path' then 'warehouse'
    when 'transaction_read_only' then 'on' when 'default_transaction_read_only' then 'on' when 'is_superuser' then 'off'
    when 'standard_conforming_strings' then 'on' when 'transaction_isolation' then 'repeatable read'
    when 'default_transaction_isolation' then 'repeatable read' when 'max_identifier_length' then '63'
    when 'max_index_keys' then '32' when 'block_size' then '8192' when 'jit' then 'off' when 'bytea_output' then 'hex'
    when 'lc_collate' then 'C' when 'lc_ctype' then 'C.UTF-8' end;
create temp macro mr_current_setting(n) as mr_setting(n), (n, missing) as mr_setting(n);

-- DuckDB's type names as PostgreSQL's type oids
create temp macro mr_element_type(t) as case
    when t like 'DECIMAL%' then 1700 when t like 'ENUM%' then 25 else case t
    when 'BOOLEAN' then 16 when 'BLOB' then 17 when 'BIGINT' then 20 when 'UINTEGER' then 20
    when 'SMALLINT' then 21 when 'TINYINT' then 21 when 'UTINYINT' then 23 when 'USMALLINT' then 23 when 'INTEGER' then 23
    when 'UBIGINT' then 1700 when 'HUGEINT' then 1700 when 'UHUGEINT' then 1700 when 'FLOAT' then 700 when 'DOUBLE' then 701
    when 'DATE' then 1082 when 'TIME' then 1083 when 'TIMESTAMP' then 1114 when 'TIMESTAMP WITH TIME ZONE' then 1184
    when 'INTERVAL' then 1186 when 'UUID' then 2950 when 'JSON' then 114 else 25 end end;
create temp macro mr_type_oid(t) as
    case when t like '%[]' then 25 else mr_element_type(t) end::bigint;
create temp macro mr_typmod(t) as case when t like 'DECIMAL(%' then
    (regexp_extract(t, '\((\d+)', 1)::bigint << 16) + regexp_extract(t, ',\s*(\d+)', 1)::bigint + 4 else -1 end;

create temp view mr_pg_type as
select t.oid::bigint as oid, t.typname, case when t.typcategory = 'A' or t.typname like 'pg_%' then 11 else 11 end::bigint as typnamespace,
    10::bigint as typowner, t.typlen::bigint as typlen, t.typlen > 0 as typbyval, t.typtype, t.typcategory,
    false as typispreferred, true as typisdefined, ',' as typdelim, 0::bigint as typrelid, '-' as typsubscript,
    t.typelem::bigint as typelem, t.typarray::bigint as typarray, t.typname || 'in' as typinput, t.typname || 'out' as typoutput,
    t.typname || 'recv' as typreceive, t.typname || 'send' as typsend, '-' as typmodin, '-' as typmodout, '-' as typanalyze,
    'i' as typalign, 'p' as typstorage, false as typnotnull, 0::bigint as typbasetype, -1::bigint as typtypmod,
    0::bigint as typndims, case when t.typcategory = 'S' then 100 else 0 end::bigint as typcollation,
    null::varchar as typdefaultbin, null::varchar as typdefault, null::varchar as typacl
from (values
    (16, 'bool', 1, 'b', 'B', 0, 1000),
    (1000, '_bool', -1, 'b', 'A', 16, 0),
    (17, 'bytea', -1, 'b', 'U', 0, 1001),
    (1001, '_bytea', -1, 'b', 'A', 17, 0),
    (18, 'char', 1, 'b', 'S', 0, 1002),
    (1002, '_char', -1, 'b', 'A', 18, 0),
    (19, 'name', 64, 'b', 'S', 0, 1003),
    (1003, '_name', -1, 'b', 'A', 19, 0),
    (20, 'int8', 8, 'b', 'N', 0, 1016),
    (1016, '_int8', -1, 'b', 'A', 20, 0),
    (21, 'int2', 2, 'b', 'N', 0, 1005),
    (1005, '_int2', -1, 'b', 'A', 21, 0),
    (23, 'int4', 4, 'b', 'N', 0, 1007),
    (1007, '_int4', -1, 'b', 'A', 23, 0),
    (25, 'text', -1, 'b', 'S', 0, 1009),
    (1009, '_text', -1, 'b', 'A', 25, 0),
    (26, 'oid', 4, 'b', 'N', 0, 1028),
    (1028, '_oid', -1, 'b', 'A', 26, 0),
    (114, 'json', -1, 'b', 'U', 0, 199),
    (199, '_json', -1, 'b', 'A', 114, 0),
    (700, 'float4', 4, 'b', 'N', 0, 1021),
    (1021, '_float4', -1, 'b', 'A', 700, 0),
    (701, 'float8', 8, 'b', 'N', 0, 1022),
    (1022, '_float8', -1, 'b', 'A', 701, 0),
    (1042, 'bpchar', -1, 'b', 'S', 0, 1014),
    (1014, '_bpchar', -1, 'b', 'A', 1042, 0),
    (1043, 'varchar', -1, 'b', 'S', 0, 1015),
    (1015, '_varchar', -1, 'b', 'A', 1043, 0),
    (1082, 'date', 4, 'b', 'D', 0, 1182),
    (1182, '_date', -1, 'b', 'A', 1082, 0),
    (1083, 'time', 8, 'b', 'D', 0, 1183),
    (1183, '_time', -1, 'b', 'A', 1083, 0),
    (1114, 'timestamp', 8, 'b', 'D', 0, 1115),
    (1115, '_timestamp', -1, 'b', 'A', 1114, 0),
    (1184, 'timestamptz', 8, 'b', 'D', 0, 1185),
    (1185, '_timestamptz', -1, 'b', 'A', 1184, 0),
    (1186, 'interval', 16, 'b', 'T', 0, 1187),
    (1187, '_interval', -1, 'b', 'A', 1186, 0),
    (1266, 'timetz', 12, 'b', 'D', 0, 1270),
    (1270, '_timetz', -1, 'b', 'A', 1266, 0),
    (1700, 'numeric', -1, 'b', 'N', 0, 1231),
    (1231, '_numeric', -1, 'b', 'A', 1700, 0),
    (2205, 'regclass', 4, 'b', 'N', 0, 2210),
    (2210, '_regclass', -1, 'b', 'A', 2205, 0),
    (2206, 'regtype', 4, 'b', 'N', 0, 2211),
    (2211, '_regtype', -1, 'b', 'A', 2206, 0),
    (2249, 'record', -1, 'p', 'P', 0, 2287),
    (2287, '_record', -1, 'b', 'A', 2249, 0),
    (2278, 'void', 4, 'p', 'P', 0, 0),
    (2950, 'uuid', 16, 'b', 'U', 0, 2951),
    (2951, '_uuid', -1, 'b', 'A', 2950, 0),
    (3802, 'jsonb', -1, 'b', 'U', 0, 3807),
    (3807, '_jsonb', -1, 'b', 'A', 3802, 0),
    (705, 'unknown', -2, 'p', 'X', 0, 0)
) as t(oid, typname, typlen, typtype, typcategory, typelem, typarray);

create temp view mr_type_names as select oid as mr_oid, typname as mr_name from mr_pg_type;
-- Arguments of macros are pasted in, so the names within must be none that a caller has.
create temp macro mr_format_type(o, m) as case o
    when 16 then 'boolean' when 17 then 'bytea' when 18 then '"char"' when 19 then 'name' when 20 then 'bigint'
    when 21 then 'smallint' when 23 then 'integer' when 25 then 'text' when 26 then 'oid' when 114 then 'json'
    when 700 then 'real' when 701 then 'double precision' when 1042 then 'character' when 1043 then 'character varying'
    when 1082 then 'date' when 1083 then 'time without time zone' when 1114 then 'timestamp without time zone'
    when 1184 then 'timestamp with time zone' when 1186 then 'interval' when 2950 then 'uuid' when 3802 then 'jsonb'
    when 1700 then case when m > 4 then 'numeric(' || ((m - 4) >> 16) || ',' || ((m - 4) & 65535) || ')' else 'numeric' end
    when 0 then '-' else coalesce((select mr_n.mr_name from mr_type_names mr_n where mr_n.mr_oid = o), '???') end;
create temp macro mr_to_regtype(n) as (
    select mr_n.mr_oid from mr_type_names mr_n
    where mr_n.mr_name = lower(regexp_replace(n, '^pg_catalog\.', '')) or mr_format_type(mr_n.mr_oid, null) = lower(n) limit 1);

create temp view mr_pg_namespace as
select s.oid::bigint as oid, s.schema_name as nspname, 10::bigint as nspowner, null::varchar[] as nspacl
from duckdb_schemas() s
where s.database_name = current_database() and s.schema_name not in ('main', 'pg_catalog', 'information_schema')
union all values (11::bigint, 'pg_catalog', 10::bigint, null::varchar[]), (12::bigint, 'information_schema', 10::bigint, null::varchar[]);

create temp view mr_relations as
select table_oid::bigint as oid, schema_oid::bigint as schema_oid, schema_name, table_name as name, 'r' as kind,
    column_count::bigint as columns, estimated_size::bigint as estimated_rows, comment, ''::varchar as sql
from duckdb_tables() where database_name = current_database() and schema_name <> 'main'
union all
select view_oid::bigint, schema_oid::bigint, schema_name, view_name, 'v', column_count::bigint, -1::bigint, comment, sql
from duckdb_views() where database_name = current_database() and not internal and schema_name <> 'main';

create temp view mr_pg_class as
select r.oid, r.name as relname, r.schema_oid as relnamespace, 0::bigint as reltype, 0::bigint as reloftype,
    10::bigint as relowner, case r.kind when 'r' then 2 else 0 end::bigint as relam, 0::bigint as relfilenode,
    0::bigint as reltablespace, 0::bigint as relpages, r.estimated_rows::float as reltuples, 0::bigint as relallvisible,
    0::bigint as reltoastrelid, false as relhasindex, false as relisshared, 'p' as relpersistence, r.kind as relkind,
    r.columns as relnatts, 0::bigint as relchecks, r.kind = 'v' as relhasrules, false as relhastriggers, false as relhassubclass,
    false as relrowsecurity, false as relforcerowsecurity, true as relispopulated, 'd' as relreplident,
    false as relispartition, 0::bigint as relrewrite, 0::bigint as relfrozenxid, 0::bigint as relminmxid,
    null::varchar[] as relacl, null::varchar[] as reloptions, null::varchar as relpartbound, false as relhasoids, 1::bigint as xmin,
    1259::bigint as tableoid
from mr_relations r;

create temp view mr_relation_names as
select oid as mr_oid, schema_name as mr_schema, name as mr_name, kind as mr_kind, sql as mr_sql, comment as mr_comment from mr_relations;
create temp macro mr_pg_table_is_visible(o) as o in (select mr_n.mr_oid from mr_relation_names mr_n where mr_n.mr_schema = 'warehouse');
create temp macro mr_to_regclass(n) as (
    select mr_n.mr_oid from mr_relation_names mr_n
    where try_cast(n as bigint) = mr_n.mr_oid
       or mr_n.mr_name = lower(regexp_extract(replace(n, '"', ''), '([^.]+)$', 1))
          and mr_n.mr_schema = case when n like '%.%' then lower(regexp_extract(replace(n, '"', ''), '([^.]+)\.[^.]+$', 1)) else 'warehouse' end
    limit 1);
create temp macro mr_regclass_name(o) as coalesce((
    select case when mr_n.mr_schema = 'warehouse' then '' else mr_quote_ident(mr_n.mr_schema) || '.' end || mr_quote_ident(mr_n.mr_name)
    from mr_relation_names mr_n where mr_n.mr_oid = try_cast(o as bigint)), cast(o as varchar));
create temp view mr_namespace_names as select oid as mr_oid, nspname as mr_name from mr_pg_namespace;
create temp macro mr_to_regnamespace(n) as (select mr_n.mr_oid from mr_namespace_names mr_n where mr_n.mr_name = n);
create temp macro mr_regnamespace_name(o) as (select mr_n.mr_name from mr_namespace_names mr_n where mr_n.mr_oid = o);

create temp view mr_pg_attribute as
select c.table_oid::bigint as attrelid, c.column_name as attname, mr_type_oid(c.data_type) as atttypid, -1::bigint as attstattarget,
    -1::bigint as attlen, c.column_index::bigint as attnum, 0::bigint as attndims, -1::bigint as attcacheoff,
    mr_typmod(c.data_type) as atttypmod, false as attbyval, 'i' as attalign, 'x' as attstorage, '' as attcompression,
    not c.is_nullable as attnotnull, c.column_default is not null as atthasdef, false as atthasmissing, '' as attidentity,
    '' as attgenerated, false as attisdropped, true as attislocal, 0::bigint as attinhcount,
    case when mr_type_oid(c.data_type) = 25 then 100 else 0 end::bigint as attcollation, null::varchar[] as attacl,
    null::varchar[] as attoptions, null::varchar[] as attfdwoptions, null::varchar as attmissingval
from duckdb_columns() c
where c.database_name = current_database() and not c.internal and c.schema_name <> 'main';

create temp view mr_pg_attrdef as
select (c.table_oid * 1000 + c.column_index)::bigint as oid, c.table_oid::bigint as adrelid, c.column_index::bigint as adnum,
    c.column_default as adbin
from duckdb_columns() c
where c.database_name = current_database() and not c.internal and c.schema_name <> 'main' and c.column_default is not null;

create temp view mr_pg_description as
select r.oid as objoid, 1259::bigint as classoid, 0::bigint as objsubid, r.comment as description
from mr_relations r where r.comment is not null;

create temp view mr_pg_database as
select 1::bigint as oid, 'warehouse' as datname, 10::bigint as datdba, 6::bigint as encoding, 'c' as datlocprovider,
    false as datistemplate, true as datallowconn, -1::bigint as datconnlimit, 0::bigint as datfrozenxid, 0::bigint as datminmxid,
    1663::bigint as dattablespace, 'C' as datcollate, 'C.UTF-8' as datctype, null::varchar as daticulocale,
    null::varchar as datcollversion, null::varchar[] as datacl;

create temp view mr_pg_roles as
select 16384::bigint as oid, 'warehouse_reader' as rolname, false as rolsuper, true as rolinherit, false as rolcreaterole,
    false as rolcreatedb, true as rolcanlogin, false as rolreplication, -1::bigint as rolconnlimit, '********' as rolpassword,
    null::timestamptz as rolvaliduntil, false as rolbypassrls, null::varchar[] as rolconfig
union all
select 10, 'millrace', true, true, true, true, false, false, -1, '********', null, true, null;
create temp view mr_pg_authid as select * from mr_pg_roles;
create temp view mr_pg_user as
select rolname as usename, oid as usesysid, rolcreatedb as usecreatedb, rolsuper as usesuper, rolreplication as userepl,
    rolbypassrls as usebypassrls, rolpassword as passwd, rolvaliduntil as valuntil, rolconfig as useconfig
from mr_pg_roles where rolcanlogin;

create temp view mr_pg_am as
select 2::bigint as oid, 'heap' as amname, 'heap_tableam_handler' as amhandler, 't' as amtype;
create temp view mr_pg_language as
select 14::bigint as oid, 'sql' as lanname, 10::bigint as lanowner, false as lanispl, true as lanpltrusted, 0::bigint as lanplcallfoid,
    0::bigint as laninline, 0::bigint as lanvalidator, null::varchar[] as lanacl, 2612::bigint as tableoid;
create temp view mr_pg_tablespace as
select 1663::bigint as oid, 'pg_default' as spcname, 10::bigint as spcowner, null::varchar[] as spcacl, null::varchar[] as spcoptions;
create temp view mr_pg_collation as
select 100::bigint as oid, 'default' as collname, 11::bigint as collnamespace, 10::bigint as collowner, 'd' as collprovider,
    true as collisdeterministic, -1::bigint as collencoding, null::varchar as collcollate, null::varchar as collctype,
    null::varchar as colliculocale, null::varchar as collversion;
create temp view mr_pg_settings as
select name, mr_setting(name) as setting, null::varchar as unit, 'Millrace' as category, '' as short_desc, null::varchar as extra_desc,
    'internal' as context, 'string' as vartype, 'default' as source, null::varchar as min_val, null::varchar as max_val,
    null::varchar[] as enumvals, mr_setting(name) as boot_val, mr_setting(name) as reset_val, null::varchar as sourcefile,
    null::bigint as sourceline, false as pending_restart
from (values ('server_version'), ('server_version_num'), ('server_encoding'), ('client_encoding'), ('TimeZone'), ('DateStyle'),
    ('search_path'), ('transaction_read_only'), ('standard_conforming_strings'), ('max_index_keys'), ('jit')) as s(name);

create temp view mr_pg_tables as
select schema_name as schemaname, name as tablename, 'millrace' as tableowner, null::varchar as tablespace, false as hasindexes,
    false as hasrules, false as hastriggers, false as rowsecurity
from mr_relations where kind = 'r';
create temp view mr_pg_views as
select schema_name as schemaname, name as viewname, 'millrace' as viewowner, sql as definition from mr_relations where kind = 'v';
create temp view mr_pg_stat_user_tables as
select oid as relid, schema_name as schemaname, name as relname, 0::bigint as seq_scan, greatest(estimated_rows, 0) as n_live_tup,
    0::bigint as n_dead_tup
from mr_relations where kind = 'r';

create temp macro mr_pg_get_userbyid(o) as case o when 10 then 'millrace' when 16384 then 'warehouse_reader' else 'unknown (OID=' || o || ')' end;
create temp macro mr_pg_get_expr(e, r) as cast(e as varchar), (e, r, p) as cast(e as varchar);
create temp macro mr_pg_get_viewdef(o) as (
    select regexp_replace(mr_n.mr_sql, '^CREATE VIEW .*? AS ', '') from mr_relation_names mr_n where mr_n.mr_oid = try_cast(o as bigint) and mr_n.mr_kind = 'v'),
    (o, pretty) as (
    select regexp_replace(mr_n.mr_sql, '^CREATE VIEW .*? AS ', '') from mr_relation_names mr_n where mr_n.mr_oid = try_cast(o as bigint) and mr_n.mr_kind = 'v');
create temp macro mr_obj_description(o) as null::varchar,
    (o, c) as (select mr_n.mr_comment from mr_relation_names mr_n where mr_n.mr_oid = o and c = 'pg_class');
create temp macro mr_col_description(o, n) as null::varchar;
create temp macro mr_shobj_description(o, c) as null::varchar;
create temp macro mr_pg_char_to_encoding(e) as 6;
create temp macro mr_pg_tablespace_location(o) as '';
create temp macro mr_pg_tablespace_size(o) as 0::bigint;
create temp macro mr_pg_statistics_obj_is_visible(o) as true;
create temp macro mr_pg_collation_is_visible(o) as true;
create temp macro mr_pg_operator_is_visible(o) as true;
create temp macro mr_pg_conversion_is_visible(o) as true;
create temp macro mr_pg_opclass_is_visible(o) as true;
create temp macro mr_pg_ts_config_is_visible(o) as true;
create temp macro mr_pg_ts_dict_is_visible(o) as true;
create temp macro mr_pg_ts_parser_is_visible(o) as true;
create temp macro mr_pg_ts_template_is_visible(o) as true;
create temp macro mr_pg_advisory_unlock_all() as null::varchar;
create temp macro mr_pg_encoding_to_char(e) as case e when 6 then 'UTF8' else '' end;
create temp macro mr_pg_relation_size(o) as 0::bigint, (o, f) as 0::bigint;
create temp macro mr_pg_table_size(o) as 0::bigint;
create temp macro mr_pg_total_relation_size(o) as 0::bigint;
create temp macro mr_pg_database_size(o) as 0::bigint;
create temp macro mr_pg_size_pretty(n) as case
    when n < 10240 then n || ' bytes' when n < 10485760 then (n // 1024) || ' kB'
    when n < 10737418240 then (n // 1048576) || ' MB' else (n // 1073741824) || ' GB' end;
create temp macro mr_has_table_privilege(a, b) as true, (a, b, c) as true;
create temp macro mr_has_schema_privilege(a, b) as true, (a, b, c) as true;
create temp macro mr_has_database_privilege(a, b) as true, (a, b, c) as true;
create temp macro mr_has_function_privilege(a, b) as true, (a, b, c) as true;
create temp macro mr_has_sequence_privilege(a, b) as true, (a, b, c) as true;
create temp macro mr_has_column_privilege(a, b, c) as true, (a, b, c, d) as true;
create temp macro mr_has_any_column_privilege(a, b) as true, (a, b, c) as true;
create temp macro mr_pg_has_role(a, b) as true, (a, b, c) as true;
create temp macro mr_pg_function_is_visible(o) as true;
create temp macro mr_pg_type_is_visible(o) as true;
create temp macro mr_pg_relation_is_publishable(o) as false;
create temp macro mr_pg_is_other_temp_schema(o) as false;
create temp macro mr_pg_my_temp_schema() as 0::bigint;
create temp macro mr_pg_get_serial_sequence(a, b) as null::varchar;
create temp macro mr_array_upper(l, d) as len(l);
create temp macro mr_typeof(v) as mr_format_type(mr_type_oid(typeof(v)), -1);
create temp macro mr_pg_get_indexdef(a) as null::varchar, (a, b, c) as null::varchar;
create temp macro mr_pg_get_constraintdef(a) as null::varchar, (a, b) as null::varchar;
create temp macro mr_pg_get_triggerdef(a) as null::varchar, (a, b) as null::varchar;
create temp macro mr_pg_get_ruledef(a) as null::varchar, (a, b) as null::varchar;
create temp macro mr_pg_get_partkeydef(a) as null::varchar;
create temp macro mr_pg_get_function_arguments(a) as null::varchar;
create temp macro mr_pg_get_function_identity_arguments(a) as null::varchar;
create temp macro mr_pg_get_function_result(a) as null::varchar;
create temp macro mr_pg_get_statisticsobjdef_columns(a) as null::varchar;
create temp macro mr_pg_get_keywords() as table select 'select' as word, 'R' as catcode, true as barelabel, 'reserved' as catdesc, 'requires AS' as baredesc;


-- what has no meaning here: empty, with the columns that clients ask for
create temp view mr_pg_index as
select null::bigint as indexrelid, null::bigint as indrelid, null::bigint as indnatts, null::bigint as indnkeyatts, null::boolean as indisunique,
    null::boolean as indisprimary, null::boolean as indisexclusion, null::boolean as indimmediate, null::boolean as indisclustered, null::boolean as indisvalid,
    null::boolean as indcheckxmin, null::boolean as indisready, null::boolean as indislive, null::boolean as indisreplident, null::boolean as indnullsnotdistinct,
    null::bigint[] as indkey, null::bigint[] as indcollation, null::bigint[] as indclass, null::bigint[] as indoption, null::varchar as indexprs,
    null::varchar as indpred
where false;
create temp view mr_pg_constraint as
select null::bigint as tableoid, null::bigint as oid, null::varchar as conname, null::bigint as connamespace, null::varchar as contype, null::boolean as condeferrable,
    null::boolean as condeferred, null::boolean as convalidated, null::bigint as conrelid, null::bigint as contypid, null::bigint as conindid,
    null::bigint as conparentid, null::bigint as confrelid, null::varchar as confupdtype, null::varchar as confdeltype, null::varchar as confmatchtype,
    null::boolean as conislocal, null::bigint as coninhcount, null::boolean as connoinherit, null::bigint[] as conkey, null::bigint[] as confkey,
    null::bigint[] as conpfeqop, null::varchar as conbin
where false;
create temp view mr_pg_inherits as
select null::bigint as inhrelid, null::bigint as inhparent, null::bigint as inhseqno, null::boolean as inhdetachpending
where false;
create temp view mr_pg_trigger as
select null::bigint as tableoid, null::bigint as oid, null::bigint as tgrelid, null::bigint as tgparentid, null::varchar as tgname, null::bigint as tgfoid,
    null::bigint as tgtype, null::varchar as tgenabled, null::boolean as tgisinternal, null::bigint as tgconstrrelid, null::bigint as tgconstrindid,
    null::bigint as tgconstraint, null::boolean as tgdeferrable, null::boolean as tginitdeferred
where false;
create temp view mr_pg_rewrite as
select null::bigint as tableoid, null::bigint as oid, null::varchar as rulename, null::bigint as ev_class, null::varchar as ev_type, null::varchar as ev_enabled,
    null::boolean as is_instead
where false;
create temp view mr_pg_policy as
select null::bigint as oid, null::varchar as polname, null::bigint as polrelid, null::varchar as polcmd, null::boolean as polpermissive,
    null::bigint[] as polroles, null::varchar as polqual, null::varchar as polwithcheck
where false;
create temp view mr_pg_statistic_ext as
select null::bigint as oid, null::bigint as stxrelid, null::varchar as stxname, null::bigint as stxnamespace, null::bigint as stxowner,
    null::bigint as stxstattarget, null::bigint[] as stxkeys, null::varchar[] as stxkind, null::varchar as stxexprs
where false;
create temp view mr_pg_publication as
select null::bigint as oid, null::varchar as pubname, null::bigint as pubowner, null::boolean as puballtables, null::boolean as pubinsert,
    null::boolean as pubupdate, null::boolean as pubdelete, null::boolean as pubtruncate, null::boolean as pubviaroot
where false;
create temp view mr_pg_publication_rel as
select null::bigint as oid, null::bigint as prpubid, null::bigint as prrelid, null::varchar as prqual, null::bigint[] as prattrs
where false;
create temp view mr_pg_publication_namespace as
select null::bigint as oid, null::bigint as pnpubid, null::bigint as pnnspid
where false;
create temp view mr_pg_subscription as
select null::bigint as oid, null::bigint as subdbid, null::varchar as subname, null::bigint as subowner, null::boolean as subenabled,
    null::varchar[] as subpublications, null::boolean as subbinary, null::varchar as substream, null::varchar as subtwophasestate,
    null::boolean as subdisableonerr, null::varchar as subsynccommit, null::varchar as subconninfo, null::varchar as subskiplsn
where false;
create temp view mr_pg_proc as
select null::bigint as tableoid, null::bigint as oid, null::varchar as proname, null::bigint as pronamespace, null::bigint as proowner, null::bigint as prolang,
    null::varchar as procost, null::varchar as prorows, null::bigint as provariadic, null::varchar as prosupport, null::varchar as prokind,
    null::boolean as prosecdef, null::boolean as proleakproof, null::boolean as proisstrict, null::boolean as proretset, null::varchar as provolatile,
    null::varchar as proparallel, null::bigint as pronargs, null::bigint as pronargdefaults, null::bigint as prorettype, null::bigint[] as proargtypes,
    null::bigint[] as proallargtypes, null::varchar[] as proargmodes, null::varchar[] as proargnames, null::varchar as prosrc, null::varchar[] as proacl
where false;
create temp view mr_pg_aggregate as
select null::bigint as aggfnoid, null::varchar as aggkind, null::bigint as aggnumdirectargs
where false;
create temp view mr_pg_operator as
select null::bigint as tableoid, null::bigint as oid, null::varchar as oprname, null::bigint as oprnamespace, null::bigint as oprowner, null::varchar as oprkind,
    null::bigint as oprleft, null::bigint as oprright, null::bigint as oprresult, null::bigint as oprcode
where false;
create temp view mr_pg_cast as
select null::bigint as tableoid, null::bigint as oid, null::bigint as castsource, null::bigint as casttarget, null::bigint as castfunc, null::varchar as castcontext,
    null::varchar as castmethod
where false;
create temp view mr_pg_extension as
select null::bigint as tableoid, null::bigint as oid, null::varchar as extname, null::bigint as extowner, null::bigint as extnamespace, null::boolean as extrelocatable,
    null::varchar as extversion
where false;
create temp view mr_pg_enum as
select null::bigint as oid, null::bigint as enumtypid, null::varchar as enumsortorder, null::varchar as enumlabel
where false;
create temp view mr_pg_range as
select null::bigint as rngtypid, null::bigint as rngsubtype, null::bigint as rngmultitypid, null::bigint as rngcollation
where false;
create temp view mr_pg_sequence as
select null::bigint as seqrelid, null::bigint as seqtypid, null::bigint as seqstart, null::bigint as seqincrement, null::bigint as seqmax,
    null::bigint as seqmin, null::bigint as seqcache, null::boolean as seqcycle
where false;
create temp view mr_pg_sequences as
select null::varchar as schemaname, null::varchar as sequencename, null::varchar as sequenceowner, null::bigint as last_value
where false;
create temp view mr_pg_matviews as
select null::varchar as schemaname, null::varchar as matviewname, null::varchar as matviewowner, null::varchar as definition
where false;
create temp view mr_pg_indexes as
select null::varchar as schemaname, null::varchar as tablename, null::varchar as indexname, null::varchar as tablespace, null::varchar as indexdef
where false;
create temp view mr_pg_db_role_setting as
select null::bigint as setdatabase, null::bigint as setrole, null::varchar[] as setconfig
where false;
create temp view mr_pg_auth_members as
select null::bigint as roleid, null::bigint as member, null::bigint as grantor, null::boolean as admin_option
where false;
create temp view mr_pg_shdescription as
select null::bigint as objoid, null::bigint as classoid, null::varchar as description
where false;
create temp view mr_pg_seclabel as
select null::bigint as objoid, null::bigint as classoid, null::bigint as objsubid, null::varchar as provider, null::varchar as label
where false;
create temp view mr_pg_depend as
select null::bigint as classid, null::bigint as objid, null::bigint as objsubid, null::bigint as refclassid, null::bigint as refobjid,
    null::bigint as refobjsubid, null::varchar as deptype
where false;
create temp view mr_pg_foreign_table as
select null::bigint as ftrelid, null::bigint as ftserver, null::varchar[] as ftoptions
where false;
create temp view mr_pg_foreign_server as
select null::bigint as oid, null::varchar as srvname, null::bigint as srvowner, null::bigint as srvfdw, null::varchar as srvtype,
    null::varchar as srvversion, null::varchar[] as srvacl, null::varchar[] as srvoptions
where false;
create temp view mr_pg_foreign_data_wrapper as
select null::bigint as oid, null::varchar as fdwname, null::bigint as fdwowner, null::bigint as fdwhandler, null::bigint as fdwvalidator,
    null::varchar[] as fdwacl, null::varchar[] as fdwoptions
where false;
create temp view mr_pg_user_mapping as
select null::bigint as oid, null::bigint as umuser, null::bigint as umserver, null::varchar[] as umoptions
where false;
create temp view mr_pg_partitioned_table as
select null::bigint as partrelid, null::varchar as partstrat, null::bigint as partnatts, null::bigint as partdefid, null::bigint[] as partattrs
where false;
create temp view mr_pg_event_trigger as
select null::bigint as oid, null::varchar as evtname, null::varchar as evtevent, null::bigint as evtowner, null::bigint as evtfoid,
    null::varchar as evtenabled, null::varchar[] as evttags
where false;
create temp view mr_pg_default_acl as
select null::bigint as oid, null::bigint as defaclrole, null::bigint as defaclnamespace, null::varchar as defaclobjtype, null::varchar[] as defaclacl
where false;
create temp view mr_pg_conversion as
select null::bigint as tableoid, null::bigint as oid, null::varchar as conname, null::bigint as connamespace, null::bigint as conforencoding, null::bigint as contoencoding,
    null::boolean as condefault
where false;
create temp view mr_pg_opclass as
select null::bigint as tableoid, null::bigint as oid, null::bigint as opcmethod, null::varchar as opcname, null::bigint as opcnamespace, null::bigint as opcfamily,
    null::bigint as opcintype
where false;
create temp view mr_pg_opfamily as
select null::bigint as tableoid, null::bigint as oid, null::bigint as opfmethod, null::varchar as opfname, null::bigint as opfnamespace where false;
create temp view mr_pg_user_mappings as
select null::bigint as umid, null::bigint as srvid, null::varchar as srvname, null::bigint as umuser, null::varchar as usename,
    null::varchar[] as umoptions where false;
create temp view mr_pg_stat_activity as
select null::bigint as datid, null::varchar as datname, null::bigint as pid, null::varchar as usename, null::varchar as application_name,
    null::varchar as state, null::varchar as query
where false;
create temp view mr_pg_locks as
select null::varchar as locktype, null::bigint as database, null::bigint as relation, null::bigint as pid, null::varchar as mode,
    null::boolean as granted
where false;
create temp view mr_pg_largeobject_metadata as
select null::bigint as tableoid, null::bigint as oid, null::bigint as lomowner, null::varchar[] as lomacl
where false;
create temp view mr_pg_ts_config as
select null::bigint as oid, null::varchar as cfgname, null::bigint as cfgnamespace, null::bigint as cfgowner, null::bigint as cfgparser
where false;
create temp view mr_pg_ts_dict as
select null::bigint as oid, null::varchar as dictname, null::bigint as dictnamespace, null::bigint as dictowner, null::bigint as dicttemplate
where false;
create temp view mr_pg_ts_parser as
select null::bigint as oid, null::varchar as prsname, null::bigint as prsnamespace
where false;
create temp view mr_pg_ts_template as
select null::bigint as oid, null::varchar as tmplname, null::bigint as tmplnamespace
where false;
create temp view mr_pg_prepared_statements as
select null::varchar as name, null::varchar as statement, null::timestamptz as prepare_time
where false;

-- information_schema, of the warehouse only and with PostgreSQL's names of types
create temp view mr_is_schemata as
select 'warehouse' as catalog_name, nspname as schema_name, 'millrace' as schema_owner, null::varchar as default_character_set_catalog,
    null::varchar as default_character_set_schema, null::varchar as default_character_set_name, null::varchar as sql_path
from mr_pg_namespace;
create temp view mr_is_tables as
select 'warehouse' as table_catalog, schema_name as table_schema, name as table_name,
    case kind when 'r' then 'BASE TABLE' else 'VIEW' end as table_type, null::varchar as self_referencing_column_name,
    null::varchar as reference_generation, null::varchar as user_defined_type_catalog, null::varchar as user_defined_type_schema,
    null::varchar as user_defined_type_name, 'NO' as is_insertable_into, 'NO' as is_typed, null::varchar as commit_action
from mr_relations;
create temp view mr_is_views as
select 'warehouse' as table_catalog, schema_name as table_schema, name as table_name, sql as view_definition,
    'NONE' as check_option, 'NO' as is_updatable, 'NO' as is_insertable_into
from mr_relations where kind = 'v';
create temp view mr_is_columns as
select 'warehouse' as table_catalog, r.schema_name as table_schema, r.name as table_name, a.attname as column_name,
    a.attnum as ordinal_position, d.adbin as column_default, case when a.attnotnull then 'NO' else 'YES' end as is_nullable,
    mr_format_type(a.atttypid, -1) as data_type, null::bigint as character_maximum_length, null::bigint as character_octet_length,
    case a.atttypid when 1700 then (a.atttypmod - 4) >> 16 when 20 then 64 when 23 then 32 when 21 then 16 end as numeric_precision,
    case when a.atttypid in (20, 21, 23) then 2 when a.atttypid = 1700 then 10 end as numeric_precision_radix,
    case when a.atttypid = 1700 then (a.atttypmod - 4) & 65535 when a.atttypid in (20, 21, 23) then 0 end as numeric_scale,
    case when a.atttypid in (1114, 1184, 1083) then 6 end as datetime_precision, 'warehouse' as udt_catalog,
    'pg_catalog' as udt_schema, t.typname as udt_name, a.attnum::varchar as dtd_identifier, 'NO' as is_identity,
    'NEVER' as is_generated, null::varchar as generation_expression, 'NO' as is_updatable
from mr_pg_attribute a
join mr_relations r on r.oid = a.attrelid
left join mr_pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
left join mr_pg_type t on t.oid = a.atttypid;
