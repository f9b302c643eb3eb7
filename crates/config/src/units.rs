//! Sizes as people write them: `64MiB`.
//!
//! Only binary units are known: `MB` means 1,000,000 bytes to some tools and 1,048,576 to
//! PostgreSQL, so it is refused rather than guessed.

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Why a text is not a size, with what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadSize {
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// Bytes of a size such as `64MiB`.
pub(crate) fn parse_size(text: &str) -> Result<u64, BadSize> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
    let unit = unit.trim_start();
    let bad = |message: String, hint: String| BadSize { message, hint };
    let example = "write a whole number with one of B, KiB, MiB, GiB, TiB: 64MiB";
    if number.is_empty() {
        return Err(bad(format!("`{text}` is not a size"), example.to_owned()));
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        let near = UNITS.iter().find(|(name, _)| {
            let short: String = name.chars().filter(|c| *c != 'i').collect();
            name.eq_ignore_ascii_case(unit)
                || short.eq_ignore_ascii_case(unit)
                || (name.len() == 3
                    && unit.len() == 1
                    && name.chars().next().is_some_and(|c| unit.eq_ignore_ascii_case(&c.to_string())))
        });
        return Err(match (near, unit) {
            (_, "") => bad(format!("the size `{text}` has no unit"), example.to_owned()),
            (Some((name, _)), _) => bad(format!("unknown unit `{unit}`"), format!("write {number}{name}")),
            (None, _) => bad(format!("unknown unit `{unit}`"), example.to_owned()),
        });
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(*factor))
        .ok_or_else(|| bad(format!("the size `{text}` is too large"), example.to_owned()))
}

/// A size in the largest unit that divides it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    UNITS
        .iter()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .map_or_else(|| format!("{bytes}B"), |(name, factor)| format!("{}{name}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_trip() {
        for (text, bytes) in [("0B", 0), ("1KiB", 1024), ("64MiB", 64 << 20), ("8GiB", 8 << 30), ("1025B", 1025)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(format_size(bytes), text);
        }
        assert_eq!(parse_size("64 MiB"), Ok(64 << 20));
    }

    #[test]
    fn wrong_units_say_what_to_write() {
        for (text, hint) in
            [("64MB", "write 64MiB"), ("64m", "write 64MiB"), ("2g", "write 2GiB"), ("1kb", "write 1KiB")]
        {
            assert_eq!(parse_size(text).unwrap_err().hint, hint, "{text}");
        }
        for text in ["", "MiB", "-1MiB", "64", "1.5GiB", "64 parsecs", "99999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
