//! Whatever stands in a file, reading it ends with a value or a message, never a panic.

use std::{collections::BTreeMap, path::Path};

use millrace_config::{Config, Pack, pack::sql};
use proptest::prelude::*;

const PLATFORM: &str = "[platform]\nname = \"löans\"\n[postgres.settings]\nwork_mem = \"1MB\"\n[[cluster.nodes]]\nname = \"a\"\nport = 5440\n\
                        [capture]\nbatch_bytes_max = \"64MiB\" # größe\n[console]\nlisten = \"127.0.0.1\"\nport = 8400\n";
const REPORT: &str = "-- title: Größe\n-- param: from date \"From\" = 2024-01-01\n-- choices: from: SELECT 1\n--    FROM t\n-- chart: bar\n-- x: a\n\
                      -- y: b\n-- format: a=money\n-- drill: r(from=a)\n\nSELECT a, b FROM t WHERE d >= :from AND x = 'ä' AND y = $$:z$$;\n";
const DASHBOARD: &str = "title = \"Ü\"\nfilters = [{ name = \"from\", type = \"date\", default = \"2024-01-01\" }]\n[[tile]]\nreport = \"r\"\n";

/// `text` with some characters replaced, removed or doubled.
fn damaged(text: &'static str) -> impl Strategy<Value = String> {
    let edit = (
        any::<prop::sample::Index>(),
        0..4u8,
        prop::sample::select(vec!['"', '\'', '=', '[', ']', '{', ':', '$', '\n', '\t', '-', ',', '9', 'ß', '\0']),
    );
    prop::collection::vec(edit, 1..6).prop_map(move |edits| {
        let mut characters: Vec<char> = text.chars().collect();
        for (index, kind, character) in edits {
            let at = index.index(characters.len());
            match kind {
                0 => characters[at] = character,
                1 if characters.len() > 1 => drop(characters.remove(at)),
                2 => characters.insert(at, character),
                // never empty: the next edit needs a place
                _ => characters.truncate(at + 2),
            }
        }
        characters.into_iter().collect()
    })
}

fn pack(report: &str, dashboard: &str) -> Result<Pack, millrace_config::ConfigError> {
    let files: BTreeMap<String, String> = [
        ("pack.toml", "name = \"p\"\ntitle = \"P\"\nversion = \"1\"\ndatabase = \"d\"\nschema = \"s\"\ndefault_dashboard = \"m\"\n"),
        ("reports/r.sql", report),
        ("dashboards/m.toml", dashboard),
    ]
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .into();
    Pack::parse(Path::new("p"), files)
}

proptest! {
    #[test]
    fn a_damaged_platform_file(text in damaged(PLATFORM)) {
        if let Err(error) = Config::parse(Path::new("millrace.toml"), &text) {
            prop_assert!(error.to_string().starts_with("millrace.toml:"));
        }
    }

    #[test]
    fn a_damaged_report(text in damaged(REPORT)) {
        if let Err(error) = pack(&text, DASHBOARD) {
            prop_assert!(error.to_string().starts_with("p/"));
        }
    }

    #[test]
    fn a_damaged_dashboard(text in damaged(DASHBOARD)) {
        if let Err(error) = pack(REPORT, &text) {
            prop_assert!(error.to_string().starts_with("p/"));
        }
    }

    /// Only `:name` is replaced, each by its number; what stands between stays.
    #[test]
    fn numbering_changes_placeholders_alone(sql in damaged(REPORT)) {
        let found = sql::placeholders(&sql);
        let mut names: Vec<&str> = found.iter().map(|p| p.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let numbered = sql::number(&sql, &names);
        let mut expected = String::new();
        let mut done = 0;
        for placeholder in &found {
            prop_assert_eq!(sql.get(placeholder.span.clone()).unwrap(), format!(":{}", placeholder.name));
            let n = names.iter().position(|n| *n == placeholder.name).unwrap() + 1;
            expected.push_str(sql.get(done..placeholder.span.start).unwrap());
            expected.push_str(&format!("${n}"));
            done = placeholder.span.end;
        }
        expected.push_str(sql.get(done..).unwrap());
        prop_assert_eq!(numbered, expected);
        prop_assert_eq!(sql::number(&sql, &[]), sql);
    }
}

#[test]
fn the_undamaged_texts_are_good() {
    assert!(pack(REPORT, DASHBOARD).is_ok());
    // the name has a letter that may not be there: the rest is good
    assert!(Config::parse(Path::new("m"), &PLATFORM.replace('ö', "o")).is_ok());
}
