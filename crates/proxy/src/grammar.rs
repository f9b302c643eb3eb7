//! What a statement does to data, by PostgreSQL's own grammar (libpg_query), as far as its text can say.
//!
//! Only what is known to read is called reading: each kind of node, each function and each relation must be known.
//! Whatever is not, a text that does not parse included, is [`Meaning::Unsure`]. Pure: no I/O.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pg_raw_parse::{
    ConstValue, Node, nodes,
    raw::TransactionStmtKind,
    walk::{self, Recurse},
};

use crate::catalog::Catalog;

/// A longer text is not looked at.
pub(crate) const TEXT_BYTES_MAX: usize = 32 << 10;

/// What a text, of one statement or several, is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Meaning {
    /// It writes, locks, belongs to a session, or cannot be judged.
    Unsure,
    /// It reads if it keeps its word: a comment says so, or a transaction of which the rest is to come.
    Told,
    /// It reads, and a replica can do that as well.
    Read,
}

impl Meaning {
    /// Whether a replica may do it.
    #[inline]
    pub(crate) fn reads(self) -> bool {
        self != Self::Unsure
    }
}

/// Where a comment at the front of the text sends it: `/* millrace: primary */` or `/* millrace: replica */`.
pub(crate) fn hinted(text: &[u8]) -> Option<Meaning> {
    let comment = text.trim_ascii_start().strip_prefix(b"/*")?;
    let (comment, _) = std::str::from_utf8(comment).ok()?.split_once("*/")?;
    let (_, told) = comment.split_once("millrace:")?;
    match told.split_whitespace().next()? {
        "primary" => Some(Meaning::Unsure),
        "replica" => Some(Meaning::Told),
        _ => None,
    }
}

/// Judges a text.
pub(crate) fn meaning(text: &[u8], catalog: &Catalog) -> Meaning {
    let Ok(text) = std::str::from_utf8(text) else { return Meaning::Unsure };
    if text.len() > TEXT_BYTES_MAX {
        return Meaning::Unsure;
    }
    // the walk over the tree panics at what it does not know: then it is not known
    catch_unwind(AssertUnwindSafe(|| of_statements(text, catalog))).unwrap_or(Meaning::Unsure)
}

fn of_statements(text: &str, catalog: &Catalog) -> Meaning {
    let Ok(tree) = pg_raw_parse::parse(text) else { return Meaning::Unsure };
    let first = tree.stmts().next();
    if let (Some(Node::TransactionStmt(begin)), 1) = (first, tree.len()) {
        // what follows is not known yet
        return if begins_read_only(begin) { Meaning::Told } else { Meaning::Unsure };
    }
    let each = tree.stmts().map(|statement| match statement {
        Node::SelectStmt(_) => of_select(statement, catalog),
        Node::CopyStmt(copy) => copies_out(copy, catalog),
        _ => Meaning::Unsure,
    });
    // no statement at all is answered anywhere, and changes nothing
    each.min().unwrap_or(Meaning::Read)
}

/// Whether a text with the word `temp` makes and reads nothing temporary at its own level: a query that only names columns
/// or tables so, and calls nothing that is called so.
pub(crate) fn makes_nothing(text: &[u8]) -> bool {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let judge = || {
        let Ok(tree) = pg_raw_parse::parse(text) else { return false };
        tree.stmts().all(|statement| matches!(statement, Node::SelectStmt(_)) && names_nothing_temporary(statement))
    };
    // as in `meaning`
    text.len() <= TEXT_BYTES_MAX && catch_unwind(AssertUnwindSafe(judge)).unwrap_or(false)
}

fn names_nothing_temporary(select: Node<'_>) -> bool {
    let temporary = |name: &str| name.to_ascii_lowercase().contains("temp");
    let mut left = vec![select];
    while let Some(node) = left.pop() {
        let fine = match node {
            Node::FuncCall(call) => {
                call.funcname().iter().all(|name| name.as_str().is_some_and(|name| !temporary(name)))
            }
            Node::RangeVar(relation) => !relation.schemaname().is_some_and(temporary),
            Node::CommonTableExpr(_) => true,
            other => harmless(other),
        };
        if !fine {
            return false;
        }
        walk::walk_manual::<()>(node, |child| {
            left.push(child);
            Recurse::no()
        });
    }
    true
}

/// `BEGIN READ ONLY`, and not serializable, which a replica refuses.
fn begins_read_only(begin: &nodes::TransactionStmt) -> bool {
    let begins = matches!(begin.kind, TransactionStmtKind::TRANS_STMT_BEGIN | TransactionStmtKind::TRANS_STMT_START);
    let mut read_only = false;
    for option in begin.options() {
        let Node::DefElem(option) = option else { return false };
        let Node::A_Const(value) = option.arg() else { return false };
        match (option.defname(), value.val()) {
            (Some("transaction_read_only"), Some(ConstValue::Integer(on))) => read_only = on != 0,
            (Some("transaction_read_only"), Some(ConstValue::Boolean(on))) => read_only = on,
            (Some("transaction_isolation"), Some(ConstValue::String(level))) if level != "serializable" => {}
            _ => return false,
        }
    }
    begins && read_only
}

