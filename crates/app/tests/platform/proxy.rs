//! Applications by the proxy, on a whole platform: the primary dies, an operator pauses, and clients stay.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
};

use crate::harness::{Platform, alive, kill, wait_until};

/// psql as an application: one session, statement after statement.
struct Application {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

fn password(platform: &Platform, secret: &str) -> String {
    let secrets = std::fs::read_to_string(platform.dir().join("secrets.toml")).unwrap();
    let line = secrets.lines().find(|line| line.starts_with(&format!("{secret} = "))).unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

fn psql(platform: &Platform, port: u16, role: &str, secret: &str) -> Command {
    let ca = platform.dir().join("tls/ca.crt");
    let mut psql = Command::new("psql");
    psql.arg(format!("host=127.0.0.1 port={port} user={role} dbname=loans_db sslmode=verify-full"))
        .args(["-X", "-q", "-A", "-t"])
        .env("PGSSLROOTCERT", ca)
        .env("PGPASSWORD", password(platform, secret));
    psql
}

impl Application {
    fn connect(platform: &Platform, port: u16) -> Self {
        let mut psql = psql(platform, port, "app_user", "app_user");
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn send(&mut self, sql: &str) {
        self.input.write_all(format!("{sql};\n").as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    /// The next line that it shows; empty if it has ended.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The one line that a statement brings.
    fn ask(&mut self, sql: &str) -> String {
        let mut lines = self.lines(sql);
        assert_eq!(lines.len(), 1, "{sql}: {lines:?}");
        lines.remove(0)
    }

    /// All lines that a statement brings; none if it fails. The session must outlive it.
    fn lines(&mut self, sql: &str) -> Vec<String> {
        const END: &str = "-- end";
        self.send(&format!("{sql};\n\\echo '{END}'\n"));
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the session has ended");
            if line == END {
                return lines;
            }
            lines.push(line);
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // it may have ended by itself
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Settings and a password change under an application that stays; a file that is wrong changes nothing.
fn reloads(platform: &Platform, port: u16, application: &mut Application) {
    let replace = |file: &str, old: &str, new: &str| {
        let path = platform.dir().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{old}");
        // the same file: secrets stay closed to others
        std::fs::write(&path, text.replace(old, new)).unwrap();
    };
    assert!(platform.run(&["proxy", "reload"]).ok().contains("nothing to do"));
    let own = format!("\nport = {port}\n");
    replace("millrace.toml", &own, &format!("{own}pool_size = 7\nworkers = 2\n"));
    let before = password(platform, "app_user");
    replace("secrets.toml", &before, "another-one");
    let answer = platform.run(&["proxy", "reload", "--json"]).json();
    assert_eq!(answer["changed"], serde_json::json!(["pool_size: 25 → 7", "password of app_user: changed"]));
    assert_eq!(answer["waits"], serde_json::json!(["workers: 1 → 2"]));
    assert_eq!(application.ask("SELECT 'still here'"), "still here");
    let mut new = psql(platform, port, "app_user", "app_user");
    let new = new.args(["-c", "SELECT 1"]).output().unwrap();
    assert!(new.status.success(), "{}", String::from_utf8_lossy(&new.stderr));
    let mut old = psql(platform, port, "app_user", "app_user");
    assert!(!old.env("PGPASSWORD", &before).args(["-c", "SELECT 1"]).output().unwrap().status.success());
    replace("millrace.toml", "pool_size = 7", "pool_size = \"many\"");
    platform.run(&["proxy", "reload"]).failed(1, "millrace.toml");
    replace("millrace.toml", "pool_size = \"many\"\nworkers = 2\n", "");
    assert!(platform.run(&["proxy", "reload"]).ok().contains("pool_size: 7 → 25"));

    // for one database, by a signal
    let toml = std::fs::read_to_string(platform.dir().join("millrace.toml")).unwrap();
    let own = "\n[[proxy.databases]]\nname = \"loans_db\"\npool_size = 3\nmax_connections = 1\n";
    std::fs::write(platform.dir().join("millrace.toml"), format!("{toml}{own}")).unwrap();
    kill(platform.pid(), "HUP");
    let shrunk = || {
        let shown = platform.run(&["proxy", "show", "--json"]).json();
        let pools = shown["pools"].as_array().unwrap().clone();
        pools.iter().all(|pool| pool["database"] != "loans_db" || pool["size"] == 3)
    };
    wait_until("the pool to be smaller", shrunk);
    let refused = psql(platform, port, "app_user", "app_user").args(["-c", "SELECT 1"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("max_connections of the database"), "{said}");
    assert_eq!(application.ask("SELECT 'still here'"), "still here");
    std::fs::write(platform.dir().join("millrace.toml"), format!("{toml}\n[[proxy.users]]\nname = 3\n")).unwrap();
    platform.run(&["proxy", "reload"]).failed(1, "millrace.toml");
    std::fs::write(platform.dir().join("millrace.toml"), toml).unwrap();
    let answer = platform.run(&["proxy", "reload", "--json"]).json();
    let changed = ["loans_db.pool_size: 3 → 25", "loans_db.max_connections: 1 → none"];
    assert_eq!(answer["changed"], serde_json::json!(changed));
}

/// Reads go to replicas, and the application reads each row that it wrote.
#[test]
fn reads_are_routed_and_see_what_was_written() {
    let platform = Platform::init();
    let path = platform.dir().join("millrace.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let own = format!("\nport = {}\n", platform.base_port + 5);
    std::fs::write(&path, text.replace(&own, &format!("{own}route_reads = true\nauth_query = true\n"))).unwrap();
    platform.up(&[]);
    let create = "CREATE TABLE public.seen (i int); GRANT USAGE ON SCHEMA public TO app_user;
        GRANT ALL ON public.seen TO app_user;
        CREATE FUNCTION public.on_replica() RETURNS boolean STABLE LANGUAGE sql AS 'SELECT pg_is_in_recovery()'";
    platform.run(&["psql", "primary", "--", "-X", "-c", create]).ok();
    let mut application = Application::connect(&platform, platform.base_port + 5);
    wait_until("a replica to be asked", || application.ask("SELECT public.on_replica()") == "t");
    let mut on_replicas = 0;
    for i in 1..=300 {
        application.send(&format!("INSERT INTO public.seen VALUES ({i})"));
        assert_eq!(application.ask("SELECT max(i) FROM public.seen"), i.to_string());
        if i % 50 == 0 {
            // once the replicas have replayed it, they are asked again
            wait_until("a replica to be asked", || application.ask("SELECT public.on_replica()") == "t");
            on_replicas += 1;
            assert_eq!(application.ask("SELECT max(i) FROM public.seen"), i.to_string());
        }
    }
    assert_eq!(on_replicas, 6);
    let shown = platform.run(&["proxy", "show", "--json"]).json();
    let of = |read_only: bool, what: &str| {
        let pools = shown["pools"].as_array().unwrap().iter().filter(|pool| pool["read_only"] == read_only);
        pools.map(|pool| pool[what].as_u64().unwrap()).sum::<u64>()
    };
    assert!(of(true, "transactions") >= 12 && of(false, "behind") > 0, "{shown:#}");

    // with `auth_query`, a role that the pack knows nothing of; but no superuser
    let create = "CREATE ROLE by_hand LOGIN PASSWORD 'its own'; GRANT CONNECT ON DATABASE loans_db TO by_hand;
        CREATE ROLE mighty SUPERUSER LOGIN PASSWORD 'its own'";
    platform.run(&["psql", "primary", "--", "-X", "-c", create]).ok();
    let ask = |role: &str| {
        let mut psql = psql(&platform, platform.base_port + 5, role, "app_user");
        psql.env("PGPASSWORD", "its own").args(["-c", "SELECT session_user"]).output().unwrap()
    };
    let answer = ask("by_hand");
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "by_hand", "{answer:?}");
    let refused = String::from_utf8_lossy(&ask("mighty").stderr).into_owned();
    assert!(refused.contains("password authentication failed"), "{refused}");
    platform.down();
}

#[test]
fn applications_stay_while_the_primary_dies_and_while_an_operator_pauses() {
    let platform = Platform::init();
    platform.up(&["--sample"]);
    let (read_write, read_only) = (platform.base_port + 5, platform.base_port + 6);
    let mut application = Application::connect(&platform, read_write);
    assert_eq!(application.ask("SELECT pg_is_in_recovery()"), "f");
    let mut reader = Application::connect(&platform, read_only);
    assert_eq!(reader.ask("SELECT pg_is_in_recovery()"), "t");

    let status = platform.status();
    let primary = status["nodes"].as_array().unwrap().iter().find(|node| node["role"] == "primary").unwrap();
    let pid = u32::try_from(primary["pid"].as_u64().unwrap()).unwrap();
    kill(pid, "KILL");
    wait_until("the primary to be gone", || !alive(pid));
    // what reaches the dying server fails, and is not sent again; what comes later waits; the session stays
    let still_here = || application.lines("SELECT 'still here', pg_is_in_recovery()") == ["still here|f"];
    wait_until("an answer", still_here);
    // replicas that do not stream get no work: the primary stands in for a moment
    wait_until("a replica", || reader.lines("SELECT pg_is_in_recovery()") == ["t"]);

    platform.run(&["proxy", "pause", "loans_db"]).ok();
    application.send("SELECT 'after the pause'");
    let waiting = || {
        let pools = platform.run(&["proxy", "show", "--json"]).json();
        let pools = pools["pools"].as_array().unwrap().clone();
        pools.iter().any(|pool| pool["paused"] == true && pool["waiting"] == 1)
    };
    wait_until("the statement to wait", waiting);
    platform.run(&["health"]).failed(1, "");
    assert!(platform.run(&["status"]).ok().contains("is paused"));
    platform.run(&["proxy", "resume"]).ok();
    assert_eq!(application.line(), "after the pause");
    platform.run(&["proxy", "reconnect"]).ok();
    assert_eq!(application.ask("SELECT 1"), "1");

    reloads(&platform, read_write, &mut application);
    let shown = platform.run(&["psql", "pgbouncer", "--", "-X", "-A", "-t", "-c", "SHOW POOLS"]).ok();
    assert!(shown.contains("loans_db|app_user|1|0|") && shown.contains("loans_db:ro|app_user|"), "{shown}");
    // the servers let their superuser in from this host alone: the proxy must not be a way around that
    let refused = psql(&platform, read_write, "postgres", "superuser").args(["-c", "SELECT 1"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("may not connect to database"), "{said}");

    platform.run(&["proxy", "kill", "loans_db"]).failed(2, "no connection was ended");
    assert_eq!(application.ask("SELECT 1"), "1");
    platform.run(&["proxy", "kill", "loans_db", "--yes"]).ok();
    application.send("SELECT 1");
    assert_eq!(application.line(), "", "the session is over");
    platform.run(&["proxy", "resume"]).ok();
    assert_eq!(Application::connect(&platform, read_write).ask("SELECT 1"), "1");
    platform.down();
}
