//! Where messages begin and end: the five-byte headers of the protocol, version 3, and spans of bytes passed on as they are.
//!
//! Invariants: no input panics; a length is checked before anything is reserved for it; what need not be read is not.
//! Non-goals: what messages say ([`crate::message`]).

/// The longest message that PostgreSQL itself can make is 1 GiB; a longer one is damage.
const MESSAGE_BYTES_MAX: u32 = 1 << 30;

/// Bytes of a type and a length.
pub(crate) const HEADER_BYTES: usize = 5;

/// A message's type, and its length with type and length field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tag: u8,
    pub(crate) len: usize,
}

/// Bytes that are not the protocol: the connection cannot be used any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("invalid message length {0}")]
    Length(u32),
    #[error("invalid message type {0:#04x}")]
    Type(u8),
    #[error("the message ends early")]
    Short,
    #[error("message of {0} bytes is too long for its type")]
    TooLong(usize),
}

/// The header at the front of `data`, or `None` if it is not all there yet.
#[inline]
pub(crate) fn header(data: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some((&[tag, a, b, c, d], _)) = data.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
        return Err(Malformed::Length(length));
    }
    Ok(Some(Header { tag, len: length as usize + 1 }))
}

/// Output made of spans of the input, with bytes left out or put in. As long as nothing is, it is the input itself and
/// nothing is copied.
#[derive(Debug)]
pub(crate) struct Spans<'a> {
    input: &'a [u8],
    from: usize,
    to: usize,
    out: &'a mut Vec<u8>,
}

impl<'a> Spans<'a> {
    /// `out` is room that is used again; what it holds is lost.
    #[inline]
    pub(crate) fn new(input: &'a [u8], out: &'a mut Vec<u8>) -> Self {
        out.clear();
        Self { input, from: 0, to: 0, out }
    }

    /// What has not been looked at.
    #[inline]
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.input.get(self.to..).unwrap_or_default()
    }

    /// How much has been looked at.
    #[inline]
    pub(crate) fn consumed(&self) -> usize {
        self.to
    }

    /// The next `bytes` go out as they are.
    #[inline]
    pub(crate) fn pass(&mut self, bytes: usize) {
        self.to = (self.to + bytes).min(self.input.len());
    }

    /// The next `bytes` do not go out.
    #[inline]
    pub(crate) fn skip(&mut self, bytes: usize) {
        self.spill();
        self.to = (self.to + bytes).min(self.input.len());
        self.from = self.to;
    }

    /// Where bytes are put in, before what has not been looked at.
    #[inline]
    pub(crate) fn insert(&mut self) -> &mut Vec<u8> {
        self.spill();
        self.out
    }

    fn spill(&mut self) {
        if let Some(span) = self.input.get(self.from..self.to) {
            self.out.extend_from_slice(span);
        }
        self.from = self.to;
    }

    /// All that goes out.
    #[inline]
    pub(crate) fn finish(mut self) -> &'a [u8] {
        if self.out.is_empty() {
            return self.input.get(self.from..self.to).unwrap_or_default();
        }
        self.spill();
        self.out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_checked() {
        assert_eq!(header(b"Q\0\0\0"), Ok(None));
        assert_eq!(header(b"Q\0\0\0\x04"), Ok(Some(Header { tag: b'Q', len: 5 })));
        assert_eq!(header(b"Q\0\0\0\x03"), Err(Malformed::Length(3)));
        assert_eq!(header(b"Q\xff\xff\xff\xff"), Err(Malformed::Length(u32::MAX)));
    }

    #[test]
    fn untouched_input_is_not_copied() {
        let input = b"one two three".to_vec();
        let mut out = Vec::new();
        let mut spans = Spans::new(&input, &mut out);
        spans.pass(3);
        spans.pass(4);
        let finished = spans.finish();
        assert_eq!(finished, b"one two");
        assert_eq!(finished.as_ptr(), input.as_ptr());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Pass(usize),
        Skip(usize),
        Insert(Vec<u8>),
    }

    proptest! {
        #[test]
        fn spans_are_what_was_asked_for(
            input in proptest::collection::vec(any::<u8>(), 0..64),
            steps in proptest::collection::vec(prop_oneof![
                (0usize..20).prop_map(Step::Pass),
                (0usize..20).prop_map(Step::Skip),
                proptest::collection::vec(any::<u8>(), 0..8).prop_map(Step::Insert),
            ], 0..20),
        ) {
            let mut out = Vec::new();
            let mut spans = Spans::new(&input, &mut out);
            let (mut expected, mut at) = (Vec::new(), 0);
            for step in steps {
                match step {
                    Step::Pass(n) => {
                        let to = (at + n).min(input.len());
                        expected.extend_from_slice(&input[at..to]);
                        at = to;
                        spans.pass(n);
                    }
                    Step::Skip(n) => {
                        at = (at + n).min(input.len());
                        spans.skip(n);
                    }
                    Step::Insert(bytes) => {
                        expected.extend_from_slice(&bytes);
                        spans.insert().extend_from_slice(&bytes);
                    }
                }
                prop_assert_eq!(spans.consumed(), at);
                prop_assert_eq!(spans.rest(), &input[at..]);
            }
            prop_assert_eq!(spans.finish(), &expected[..]);
        }

        #[test]
        fn no_header_panics(data in proptest::collection::vec(any::<u8>(), 0..12)) {
            let _any = header(&data);
        }
    }
}