/// `COPY … TO STDOUT`.
fn copies_out(copy: &nodes::CopyStmt, catalog: &Catalog) -> Meaning {
    if copy.is_from || copy.is_program || copy.filename().is_some() {
        return Meaning::Unsure;
    }
    match (copy.relation(), copy.query()) {
        (Some(relation), _) => of_relation(relation, catalog),
        (None, query @ Node::SelectStmt(_)) => of_select(query, catalog),
        _ => Meaning::Unsure,
    }
}

fn of_relation(relation: &nodes::RangeVar, catalog: &Catalog) -> Meaning {
    relation.relname().map_or(Meaning::Unsure, |name| catalog.of_relation(relation.schemaname(), name))
}

fn of_call(call: &nodes::FuncCall, catalog: &Catalog) -> Meaning {
    let name = call.funcname().iter().next_back().and_then(Node::as_str);
    name.map_or(Meaning::Unsure, |name| catalog.of_function(name))
}

/// What the parts of a query come to. No deeper on the stack for a deeper query.
fn of_select<'a>(select: Node<'a>, catalog: &Catalog) -> Meaning {
    let (mut named, mut doubtful) = (Vec::new(), Vec::new());
    let (mut left, mut all) = (vec![select], Meaning::Read);
    while let Some(node) = left.pop() {
        all = all.min(match node {
            Node::FuncCall(call) => of_call(call, catalog),
            Node::RangeVar(relation) => match of_relation(relation, catalog) {
                Meaning::Unsure => {
                    doubtful.push(relation);
                    all
                }
                known => known,
            },
            Node::CommonTableExpr(table) => {
                named.extend(table.ctename());
                all
            }
            other if harmless(other) => all,
            _ => Meaning::Unsure,
        });
        if all == Meaning::Unsure {
            return all;
        }
        walk::walk_manual::<()>(node, |child| {
            left.push(child);
            Recurse::no()
        });
    }
    let defined = |relation: &&nodes::RangeVar| {
        relation.schemaname().is_none() && relation.relname().is_some_and(|name| named.contains(&name))
    };
    if doubtful.iter().all(defined) { all } else { Meaning::Unsure }
}

