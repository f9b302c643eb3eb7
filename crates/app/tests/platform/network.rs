//! Hosts die, freeze and are cut off while clients append to lists and move money; afterwards it is checked, in the manner
//! of Jepsen ("append" and "bank"), that what they were told is true: nothing acknowledged is lost, nothing is there twice, and
//! what each writer saw is a beginning of what there is in the end, so that there was one line of primaries. Reads alone are not checked.
//!
//! `MILLRACE_ROUNDS=200 cargo nextest run --workspace -E 'test(lists_and_money)'` runs for an hour or more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use millrace_config::{Config, Secrets};
use millrace_pg::{ConnectParams, Connection};

use crate::{
    harness::{kill, wait_until},
    hosts::{Hosts, NODES},
    lan::Lan,
};

/// So many are appended to at a time, and others once each is long: a list is written as a whole each time.
const LISTS: i32 = 16;
const LIST_MAX: i32 = 200;
const ACCOUNTS: i32 = 8;
const BALANCE: i64 = 1000;
const CLIENTS: usize = 4;
/// What nobody notices at once lasts longer than every lease and every patience.
const LONG: Duration = Duration::from_secs(15);
/// A client waits so long for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

fn list_of(number: i32) -> i32 {
    number / (LISTS * LIST_MAX) * LISTS + number % LISTS
}

/// What a client was told of its transaction.
struct Told {
    number: i32,
    list: i32,
    /// The list as it saw it, with its own number; `None`: nobody knows what became of it.
    saw: Option<Vec<i32>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    told: Mutex<Vec<Told>>,
    /// By the clients' clock, in milliseconds: the last acknowledgement, and the longest time between two.
    last: AtomicU64,
    longest: AtomicU64,
    /// The last one, for whoever reads a failure.
    trouble: Mutex<String>,
}

impl Shared {
    fn note(&self, trouble: impl std::fmt::Display) {
        *self.trouble.lock().unwrap() = trouble.to_string();
    }
}

/// As a customer's program connects, by the proxy of a host.
fn by_proxy(hosts: &Hosts, node: usize) -> ConnectParams {
    let dir = hosts.dir(node);
    let (config, secrets) = (Config::load(&dir).unwrap(), Secrets::load(&dir.join("secrets.toml")).unwrap());
    ConnectParams {
        host: hosts.address(node),
        port: config.proxy.port,
        database: "loans_db".to_owned(),
        user: "app_user".to_owned(),
        password: secrets.roles["app_user"].clone(),
        tls: Some(config.tls().client_config().unwrap()),
        application_name: "client".to_owned(),
    }
}

struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// A word for each acknowledgement.
    heard: mpsc::Receiver<()>,
}

impl Clients {
    fn of(hosts: &Hosts) -> Self {
        let proxies: Vec<_> = (0..NODES.len()).map(|node| by_proxy(hosts, node)).collect();
        let shared = Arc::new(Shared::default());
        let begun = Instant::now();
        let (tell, heard) = mpsc::channel();
        let threads = (0..CLIENTS).map(|client| {
            let (shared, proxies, tell) = (shared.clone(), proxies.clone(), tell.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(work(client, &proxies, &shared, &tell, begun));
            })
        });
        let threads = threads.collect();
        Self { shared, threads, heard }
    }

    /// Waits until writes flow again, and have for a while.
    #[track_caller]
    fn flow(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        // those of before do not count
        while self.heard.try_recv().is_ok() {}
        for _ in 0..50 {
            let heard = self.heard.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let trouble = self.shared.trouble.lock().unwrap().clone();
            assert!(heard.is_ok(), "waited a minute for {what}; the last trouble: {trouble}");
        }
    }

    /// The same, for so long at least.
    fn flow_for(&self, time: Duration, what: &str) {
        let since = Instant::now();
        while since.elapsed() < time {
            self.flow(what);
        }
    }

    fn stop(self) -> Vec<Told> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.shared.told.lock().unwrap())
    }
}

