//! Every message about a platform's files, as a person sees it: snapshots of whole texts.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use millrace_config::{Config, ConfigError, Pack, Secrets};

/// A message with its hint, as the command line shows it.
fn shown(error: &ConfigError) -> String {
    match error.hint() {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    }
}

/// What is said about each of `cases`, one below the other.
fn messages(cases: &[(&str, &str)], parse: impl Fn(&str) -> Result<(), ConfigError>) -> String {
    let mut page = String::new();
    for (what, text) in cases {
        let error = parse(text).expect_err(what);
        page.push_str(&format!("── {what}\n{}\n\n", shown(&error)));
    }
    page
}

fn platform(text: &str) -> Result<(), ConfigError> {
    Config::parse(Path::new("platform/millrace.toml"), text).map(|_| ())
}

#[test]
fn text_that_is_not_toml() {
    insta::assert_snapshot!(messages(
        &[
            ("a value is missing", "[platform]\nname = \n"),
            ("a quote is not closed", "[platform]\nname = \"loans\nuser = \"postgres\"\n"),
            ("a bracket is not closed", "[platform\nname = \"loans\"\n"),
            ("a key is given twice", "[platform]\nname = \"a\"\nname = \"b\"\n"),
            ("a word without quotes", "[platform]\nname = loans\n"),
        ],
        platform
    ));
}

#[test]
fn keys_and_types() {
    insta::assert_snapshot!(messages(
        &[
            ("an unknown key, near a known one", "[platform]\nname = \"loans\"\ndata_dri = \"x\"\n"),
            ("an unknown key, near none", "[platform]\nname = \"loans\"\ncolour = \"x\"\n"),
            ("an unknown table", "[platform]\nname = \"loans\"\n[warehose]\nport = 5435\n"),
            ("a required table is missing", "[capture]\n"),
            ("a required key is missing", "[platform]\nuser = \"postgres\"\n"),
            ("an integer for a text", "[platform]\nname = 12\n"),
            ("a text for an integer", "[platform]\nname = \"l\"\n[console]\nport = \"8400\"\n"),
            ("a value for a table", "platform = \"loans\"\n"),
            ("a value for an array of tables", "[platform]\nname = \"l\"\n[cluster]\nnodes = 3\n"),
            ("a fraction for an integer", "[platform]\nname = \"l\"\n[capture]\nbatch_rows_max = 1.5\n"),
            ("out of range", "[platform]\nname = \"l\"\n[capture]\ncopy_workers = 0\n"),
            ("a negative number", "[platform]\nname = \"l\"\n[capture]\ncopy_workers = -2\n"),
            (
                "a column after characters of several bytes",
                "[platform]\nname = \"l\"\n[cluster]\nnodes = [{ name = \"zürich\", prot = 1 }]\n",
            ),
        ],
        platform
    ));
}

#[test]
fn databases_and_users_of_the_proxy() {
    let with = |proxy: &str| format!("[platform]\nname = \"l\"\n{proxy}");
    let cases = [
        ("an unknown key", with("[[proxy.databases]]\nname = \"a\"\nport = 6432\n")),
        ("no name", with("[[proxy.databases]]\npool_size = 5\n")),
        ("an empty name", with("[[proxy.users]]\nname = \"\"\nmax_connections = 5\n")),
        ("out of range", with("[[proxy.databases]]\nname = \"a\"\npool_size = 0\n")),
        ("a mode that there is not", with("[[proxy.databases]]\nname = \"a\"\npool_mode = \"sesion\"\n")),
        ("twice", with("[[proxy.databases]]\nname = \"a\"\n[[proxy.databases]]\nname = \"a\"\npool_size = 5\n")),
        ("a user without a limit", with("[[proxy.users]]\nname = \"a\"\n")),
        ("a table for an array of them", with("[proxy.databases]\nname = \"a\"\n")),
    ];
    let cases: Vec<_> = cases.iter().map(|(what, text)| (*what, text.as_str())).collect();
    insta::assert_snapshot!(messages(&cases, platform));
}

