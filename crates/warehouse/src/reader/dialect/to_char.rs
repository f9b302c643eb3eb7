//! Format patterns of `to_char`, `to_date` and `to_timestamp` as DuckDB's.
//!
//! Only literal patterns are translated (PostgreSQL manual, "Data Type Formatting Functions").

/// A piece of a date format.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// For `strftime`.
    Strftime(String),
    /// An expression of the value, written `{}`.
    Expression(&'static str),
}

/// Patterns, longest first, with `strftime`'s letter or an expression of the value.
const PATTERNS: [(&str, &str); 43] = [
    ("FMMonth", "%B"),
    ("FMMONTH", "=upper(strftime({}, '%B'))"),
    ("FMmonth", "=lower(strftime({}, '%B'))"),
    ("FMDay", "%A"),
    ("FMDAY", "=upper(strftime({}, '%A'))"),
    ("FMday", "=lower(strftime({}, '%A'))"),
    ("FMHH24", "%-H"),
    ("FMHH12", "%-I"),
    ("FMDDD", "%-j"),
    ("FMDD", "%-d"),
    ("FMMM", "%-m"),
    ("FMMI", "%-M"),
    ("FMSS", "%-S"),
    ("YYYY", "%Y"),
    ("Month", "=rpad(strftime({}, '%B'), 9, ' ')"),
    ("MONTH", "=rpad(upper(strftime({}, '%B')), 9, ' ')"),
    ("month", "=rpad(lower(strftime({}, '%B')), 9, ' ')"),
    ("HH24", "%H"),
    ("HH12", "%I"),
    ("IYYY", "%G"),
    ("Mon", "%b"),
    ("MON", "=upper(strftime({}, '%b'))"),
    ("mon", "=lower(strftime({}, '%b'))"),
    ("Day", "=rpad(strftime({}, '%A'), 9, ' ')"),
    ("DAY", "=rpad(upper(strftime({}, '%A')), 9, ' ')"),
    ("day", "=rpad(lower(strftime({}, '%A')), 9, ' ')"),
    ("DDD", "%j"),
    ("Dy", "%a"),
    ("DY", "=upper(strftime({}, '%a'))"),
    ("dy", "=lower(strftime({}, '%a'))"),
    ("ID", "%u"),
    ("DD", "%d"),
    ("MM", "%m"),
    ("MI", "%M"),
    ("SS", "%S"),
    ("MS", "%g"),
    ("US", "%f"),
    ("HH", "%I"),
    ("IW", "%V"),
    ("YY", "%y"),
    ("AM", "%p"),
    ("PM", "%p"),
    ("Q", "=CAST(quarter({}) AS VARCHAR)"),
];

/// The pieces of a date pattern. Unknown letters stand for themselves, as in PostgreSQL.
pub(super) fn date_pieces(pattern: &str) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut rest = pattern;
    while !rest.is_empty() {
        let found = PATTERNS.iter().find_map(|(name, to)| {
            let after = rest.strip_prefix(name).or_else(|| {
                // digits have no case: `yyyy-mm-dd` is common
                let lower = name.to_lowercase();
                let numeric = to.starts_with('%') && !matches!(*to, "%B" | "%A" | "%b" | "%a" | "%p");
                rest.strip_prefix(lower.as_str()).filter(|_| numeric)
            })?;
            Some((to, after))
        });
        if let Some((to, after)) = found {
            match to.strip_prefix('=') {
                Some(expression) => pieces.push(Piece::Expression(expression)),
                None => literal(&mut pieces, to),
            }
            rest = after;
        } else if let Some((quoted, after)) = rest.strip_prefix('"').and_then(|inside| inside.split_once('"')) {
            literal(&mut pieces, &quoted.replace('%', "%%"));
            rest = after;
        } else {
            let mut chars = rest.chars();
            match chars.next() {
                Some('%') => literal(&mut pieces, "%%"),
                Some(c) => literal(&mut pieces, c.encode_utf8(&mut [0; 4])),
                None => {}
            }
            rest = chars.as_str();
        }
    }
    pieces
}

fn literal(pieces: &mut Vec<Piece>, text: &str) {
    if let Some(Piece::Strftime(last)) = pieces.last_mut() {
        last.push_str(text);
    } else {
        pieces.push(Piece::Strftime(text.to_owned()));
    }
}

/// Whether a `to_char` pattern is one for numbers.
pub(super) fn is_numeric(pattern: &str) -> bool {
    pattern.contains(['9', '0']) && pattern.trim_start_matches("FM").chars().all(|c| "90.,GDSMI$ %".contains(c))
}

/// How a numeric pattern prints: DuckDB's `format` with padding to PostgreSQL's width.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Numeric {
    /// For DuckDB's `format`.
    pub(super) format: String,
    pub(super) decimals: u8,
    /// Blanks are put in front up to this width; 0 with `FM`.
    pub(super) width: usize,
}

/// Reads patterns of digits, at most one decimal point, grouping commas and `FM`; `None` for others.
pub(super) fn numeric(pattern: &str) -> Option<Numeric> {
    let (fill, digits) = pattern.strip_prefix("FM").map_or((false, pattern), |rest| (true, rest));
    let digits = digits.replace('G', ",").replace('D', ".");
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits.as_str(), ""));
    if !whole.chars().all(|c| "90,".contains(c)) || !fraction.chars().all(|c| "90".contains(c)) {
        return None;
    }
    // optional digits after the point would have to be cut off
    if fill && fraction.contains('9') {
        return None;
    }
    let decimals = u8::try_from(fraction.len()).ok()?;
    let zeros = whole.chars().filter(|c| c.is_ascii_digit()).skip_while(|c| *c == '9').count();
    if zeros > 1 && whole.contains(',') {
        return None;
    }
    let grouping = if whole.contains(',') { "," } else { "" };
    let pad = if zeros > 1 {
        format!("0{}", zeros + if decimals > 0 { usize::from(decimals) + 1 } else { 0 })
    } else {
        String::new()
    };
    Some(Numeric {
        format: format!("{{:{pad}{grouping}.{decimals}f}}"),
        decimals,
        // one place for the sign
        width: if fill { 0 } else { digits.chars().count() + 1 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_patterns() {
        assert_eq!(date_pieces("YYYY-MM-DD HH24:MI:SS"), [Piece::Strftime("%Y-%m-%d %H:%M:%S".into())]);
        assert_eq!(date_pieces("yyyy\"Y%\""), [Piece::Strftime("%YY%%".into())]);
        assert_eq!(
            date_pieces("YYYY-Q"),
            [Piece::Strftime("%Y-".into()), Piece::Expression("CAST(quarter({}) AS VARCHAR)")]
        );
    }

    #[test]
    fn numeric_patterns() {
        assert_eq!(numeric("FM999,999,990.00"), Some(Numeric { format: "{:,.2f}".into(), decimals: 2, width: 0 }));
        assert_eq!(numeric("FM000"), Some(Numeric { format: "{:03.0f}".into(), decimals: 0, width: 0 }));
        assert_eq!(numeric("9990"), Some(Numeric { format: "{:.0f}".into(), decimals: 0, width: 5 }));
        assert_eq!(numeric("FM99.99"), None);
        assert!(is_numeric("FM999,990.00"));
        assert!(!is_numeric("YYYY-MM"));
    }
}
