//! The packet that a connection begins with (manual, "Message Formats", StartupMessage and its kin). Pure.

use crate::message::{self, read_cstr};

const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
const CANCEL: u32 = 80_877_102;

/// What a connection wants to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Startup {
    Tls,
    Gss,
    Cancel { pid: i32, secret: i32 },
    Session(Wish),
}

/// A session that is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) user: String,
    pub(crate) database: String,
    /// Settings for the session, in the order given.
    pub(crate) settings: Vec<(String, String)>,
    /// A replication connection.
    pub(crate) replication: bool,
    /// A newer minor version or options of the protocol, which are not had: answered with what is.
    pub(crate) unknown: Option<Vec<String>>,
}

/// Why a packet is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StartupError {
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0")]
    Version(u32, u32),
    #[error("invalid startup packet")]
    Malformed,
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    #[error("invalid command-line argument for server process: {0}")]
    Option(String),
}

/// Reads a packet without its length.
pub(crate) fn parse(packet: &[u8]) -> Result<Startup, StartupError> {
    let (code, mut rest) = packet.split_first_chunk().ok_or(StartupError::Malformed)?;
    let code = u32::from_be_bytes(*code);
    match code {
        SSL => return Ok(Startup::Tls),
        GSS => return Ok(Startup::Gss),
        CANCEL => {
            let (pid, rest) = rest.split_first_chunk().ok_or(StartupError::Malformed)?;
            let (secret, _) = rest.split_first_chunk().ok_or(StartupError::Malformed)?;
            return Ok(Startup::Cancel { pid: i32::from_be_bytes(*pid), secret: i32::from_be_bytes(*secret) });
        }
        _ => {}
    }
    let (major, minor) = (code >> 16, code & 0xffff);
    if major != 3 {
        return Err(StartupError::Version(major, minor));
    }
    let mut wish = Wish::default();
    let mut unknown = Vec::new();
    while rest.first().is_some_and(|b| *b != 0) {
        let name = text(&mut rest)?;
        let value = text(&mut rest)?;
        match name.as_str() {
            "user" => wish.user = value,
            "database" => wish.database = value,
            "options" => wish.settings.extend(options(&value)?),
            "replication" => wish.replication = !matches!(value.as_str(), "false" | "off" | "no" | "0"),
            _ if name.starts_with("_pq_.") => unknown.push(name),
            _ => wish.settings.push((name, value)),
        }
    }
    if wish.user.is_empty() {
        return Err(StartupError::NoUser);
    }
    if wish.database.is_empty() {
        wish.database.clone_from(&wish.user);
    }
    if minor > 0 || !unknown.is_empty() {
        wish.unknown = Some(unknown);
    }
    Ok(Startup::Session(wish))
}

fn text(rest: &mut &[u8]) -> Result<String, StartupError> {
    let bytes = read_cstr(rest).map_err(|_| StartupError::Malformed)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| StartupError::Malformed)
}

/// `-c name=value` and `--name=value`, separated by blanks; a backslash takes the next character as it is.
fn options(text: &str) -> Result<Vec<(String, String)>, StartupError> {
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut inside, mut chars) = (String::new(), false, text.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                word.extend(chars.next());
                inside = true;
            }
            c if c.is_whitespace() => {
                if std::mem::take(&mut inside) {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => {
                word.push(c);
                inside = true;
            }
        }
    }
    if inside {
        words.push(word);
    }
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            "-c" => words.next().ok_or_else(|| StartupError::Option(word.clone()))?,
            _ => match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
                Some(setting) => setting.to_owned(),
                None => return Err(StartupError::Option(word)),
            },
        };
        let (name, value) = setting.split_once('=').ok_or_else(|| StartupError::Option(setting.clone()))?;
        let name = name.replace('-', "_");
        // settings go to the server beside these words of the protocol, and must not be taken for one
        if matches!(name.as_str(), "user" | "database" | "options" | "replication") || name.starts_with("_pq_") {
            return Err(StartupError::Option(setting));
        }
        settings.push((name, value.to_owned()));
    }
    Ok(settings)
}

/// NegotiateProtocolVersion: 3.0, and what of the client's options is not known.
pub(crate) fn negotiate(unknown: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    message::message(&mut out, b'v', |out| {
        out.extend_from_slice(&0u32.to_be_bytes());
        out.extend_from_slice(&u32::try_from(unknown.len()).unwrap_or(0).to_be_bytes());
        unknown.iter().for_each(|name| message::cstr(out, name.as_bytes()));
    });
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(version: u32, pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut packet = version.to_be_bytes().to_vec();
        for (name, value) in pairs {
            message::cstr(&mut packet, name.as_bytes());
            message::cstr(&mut packet, value.as_bytes());
        }
        packet.push(0);
        packet
    }

    #[test]
    fn sessions() {
        let pairs =
            [("user", "u"), ("options", "-c geqo=off --work-mem=4MB -csearch_path=a\\ b"), ("application_name", "x")];
        let Ok(Startup::Session(wish)) = parse(&packet(196_608, &pairs)) else { panic!() };
        assert_eq!((wish.user.as_str(), wish.database.as_str(), wish.unknown), ("u", "u", None));
        let settings: Vec<_> = wish.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(settings, [("geqo", "off"), ("work_mem", "4MB"), ("search_path", "a b"), ("application_name", "x")]);
    }

    #[test]
    fn refusals() {
        assert_eq!(parse(&packet(131_072, &[])), Err(StartupError::Version(2, 0)));
        assert_eq!(parse(&packet(196_608, &[])), Err(StartupError::NoUser));
        assert_eq!(parse(b"\0\x03\0\0user\0x"), Err(StartupError::Malformed));
        let odd = parse(&packet(196_608, &[("user", "u"), ("options", "-B 12")]));
        assert_eq!(odd, Err(StartupError::Option("-B".to_owned())));
        let Ok(Startup::Session(wish)) = parse(&packet(196_610, &[("user", "u"), ("_pq_.x", "1")])) else { panic!() };
        assert_eq!(wish.unknown, Some(vec!["_pq_.x".to_owned()]));
    }

    proptest! {
        #[test]
        fn nothing_panics(data in proptest::collection::vec(any::<u8>(), 0..80), options_text in ".{0,40}") {
            let _any = (parse(&data), options(&options_text));
        }
    }
}
