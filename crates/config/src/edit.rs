//! `[[cluster.nodes]]` changed in a text of a person's: what else is there, comments and order included, stays.

use std::{net::IpAddr, path::Path, time::Duration};

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use crate::{Config, Node, error::ConfigError};

/// A node to come.
#[derive(Debug, Clone, Default)]
pub struct NewNode {
    pub name: String,
    /// On many hosts.
    pub host: Option<IpAddr>,
    /// The next one that is free, or on another host the one of the others.
    pub port: Option<u16>,
    /// 0: it never becomes the primary.
    pub failover_priority: Option<u32>,
    pub apply_delay: Option<Duration>,
}

/// `text` with one node more. `path` names it in errors.
///
/// # Errors
/// [`ConfigError::Invalid`] if it is wrong, before or after.
pub fn add_node(path: &Path, text: &str, new: &NewNode) -> Result<String, ConfigError> {
    let config = Config::parse(path, text)?;
    let mut document = document(path, text)?;
    let nodes = nodes(path, &mut document, &config)?;
    let mut table = Table::new();
    table.insert("name", value(&new.name));
    if let Some(host) = new.host {
        table.insert("host", value(host.to_string()));
    }
    let port = new.port.unwrap_or_else(|| free_port(&config, new.host));
    table.insert("port", value(i64::from(port)));
    if let Some(priority) = new.failover_priority {
        table.insert("failover_priority", value(i64::from(priority)));
    }
    if let Some(delay) = new.apply_delay {
        table.insert("apply_delay_seconds", value(i64::try_from(delay.as_secs()).unwrap_or(i64::MAX)));
    }
    nodes.push(table);
    finish(path, &document)
}

/// `text` without a node.
///
/// # Errors
/// [`ConfigError::Invalid`] if it is wrong, before or after.
pub fn remove_node(path: &Path, text: &str, name: &str) -> Result<String, ConfigError> {
    let config = Config::parse(path, text)?;
    let mut document = document(path, text)?;
    nodes(path, &mut document, &config)?.retain(|table| table.get("name").and_then(Item::as_str) != Some(name));
    finish(path, &document)
}

fn document(path: &Path, text: &str) -> Result<DocumentMut, ConfigError> {
    // what `Config` reads is TOML
    text.parse()
        .map_err(|error: toml_edit::TomlError| ConfigError::Edit { path: path.to_owned(), why: error.to_string() })
}

fn finish(path: &Path, document: &DocumentMut) -> Result<String, ConfigError> {
    let text = document.to_string();
    Config::parse(path, &text)?;
    Ok(text)
}

/// The tables, written out if there were none, or if they were written in a line.
fn nodes<'a>(
    path: &Path,
    document: &'a mut DocumentMut,
    config: &Config,
) -> Result<&'a mut ArrayOfTables, ConfigError> {
    let odd = || ConfigError::Edit { path: path.to_owned(), why: "[cluster] is not written as a table".to_owned() };
    let cluster = document.entry("cluster").or_insert_with(toml_edit::table);
    if let Some(inline) = cluster.as_inline_table().cloned() {
        *cluster = Item::Table(inline.into_table());
    }
    let nodes = cluster.as_table_mut().ok_or_else(odd)?.entry("nodes").or_insert(Item::None);
    if !nodes.is_array_of_tables() {
        *nodes = Item::ArrayOfTables(config.cluster.nodes.iter().map(written).collect());
    }
    nodes.as_array_of_tables_mut().ok_or_else(odd)
}

fn written(node: &Node) -> Table {
    let mut table = Table::new();
    table.insert("name", value(&node.name));
    if let Some(host) = node.host {
        table.insert("host", value(host.to_string()));
    }
    table.insert("port", value(i64::from(node.port)));
    if node.failover_priority != 1 && node.apply_delay.is_none() {
        table.insert("failover_priority", value(i64::from(node.failover_priority)));
    }
    if let Some(delay) = node.apply_delay {
        table.insert("apply_delay_seconds", value(i64::try_from(delay.as_secs()).unwrap_or(i64::MAX)));
    }
    table
}

