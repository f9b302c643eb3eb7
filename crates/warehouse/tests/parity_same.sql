-- One statement a line, equal on both engines to the letter.
select 7/2, -7/2, 7%3, -7%3, 7/2.0 > 3.4
select 1/0
select id/(i-i) from t where id = 1
select 5 % 0
select mod(7, 3), div(7, 2), abs(-3), sign(-2.5), ceil(1.2), floor(-1.2), trunc(1.789, 2)
select id, i from t order by i
select id, i from t order by i desc
select id, k from t order by k desc nulls last, id
select id, row_number() over (order by i desc) as rn, rank() over (partition by k order by id) from t order by id
select k, count(*), sum(amount), min(d), max(ts) from t group by k order by k
select k, sum(i) from t group by 1 having count(*) > 1
select count(*), count(i), count(distinct k) from t
select string_agg(k, ',' order by id desc) from t
select string_agg(k, ',' order by id) filter (where b) from t
select array_agg(i order by id) from t
select array_agg(k order by k) from t
select bool_and(b), bool_or(b), every(b) from t
select date_trunc('month', ts) from t order by 1
select date_trunc('year', d)::date from t where d is not null order by 1
select extract(year from d), extract(month from d), extract(dow from d), extract(doy from d), extract(quarter from d) from t where id = 2
select date_part('year', ts), date_part('isodow', d), date_part('week', d) from t where id = 1
select d + 1, d - 1, d - date '2024-01-01' from t where d is not null order by id
select d + interval '1 month', ts + interval '2 days 3 hours', ts - interval '1 year' from t where id = 2
select ts - timestamp '2024-01-01' from t where id = 1
select interval '1 year 2 months 3 days 04:05:06', interval '90 minutes', interval '1 day' * 3
select to_char(ts, 'YYYY-MM-DD HH24:MI:SS'), to_char(d, 'YYYY-MM'), to_char(d, 'Mon YYYY'), to_char(d, 'FMMonth DD') from t where id = 2
select to_char(d, 'YYYY"-Q"Q'), to_char(d, 'Day'), to_char(d, 'DDD'), to_char(d, 'IW') from t where id = 2
select to_char(amount, 'FM999,999,990.00'), to_char(i, 'FM000') from t where id in (1, 5) order by id
select to_char(1234.5, '999,990.00'), to_char(12, '99999')
select to_date('2024-02-03', 'YYYY-MM-DD'), to_date('03.02.2024', 'DD.MM.YYYY')
select current_date = now()::date, now() > timestamptz '2020-01-01 00:00:00+00'
select make_date(2024, 2, 29), date '2024-01-31' + interval '1 month'
select generate_series(1, 3)
select g from generate_series(1, 3) g
select g * 2 as x from generate_series(1, 5, 2) as g
select d::date from generate_series(date '2024-01-01', date '2024-03-01', interval '1 month') as d
select * from unnest(array[1, 2, 3]) as x
select upper(k), lower(k), length(k), reverse(k), initcap(k) from t where id = 1
select initcap('hello wORLD'), btrim('xxaxx', 'x'), ltrim('  a'), rtrim('a  '), trim(both 'x' from 'xax')
select substring('abcdef' from 2 for 3), substring('abcdef', 3), left('abc', 2), right('abc', 2), position('c' in 'abc')
select overlay('abcdef' placing 'xy' from 2 for 3), strpos('abc', 'b'), replace('aXbX', 'X', '-'), translate('abc', 'ab', 'xy')
select lpad('7', 3, '0'), rpad('a', 3, '.'), repeat('ab', 2), split_part('a-b-c', '-', 2), ascii('a'), chr(98), md5('a')
select concat('a', null, 'b'), concat_ws(',', 'a', null, 'b'), 'a' || 1, 'a' || null
select char_length('äb'), octet_length('äb'), starts_with('abc', 'ab')
select format('%s of %s', 1, 'x'), quote_ident('a b'), quote_literal('it''s')
select 'abc' like 'a%', 'ABC' ilike 'a%', 'abc' not like '%z', 'a_c' like 'a\_c'
select 'abc' ~ 'b', 'abc' !~ 'b', 'ABC' ~* 'b', 'abc' !~* 'X'
select 'abc' similar to '%(b|d)%', regexp_replace('aXbX', 'X', '-'), regexp_replace('aXbX', 'X', '-', 'g')
select coalesce(i, 0), nullif(id, 1), greatest(1, 3, 2), least(id, 2) from t order by id
select case when b then 'yes' when not b then 'no' else 'unknown' end from t order by id
select case k when 'a' then 1 end as c from t order by id
select b, not b, b is true, b is not false, b is unknown from t order by id
select i is distinct from 7, i is not distinct from null from t order by id
select t.id, u.label from t join u on u.id = t.id order by t.id
select t.id, u.label from t left join u using (id) order by 1
select coalesce(t.id, u.id) as id, label from t full join u on u.id = t.id order by 1
select id from t where exists (select 1 from u where u.id = t.id) order by id
select id from t where id in (select id from u) order by id
select id from t where id = any(array[1, 3]) order by id
select id from t where id = any('{1,5}'::int[]) order by id
select id from t where i <> all(array[7, 0]) order by id
select (select max(id) from u), (select label from u where id = 1)
select (select id from t)
select id from t union select id from u order by id
select id from t intersect select id from u order by 1
select id from t except select id from u order by 1
select k from t union all select label from u order by 1 nulls first
with x as (select k, sum(amount) as s from t group by k) select k, s from x where s > 0 order by s
with recursive r(n) as (select 1 union all select n + 1 from r where n < 5) select sum(n) from r
select distinct on (k) k, id from t order by k, id desc
select distinct b from t order by b
select id from t order by id limit 2 offset 1
select id from t order by id fetch first 2 rows only
select k, b, count(*) from t group by grouping sets ((k), (b), ()) order by k, b, 3
select k, count(*) from t group by rollup (k) order by 1, 2
select lag(id) over (order by id), lead(id, 2) over (order by id), first_value(id) over (order by id), ntile(2) over (order by id) from t order by id
select sum(id) over (order by id rows between 1 preceding and current row) from t order by id
select percentile_cont(0.5) within group (order by id), percentile_disc(0.5) within group (order by id), mode() within group (order by k) from t
select round(amount, 1), round(amount) from t where id = 1
select round(100.0 * 1 / 3, 2), round(2.345, 2), round(-1.5), round(12345.678, 1)
select round(sum(amount) / count(*), 2) from t where amount > 0
select amount * 2, amount + 0.5, -amount from t where id = 1
select cast(1.5 as integer), cast(-1.5 as integer), 3.7::int, '12'::int, cast('1.25' as numeric(5, 2))
select 'abc'::int
select '2024-13-01'::date
select 2147483647::int + 1::int
select nosuch from t
select * from nosuch
select nosuch(1)
select t2.id from t
select k, id from t group by k
selec 1
select 1 as "Mixed", 2 as Folded, 3 AS "with space"
select Id, K from T where ID = 1
select t.id, t.* from t where t.id = 1
select true, false, null, 'x', 1.50, 1e3, 12345678901234
select f, f * 2, -f from t order by id
select 0.1::float8 + 0.2::float8, 1e-7::float8, 'NaN'::float8, 'Infinity'::float8
select 9000000000, big from t order by id
select sqrt(-1)
select ln(0)
select array[1, 2, null], array['a b', 'c,d', 'NULL', null], array[]::int[]
select array_length(array[1, 2], 1), array_to_string(array[1, 2], '-'), string_to_array('a,b', ','), cardinality(array[1, 2])
select (array[10, 20, 30])[2], 2 = any(array[1, 2])
select '{"a": {"b": 1}}'::json -> 'a' ->> 'b', ('{"a": 5}'::jsonb ->> 'a')::int
select date '2024-01-05' between date '2024-01-01' and date '2024-02-01', 5 not between 1 and 3
select timestamp '2024-01-05 10:00:00' at time zone 'UTC', timestamptz '2024-01-05 10:00:00+02'
select ts::date, ts::time, d::timestamp from t where id = 1
select k as x from t order by x
select count(*) from t where k is null or amount < 0
select * from (values (1, 'a'), (2, 'b')) as v(n, s) order by n
select width_bucket(5.0, 0, 10, 5), gcd(12, 18), factorial(5)
values (1, 'x'), (2, null)
select 'a%' like 'a\%', 'a\b' like 'a\\b', k like 'a\' || k from t where id = 1
select v.column1 from (values (1, 2)) v
select generate_series(1, 2) as a, 5 as b
