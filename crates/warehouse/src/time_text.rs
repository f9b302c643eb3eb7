//! PostgreSQL's ISO text of dates and times → the engine's integers.
//!
//! Ranges: PostgreSQL's timestamps reach 294276 AD, DuckDB's 294247-01-10; what lies between is refused.
//! Infinities are DuckDB's: the greatest integer and its negative.

use crate::convert::not_a;

const DAY_MICROS: i64 = 86_400_000_000;

/// Days since 1970-01-01.
pub(crate) fn date(text: &[u8]) -> Result<i32, String> {
    match text {
        b"infinity" => return Ok(i32::MAX),
        b"-infinity" => return Ok(-i32::MAX),
        _ => {}
    }
    let bad = || not_a("date", text);
    let (body, before_christ) = era(text);
    let (days, rest) = day(body, before_christ).ok_or_else(bad)?;
    if !rest.is_empty() {
        return Err(bad());
    }
    i32::try_from(days).map_err(|_| bad())
}

/// Microseconds since midnight.
pub(crate) fn time(text: &[u8]) -> Result<i64, String> {
    match clock(text) {
        Some((micros, rest)) if rest.is_empty() && micros <= DAY_MICROS => Ok(micros),
        _ => Err(not_a("time", text)),
    }
}

/// Microseconds since 1970-01-01; a zone, if written, is applied.
pub(crate) fn timestamp(text: &[u8]) -> Result<i64, String> {
    match text {
        b"infinity" => return Ok(i64::MAX),
        b"-infinity" => return Ok(-i64::MAX),
        _ => {}
    }
    let bad = || not_a("timestamp", text);
    let (body, before_christ) = era(text);
    let (days, rest) = day(body, before_christ).ok_or_else(bad)?;
    let rest = rest.strip_prefix(b" ").or_else(|| rest.strip_prefix(b"T")).ok_or_else(bad)?;
    let (micros, rest) = clock(rest).ok_or_else(bad)?;
    let offset = zone(rest).ok_or_else(bad)?;
    days.checked_mul(DAY_MICROS)
        .and_then(|m| m.checked_add(micros))
        .and_then(|m| m.checked_sub(offset))
        // the greatest one is infinity's
        .filter(|m| *m < i64::MAX && *m > -i64::MAX)
        .ok_or_else(|| {
            "the time lies beyond the year 294247, the warehouse's last; correct the row, then resync the table"
                .to_owned()
        })
}

fn era(text: &[u8]) -> (&[u8], bool) {
    text.strip_suffix(b" BC").map_or((text, false), |body| (body, true))
}

/// Reads digits up to `stop` (or the end).
fn number(text: &[u8]) -> Option<(i64, &[u8])> {
    let count = text.iter().take_while(|b| b.is_ascii_digit()).count();
    if count == 0 || count > 9 {
        return None;
    }
    let (digits, rest) = text.split_at(count);
    Some((digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0')), rest))
}

/// `Y…Y-MM-DD` → days since 1970-01-01 and what follows.
fn day(text: &[u8], before_christ: bool) -> Option<(i64, &[u8])> {
    let (year, rest) = number(text)?;
    let (month, rest) = number(rest.strip_prefix(b"-")?)?;
    let (day, rest) = number(rest.strip_prefix(b"-")?)?;
    if year == 0 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if before_christ { 1 - year } else { year };
    Some((days_from_civil(year, month, day), rest))
}

/// `HH:MM:SS[.ffffff]` → microseconds and what follows.
fn clock(text: &[u8]) -> Option<(i64, &[u8])> {
    let (hours, rest) = number(text)?;
    let (minutes, rest) = number(rest.strip_prefix(b":")?)?;
    let (seconds, mut rest) = number(rest.strip_prefix(b":")?)?;
    if hours > 24 || minutes > 59 || seconds > 60 {
        return None;
    }
    let mut micros = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let count = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if count == 0 || count > 6 {
            return None;
        }
        let (value, after) = number(fraction)?;
        micros += (count..6).fold(value, |v, _| v * 10);
        rest = after;
    }
    Some((micros, rest))
}

/// `+HH[:MM[:SS]]` → microseconds east of Greenwich; nothing is 0.
fn zone(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text {
        [] => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (mut seconds, mut rest) = number(rest).map(|(h, r)| (h * 3600, r))?;
    for unit in [60, 1] {
        if let Some(after) = rest.strip_prefix(b":") {
            let (value, after) = number(after)?;
            seconds += value * unit;
            rest = after;
        }
    }
    rest.is_empty().then_some(sign * seconds * 1_000_000)
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar
/// (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use millrace_contract::Value;

    use super::*;

    #[test]
    fn texts_come_back_the_same() {
        for text in [
            "1970-01-01",
            "2024-02-29",
            "0001-01-01",
            "0044-03-15 BC",
            "0001-12-31 BC",
            "294276-12-31",
            "infinity",
            "-infinity",
        ] {
            assert_eq!(Value::Date(date(text.as_bytes()).unwrap()).to_text().as_deref(), Some(text));
        }
        for text in [
            "1969-12-31 23:59:59.999999+00",
            "2024-02-29 12:00:00.5+00",
            "4713-01-01 00:00:00+00 BC",
            "294246-12-31 00:00:00+00",
            "infinity",
            "-infinity",
        ] {
            assert_eq!(Value::TimestampTz(timestamp(text.as_bytes()).unwrap()).to_text().as_deref(), Some(text));
        }
        for text in ["00:00:00", "24:00:00", "23:59:59.999999"] {
            assert_eq!(Value::Time(time(text.as_bytes()).unwrap()).to_text().as_deref(), Some(text));
        }
    }

    #[test]
    fn zones_are_applied() {
        assert_eq!(timestamp(b"1970-01-01 05:30:00+05:30"), Ok(0));
        assert_eq!(timestamp(b"1969-12-31 19:00:00-05"), Ok(0));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for text in ["", "2024", "2024-13-01", "0000-01-01", "24-01-01 BC x", "2024-01-01x"] {
            assert!(date(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["2024-01-01", "2024-01-01 25:00:00", "2024-01-01 00:00:00+", "2024-01-01 00:00:00.1234567"] {
            assert!(timestamp(text.as_bytes()).is_err(), "{text}");
        }
        assert!(timestamp(b"294276-12-31 23:59:59+00").unwrap_err().contains("294247"));
    }
}
