//! What a good file becomes, what `init` makes, and that the reference page is current.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_base::{Micros, tls::is_private};
use millrace_config::{
    Config, ConfigError, InitOptions, Pack, PoolMode, PoolSettings, Secrets, fallback_data_dir, init,
    pack::MigrationKind,
};
use millrace_contract::report::{ChartKind, Format, ParamType};

const NOW: Micros = Micros(1_750_000_000_000_000);

fn parse(text: &str) -> Config {
    Config::parse(Path::new("p/millrace.toml"), text).expect("a good file")
}

fn small_pack() -> Pack {
    let files: BTreeMap<String, String> = [
        (
            "pack.toml",
            "name = \"small\"\ntitle = \"Small\"\nversion = \"1\"\ndatabase = \"d\"\nschema = \"s\"\ncurrency = \"KES\"\ndefault_dashboard = \"main\"\n\
             [[roles]]\nname = \"app_user\"\nlogin = true\nconnect = [\"d\"]\n[[roles]]\nname = \"rights\"\n",
        ),
        ("migrations/V1__tables.sql", "CREATE TABLE t();"),
        ("models/a.toml", "x = 1"),
        (
            "reports/revenue.sql",
            "-- title: Revenue\n-- description: What was paid\n-- param: from date \"From\" = 2024-01-01\n-- param: kind text \"Kind\"\n\
             -- choices: kind: SELECT DISTINCT kind\n--    FROM kinds\n-- chart: line\n-- x: month\n-- y: paid, owed\n\
             -- format: paid=money, month=month\n-- drill: payments(day=month)\n\n\
             SELECT month, paid, owed FROM f WHERE d >= :from::date AND (:kind IS NULL OR kind = :kind);\n",
        ),
        ("reports/payments.sql", "-- title: Payments\n-- param: day date \"Day\"\nSELECT * FROM p WHERE d = :day"),
        (
            "dashboards/main.toml",
            "title = \"Main\"\nfilters = [{ name = \"from\", type = \"date\", label = \"From\" }]\n[[tile]]\nreport = \"revenue\"\nwidth = 12\n",
        ),
        ("simulate/pay.sql", "-- name: pay\n-- weight: 2.5\nSELECT 1"),
        ("berka/10.sql", "SELECT 1"),
    ]
    .map(|(p, t)| (p.to_owned(), t.to_owned()))
    .into();
    Pack::parse(Path::new("small"), files).expect("a good pack")
}

#[test]
fn defaults_are_those_of_the_reference() {
    let config = parse("[platform]\nname = \"loans\"\n");
    assert_eq!(config.platform.data_dir, PathBuf::from("p/data"));
    assert_eq!(config.platform.user, "postgres");
    let nodes: Vec<_> = config.cluster.nodes.iter().map(|n| (n.name.as_str(), n.port)).collect();
    assert_eq!(nodes, [("a", 5440), ("b", 5441), ("c", 5442)]);
    assert_eq!(config.pack_dir, PathBuf::from("p/pack"));
    assert_eq!(config.capture.batch_interval, Duration::from_secs(1));
    assert_eq!(config.capture.batch_rows_max, 50_000);
    assert_eq!(config.capture.batch_bytes_max, 64 << 20);
    assert_eq!(config.capture.slot_retention_max_bytes, 8 << 30);
    assert_eq!((config.warehouse.port, config.warehouse.memory_limit_bytes), (5435, 1 << 30));
    assert_eq!((config.warehouse.threads, config.warehouse.max_connections), (2, 100));
    assert_eq!(config.console.port, 8400);
    assert_eq!(config.listeners().len(), 7);
    let proxy = &config.proxy;
    assert_eq!((proxy.port, proxy.read_only_port, proxy.pool.size, proxy.max_client_conn), (6432, 6433, 25, 1_000));
    assert_eq!(
        (proxy.pool.mode, proxy.require_tls, proxy.replica_lag_max_bytes),
        (PoolMode::Transaction, true, 64 << 20)
    );
    assert!(proxy.databases.is_empty() && proxy.users.is_empty() && !proxy.auth_query);
}

#[test]
fn a_database_of_the_proxy_has_what_holds_for_all_but_for_what_it_says() {
    let config = parse(
        "[platform]\nname = \"l\"\n[proxy]\npool_size = 7\nserver_lifetime_s = 60\nmax_db_connections = 50\nauth_query = true\n\
         [[proxy.databases]]\nname = \"Some Base\"\npool_mode = \"session\"\nserver_lifetime_s = 5\nmax_connections = 3\n\
         [[proxy.databases]]\nname = \"other\"\n[[proxy.users]]\nname = \"app_user\"\nmax_connections = 9\n",
    );
    let proxy = &config.proxy;
    let [some, other] = proxy.databases.as_slice() else { panic!("{:?}", proxy.databases) };
    assert_eq!((some.name.as_str(), some.max_connections, other.max_connections), ("Some Base", Some(3), None));
    assert_eq!(
        some.pool,
        PoolSettings { mode: PoolMode::Session, server_lifetime: Duration::from_secs(5), ..proxy.pool }
    );
    assert_eq!((some.pool.size, other.pool), (7, proxy.pool));
    assert_eq!((proxy.users[0].name.as_str(), proxy.users[0].max_connections), ("app_user", 9));
    assert!(proxy.auth_query);
}

