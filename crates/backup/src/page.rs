//! Pages of relations: their position in the log and their checksum.
//!
//! Layout `PageHeaderData` (`storage/bufpage.h`), little-endian; the checksum is the FNV-1a variant of
//! `storage/checksum_impl.h`, PostgreSQL 9.3 and later.

use millrace_base::Lsn;

pub(crate) const PAGE: usize = 8192;

/// Blocks in a file of a relation: 1 GiB.
pub(crate) const BLOCKS_PER_FILE: u32 = 131_072;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

fn half(page: &[u8], at: usize) -> u16 {
    page.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn word(page: &[u8], at: usize) -> u32 {
    page.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Where the log record ends that changed the page last.
pub(crate) fn lsn(page: &[u8]) -> Lsn {
    Lsn((u64::from(word(page, 0)) << 32) | u64::from(word(page, 4)))
}

/// Never used: it has neither a position nor a checksum.
pub(crate) fn is_new(page: &[u8]) -> bool {
    half(page, 14) == 0
}

/// What the checksum of the page should be, as block `block` of its relation.
pub(crate) fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = OFFSETS;
    let (head, rest) = page.split_at(page.len().min(LANES * 4));
    // the checksum's own place counts as zero
    let mut first = [0; LANES * 4];
    first.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
    first[8..10].fill(0);
    for row in std::iter::once(first.as_slice()).chain(rest.chunks_exact(LANES * 4)) {
        for (sum, bytes) in sums.iter_mut().zip(row.chunks_exact(4)) {
            mix(sum, u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        }
    }
    for _ in 0..2 {
        sums.iter_mut().for_each(|sum| mix(sum, 0));
    }
    let all = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    // a checksum is never 0
    u16::try_from(all % 65_535 + 1).unwrap_or(u16::MAX)
}

#[inline]
fn mix(sum: &mut u32, value: u32) {
    let mixed = *sum ^ value;
    *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
}

/// What a page's own words say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// Written while it was read, or damaged: reading it again tells.
    Wrong,
}

/// Judges a page that was read while the server runs. One that changed after `start` is not judged: replay brings it
/// whole from the log.
pub(crate) fn judge(page: &[u8], block: u32, start: Lsn) -> Verdict {
    if is_new(page) || lsn(page) >= start || half(page, 8) == checksum(page, block) {
        Verdict::Good
    } else {
        Verdict::Wrong
    }
}

/// Whether an incremental backup needs the page: `since` is where its parent's start was. A page without a position
/// is always taken: it may have come into being by truncation and growth, which leaves no mark.
pub(crate) fn is_changed(page: &[u8], since: Lsn) -> bool {
    is_new(page) || !lsn(page).is_valid() || lsn(page) >= since
}

/// Puts pages that follow each other together: (first, number).
pub(crate) fn runs(blocks: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((first, number)) if *first + *number == block => *number += 1,
            _ => runs.push((block, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(lsn: u64) -> Vec<u8> {
        let mut page: Vec<u8> = (0..PAGE).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
        page[0..4].copy_from_slice(&u32::try_from(lsn >> 32).unwrap().to_le_bytes());
        page[4..8].copy_from_slice(&u32::try_from(lsn & 0xFFFF_FFFF).unwrap().to_le_bytes());
        let sum = checksum(&page, 5);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn judged_by_checksum_place_and_position() {
        let good = page(0x1_0000_0010);
        assert_eq!(lsn(&good), Lsn(0x1_0000_0010));
        let start = Lsn(0x2_0000_0000);
        assert_eq!(judge(&good, 5, start), Verdict::Good);
        assert_eq!(judge(&good, 6, start), Verdict::Wrong, "another place");
        let mut torn = good.clone();
        torn[8000] ^= 1;
        assert_eq!(judge(&torn, 5, start), Verdict::Wrong);
        assert_eq!(judge(&torn, 5, Lsn(0x1_0000_0010)), Verdict::Good, "changed since the start");
        assert_eq!(judge(&vec![0; PAGE], 5, start), Verdict::Good, "new");
    }

    #[test]
    fn changed_since() {
        assert!(is_changed(&page(100), Lsn(100)));
        assert!(!is_changed(&page(99), Lsn(100)));
        assert!(is_changed(&page(0), Lsn(100)) && is_changed(&vec![0; PAGE], Lsn(100)));
    }

    #[test]
    fn neighbours_are_one_run() {
        assert_eq!(runs([1, 2, 3, 7, 9, 10]), [(1, 3), (7, 1), (9, 2)]);
        assert_eq!(runs([]), []);
    }
}