/// Kinds of nodes that do nothing but read. Not among them: INTO, FOR UPDATE, and all statements but SELECT.
fn harmless(node: Node<'_>) -> bool {
    matches!(
        node,
        Node::SelectStmt(_)
            | Node::None
            | Node::NodeList(_)
            | Node::Alias(_)
            | Node::RawStmt(_)
            | Node::ResTarget(_)
            | Node::ColumnRef(_)
            | Node::ParamRef(_)
            | Node::A_Const(_)
            | Node::A_Expr(_)
            | Node::A_Star(_)
            | Node::A_Indices(_)
            | Node::A_Indirection(_)
            | Node::A_ArrayExpr(_)
            | Node::BoolExpr(_)
            | Node::NullTest(_)
            | Node::BooleanTest(_)
            | Node::CaseExpr(_)
            | Node::CaseWhen(_)
            | Node::CoalesceExpr(_)
            | Node::MinMaxExpr(_)
            | Node::RowExpr(_)
            | Node::SubLink(_)
            | Node::TypeCast(_)
            | Node::TypeName(_)
            | Node::CollateClause(_)
            | Node::NamedArgExpr(_)
            | Node::SQLValueFunction(_)
            | Node::GroupingFunc(_)
            | Node::GroupingSet(_)
            | Node::JoinExpr(_)
            | Node::FromExpr(_)
            | Node::RangeSubselect(_)
            | Node::RangeFunction(_)
            | Node::RangeTableSample(_)
            | Node::SortBy(_)
            | Node::WindowDef(_)
            | Node::WithClause(_)
            | Node::CTESearchClause(_)
            | Node::CTECycleClause(_)
            | Node::Integer(_)
            | Node::Float(_)
            | Node::Boolean(_)
            | Node::String(_)
            | Node::BitString(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        Catalog::new(
            1,
            ["count", "sum", "lower", "now", "generate_series", "row_number"],
            [("payments", true), ("loans", true), ("unlogged", false), ("s", true)],
        )
    }

    fn reads(text: &str) -> bool {
        hinted(text.as_bytes()).unwrap_or_else(|| meaning(text.as_bytes(), &catalog())).reads()
    }

    #[test]
    fn what_reads() {
        for text in [
            "",
            ";",
            "-- nothing",
            "SELECT 1",
            "select sum(amount) FROM payments WHERE id = $1 GROUP BY 2 ORDER BY lower(name) LIMIT 5",
            "TABLE payments",
            "VALUES (1), (2)",
            "SELECT * FROM public.payments p JOIN loans l USING (id) LEFT JOIN LATERAL (SELECT 1) x ON true",
            "WITH x AS (SELECT * FROM payments) SELECT * FROM x, loans",
            "WITH RECURSIVE x AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT * FROM x",
            "SELECT 1; SELECT 2",
            "SELECT count(*) FILTER (WHERE a), row_number() OVER (PARTITION BY b ORDER BY c) FROM payments",
            "SELECT ARRAY[1, 2], (ROW(1, 2)).f1, CASE WHEN a THEN 1 END, a::int, CURRENT_DATE, a[1:2] FROM payments",
            "SELECT * FROM generate_series(1, 3) WHERE EXISTS (SELECT FROM loans) AND x IN (1, 2)",
            "SELECT a FROM payments UNION SELECT b FROM loans EXCEPT TABLE s",
            "SELECT temp, set_config, 'with hold; set' FROM payments AS advisory_lock",
            "COPY payments TO STDOUT",
            "COPY (SELECT * FROM payments) TO STDOUT (FORMAT csv)",
            "BEGIN READ ONLY",
            "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            "/* millrace: replica */ SELECT anything()",
            "-- a comment\nSELECT 1",
        ] {
            assert!(reads(text), "{text}");
        }
    }

    #[test]
    fn what_is_for_the_primary() {
        for text in [
            "SELEC 1",
            "INSERT INTO payments VALUES (1)",
            "UPDATE payments SET a = 1",
            "DELETE FROM payments",
            "MERGE INTO payments USING loans ON true WHEN MATCHED THEN DELETE",
            "SELECT * FROM payments FOR UPDATE",
            "SELECT * FROM (SELECT * FROM payments FOR SHARE) x",
            "SELECT * INTO copy FROM payments",
            "CREATE TABLE x AS SELECT 1",
            "WITH x AS (DELETE FROM payments RETURNING *) SELECT * FROM x",
            "WITH x AS (INSERT INTO payments SELECT 1 RETURNING *) SELECT count(*) FROM x",
            "SELECT nextval('s')",
            "SELECT 1 WHERE (SELECT setval('s', 1)) > 0",
            "SELECT 1 ORDER BY pay(1)",
            "SELECT count(*) FILTER (WHERE pay(1)) FROM payments",
            "SELECT row_number() OVER (ORDER BY pay(1)) FROM payments",
            "SELECT 1 LIMIT pay(1)",
            "SELECT 1 GROUP BY GROUPING SETS ((pay(1)))",
            "SELECT ARRAY[pay(1)], ROW(pay(1))",
            "SELECT * FROM pay(1)",
            "SELECT * FROM ROWS FROM (pay(1), generate_series(1, 2))",
            "SELECT CASE WHEN true THEN pay(1) END",
            "VALUES (pay(1))",
            "SELECT * FROM payments JOIN loans ON pay(1)",
            "SELECT a[pay(1)] FROM payments",
            "SELECT lower(x => pay(1)::text)",
            "SELECT * FROM unlogged",
            "SELECT * FROM never_heard_of",
            "SELECT * FROM other.payments_log",
            "SELECT * FROM pg_catalog.pg_class",
            "SELECT * FROM pg_stat_activity",
            "SELECT * FROM pg_temp.payments",
            "SELECT * FROM pg_temp_3.payments",
            "SELECT set_config('a.b', 'c', true)",
            "SELECT 1 WHERE pg_advisory_xact_lock(1) IS NULL",
            "SELECT 1; SET work_mem = 1",
            "SELECT * INTO TEMP copy FROM payments",
            "SELECT * FROM information_schema.tables",
            "SELECT 1; UPDATE payments SET a = 1",
            "BEGIN",
            "BEGIN READ WRITE",
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "BEGIN READ ONLY; SELECT 1",
            "COMMIT",
            "COPY payments FROM STDIN",
            "COPY payments TO '/tmp/file'",
            "COPY payments TO PROGRAM 'cat'",
            "COPY (DELETE FROM payments RETURNING *) TO STDOUT",
            "EXPLAIN SELECT 1",
            "SET work_mem = 1",
            "SHOW work_mem",
            "DO 'BEGIN END'",
            "CALL pay(1)",
            "LOCK payments",
            "LISTEN x",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "DECLARE c CURSOR FOR SELECT 1",
            "/* millrace: primary */ SELECT 1",
            "/* something else */ UPDATE payments SET a = 1",
        ] {
            assert!(!reads(text), "{text}");
        }
    }

    #[test]
    fn nothing_makes_it_fall() {
        let deep = format!("SELECT {}1{}", "(".repeat(15_000), ")".repeat(15_000));
        let long = format!("SELECT {}1", "1 + ".repeat(8_000));
        let nots = format!("SELECT {} true", "NOT ".repeat(8_000));
        let cases = format!("SELECT {} 1 {}", "CASE WHEN ".repeat(2_000), "THEN 1 END".repeat(2_000));
        let selects = format!("SELECT 1 {}", " UNION SELECT 1".repeat(2_000));
        for text in [&deep, &long, &nots, &cases, &selects] {
            let _any = meaning(text.as_bytes(), &catalog());
        }
        assert_eq!(meaning(b"SELECT 1\0", &catalog()), Meaning::Unsure);
        assert_eq!(meaning(b"SELECT '\xff'", &catalog()), Meaning::Unsure);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[A-Za-z0-9 ,;()'\"$*=<>\\[\\]:.-]{0,60}") {
            let _any = meaning(text.as_bytes(), &catalog());
        }
    }
}
