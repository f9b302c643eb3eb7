// What node-postgres does with a PostgreSQL, by its own ways. Run by tests/proxy/drivers.rs on a server and through the
// proxy before it: prints what came of each step as JSON, and all must say the same.
//
// Arguments: host, port, sslmode (`require` or `disable`). The password comes on standard input.

import { once } from "node:events";
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

import pg from "pg";
import copy from "pg-copy-streams";
import Cursor from "pg-cursor";
import QueryStream from "pg-query-stream";

const [host, port, sslmode] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin });
const password = (await once(lines, "line"))[0].trim();
lines.close();
const ssl = sslmode === "require" ? { rejectUnauthorized: false } : false;
const options = { host, port: Number(port), user: "postgres", password, database: "postgres", ssl };
const outcomes = {};

let part;

function note(step, outcome) {
  const what = `${part}: ${step}`;
  if (what in outcomes) throw new Error(`noted twice: ${what}`);
  outcomes[what] = outcome === undefined ? null : outcome;
}

async function failing(work) {
  try {
    return ["no error", await work()];
  } catch (error) {
    return [error.severity ?? error.name, error.code ?? error.message];
  }
}

// A client that work is done with.
async function connected(work, more = {}) {
  const client = new pg.Client({ ...options, ...more });
  // a connection that breaks is seen by the query that needs it
  client.on("error", () => {});
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

// Several clients at once.
async function several(count, work) {
  const clients = Array.from({ length: count }, () => new pg.Client(options));
  await Promise.all(clients.map((client) => client.connect()));
  try {
    return await work(...clients);
  } finally {
    await Promise.all(clients.map((client) => client.end()));
  }
}

const value = async (client, text, values) => Object.values((await client.query(text, values)).rows[0])[0];

async function plain() {
  await connected(async (c) => {
    await c.query("drop table if exists items; drop type if exists mood");
    await c.query("create type mood as enum ('sad', 'glad')");
    await c.query(`create table items (id int primary key, name text, price numeric(10,2), tags text[], feels mood,
      at timestamptz, data jsonb, raw bytea)`);
    const several = await c.query("select 1 as a; select 2 as b, 3 as c; insert into items (id) values (-1); delete from items");
    note("several statements", several.map((r) => [r.command, r.rowCount, r.rows]));
    note("several statements, the second wrong", await failing(() => c.query("insert into items (id) values (-2); select 1/0")));
    note("and the first undone", await value(c, "select count(*) from items"));
    note("an empty query", (await c.query("")).rows);
    note("an empty query with parameters", (await c.query({ text: "", values: [], queryMode: "extended" })).rows);
    note("comments alone", (await c.query("-- nothing\n/* at all */")).rows);
    note("rows as arrays", (await c.query({ text: "select 1, 2 as x, 3 as x", rowMode: "array" })).rows);
    const fields = (await c.query("select id, name, price, feels::text, data from items")).fields;
    note("fields", fields.map((f) => [f.name, f.columnID, f.dataTypeID, f.dataTypeSize, f.dataTypeModifier, f.format]));
    note("a wrong statement", await failing(() => c.query("select nonsense")));
    note("a syntax error", await failing(() => c.query("selec 1")));
    note("too few parameters", await failing(() => c.query("select $1::int, $2::int", [1])));
    note("a parameter of the wrong type", await failing(() => c.query("select $1::int", ["x"])));
    note("after errors", await value(c, "select 4"));
    try {
      await c.query("insert into items (id) values ($1), ($1)", [1]);
    } catch (e) {
      note("an error's fields", [e.message, e.severity, e.code, e.detail, e.schema, e.table, e.constraint, e.routine]);
    }
    const notices = [];
    c.on("notice", (told) => notices.push([told.severity, told.message]));
    await c.query("do $$ begin raise notice 'look'; raise warning 'here'; end $$");
    await c.query("drop table if exists no_such_table");
    note("notices", notices);
    note("tags", [
      (await c.query("create table t1 as select generate_series(1, 5) as n")).command,
      (await c.query("update t1 set n = n + 1")).rowCount,
      (await c.query("delete from t1 where n > 3 returning n")).rowCount,
      (await c.query("truncate t1")).command,
      (await c.query("drop table t1")).command,
      (await c.query("vacuum items")).command,
      (await c.query("explain select 1")).rows.length,
    ]);
  });
}

async function types() {
  const samples = [
    ["int", 7], ["int8", "9007199254740993"], ["numeric", "12345678901234567890.123456789"], ["numeric", "NaN"],
    ["float8", 0.1], ["float8", Number.POSITIVE_INFINITY], ["float4", 1.5], ["bool", true], ["text", "häß\u20ac\u{1f600}"],
    ["text", "line\nwith 'quotes' \\ and \"more\""], ["text", ""], ["text", null], ["jsonb", { a: [1, null, { b: "x" }] }],
    ["jsonb", JSON.stringify([1, 2])], ["json", { k: 1.5 }], ["bytea", Buffer.from([0, 1, 39, 92, 255])],
    ["timestamptz", new Date(Date.UTC(2024, 1, 29, 12, 30, 15, 123))], ["timestamp", "2024-02-29 12:30:15.123456"],
    ["date", "2024-02-29"], ["time", "23:59:59.999"], ["interval", "1 year 2 days 03:04:05"],
    ["uuid", "7d444840-9dc0-11d1-b245-5ffdce74fad2"], ["inet", "10.0.0.0/8"], ["point", "(1.5,2)"],
    ["int4range", "[1,10)"], ["text[]", ["a", null, "b,c", "d\"e", ""]], ["int[]", [[1, 2], [3, 4]]],
    ["timestamptz[]", ["2024-01-01T00:00:00Z"]], ["numeric[]", ["1.10", "2"]], ["mood", "glad"], ["money", "12.34"],
    ["bit(3)", "101"], ["xid", "12"], ["oid", 26], ["name", "x"], ["char(4)", "ab"], ["tsvector", "'a':1 'b':2"],
  ];
  await connected(async (c) => {
    await c.query("set time zone 'UTC'");
    for (const [n, [type, sample]] of samples.entries()) {
      note(`type ${type} (${n})`, (await c.query(`select $1::${type} as v`, [sample])).rows[0].v);
    }
    note("a row of types", (await c.query("select row(1, 'x', null), array[row(1, 2)], '{}'::int[], 'infinity'::timestamptz::text")).rows[0]);
    const binary = await c.query({ text: "select 42::int, 1.5::float8, 'x'::text, true", binary: true });
    note("in binary", Object.values(binary.rows[0]));
    for (const setting of ["datestyle", "intervalstyle", "bytea_output", "extra_float_digits"]) {
      note(`driver's ${setting}`, await value(c, `show ${setting}`));
    }
  });
}

async function prepared() {
  await several(6, async (...clients) => {
    const found = [];
    for (let round = 0; round < 4; round++) {
      found.push(await Promise.all(clients.map(async (c, n) => [
        // one name, as many texts as clients; and one name and text of all
        await value(c, { name: "own", text: `select $1::int * ${n}` }, [round]),
        await value(c, { name: "same", text: "select upper($1)" }, [`x${n}`]),
      ])));
    }
    note("named statements of six sessions", found);
    note("a name for two texts", await failing(() => clients[0].query({ name: "own", text: "select 'other'" })));
  });
  await connected(async (c) => {
    const named = { name: "n", text: "select $1::int + 1 as v" };
    note("a named statement that fails", await failing(() => c.query({ name: "wrong", text: "select nonsense" })));
    note("again", await failing(() => c.query({ name: "wrong", text: "select nonsense" })));
    await c.query("create table comes_later_no (i int)");
    await c.query("drop table comes_later_no");
    note("before", (await c.query({ ...named, values: [1] })).rows);
    await c.query("begin");
    note("within a transaction", (await c.query({ ...named, values: [2] })).rows);
    note("wrong within it", await failing(() => c.query({ ...named, values: ["x"] })));
    note("refused within it", await failing(() => c.query({ ...named, values: [2] })));
    await c.query("rollback");
    note("after it", (await c.query({ ...named, values: [3] })).rows);
    await c.query("deallocate n");
    note("deallocated behind the driver's back", await failing(() => c.query({ ...named, values: [4] })));
    await c.query({ name: "m", text: "select 5 as v" });
    await c.query("deallocate all");
    note("all deallocated", await failing(() => c.query({ name: "m", text: "select 5 as v" })));
    await c.query({ name: "k", text: "select 6 as v" });
    await c.query("discard all");
    note("all discarded", await failing(() => c.query({ name: "k", text: "select 6 as v" })));
    await c.query("prepare by_sql as select $1::int * 2 as v");
    note("prepared in SQL", (await c.query("execute by_sql(21)")).rows);
    note("known to the driver's session", await value(c, "select count(*) from pg_prepared_statements where name = 'by_sql'"));
    await c.query("deallocate by_sql");
    for (let n = 0; n < 300; n++) await c.query({ name: `many${n}`, text: `select ${n} as v` });
    let sum = 0;
    for (let n = 0; n < 300; n++) sum += (await c.query({ name: `many${n}`, text: `select ${n} as v` })).rows[0].v;
    note("three hundred statements", sum);
  });
}

async function pools() {
  await connected((c) => c.query("insert into items (id, name, price) select n, 'item ' || n, n from generate_series(1, 100) n"));
  const pool = new pg.Pool({ ...options, max: 12, idleTimeoutMillis: 0, application_name: "the pool" });
  try {
    const work = async (n) => {
      const c = await pool.connect();
      try {
        await c.query("begin");
        const before = await value(c, "select price::int from items where id = $1 for update", [n]);
        await c.query("update items set price = price + 1 where id = $1", [n]);
        const after = await value(c, { name: "read", text: "select price::int from items where id = $1" }, [n]);
        await c.query(n % 3 ? "commit" : "rollback");
        return [before, after, await value(c, "show application_name")];
      } finally {
        c.release();
      }
    };
    note("a hundred transactions", await Promise.all(Array.from({ length: 100 }, (_, n) => work(n + 1))));
    note("what they came to", await value(pool, "select sum(price)::int from items"));
    const increments = Array.from({ length: 40 }, () => pool.query("update items set price = price + 1 where id = 1"));
    await Promise.all(increments);
    note("forty updates of one row", await value(pool, "select price::int from items where id = 1"));
    note("an error", await failing(() => pool.query("select 1/0")));
    note("errors and others at once", await Promise.all(
      Array.from({ length: 30 }, (_, n) => failing(() => value(pool, "select 10 / $1::int", [n % 3])))));
    const c = await pool.connect();
    await c.query("begin");
    await c.query("update items set price = 0");
    // the driver closes it, with its transaction open
    c.release(true);
    note("a client released in a transaction", await value(pool, "select count(*) from items where price = 0"));
  } finally {
    await pool.end();
  }
  const set = new pg.Pool({ ...options, max: 6 });
  set.on("connect", (client) => client.query("set search_path = pg_catalog; set time zone 'Asia/Tokyo'"));
  try {
    const shown = await Promise.all(Array.from({ length: 20 }, () => set.query("select current_setting('search_path') s, current_setting('timezone') z")));
    note("settings made on connecting", shown.map((r) => r.rows[0]));
  } finally {
    await set.end();
  }
}

async function transactions() {
  await several(2, async (one, other) => {
    await one.query("begin");
    await one.query("update items set name = 'changed' where id = 2");
    note("not yet seen", await value(other, "select name from items where id = 2"));
    await one.query("savepoint s");
    note("an error", await failing(() => one.query("insert into items (id) values (2)")));
    note("in the failed transaction", await failing(() => one.query("select 1")));
    await one.query("rollback to s");
    note("after the savepoint", await value(one, "select name from items where id = 2"));
    await one.query("release s");
    note("commit", (await one.query("commit")).command);
    note("seen", await value(other, "select name from items where id = 2"));
    await one.query("begin");
    await failing(() => one.query("select 1/0"));
    note("commit of what failed", (await one.query("commit")).command);
    note("commit without a transaction", (await one.query("commit")).command);
    note("isolation", [
      (await one.query("begin isolation level serializable read only")).command,
      await value(one, "show transaction_isolation"),
      await failing(() => one.query("update items set name = 'x'")),
      (await one.query("rollback")).command,
    ]);
    await one.query("begin isolation level repeatable read");
    await value(one, "select count(*) from items");
    await other.query("update items set name = 'theirs' where id = 3");
    note("serialization", await failing(() => one.query("update items set name = 'mine' where id = 3")));
    await one.query("rollback");
    await one.query("create table later (i int, constraint u unique (i) deferrable initially deferred)");
    await one.query("begin");
    await one.query("insert into later values (1), (1)");
    note("an error at commit", await failing(() => one.query("commit")));
    note("an error at the end of a statement", await failing(() => one.query("insert into later values ($1), ($1)", [1])));
    note("none of it stays", await value(one, "select count(*) from later"));
    await one.query("drop table later");
    await one.query("begin");
    await one.query("select * from items where id = 5 for update");
    await other.query("set lock_timeout = '50ms'");
    note("a lock that is not to be had", await failing(() => other.query("update items set name = 'y' where id = 5")));
    note("nowait", await failing(() => other.query("select * from items where id = 5 for update nowait")));
    note("skip locked", (await other.query("select id from items where id in (5, 6) order by id for update skip locked")).rows);
    await one.query("rollback and chain");
    note("a chained transaction", await value(one, "select count(*) from items where id = 5"));
    await one.query("rollback");
    await one.query("begin; select 1; savepoint a");
    note("two-phase commit", await failing(() => one.query("prepare transaction 'x'")));
    note("after it", await value(one, "select 1"));
  });
}

async function notifications() {
  await several(3, async (listener, ours, sender) => {
    const heard = [];
    let wake = () => {};
    listener.on("notification", (message) => {
      heard.push([message.channel, message.payload]);
      wake();
    });
    const until = async (count) => {
      while (heard.length < count) await new Promise((resolve) => { wake = resolve; });
    };
    await listener.query("listen news");
    await listener.query('listen "Other News"');
    await sender.query("notify news, 'first'");
    await until(1);
    await sender.query("select pg_notify($1, $2)", ["Other News", "second"]);
    await until(2);
    await sender.query("begin");
    await sender.query("notify news, 'in a transaction'");
    await sender.query("notify news, 'in a transaction'");
    note("not before the commit", [heard.length, await value(listener, "select 1")]);
    await sender.query("commit");
    await until(3);
    await listener.query("notify news, 'to myself'");
    await until(4);
    await sender.query("notify news");
    await until(5);
    const large = "x".repeat(7_999);
    await sender.query("select pg_notify('news', $1)", [large]);
    await until(6);
    note("heard", heard.map(([channel, payload]) => [channel, payload.length > 100 ? payload.length : payload]));
    note("channels", (await listener.query("select * from pg_listening_channels() c order by c")).rows);
    note("channels of another", (await ours.query("select * from pg_listening_channels()")).rows);
    await listener.query("unlisten news");
    await sender.query("notify news, 'unheard'");
    await sender.query("notify \"Other News\", 'heard'");
    await until(7);
    note("after unlisten", heard[6]);
    await listener.query("unlisten *");
    note("no channels", (await listener.query("select * from pg_listening_channels()")).rows);
  });
}

async function copies() {
  const rows = (from, to) => Readable.from((function* () {
    for (let n = from; n < to; n++) yield `${n}\tcopied ${"x".repeat(40)}\n`;
  })());
  await connected(async (c) => {
    const into = c.query(copy.from("copy items (id, name) from stdin"));
    await pipeline(rows(1000, 21000), into);
    note("rows copied in", into.rowCount);
    let bytes = 0;
    let lines = 0;
    for await (const piece of c.query(copy.to("copy (select id, name from items where id >= 1000 order by id) to stdout"))) {
      bytes += piece.length;
      lines += piece.toString().split("\n").length - 1;
    }
    note("copied out", [lines, bytes]);
    const csv = [];
    for await (const piece of c.query(copy.to("copy (select id, null, 'a,b' from items where id < 4 order by id) to stdout (format csv, header)"))) csv.push(piece);
    note("as CSV", Buffer.concat(csv).toString());
    note("a copy that fails", await failing(() => pipeline(rows(1000, 1001), c.query(copy.from("copy items (id, name) from stdin")))));
    note("a copy into nothing", await failing(() => pipeline(rows(1, 2), c.query(copy.from("copy no_such_table from stdin")))));
    note("a copy of too many columns", await failing(() => pipeline(Readable.from(["1\t2\t3\t4\n"]), c.query(copy.from("copy items (id) from stdin")))));
    note("a copy that the client breaks off", await failing(() => pipeline(
      Readable.from((function* () { yield "90001\tx\n"; throw new Error("no more"); })()), c.query(copy.from("copy items (id, name) from stdin")))));
    note("after all that", await value(c, "select count(*) from items"));
    await c.query("begin");
    await pipeline(rows(50000, 50100), c.query(copy.from("copy items (id, name) from stdin")));
    note("within a transaction", await value(c, "select count(*) from items where id >= 50000"));
    await c.query("rollback");
    note("rolled back", await value(c, "select count(*) from items where id >= 50000"));
    await pipeline(Readable.from([]), c.query(copy.from("copy items (id, name) from stdin")));
    await c.query("delete from items where id >= 1000");
  });
}

async function cursors() {
  await several(3, async (one, other, third) => {
    const cursor = one.query(new Cursor("select id from items where id <= $1 order by id", [50]));
    const found = [];
    for (;;) {
      const rows = await cursor.read(7);
      if (!rows.length) break;
      found.push(rows.length, rows[0].id);
      // others work in between, and see nothing of it
      found.push(await value(other, "select count(*) from pg_cursors where not is_holdable and name like 'C%'"));
    }
    note("cursor", found);
    const early = one.query(new Cursor("select generate_series(1, 1000000) as n"));
    note("the first rows", await early.read(3));
    await early.close();
    note("closed early", await value(one, "select 1"));
    note("an error on opening", await failing(() => one.query(new Cursor("select nonsense")).read(1)));
    const late = one.query(new Cursor("select 10 / (3 - n) as v from generate_series(1, 5) n"));
    note("before an error", await late.read(2));
    note("the error", await failing(() => late.read(2)));
    note("after the error", await value(one, "select 2"));
    await one.query("begin");
    const within = one.query(new Cursor("select id from items where id <= 20 order by id"));
    note("within a transaction", [(await within.read(5)).length, (await within.read(100)).length, (await within.read(5)).length]);
    await within.close();
    await one.query("commit");
    const writes = one.query(new Cursor("update items set name = 'by cursor' where id between 10 and 14 returning id"));
    note("of an update", (await writes.read(2)).length);
    await writes.close();
    note("the update stays", await value(third, "select count(*) from items where name = 'by cursor'"));
    let sum = 0;
    for await (const row of one.query(new QueryStream("select generate_series(1, 20000) as n", [], { batchSize: 100, highWaterMark: 50 }))) sum += row.n;
    note("query stream", sum);
    for await (const row of one.query(new QueryStream("select generate_series(1, 20000) as n", [], { batchSize: 10 }))) {
      if (row.n === 25) break;
    }
    note("query stream: left early", await value(one, "select 3"));
    // as many streams at once as there are clients
    const streams = [one, other, third].map(async (c, k) => {
      let total = 0;
      for await (const row of c.query(new QueryStream("select generate_series(1, 3000) * $1::int as n", [k], { batchSize: 64 }))) total += row.n;
      return total;
    });
    note("query streams at once", await Promise.all(streams));
    await one.query("begin");
    await one.query("declare c scroll cursor for select generate_series(1, 100) as n");
    note("a cursor of SQL", [
      (await one.query("fetch 3 from c")).rows, (await one.query("move 50 in c")).rowCount,
      (await one.query("fetch backward 2 from c")).rows, (await one.query("fetch all from c")).rowCount,
    ]);
    await one.query("close c");
    await one.query("declare h cursor with hold for select generate_series(1, 10) as n");
    await one.query("commit");
    note("a cursor with hold", [(await one.query("fetch 2 from h")).rows, await failing(() => other.query("fetch 1 from h"))]);
    await one.query("close h");
  });
  // a client that goes away with its cursor open
  const gone = new pg.Client(options);
  await gone.connect();
  const cursor = gone.query(new Cursor("update items set name = 'never' where id between 20 and 29 returning id"));
  await cursor.read(3);
  await gone.end();
  await connected(async (c) => note("a cursor of a client that went away", await value(c, "select count(*) from items where name = 'never'")));
}

async function cancelling() {
  await several(3, async (one, other, watcher) => {
    const running = async () => {
      while (!(await value(watcher, "select count(*)::int from pg_stat_activity where query = 'select pg_sleep(60)' and wait_event = 'PgSleep'")));
    };
    const cancel = () => new Promise((resolve) => {
      const canceller = new pg.Client({ ...options, ssl: false }).connection;
      canceller.on("error", () => {});
      canceller.on("end", resolve);
      canceller.on("connect", () => canceller.cancel(one.processID, one.secretKey));
      canceller.connect(options.port, host);
    });
    const asleep = failing(() => one.query("select pg_sleep(60)"));
    await running();
    await cancel();
    note("cancelled", await asleep);
    note("after it", await value(one, "select 1"));
    await cancel();
    note("a cancel of nothing", [await value(one, "select 1"), await value(other, "select 2")]);
    await one.query("begin");
    const within = failing(() => one.query("select pg_sleep(60)"));
    await running();
    await cancel();
    note("cancelled within a transaction", [await within, await failing(() => one.query("select 1"))]);
    await one.query("rollback");
    const pending = [failing(() => one.query("select pg_sleep(60)")), failing(() => one.query("select 'queued' as v"))];
    await running();
    await cancel();
    const [first, queued] = await Promise.all(pending);
    note("cancelled with another behind it", [first, queued[0]]);
  });
  await connected(async (c) => {
    note("statement_timeout of the driver", await failing(() => c.query("select pg_sleep(60)")));
    note("after statement_timeout", await value(c, "show statement_timeout"));
    await c.query("begin");
    note("statement_timeout within a transaction", await failing(() => c.query("select pg_sleep(60)")));
    await c.query("rollback");
  }, { statement_timeout: 100 });
  await connected(async (c) => {
    note("query_timeout of the driver", await failing(() => c.query("select pg_sleep(0.5)")));
    note("behind it", await failing(() => c.query("select 1")));
  }, { query_timeout: 100 });
  await connected(async (c) => {
    note("lock_timeout of the driver", await value(c, "show lock_timeout"));
    await c.query("begin");
    const ended = new Promise((resolve) => c.once("error", (error) => resolve(error.code ?? error.message)));
    note("idle in a transaction for too long", await ended);
  }, { lock_timeout: 1234, idle_in_transaction_session_timeout: 100 });
}

async function sessions() {
  await several(2, async (one, other) => {
    await one.query("set work_mem = '7MB'; set time zone 'Asia/Tokyo'");
    await one.query("select set_config('my.own', $1, false)", ["mine"]);
    const shown = async (c) => [await value(c, "show work_mem"), await value(c, "show time zone"),
      await value(c, "select coalesce(current_setting('my.own', true), '')")];
    note("settings of one, and of another", [await shown(one), await shown(other)]);
    await one.query("begin; set local work_mem = '9MB'");
    note("local", await value(one, "show work_mem"));
    await one.query("commit");
    note("after it", await value(one, "show work_mem"));
    await one.query("begin");
    await one.query("set work_mem = '11MB'");
    await one.query("rollback");
    note("rolled back", await value(one, "show work_mem"));
    await one.query("reset all");
    note("reset", await value(one, "show work_mem"));
    await one.query("create temp table own (n int) on commit preserve rows");
    await one.query("insert into own values (1), (2)");
    note("a temporary table", [await value(one, "select count(*) from own"), await failing(() => other.query("select * from own"))]);
    await one.query("drop table own");
    note("an advisory lock", [await value(one, "select pg_try_advisory_lock(5)"), await value(other, "select pg_try_advisory_lock(5)"),
      await value(one, "select pg_advisory_unlock(5)"), await value(other, "select pg_try_advisory_lock(5)"),
      await value(other, "select pg_advisory_unlock(5)")]);
    await one.query("create role someone");
    await one.query("set role someone");
    note("a role", [await value(one, "select current_user::text"), await value(other, "select current_user::text")]);
    await one.query("reset role");
    await one.query("drop role someone");
  });
  await connected(async (c) => {
    note("options of the connection", [await value(c, "show application_name"), await value(c, "show work_mem"), await value(c, "show search_path"),
      await value(c, "show datestyle")]);
    await c.query("set work_mem = '5MB'; reset work_mem");
    note("after RESET", await value(c, "show work_mem"));
    await c.query("set session characteristics as transaction isolation level serializable");
    note("characteristics", await value(c, "show transaction_isolation"));
    await c.query("set session characteristics as transaction read only");
    note("read only", await failing(() => c.query("update items set name = 'z'")));
  }, { application_name: "mine", options: "-c work_mem=6MB -c search_path=public,pg_catalog -c datestyle=sql,dmy" });
  await connected(async (c) => note("fallback_application_name", await value(c, "show application_name")), { fallback_application_name: "fallen" });
  note("a database that is not there", await failing(() => connected(() => {}, { database: "no_such_database" })));
  note("a wrong password", await failing(() => connected(() => {}, { password: "wrong" })));
  note("a setting that is not there", await failing(() => connected(() => {}, { options: "-c no_such_setting=1" })));
  note("encryption", await connected((c) => (c.connection.stream.encrypted === true) === (sslmode === "require")));
}

async function large() {
  await connected(async (c) => {
    const text = "päge ".repeat(1_000_000);
    note("a large parameter", await value(c, "select length($1)", [text]));
    note("a large parameter and back", (await value(c, "select $1::text", [text])) === text);
    note("a large row", (await value(c, "select repeat('z', 8000000)")).length);
    note("a large bytea", (await value(c, "select $1::bytea", [Buffer.alloc(3_000_000, 7)])).equals(Buffer.alloc(3_000_000, 7)));
    note("a large statement", await value(c, `select length('${"q".repeat(2_000_000)}')`));
    note("a large named statement", await value(c, { name: "large", text: `select length('${"q".repeat(2_000_000)}')` }));
    note("many rows", (await c.query("select n, repeat('r', 100) from generate_series(1, 50000) n")).rowCount);
    note("many columns", Object.keys((await c.query(`select ${Array.from({ length: 1600 }, (_, n) => `${n} as c${n}`).join()}`)).rows[0]).length);
    const many = Array.from({ length: 20_000 }, (_, n) => n);
    note("many parameters", await value(c, `select count(*) from (values ${many.map((n) => `($${n + 1}::int)`).join()}) v`, many));
    note("a wrong large statement", await failing(() => c.query(`select nonsense('${"q".repeat(300_000)}')`)));
    note("after it", await value(c, "select 1"));
  });
}

async function pipelined() {
  await connected(async (c) => {
    const all = [];
    for (let n = 0; n < 50; n++) {
      all.push(failing(() => value(c, "select 10 / ($1::int - 25)", [n])), failing(() => value(c, { name: "p", text: "select $1::text" }, [`${n}`])));
      if (n % 10 === 0) all.push(failing(() => value(c, "select 'simple'")));
    }
    note("pipelined", await Promise.all(all));
    const transaction = ["begin", "insert into items (id) values (70001)", "insert into items (id) values (70001)", "select 1", "rollback", "select count(*) from items where id = 70001"];
    note("a pipelined transaction", await Promise.all(transaction.map((text) => failing(async () => (await c.query(text)).rows))));
    await Promise.all([c.query("set work_mem = '3MB'"), c.query("select 1"), c.query("create temp table piped (n int)"), c.query("insert into piped values (1)")]);
    note("a pipelined session", [await value(c, "show work_mem"), await value(c, "select n from piped")]);
  }, { pipeline: true });
  await Promise.all(Array.from({ length: 8 }, (_, k) => connected(async (c) => {
    const all = Array.from({ length: 40 }, (_, n) => value(c, { name: `s${n % 5}`, text: `select $1::int + ${n % 5}` }, [n + k]));
    note(`pipelined by many at once (${k})`, await Promise.all(all));
  }, { pipeline: true })));
}

for (const step of [plain, types, prepared, pools, transactions, notifications, copies, cursors, cancelling, sessions, large, pipelined]) {
  part = step.name;
  try {
    await step();
  } catch (error) {
    throw new Error(`after ${Object.keys(outcomes).at(-1)}`, { cause: error });
  }
}
process.stdout.write(JSON.stringify(outcomes));
