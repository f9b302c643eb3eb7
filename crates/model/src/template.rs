//! Filling `{name}` places of SQL templates.

/// Replaces every `{name}`; comment lines are left out. Values are SQL already.
pub(crate) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut sql: String = template.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n");
    for (name, value) in values {
        sql = sql.replace(&format!("{{{name}}}"), value);
    }
    sql
}

/// Joins texts with a separator.
pub(crate) fn list(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().collect::<Vec<_>>().join(", ")
}
