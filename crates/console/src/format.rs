//! Values as people read them, and as machines do.
//!
//! Decimals are written from their digits, never through floating point.

use jiff::{
    Span, Timestamp,
    civil::{Date, DateTime, Time},
};
use millrace_contract::{
    query::{Value, ValueType},
    report::{Format, Report},
};

/// How the column `name` of a report is written.
pub(crate) fn of_column(report: &Report, name: &str) -> Format {
    report.formats.iter().find(|(column, _)| column == name).map_or(Format::Plain, |(_, format)| *format)
}

/// Whether a column's values stand at the right of their cells.
pub(crate) fn is_number(value_type: ValueType) -> bool {
    match value_type {
        ValueType::Int2
        | ValueType::Int4
        | ValueType::Int8
        | ValueType::HugeInt
        | ValueType::Float4
        | ValueType::Float8
        | ValueType::Decimal { .. } => true,
        ValueType::Bool
        | ValueType::Text
        | ValueType::Bytes
        | ValueType::Date
        | ValueType::Time
        | ValueType::Timestamp
        | ValueType::TimestampTz
        | ValueType::Uuid
        | ValueType::Json
        | ValueType::Other => false,
    }
}

/// `total_paid` → `Total paid`.
pub(crate) fn label(column: &str) -> String {
    let text = column.replace('_', " ");
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn date(days: i32) -> Option<Date> {
    Date::constant(1970, 1, 1).checked_add(Span::new().try_days(days).ok()?).ok()
}

fn date_time(micros: i64) -> Option<DateTime> {
    Timestamp::from_microsecond(micros).ok().map(|t| t.to_zoned(jiff::tz::TimeZone::UTC).datetime())
}

/// The value in full, without any dressing: for CSV, URLs and JSON texts. Null is empty.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::HugeInt(i) => i.to_string(),
        Value::Float(f) => f.to_string(),
        Value::Decimal { unscaled, scale } => digits(*unscaled, *scale, false),
        Value::Text(text) => text.to_string(),
        Value::Bytes(bytes) => bytes.iter().fold("\\x".to_owned(), |hex, b| format!("{hex}{b:02x}")),
        Value::Date(days) => date(*days).map_or_else(|| format!("day {days}"), |d| d.to_string()),
        Value::Time(micros) => Time::midnight()
            .checked_add(Span::new().microseconds(*micros))
            .map_or_else(|_| format!("{micros} µs"), |t| t.to_string()),
        Value::Timestamp(micros) => stamp(*micros),
        Value::TimestampTz(micros) => format!("{}Z", stamp(*micros)),
        Value::Uuid(bits) => {
            let hex = format!("{bits:032x}");
            let mut parts = Vec::new();
            let mut rest = hex.as_str();
            for length in [8, 4, 4, 4, 12] {
                let (part, after) = rest.split_at(length);
                parts.push(part);
                rest = after;
            }
            parts.join("-")
        }
    }
}

fn stamp(micros: i64) -> String {
    date_time(micros).map_or_else(|| format!("{micros} µs"), |t| t.to_string().replace('T', " "))
}

/// The value for JSON: numbers that JavaScript holds exactly as numbers, others as exact texts.
pub(crate) fn json(value: &Value) -> serde_json::Value {
    const EXACT: i64 = 1 << 53;
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(b) => (*b).into(),
        Value::Int(i) if (-EXACT..=EXACT).contains(i) => (*i).into(),
        Value::HugeInt(i) => i64::try_from(*i)
            .ok()
            .filter(|i| (-EXACT..=EXACT).contains(i))
            .map_or_else(|| i.to_string().into(), Into::into),
        Value::Float(f) if f.is_finite() => (*f).into(),
        other => plain(other).into(),
    }
}

