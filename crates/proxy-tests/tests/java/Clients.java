// What the JDBC driver does with a PostgreSQL, by its own ways. Run by tests/proxy/drivers.rs on a server and through the
// proxy before it: prints what came of each step as JSON, and all must say the same.
//
// Arguments: host, port, sslmode (`require` or `disable`). The password comes on standard input.

import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.sql.*;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.PGStatement;
import org.postgresql.copy.CopyIn;
import org.postgresql.copy.CopyManager;
import org.postgresql.copy.CopyOut;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;
import org.postgresql.util.PGInterval;
import org.postgresql.util.PGobject;

public class Clients {
    static String host, port, sslmode, password, part;
    static final Map<String, Object> outcomes = new LinkedHashMap<>();

    interface Work {
        Object of(Connection c) throws Exception;
    }

    static void note(String step, Object outcome) {
        String what = part + ": " + step;
        if (outcomes.containsKey(what)) throw new IllegalStateException("noted twice: " + what);
        outcomes.put(what, outcome);
    }

    static List<Object> failing(Callable<Object> work) throws Exception {
        try {
            return list("no error", work.call());
        } catch (BatchUpdateException e) {
            return list("batch", e.getSQLState(), e.getUpdateCounts());
        } catch (SQLException e) {
            return list(e.getClass().getSimpleName(), e.getSQLState());
        }
    }

    static List<Object> list(Object... items) {
        return new ArrayList<>(Arrays.asList(items));
    }