#[test]
fn names_ports_addresses() {
    insta::assert_snapshot!(messages(
        &[
            ("an empty name", "[platform]\nname = \"\"\n"),
            ("a bad letter in a name", "[platform]\nname = \"Loans EU\"\n"),
            ("servers as root", "[platform]\nname = \"l\"\nuser = \"root\"\n"),
            ("a privileged port", "[platform]\nname = \"l\"\n[console]\nport = 443\n"),
            ("a port beyond the last", "[platform]\nname = \"l\"\n[console]\nport = 70000\n"),
            (
                "a port used twice",
                "[platform]\nname = \"l\"\n[[cluster.nodes]]\nname = \"a\"\nport = 6000\n[console]\nport = 6000\n",
            ),
            ("a port used twice, once by default", "[platform]\nname = \"l\"\n[console]\nport = 5435\n"),
            ("a node's default port", "[platform]\nname = \"l\"\n[warehouse]\nport = 5441\n"),
            (
                "two nodes of one name",
                "[platform]\nname = \"l\"\n[[cluster.nodes]]\nname = \"a\"\nport = 6000\n[[cluster.nodes]]\nname = \"a\"\nport = 6001\n",
            ),
            ("no node", "[platform]\nname = \"l\"\n[cluster]\nnodes = []\n"),
            ("a host name", "[platform]\nname = \"l\"\n[console]\nlisten = \"localhost\"\n"),
            ("not an address", "[platform]\nname = \"l\"\n[console]\nlisten = \"10.0.0\"\n"),
            ("another engine", "[platform]\nname = \"l\"\n[warehouse]\nengine = \"clickhouse\"\n"),
        ],
        platform
    ));
}

#[test]
fn sizes_and_settings() {
    insta::assert_snapshot!(messages(
        &[
            ("a decimal unit", "[platform]\nname = \"l\"\n[capture]\nbatch_bytes_max = \"64MB\"\n"),
            ("no unit", "[platform]\nname = \"l\"\n[capture]\nbatch_bytes_max = \"64\"\n"),
            ("an unknown unit", "[platform]\nname = \"l\"\n[warehouse]\nmemory_limit = \"2 parsecs\"\n"),
            ("a number", "[platform]\nname = \"l\"\n[warehouse]\nmemory_limit = 1024\n"),
            ("too small", "[platform]\nname = \"l\"\n[warehouse]\nmemory_limit = \"1MiB\"\n"),
            ("too large", "[platform]\nname = \"l\"\n[capture]\nbatch_bytes_max = \"1TiB\"\n"),
            (
                "settings that are the platform's",
                "[platform]\nname = \"l\"\n[postgres]\nsettings = { WAL_level = \"minimal\", fsync = false, \"a b\" = 1, work_mem = [1] }\n",
            ),
            (
                "a setting of two lines",
                "[platform]\nname = \"l\"\n[postgres.settings]\nwork_mem = \"1MB'\\nport = 1\"\n"
            ),
        ],
        platform
    ));
}

#[test]
fn several_mistakes_at_once() {
    insta::assert_snapshot!(messages(
        &[(
            "in the order of the file",
            "[platform]\nname = \"Loans\"\n[capture]\nbatch_row_max = 5\nbatch_bytes_max = \"1GB\"\n[console]\nport = 5440\n",
        )],
        platform
    ));
}

#[test]
fn folders() {
    let place = tempfile::tempdir().unwrap();
    let hide = |text: String| text.replace(place.path().to_str().unwrap(), "DIR");
    let folder = place.path().join("platform");
    let mut page = hide(shown(&Config::load(&folder).unwrap_err()));
    fs::create_dir(&folder).unwrap();
    fs::write(
        folder.join("millrace.toml"),
        "[platform]\nname = \"l\"\n[postgres]\nbin_dir = \"/nowhere/bin\"\n[pack]\npath = \"millrace.toml\"\n",
    )
    .unwrap();
    page.push_str("\n\n");
    page.push_str(&hide(shown(&Config::load(&folder).unwrap_err())));
    fs::write(folder.join("millrace.toml"), [0xff, 0xfe]).unwrap();
    page.push_str("\n\n");
    page.push_str(&hide(shown(&Config::load(&folder).unwrap_err())));
    insta::assert_snapshot!(page);
}

#[test]
fn secrets() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("secrets.toml");
    let load = |text: &str, mode: u32| {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        shown(&Secrets::load(&path).unwrap_err()).replace(place.path().to_str().unwrap(), "DIR")
    };
    let mut page = shown(&Secrets::load(&path).unwrap_err()).replace(place.path().to_str().unwrap(), "DIR");
    for (what, text, mode) in [
        ("others may read it", "", 0o644),
        ("the group may write it", "", 0o620),
        ("keys are missing or unknown", "superuser = \"hunter2\"\nreplicater = \"hunter2\"\n[roles]\n", 0o600),
        (
            "an empty password and one without quotes",
            "superuser = \"\"\nreplicator = 12\nwarehouse_reader = \"w\"\nconsole_session_key = \"c\"\n[roles]\na = \"\"\nb = 7\n",
            0o600,
        ),
        ("a quote is not closed", "superuser = \"hunter2\n", 0o600),
    ] {
        page.push_str(&format!("\n\n── {what}\n{}", load(text, mode)));
    }
    assert!(!page.contains("hunter2"), "a password is shown:\n{page}");
    insta::assert_snapshot!(page);
}

