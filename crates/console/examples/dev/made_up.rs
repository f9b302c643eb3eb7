//! Figures that look like a lender's, from arithmetic alone.

#[path = "made_up_backups.rs"]
mod backups;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use millrace_base::{Clock, Lsn, Micros};
use millrace_console::{Users, UsersError};
use millrace_contract::{
    Query, QueryError, Reader, RowStream, Value,
    backups::{Backups, RestorePlan},
    cluster::{ClusterSummary, Entry, Event},
    operate::{Check, OperateError, Operator, Proof},
    query::{Freshness, ResultColumn, ValueType},
    report::{ChartKind, Dashboard, Drill, Format, Param, ParamType, Report, ReportCatalog, Tile},
    status::{
        BackupStatus, CaptureState, CaptureStatus, DiskStatus, Finding, ListenerStatus, NodeRole, NodeState,
        NodeStatus, PlatformStatus, PoolStatus, ProxyStatus, RunStatus, Severity, SlotStatus, Times,
    },
};

const FIRST_RUN: i64 = 4200;

/// Most are short and a few are long.
fn times(count: u64) -> Times {
    let counts = (0..21).map(|at| if at == 20 { 0 } else { count >> (at + 1) }).collect();
    Times { counts, p50_us: Some(50), p95_us: Some(430), p99_us: Some(2_900) }
}

fn pool(user: &str, read_only: bool, clients: u64, waiting: u64) -> PoolStatus {
    PoolStatus {
        database: "loans".into(),
        user: user.into(),
        read_only,
        mode: "transaction".into(),
        size: 25,
        clients,
        waiting,
        longest_wait_ms: waiting * 1_200,
        servers: clients / 8,
        idle: if waiting > 0 { 0 } else { clients / 10 },
        paused: false,
        transactions: clients * 7_919,
        queries: clients * 15_013,
        query_us: clients * 15_013 * 640,
        waits: waiting * 31,
        behind: 0,
        wait_us: waiting * 9_000_000,
        query_times: times(clients * 15_013),
        wait_times: times(clients * 7_919),
        received_bytes: clients * 1_204_811,
        sent_bytes: clients * 9_611_003,
    }
}

/// Users in memory, in a store that can be silenced.
#[derive(Debug, Default)]
pub(crate) struct People {
    hashes: Mutex<HashMap<String, String>>,
    silent: AtomicBool,
    asked: AtomicUsize,
}

#[allow(dead_code, reason = "for the tests that share this file")]
impl People {
    /// Removes a user behind the console's back.
    pub(crate) fn remove(&self, name: &str) {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Whether the store answers no more.
    pub(crate) fn silence(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    /// How often a hash was asked for.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn answers(&self) -> Result<(), UsersError> {
        if self.silent.load(Ordering::SeqCst) {
            return Err(UsersError { message: "the list of users cannot be read now".into(), hint: None });
        }
        Ok(())
    }
}

impl Users for People {
    fn password_hash(&self, name: &str) -> BoxFuture<'_, Result<Option<String>, UsersError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let found = self.hashes.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        Box::pin(async { self.answers().map(|()| found) })
    }

    fn count(&self) -> BoxFuture<'_, Result<u64, UsersError>> {
        Box::pin(async { self.answers().map(|()| 1) })
    }

    fn put(&self, name: &str, hash: String) -> BoxFuture<'_, Result<(), UsersError>> {
        let put = self.answers();
        if put.is_ok() {
            self.hashes.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), hash);
        }
        Box::pin(async { put })
    }
}

fn param(name: &str, param_type: ParamType, label: &str, choices: Option<&str>) -> Param {
    Param { name: name.into(), param_type, label: label.into(), default: None, choices_sql: choices.map(Into::into) }
}

fn params() -> Vec<Param> {
    vec![
        param("from", ParamType::Date, "From", None),
        param("to", ParamType::Date, "To", None),
        param("branch", ParamType::Text, "Branch", Some("branches")),
    ]
}

