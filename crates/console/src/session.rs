//! Who is logged in: signed cookies, and the tokens that tie a form to its reader.
//!
//! A session is `name.expiry.nonce` with an HMAC-SHA-256 over it; nothing is stored but the
//! sessions that were logged out before their time (lost at a restart). A form carries an HMAC of
//! the session's nonce (or, before login, of a cookie of its own), so that another site cannot send it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, header};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use millrace_base::{Clock, Micros, Secret};
use sha2::Sha256;

/// How long a login lasts; renewed by use when half of it is over.
pub(crate) const LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// Someone who is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) user: String,
    pub(crate) expires: Micros,
    /// Distinguishes logins of one user; 128 random bits.
    nonce: String,
}

pub(crate) struct Sessions {
    key: Vec<u8>,
    clock: Arc<dyn Clock>,
    tls: bool,
    /// Two platforms on one host share the browser's cookies: each has its own names.
    cookie: String,
    login_cookie: String,
    /// Nonces of sessions logged out, until they would have expired.
    ended: Mutex<HashMap<String, Micros>>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("cookie", &self.cookie).finish_non_exhaustive()
    }
}

fn nonce() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>())
}

impl Sessions {
    pub(crate) fn new(key: &Secret, clock: Arc<dyn Clock>, tls: bool) -> Self {
        let mut sessions = Self {
            key: key.reveal().as_bytes().to_vec(),
            clock,
            tls,
            cookie: String::new(),
            login_cookie: String::new(),
            ended: Mutex::default(),
        };
        let mark: String = sessions.sign("cookie", "").chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        // browsers accept the prefix only with Secure, from this host, for the whole site
        let prefix = if tls { "__Host-" } else { "" };
        sessions.cookie = format!("{prefix}millrace-{mark}");
        sessions.login_cookie = format!("{prefix}millrace-login-{mark}");
        sessions
    }

    /// `purpose` keeps a signature made for one thing from being used for another.
    fn sign(&self, purpose: &str, text: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.mac(purpose, text).finalize().into_bytes())
    }

    fn mac(&self, purpose: &str, text: &str) -> Hmac<Sha256> {
        // HMAC takes a key of any length; the branch is never taken
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).unwrap_or_else(|_| Hmac::new(&Default::default()));
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        mac.update(text.as_bytes());
        mac
    }

    fn signed(&self, purpose: &str, text: &str, signature: &str) -> bool {
        URL_SAFE_NO_PAD
            .decode(signature)
            .is_ok_and(|signature| self.mac(purpose, text).verify_slice(&signature).is_ok())
    }

    /// A new session of `user`, and the `Set-Cookie` that hands it out.
    pub(crate) fn start(&self, user: &str) -> (Session, String) {
        let lifetime = i64::try_from(LIFETIME.as_micros()).unwrap_or(i64::MAX);
        let expires = Micros(self.clock.wall().0.saturating_add(lifetime));
        let session = Session { user: user.to_owned(), expires, nonce: nonce() };
        let payload = format!("{}.{}.{}", URL_SAFE_NO_PAD.encode(user), expires.0, session.nonce);
        let token = format!("{payload}.{}", self.sign("session", &payload));
        (session, self.set_cookie(&self.cookie, &token, LIFETIME))
    }

    fn set_cookie(&self, name: &str, value: &str, age: Duration) -> String {
        let secure = if self.tls { "; Secure" } else { "" };
        format!("{name}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}", age.as_secs())
    }

    /// The session that the request's cookie proves.
    pub(crate) fn find(&self, headers: &HeaderMap) -> Option<Session> {
        let token = cookie(headers, &self.cookie)?;
        let (payload, signature) = token.rsplit_once('.')?;
        if !self.signed("session", payload, signature) {
            return None;
        }
        let mut parts = payload.split('.');
        let user = String::from_utf8(URL_SAFE_NO_PAD.decode(parts.next()?).ok()?).ok()?;
        let session = Session { user, expires: Micros(parts.next()?.parse().ok()?), nonce: parts.next()?.to_owned() };
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&session.nonce);
        (session.expires > self.clock.wall() && !ended).then_some(session)
    }

    /// A fresh cookie when half of the session's life is over.
    pub(crate) fn renewal(&self, session: &Session) -> Option<String> {
        let left = session.expires.since(self.clock.wall());
        (left < LIFETIME / 2).then(|| self.start(&session.user).1)
    }

    /// Ends a session before its time; returns the `Set-Cookie` that removes it.
    pub(crate) fn end(&self, session: &Session) -> String {
        let now = self.clock.wall();
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|_, expires| *expires > now);
        ended.insert(session.nonce.clone(), session.expires);
        self.set_cookie(&self.cookie, "", Duration::ZERO)
    }

    /// The token that forms of this session carry.
    pub(crate) fn form_token(&self, session: &Session) -> String {
        self.sign("form", &session.nonce)
    }

    pub(crate) fn form_token_is_good(&self, session: &Session, token: &str) -> bool {
        self.signed("form", &session.nonce, token)
    }

    /// The login form's token and the `Set-Cookie` that it belongs to.
    pub(crate) fn login_token(&self) -> (String, String) {
        let nonce = nonce();
        let token = self.sign("login", &nonce);
        (token, self.set_cookie(&self.login_cookie, &nonce, Duration::from_secs(3600)))
    }

    pub(crate) fn login_token_is_good(&self, headers: &HeaderMap, token: &str) -> bool {
        cookie(headers, &self.login_cookie).is_some_and(|nonce| self.signed("login", &nonce, token))
    }
}

