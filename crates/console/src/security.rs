//! Who may pass, and the headers that every answer carries.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use millrace_base::Secret;

use crate::{
    Console, Shared, UsersError,
    accounts::{Mark, Standing},
    error::ApiError,
    format, pages,
    params::query_string,
    session::Session,
};

/// How long a login waits for its turn to be compared.
const TURN_DEADLINE: Duration = Duration::from_secs(5);

/// No inline script or style, nothing from elsewhere, no framing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
    connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Puts the security headers on every answer; pages and data are not kept by caches.
pub(crate) async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The peer's address, when the server passes it on.
pub(crate) fn address(request: &axum::http::Extensions) -> Option<IpAddr> {
    request.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip())
}

/// Whether a changing request comes from one of our own pages. Browsers say so by `Sec-Fetch-Site`,
/// old ones by `Origin`; clients that are no browsers send neither and carry a form token anyway.
pub(crate) fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(HeaderName::from_static("sec-fetch-site")) {
        return matches!(site, "same-origin" | "none");
    }
    match (text(header::ORIGIN), text(header::HOST)) {
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, rest)| rest == host),
        // HTTP/2 names the host elsewhere; the form token decides alone
        (Some(_), None) | (None, _) => true,
    }
}

/// The session of a request whose user is still there with the password that opened it.
///
/// # Errors
/// If that cannot be known now.
pub(crate) async fn session(console: &Console, headers: &HeaderMap) -> Result<Option<Session>, UsersError> {
    let Some(session) = console.sessions.find(headers) else { return Ok(None) };
    Ok(is_good(console, &session).await?.then_some(session))
}

/// Whether a session found before is still good.
///
/// # Errors
/// If that cannot be known now.
pub(crate) async fn is_good(console: &Console, session: &Session) -> Result<bool, UsersError> {
    if !console.sessions.is_open(session) {
        return Ok(false);
    }
    match console.state.accounts.standing(&session.user).await {
        Standing::Known(mark) => Ok(console.sessions.is_of(session, &mark)),
        Standing::Gone => Ok(false),
        Standing::Unreachable(error) => Err(error),
    }
}

/// Pages: without a session the reader is led to the login and back again.
pub(crate) async fn require_session(State(console): State<Shared>, mut request: Request, next: Next) -> Response {
    let session = match session(&console, request.headers()).await {
        Ok(Some(session)) => session,
        Ok(None) => return to_login(&request),
        Err(error) => return pages::login::unknown(&console, request.headers(), Refused::Store(error)),
    };
    let renewal = console.sessions.renewal(&session);
    request.extensions_mut().insert(session);
    let mut response = next.run(request).await;
    if let Some(cookie) = renewal.and_then(|cookie| HeaderValue::from_str(&cookie).ok())
        && !response.headers().contains_key(header::SET_COOKIE)
    {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

fn to_login(request: &Request) -> Response {
    let wanted = request.uri().path_and_query().map_or("/", |p| p.as_str());
    if wanted.starts_with("/events") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let follow = request.method() == Method::GET && wanted != "/";
    let query = if follow { query_string([("next", wanted)]) } else { String::new() };
    Redirect::to(&format!("/login{query}")).into_response()
}

/// JSON and metrics: a session, or HTTP Basic.
pub(crate) async fn require_login(State(console): State<Shared>, request: Request, next: Next) -> Response {
    let by_session = session(&console, request.headers()).await;
    if matches!(by_session, Ok(Some(_))) {
        return next.run(request).await;
    }
    let address = address(request.extensions());
    let is_script = request.headers().get("sec-fetch-dest").is_some_and(|dest| dest == "empty");
    match (basic(request.headers()), by_session) {
        (None, Err(error)) => Refused::Store(error).into_response(),
        (None, Ok(_)) => unauthorized("log in to see this", is_script),
        (Some((user, password)), _) => match check_machine(&console, address, &user, password).await {
            Ok(true) => next.run(request).await,
            Ok(false) => unauthorized("the user name or password is wrong", is_script),
            Err(refused) => refused.into_response(),
        },
    }
}

/// As [`check_login`], for those who send the password with each request.
async fn check_machine(
    console: &Console,
    address: Option<IpAddr>,
    user: &str,
    password: Secret,
) -> Result<bool, Refused> {
    // the limit holds for both ways, or this one would tell what the other refuses to compare
    if console.limits.wait(address, user).is_none() && console.state.accounts.was_right(user, &password).await {
        return Ok(true);
    }
    Ok(check_login(console, address, user, password).await?.is_some())
}

/// A login that was not even compared.
#[derive(Debug)]
pub(crate) enum Refused {
    /// After too many failures; may be tried again after this.
    TooMany(Duration),
    /// Too many logins are being compared already.
    Busy,
    Store(UsersError),
}

/// The mark of the user's password if this is it. Failures are counted; few are compared at a time, since each
/// takes memory and a core for a while.
pub(crate) async fn check_login(
    console: &Console,
    address: Option<IpAddr>,
    user: &str,
    password: Secret,
) -> Result<Option<Mark>, Refused> {
    if let Some(wait) = console.limits.wait(address, user) {
        return Err(Refused::TooMany(wait));
    }
    let turn = tokio::time::timeout(TURN_DEADLINE, console.limits.turn()).await;
    let Ok(Some(_turn)) = turn else { return Err(Refused::Busy) };
    let mark = console.state.accounts.verify(user, password).await.map_err(|error| {
        tracing::error!(%error, "logins cannot be checked");
        Refused::Store(error)
    })?;
    if mark.is_some() {
        console.limits.passed(address, user);
    } else {
        tracing::warn!(?address, "a login failed");
        console.limits.failed(address, user);
    }
    Ok(mark)
}

impl Refused {
    /// Status, what happened, what to do, and after how many seconds.
    pub(crate) fn explain(self) -> (StatusCode, String, String, u64) {
        match self {
            Self::TooMany(wait) => {
                let hint = format!("try again in {}", format::duration(wait));
                (StatusCode::TOO_MANY_REQUESTS, "too many failed logins".to_owned(), hint, wait.as_secs().max(1))
            }
            Self::Busy => {
                let message = "too many logins at once".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, message, "try again shortly".to_owned(), 5)
            }
            Self::Store(error) => {
                let hint =
                    error.hint.unwrap_or_else(|| "try again shortly; `millrace status` says what is wrong".to_owned());
                let message = format!("logins cannot be checked now: {}", error.message);
                (StatusCode::SERVICE_UNAVAILABLE, message, hint, 10)
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, message, hint, seconds) = self.explain();
        ([(header::RETRY_AFTER, seconds.to_string())], ApiError { status, message, hint: Some(hint) }).into_response()
    }
}

/// The browser would ask for name and password over a page whose script is told of Basic; it knows the login.
fn unauthorized(message: &str, is_script: bool) -> Response {
    let error = ApiError {
        status: StatusCode::UNAUTHORIZED,
        message: message.to_owned(),
        hint: Some("open /login, or send HTTP Basic credentials".to_owned()),
    };
    if is_script {
        return error.into_response();
    }
    ([(header::WWW_AUTHENTICATE, "Basic realm=\"millrace\", charset=\"UTF-8\"")], error).into_response()
}

fn basic(headers: &HeaderMap) -> Option<(String, Secret)> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = pair.split_once(':')?;
    Some((user.to_owned(), Secret::new(password)))
}