fn report(
    name: &str,
    title: &str,
    chart: ChartKind,
    x: Option<&str>,
    y: &[(&str, Format)],
    drill: Option<&str>,
) -> Arc<Report> {
    Arc::new(Report {
        name: name.into(),
        title: title.into(),
        description: "Payments received, by the date they were booked.".into(),
        source_sql: format!(
            "-- {title}\nSELECT *\n  FROM warehouse.vw_{name}\n WHERE payment_date >= :from\n   AND branch_code = coalesce(:branch, branch_code)"
        ),
        sql: name.into(),
        params: params(),
        chart,
        x: x.map(Into::into),
        y: y.iter().map(|(y, _)| (*y).to_owned()).collect(),
        formats: y
            .iter()
            .map(|(y, format)| ((*y).to_owned(), *format))
            .chain(x.map(|x| (x.to_owned(), if x == "month" { Format::Month } else { Format::Plain })))
            .collect(),
        drill: drill.map(|column| Drill {
            report: "payments".into(),
            bind: vec![(column.to_owned(), x.unwrap_or("month").to_owned())],
        }),
    })
}

pub(crate) fn catalog() -> ReportCatalog {
    use ChartKind::{Bar, HorizontalBar, Line, Number, Pie, Table};
    use Format::{Integer, Money, Percent, Plain};
    let reports = vec![
        report("loans_issued", "Loans issued", Number, None, &[("loans_issued", Integer)], None),
        report("revenue", "Revenue", Number, None, &[("revenue", Money)], None),
        report("outstanding", "Outstanding balance", Number, None, &[("outstanding", Money)], None),
        report("default_rate", "Default rate", Number, None, &[("default_rate", Percent)], None),
        report(
            "monthly_revenue",
            "Monthly revenue",
            Bar,
            Some("month"),
            &[("interest", Money), ("penalties", Money)],
            Some("from"),
        ),
        report("status", "Loan status", Pie, Some("status"), &[("loans", Integer)], Some("status")),
        report("methods", "Payment methods", Pie, Some("method"), &[("amount", Money)], Some("method")),
        report(
            "top_customers",
            "Top customers",
            HorizontalBar,
            Some("customer"),
            &[("total_paid", Money)],
            Some("customer"),
        ),
        report("payments_line", "Payments a month", Line, Some("month"), &[("payments", Integer)], Some("from")),
        report(
            "branches",
            "Branch performance",
            Table,
            Some("branch"),
            &[("loans", Integer), ("collected", Money), ("default_rate", Percent)],
            Some("branch"),
        ),
        report("payments", "Payments", Table, Some("payment_id"), &[("amount", Money), ("customer", Plain)], None),
    ];
    let tile = |report: &str, width| Tile { report: report.into(), width, title: None };
    let dashboard = Dashboard {
        slug: "loans".into(),
        title: "Loans".into(),
        description: "What was lent, what came back, and who pays.".into(),
        filters: params(),
        tiles: vec![
            tile("loans_issued", 3),
            tile("revenue", 3),
            tile("outstanding", 3),
            tile("default_rate", 3),
            tile("monthly_revenue", 8),
            tile("status", 4),
            tile("top_customers", 6),
            tile("payments_line", 6),
            tile("methods", 4),
            tile("branches", 8),
        ],
    };
    let risk = Dashboard {
        slug: "arrears".into(),
        title: "Arrears".into(),
        description: "What is late.".into(),
        filters: vec![],
        tiles: vec![tile("default_rate", 3), tile("branches", 9)],
    };
    ReportCatalog {
        reports,
        dashboards: vec![Arc::new(risk), Arc::new(dashboard)],
        currency: Some("KES".into()),
        default_dashboard: Some("loans".into()),
    }
}

/// Reader and operator at once; everything follows from the clock.
#[derive(Debug)]
pub(crate) struct Source {
    clock: Arc<dyn Clock>,
    /// Statements asked for, newest last.
    asked: Mutex<Vec<String>>,
    /// A statement that fails from now on.
    refused: Mutex<Option<String>>,
    primary_stopped: AtomicBool,
    cluster: Mutex<ClusterSummary>,
    /// Newest first, over what had happened before.
    events: Mutex<Result<Vec<Entry>, OperateError>>,
}

fn column(name: &str, value_type: ValueType) -> ResultColumn {
    ResultColumn { name: name.into(), value_type }
}

const MONEY: ValueType = ValueType::Decimal { precision: 38, scale: 2 };

fn money(cents: i64) -> Value {
    Value::Decimal { unscaled: i128::from(cents), scale: 2 }
}