/// The value of a request's cookie.
pub(crate) fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().split_once('=').filter(|(key, _)| *key == name).map(|(_, v)| v.to_owned()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use millrace_base::clock::ManualClock;

    use super::*;

    fn request(set_cookie: &str) -> HeaderMap {
        let pair = set_cookie.split(';').next().unwrap();
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&format!("other=1; {pair}")).unwrap())])
    }

    #[test]
    fn a_session_lives_until_it_expires_or_is_ended() {
        let clock = Arc::new(ManualClock::default());
        let sessions = Sessions::new(&Secret::new("k"), clock.clone(), true);
        let (session, cookie) = sessions.start("ann.o'hara@bank");
        assert!(
            cookie.starts_with("__Host-millrace-") && cookie.contains("; HttpOnly; SameSite=Lax; Secure"),
            "{cookie}"
        );
        let headers = request(&cookie);
        assert_eq!(sessions.find(&headers).as_ref(), Some(&session));
        assert_eq!(sessions.renewal(&session), None);
        clock.advance(LIFETIME * 2 / 3);
        assert!(sessions.renewal(&session).is_some());
        assert!(sessions.find(&headers).is_some());
        clock.advance(LIFETIME / 3);
        assert_eq!(sessions.find(&headers), None, "expired");

        let (session, cookie) = sessions.start("ann");
        let gone = sessions.end(&session);
        assert!(gone.contains("Max-Age=0"));
        assert_eq!(sessions.find(&request(&cookie)), None, "logged out");
    }

    #[test]
    fn a_changed_token_or_another_key_is_refused() {
        let clock = Arc::new(ManualClock::default());
        let sessions = Sessions::new(&Secret::new("k"), clock.clone(), false);
        let (_, cookie) = sessions.start("ann");
        let pair = cookie.split(';').next().unwrap();
        let (name, token) = pair.split_once('=').unwrap();
        for at in 0..token.len() {
            let mut bytes = token.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(bytes).unwrap();
            // the last letter of unpadded base64 has bits that are not read; strict decoding refuses them
            assert_eq!(sessions.find(&request(&format!("{name}={forged}"))), None, "{at}");
        }
        let mut other = Sessions::new(&Secret::new("other"), clock, false);
        other.cookie.clone_from(&sessions.cookie);
        assert_eq!(other.find(&request(&cookie)), None);
    }

    #[test]
    fn form_tokens_belong_to_one_session_and_purpose() {
        let sessions = Sessions::new(&Secret::new("k"), Arc::new(ManualClock::default()), false);
        let (one, _) = sessions.start("ann");
        let (two, _) = sessions.start("ann");
        let token = sessions.form_token(&one);
        assert!(sessions.form_token_is_good(&one, &token));
        assert!(!sessions.form_token_is_good(&two, &token));
        assert!(!sessions.form_token_is_good(&one, ""));
        let (token, cookie) = sessions.login_token();
        assert!(sessions.login_token_is_good(&request(&cookie), &token));
        assert!(!sessions.login_token_is_good(&request("x=y"), &token));
        assert!(!sessions.form_token_is_good(&one, &token));
    }
}