#[test]
fn packs() {
    let place = tempfile::tempdir().unwrap();
    let unknown = |name: &str| shown(&Pack::find(name).unwrap_err()).replace(place.path().to_str().unwrap(), "DIR");
    let folder = place.path().join("empty");
    fs::create_dir(&folder).unwrap();
    insta::assert_snapshot!([unknown("loan"), unknown("zzz"), unknown(folder.to_str().unwrap())].join("\n\n"));
}

/// The messages about a pack made of `files` on top of a good `pack.toml`.
fn pack(files: &[(&str, &str)]) -> String {
    let manifest = "name = \"p\"\ntitle = \"P\"\nversion = \"1\"\ndatabase = \"d\"\nschema = \"s\"\n";
    let mut all = vec![("pack.toml", manifest)];
    all.extend_from_slice(files);
    let all = all.into_iter().map(|(p, t)| (p.to_owned(), t.to_owned())).collect();
    shown(&Pack::parse(&PathBuf::from("pack"), all).expect_err("a bad pack"))
}

#[test]
fn pack_manifest_and_migrations() {
    let manifest = "nmae = \"p\"\ntitle = \"P\"\nversion = \"1\"\ndatabase = \"d-b\"\nschema = \"s\"\ncurrency = \"Shilling\"\n\
                    default_dashboard = \"laons\"\n\
                    [[roles]]\nname = \"postgres\"\n[[roles]]\nname = \"r\"\nconnect = [\"d\"]\n[[roles]]\nname = \"r\"\nlogin = \"yes\"\n";
    insta::assert_snapshot!(pack(&[
        ("pack.toml", manifest),
        ("dashboards/loans.toml", "title = \"L\"\n[[tile]]\nreport = \"a\"\n"),
        ("reports/a.sql", "-- title: A\nSELECT 1\n"),
        ("migrations/V1__one.sql", ""),
        ("migrations/V1.0__again.sql", ""),
        ("migrations/V2_x.sql", ""),
        ("migrations/Vx__y.sql", ""),
        ("migrations/V3__.sql", ""),
        ("migrations/U9__gone.sql", ""),
        ("migrations/notes.txt", ""),
    ]));
}

#[test]
fn reports() {
    insta::assert_snapshot!(pack(&[
        ("reports/empty.sql", "-- title: Empty\n"),
        ("reports/untitled.sql", "SELECT 1"),
        (
            "reports/head.sql",
            "-- title: Head\n-- titel: Again\n-- title: Twice\n-- chart: bars\n-- format: a=currency, b\n-- drill: other\nSELECT 1",
        ),
        ("reports/axes.sql", "-- title: Axes\n-- chart: line\nSELECT 1"),
        (
            "reports/params.sql",
            "-- title: Params\n-- param: from date \"From\" = 31.1.2024\n-- param: Upper text\n-- param: kind strnig \"Kind\"\n\
             -- param: unused text \"Unused\n-- param: bare\n-- param: rest text \"R\" rest\n-- choices: knd: SELECT 1\n-- choices: SELECT 1\n\
             SELECT ':no'::text, :form, :from, :kind, :bare, :rest, :nothing_like_it\n",
        ),
        ("reports/drill.sql", "-- title: Drill\n-- drill: axis(from=month)\nSELECT 1"),
        ("reports/drill_param.sql", "-- title: Drill\n-- drill: target(form=month, kind)\nSELECT 1"),
        ("reports/target.sql", "-- title: Target\n-- param: from date \"From\"\nSELECT :from"),
        ("simulate/bad.sql", "-- weight: often\n"),
    ]));
}

#[test]
fn dashboards() {
    insta::assert_snapshot!(pack(&[
        ("reports/revenue.sql", "-- title: Revenue\n-- param: from date \"From\"\nSELECT :from"),
        (
            "dashboards/loans.toml",
            "title = \"Loans\"\nfilters = [\n  { name = \"form\", type = \"date\" },\n  { name = \"from\", type = \"dat\" },\n  \
             { name = \"from\", default = \"x\" },\n  { name = \"from\", type = \"date\", default = \"soon\" },\n]\n\
             [[tile]]\nreport = \"revenu\"\n[[tile]]\nreport = \"revenue\"\nwidth = 13\n",
        ),
        ("dashboards/none.toml", "description = \"no title and no tile\"\n"),
    ]));
}
