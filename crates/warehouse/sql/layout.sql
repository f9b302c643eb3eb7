-- What every warehouse file has before any model: run at each opening.
-- Takes no lock that lasts, needs nothing but the file. DuckDB 1.5.
set global TimeZone = 'UTC';

create schema if not exists raw;
create schema if not exists staging;
create schema if not exists warehouse;
create schema if not exists audit;

-- One row: how far the source has been applied.
create table if not exists audit.watermarks (
    source varchar not null,
    system_id ubigint not null,
    watermark ubigint not null,
    commit_time timestamptz not null,
    run_id bigint not null,
    updated_at timestamptz not null
);

-- One row a load, committed or failed.
create table if not exists audit.etl_runs (
    run_id bigint not null,
    kind varchar not null,
    status varchar not null,
    started_at timestamptz not null,
    finished_at timestamptz,
    rows_inserted bigint not null,
    rows_updated bigint not null,
    rows_deleted bigint not null,
    tables varchar not null,
    watermark ubigint not null,
    error varchar
);

-- The source tables as last seen, for schema changes and restarts.
create table if not exists audit.tables (
    table_name varchar not null,
    schema_json varchar not null,
    copied boolean not null
);

create table if not exists audit.quarantine (
    table_name varchar not null,
    reason varchar not null,
    since timestamptz not null
);

-- What was built of each model, to tell what a changed declaration means.
create table if not exists audit.models (
    name varchar not null,
    declaration varchar not null,
    built_at timestamptz not null
);
-- The model as it was built, in JSON: it is kept up to date so while its declaration of now cannot be built.
alter table audit.models add column if not exists model varchar;

-- Declared models that are not built as they are declared.
create table if not exists audit.models_held (
    name varchar not null,
    reason varchar not null,
    since timestamptz not null,
    -- it is not kept up to date either
    stale boolean not null
);
