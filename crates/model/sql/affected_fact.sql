-- The facts that a batch touches, with what has to be done for each:
-- _existed: a row of it may be in the table; _elsewhere: its source row did not change in this batch
-- and must be fetched from staging. Temporary tables only, plus what the parts read. DuckDB 1.5.
create or replace temp table {affected} as
select {keys}, {existed} as _existed, {elsewhere} as _elsewhere
from (select distinct {keys} from ({parts}))
