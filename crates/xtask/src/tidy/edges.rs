//! Which crate may use which: the table below is the architecture.

use serde::Deserialize;

use super::Finding;

const PREFIX: &str = "millrace-";

const GROUND: &[&str] = &["base", "wire", "config", "contract", "model", "pg"];

/// Crate → the crates of ours that it may use. Capability crates never use each other; the console
/// speaks to them through `contract` alone. Tests may use `testkit` besides.
const ALLOWED: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("wire", &["base"]),
    ("contract", &["base"]),
    // the types of reports are contract's: the console shows them as they are
    ("config", &["base", "contract"]),
    ("model", &["base", "contract"]),
    ("pg", &["base", "wire", "config", "contract", "model"]),
    ("cluster", GROUND),
    ("capture", GROUND),
    ("warehouse", GROUND),
    ("endpoint", GROUND),
    ("proxy", &["base", "wire", "config", "contract", "pg"]),
    ("migrate", GROUND),
    ("prove", GROUND),
    ("backup", &["base", "wire", "pg"]),
    ("workload", GROUND),
    ("console", &["base", "config", "contract"]),
    (
        "app",
        &[
            "base",
            "wire",
            "config",
            "contract",
            "model",
            "pg",
            "cluster",
            "capture",
            "warehouse",
            "endpoint",
            "proxy",
            "migrate",
            "prove",
            "workload",
            "console",
            "backup",
        ],
    ),
    ("testkit", &["base", "wire", "config", "contract", "pg"]),
    ("proxy-tests", &["base", "contract", "proxy", "testkit"]),
    ("xtask", &[]),
];

/// What tests alone may use besides, and why.
const ALLOWED_IN_TESTS: &[(&str, &str)] = &[
    // sample data is loaded into the tables that the pack's migrations make
    ("workload", "migrate"),
    // drivers of many languages ask a real engine through the endpoint
    ("endpoint", "warehouse"),
];

/// The part of `cargo metadata` that is looked at.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `None` for a normal one, else `dev` or `build`.
    kind: Option<String>,
}

/// Every edge that the table does not allow, and every crate that it does not know.
pub(crate) fn check(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let short = package.name.strip_prefix(PREFIX).unwrap_or(&package.name);
        let path = format!("crates/{short}/Cargo.toml");
        let mut wrong = |message: String| findings.push(Finding { path: path.clone(), line: 0, message });
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == short) else {
            wrong(format!("the crate `{short}` is not in the table of edges (crates/xtask/src/tidy/edges.rs)"));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(used) = dependency.name.strip_prefix(PREFIX) else { continue };
            let for_tests = dependency.kind.as_deref() == Some("dev")
                && (used == "testkit" || used == short || ALLOWED_IN_TESTS.contains(&(short, used)));
            if !for_tests && !allowed.contains(&used) {
                wrong(format!("`{short}` may not use `{used}`; it may use: {}", allowed.join(", ")));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(name: &str, used: &str, kind: Option<&str>) -> Metadata {
        let dependency = Dependency { name: format!("millrace-{used}"), kind: kind.map(str::to_owned) };
        Metadata { packages: vec![Package { name: format!("millrace-{name}"), dependencies: vec![dependency] }] }
    }

    #[test]
    fn allowed_edges_pass() {
        for (name, used, kind) in [("app", "console", None), ("capture", "pg", None), ("pg", "testkit", Some("dev"))] {
            assert_eq!(check(&metadata(name, used, kind)), [], "{name} → {used}");
        }
    }

    #[test]
    fn edges_between_capabilities_are_found() {
        for (name, used, kind) in [
            ("capture", "warehouse", None),
            ("capture", "warehouse", Some("dev")),
            ("console", "pg", None),
            ("wire", "pg", None),
            ("capture", "testkit", None),
            ("stranger", "base", None),
        ] {
            assert_eq!(check(&metadata(name, used, kind)).len(), 1, "{name} → {used}");
        }
    }

    #[test]
    fn the_table_has_no_circle() {
        let allowed = |name: &str| ALLOWED.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, a)| *a);
        for (start, _) in ALLOWED {
            let mut reached = allowed(start).to_vec();
            let mut next = 0;
            while let Some(name) = reached.get(next).copied() {
                assert_ne!(name, *start, "{start} reaches itself");
                for further in allowed(name) {
                    if !reached.contains(further) {
                        reached.push(further);
                    }
                }
                next += 1;
            }
        }
    }
}
