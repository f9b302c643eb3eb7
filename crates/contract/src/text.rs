//! Values as PostgreSQL writes them (DateStyle ISO, bytea hex): one text for the CLI, CSV, JSON and the wire.

use std::fmt::Write as _;

use crate::query::Value;

const DAY_MICROS: i64 = 86_400_000_000;

impl Value {
    /// PostgreSQL's text output; `None` for null.
    #[must_use]
    pub fn to_text(&self) -> Option<String> {
        Some(match self {
            Self::Null => return None,
            Self::Bool(true) => "t".to_owned(),
            Self::Bool(false) => "f".to_owned(),
            Self::Int(value) => value.to_string(),
            Self::HugeInt(value) => value.to_string(),
            Self::Float(value) => float(*value),
            Self::Decimal { unscaled, scale } => decimal(*unscaled, *scale),
            Self::Text(text) => text.to_string(),
            Self::Bytes(bytes) => bytes.iter().fold("\\x".to_owned(), |mut text, byte| {
                // writing to a String cannot fail
                _ = write!(text, "{byte:02x}");
                text
            }),
            Self::Date(days) => date(i64::from(*days)),
            Self::Time(micros) => time(*micros),
            Self::Timestamp(micros) => timestamp(*micros, ""),
            Self::TimestampTz(micros) => timestamp(*micros, "+00"),
            Self::Uuid(value) => {
                let hex = format!("{value:032x}");
                let (a, rest) = hex.split_at(8);
                let (b, rest) = rest.split_at(4);
                let (c, rest) = rest.split_at(4);
                let (d, e) = rest.split_at(4);
                format!("{a}-{b}-{c}-{d}-{e}")
            }
        })
    }

    /// For charts and JSON numbers; `None` for what is not a number. Decimals lose digits beyond 15.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a chart's pixel needs no more digits; exact text is to_text's")]
    pub fn to_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::HugeInt(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Decimal { unscaled, scale } => Some(*unscaled as f64 / 10f64.powi(i32::from(*scale))),
            _ => None,
        }
    }
}

/// `unscaled / 10^scale` with all its digits.
fn decimal(unscaled: i128, scale: u8) -> String {
    if scale == 0 {
        return unscaled.to_string();
    }
    let scale = usize::from(scale);
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if unscaled < 0 { "-" } else { "" };
    format!("{sign}{whole}.{fraction}")
}

/// The shortest text that reads back as the same number, in PostgreSQL's notation
/// (exponent below 1e-4 and from 1e15 on).
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e15).contains(&magnitude) {
        let text = format!("{value:e}");
        if let Some((mantissa, exponent)) = text.split_once('e') {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
            return format!("{mantissa}e{sign}{digits:0>2}");
        }
        return text;
    }
    value.to_string()
}

/// Days since 1970-01-01 as `YYYY-MM-DD`, with ` BC` where it must be, and PostgreSQL's infinities.
fn date(days: i64) -> String {
    if days == i64::from(i32::MAX) {
        return "infinity".to_owned();
    }
    if days <= -i64::from(i32::MAX) {
        return "-infinity".to_owned();
    }
    let (year, month, day) = civil(days);
    if year > 0 { format!("{year:04}-{month:02}-{day:02}") } else { format!("{:04}-{month:02}-{day:02} BC", 1 - year) }
}

fn time(micros: i64) -> String {
    let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        text.push('.');
        text.push_str(digits.trim_end_matches('0'));
    }
    text
}

fn timestamp(micros: i64, zone: &str) -> String {
    if micros == i64::MAX {
        return "infinity".to_owned();
    }
    if micros <= -i64::MAX {
        return "-infinity".to_owned();
    }
    let day = date(micros.div_euclid(DAY_MICROS));
    let time = time(micros.rem_euclid(DAY_MICROS));
    match day.strip_suffix(" BC") {
        Some(day) => format!("{day} {time}{zone} BC"),
        None => format!("{day} {time}{zone}"),
    }
}

/// Year, month and day in the proleptic Gregorian calendar of days since 1970-01-01
/// (the era-based method of Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_postgresqls() {
        let cases: [(Value, &str); 20] = [
            (Value::Decimal { unscaled: -5, scale: 2 }, "-0.05"),
            (Value::Decimal { unscaled: 123_456, scale: 3 }, "123.456"),
            (Value::Decimal { unscaled: 7, scale: 0 }, "7"),
            (Value::Float(1e15), "1e+15"),
            (Value::Float(123_456_789_012_345.0), "123456789012345"),
            (Value::Float(0.0001), "0.0001"),
            (Value::Float(0.00001), "1e-05"),
            (Value::Float(-0.0), "-0"),
            (Value::Float(1.5e300), "1.5e+300"),
            (Value::Float(f64::NEG_INFINITY), "-Infinity"),
            (Value::Date(0), "1970-01-01"),
            (Value::Date(-719_163), "0001-12-31 BC"),
            (Value::Date(19_782), "2024-02-29"),
            (Value::Date(i32::MAX), "infinity"),
            (Value::Time(86_400_000_000), "24:00:00"),
            (Value::Timestamp(1_500), "1970-01-01 00:00:00.0015"),
            (Value::TimestampTz(-1), "1969-12-31 23:59:59.999999+00"),
            (Value::TimestampTz(i64::MAX), "infinity"),
            (Value::Uuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef), "01234567-89ab-cdef-0123-456789abcdef"),
            (Value::Bytes([0xde, 0xad].as_slice().into()), "\\xdead"),
        ];
        for (value, text) in cases {
            assert_eq!(value.to_text().as_deref(), Some(text), "{value:?}");
        }
        assert_eq!(Value::Null.to_text(), None);
    }
}
