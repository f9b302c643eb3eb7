//! Who is logged in: signed cookies, and the tokens that tie a form to its reader.
//!
//! A session is `name.start.expiry.nonce.tag` with an HMAC-SHA-256 over it. The tag is of the password
//! that opened it ([`crate::accounts`] knows the present one); a renewal keeps start and nonce, so that a
//! logged-out session stays logged out whichever of its cookies comes back. Nothing is stored but the
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
use subtle::ConstantTimeEq;

use crate::accounts::Mark;

/// How long a login lasts; renewed by use when half of it is over.
pub(crate) const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// Logged-out sessions remembered. When there are more, all sessions begun before the newer half end:
/// rather a login too many than a logout forgotten.
const ENDED_MAX: usize = 10_000;

/// Of an HMAC-SHA-256.
const TOKEN_BYTES: usize = 32;

/// Someone who is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) user: String,
    /// When the user logged in; renewals keep it.
    started: Micros,
    expires: Micros,
    /// Distinguishes logins of one user; 128 random bits. Renewals keep it.
    nonce: String,
    /// Of the password at the login.
    tag: String,
}

/// Sessions that ended before their time.
#[derive(Default)]
struct Ended {
    /// Nonce → when the session started, and until when one of its cookies could serve.
    by_nonce: HashMap<String, (Micros, Micros)>,
    /// Sessions started up to here have ended, all of them.
    floor: Option<Micros>,
}

impl Ended {
    fn holds(&self, session: &Session) -> bool {
        self.floor.is_some_and(|floor| session.started <= floor) || self.by_nonce.contains_key(&session.nonce)
    }

    fn add(&mut self, session: &Session, now: Micros, until: Micros) {
        self.by_nonce.retain(|_, (_, until)| *until > now);
        if self.by_nonce.len() >= ENDED_MAX {
            let mut starts: Vec<Micros> = self.by_nonce.values().map(|(started, _)| *started).collect();
            starts.sort_unstable();
            let floor = starts.get(ENDED_MAX / 2).copied();
            self.floor = self.floor.max(floor);
            self.by_nonce.retain(|_, (started, _)| Some(*started) > floor);
        }
        self.by_nonce.insert(session.nonce.clone(), (session.started, until));
    }
}

pub(crate) struct Sessions {
    key: Vec<u8>,
    clock: Arc<dyn Clock>,
    tls: bool,
    /// Two platforms on one host share the browser's cookies: each has its own names.
    cookie: String,
    login_cookie: String,
    ended: Mutex<Ended>,
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

