-- A calendar, a row a day, and its unknown member. Reads nothing. DuckDB 1.5.
select cast(year(d) * 10000 + month(d) * 100 + day(d) as integer) as date_sk, d as full_date,
    cast(day(d) as integer) as day, cast(month(d) as integer) as month, monthname(d) as month_name,
    cast(quarter(d) as integer) as quarter, cast(year(d) as integer) as year,
    cast(weekofyear(d) as integer) as week_of_year, dayname(d) as day_name,
    isodow(d) >= 6 as is_weekend, d = last_day(d) as is_month_end
from (
    select cast(unnest(generate_series(date '{first}-01-01', date '{last}-12-31', interval 1 day)) as date) as d
)
union all by name
select 0 as date_sk, 'Unknown' as month_name, 'Unknown' as day_name
