"""What Python's drivers do with a PostgreSQL, by their own ways. Run by tests/proxy/drivers.rs on a server and through the
proxy before it: prints what came of each step as JSON, and both must say the same.

Arguments: host, port, sslmode (`require` or `disable`). The password comes on standard input.
"""

import asyncio
import json
import ssl
import sys
import threading

import asyncpg
import psycopg

HOST, PORT, SSL = sys.argv[1], int(sys.argv[2]), sys.argv[3]
PASSWORD = sys.stdin.readline().strip()
OUTCOMES = {}


def note(what, outcome):
    assert what not in OUTCOMES, what
    OUTCOMES[what] = outcome


def connect(**options):
    return psycopg.connect(
        host=HOST, port=PORT, user="postgres", password=PASSWORD, dbname="postgres", sslmode=SSL, **options
    )


def failing(work):
    try:
        return ["no error", repr(work())]
    except psycopg.Error as error:
        return [type(error).__name__, error.sqlstate]


def tables():
    with connect(autocommit=True) as c:
        c.execute("drop table if exists items; drop type if exists mood")
        c.execute("create type mood as enum ('sad', 'glad')")
        c.execute("create table items (id int primary key, name text, price numeric(10,2), tags text[], feels mood)")


def statements():
    # three sessions on fewer connections: each prepares by itself, under names that are the same
    sessions = [connect(prepare_threshold=0, autocommit=True) for _ in range(3)]
    found = []
    for round in range(4):
        for number, session in enumerate(sessions):
            found.append(session.execute("select %s::int + %s::int", (round, number)).fetchone()[0])
            found.append(session.execute("select upper(%s)", (f"x{number}",)).fetchone()[0])
    note("prepared statements of three sessions", found)
    for session in sessions:
        session.close()
    with connect(prepare_threshold=0) as c:
        for _ in range(3):
            c.execute("select count(*) from items").fetchone()
        c.execute("alter table items add column more int")
        note("a prepared statement after a change of its table", c.execute("select * from items").fetchall())
        c.rollback()
        c.execute("deallocate all")
        note("after DEALLOCATE ALL", c.execute("select count(*) from items").fetchone()[0])


def pipelines():
    with connect(autocommit=True) as c:
        with c.pipeline() as p:
            cursors = [c.execute("select %s::int * 2", (n,)) for n in range(5)]
            p.sync()
            note("pipeline", [cursor.fetchone()[0] for cursor in cursors])

        def broken():
            with c.pipeline():
                c.execute("select 1")
                c.execute("select 1 / 0")
                c.execute("select 2")

        note("an error within a pipeline", failing(broken))
        note("after it", c.execute("select 3").fetchone()[0])
        with c.cursor() as cursor:
            cursor.executemany(
                "insert into items values (%s, %s, %s, %s, %s)",
                [(n, f"item {n}", f"{n}.50", ["a", str(n)], "glad") for n in range(100)],
            )
            note("executemany", cursor.rowcount)


def copies():
    with connect() as c:
        with c.cursor() as cursor:
            with cursor.copy("copy items (id, name) from stdin") as copy:
                for n in range(1000, 6000):
                    copy.write_row((n, "copied " * 10))
            with cursor.copy("copy (select id, name from items where id >= 1000 order by id) to stdout (format binary)") as copy:
                note("bytes of a binary COPY", sum(len(block) for block in copy))

            def broken():
                with cursor.copy("copy items (id) from stdin") as copy:
                    copy.write_row((1000,))

            note("a COPY that fails", failing(broken))
        c.rollback()
        note("rows after a COPY that was rolled back", c.execute("select count(*) from items").fetchone()[0])


def transactions():
    with connect() as c:
        with c.transaction():
            c.execute("update items set price = 1 where id = 1")
            note("a savepoint that is rolled back", failing(lambda: nested(c)))
        note("what stays of it", str(c.execute("select price from items where id = 1").fetchone()[0]))
        c.rollback()
        c.execute("select 1")
        note("a statement that fails", failing(lambda: c.execute("select nonsense")))
        note("within a transaction that failed", failing(lambda: c.execute("select 1")))
        c.rollback()
        c.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        note("isolation", c.execute("show transaction_isolation").fetchone()[0])


def nested(c):
    with c.transaction():
        c.execute("insert into items (id) values (1)")


def cursors():
    with connect() as c:
        with c.cursor("named") as cursor:
            cursor.itersize = 7
            cursor.execute("select id from items where id < 50 order by id")
            note("a server's cursor", sum(row[0] for row in cursor))
        with c.cursor("kept", withhold=True) as cursor:
            cursor.execute("select generate_series(1, 10)")
            c.commit()
            note("a cursor that outlives its transaction", [row[0] for row in cursor.fetchmany(3)])
            c.commit()
            note("more of it", [row[0] for row in cursor.fetchmany(3)])