async fn work(client: usize, proxies: &[ConnectParams], shared: &Shared, tell: &mpsc::Sender<()>, begun: Instant) {
    let mut connection: Option<Connection> = None;
    let mut turn = client;
    let mut next = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        turn += 1;
        let Some(open) = &mut connection else {
            match millrace_pg::connect(&proxies[turn % proxies.len()], Duration::from_secs(3)).await {
                Ok(open) => connection = Some(open),
                Err(error) => shared.note(error),
            }
            continue;
        };
        // a number is used once
        let number = next * i32::try_from(CLIENTS).unwrap() + i32::try_from(client).unwrap();
        next += 1;
        let saw = match tokio::time::timeout(PATIENCE, append(open, number)).await {
            Ok(Ok(saw)) => Some(saw),
            Ok(Err(error)) => {
                shared.note(error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string));
                None
            }
            Err(elapsed) => {
                shared.note(elapsed);
                None
            }
        };
        if saw.is_some() {
            // nobody listens any more when the test ends
            tell.send(()).ok();
            let now = u64::try_from(begun.elapsed().as_millis()).unwrap();
            let before = shared.last.swap(now, Ordering::Relaxed);
            shared.longest.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
        } else {
            connection = None;
        }
        shared.told.lock().unwrap().push(Told { number, list: list_of(number), saw });
    }
}

async fn append(client: &mut Connection, number: i32) -> Result<Vec<i32>, tokio_postgres::Error> {
    let (from, to) = (number % ACCOUNTS, (number / 7 + 1) % ACCOUNTS);
    let transaction = client.client_mut().transaction().await?;
    let add = "INSERT INTO operational.lists VALUES ($2, ARRAY[$1::int]) \
               ON CONFLICT (list) DO UPDATE SET items = lists.items || $1::int RETURNING items";
    let saw = transaction.query_one(add, &[&number, &list_of(number)]).await?.get(0);
    // in one order always, so that two of them never wait for each other
    let both = "UPDATE operational.accounts SET balance = balance + CASE account WHEN $1 THEN -1 ELSE 0 END \
                + CASE account WHEN $2 THEN 1 ELSE 0 END \
                WHERE account IN (SELECT account FROM operational.accounts WHERE account IN ($1, $2) ORDER BY account FOR UPDATE)";
    transaction.execute(both, &[&from, &to]).await?;
    transaction.commit().await?;
    Ok(saw)
}

/// What there is in the end, against what was told.
fn check(lists: &BTreeMap<i32, Vec<i32>>, told: &[Told]) {
    let mut tried: BTreeMap<i32, i32> = BTreeMap::new();
    for of in told {
        assert!(tried.insert(of.number, of.list).is_none(), "{} was used twice", of.number);
    }
    for (list, items) in lists {
        let once: BTreeSet<_> = items.iter().collect();
        assert_eq!(once.len(), items.len(), "something is twice in list {list}: {items:?}");
        let strange: Vec<_> = items.iter().filter(|number| tried.get(number) != Some(list)).collect();
        assert!(strange.is_empty(), "nobody has written {strange:?} into list {list}");
    }
    for (of, saw) in told.iter().filter_map(|of| Some((of, of.saw.as_ref()?))) {
        let items = &lists[&of.list];
        let lost: Vec<_> = saw.iter().filter(|number| !items.contains(number)).collect();
        assert!(lost.is_empty(), "{lost:?} of list {} are lost; {} was acknowledged", of.list, of.number);
        assert!(items.starts_with(saw), "list {} was {saw:?} and is {items:?}", of.list);
        assert_eq!(saw.last(), Some(&of.number));
    }
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let told = |number, saw: Option<&[i32]>| Told { number, list: 0, saw: saw.map(<[i32]>::to_vec) };
    let is_right = |items: &[i32], told: &[Told]| {
        let lists = BTreeMap::from([(0, items.to_vec())]);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&lists, told))).is_ok()
    };
    assert!(is_right(&[1, 2], &[told(1, Some(&[1])), told(2, Some(&[1, 2])), told(3, None)]));
    assert!(is_right(&[1, 3], &[told(1, Some(&[1])), told(3, None)]), "nobody knew what became of it");
    assert!(!is_right(&[1], &[told(1, Some(&[1])), told(2, Some(&[1, 2]))]), "lost");
    assert!(!is_right(&[1, 1], &[told(1, Some(&[1]))]), "twice");
    assert!(!is_right(&[2, 1], &[told(1, Some(&[1])), told(2, Some(&[1, 2]))]), "in another order");
    assert!(!is_right(&[1, 4], &[told(1, Some(&[1]))]), "of nobody");
}