fn free_port(config: &Config, host: Option<IpAddr>) -> u16 {
    let nodes = &config.cluster.nodes;
    if let Some(first) = nodes.first().filter(|_| host.is_some() && nodes.iter().all(|node| node.host != host)) {
        return first.port;
    }
    let taken = config.listeners();
    let last = nodes.iter().map(|node| node.port).max().unwrap_or(0);
    (last.saturating_add(1)..u16::MAX).find(|port| taken.iter().all(|(_, at)| at.port() != *port)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/p/millrace.toml";

    fn add(text: &str, new: &NewNode) -> String {
        add_node(Path::new(PATH), text, new).unwrap()
    }

    fn named(name: &str) -> NewNode {
        NewNode { name: name.to_owned(), ..NewNode::default() }
    }

    #[test]
    fn what_a_person_wrote_stays() {
        let text = "# ours\n[platform]\nname = \"shop\" # the shop\n\n[cluster]\n# here\n[[cluster.nodes]]\nname = \"a\"\nport = 5440\n\n\
                    [[cluster.nodes]] # the other\nname = \"b\"\nport = 5441\n\n[pack]\npath = \"pack\"\n";
        let more = add(text, &named("d"));
        for line in text.lines() {
            assert!(more.contains(line), "{line}\n{more}");
        }
        let config = Config::parse(Path::new(PATH), &more).unwrap();
        let nodes: Vec<_> = config.cluster.nodes.iter().map(|node| (node.name.as_str(), node.port)).collect();
        assert_eq!(nodes, [("a", 5440), ("b", 5441), ("d", 5442)]);
        assert_eq!(remove_node(Path::new(PATH), &more, "d").unwrap(), text, "and back");
        let late = NewNode { apply_delay: Some(Duration::from_secs(60)), ..named("late") };
        let config = Config::parse(Path::new(PATH), &add(text, &late)).unwrap();
        assert_eq!(config.cluster.nodes[2].apply_delay, Some(Duration::from_secs(60)));
    }

    #[test]
    fn nodes_that_nobody_has_written_are() {
        for text in [
            "[platform]\nname = \"shop\"\n[pack]\npath = \"pack\"\n",
            "cluster = { listen = \"127.0.0.1\" }\n[platform]\nname = \"shop\"\n[pack]\npath = \"pack\"\n",
        ] {
            let config = Config::parse(Path::new(PATH), &add(text, &named("d"))).unwrap();
            let names: Vec<_> = config.cluster.nodes.iter().map(|node| node.name.as_str()).collect();
            assert_eq!(names, ["a", "b", "c", "d"]);
            let fewer = remove_node(Path::new(PATH), text, "b").unwrap();
            let config = Config::parse(Path::new(PATH), &fewer).unwrap();
            let names: Vec<_> = config.cluster.nodes.iter().map(|node| node.name.as_str()).collect();
            assert_eq!(names, ["a", "c"]);
        }
    }

    #[test]
    fn ports_and_wrong_names() {
        let text = "[platform]\nname = \"shop\"\n[cluster]\nlisten = \"0.0.0.0\"\n[[cluster.nodes]]\nname = \"a\"\nhost = \"10.0.0.1\"\nport = 5440\n\
                    [etcd]\nendpoints = [\"http://10.0.0.1:2379\"]\n[pack]\npath = \"pack\"\n[console]\nport = 5441\n";
        let other = NewNode { host: Some([10, 0, 0, 2].into()), ..named("b") };
        assert!(
            add(text, &other).contains("port = 5440\n\n[etcd]")
                || add(text, &other).matches("port = 5440").count() == 2
        );
        let same = NewNode { host: Some([10, 0, 0, 1].into()), ..named("b") };
        assert!(add(text, &same).contains("port = 5442"), "5441 is the console's");
        for name in ["a", "B", ""] {
            assert!(
                matches!(add_node(Path::new(PATH), text, &named(name)), Err(ConfigError::Invalid { .. })),
                "{name}"
            );
        }
        let last = remove_node(Path::new(PATH), text, "a");
        assert!(matches!(last, Err(ConfigError::Invalid { .. })), "{last:?}");
    }
}