#[test]
fn settings_are_written_as_postgresql_reads_them() {
    let config = parse(
        "[platform]\nname = \"l\"\n[postgres.settings]\nWork_Mem = \"32MB\"\nmax_connections = 200\njit = false\nrandom_page_cost = 1.1\n",
    );
    let settings: Vec<_> = config.postgres.settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        settings,
        [("jit", "off"), ("max_connections", "200"), ("random_page_cost", "1.1"), ("work_mem", "32MB")]
    );
}

#[test]
fn a_pack_is_read_whole() {
    let pack = small_pack();
    assert_eq!(pack.login_roles().collect::<Vec<_>>(), ["app_user"]);
    assert!(matches!(pack.migrations[0].kind, MigrationKind::Versioned(_)));
    assert_eq!(pack.models[0].path, PathBuf::from("small/models/a.toml"));
    assert_eq!(pack.simulate[0].weight, 2.5);
    assert_eq!(pack.file("berka/10.sql"), Some("SELECT 1"));
    assert_eq!(pack.catalog.currency.as_deref(), Some("KES"));
    let report = pack.catalog.report("revenue").unwrap();
    assert_eq!(report.sql, "SELECT month, paid, owed FROM f WHERE d >= $1::date AND ($2 IS NULL OR kind = $2)");
    assert!(report.source_sql.contains(":from::date"));
    assert_eq!(report.params[0].param_type, ParamType::Date);
    assert_eq!(report.params[0].default.as_deref(), Some("2024-01-01"));
    assert_eq!(report.params[1].choices_sql.as_deref(), Some("SELECT DISTINCT kind\nFROM kinds"));
    assert_eq!((report.chart, report.x.as_deref()), (ChartKind::Line, Some("month")));
    assert_eq!(report.formats, [("paid".to_owned(), Format::Money), ("month".to_owned(), Format::Month)]);
    let drill = report.drill.as_ref().unwrap();
    assert_eq!(drill.bind, [("day".to_owned(), "month".to_owned())]);
    assert_eq!(pack.catalog.dashboard("main").unwrap().tiles[0].width, 12);
}

#[test]
fn every_embedded_pack_is_good() {
    let names = Pack::embedded_names();
    assert!(names.contains(&"loans".to_owned()), "{names:?}");
    for name in names {
        let pack = Pack::embedded(&name).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(pack.name, name);
        assert!(!pack.migrations.is_empty());
    }
}

#[test]
fn init_makes_a_platform_that_loads() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("deep/platform");
    let options = InitOptions { base_port: Some(7000), ..InitOptions::default() };
    let report = init(&folder, &small_pack(), &options, NOW).unwrap();
    assert!(!report.repeated);
    let config = Config::load(&folder).unwrap();
    assert_eq!(config.platform.name, "small");
    let ports: Vec<u16> = config.listeners().iter().map(|(_, address)| address.port()).collect();
    assert_eq!(ports, [7000, 7001, 7002, 7005, 7006, 7003, 7004]);
    let secrets = Secrets::load(&config.secrets_path()).unwrap();
    assert_eq!(secrets.roles.keys().collect::<Vec<_>>(), ["app_user", "etl_reader"]);
    assert_eq!(secrets.superuser.reveal().len(), 32);
    assert_ne!(secrets.superuser, secrets.replicator);
    assert!(is_private(&config.secrets_path()).unwrap());
    assert!(is_private(&config.tls().server_key()).unwrap());
    config.tls().server_config(&[]).unwrap();
    assert_eq!(Pack::load(&config.pack_dir).unwrap().name, "small");
    assert!(fs::read_to_string(folder.join(".gitignore")).unwrap().contains("/secrets.toml"));
    let toml = fs::read_to_string(folder.join("millrace.toml")).unwrap();
    assert!(!toml.contains(secrets.superuser.reveal()));
}