/// What the primary answers is lost on its way to one host: a transaction of a client there, in the midst of which that
/// happens, does not keep its locks for the quarter of an hour that the system sends its answer again.
#[test]
fn who_is_cut_off_in_a_transaction_does_not_keep_its_locks() {
    let Some(lan) = Lan::new(NODES.len()) else {
        println!("not run: only root may make network namespaces, where the machine has them");
        return;
    };
    let hosts = Hosts::start_in(lan);
    hosts.psql(0, "primary", "INSERT INTO operational.customers (full_name) VALUES ('Amina Otieno')").ok();
    let primary = hosts.primary();
    let away = (primary + 1) % NODES.len();
    let change = "UPDATE operational.customers SET full_name = full_name || '!'";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let params = by_proxy(&hosts, away);
    let client = runtime.block_on(async {
        let client = millrace_pg::connect(&params, Duration::from_secs(10)).await.unwrap();
        client.batch_execute("BEGIN").await.unwrap();
        hosts.lan.as_ref().unwrap().cut(primary, away);
        // it arrives, and its answer does not
        let answer = tokio::time::timeout(Duration::from_secs(1), client.batch_execute(change)).await;
        assert!(answer.is_err(), "{answer:?}");
        client
    });
    let by = (primary + 2) % NODES.len();
    let way = format!("host={} port={} user=app_user dbname=loans_db sslmode=require", hosts.address(by), params.port);
    let psql = |host: usize| {
        let mut psql = hosts.lan.as_ref().unwrap().program(host, "psql");
        psql.args([&way, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]).env("PGPASSWORD", params.password.reveal());
        psql.stdin(Stdio::piped()).stdout(Stdio::piped());
        psql
    };
    // one that reads nothing of its answer for as long as all this takes is let be
    const ROWS: usize = 200_000;
    let mut slow = psql(primary);
    slow.args(["-c", &format!("COPY (SELECT repeat('x', 1000) FROM generate_series(1, {ROWS})) TO STDOUT")]);
    let slow = slow.spawn().unwrap();
    let log_of = |node: usize| fs::read_to_string(hosts.dir(node).join("data/logs/millrace.log")).unwrap();
    let soon = |what: &str| {
        let begun = Instant::now();
        hosts.sql(primary, change).ok();
        let took = begun.elapsed();
        println!("its locks were free after {took:?}, {what}");
        assert!(took > Duration::from_secs(1) && took < Duration::from_secs(30), "{took:?}");
    };
    soon("cut off from the server");
    assert!(log_of(primary).contains("a client is cut off, and ended"), "{}", log_of(primary));
    drop(client);

    // the same between a client and its proxy, on a host that has neither
    hosts.lan.as_ref().unwrap().heal();
    let mut client = psql(away).spawn().unwrap();
    let (mut says, mut hears) = (client.stdin.take().unwrap(), BufReader::new(client.stdout.take().unwrap()).lines());
    writeln!(says, "BEGIN; SELECT 'begun';").unwrap();
    assert_eq!(hears.next().unwrap().unwrap(), "begun");
    hosts.lan.as_ref().unwrap().cut(by, away);
    writeln!(says, "{change};").unwrap();
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'operational.customers'::regclass AND mode = 'RowExclusiveLock'";
    wait_until("the change", || hosts.psql(primary, "primary", locked).stdout.trim() == "1");
    soon("cut off from the proxy");
    assert!(log_of(by).contains("the client does not hear any more"), "{}", log_of(by));
    client.kill().unwrap();
    client.wait().unwrap();
    let read = slow.wait_with_output().unwrap();
    assert!(read.status.success() && read.stdout.iter().filter(|byte| **byte == b'\n').count() == ROWS);
}

