//! The checksum that Flyway keeps: CRC-32 over the lines of a script without their ends.

/// A byte order mark before the first line is left out, and so are `\n`, `\r` and `\r\n`: a script
/// keeps its checksum when a version control changes the ends of its lines.
#[must_use]
pub fn checksum(sql: &str) -> i32 {
    let mut crc = crc32fast::Hasher::new();
    let text = sql.strip_prefix('\u{feff}').unwrap_or(sql);
    for piece in text.split(['\n', '\r']) {
        crc.update(piece.as_bytes());
    }
    crc.finalize().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_lines_do_not_count() {
        // the check value of CRC-32 (ISO-HDLC) for "123456789" is cbf43926
        let expected = 0xcbf4_3926_u32.cast_signed();
        for text in ["123456789", "\u{feff}123\n456\r\n789\n", "123456789\n\n\n", "1234\r56789"] {
            assert_eq!(checksum(text), expected, "{text:?}");
        }
        assert_ne!(checksum("12345678 9"), expected);
        assert_eq!(checksum(""), 0);
    }
}
