//! Results as CSV (RFC 4180), safe to open in a spreadsheet.
//!
//! A text that a spreadsheet would run as a formula gets an apostrophe in front (OWASP, "CSV
//! Injection"); numbers and dates stay as they are.

use millrace_contract::query::{ResultColumn, Value};

use crate::format;

/// The header line.
pub(crate) fn header(columns: &[ResultColumn]) -> String {
    line(columns.iter().map(|c| quoted(&guarded(&c.name))))
}

/// One row.
pub(crate) fn row(values: &[Value]) -> String {
    line(values.iter().map(|value| match value {
        Value::Text(text) => quoted(&guarded(text)),
        other => quoted(&format::plain(other)),
    }))
}

fn line(fields: impl Iterator<Item = String>) -> String {
    let mut line = fields.collect::<Vec<_>>().join(",");
    line.push_str("\r\n");
    line
}

fn guarded(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) && text.parse::<f64>().is_err() {
        format!("'{text}")
    } else {
        text.to_owned()
    }
}

fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_are_defused_and_numbers_are_not() {
        let text = |t: &str| Value::Text(t.into());
        let values = [
            text("=HYPERLINK(\"http://x\",\"y\")"),
            text("@SUM(A1)"),
            text("-2+3"),
            text("-12.50"),
            text("a,b\nc"),
            Value::Int(-5),
            Value::Null,
            Value::Decimal { unscaled: -150, scale: 2 },
        ];
        assert_eq!(
            row(&values),
            "\"'=HYPERLINK(\"\"http://x\"\",\"\"y\"\")\",'@SUM(A1),'-2+3,-12.50,\"a,b\nc\",-5,,-1.50\r\n"
        );
    }
}