#[test]
fn the_commented_defaults_of_init_are_the_defaults() {
    let place = tempfile::tempdir().unwrap();
    init(place.path(), &small_pack(), &InitOptions::default(), NOW).unwrap();
    let path = place.path().join("millrace.toml");
    let text = fs::read_to_string(&path).unwrap();
    let as_made = Config::parse(&path, &text).unwrap();
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.contains(" = ") && !key.starts_with("bin_dir") && !key.starts_with("settings") => {
                format!("{key}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(text, uncommented);
    assert_eq!(Config::parse(&path, &uncommented).unwrap(), as_made);
}

#[test]
fn a_data_folder_elsewhere_comes_with_its_reason() {
    let place = tempfile::tempdir().unwrap();
    let data = fallback_data_dir("small", place.path());
    assert!(data.starts_with("/var/lib/millrace"));
    assert_ne!(data, fallback_data_dir("small", Path::new("/elsewhere")));
    let options = InitOptions {
        data_dir: Some((data.clone(), "the account cannot\nenter here".to_owned())),
        ..InitOptions::default()
    };
    init(place.path(), &small_pack(), &options, NOW).unwrap();
    assert_eq!(Config::load(place.path()).unwrap().platform.data_dir, data);
    let toml = fs::read_to_string(place.path().join("millrace.toml")).unwrap();
    assert!(toml.contains("# the account cannot\n# enter here\ndata_dir = "), "{toml}");
}

#[test]
fn init_never_overwrites() {
    let place = tempfile::tempdir().unwrap();
    let pack = small_pack();
    fs::write(place.path().join("diary.txt"), "mine").unwrap();
    let refused = init(place.path(), &pack, &InitOptions::default(), NOW);
    assert!(matches!(refused, Err(ConfigError::NotEmpty { entry, .. }) if entry == "diary.txt"));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);

    let folder = place.path().join("platform");
    init(&folder, &pack, &InitOptions::default(), NOW).unwrap();
    let before = fs::read(folder.join("secrets.toml")).unwrap();
    let refused = init(&folder, &pack, &InitOptions::default(), NOW);
    assert!(matches!(refused, Err(ConfigError::PlatformExists { .. })));
    assert_eq!(fs::read(folder.join("secrets.toml")).unwrap(), before);
}

#[test]
fn an_interrupted_init_is_repeated() {
    let place = tempfile::tempdir().unwrap();
    let pack = small_pack();
    let folder = place.path();
    fs::write(folder.join(".millrace-init"), "").unwrap();
    fs::write(folder.join("secrets.toml.new"), "half").unwrap();
    fs::create_dir(folder.join("pack")).unwrap();
    fs::write(folder.join("pack/old.sql"), "").unwrap();
    assert!(init(folder, &pack, &InitOptions::default(), NOW).unwrap().repeated);
    assert!(!folder.join("pack/old.sql").exists() && !folder.join(".millrace-init").exists());
    Config::load(folder).unwrap();

    // a stranger's file beside the marker is never removed
    fs::write(folder.join(".millrace-init"), "").unwrap();
    fs::write(folder.join("diary.txt"), "mine").unwrap();
    let refused = init(folder, &pack, &InitOptions::default(), NOW);
    assert!(matches!(refused, Err(ConfigError::NotEmpty { entry, .. }) if entry == "diary.txt"));
    assert!(folder.join("millrace.toml").exists());
}

#[test]
fn wrong_options_change_nothing() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("platform");
    for options in [
        InitOptions { name: Some("No Good".to_owned()), ..InitOptions::default() },
        InitOptions { base_port: Some(65_533), ..InitOptions::default() },
        InitOptions { user: Some("root".to_owned()), ..InitOptions::default() },
    ] {
        assert!(init(&folder, &small_pack(), &options, NOW).is_err());
        assert!(!folder.exists());
    }
}

#[test]
fn secrets_round_trip_and_grow() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("secrets.toml");
    let mut secrets = Secrets::generate(["a"]);
    secrets.write(&path).unwrap();
    assert_eq!(Secrets::load(&path).unwrap(), secrets);
    assert_eq!(secrets.complete(["a", "b", "warehouse_reader"]), ["b", "warehouse_reader"]);
    assert_eq!(secrets.roles["warehouse_reader"], secrets.warehouse_reader);
    secrets.write(&path).unwrap();
    assert_eq!(Secrets::load(&path).unwrap(), secrets);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Secrets::load(&path), Err(ConfigError::SecretsOpen { mode: 0o640, .. })));
}

#[test]
fn a_base_of_copies_is_left_by_proofs_only() {
    let text = |keys: &str| format!("[platform]\nname = \"p\"\n[backup]\nrepository = \"b\"\n{keys}");
    let of = |keys: &str| parse(&text(keys)).backup.expect("a [backup]").clone_base;
    assert!(!of("") && !of("prove = false") && of("clone_base = true"));
    let error = Config::parse(Path::new("p/millrace.toml"), &text("prove = false\nclone_base = true\n")).unwrap_err();
    let said = format!("{error}\n{}", error.hint().unwrap_or_default());
    assert!(said.contains("`clone_base` needs the proofs that `prove = false` turns off"), "{said}");
    assert!(said.contains("remove one of both"), "{said}");
}

#[test]
fn the_reference_page_is_current() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let found = fs::read_to_string(page).unwrap_or_default();
    assert!(found == millrace_config::reference(), "docs/configuration.md is not current: run `make docs`");
}