/// The value as people read it.
pub(crate) fn pretty(value: &Value, format: Format, currency: Option<&str>) -> String {
    let number = match value {
        Value::Null => return "–".to_owned(),
        Value::Int(i) => Some((i128::from(*i), 0)),
        Value::HugeInt(i) => Some((*i, 0)),
        Value::Decimal { unscaled, scale } => Some((*unscaled, *scale)),
        _ => None,
    };
    match (format, number, value) {
        (Format::Integer, Some((unscaled, scale)), _) => digits(round(unscaled, scale, 0), 0, true),
        (Format::Money, Some((unscaled, scale)), _) => money(digits(round(unscaled, scale, 2), 2, true), currency),
        (Format::Percent, Some((unscaled, scale)), _) => {
            format!("{} %", digits(round(unscaled.saturating_mul(100), scale, 1), 1, true))
        }
        (Format::Integer, None, Value::Float(f)) => group(&format!("{f:.0}")),
        (Format::Money, None, Value::Float(f)) => money(group(&format!("{f:.2}")), currency),
        (Format::Percent, None, Value::Float(f)) => format!("{} %", group(&format!("{:.1}", f * 100.0))),
        (Format::Month, None, Value::Date(days)) => date(*days).map_or_else(|| plain(value), month),
        (Format::Month, None, Value::Timestamp(m) | Value::TimestampTz(m)) => {
            date_time(*m).map_or_else(|| plain(value), |t| month(t.date()))
        }
        (Format::Month, None, Value::Text(text)) => {
            format!("{text}-01").parse::<Date>().map_or_else(|_| text.to_string(), month)
        }
        (Format::Date, None, Value::Timestamp(m) | Value::TimestampTz(m)) => {
            date_time(*m).map_or_else(|| plain(value), |t| t.date().to_string())
        }
        (_, _, Value::Bool(b)) => if *b { "yes" } else { "no" }.to_owned(),
        (_, _, Value::TimestampTz(m)) => format!("{} UTC", seconds(&stamp(*m))),
        (_, _, Value::Timestamp(m)) => seconds(&stamp(*m)),
        (_, _, Value::Float(f)) => {
            let text = format!("{f:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => plain(value),
    }
}

fn seconds(stamp: &str) -> String {
    stamp.split('.').next().unwrap_or_default().to_owned()
}

fn month(date: Date) -> String {
    date.strftime("%b %Y").to_string()
}

fn money(amount: String, currency: Option<&str>) -> String {
    match currency {
        Some(currency) => format!("{currency}\u{a0}{amount}"),
        None => amount,
    }
}

/// Half away from zero, to `to` digits after the point.
fn round(unscaled: i128, scale: u8, to: u8) -> i128 {
    if scale <= to {
        return unscaled.saturating_mul(10i128.saturating_pow(u32::from(to - scale)));
    }
    let by = 10i128.saturating_pow(u32::from(scale - to));
    let half = by / 2;
    let away = if unscaled < 0 { unscaled.saturating_sub(half) } else { unscaled.saturating_add(half) };
    away / by
}

fn digits(unscaled: i128, scale: u8, grouped: bool) -> String {
    let sign = if unscaled < 0 { "-" } else { "" };
    let scale = usize::from(scale);
    let all = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = all.split_at(all.len() - scale);
    let whole = if grouped { group(whole) } else { whole.to_owned() };
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// Commas between thousands of the part before the point.
fn group(number: &str) -> String {
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(w, f)| (w, Some(f)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |w| ("-", w));
    let mut text = String::with_capacity(number.len() + 4);
    text.push_str(sign);
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if let Some(fraction) = fraction {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

/// A number of bytes, in binary units.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(crate) fn bytes(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

/// A length of time in its two greatest units.
pub(crate) fn duration(duration: std::time::Duration) -> String {
    let ms = duration.as_millis();
    let s = duration.as_secs();
    match s {
        0 => format!("{ms} ms"),
        1..10 => format!("{}.{} s", s, (ms % 1000) / 100),
        10..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Thousands separated.
pub(crate) fn count(number: u64) -> String {
    group(&number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(unscaled: i128, scale: u8) -> Value {
        Value::Decimal { unscaled, scale }
    }

    #[test]
    fn numbers_are_exact_and_grouped() {
        let cases = [
            (decimal(1_234_567_895, 3), Format::Money, "KES\u{a0}1,234,567.90"),
            (decimal(-5, 3), Format::Money, "KES\u{a0}-0.01"),
            (
                decimal(99_999_999_999_999_999_999_999_999_999_999_999, 2),
                Format::Money,
                "KES\u{a0}999,999,999,999,999,999,999,999,999,999,999.99",
            ),
            (Value::Int(-1_000_000), Format::Integer, "-1,000,000"),
            (Value::Int(999), Format::Integer, "999"),
            (decimal(125, 1), Format::Integer, "13"),
            (decimal(1234, 4), Format::Percent, "12.3 %"),
            (Value::Float(0.5), Format::Percent, "50.0 %"),
            (Value::Float(1234.5), Format::Money, "KES\u{a0}1,234.50"),
            (Value::Int(7), Format::Plain, "7"),
            (Value::Null, Format::Money, "–"),
            (Value::Date(19_783), Format::Month, "Mar 2024"),
            (Value::Text("2024-03".into()), Format::Month, "Mar 2024"),
            (Value::Date(19_783), Format::Date, "2024-03-01"),
            (Value::TimestampTz(1_709_251_200_500_000), Format::Plain, "2024-03-01 00:00:00 UTC"),
            (Value::Bool(true), Format::Plain, "yes"),
        ];
        for (value, format, expected) in cases {
            assert_eq!(pretty(&value, format, Some("KES")), expected, "{value:?} {format:?}");
        }
    }

    #[test]
    fn plain_texts_and_json_keep_every_digit() {
        assert_eq!(plain(&decimal(5, 2)), "0.05");
        assert_eq!(plain(&decimal(-12345, 2)), "-123.45");
        assert_eq!(
            plain(&Value::Uuid(0x1234_5678_9abc_def0_1234_5678_9abc_def0)),
            "12345678-9abc-def0-1234-56789abcdef0"
        );
        assert_eq!(plain(&Value::Timestamp(1_500_000)), "1970-01-01 00:00:01.5");
        assert_eq!(plain(&Value::Bytes([1, 255].as_slice().into())), "\\x01ff");
        assert_eq!(json(&Value::Int(i64::MAX)), serde_json::json!("9223372036854775807"));
        assert_eq!(json(&Value::Int(5)), serde_json::json!(5));
        assert_eq!(json(&decimal(150, 2)), serde_json::json!("1.50"));
        assert_eq!(json(&Value::Float(f64::NAN)), serde_json::json!("NaN"));
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(duration(std::time::Duration::from_millis(1250)), "1.2 s");
        assert_eq!(duration(std::time::Duration::from_secs(3661)), "1 h 1 min");
        assert_eq!(label("total_paid"), "Total paid");
    }
}