    /// What a session says of the password that opened it: useless without the key, and not the hash.
    fn tag(&self, user: &str, mark: &Mark) -> String {
        let mut mac = self.mac("password", user);
        mac.update(&[0]);
        mac.update(mark.bytes());
        URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes().get(..12).unwrap_or_default())
    }

    /// Whether the session was opened with the password that the user has now.
    pub(crate) fn is_of(&self, session: &Session, mark: &Mark) -> bool {
        self.tag(&session.user, mark).as_bytes().ct_eq(session.tag.as_bytes()).into()
    }

    fn expiry(&self) -> Micros {
        let lifetime = i64::try_from(LIFETIME.as_micros()).unwrap_or(i64::MAX);
        Micros(self.clock.wall().0.saturating_add(lifetime))
    }

    fn hand_out(&self, session: &Session) -> String {
        let Session { user, started, expires, nonce, tag } = session;
        let payload = format!("{}.{}.{}.{nonce}.{tag}", URL_SAFE_NO_PAD.encode(user), started.0, expires.0);
        let token = format!("{payload}.{}", self.sign("session", &payload));
        self.set_cookie(&self.cookie, &token, LIFETIME)
    }

    /// A new session of `user`, and the `Set-Cookie` that hands it out.
    pub(crate) fn start(&self, user: &str, mark: &Mark) -> (Session, String) {
        let session = Session {
            user: user.to_owned(),
            started: self.clock.wall(),
            expires: self.expiry(),
            nonce: nonce(),
            tag: self.tag(user, mark),
        };
        let cookie = self.hand_out(&session);
        (session, cookie)
    }

    fn set_cookie(&self, name: &str, value: &str, age: Duration) -> String {
        let secure = if self.tls { "; Secure" } else { "" };
        format!("{name}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}", age.as_secs())
    }

    /// The session that the request's cookie proves. Whether its user is still there is not asked here.
    pub(crate) fn find(&self, headers: &HeaderMap) -> Option<Session> {
        let token = cookie(headers, &self.cookie)?;
        let (payload, signature) = token.rsplit_once('.')?;
        if !self.signed("session", payload, signature) {
            return None;
        }
        let mut parts = payload.split('.');
        let session = Session {
            user: String::from_utf8(URL_SAFE_NO_PAD.decode(parts.next()?).ok()?).ok()?,
            started: Micros(parts.next()?.parse().ok()?),
            expires: Micros(parts.next()?.parse().ok()?),
            nonce: parts.next()?.to_owned(),
            tag: parts.next()?.to_owned(),
        };
        self.is_open(&session).then_some(session)
    }

    /// Whether it has neither expired nor been logged out.
    pub(crate) fn is_open(&self, session: &Session) -> bool {
        session.expires > self.clock.wall() && !self.ended.lock().unwrap_or_else(PoisonError::into_inner).holds(session)
    }

    /// A fresh cookie of the same session when half of its life is over.
    pub(crate) fn renewal(&self, session: &Session) -> Option<String> {
        let left = session.expires.since(self.clock.wall());
        (left < LIFETIME / 2).then(|| self.hand_out(&Session { expires: self.expiry(), ..session.clone() }))
    }

    /// Ends a session before its time; returns the `Set-Cookie` that removes it.
    pub(crate) fn end(&self, session: &Session) -> String {
        // a renewal handed out this moment lives as long as any can
        let (now, until) = (self.clock.wall(), self.expiry());
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).add(session, now, until);
        self.set_cookie(&self.cookie, "", Duration::ZERO)
    }

    /// The token that forms of this session carry, masked anew for each page: pages are compressed, and the
    /// length of what is compressed would tell a text that stays the same bit by bit (BREACH).
    pub(crate) fn form_token(&self, session: &Session) -> String {
        let mask: [u8; TOKEN_BYTES] = rand::random();
        let token = self.mac("form", &session.nonce).finalize().into_bytes();
        let masked: Vec<u8> = mask.iter().zip(token).map(|(mask, byte)| mask ^ byte).collect();
        URL_SAFE_NO_PAD.encode([mask.as_slice(), &masked].concat())
    }

    pub(crate) fn form_token_is_good(&self, session: &Session, token: &str) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(token) else { return false };
        let Some((mask, masked)) = bytes.split_at_checked(TOKEN_BYTES) else { return false };
        let token: Vec<u8> = mask.iter().zip(masked).map(|(mask, byte)| mask ^ byte).collect();
        masked.len() == TOKEN_BYTES && self.mac("form", &session.nonce).verify_slice(&token).is_ok()
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

    fn mark() -> Mark {
        Mark::of("$argon2id$…")
    }

    fn request(set_cookie: &str) -> HeaderMap {
        let pair = set_cookie.split(';').next().unwrap();
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&format!("other=1; {pair}")).unwrap())])
    }

    #[test]
    fn a_session_lives_until_it_expires_or_is_ended() {
        let clock = Arc::new(ManualClock::default());
        let sessions = Sessions::new(&Secret::new("k"), clock.clone(), true);
        let (session, cookie) = sessions.start("ann.o'hara@bank", &mark());
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

        let (session, cookie) = sessions.start("ann", &mark());
        let gone = sessions.end(&session);
        assert!(gone.contains("Max-Age=0"));
        assert_eq!(sessions.find(&request(&cookie)), None, "logged out");
    }

    #[test]
    fn a_logout_holds_for_every_cookie_of_the_session() {
        let clock = Arc::new(ManualClock::default());
        let sessions = Sessions::new(&Secret::new("k"), clock.clone(), true);
        let (session, first) = sessions.start("ann", &mark());
        clock.advance(LIFETIME * 2 / 3);
        let renewed = sessions.renewal(&session).unwrap();
        let session = sessions.find(&request(&renewed)).unwrap();
        clock.advance(LIFETIME / 6);
        sessions.end(&session);
        for cookie in [&first, &renewed] {
            assert_eq!(sessions.find(&request(cookie)), None);
        }
        clock.advance(LIFETIME / 2);
        let other = sessions.start("bob", &mark()).0;
        sessions.end(&other);
        assert_eq!(sessions.find(&request(&renewed)), None, "after others have been forgotten, too");
    }

    #[test]
    fn logouts_past_the_bound_end_old_sessions_rather_than_revive_them() {
        let clock = Arc::new(ManualClock::default());
        let sessions = Sessions::new(&Secret::new("k"), clock.clone(), true);
        let (early, early_cookie) = sessions.start("ann", &mark());
        sessions.end(&early);
        for _ in 0..ENDED_MAX + 10 {
            clock.advance(Duration::from_millis(1));
            let session = sessions.start("bob", &mark()).0;
            sessions.end(&session);
        }
        assert!(sessions.ended.lock().unwrap().by_nonce.len() <= ENDED_MAX);
        assert_eq!(sessions.find(&request(&early_cookie)), None);
        let (_, cookie) = sessions.start("ann", &mark());
        assert!(sessions.find(&request(&cookie)).is_some(), "a new login is good");
    }

    #[test]
    fn a_session_belongs_to_one_password_of_one_user() {
        let sessions = Sessions::new(&Secret::new("k"), Arc::new(ManualClock::default()), true);
        let (session, _) = sessions.start("ann", &mark());
        assert!(sessions.is_of(&session, &mark()));
        assert!(!sessions.is_of(&session, &Mark::of("another")));
        let (other, _) = sessions.start("bob", &mark());
        assert_ne!(session.tag, other.tag, "equal hashes do not show");
    }

    #[test]
    fn a_changed_token_or_another_key_is_refused() {
        let clock = Arc::new(ManualClock::default());
        let sessions = Sessions::new(&Secret::new("k"), clock.clone(), false);
        let (_, cookie) = sessions.start("ann", &mark());
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
        let (one, _) = sessions.start("ann", &mark());
        let (two, _) = sessions.start("ann", &mark());
        let token = sessions.form_token(&one);
        assert!(sessions.form_token_is_good(&one, &token));
        assert_ne!(sessions.form_token(&one), token, "no two pages carry the same text");
        assert!(!sessions.form_token_is_good(&two, &token));
        assert!(!sessions.form_token_is_good(&one, ""));
        let (token, cookie) = sessions.login_token();
        assert!(sessions.login_token_is_good(&request(&cookie), &token));
        assert!(!sessions.login_token_is_good(&request("x=y"), &token));
        assert!(!sessions.form_token_is_good(&one, &token));
    }
}
