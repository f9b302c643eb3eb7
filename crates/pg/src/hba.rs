//! `pg_hba.conf` from typed rules: TLS and SCRAM for those named, no one else.

use std::fmt::{self, Write};

/// What a rule lets into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HbaDatabase {
    /// Every database, but not physical replication.
    All,
    /// Physical replication only.
    Replication,
    /// One database; logical replication connections to it included.
    Named(String),
}

/// Where from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HbaSource {
    /// Any address of the server's own host, the loopback included.
    SameHost,
    /// `address/bits`.
    Cidr(String),
    /// A name that the address must resolve to, and back (manual, "The pg_hba.conf File").
    Host(String),
    Anywhere,
}

/// One `hostssl … scram-sha-256` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HbaRule {
    pub databases: Vec<HbaDatabase>,
    /// Role names; empty: every role.
    pub users: Vec<String>,
    pub source: HbaSource,
}

impl HbaRule {
    /// One role into one kind of database from one place.
    #[must_use]
    pub fn new(database: HbaDatabase, user: impl Into<String>, source: HbaSource) -> Self {
        Self { databases: vec![database], users: vec![user.into()], source }
    }
}

impl fmt::Display for HbaRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hostssl  ")?;
        for (i, database) in self.databases.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { "," })?;
            match database {
                HbaDatabase::All => f.write_str("all")?,
                HbaDatabase::Replication => f.write_str("replication")?,
                HbaDatabase::Named(name) => quoted(f, name)?,
            }
        }
        f.write_str("  ")?;
        if self.users.is_empty() {
            f.write_str("all")?;
        }
        for (i, user) in self.users.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { "," })?;
            quoted(f, user)?;
        }
        f.write_str("  ")?;
        match &self.source {
            HbaSource::SameHost => f.write_str("samehost")?,
            HbaSource::Cidr(cidr) => f.write_str(cidr)?,
            HbaSource::Host(name) => quoted(f, name)?,
            HbaSource::Anywhere => f.write_str("all")?,
        }
        f.write_str("  scram-sha-256")
    }
}

/// Quoted, a name is only a name: `"all"` is not the keyword.
fn quoted(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    write!(f, "\"{}\"", name.replace('"', "\"\""))
}

/// The file's text: the rules, then a refusal of everything else.
#[must_use]
pub fn render(rules: &[HbaRule]) -> String {
    let mut text = String::from(
        "# Written by millrace at every start of this server: changes here are lost.\n\
         # Every way in is TLS with SCRAM; whoever is not named is refused.\n",
    );
    for rule in rules {
        // writing into a String cannot fail
        let _written = writeln!(text, "{rule}");
    }
    text.push_str("local  all          all  reject\nlocal  replication  all  reject\n");
    text.push_str("host   all          all  all  reject\nhost   replication  all  all  reject\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_the_rest_is_refused() {
        let text = render(&[
            HbaRule::new(HbaDatabase::Named("loans_db".into()), "etl_reader", HbaSource::SameHost),
            HbaRule::new(HbaDatabase::Replication, "replicator", HbaSource::Cidr("10.0.0.0/8".into())),
        ]);
        assert!(text.contains("hostssl  \"loans_db\"  \"etl_reader\"  samehost  scram-sha-256\n"));
        assert!(text.contains("hostssl  replication  \"replicator\"  10.0.0.0/8  scram-sha-256\n"));
        assert!(text.ends_with("host   replication  all  all  reject\n"));
    }
}
