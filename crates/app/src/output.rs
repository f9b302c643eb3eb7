//! How results are shown: a table for people, JSON for machines. The only file that prints.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Where and how to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    colour: bool,
}

impl Output {
    /// `plain` turns colours off (`NO_COLOR`, or not a terminal).
    pub(crate) fn new(json: bool, plain: bool) -> Self {
        Self { json, colour: !plain && !json && io::stdout().is_terminal() }
    }

    /// A line for people; nothing with `--json`.
    pub(crate) fn line(self, text: impl AsRef<str>) {
        if !self.json {
            self.raw(format!("{}\n", text.as_ref()));
        }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// As it is, in every mode.
    pub(crate) fn raw(self, text: impl AsRef<str>) {
        let mut out = io::stdout().lock();
        // a closed pipe (`| head`) ends the reader's interest, not our work
        _ = out.write_all(text.as_ref().as_bytes()).and_then(|()| out.flush());
    }

    /// The result for machines; nothing without `--json`.
    pub(crate) fn json(self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            self.raw(format!("{}\n", serde_json::to_string_pretty(value)?));
        }
        Ok(())
    }

    /// Progress and notes, on the error stream so that output can be piped.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        let mut err = io::stderr().lock();
        // as above
        _ = writeln!(err, "{}", text.as_ref());
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Rows under a header, columns as wide as their widest cell; numbers to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain(header.get(column).map(|name| name.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let numeric: Vec<bool> = (0..header.len())
        .map(|column| {
            let mut cells = rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_empty()).peekable();
            cells.peek().is_some()
                && cells.all(|cell| cell.chars().all(|c| c.is_ascii_digit() || "+-.,eE%".contains(c)))
        })
        .collect();
    let line = |cells: &[String]| {
        let mut text = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths.get(column).copied().unwrap_or(0).saturating_sub(cell.chars().count()));
            if column > 0 {
                text.push_str("  ");
            }
            if numeric.get(column).copied().unwrap_or(false) {
                text.push_str(&pad);
                text.push_str(cell);
            } else {
                text.push_str(cell);
                text.push_str(&pad);
            }
        }
        text.trim_end().to_owned()
    };
    let names: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
    let mut text = line(&names);
    text.push('\n');
    text.push_str(&rule.join("  "));
    text.push('\n');
    for row in rows {
        text.push_str(&line(row));
        text.push('\n');
    }
    text
}

/// RFC 4180: quoted where needed, doubled quotes, lines end in CRLF.
pub(crate) fn csv_line(cells: &[Option<String>]) -> String {
    let quoted = |cell: &Option<String>| match cell {
        None => String::new(),
        Some(text) if text.is_empty() || text.contains(['"', ',', '\n', '\r']) => {
            format!("\"{}\"", text.replace('"', "\"\""))
        }
        Some(text) => text.clone(),
    };
    let mut line = cells.iter().map(quoted).collect::<Vec<_>>().join(",");
    line.push_str("\r\n");
    line
}

/// `3.1 MiB`.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub(crate) fn bytes_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 || unit == "TiB" {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    unreachable!("the last unit returns")
}

/// `4 s`, `12 min`, `3 h`, `2 d`.
pub(crate) fn age_text(age: std::time::Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0 => format!("{} ms", age.as_millis()),
        1..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = [vec!["a".into(), "1".into()], vec!["long name".into(), "1,234.5".into()]];
        assert_eq!(
            table(&["name", "rows"], &rows),
            "name       rows\n─────────  ───────\na                1\nlong name  1,234.5\n"
                .replace("name       rows", "name          rows")
        );
    }

    #[test]
    fn sizes_and_ages() {
        assert_eq!(bytes_text(1023), "1023 B");
        assert_eq!(bytes_text(3 << 20), "3.0 MiB");
        assert_eq!(age_text(std::time::Duration::from_secs(90)), "90 s");
        assert_eq!(age_text(std::time::Duration::from_secs(7_200)), "2 h");
    }

    #[test]
    fn csv_quotes() {
        let line = csv_line(&[Some("a,\"b\"".into()), None, Some(String::new()), Some("x".into())]);
        assert_eq!(line, "\"a,\"\"b\"\"\",,\"\",x\r\n");
    }
}