/// What is done to the hosts.
#[derive(Debug, Clone, Copy)]
enum Fault {
    HostKilled,
    HostFrozen,
    CutOff,
    /// What the primary sends is lost, and the other way round.
    Mute,
    Deaf,
    /// Only the way between the primary and one replica.
    CutPair,
    ServerKilled,
    ServerFrozen,
    AgentKilled,
    AgentFrozen,
    EtcdAway,
    Switchover,
    /// The primary's host and, a moment later, another's agent.
    Double,
}

const FAULTS: [Fault; 13] = [
    Fault::HostKilled,
    Fault::CutOff,
    Fault::Mute,
    Fault::HostFrozen,
    Fault::Switchover,
    Fault::EtcdAway,
    Fault::Deaf,
    Fault::AgentFrozen,
    Fault::CutPair,
    Fault::ServerKilled,
    Fault::ServerFrozen,
    Fault::AgentKilled,
    Fault::Double,
];

fn strike(hosts: &mut Hosts, clients: &Clients, fault: Fault) {
    let primary = hosts.primary();
    let [other, third] = [1, 2].map(|n| (primary + n) % NODES.len());
    let lan = |hosts: &Hosts, ways: &[(usize, usize)]| {
        ways.iter().for_each(|(from, to)| hosts.lan.as_ref().unwrap().cut(*from, *to));
    };
    let all_of = |node| [(node, (node + 1) % 3), (node, (node + 2) % 3)];
    let all_to = |node| all_of(node).map(|(from, to)| (to, from));
    match fault {
        Fault::HostKilled | Fault::Double => {
            hosts.etcd[primary].as_mut().unwrap().kill().unwrap();
            hosts.etcd[primary].take().unwrap().wait().unwrap();
            hosts.kill(primary);
            if matches!(fault, Fault::Double) {
                let agent = hosts.agents[third].take().unwrap();
                kill(agent.id(), "KILL");
                drop(agent.wait_with_output());
                hosts.begin(third);
            }
            clients.flow("writes after a host was killed");
            hosts.begin_member(primary);
            hosts.begin(primary);
        }
        Fault::HostFrozen => {
            let member = hosts.etcd[primary].as_ref().unwrap().id();
            kill(member, "STOP");
            hosts.signal(primary, "-STOP");
            clients.flow("writes after a host was frozen");
            hosts.signal(primary, "-CONT");
            kill(member, "CONT");
        }
        Fault::CutOff => {
            lan(hosts, &all_of(primary));
            lan(hosts, &all_to(primary));
            clients.flow("writes after the primary was cut off");
        }
        Fault::Mute => {
            lan(hosts, &all_of(primary));
            clients.flow("writes after nothing came from the primary any more");
        }
        Fault::Deaf => {
            lan(hosts, &all_to(primary));
            clients.flow("writes after nothing came to the primary any more");
        }
        Fault::CutPair => {
            lan(hosts, &[(primary, other), (other, primary)]);
            clients.flow_for(LONG, "writes after a pair was cut");
        }
        Fault::ServerKilled => {
            hosts.signal_server(primary, "-9");
            clients.flow("writes after a server was killed");
        }
        Fault::ServerFrozen => {
            hosts.signal_server(primary, "-STOP");
            clients.flow("writes after a server was frozen");
            hosts.signal_server(primary, "-CONT");
        }
        Fault::AgentKilled => {
            let agent = hosts.agents[primary].take().unwrap();
            kill(agent.id(), "KILL");
            drop(agent.wait_with_output());
            clients.flow_for(LONG, "writes after an agent was killed");
            hosts.begin(primary);
        }
        Fault::AgentFrozen => {
            let agent = hosts.agents[primary].as_ref().unwrap().id();
            kill(agent, "STOP");
            clients.flow_for(LONG, "writes after an agent was frozen");
            kill(agent, "CONT");
        }
        Fault::EtcdAway => {
            let members = [0, 1].map(|node| hosts.etcd[node].as_ref().unwrap().id());
            members.iter().for_each(|member| kill(*member, "STOP"));
            clients.flow_for(LONG, "writes while etcd is away");
            assert_eq!(hosts.primary(), primary);
            members.iter().for_each(|member| kill(*member, "CONT"));
        }
        Fault::Switchover => {
            hosts.said(third, &["cluster", "switchover", "--to", NODES[other]]).ok();
            clients.flow("writes after a switchover");
        }
    }
    if let Some(lan) = &hosts.lan {
        lan.heal();
    }
}

