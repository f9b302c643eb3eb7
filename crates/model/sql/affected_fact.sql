-- The facts that a batch touches, with what has to be done for each:
-- _existed: a row of it may be in the table; _elsewhere: its source row did not change in this batch
-- and must be fetched from staging. Temporary tables only, plus what the others read. DuckDB 1.5.
create or replace temp table {affected} as
with _written as materialized ({written})
select * from _written
union all
select {keys},
    {row} not in (select {keys} from {new}) or {row} in (select {keys} from {old}) as _existed,
    {row} not in (select {keys} from {new}) and {row} not in (select {keys} from {old}) as _elsewhere
from (select distinct {keys} from ({others}) anti join _written using ({keys}))
