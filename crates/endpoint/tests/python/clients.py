"""What Python's drivers expect of the warehouse's endpoint. Run by tests/python.rs; prints `ok` at the end.

Arguments: host, port, path of ca.crt. The password comes on standard input.
"""

import asyncio
import datetime
import decimal
import ssl
import sys
import uuid

import asyncpg
import psycopg

HOST, PORT, CA = sys.argv[1], int(sys.argv[2]), sys.argv[3]
PASSWORD = sys.stdin.readline().strip()
UTC = datetime.timezone.utc
FIRST = (
    1, 1, decimal.Decimal("100.50"), datetime.datetime(2024, 1, 5, 10, 0, 0, 500000),
    datetime.datetime(2024, 1, 5, 10, tzinfo=UTC), 0.1, 7, uuid.UUID("01234567-89ab-cdef-0123-456789abcdef"),
    {"a": 1}, b"ab", datetime.time(10, 11, 12), '{x,"y z"}',
)


def expect(what, found, wanted):
    assert found == wanted, f"{what}: {found!r} is not {wanted!r}"


def fails(what, sqlstate, work):
    try:
        work()
    except psycopg.Error as error:
        expect(what, error.sqlstate, sqlstate)
    else:
        raise AssertionError(f"{what}: no error")


def with_psycopg():
    connection = psycopg.connect(
        host=HOST, port=PORT, user="warehouse_reader", password=PASSWORD, dbname="warehouse",
        sslmode="verify-full", sslrootcert=CA,
    )
    with connection as c:
        for binary in (False, True):
            rows = c.cursor(binary=binary).execute("select * from fact_payments order by 1").fetchall()
            expect(f"rows, binary={binary}", rows[0], FIRST)
            expect("nulls", rows[2][3:], (None,) * 9)
        expect(
            "parameters",
            c.execute("select %s, %s::text, %s, %s::date, %s", (5, "x", decimal.Decimal("1.5"), "2024-02-03", None)).fetchone(),
            (5, "x", decimal.Decimal("1.5"), datetime.date(2024, 2, 3), None),
        )
        expect(
            "comparisons",
            c.execute(
                "select count(*) from fact_payments where paid_at > %s and paid_at < %s and id = %s",
                (datetime.datetime(2024, 1, 1), "2025-01-01", FIRST[7]),
            ).fetchone(),
            (1,),
        )
        expect("array", c.execute("select count(*) from fact_payments where payment_id = any(%s)", ([1, 2],)).fetchone(), (2,))
        expect("text array", c.execute("select count(*) from dim_customer where full_name = any(%s)", (["Ann", 'q"'],)).fetchone(), (1,))
        expect("transaction", c.info.transaction_status.name, "INTRANS")
        fails("write", "25006", lambda: c.execute("insert into fact_payments (payment_id) values (9)"))
        expect("failed transaction", c.info.transaction_status.name, "INERROR")
        fails("aborted", "25P02", lambda: c.execute("select 1"))
        c.rollback()
        expect("idle", c.info.transaction_status.name, "IDLE")
        for _ in range(3):
            expect("prepared", c.execute("select payment_id from fact_payments where payment_id = %s", (2,), prepare=True).fetchone(), (2,))
        with c.cursor("named") as named:
            named.execute("select * from generate_series(1, %s)", (1000,))
            expect("cursor", (len(named.fetchmany(10)), len(named.fetchall())), (10, 990))
        expect("pipeline", pipeline(c), [(1,), (2,)])
        expect("stream", sum(1 for _ in c.cursor().stream("select * from generate_series(1, 5000)")), 5000)
        c.execute("set statement_timeout = '200ms'")
        fails("timeout", "57014", lambda: c.execute("select count(*) from generate_series(1, 100000000) a, generate_series(1, 1000000) b"))
        c.rollback()


def pipeline(c):
    with c.pipeline():
        one, two = c.execute("select 1"), c.execute("select 2")
    return [one.fetchone(), two.fetchone()]


async def with_asyncpg():
    context = ssl.create_default_context(cafile=CA)
    options = dict(host=HOST, port=PORT, user="warehouse_reader", password=PASSWORD, database="warehouse", ssl=context)
    c = await asyncpg.connect(**options)
    row = await c.fetchrow("select * from fact_payments where payment_id = $1 and amount > $2 and paid_at >= $3",
                           1, decimal.Decimal(3), datetime.datetime(2024, 1, 1))
    expect("row", tuple(row)[:8], FIRST[:8])
    values = (1, "x", decimal.Decimal("1.25"), datetime.datetime(2024, 1, 1, tzinfo=UTC), datetime.date(2024, 1, 2),
              uuid.UUID(int=5), 1.5, True, b"\x00\x01", datetime.time(1, 2, 3))
    row = await c.fetchrow(
        "select $1::int, $2::text, $3::numeric, $4::timestamptz, $5::date, $6::uuid, $7::float8, $8::bool, $9::bytea, $10::time",
        *values)
    expect("values", tuple(row), values)
    expect("limit", len(await c.fetch("select payment_id from fact_payments order by 1 limit $1", 2)), 2)
    async with c.transaction(readonly=True):
        expect("cursor", [r[0] async for r in c.cursor("select * from generate_series(1, 120)", prefetch=50)], list(range(1, 121)))
    try:
        await c.execute("delete from fact_payments")
        raise AssertionError("delete: no error")
    except asyncpg.exceptions.ReadOnlySQLTransactionError:
        pass
    try:
        await c.fetch("select count(*) from generate_series(1, 100000000) a, generate_series(1, 1000000) b", timeout=0.3)
        raise AssertionError("timeout: no error")
    except asyncio.TimeoutError:
        pass
    expect("after a cancel", await c.fetchval("select 42"), 42)
    await c.close()
    async with asyncpg.create_pool(min_size=2, max_size=4, **options) as pool:
        for wanted in (1, 2, 3):
            expect("pool", await pool.fetchval("select $1::int", wanted), wanted)


with_psycopg()
asyncio.run(with_asyncpg())
print("ok")
