//! Messages from clients: bytes into types (PostgreSQL manual, "Message Formats").
//!
//! Invariants: nothing panics on any input; a message longer than the caller's limit is refused before it is read;
//! counts are checked against what is there before anything is allocated for them.

use bytes::{Buf, Bytes};

use crate::error::Refusal;

/// What a client may ask before it has said who it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Startup {
    Ssl,
    GssEncryption,
    Cancel {
        pid: i32,
        key: i32,
    },
    /// Parameters in the order given.
    Session {
        minor: u16,
        params: Vec<(String, String)>,
    },
}

/// A first message longer than this is not one.
pub(crate) const STARTUP_BYTES_MAX: usize = 10_000;

impl Startup {
    /// From the body, without its length.
    ///
    /// # Errors
    /// If it is no startup message of protocol 3.
    pub(crate) fn parse(mut body: Bytes) -> Result<Self, Refusal> {
        let bad = || Refusal::fatal("08P01", "invalid startup packet");
        let code = body.try_get_u32().map_err(|_| bad())?;
        let (major, minor) = (code >> 16, code & 0xFFFF);
        match (major, minor) {
            (1234, 5679) => Ok(Self::Ssl),
            (1234, 5680) => Ok(Self::GssEncryption),
            (1234, 5678) => {
                let pid = body.try_get_i32().map_err(|_| bad())?;
                let key = body.try_get_i32().map_err(|_| bad())?;
                Ok(Self::Cancel { pid, key })
            }
            (3, minor) => {
                let mut params = Vec::new();
                loop {
                    let name = text(&mut body)?;
                    if name.is_empty() {
                        break;
                    }
                    params.push((name, text(&mut body)?));
                }
                Ok(Self::Session { minor: u16::try_from(minor).unwrap_or(0), params })
            }
            _ => Err(Refusal::fatal(
                "0A000",
                format!("unsupported frontend protocol {major}.{minor}: server supports 3.0"),
            )),
        }
    }
}

/// A message of a session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Query(String),
    Parse {
        name: String,
        sql: String,
        types: Vec<u32>,
    },
    Bind(Bind),
    Describe(Target),
    Execute {
        portal: String,
        rows_max: usize,
    },
    Close(Target),
    Flush,
    Sync,
    Terminate,
    /// Passwords and SASL answers, not looked into here.
    Password(Bytes),
    /// CopyData and the like: ignored outside of COPY, as the manual says.
    Copy,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Statement(String),
    Portal(String),
}

/// `Bind`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) portal: String,
    pub(crate) statement: String,
    pub(crate) param_formats: Vec<i16>,
    pub(crate) params: Vec<Option<Bytes>>,
    pub(crate) result_formats: Vec<i16>,
}

impl Message {
    /// From its type byte and body.
    ///
    /// # Errors
    /// If the body is not what the type says.
    pub(crate) fn parse(kind: u8, mut body: Bytes) -> Result<Self, Refusal> {
        let body = &mut body;
        Ok(match kind {
            b'Q' => Self::Query(text(body)?),
            b'P' => {
                let (name, sql) = (text(body)?, text(body)?);
                let types = list(body, 4, |body| body.try_get_u32().map_err(|_| bad()))?;
                Self::Parse { name, sql, types }
            }
            b'B' => {
                let (portal, statement) = (text(body)?, text(body)?);
                let param_formats = list(body, 2, |body| body.try_get_i16().map_err(|_| bad()))?;
                let params = list(body, 4, value)?;
                let result_formats = list(body, 2, |body| body.try_get_i16().map_err(|_| bad()))?;
                Self::Bind(Bind { portal, statement, param_formats, params, result_formats })
            }
            b'D' => Self::Describe(target(body)?),
            b'C' => Self::Close(target(body)?),
            b'E' => {
                let portal = text(body)?;
                let rows_max = body.try_get_i32().map_err(|_| bad())?;
                Self::Execute { portal, rows_max: usize::try_from(rows_max).unwrap_or(0) }
            }
            b'H' => Self::Flush,
            b'S' => Self::Sync,
            b'X' => Self::Terminate,
            b'p' => Self::Password(body.split_off(0)),
            b'd' | b'c' | b'f' => Self::Copy,
            other => {
                return Err(Refusal::fatal("08P01", format!("invalid frontend message type {other}")));
            }
        })
    }
}

fn bad() -> Refusal {
    Refusal::fatal("08P01", "invalid message format")
}

/// A string that ends with a zero byte.
pub(crate) fn text(body: &mut Bytes) -> Result<String, Refusal> {
    let end = body.iter().position(|byte| *byte == 0).ok_or_else(bad)?;
    let bytes = body.split_to(end);
    body.advance(1);
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Refusal::error("22021", "invalid byte sequence for encoding \"UTF8\""))
}

fn list<T>(
    body: &mut Bytes,
    bytes_min: usize,
    mut item: impl FnMut(&mut Bytes) -> Result<T, Refusal>,
) -> Result<Vec<T>, Refusal> {
    let count = usize::from(body.try_get_u16().map_err(|_| bad())?);
    if count * bytes_min > body.len() {
        return Err(bad());
    }
    (0..count).map(|_| item(body)).collect()
}

fn value(body: &mut Bytes) -> Result<Option<Bytes>, Refusal> {
    let length = body.try_get_i32().map_err(|_| bad())?;
    if length == -1 {
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| bad())?;
    if length > body.len() {
        return Err(bad());
    }
    Ok(Some(body.split_to(length)))
}

fn target(body: &mut Bytes) -> Result<Target, Refusal> {
    let kind = body.try_get_u8().map_err(|_| bad())?;
    let name = text(body)?;
    match kind {
        b'S' => Ok(Target::Statement(name)),
        b'P' => Ok(Target::Portal(name)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn startup_messages() {
        assert_eq!(Startup::parse(Bytes::from_static(&[4, 210, 22, 47])).unwrap(), Startup::Ssl);
        let mut body = vec![0, 3, 0, 0];
        body.extend_from_slice(b"user\0me\0database\0warehouse\0\0");
        let Startup::Session { minor: 0, params } = Startup::parse(body.into()).unwrap() else { panic!() };
        assert_eq!(params, [("user".into(), "me".into()), ("database".into(), "warehouse".into())]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(kind: u8, body: Vec<u8>) {
            // an error or a message: never a panic
            _ = Message::parse(kind, body.clone().into());
            _ = Startup::parse(body.into());
        }

        #[test]
        fn any_body_of_each_kind(index in 0..8_usize, body: Vec<u8>) {
            _ = Message::parse(b"QPBDCEpS"[index], body.into());
        }
    }
}
