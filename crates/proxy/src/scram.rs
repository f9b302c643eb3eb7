//! SCRAM-SHA-256 (RFC 5802, RFC 7677), both sides, from keys rather than from passwords.
//!
//! A client's proof reveals its ClientKey to whoever has the verifier; with that key the proxy proves itself to a server
//! that has the same verifier, without ever knowing the password. Invariants: an unknown user goes through the same
//! exchange as a known one; comparisons take the same time for right and wrong; nothing here is ever logged.
//! Non-goals: channel binding, which ends at the proxy.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use rand::{Rng, distr::Alphanumeric};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The one mechanism offered and accepted.
pub(crate) const MECHANISM: &str = "SCRAM-SHA-256";
const ITERATIONS: u32 = 4_096;
/// More would let a server make the proxy compute for minutes.
const ITERATIONS_MAX: u32 = 1_000_000;
const NONCE_CHARS: usize = 24;
/// `n,,` in base64, and `y,,`: no channel binding, by choice or for want of it.
const BINDINGS: [(&str, &str); 2] = [("n,,", "biws"), ("y,,", "eSws")];

type Key = [u8; 32];

/// The exchange failed: which step is nobody's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScramError {
    #[error("malformed SCRAM message")]
    Malformed,
    #[error("channel binding is not offered")]
    ChannelBinding,
    #[error("the proof is wrong")]
    Proof,
}

/// What a server keeps of a password (manual, `pg_authid`).
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Verifier {
    salt: Vec<u8>,
    iterations: u32,
    stored_key: Key,
    server_key: Key,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(…)")
    }
}

impl Verifier {
    /// From `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`; `None` if it is not of this form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(MECHANISM)?.strip_prefix('$')?;
        let (parameters, keys) = rest.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        Some(Self {
            salt: STANDARD.decode(salt).ok()?,
            iterations: iterations.parse().ok().filter(|n| (1..=ITERATIONS_MAX).contains(n))?,
            stored_key: STANDARD.decode(stored_key).ok()?.try_into().ok()?,
            server_key: STANDARD.decode(server_key).ok()?.try_into().ok()?,
        })
    }

    /// One of a password, with a salt of its own.
    pub(crate) fn of_password(password: &str) -> Self {
        let salt: [u8; 16] = rand::random();
        let salted = salted_password(password, &salt, ITERATIONS);
        let stored_key = sha256(&hmac(&salted, b"Client Key"));
        Self { salt: salt.to_vec(), iterations: ITERATIONS, stored_key, server_key: hmac(&salted, b"Server Key") }
    }

    /// One that no password opens, the same for the same `name`.
    pub(crate) fn nobody(secret: &Key, name: &str) -> Self {
        let salt = hmac(secret, name.as_bytes());
        Self {
            salt: salt.iter().copied().take(16).collect(),
            iterations: ITERATIONS,
            stored_key: hmac(secret, b"stored key"),
            server_key: hmac(secret, b"server key"),
        }
    }
}

/// What opens a server: a password, or the keys that a client's proof revealed.
#[derive(Clone)]
pub(crate) enum Credential {
    Password(millrace_base::Secret),
    Keys { client_key: Key, server_key: Key },
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

/// The proxy as the server of an exchange, waiting for the client's proof.
#[derive(Debug)]
pub(crate) struct ServerExchange {
    verifier: Verifier,
    client_first_bare: String,
    server_first: String,
    nonce: String,
    binding: &'static str,
}

impl ServerExchange {
    /// The answer to the client's first message, and what waits for its second.
    pub(crate) fn begin(verifier: Verifier, client_first: &str) -> Result<(String, Self), ScramError> {
        if client_first.starts_with("p=") {
            return Err(ScramError::ChannelBinding);
        }
        let (bare, binding) = BINDINGS
            .iter()
            .find_map(|(flag, encoded)| client_first.strip_prefix(flag).map(|bare| (bare, *encoded)))
            .ok_or(ScramError::Malformed)?;
        // the name is ignored, as PostgreSQL does: the startup packet's counts
        let client_nonce = attribute(bare, 'r').filter(|nonce| !nonce.is_empty()).ok_or(ScramError::Malformed)?;
        let nonce = format!("{client_nonce}{}", fresh_nonce());
        let server_first = format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let exchange =
            Self { verifier, client_first_bare: bare.to_owned(), server_first: server_first.clone(), nonce, binding };
        Ok((server_first, exchange))
    }

    /// The last answer, and the keys that the proof revealed, if the proof is right.
    pub(crate) fn finish(self, client_final: &str) -> Result<(String, Credential), ScramError> {
        let (without_proof, proof) = client_final.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let expected = format!("c={},r={}", self.binding, self.nonce);
        if without_proof != expected {
            return Err(ScramError::Malformed);
        }
        let proof: Key =
            STANDARD.decode(proof).ok().and_then(|proof| proof.try_into().ok()).ok_or(ScramError::Malformed)?;
        let signed = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let client_key = xor(&proof, &hmac(&self.verifier.stored_key, signed.as_bytes()));
        if !bool::from(sha256(&client_key).ct_eq(&self.verifier.stored_key)) {
            return Err(ScramError::Proof);
        }
        let server_key = self.verifier.server_key;
        let last = format!("v={}", STANDARD.encode(hmac(&server_key, signed.as_bytes())));
        Ok((last, Credential::Keys { client_key, server_key }))
    }
}

/// The proxy as the client of an exchange with a server.
#[derive(Debug)]
pub(crate) struct ClientExchange {
    first_bare: String,
    nonce: String,
    /// Set by the server's first message.
    expected: Option<Key>,
}

impl ClientExchange {
    pub(crate) fn new() -> Self {
        let nonce = fresh_nonce();
        Self { first_bare: format!("n=,r={nonce}"), nonce, expected: None }
    }

