-- Versions of a type-2 dimension from the raw history of its source table.
-- A version begins where the tracked attributes (or being deleted) change from one transaction's end
-- to the next and lasts until the next such change; validity is commit time, kept from running
-- backwards when the source's clock was set back; the first version holds for all time before it.
-- Reads raw.<table> only. DuckDB 1.5.
with history as (
    select {history_columns}, {own}._commit_lsn, {own}._sequence, {own}._commit_time, {own}._op = 'D' as _gone
    from {raw} as {own}{scope}
    qualify row_number() over (partition by {own_keys}, {own}._commit_lsn order by {own}._sequence desc) = 1
), timed as (
    select *,
        max(_commit_time) over in_order as _at,
        coalesce(lag({state}) over (partition by {keys} order by _commit_lsn) is distinct from {state}, true) as _begins
    from history
    window in_order as (partition by {keys} order by _commit_lsn rows unbounded preceding)
), runs as (
    select *, count(*) filter (where _begins) over (partition by {keys} order by _commit_lsn rows unbounded preceding) as _run
    from timed
), ended as (
    select *,
        first_value(_commit_lsn) over a_run as _first_lsn,
        first_value(_sequence) over a_run as _first_sequence,
        first_value(_at) over a_run as _from
    from runs
    window a_run as (partition by {keys}, _run order by _commit_lsn rows between unbounded preceding and unbounded following)
    qualify row_number() over (partition by {keys}, _run order by _commit_lsn desc) = 1
), bounded as (
    select *,
        case when _run = 1 then timestamptz '1900-01-01 00:00:00+00' else _from end as valid_from,
        coalesce(lead(_from) over (partition by {keys} order by _run), timestamptz '9999-12-31 00:00:00+00') as valid_to
    from ended
)
select {version_columns}, _first_lsn, _first_sequence, cast(valid_from as date) as effective_date, valid_from, valid_to,
    valid_to = timestamptz '9999-12-31 00:00:00+00' as is_current
from bounded
where not _gone
