//! Pages whose items are alike, kept as differences from item to item: an index on numbers or times that grow takes a twentieth
//! of the room then, and a table of equal rows a fraction.
//!
//! A page of 8 KiB whose line pointers nearly all tell one item length is rewritten from its 24th byte on: each byte that has another one
//! *step* before it becomes the difference to that one, modulo 256. The step is the items' length, in whole words of eight. It is done only
//! where at least half of these differences are zero: random content, such as digests, would compress worse. A page that was rewritten
//! says so in its twelfth byte, the upper half of `pd_flags` (`storage/bufpage.h`), which PostgreSQL leaves zero: the step
//! in words, with the highest bit set. Where any page of a run has that byte set already, none is rewritten.
//!
//! Invariant: [`undo`] gives exactly what [`apply`] was given; checksums are always of that.

use crate::page::PAGE;

const MARK_AT: usize = 11;
const MARK: u8 = 0x80;
/// The page's header.
const HEAD: usize = 24;
const POINTER: usize = 4;
const WORD: usize = 8;
const STEP_MAX: usize = 0x7f * WORD;
/// Fewer items are not worth it.
const ITEMS_MIN: usize = 8;
/// Of `pd_pagesize_version`: pages of this size.
const SIZE_BITS: u16 = 0xff00;

fn half(page: &[u8], at: usize) -> u16 {
    page.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// Rewrites the pages where that helps; whether there are any.
pub(crate) fn apply(pages: &mut [u8]) -> bool {
    if pages.chunks_exact(PAGE).any(|page| page.get(MARK_AT) != Some(&0)) {
        return false;
    }
    let mut any = false;
    for page in pages.chunks_exact_mut(PAGE) {
        if let Some(step) = step(page) {
            forward(page, step);
            any = true;
        }
    }
    any
}

/// Gives marked pages back their content.
pub(crate) fn undo(pages: &mut [u8]) {
    for page in pages.chunks_exact_mut(PAGE) {
        let mark = page.get(MARK_AT).copied().unwrap_or(0);
        if mark & MARK != 0 {
            backward(page, usize::from(mark & !MARK) * WORD);
        }
    }
}

/// The items' length, if nearly all have the same and differences are worth it.
fn step(page: &[u8]) -> Option<usize> {
    let (lower, upper, special) = (usize::from(half(page, 12)), usize::from(half(page, 14)), half(page, 16));
    let of_size = usize::from(half(page, 18) & SIZE_BITS) == PAGE;
    if !of_size || lower > upper || upper > usize::from(special) || usize::from(special) > PAGE {
        return None;
    }
    let pointers = page.get(HEAD..lower)?.chunks_exact(POINTER);
    let items = pointers.len();
    // `ItemIdData` (`storage/itemid.h`): the length is the upper 15 bits
    let length = |pointer: &[u8]| usize::from(half(pointer, 2) >> 1);
    // the first item of an index's page may be its upper bound, which can be shorter
    let usual = pointers.clone().nth(items / 2).map(length)?;
    let step = usual.next_multiple_of(WORD);
    if items < ITEMS_MIN || !(WORD..=STEP_MAX).contains(&step) {
        return None;
    }
    let alike = pointers.filter(|pointer| length(pointer) == usual).count();
    if alike * 8 < items * 7 {
        return None;
    }
    let (before, after) = (page.get(HEAD..PAGE - step)?, page.get(HEAD + step..)?);
    let zeros: usize = before
        .chunks(128)
        .zip(after.chunks(128))
        // a byte counts so far, and without a check for more it is summed by the vector
        .map(|(before, after)| before.iter().zip(after).fold(0u8, |same, (a, b)| same.wrapping_add(u8::from(a == b))))
        .map(usize::from)
        .sum();
    (zeros * 2 >= after.len()).then_some(step)
}

fn forward(page: &mut [u8], step: usize) {
    let mut before = [0; PAGE];
    before.copy_from_slice(page);
    let from = before.get(HEAD..PAGE - step).unwrap_or_default();
    let to = page.get_mut(HEAD + step..).unwrap_or_default();
    for (to, from) in to.iter_mut().zip(from) {
        *to = to.wrapping_sub(*from);
    }
    if let Some(mark) = page.get_mut(MARK_AT) {
        *mark = MARK | u8::try_from(step / WORD).unwrap_or(0);
    }
}

fn backward(page: &mut [u8], step: usize) {
    let mut at = HEAD + step;
    while step > 0 && at < PAGE {
        let (done, rest) = page.split_at_mut(at);
        let from = done.get(at - step..).unwrap_or_default();
        for (to, from) in rest.iter_mut().zip(from) {
            *to = to.wrapping_add(*from);
        }
        at += step;
    }
    if let Some(mark) = page.get_mut(MARK_AT) {
        *mark = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page as PostgreSQL lays it out: pointers from the front, items from the back.
    fn page(items: &[Vec<u8>], special: usize) -> Vec<u8> {
        let mut page = vec![0u8; PAGE];
        let mut upper = PAGE - special;
        for (n, item) in items.iter().enumerate() {
            upper -= item.len().next_multiple_of(WORD);
            page[upper..upper + item.len()].copy_from_slice(item);
            let pointer = u32::try_from(upper).unwrap() | 1 << 15 | u32::try_from(item.len()).unwrap() << 17;
            page[HEAD + n * POINTER..][..POINTER].copy_from_slice(&pointer.to_le_bytes());
        }
        let lower = HEAD + items.len() * POINTER;
        for (at, value) in [(12, lower), (14, upper), (16, PAGE - special), (18, PAGE | 4)] {
            page[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap().to_le_bytes());
        }
        page
    }

    fn entry(n: u64) -> Vec<u8> {
        let mut entry = vec![0, 0, 0, 0, u8::try_from(n % 61).unwrap(), 0, 16, 0];
        entry[2] = u8::try_from(n / 61 % 256).unwrap();
        entry.extend(n.to_le_bytes());
        entry
    }

    #[test]
    fn what_grows_becomes_small() {
        let entries: Vec<Vec<u8>> = (1_000_000..1_000_366).map(entry).collect();
        let index = page(&entries, 16);
        let mut steps = index.clone();
        assert!(apply(&mut steps) && steps[MARK_AT] == MARK | 2);
        let [plain, small] = [&index, &steps].map(|bytes| zstd::bulk::compress(bytes, 3).unwrap().len());
        assert!(small * 8 < plain, "{small} of {plain}");
        undo(&mut steps);
        assert!(steps == index);
    }

    #[test]
    fn what_would_not_gain_stays() {
        let digest = |n: u32| blake3::hash(&n.to_le_bytes()).to_hex().as_bytes()[..40].to_vec();
        let random = page(&(0..150).map(digest).collect::<Vec<_>>(), 16);
        let uneven = page(&(1..100).map(|n| vec![1; n % 60 + 8]).collect::<Vec<_>>(), 0);
        let few = page(&(0..5).map(entry).collect::<Vec<_>>(), 16);
        for of in [random, uneven, few, vec![0; PAGE]] {
            let mut now = of.clone();
            assert!(!apply(&mut now) && now == of);
        }
        // a page that bears the mark by itself
        let mut both = [page(&(0..300).map(entry).collect::<Vec<_>>(), 16), vec![0; PAGE]].concat();
        both[PAGE + MARK_AT] = MARK | 1;
        let before = both.clone();
        assert!(!apply(&mut both) && both == before);
    }

    proptest! {
        #[test]
        fn nothing_is_lost(
            lengths in proptest::collection::vec(prop_oneof![8 => Just(24usize), 1 => 1usize..64], 0..100),
            seed in any::<u64>(),
            noise in proptest::collection::vec((0usize..PAGE, any::<u8>()), 0..20),
        ) {
            let items: Vec<Vec<u8>> = lengths
                .iter()
                .enumerate()
                .map(|(n, length)| {
                    let n = u64::try_from(n).unwrap().wrapping_add(seed);
                    n.to_le_bytes().into_iter().cycle().take(*length).collect()
                })
                .collect();
            let mut of = page(&items, 16);
            noise.iter().for_each(|(at, value)| of[*at] = *value);
            let before = of.clone();
            if apply(&mut of) {
                undo(&mut of);
            }
            prop_assert!(of == before);
        }

        #[test]
        fn damaged_content_panics_nowhere(bytes in proptest::collection::vec(any::<u8>(), 0..3 * PAGE)) {
            let mut bytes = bytes;
            undo(&mut bytes);
        }
    }
}
