//! Reading big-endian fields off the front of a message.

use millrace_base::{Lsn, Micros};

/// A message is not what the protocol says. The connection cannot be used any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the message ends early, in its {0}")]
    Short(&'static str),
    #[error("the message goes on for {0} bytes after its end")]
    Trailing(usize),
    #[error("unknown message type {0:#04x}")]
    UnknownMessage(u8),
    #[error("unexpected {what} {value:#04x}")]
    Unexpected { what: &'static str, value: u8 },
    #[error("the {0} is not UTF-8")]
    NotUtf8(&'static str),
    #[error("the {0} is negative")]
    Negative(&'static str),
    #[error("a COPY row ends within an escape")]
    DanglingEscape,
}

/// The rest of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    pub(crate) fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Short(what))?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short(what))?;
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array(what)?))
    }

    #[inline]
    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array(what)?))
    }

    #[inline]
    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn i32(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn lsn(&mut self, what: &'static str) -> Result<Lsn, DecodeError> {
        Ok(Lsn(u64::from_be_bytes(self.array(what)?)))
    }

    pub(crate) fn time(&mut self, what: &'static str) -> Result<Micros, DecodeError> {
        Ok(Micros::from_postgres(i64::from_be_bytes(self.array(what)?)))
    }

    /// A length that the protocol sends signed.
    #[inline]
    pub(crate) fn len(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        usize::try_from(self.i32(what)?).map_err(|_| DecodeError::Negative(what))
    }

    /// A text that a zero byte ends.
    pub(crate) fn text(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let end = memchr::memchr(0, self.rest).ok_or(DecodeError::Short(what))?;
        let text = self.bytes(end, what)?;
        self.bytes(1, what)?;
        std::str::from_utf8(text).map_err(|_| DecodeError::NotUtf8(what))
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }
}
