//! Who may connect: SCRAM-SHA-256 verifiers, as PostgreSQL keeps them (RFC 5802; manual, `pg_authid`).
//!
//! Invariant: an unknown user goes through the same exchange as a known one, with a salt that stays the same for the
//! name, so that neither the answer nor its time tells them apart.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use millrace_base::Secret;
use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth, gen_salted_password};
use rand::RngCore;
use sha2::Sha256;

use crate::error::{EndpointError, Refusal};

const ITERATIONS: usize = 4_096;
const SALT_BYTES: usize = 16;
pub(crate) const MECHANISM: &str = "SCRAM-SHA-256";

/// Names and verifiers of those who may read.
#[derive(Clone)]
pub struct Users {
    verifiers: BTreeMap<String, Verifier>,
    /// Makes salts for names that do not exist.
    mock: [u8; 32],
}

#[derive(Clone)]
struct Verifier {
    salt: Vec<u8>,
    iterations: usize,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.verifiers.keys()).finish()
    }
}

impl Default for Users {
    fn default() -> Self {
        let mut mock = [0; 32];
        rand::rng().fill_bytes(&mut mock);
        Self { verifiers: BTreeMap::new(), mock }
    }
}

impl Users {
    /// Adds a user by password; only the verifier is kept.
    #[must_use]
    pub fn with(mut self, name: &str, password: &Secret) -> Self {
        let mut salt = vec![0; SALT_BYTES];
        rand::rng().fill_bytes(&mut salt);
        let salted = gen_salted_password(password.reveal(), &salt, ITERATIONS);
        self.verifiers.insert(
            name.to_owned(),
            Verifier {
                salt,
                iterations: ITERATIONS,
                stored_key: sha256(&hmac(&salted, b"Client Key")),
                server_key: hmac(&salted, b"Server Key"),
            },
        );
        self
    }

    /// Adds a user by verifier in PostgreSQL's form, `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`.
    ///
    /// # Errors
    /// If the text has not this form.
    pub fn with_verifier(mut self, name: &str, verifier: &Secret) -> Result<Self, EndpointError> {
        let parsed =
            parse_verifier(verifier.reveal()).ok_or_else(|| EndpointError::Verifier { user: name.to_owned() })?;
        self.verifiers.insert(name.to_owned(), parsed);
        Ok(self)
    }

    /// The exchange's first answer, and what waits for its second message.
    pub(crate) fn begin(&self, user: &str, client_first: &[u8]) -> Result<(String, Exchange), Refusal> {
        let verifier = self.verifiers.get(user).cloned().unwrap_or_else(|| self.nobody(user));
        let known = self.verifiers.contains_key(user);
        let secret = ScramSecret::Verifier {
            salt: verifier.salt,
            iterations: verifier.iterations,
            stored_key: verifier.stored_key,
            server_key: verifier.server_key,
        };
        let (first, waiting) = ScramServerAuth::new()
            .on_client_first_message_with_secret(client_first, secret)
            .map_err(|_| malformed())?;
        Ok((first, Exchange { waiting, known, user: user.to_owned() }))
    }

    /// A verifier that no password opens.
    fn nobody(&self, user: &str) -> Verifier {
        let salt = hmac(&self.mock, user.as_bytes()).into_iter().take(SALT_BYTES).collect();
        Verifier {
            salt,
            iterations: ITERATIONS,
            stored_key: hmac(&self.mock, b"stored key"),
            server_key: hmac(&self.mock, b"server key"),
        }
    }
}

/// An exchange that waits for the client's proof.
#[derive(Debug)]
pub(crate) struct Exchange {
    waiting: pgwire::api::auth::sasl::scram::ScramServerAuthWaitingForClientFinal,
    known: bool,
    user: String,
}

impl Exchange {
    /// The final answer, if the proof is right.
    pub(crate) fn finish(self, client_final: &[u8]) -> Result<String, Refusal> {
        let answer = self.waiting.on_client_final_message(client_final);
        match answer {
            Ok(last) if self.known => Ok(last),
            _ => Err(Refusal::fatal("28P01", format!("password authentication failed for user \"{}\"", self.user))),
        }
    }
}

fn malformed() -> Refusal {
    Refusal::fatal("08P01", "malformed SCRAM message")
}

fn parse_verifier(text: &str) -> Option<Verifier> {
    let (scheme, rest) = text.split_once('$')?;
    let (parameters, keys) = rest.split_once('$')?;
    let (iterations, salt) = parameters.split_once(':')?;
    let (stored_key, server_key) = keys.split_once(':')?;
    let verifier = Verifier {
        salt: STANDARD.decode(salt).ok()?,
        iterations: iterations.parse().ok()?,
        stored_key: STANDARD.decode(stored_key).ok()?,
        server_key: STANDARD.decode(server_key).ok()?,
    };
    (scheme == MECHANISM && verifier.stored_key.len() == 32 && verifier.server_key.len() == 32).then_some(verifier)
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    // any length of key is good for HMAC
    Hmac::<Sha256>::new_from_slice(key).map_or_else(
        |_| Vec::new(),
        |mut mac| {
            mac.update(data);
            mac.finalize().into_bytes().to_vec()
        },
    )
}

fn sha256(data: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    Sha256::digest(data).to_vec()
}
