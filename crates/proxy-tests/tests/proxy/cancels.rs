//! Cancel requests at any moment of a series: what runs ends, what comes later does not, and nobody else is hit.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use millrace_proxy::{Options, PoolMode};
use millrace_proxy_tests::{
    LONG, Raw, Rig, bind, cancel_request, connect, execute, message, parse, pool_of, query, sync, text,
};
use millrace_testkit::wait_until;

/// Numbers that look random and are the same for a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// The answers to a series up to ReadyForQuery: types, codes of errors, and the state of the transaction.
fn answers(raw: &mut Raw) -> (String, Vec<String>, u8) {
    let (mut tags, mut codes) = (String::new(), Vec::new());
    loop {
        let (tag, body) = raw.message();
        tags.push(char::from(tag));
        match tag {
            b'E' => {
                let fields = body.split(|b| *b == 0);
                codes.extend(
                    fields.filter_map(|f| f.strip_prefix(b"C")).map(|c| String::from_utf8_lossy(c).into_owned()),
                );
            }
            b'Z' => return (tags, codes, body[0]),
            _ => {}
        }
    }
}

/// As asyncpg's `executemany` does it: many executions of one statement without a Sync, and at a timeout a cancel request
/// from the side while it sends `ROLLBACK` and Sync behind them; in a transaction block the Sync alone.
fn one_round(raw: &mut Raw, address: std::net::SocketAddr, dice: &mut Dice) -> bool {
    const INSERT: &str = "INSERT INTO many SELECT 1 FROM pg_sleep(0.003)";
    let block = dice.below(2) == 0;
    if block {
        raw.send(&query("BEGIN"));
        assert_eq!(answers(raw), ("CZ".to_owned(), vec![], b'T'));
    }
    let count = 1 + dice.below(40);
    let mut series = parse("", INSERT);
    for _ in 0..count {
        series.extend([bind(""), execute(), message(b'H', b"")].concat());
    }
    // the cancel request goes when so many have been executed, or at once
    let done = dice.below(count + 1);
    if done > 0 {
        series.extend(message(b'H', b""));
    }
    let cut = usize::try_from(dice.below(series.len() as u64 + 1)).unwrap();
    raw.send(&series[..cut]);
    raw.send(&series[cut..]);
    let ends = if block { sync() } else { [parse("", "ROLLBACK"), bind(""), execute(), sync()].concat() };
    let ends_first = dice.below(2) == 0;
    if ends_first {
        raw.send(&ends);
    }
    let mut executed = 0;
    while executed < done {
        executed += u64::from(raw.message().0 == b'C');
    }
    let key = raw.key.clone();
    let cancel = thread::spawn(move || cancel_request(address, &key));
    if !ends_first {
        raw.send(&ends);
    }
    let (tags, codes, status) = answers(raw);
    // only when both are over does a driver go on
    cancel.join().unwrap();
    let cancelled = !codes.is_empty();
    assert!(codes.iter().all(|code| code == "57014") && codes.len() <= 1, "{tags} {codes:?}");
    assert_eq!(
        status,
        if !block {
            b'I'
        } else if cancelled {
            b'E'
        } else {
            b'T'
        },
        "{tags}"
    );
    if block {
        raw.send(&query("ROLLBACK"));
        assert_eq!(answers(raw), ("CZ".to_owned(), vec![], b'I'));
    }
    // the request does not hit this, and of the series nothing is left
    for _ in 0..2 {
        raw.send(&query("SELECT 1 FROM many"));
        assert_eq!(answers(raw), ("TCZ".to_owned(), vec![], b'I'));
    }
    cancelled
}