fn text(text: impl Into<String>) -> Value {
    Value::Text(text.into().into())
}

type Answer = (Vec<ResultColumn>, Vec<Vec<Value>>);

impl Source {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let cluster = ClusterSummary {
            primary: Some("a".into()),
            primary_ready: true,
            term: 4,
            members: vec!["b".into(), "c".into()],
            quorum: 1,
            failover: true,
            paused: false,
        };
        let events = Mutex::new(Ok(past(clock.wall())));
        let (asked, refused, primary_stopped) = Default::default();
        Self { clock, asked, refused, primary_stopped, cluster: Mutex::new(cluster), events }
    }

    /// The last statement asked for.
    #[allow(dead_code, reason = "for the tests that share this file")]
    pub(crate) fn last_asked(&self) -> Option<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }

    /// Lets a statement fail from now on.
    #[allow(dead_code, reason = "for the tests that share this file")]
    pub(crate) fn refuse(&self, sql: &str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(sql.to_owned());
    }

    /// The primary answers no more.
    #[allow(dead_code, reason = "for the tests that share this file")]
    pub(crate) fn stop_primary(&self) {
        self.primary_stopped.store(true, Ordering::SeqCst);
    }

    /// Changes what is said of the cluster.
    #[allow(dead_code, reason = "for the tests that share this file")]
    pub(crate) fn change(&self, change: impl FnOnce(&mut ClusterSummary)) {
        change(&mut self.cluster.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes what has happened.
    #[allow(dead_code, reason = "for the tests that share this file")]
    pub(crate) fn rewrite(&self, rewrite: impl FnOnce(&mut Result<Vec<Entry>, OperateError>)) {
        rewrite(&mut self.events.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn beat(&self) -> i64 {
        i64::try_from(self.clock.monotonic().as_secs() / 2).unwrap_or(0)
    }

    fn now(&self) -> Freshness {
        let now = self.clock.wall().0;
        Freshness {
            watermark: Lsn(0x1_4A3B_0000 + u64::try_from(self.beat() * 7919).unwrap_or(0)),
            commit_time: Micros(now - 1_400_000),
            confirmed_at: Micros(now - 600_000),
            run_id: FIRST_RUN + self.beat(),
        }
    }

    fn answer(&self, sql: &str) -> Answer {
        let b = self.beat();
        let customers = [
            "Amina Otieno",
            "Njoroge & Sons Ltd",
            "Lakeview Agrovet",
            "Grace Wanjiku",
            "Baraka Transporters",
            "Mwangi Hardware",
            "Coastal Fisheries Cooperative Society",
            "Joseph Kiptoo",
            "Zawadi Textiles",
            "=HYPERLINK(\"http://x\",\"<b>Halima</b>\")",
        ];
        let branches = ["NBO-01", "MBA-02", "KSM-03", "NKR-04", "ELD-05", "THK-06"];
        let month = |i: i64| Value::Date(i32::try_from(19_368 + i * 365 / 12).unwrap_or(0));
        match sql {
            "loans_issued" => (vec![column("loans_issued", ValueType::Int8)], vec![vec![Value::Int(18_204 + b)]]),
            "revenue" => (vec![column("revenue", MONEY)], vec![vec![money(8_412_903_455 + b * 173_321)]]),
            "outstanding" => (vec![column("outstanding", MONEY)], vec![vec![money(31_220_118_040 - b * 99_100)]]),
            "default_rate" => (vec![column("default_rate", ValueType::Float8)], vec![vec![Value::Float(0.0374)]]),
            "monthly_revenue" => (
                vec![column("month", ValueType::Date), column("interest", MONEY), column("penalties", MONEY)],
                (0..24i64)
                    .map(|i| {
                        let wave = (i * 37) % 11 * 900_000;
                        let grow = if i == 23 { b * 300_000 } else { 0 };
                        vec![
                            month(i),
                            money(18_000_000 + i * 1_450_000 + wave + grow),
                            money(900_000 + (i * 53) % 7 * 210_000),
                        ]
                    })
                    .collect(),
            ),
            "payments_line" => (
                vec![column("month", ValueType::Date), column("payments", ValueType::Int8)],
                (0..24i64).map(|i| vec![month(i), Value::Int(3_100 + i * 95 + (i * 29) % 13 * 60)]).collect(),
            ),
            "status" => (
                vec![column("status", ValueType::Text), column("loans", ValueType::Int8)],
                [("active", 9_120 + b), ("repaid", 7_844), ("pending", 560), ("defaulted", 680)]
                    .map(|(s, n)| vec![text(s), Value::Int(n)])
                    .to_vec(),
            ),
            "methods" => (
                vec![column("method", ValueType::Text), column("amount", MONEY)],
                [
                    ("mpesa", 4_912_000_000i64),
                    ("bank_transfer", 2_204_000_000),
                    ("cash", 901_000_000),
                    ("cheque", 212_000_000),
                    ("online", 640_000_000),
                ]
                .map(|(m, n)| vec![text(m), money(n)])
                .to_vec(),
            ),
            "top_customers" => (
                vec![column("customer", ValueType::Text), column("total_paid", MONEY)],
                customers
                    .iter()
                    .zip(0i64..)
                    .map(|(c, i)| vec![text(*c), money(182_000_000 - i * 14_350_000 + i * i * 310_000)])
                    .collect(),
            ),
            "branches" => (
                vec![
                    column("branch", ValueType::Text),
                    column("loans", ValueType::Int8),
                    column("collected", MONEY),
                    column("default_rate", ValueType::Float8),
                ],
                branches
                    .iter()
                    .zip(0i32..)
                    .map(|(name, i)| {
                        vec![
                            text(*name),
                            Value::Int(4_200 - i64::from(i) * 512),
                            money(2_300_000_000 - i64::from(i) * 301_000_000),
                            Value::Float(0.021 + f64::from(i * 7 % 5) * 0.006),
                        ]
                    })
                    .collect(),
            ),
            _ => (
                vec![
                    column("payment_id", ValueType::Int8),
                    column("paid_at", ValueType::TimestampTz),
                    column("customer", ValueType::Text),
                    column("amount", MONEY),
                ],
                (0..240i64)
                    .map(|i| {
                        vec![
                            Value::Int(90_000 + i),
                            Value::TimestampTz(1_704_000_000_000_000 + i * 86_400_000_000 / 5),
                            text(customers[usize::try_from(i % 10).unwrap_or(0)]),
                            money(120_000 + (i * 7_919) % 90_000),
                        ]
                    })
                    .collect(),
            ),
        }
    }
}

impl Reader for Source {
    fn query(&self, query: Query) -> BoxFuture<'_, Result<RowStream, QueryError>> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(query.sql.clone());
        if asked.len() > 100 {
            asked.clear();
        }
        drop(asked);
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(&query.sql);
        Box::pin(async move {
            if refused {
                return Err(QueryError { sqlstate: "57014", message: "canceled".into(), hint: None });
            }
            for value in &query.params {
                match value {
                    Value::Text(text) if &**text == "FAIL" => {
                        return Err(QueryError {
                            sqlstate: "22012",
                            message: "division by zero".into(),
                            hint: Some("choose another branch".into()),
                        });
                    }
                    // longer than a page waits
                    Value::Text(text) if &**text == "LATE" && query.sql == "methods" => {
                        tokio::time::sleep(Duration::from_secs(3)).await
                    }
                    _ => {}
                }
            }
            let (columns, rows) = if query.sql == "branches" && query.params.is_empty() {
                let list = ["NBO-01", "MBA-02", "KSM-03", "FAIL", "LATE"];
                (vec![column("branch", ValueType::Text)], list.map(|b| vec![text(b)]).to_vec())
            } else {
                self.answer(
                    query
                        .sql
                        .split_whitespace()
                        .find(|w| !["SELECT", "*", "FROM", "("].contains(w))
                        .unwrap_or(&query.sql),
                )
            };
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let sent = sender.try_send(Ok(rows));
            debug_assert!(sent.is_ok());
            Ok(RowStream { columns, freshness: self.now(), rows: receiver })
        })
    }

    fn describe(&self, sql: &str) -> BoxFuture<'_, Result<(Vec<ResultColumn>, usize), QueryError>> {
        let (columns, _) = self.answer(sql);
        Box::pin(async move { Ok((columns, 3)) })
    }

    fn freshness(&self) -> BoxFuture<'_, Result<Freshness, QueryError>> {
        Box::pin(async { Ok(self.now()) })
    }

    fn release(&self, _name: &str) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// Four terms, the newest event first.
fn past(now: Micros) -> Vec<Entry> {
    let elected = |from: &str, to: &str, why: &str| Event::Elected {
        from: from.into(),
        to: to.into(),
        why: why.into(),
        missing_bytes: None,
    };
    let promoted =
        |node: &str, after, away| Event::Promoted { node: node.into(), after_ms: Some(after), away_ms: Some(away) };
    let promise = |setting: &str| Event::Promise { setting: setting.into() };
    let (minute, day) = (60, 86_400);
    let events = [
        (2 * 3600 + 3 * minute - 9, 4, promise("ANY 1 (\"b\", \"c\")")),
        (2 * 3600 + 3 * minute - 2, 4, promise("ANY 1 (\"b\")")),
        (2 * 3600 + 3 * minute, 4, promoted("a", 231, 3_412)),
        (2 * 3600 + 3 * minute, 4, elected("c", "a", "has not answered for 3.0 s")),
        (3 * day - 20 * minute, 3, Event::Paused { paused: false }),
        (3 * day, 3, Event::Paused { paused: true }),
        (5 * day - 4, 3, promise("ANY 1 (\"a\", \"b\")")),
        (5 * day, 3, promoted("c", 204, 1_180)),
        (5 * day, 3, elected("b", "c", "is handed over to c")),
        (9 * day - 14, 2, promise("ANY 1 (\"a\", \"c\")")),
        (9 * day - 3, 2, promise("ANY 1 (\"c\")")),
        (9 * day, 2, promoted("b", 246, 517)),
        (9 * day, 2, elected("a", "b", "the server was killed by signal 9")),
        (26 * day - 11, 1, promise("ANY 1 (\"b\", \"c\")")),
    ];
    events.map(|(ago, term, event)| Entry { at: Micros(now.0 - ago * 1_000_000), term, event }).into()
}

fn run(id: i64, now: Micros) -> RunStatus {
    let failed = id % 37 == 0;
    RunStatus {
        run_id: id,
        kind: if id == 1 { "initial_copy" } else { "changes" }.into(),
        status: if failed { "failed" } else { "succeeded" }.into(),
        started_at: Micros(now.0 - (FIRST_RUN + 100 - id) * 2_000_000),
        duration_ms: Some(u64::try_from(20 + id * 7 % 60).unwrap_or(0)),
        rows_inserted: u64::try_from(id * 13 % 900).unwrap_or(0),
        rows_updated: u64::try_from(id * 31 % 300).unwrap_or(0),
        rows_deleted: u64::try_from(id % 5).unwrap_or(0),
        watermark: Lsn(0x1_4A3B_0000 + u64::try_from(id * 100).unwrap_or(0)),
        error: failed.then(|| "the warehouse cannot commit now: no space left on device".into()),
    }
}

impl Operator for Source {
    fn status(&self) -> BoxFuture<'_, PlatformStatus> {
        let now = self.clock.wall();
        let stopped = self.primary_stopped.load(Ordering::SeqCst);
        let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner).clone();
        cluster.primary_ready &= !stopped;
        let node = |name: &str, port, role, lag: Option<u64>| NodeStatus {
            name: name.into(),
            host: "127.0.0.1".into(),
            port,
            role,
            state: match role {
                NodeRole::Primary if stopped => NodeState::Unresponsive,
                _ => NodeState::Running,
            },
            pid: Some(4711),
            since: Some(Micros(now.0 - 7_412_000_000)),
            timeline: Some(4),
            lsn: Some(self.now().watermark),
            lag_bytes: lag,
            streaming: lag.map(|_| true),
            failover_priority: 1,
            apply_delay_s: None,
            leaving: false,
            pending_restart: Vec::new(),
            doing: match lag {
                None => "accepts writes".into(),
                Some(0) => "streams from a".into(),
                Some(bytes) => format!("streams from a, {bytes} bytes behind"),
            },
        };
        let status = PlatformStatus {
            name: "Kilima Finance".into(),
            version: "0.1.0".into(),
            pid: 4242,
            started_at: Micros(now.0 - 7_420_000_000),
            now,
            cluster,
            nodes: vec![
                node("a", 5440, NodeRole::Primary, None),
                node("b", 5441, NodeRole::Replica, Some(0)),
                node("c", 5442, NodeRole::Replica, Some(18_440)),
            ],
            slots: vec![
                SlotStatus {
                    name: "node_b".into(),
                    slot_type: "physical".into(),
                    active: true,
                    retained_bytes: Some(0),
                    safe_wal_bytes: Some(4_000_000_000),
                    wal_status: Some("reserved".into()),
                },
                SlotStatus {
                    name: "node_c".into(),
                    slot_type: "physical".into(),
                    active: true,
                    retained_bytes: Some(18_440),
                    safe_wal_bytes: Some(4_000_000_000),
                    wal_status: Some("reserved".into()),
                },
                SlotStatus {
                    name: "millrace_capture".into(),
                    slot_type: "logical".into(),
                    active: true,
                    retained_bytes: Some(55_000),
                    safe_wal_bytes: Some(4_000_000_000),
                    wal_status: Some("reserved".into()),
                },
            ],
            capture: CaptureStatus {
                state: CaptureState::Streaming,
                watermark: self.now().watermark,
                source_lsn: self.now().watermark,
                lag_bytes: 812,
                lag_ms: 340,
                changes_applied: 1_204_881,
                quarantined: vec![],
            },
            last_run: Some(run(FIRST_RUN + self.beat(), now)),
            disks: vec![DiskStatus {
                path: "/srv/platform".into(),
                free_bytes: 61_000_000_000,
                total_bytes: 100_000_000_000,
                used_bytes: 3_400_000_000,
            }],
            listeners: vec![
                ListenerStatus { name: "console".into(), address: "127.0.0.1:8400".into() },
                ListenerStatus { name: "proxy".into(), address: "127.0.0.1:6432".into() },
                ListenerStatus { name: "read-only".into(), address: "127.0.0.1:6433".into() },
                ListenerStatus { name: "warehouse".into(), address: "127.0.0.1:5435".into() },
            ],
            proxy: ProxyStatus {
                up: true,
                clients: 214,
                failed_logins: 3,
                pools: vec![pool("app", false, 180, 2), pool("reporting", true, 34, 0)],
                time_bounds_us: (0..20).map(|at| 50 << at).collect(),
            },
            backup: Some(BackupStatus {
                repository: "s3://kilima-backups/production".into(),
                connected: true,
                durable: self.now().watermark,
                backlog_bytes: 81_920,
                failing: None,
                backups: 28,
                last: None,
                proven: Some(("backup-00".into(), Micros(now.0 - 28_200_000_000))),
                unproven: None,
                uncompared: vec![],
                failed: None,
                away: Vec::new(),
            }),
            memory_bytes: 412_000_000,
            findings: if self.beat() % 40 < 20 {
                vec![]
            } else {
                vec![Finding {
                    severity: Severity::Warning,
                    subject: "node c".into(),
                    what: "replays 18 KiB behind the primary".into(),
                    since: Some(Micros(now.0 - 61_000_000)),
                    what_to_do: "millrace logs c".into(),
                }]
            },
        };
        Box::pin(async { status })
    }

    fn runs(&self, limit: usize) -> BoxFuture<'_, Result<Vec<RunStatus>, OperateError>> {
        let now = self.clock.wall();
        let newest = FIRST_RUN + self.beat();
        Box::pin(async move { Ok((1..=newest).rev().take(limit).map(|id| run(id, now)).collect()) })
    }

    fn history(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Entry>, OperateError>> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move { events.map(|events| events.into_iter().take(limit).collect()) })
    }

    fn verify(&self) -> BoxFuture<'_, Result<Vec<Check>, OperateError>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn prove(&self) -> BoxFuture<'_, Result<Proof, OperateError>> {
        Box::pin(async { Err(OperateError { message: "there is nothing to compare".into(), hint: None }) })
    }

    fn backups(&self) -> BoxFuture<'_, Result<Option<Backups>, OperateError>> {
        let now = self.clock.wall();
        Box::pin(async move { Ok(Some(backups::all(now))) })
    }

    fn restore_plan(&self, _: Micros) -> BoxFuture<'_, Result<RestorePlan, OperateError>> {
        Box::pin(async move { Ok(backups::plan()) })
    }

    fn resync(&self, _table: &str) -> BoxFuture<'_, Result<(), OperateError>> {
        Box::pin(async { Ok(()) })
    }
}