/// `MILLRACE_ROUNDS` of them, and of one kind alone if `MILLRACE_FAULT` names it.
#[expect(clippy::disallowed_methods, reason = "for whoever runs this test for longer")]
fn rounds() -> Vec<Fault> {
    let rounds = std::env::var("MILLRACE_ROUNDS").map_or(3, |text| text.parse().unwrap());
    let only = std::env::var("MILLRACE_FAULT").ok();
    let wanted = |fault: &Fault| only.as_ref().is_none_or(|name| *name == format!("{fault:?}"));
    FAULTS.into_iter().filter(wanted).cycle().take(rounds).collect()
}

#[test]
fn lists_and_money_survive_whatever_happens_to_hosts() {
    let Some(lan) = Lan::new(NODES.len()) else {
        println!("not run: only root may make network namespaces, where the machine has them");
        return;
    };
    let mut hosts = Hosts::start_in(lan);
    let make = format!(
        "CREATE TABLE operational.lists (list int PRIMARY KEY, items int[] NOT NULL); \
         CREATE TABLE operational.accounts (account int PRIMARY KEY, balance bigint NOT NULL DEFAULT {BALANCE}); \
         INSERT INTO operational.accounts SELECT generate_series(0, {ACCOUNTS} - 1); \
         GRANT SELECT, INSERT, UPDATE ON operational.lists, operational.accounts TO app_user"
    );
    hosts.psql(0, "primary", &make).ok();
    let clients = Clients::of(&hosts);
    clients.flow("the first writes");
    for (round, fault) in rounds().into_iter().enumerate() {
        clients.shared.longest.store(0, Ordering::Relaxed);
        strike(&mut hosts, &clients, fault);
        let without = clients.shared.longest.load(Ordering::Relaxed);
        hosts.ready();
        clients.flow("writes when all is well again");
        println!("round {round}: {fault:?}, {without} ms without writes");
    }
    let told = clients.stop();
    let primary = hosts.primary();
    let read = hosts.psql(primary, "primary", "SELECT list, array_to_string(items, ' ') FROM operational.lists").ok();
    let lists: BTreeMap<i32, Vec<i32>> = read
        .lines()
        .map(|line| {
            let (list, items) = line.split_once('|').unwrap();
            (list.parse().unwrap(), items.split_whitespace().map(|number| number.parse().unwrap()).collect())
        })
        .collect();
    assert!(lists.len() >= usize::try_from(LISTS).unwrap());
    let acknowledged = told.iter().filter(|of| of.saw.is_some()).count();
    println!("{} transactions, {acknowledged} acknowledged", told.len());
    check(&lists, &told);
    let money = "SELECT sum(balance) FROM operational.accounts";
    let all = (BALANCE * i64::from(ACCOUNTS)).to_string();
    let sums =
        "SELECT md5(string_agg(list || ':' || array_to_string(items, ' '), ' ' ORDER BY list)) FROM operational.lists";
    assert_eq!(hosts.psql(primary, "primary", money).ok().trim(), all);
    let wanted = hosts.psql(primary, "primary", sums).ok();
    wait_until("the same on every node", || NODES.iter().all(|node| hosts.psql(primary, node, sums).stdout == wanted));
}