    static Connection open(String... more) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", "postgres");
        properties.setProperty("password", password);
        properties.setProperty("sslmode", sslmode);
        for (int i = 0; i < more.length; i += 2) properties.setProperty(more[i], more[i + 1]);
        return DriverManager.getConnection("jdbc:postgresql://" + host + ":" + port + "/postgres", properties);
    }

    static void run(Connection c, String sql) throws SQLException {
        try (Statement s = c.createStatement()) {
            s.execute(sql);
        }
    }

    static String value(Connection c, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement s = c.prepareStatement(sql)) {
            for (int i = 0; i < parameters.length; i++) s.setObject(i + 1, parameters[i]);
            try (ResultSet r = s.executeQuery()) {
                return r.next() ? r.getString(1) : "no row";
            }
        }
    }

    static List<Object> rows(ResultSet r) throws SQLException {
        List<Object> all = new ArrayList<>();
        int columns = r.getMetaData().getColumnCount();
        while (r.next()) {
            List<Object> row = new ArrayList<>();
            for (int i = 1; i <= columns; i++) row.add(r.getString(i));
            all.add(row);
        }
        r.close();
        return all;
    }

    static void tables() throws Exception {
        try (Connection c = open()) {
            run(c, "drop view if exists cheap; drop table if exists children, items; drop type if exists mood");
            run(c, "create type mood as enum ('sad', 'glad'); create table items (id serial primary key, name text not null default 'x', "
                + "price numeric(10,2), tags text[], feels mood, at timestamptz default '2024-01-01'); "
                + "create table children (id int, item int references items on delete cascade, primary key (id, item)); "
                + "comment on table items is 'what there is'; create or replace view cheap as select id, name from items where price < 5");
            run(c, "create or replace function doubled(n int) returns int language sql as 'select n * 2'");
            run(c, "create or replace function listed(n int) returns refcursor language plpgsql as "
                + "$$ declare r refcursor; begin open r for select generate_series(1, n); return r; end $$");
            run(c, "create or replace procedure renamed(inout n int) language plpgsql as $$ begin n := n + 1; end $$");
            DatabaseMetaData m = c.getMetaData();
            note("product", list(m.getDatabaseProductName(), m.getDatabaseProductVersion(), m.getUserName(), m.getMaxConnections()));
        }
    }

    static void connections() throws Exception {
        for (String name : new String[] {"application_name", "timezone", "extra_float_digits", "datestyle", "client_encoding", "search_path"}) {
            try (Connection c = open()) {
                note("usual " + name, value(c, "show " + name));
            }
        }
        try (Connection c = open("ApplicationName", "mine", "currentSchema", "pg_catalog,public", "options", "-c work_mem=6MB -c geqo=off",
                "assumeMinServerVersion", "12", "tcpKeepAlive", "true")) {
            note("chosen", list(value(c, "show application_name"), value(c, "show search_path"), value(c, "show work_mem"), value(c, "show geqo")));
            note("client info", c.getClientInfo().getProperty("ApplicationName"));
            c.setClientInfo("ApplicationName", "yours");
            note("client info changed", value(c, "show application_name"));
            c.setSchema("public");
            note("schema", list(c.getSchema(), value(c, "show search_path")));
            note("valid", list(c.isValid(5), c.getCatalog(), c.getTransactionIsolation(), c.isReadOnly(), c.getHoldability()));
            note("parameter status", list(((PGConnection) c).getParameterStatus("TimeZone"), ((PGConnection) c).getParameterStatus("application_name"),
                ((PGConnection) c).getParameterStatus("integer_datetimes"), ((PGConnection) c).getParameterStatus("standard_conforming_strings")));
            run(c, "set time zone 'Asia/Tokyo'");
            note("parameter status changed", ((PGConnection) c).getParameterStatus("TimeZone"));
        }
        note("a wrong password", failing(() -> open("password", "wrong")));
        note("a setting that is not there", failing(() -> open("options", "-c no_such_setting=1")));
        for (String role : new String[] {"any", "primary", "secondary", "preferSecondary"}) {
            note("target server type " + role, failing(() -> {
                try (Connection c = open("targetServerType", role)) {
                    return value(c, "show transaction_read_only");
                }
            }));
        }
        for (String ssl : new String[] {"require", "allow"}) {
            note("encrypted, " + ssl, failing(() -> {
                try (Connection c = open("sslmode", sslmode.equals("require") ? ssl : sslmode)) {
                    return value(c, "select 1");
                }
            }));
        }
    }

    // By each way of sending statements.
    static void modes() throws Exception {
        for (String mode : new String[] {"simple", "extended", "extendedForPrepared", "extendedCacheEverything"}) {
            for (String threshold : mode.equals("extended") ? new String[] {"-1", "0", "1", "5"} : new String[] {"1", "5"}) {
                String way = mode + " " + threshold + " ";
                try (Connection c = open("preferQueryMode", mode, "prepareThreshold", threshold)) {
                    statements(c, way);
                }
            }
        }
    }

    static void statements(Connection c, String way) throws Exception {
        run(c, "truncate items, children restart identity");
        List<Object> found = new ArrayList<>();
        try (PreparedStatement sum = c.prepareStatement("select ?::int + ?::int"); PreparedStatement upper = c.prepareStatement("select upper(?)");
                Statement plain = c.createStatement()) {
            for (int i = 0; i < 8; i++) {
                sum.setInt(1, i);
                sum.setInt(2, 1);
                ResultSet r = sum.executeQuery();
                r.next();
                found.add(r.getInt(1));
                upper.setString(1, "x" + i);
                r = upper.executeQuery();
                r.next();
                found.add(r.getString(1));
                r = plain.executeQuery("select count(*) from items");
                r.next();
                found.add(r.getLong(1));
            }
            found.add(sum.unwrap(PGStatement.class).isUseServerPrepare());
        }
        note(way + "statements", found);
        try (PreparedStatement s = c.prepareStatement("insert into items (name, price) values (?, ?)", Statement.RETURN_GENERATED_KEYS)) {
            for (int i = 0; i < 20; i++) {
                s.setString(1, "batch " + i);
                s.setBigDecimal(2, new BigDecimal(i + ".50"));
                s.addBatch();
            }
            note(way + "batch", s.executeBatch());
            note(way + "generated keys of a batch", rows(s.getGeneratedKeys()));
        }
        try (PreparedStatement s = c.prepareStatement("insert into items (name) values (?)", new String[] {"id", "name"})) {
            s.setString(1, "one more");
            note(way + "insert", s.executeUpdate());
            note(way + "generated keys", rows(s.getGeneratedKeys()));
        }
        note(way + "an error", failing(() -> value(c, "select 1 / ?::int", 0)));
        note(way + "a syntax error", failing(() -> value(c, "selec 1")));
        try (Statement s = c.createStatement()) {
            boolean isRows = s.execute("select 1 as a; update items set name = 'n' where id < 3; select 2, 3");
            List<Object> several = new ArrayList<>();
            for (;;) {
                if (isRows) several.add(rows(s.getResultSet()));
                else if (s.getUpdateCount() == -1) break;
                else several.add(s.getUpdateCount());
                isRows = s.getMoreResults();
            }
            note(way + "several statements", several);
        }
        note(way + "several, the last wrong", failing(() -> {
            run(c, "delete from items; select 1 / 0");
            return null;
        }));
        note(way + "none of it stays", value(c, "select count(*) from items"));
        try (PreparedStatement s = c.prepareStatement("select * from children")) {
            for (int i = 0; i < 3; i++) rows(s.executeQuery());
            run(c, "alter table children add column more int");
            note(way + "a table that was changed", failing(() -> s.executeQuery().getMetaData().getColumnCount()));
            run(c, "alter table children drop column more");
            note(way + "and changed back", failing(() -> s.executeQuery().getMetaData().getColumnCount()));
        }
        try (PreparedStatement s = c.prepareStatement("select name from items where id = ?")) {
            for (int i = 0; i < 3; i++) {
                s.setInt(1, i + 5);
                found.add(rows(s.executeQuery()));
            }
            // a parameter of another type
            s.setObject(1, 7L);
            found.add(rows(s.executeQuery()));
            s.setObject(1, new BigDecimal("8"));
            found.add(rows(s.executeQuery()));
        }
        note(way + "parameters of other types", found);
        try (PreparedStatement s = c.prepareStatement("select id, name, price from items where id = ?")) {
            ResultSetMetaData m = s.getMetaData();
            note(way + "described", list(m.getColumnCount(), m.getColumnName(2), m.getColumnTypeName(3), s.getParameterMetaData().getParameterTypeName(1)));
        } catch (SQLException e) {
            note(way + "described", e.getSQLState());
        }
        c.setAutoCommit(false);
        for (int i = 0; i < 3; i++) value(c, "update items set price = price + 1 where id = ? returning price", 1);
        note(way + "within a transaction", value(c, "select price from items where id = ?", 1));
        note(way + "an error within it", failing(() -> value(c, "select ?::int / 0", 1)));
        note(way + "what follows", failing(() -> value(c, "select price from items where id = ?", 1)));
        c.rollback();
        note(way + "after it", value(c, "select price from items where id = ?", 1));
        c.commit();
        c.setAutoCommit(true);
        for (int i = 0; i < 3; i++) value(c, "select 1");
        note(way + "DEALLOCATE ALL", failing(() -> {
            run(c, "deallocate all");
            return list(value(c, "select count(*) from items"), value(c, "select upper(?)", "again"), value(c, "select 1"));
        }));
        note(way + "DISCARD ALL", failing(() -> {
            run(c, "discard all");
            return list(value(c, "select count(*) from items"), value(c, "select upper(?)", "again"), value(c, "select 1"));
        }));
        note(way + "search_path", failing(() -> {
            run(c, "create schema if not exists elsewhere; create table if not exists elsewhere.items (id text)");
            List<Object> seen = list(value(c, "select count(*) from items"));
            run(c, "set search_path = elsewhere");
            seen.add(value(c, "select count(*) from items"));
            run(c, "set search_path = public");
            seen.add(value(c, "select count(*) from items"));
            return seen;
        }));
        run(c, "drop schema if exists elsewhere cascade");
    }

    static void batches() throws Exception {
        for (String rewrite : new String[] {"false", "true"}) {
            String way = rewrite.equals("true") ? "rewritten, " : "";
            try (Connection c = open("reWriteBatchedInserts", rewrite)) {
                run(c, "truncate items, children restart identity");
                try (PreparedStatement s = c.prepareStatement("insert into items (id, name) values (?, ?)")) {
                    for (int i = 0; i < 3000; i++) {
                        s.setInt(1, i);
                        s.setString(2, "row " + "y".repeat(50));
                        s.addBatch();
                    }
                    note(way + "a large batch", s.executeBatch().length);
                    note(way + "its rows", value(c, "select count(*) from items"));
                    for (int i : new int[] {5000, 5001, 7, 5002}) {
                        s.setInt(1, i);
                        s.setString(2, "row");
                        s.addBatch();
                    }
                    note(way + "a batch with an error", failing(() -> s.executeBatch()));
                    note(way + "what stays of it", value(c, "select count(*) from items where id >= 5000"));
                }
                c.setAutoCommit(false);
                try (PreparedStatement s = c.prepareStatement("update items set name = ? where id = ?")) {
                    for (int i = 0; i < 500; i++) {
                        s.setString(1, "updated");
                        s.setInt(2, i * 2);
                        s.addBatch();
                    }
                    note(way + "a batch of updates", Arrays.stream(s.executeBatch()).sum());
                }
                try (Statement s = c.createStatement()) {
                    s.addBatch("insert into items (id) values (9000)");
                    s.addBatch("update items set name = 'z' where id > 2990");
                    s.addBatch("delete from items where id = 9000");
                    note(way + "a batch of statements", s.executeBatch());
                }
                try (PreparedStatement s = c.prepareStatement("insert into items (id, name) values (?, ?) returning id, length(name)", Statement.RETURN_GENERATED_KEYS)) {
                    for (int i = 10000; i < 10300; i++) {
                        s.setInt(1, i);
                        s.setString(2, "w".repeat(i % 1000));
                        s.addBatch();
                    }
                    s.executeBatch();
                    note(way + "a batch with returning", rows(s.getGeneratedKeys()).size());
                }
                c.rollback();
                note(way + "rolled back", value(c, "select count(*) from items where name = 'updated' or id >= 9000"));
                c.commit();
            }
        }
    }

    static void cursors() throws Exception {
        for (String threshold : new String[] {"1", "5"}) {
            String way = "threshold " + threshold + ", ";
            try (Connection c = open("prepareThreshold", threshold); Connection other = open()) {
                c.setAutoCommit(false);
                try (PreparedStatement one = c.prepareStatement("select id from items where id < ? order by id"); Statement two = c.createStatement()) {
                    one.setFetchSize(10);
                    two.setFetchSize(7);
                    for (int round = 0; round < 3; round++) {
                        one.setInt(1, 95);
                        ResultSet first = one.executeQuery();
                        ResultSet second = two.executeQuery("select generate_series(1, 100)");
                        long sum = 0;
                        while (first.next() && second.next()) {
                            sum += first.getInt(1) * 1000L + second.getInt(1);
                            if (first.getRow() % 30 == 0) sum += Long.parseLong(value(other, "select 1"));
                        }
                        note(way + "two cursors at once, round " + round, sum);
                        second.close();
                    }
                    ResultSet early = two.executeQuery("select generate_series(1, 1000000)");
                    early.next();
                    early.close();
                    ResultSet late = two.executeQuery("select 10 / (20 - n) from generate_series(1, 50) n");
                    note(way + "an error while fetching", failing(() -> rows(late)));
                }
                c.rollback();
                try (Statement s = c.createStatement(ResultSet.TYPE_FORWARD_ONLY, ResultSet.CONCUR_READ_ONLY, ResultSet.HOLD_CURSORS_OVER_COMMIT)) {
                    s.setFetchSize(5);
                    note(way + "held over the commit", failing(() -> {
                        ResultSet r = s.executeQuery("select generate_series(1, 20)");
                        r.next();
                        c.commit();
                        return rows(r).size();
                    }));
                }
                c.rollback();
                try (Statement s = c.createStatement(ResultSet.TYPE_FORWARD_ONLY, ResultSet.CONCUR_READ_ONLY)) {
                    s.setFetchSize(5);
                    ResultSet r = s.executeQuery("select generate_series(1, 20)");
                    r.next();
                    c.commit();
                    note(way + "read on after the commit", failing(() -> rows(r).size()));
                }
                c.rollback();
                try (CallableStatement s = c.prepareCall("{? = call listed(?)}")) {
                    s.registerOutParameter(1, Types.REF_CURSOR);
                    s.setInt(2, 5);
                    s.execute();
                    note(way + "a reference to a cursor", rows((ResultSet) s.getObject(1)));
                }
                try (CallableStatement s = c.prepareCall("{? = call doubled(?)}")) {
                    s.registerOutParameter(1, Types.INTEGER);
                    s.setInt(2, 21);
                    s.execute();
                    note(way + "a function", s.getInt(1));
                }
                c.rollback();
            }
        }
        try (Connection c = open("escapeSyntaxCallMode", "callIfNoReturn"); CallableStatement s = c.prepareCall("{call renamed(?)}")) {
            s.registerOutParameter(1, Types.INTEGER);
            s.setInt(1, 41);
            s.execute();
            note("a procedure", s.getInt(1));
        }
        try (Connection c = open("defaultRowFetchSize", "50")) {
            c.setAutoCommit(false);
            try (Statement s = c.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE)) {
                run(c, "truncate items, children restart identity");
                run(c, "insert into items (name) select 'n' || n from generate_series(1, 120) n");
                ResultSet r = s.executeQuery("select id, name from items order by id");
                r.absolute(100);
                r.updateString("name", "changed in place");
                r.updateRow();
                r.moveToInsertRow();
                r.updateInt("id", 500);
                r.updateString("name", "inserted in place");
                r.insertRow();
                r.last();
                note("an updatable result", list(r.getRow(), value(c, "select string_agg(name, ',' order by id) from items where name like '%in place'")));
            }
            c.commit();
        }
    }

    static void transactions() throws Exception {
        try (Connection c = open(); Connection other = open()) {
            c.setAutoCommit(false);
            run(c, "update items set name = 'outer' where id = 1");
            Savepoint named = c.setSavepoint("sp");
            run(c, "update items set name = 'inner' where id = 1");
            c.rollback(named);
            Savepoint unnamed = c.setSavepoint();
            note("an error after a savepoint", failing(() -> value(c, "select 1/0")));
            note("what follows", failing(() -> value(c, "select 1")));
            c.rollback(unnamed);
            note("after the savepoint", value(c, "select name from items where id = 1"));
            c.releaseSavepoint(named);
            note("seen by another", value(other, "select name from items where id = 1"));
            c.commit();
            note("seen after the commit", value(other, "select name from items where id = 1"));
            note("commit of what failed", failing(() -> {
                failing(() -> value(c, "select 1/0"));
                c.commit();
                return null;
            }));
            c.rollback();
            for (int level : new int[] {Connection.TRANSACTION_READ_COMMITTED, Connection.TRANSACTION_REPEATABLE_READ, Connection.TRANSACTION_SERIALIZABLE}) {
                c.setTransactionIsolation(level);
                note("isolation " + level, list(value(c, "show transaction_isolation"), c.getTransactionIsolation() == level, value(other, "show transaction_isolation")));
                c.rollback();
            }
            value(c, "select count(*) from items");
            run(other, "update items set name = 'theirs' where id = 2");
            note("serialization", failing(() -> value(c, "update items set name = 'mine' where id = 2 returning name")));
            c.rollback();
            c.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
            c.setReadOnly(true);
            note("read only", failing(() -> value(c, "update items set name = 'no' returning name")));
            c.rollback();
            note("shown", value(c, "show transaction_read_only"));
            c.rollback();
            c.setReadOnly(false);
            note("no longer", value(c, "show transaction_read_only"));
            c.rollback();
        }
        for (String how : new String[] {"ignore", "transaction", "always"}) {
            try (Connection c = open("readOnlyMode", how); Connection other = open()) {
                c.setReadOnly(true);
                note("read only, " + how, failing(() -> value(c, "update items set name = name where id = 3 returning name")));
                note("another writes, " + how, failing(() -> value(other, "update items set name = name where id = 3 returning id")));
                c.setReadOnly(false);
                note("written, " + how, failing(() -> value(c, "update items set name = name where id = 3 returning id")));
            }
        }
        for (String autosave : new String[] {"never", "always", "conservative"}) {
            for (String clean : new String[] {"false", "true"}) {
                String way = autosave + (clean.equals("true") ? ", cleaned up" : "");
                try (Connection c = open("autosave", autosave, "cleanupSavepoints", clean, "prepareThreshold", "1")) {
                    c.setAutoCommit(false);
                    run(c, "update items set name = 'before' where id = 4");
                    List<Object> seen = list(failing(() -> value(c, "insert into items (id) values (4) returning id")));
                    seen.add(failing(() -> value(c, "select name from items where id = ?", 4)));
                    seen.add(failing(() -> value(c, "select nonsense")));
                    seen.add(failing(() -> value(c, "update items set name = 'after' where id = ? returning name", 4)));
                    seen.add(failing(() -> {
                        c.commit();
                        return null;
                    }));
                    c.rollback();
                    seen.add(value(c, "select name from items where id = 4"));
                    c.rollback();
                    // a plan that no longer fits, in a transaction
                    c.setAutoCommit(true);
                    run(c, "create table if not exists changing (a int)");
                    try (PreparedStatement s = c.prepareStatement("select * from changing")) {
                        for (int i = 0; i < 3; i++) s.executeQuery();
                        run(c, "update items set name = 'start' where id = 4");
                    }
                    run(c, "drop table changing");
                    note("autosave " + way, seen);
                }
            }
        }
        try (Connection c = open()) {
            run(c, "create table later (i int, constraint u unique (i) deferrable initially deferred)");
            c.setAutoCommit(false);
            run(c, "insert into later values (1), (1)");
            note("an error at commit", failing(() -> {
                c.commit();
                return null;
            }));
            c.rollback();
            c.setAutoCommit(true);
            note("an error at the end of a statement", failing(() -> value(c, "insert into later values (?), (?)", 2, 2)));
            note("none of it stays", value(c, "select count(*) from later"));
            run(c, "drop table later");
        }
        Connection left = open();
        left.setAutoCommit(false);
        run(left, "update items set name = 'left'");
        left.close();
        Connection aborted = open();
        aborted.setAutoCommit(false);
        run(aborted, "update items set name = 'left' where id = 77");
        aborted.abort(Runnable::run);
        try (Connection c = open()) {
            note("connections closed in transactions", value(c, "select count(*) from (select from items where name = 'left' for update) x"));
        }
    }

    static void copies() throws Exception {
        try (Connection c = open()) {
            run(c, "truncate items, children restart identity");
            CopyManager copy = c.unwrap(PGConnection.class).getCopyAPI();
            StringBuilder text = new StringBuilder();
            for (int i = 0; i < 20000; i++) text.append(i).append("\tcopied ").append("v".repeat(60)).append('\n');
            note("in", copy.copyIn("copy items (id, name) from stdin", new StringReader(text.toString())));
            StringWriter out = new StringWriter();
            note("out", list(copy.copyOut("copy (select id, name from items order by id) to stdout", out), out.toString().equals(text.toString())));
            ByteArrayOutputStream binary = new ByteArrayOutputStream();
            copy.copyOut("copy (select id, name from items order by id) to stdout (format binary)", binary);
            run(c, "truncate items, children");
            note("binary", list(binary.size(), copy.copyIn("copy items (id, name) from stdin (format binary)", new ByteArrayInputStream(binary.toByteArray()))));
            note("a copy that fails", failing(() -> copy.copyIn("copy items (id, name) from stdin", new StringReader("1\tx\n"))));
            note("after it", value(c, "select count(*) from items"));
            note("a wrong copy", failing(() -> copy.copyIn("copy no_such_table from stdin", new StringReader("1\tx\n"))));
            CopyIn broken = copy.copyIn("copy items (id, name) from stdin");
            byte[] row = "900000\tx\n".getBytes(StandardCharsets.UTF_8);
            broken.writeToCopy(row, 0, row.length);
            broken.cancelCopy();
            note("a copy given up", value(c, "select count(*) from items where id = 900000"));
            try (Connection other = open()) {
                CopyOut partly = other.unwrap(PGConnection.class).getCopyAPI().copyOut("copy (select generate_series(1, 1000000)) to stdout");
                partly.readFromCopy();
                note("a copy out given up", failing(() -> {
                    partly.cancelCopy();
                    return null;
                }));
            }
            c.setAutoCommit(false);
            copy.copyIn("copy items (id, name) from stdin", new StringReader("900001\tx\n"));
            value(c, "select count(*) from items");
            copy.copyIn("copy items (id, name) from stdin", new StringReader("900002\tx\n"));
            note("within a transaction", value(c, "select count(*) from items where id > 900000"));
            c.rollback();
            note("rolled back", value(c, "select count(*) from items where id > 900000"));
        }
    }

    static void cancelling() throws Exception {
        try (Connection c = open(); Connection watcher = open()) {
            try (Statement s = c.createStatement()) {
                s.setQueryTimeout(1);
                note("a query that takes too long", failing(() -> s.executeQuery("select pg_sleep(60)")));
                s.setQueryTimeout(60);
                note("one that does not", failing(() -> rows(s.executeQuery("select 1"))));
            }
            for (boolean within : new boolean[] {false, true}) {
                c.setAutoCommit(!within);
                try (Statement s = c.createStatement()) {
                    Thread canceller = new Thread(() -> {
                        try {
                            while (value(watcher, "select count(*) from pg_stat_activity where query = 'select pg_sleep(61)' and wait_event = 'PgSleep'").equals("0"));
                            s.cancel();
                        } catch (SQLException e) {
                            throw new IllegalStateException(e);
                        }
                    });
                    canceller.start();
                    note("cancelled" + (within ? " within a transaction" : ""), failing(() -> s.executeQuery("select pg_sleep(61)")));
                    canceller.join();
                    note("after it" + (within ? ", within a transaction" : ""), failing(() -> value(c, "select 1")));
                    c.setAutoCommit(true);
                    s.cancel();
                    note("a cancel of nothing" + (within ? ", again" : ""), failing(() -> value(c, "select 2")));
                }
            }
            run(c, "set statement_timeout = 100");
            note("statement_timeout", failing(() -> value(c, "select pg_sleep(60)")));
            c.setNetworkTimeout(Runnable::run, 60_000);
            note("network time-out", c.getNetworkTimeout());
        }
    }

    static void types() throws Exception {
        for (String threshold : new String[] {"-1", "1", "5"}) {
            for (String binary : new String[] {"true", "false"}) {
                try (Connection c = open("prepareThreshold", threshold, "binaryTransfer", binary)) {
                    List<Object> found = new ArrayList<>();
                    try (PreparedStatement s = c.prepareStatement("select ?::int2, ?::int4, ?::int8, ?::float4, ?::float8, ?::numeric, ?::bool, ?::text, ?::bytea, "
                            + "?::uuid, ?::date, ?::timestamp, ?::timestamptz, ?::int4[], ?::text[], ?::jsonb, ?::interval, ?::mood, null::int, '{1.5,NaN}'::float8[], "
                            + "'12:30:15.5'::time, 'infinity'::timestamptz, row(1, 'x'), '(1,2)'::point, '10.0.0.1'::inet, 12::oid, 'c'::\"char\", '$1.50'::money::numeric")) {
                        PGobject json = new PGobject();
                        json.setType("jsonb");
                        json.setValue("{\"a\": [1, null]}");
                        for (int round = 0; round < 3; round++) {
                            s.setShort(1, (short) -7);
                            s.setInt(2, Integer.MIN_VALUE);
                            s.setLong(3, Long.MAX_VALUE);
                            s.setFloat(4, 1.1f);
                            s.setDouble(5, Math.PI);
                            s.setBigDecimal(6, new BigDecimal("123456789012345678901234567890.0123456789"));
                            s.setBoolean(7, true);
                            s.setString(8, "h\u00e4\u00df \u20ac \ud83d\ude00 'quoted' \\");
                            s.setBytes(9, new byte[] {0, 1, (byte) 255, 39, 92});
                            s.setObject(10, UUID.fromString("7d444840-9dc0-11d1-b245-5ffdce74fad2"));
                            s.setObject(11, LocalDate.of(2024, 2, 29));
                            s.setObject(12, LocalDateTime.of(2024, 2, 29, 12, 30, 15, 123456000));
                            s.setObject(13, OffsetDateTime.of(2024, 2, 29, 12, 30, 15, 0, ZoneOffset.ofHours(9)));
                            s.setArray(14, c.createArrayOf("int4", new Object[] {1, null, 3}));
                            s.setArray(15, c.createArrayOf("text", new Object[] {"a", null, "b,\"c\""}));
                            s.setObject(16, json);
                            s.setObject(17, new PGInterval(1, 2, 3, 4, 5, 6.5));
                            s.setObject(18, "glad", Types.OTHER);
                            ResultSet r = s.executeQuery();
                            r.next();
                            List<Object> row = new ArrayList<>();
                            for (int i = 1; i <= r.getMetaData().getColumnCount(); i++) row.add(i == 9 ? Arrays.toString(r.getBytes(i)) : r.getString(i));
                            row.add(r.getObject(13, OffsetDateTime.class).toInstant().toString());
                            row.add(Arrays.toString((Object[]) r.getArray(14).getArray()));
                            found.add(row);
                        }
                    }
                    note("threshold " + threshold + ", binary " + binary, found);
                }
            }
        }
        try (Connection c = open()) {
            c.setAutoCommit(false);
            LargeObjectManager large = c.unwrap(PGConnection.class).getLargeObjectAPI();
            long oid = large.createLO(LargeObjectManager.READWRITE);
            LargeObject object = large.open(oid, LargeObjectManager.READWRITE);
            byte[] bytes = new byte[1_000_000];
            Arrays.fill(bytes, (byte) 9);
            object.write(bytes);
            object.seek(999_990);
            int left = object.read(100).length;
            note("a large object", list(object.size(), left, object.tell()));
            object.close();
            c.commit();
            large.delete(oid);
            c.commit();
            note("one that is gone", failing(() -> large.open(oid, LargeObjectManager.READ)));
            c.rollback();
        }
    }

    static void notifications() throws Exception {
        try (Connection listener = open(); Connection sender = open()) {
            PGConnection heard = listener.unwrap(PGConnection.class);
            run(listener, "listen news");
            note("none yet", heard.getNotifications() == null ? 0 : heard.getNotifications().length);
            run(sender, "notify news, 'one'");
            note("one", names(heard.getNotifications(30_000)));
            sender.setAutoCommit(false);
            run(sender, "notify news, 'two'");
            note("not before the commit", names(heard.getNotifications(50)));
            sender.commit();
            note("two", names(heard.getNotifications(30_000)));
            value(sender, "select pg_notify(?, ?)", "news", "three");
            sender.commit();
            // others work in between
            try (Connection other = open()) {
                for (int i = 0; i < 5; i++) value(other, "select 1");
            }
            note("three", names(heard.getNotifications(30_000)));
            listener.setAutoCommit(false);
            value(listener, "select 1");
            listener.commit();
            run(sender, "notify news, 'four'");
            sender.commit();
            note("four", names(heard.getNotifications(0)));
            listener.setAutoCommit(true);
            run(listener, "unlisten *");
            note("channels", value(listener, "select count(*) from pg_listening_channels()"));
        }
    }

    static List<Object> names(PGNotification[] notifications) {
        List<Object> names = new ArrayList<>();
        if (notifications != null) for (PGNotification n : notifications) names.add(n.getName() + "=" + n.getParameter());
        return names;
    }

    static void metadata() throws Exception {
        for (String threshold : new String[] {"1", "5"}) {
            try (Connection c = open("prepareThreshold", threshold)) {
                String way = "threshold " + threshold + ", ";
                DatabaseMetaData m = c.getMetaData();
                for (int round = 0; round < 2; round++) {
                    String again = way + (round == 0 ? "" : "again, ");
                    note(again + "tables", rows(m.getTables(null, "public", "%", new String[] {"TABLE", "VIEW"})));
                    note(again + "columns", rows(m.getColumns(null, "public", "items", "%")));
                    note(again + "primary keys", rows(m.getPrimaryKeys(null, "public", "children")));
                    note(again + "imported keys", rows(m.getImportedKeys(null, "public", "children")));
                    note(again + "exported keys", rows(m.getExportedKeys(null, "public", "items")));
                    // without their sizes, which change as the server sees fit
                    note(again + "indexes", rows(m.getIndexInfo(null, "public", "items", false, true)).stream().map(row -> ((List<?>) row).subList(0, 10)).toList());
                    note(again + "schemas", rows(m.getSchemas()));
                    note(again + "catalogs", rows(m.getCatalogs()));
                    note(again + "types", rows(m.getTypeInfo()).size());
                    note(again + "functions", rows(m.getFunctions(null, "public", "%")));
                    note(again + "function columns", rows(m.getFunctionColumns(null, "public", "doubled", "%")).size());
                    note(again + "procedures", rows(m.getProcedures(null, "public", "%")).size());
                    note(again + "user-defined types", rows(m.getUDTs(null, "public", "%", null)).size());
                    note(again + "keywords", m.getSQLKeywords().length());
                    note(again + "row identifier", rows(m.getBestRowIdentifier(null, "public", "items", DatabaseMetaData.bestRowSession, false)));
                    note(again + "privileges", rows(m.getTablePrivileges(null, "public", "items")).size());
                }
            }
        }
        try (Connection c = open(); Statement s = c.createStatement()) {
            ResultSetMetaData m = s.executeQuery("select i.id as a, name, price, tags, now() from items i where false").getMetaData();
            List<Object> all = new ArrayList<>();
            for (int i = 1; i <= m.getColumnCount(); i++) {
                all.add(list(m.getColumnLabel(i), m.getColumnName(i), m.getTableName(i), m.getColumnTypeName(i), m.getPrecision(i), m.getScale(i), m.isNullable(i), m.isAutoIncrement(i)));
            }
            note("of a result", all);
        }
    }

    static void large() throws Exception {
        try (Connection c = open("prepareThreshold", "1")) {
            String text = "p\u00e4ge ".repeat(1_000_000);
            note("a parameter", value(c, "select length(?)", text));
            note("and back", value(c, "select ?::text", text).equals(text));
            note("a row", value(c, "select repeat('z', 8000000)").length());
            note("a statement", value(c, "select length('" + "q".repeat(2_000_000) + "')"));
            try (Statement s = c.createStatement()) {
                note("many rows", rows(s.executeQuery("select n, repeat('r', 100) from generate_series(1, 50000) n")).size());
            }
            note("a wrong one", failing(() -> value(c, "select nonsense('" + "q".repeat(300_000) + "')")));
            note("after it", value(c, "select 1"));
        }
        // statements come and go: the driver closes those that it forgets
        try (Connection c = open("prepareThreshold", "1", "preparedStatementCacheQueries", "3")) {
            long sum = 0;
            for (int round = 0; round < 3; round++) {
                for (int i = 0; i < 250; i++) sum += Long.parseLong(value(c, "select " + i + " + ?::int", round));
            }
            note("many statements", sum);
            note("few of them kept", Integer.parseInt(value(c, "select count(*) from pg_prepared_statements")) < 250);
        }
    }

    static void many() throws Exception {
        try (Connection c = open()) {
            run(c, "truncate items, children restart identity");
            run(c, "insert into items (id, price) select n, 0 from generate_series(1, 50) n");
        }
        ExecutorService threads = Executors.newFixedThreadPool(12);
        List<Future<Object>> all = new ArrayList<>();
        for (int t = 0; t < 12; t++) {
            int number = t;
            all.add(threads.submit(() -> {
                List<Object> found = new ArrayList<>();
                try (Connection c = open("prepareThreshold", String.valueOf(number % 3), "ApplicationName", "worker " + number)) {
                    c.setAutoCommit(false);
                    for (int i = 0; i < 25; i++) {
                        value(c, "update items set price = price + ? where id = ? returning price", number, i + 1);
                        if (i % 5 == 4) c.rollback();
                        else c.commit();
                        if (i % 10 == 0) {
                            found.add(value(c, "show application_name"));
                            c.commit();
                        }
                    }
                }
                return found;
            }));
        }
        List<Object> found = new ArrayList<>();
        for (Future<Object> one : all) found.add(one.get());
        threads.shutdown();
        note("threads", found);
        try (Connection c = open(); Statement s = c.createStatement()) {
            note("what they came to", rows(s.executeQuery("select id, price from items order by id")));
        }
    }

    static void sessions() throws Exception {
        try (Connection one = open(); Connection other = open()) {
            run(one, "set work_mem = '7MB'");
            value(one, "select set_config('my.own', ?, false)", "mine");
            note("settings of one, and of another", list(value(one, "show work_mem"), value(one, "select current_setting('my.own', true)"), value(other, "show work_mem")));
            run(one, "create temp table own (n int) on commit preserve rows");
            run(one, "insert into own values (1), (2)");
            note("a temporary table", list(value(one, "select count(*) from own"), failing(() -> value(other, "select count(*) from own"))));
            note("an advisory lock", list(value(one, "select pg_try_advisory_lock(?)", 9L), value(other, "select pg_try_advisory_lock(?)", 9L),
                value(one, "select pg_advisory_unlock(?)", 9L), value(other, "select pg_try_advisory_lock(?)", 9L)));
            run(one, "drop table own");
            List<Object> warnings = new ArrayList<>();
            try (Statement s = one.createStatement()) {
                s.execute("do $$ begin raise notice 'look'; raise warning 'here'; end $$");
                for (SQLWarning w = s.getWarnings(); w != null; w = w.getNextWarning()) warnings.add(w.getMessage());
            }
            note("warnings", warnings);
        }
    }

    interface Part {
        void run() throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        host = arguments[0];
        port = arguments[1];
        sslmode = arguments[2];
        password = new BufferedReader(new InputStreamReader(System.in)).readLine().trim();
        Map<String, Part> parts = new LinkedHashMap<>();
        parts.put("tables", Clients::tables);
        parts.put("connections", Clients::connections);
        parts.put("modes", Clients::modes);
        parts.put("batches", Clients::batches);
        parts.put("cursors", Clients::cursors);
        parts.put("transactions", Clients::transactions);
        parts.put("copies", Clients::copies);
        parts.put("cancelling", Clients::cancelling);
        parts.put("types", Clients::types);
        parts.put("notifications", Clients::notifications);
        parts.put("metadata", Clients::metadata);
        parts.put("large", Clients::large);
        parts.put("many", Clients::many);
        parts.put("sessions", Clients::sessions);
        for (Map.Entry<String, Part> one : parts.entrySet()) {
            part = one.getKey();
            try {
                one.getValue().run();
            } catch (Exception e) {
                String last = outcomes.isEmpty() ? "nothing" : new ArrayList<>(outcomes.keySet()).get(outcomes.size() - 1);
                throw new IllegalStateException("after " + last, e);
            }
        }
        StringBuilder out = new StringBuilder();
        json(out, outcomes);
        new PrintStream(System.out, true, StandardCharsets.UTF_8).println(out);
    }

    static void json(StringBuilder out, Object value) {
        if (value == null || value instanceof Boolean || value instanceof Number) {
            out.append(value);
        } else if (value instanceof int[] numbers) {
            out.append(Arrays.toString(numbers));
        } else if (value instanceof List<?> items) {
            String between = "[";
            for (Object item : items) {
                out.append(between);
                json(out, item);
                between = ",";
            }
            out.append(items.isEmpty() ? "[]" : "]");
        } else if (value instanceof Map<?, ?> map) {
            String between = "{";
            for (Map.Entry<?, ?> entry : map.entrySet()) {
                out.append(between);
                json(out, entry.getKey().toString());
                out.append(':');
                json(out, entry.getValue());
                between = ",";
            }
            out.append(map.isEmpty() ? "{}" : "}");
        } else {
            out.append('"');
            for (char c : value.toString().toCharArray()) {
                if (c == '"' || c == '\\') out.append('\\').append(c);
                else if (c < ' ') out.append(String.format("\\u%04x", (int) c));
                else out.append(c);
            }
            out.append('"');
        }
    }
}