def sessions():
    first, second = connect(autocommit=True), connect(autocommit=True)
    first.execute("set time zone 'Asia/Tokyo'")
    first.execute("set work_mem = '7MB'")
    first.execute("select set_config('my.own', 'mine', false)")
    other = [second.execute(f"show {name}").fetchone()[0] for name in ("time zone", "work_mem")]
    mine = [first.execute(f"show {name}").fetchone()[0] for name in ("time zone", "work_mem", "my.own")]
    note("settings of one session, and of another", [mine, other])
    note("the driver knows of a setting", first.info.parameter_status("TimeZone"))
    # once known to a server's connection, a setting with a dot is empty there, not unknown
    note("a setting that is not this session's", second.execute("select coalesce(current_setting('my.own', true), '')").fetchone()[0])
    first.execute("reset all")
    note("after RESET ALL", first.execute("show work_mem").fetchone()[0])
    first.execute("create temp table mine as select 42 as n")
    note("a temporary table", first.execute("select n from mine").fetchone()[0])
    note("to another session", failing(lambda: second.execute("select n from mine")))
    note("an advisory lock", first.execute("select pg_try_advisory_lock(7)").fetchone()[0])
    note("is not to be had", second.execute("select pg_try_advisory_lock(7)").fetchone()[0])
    first.execute("select pg_advisory_unlock(7)")
    note("until it is given back", second.execute("select pg_try_advisory_lock(7)").fetchone()[0])
    first.execute("listen news")
    second.execute("notify news, 'hello'")
    note("a notification", [n.payload for n in first.notifies(timeout=30, stop_after=1)])
    notices = []
    second.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
    second.execute("do $$ begin raise notice 'look here'; end $$")
    note("a notice", notices)
    first.close()
    second.close()


def cancelled():
    with connect(autocommit=True) as c:
        def cancel():
            # as soon as it runs; what comes before has no effect
            while not stop.is_set():
                c.cancel()
                stop.wait(0.05)

        stop = threading.Event()
        thread = threading.Thread(target=cancel)
        thread.start()
        outcome = failing(lambda: c.execute("select pg_sleep(30)"))
        stop.set()
        thread.join()
        note("a statement that is cancelled", outcome)
    with connect(autocommit=True) as c:
        note("a large parameter", c.execute("select length(%s)", ("x" * 3_000_000,)).fetchone()[0])
        note("a large row", len(c.execute("select repeat('y', 3000000)").fetchone()[0]))


async def with_asyncpg():
    context = False
    if SSL == "require":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    options = {"host": HOST, "port": PORT, "user": "postgres", "password": PASSWORD, "database": "postgres", "ssl": context}
    async with asyncpg.create_pool(min_size=5, max_size=12, **options) as pool:
        async def work(n):
            async with pool.acquire() as c, c.transaction():
                before = await c.fetchval("select $1::int", n)
                row = await c.fetchrow("select id, name, price, tags, feels from items where id = $1", n)
                return [before, row["name"], str(row["price"]), row["tags"], row["feels"]]

        note("asyncpg: many at once", await asyncio.gather(*(work(n) for n in range(100))))
        async with pool.acquire() as c:
            async with c.transaction():
                found = [r["id"] async for r in c.cursor("select id from items where id < 30 order by id", prefetch=4)]
            note("asyncpg: cursor", found)
            statement = await c.prepare("select $1::text || '!'")
            note("asyncpg: prepared", [await statement.fetchval(word) for word in ("a", "b")])
            await c.executemany("insert into items (id) values ($1)", [(n,) for n in range(200, 210)])
            rows = [(n, "copied") for n in range(300, 320)]
            note("asyncpg: copy", await c.copy_records_to_table("items", records=rows, columns=["id", "name"]))
            note("asyncpg: types", [str(v) for v in await c.fetchrow("select array[1.5::numeric], row(1, 'x'), '{\"a\": 1}'::jsonb, '1 day'::interval")])
            try:
                await c.fetchval("select pg_sleep(30)", timeout=0.3)
            except asyncio.TimeoutError:
                note("asyncpg: time-out", "as it should")
            note("asyncpg: after it", await c.fetchval("select 1"))
            heard = asyncio.get_running_loop().create_future()
            await c.add_listener("asyncs", lambda *told: heard.done() or heard.set_result(told[-1]))
            await pool.execute("notify asyncs, 'there'")
            note("asyncpg: notification", await asyncio.wait_for(heard, 30))
            await c.remove_listener("asyncs", lambda *_: None)
            await c.reset()
        async with pool.acquire() as c:
            try:
                async with c.transaction():
                    await c.execute("insert into items (id) values (1)")
            except asyncpg.UniqueViolationError as error:
                note("asyncpg: error", error.sqlstate)


for step in (tables, statements, pipelines, copies, transactions, cursors, sessions, cancelled):
    step()
asyncio.run(with_asyncpg())
print(json.dumps(OUTCOMES))