async fn rounds(options: Options, rounds: usize) {
    let rig = Rig::start(options).await;
    rig.server.client().await.batch_execute("CREATE TABLE many (i int)").await.unwrap();
    let (address, over) = (rig.address, AtomicBool::new(false));
    let bystander = rig.client().await;
    let stands_by = async {
        while !over.load(Ordering::SeqCst) {
            // fails if a request goes astray
            text(&bystander, "SELECT 1 FROM pg_sleep(0.0003)").await;
        }
    };
    let hammer = async {
        let workers = (0..3).map(|seed| {
            tokio::task::spawn_blocking(move || {
                let (mut raw, mut dice) = (Raw::login(address), Dice(seed));
                (0..rounds).filter(|_| one_round(&mut raw, address, &mut dice)).count()
            })
        });
        let cancelled = futures::future::try_join_all(workers).await;
        over.store(true, Ordering::SeqCst);
        let cancelled: usize = cancelled.unwrap().into_iter().sum();
        assert!(cancelled > rounds / 2, "only {cancelled} were cancelled in time");
    };
    tokio::join!(stands_by, hammer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_the_middle_of_a_series_ends_it_and_nothing_else() {
    rounds(pool_of(2), 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_the_middle_of_a_series_of_a_session_ends_it_and_nothing_else() {
    let mut options = pool_of(5);
    options.pool.mode = PoolMode::Session;
    rounds(options, 60).await;
}

/// The client's settings are being made on another connection when the request comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_before_the_statement_has_begun_is_heard() {
    let rig = Rig::start(pool_of(2)).await;
    let admin = rig.server.client().await;
    admin.batch_execute("CREATE ROLE app; CREATE TABLE done (i int); GRANT INSERT ON done TO app").await.unwrap();
    let (one, other) = (rig.client().await, rig.client().await);
    // both connections are there
    for client in [&one, &other] {
        client.batch_execute("BEGIN").await.unwrap();
    }
    for client in [&one, &other] {
        client.batch_execute("COMMIT").await.unwrap();
    }
    let mut raw = Raw::login(rig.address);
    raw.send(&query("SET ROLE app"));
    raw.until_ready();
    // when this is answered, the proxy has asked what the session keeps
    raw.send(&query("SELECT 1"));
    raw.until_ready();
    // the connection with this role is the one used last
    let used = Rig::pid(&one).await;
    one.batch_execute("BEGIN").await.unwrap();
    assert_eq!(Rig::pid(&one).await, used);
    // on the other one, the role cannot be looked up for now
    admin.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_authid").await.unwrap();
    raw.send(&query("INSERT INTO done VALUES (1)"));
    let waits =
        "SELECT count(*) FROM pg_catalog.pg_locks WHERE NOT granted AND relation = 'pg_catalog.pg_authid'::regclass";
    wait_until(LONG, || async { text(&admin, waits).await == "1" }).await;
    cancel_request(rig.address, &raw.key);
    admin.batch_execute("COMMIT").await.unwrap();
    let (tags, codes, _) = answers(&mut raw);
    assert_eq!((tags.as_str(), codes), ("EZ", vec!["57014".to_owned()]));
    raw.send(&query("SELECT current_user"));
    assert!(raw.until_ready().ends_with("TDCZ"));
    one.batch_execute("COMMIT").await.unwrap();
    // none is given to two
    let pools = rig.handle.view().await.into_iter().flat_map(|view| view.pools);
    let counted: Vec<_> = pools.map(|pool| (pool.servers, pool.idle)).filter(|counted| *counted != (0, 0)).collect();
    assert_eq!(counted, [(2, 2)]);
    let mut config = rig.config();
    let again = connect(config.user("postgres")).await.unwrap();
    assert_eq!(text(&again, "SELECT count(*) FROM done").await, "0");
}

/// Part of a series waits for a connection when the request comes: what follows up to its Sync is skipped, as a server would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_series_that_is_cancelled_while_it_waits_the_rest_is_skipped() {
    let rig = Rig::start(pool_of(1)).await;
    let holder = rig.client().await;
    holder.batch_execute("BEGIN; CREATE TABLE done (i int)").await.unwrap();
    let mut raw = Raw::login(rig.address);
    let insert = [parse("s", "INSERT INTO done VALUES (1)"), bind("s"), execute()].concat();
    // a whole series, and one of which the end is to come, in the middle of a message
    raw.send(&[&insert[..], &sync(), &insert, &insert[..7]].concat());
    let waits = async || rig.handle.view().await.iter().flat_map(|v| &v.pools).any(|pool| pool.waiting == 1);
    wait_until(LONG, || async { waits().await }).await;
    cancel_request(rig.address, &raw.key);
    let told = || (b'E', "57014".to_owned());
    let one = |raw: &mut Raw| {
        let (tag, body) = raw.message();
        let code = body.split(|b| *b == 0).find_map(|field| field.strip_prefix(b"C")).unwrap_or_default();
        (tag, String::from_utf8_lossy(code).into_owned())
    };
    assert_eq!((one(&mut raw), raw.message().0, one(&mut raw)), (told(), b'Z', told()));
    let long = message(b'B', &[b"\0s\0", &vec![b'x'; 200_000][..]].concat());
    raw.send(
        &[&insert[7..], &long, &query("INSERT INTO done VALUES (2)"), &sync(), &query("SELECT 1 FROM done")].concat(),
    );
    assert_eq!(answers(&mut raw), ("Z".to_owned(), vec![], b'I'));
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(answers(&mut raw), ("TCZ".to_owned(), vec![], b'I'));
    // nor is there such a statement
    raw.send(&[bind("s"), sync()].concat());
    assert_eq!(answers(&mut raw), ("EZ".to_owned(), vec!["26000".to_owned()], b'I'));
}