    pub(crate) fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// The proof, after the server's first message.
    pub(crate) fn prove(&mut self, credential: &Credential, server_first: &str) -> Result<String, ScramError> {
        let nonce = attribute(server_first, 'r').ok_or(ScramError::Malformed)?;
        let salt = attribute(server_first, 's').and_then(|s| STANDARD.decode(s).ok()).ok_or(ScramError::Malformed)?;
        let iterations: u32 = attribute(server_first, 'i').and_then(|i| i.parse().ok()).ok_or(ScramError::Malformed)?;
        if !nonce.starts_with(&self.nonce) || !(1..=ITERATIONS_MAX).contains(&iterations) {
            return Err(ScramError::Malformed);
        }
        let (client_key, server_key) = match credential {
            Credential::Keys { client_key, server_key } => (*client_key, *server_key),
            Credential::Password(password) => {
                let salted = salted_password(password.reveal(), &salt, iterations);
                (hmac(&salted, b"Client Key"), hmac(&salted, b"Server Key"))
            }
        };
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.first_bare);
        let proof = xor(&client_key, &hmac(&sha256(&client_key), signed.as_bytes()));
        self.expected = Some(hmac(&server_key, signed.as_bytes()));
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof)))
    }

    /// Whether the server's last message proves that it knows the verifier.
    pub(crate) fn check(&self, server_final: &str) -> Result<(), ScramError> {
        let signature: Key = attribute(server_final, 'v')
            .and_then(|v| STANDARD.decode(v).ok())
            .and_then(|v| v.try_into().ok())
            .ok_or(ScramError::Malformed)?;
        match self.expected {
            Some(expected) if bool::from(expected.ct_eq(&signature)) => Ok(()),
            _ => Err(ScramError::Proof),
        }
    }
}

fn attribute(message: &str, name: char) -> Option<&str> {
    message.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

fn fresh_nonce() -> String {
    rand::rng().sample_iter(Alphanumeric).take(NONCE_CHARS).map(char::from).collect()
}

/// PBKDF2 with one block (RFC 8018, 5.2). PostgreSQL prepares passwords by SASLprep where that succeeds; here a password
/// beyond ASCII is used as it is, which is the same for all but rare characters.
fn salted_password(password: &str, salt: &[u8], iterations: u32) -> Key {
    let Ok(keyed) = Hmac::<Sha256>::new_from_slice(password.as_bytes()) else { return [0; 32] };
    let round = |data: &[&[u8]]| -> Key {
        let mut mac = keyed.clone();
        data.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    };
    let mut block = round(&[salt, &1u32.to_be_bytes()]);
    let mut sum = block;
    for _ in 1..iterations {
        block = round(&[&block]);
        sum = xor(&sum, &block);
    }
    sum
}

fn hmac(key: &Key, data: &[u8]) -> Key {
    // HMAC takes keys of any length
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    mac.update(data);
    mac.finalize().into_bytes().into()
}

fn sha256(data: &[u8]) -> Key {
    Sha256::digest(data).into()
}

fn xor(a: &Key, b: &Key) -> Key {
    std::array::from_fn(|i| a.get(i).copied().unwrap_or(0) ^ b.get(i).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use millrace_base::Secret;
    use proptest::prelude::*;

    use super::*;

    fn exchange(verifier: Verifier, credential: &Credential) -> Result<Credential, ScramError> {
        let mut client = ClientExchange::new();
        let (server_first, server) = ServerExchange::begin(verifier, &client.first())?;
        let proof = client.prove(credential, &server_first)?;
        let (last, keys) = server.finish(&proof)?;
        client.check(&last)?;
        Ok(keys)
    }

    #[test]
    fn passwords_and_then_keys_open() {
        let verifier = Verifier::of_password("pencil");
        let keys = exchange(verifier.clone(), &Credential::Password(Secret::new("pencil"))).unwrap();
        exchange(verifier.clone(), &keys).unwrap();
        let wrong = Credential::Password(Secret::new("pen"));
        assert_eq!(exchange(verifier, &wrong).unwrap_err(), ScramError::Proof);
        let nobody = Verifier::nobody(&[7; 32], "x");
        assert_eq!(exchange(nobody, &keys).unwrap_err(), ScramError::Proof);
    }

    #[test]
    fn the_rfc_example() {
        // RFC 7677, section 3
        let salted = salted_password("pencil", &STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4096);
        let server_first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let signed = format!(
            "n=user,r=rOprNGfwEbeRWgbNEkqO,{server_first},c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
        );
        let client_key = hmac(&salted, b"Client Key");
        let proof = xor(&client_key, &hmac(&sha256(&client_key), signed.as_bytes()));
        assert_eq!(STANDARD.encode(proof), "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    }

    proptest! {
        #[test]
        fn hostile_messages_are_refused(first in ".{0,60}", last in ".{0,60}") {
            let verifier = Verifier::nobody(&[7; 32], "x");
            if let Ok((_, exchange)) = ServerExchange::begin(verifier.clone(), &first) {
                prop_assert!(exchange.finish(&last).is_err());
            }
            prop_assert!(ClientExchange::new().prove(&Credential::Password(Secret::new("x")), &first).is_err());
            prop_assert!(Verifier::parse(&first).is_none());
        }
    }
}
