//! Logging in and out.

use axum::{
    Extension, Form,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{AppendHeaders, IntoResponse, Redirect, Response},
};
use maud::html;
use millrace_base::Secret;
use serde::Deserialize;

use crate::{
    Shared,
    pages::{layout, problem},
    security::{self, Refused},
    session::Session,
};

/// Where to go after the login.
#[derive(Debug, Deserialize)]
pub(crate) struct Next {
    #[serde(default)]
    next: String,
}

/// The form's fields.
#[derive(Debug, Deserialize)]
pub(crate) struct Login {
    #[serde(default)]
    user: String,
    #[serde(default = "no_secret")]
    password: Secret,
    #[serde(default)]
    token: String,
    #[serde(default)]
    next: String,
}

fn no_secret() -> Secret {
    Secret::new("")
}

/// A path on this console; anything else leads home.
fn safe_next(next: &str) -> &str {
    let good = next.starts_with('/')
        && !next.starts_with("//")
        && !next.contains('\\')
        && !next.starts_with("/login")
        && !next.starts_with("/logout")
        && next.bytes().all(|b| b.is_ascii_graphic());
    if good { next } else { "/" }
}

/// `GET /login`.
pub(crate) async fn form(State(console): State<Shared>, Query(next): Query<Next>, headers: HeaderMap) -> Response {
    if matches!(security::session(&console, &headers).await, Ok(Some(_))) {
        return Redirect::to(safe_next(&next.next)).into_response();
    }
    let nobody = console.state.accounts.is_empty().await;
    let note = nobody.then(|| "No user exists yet. Make one on the command line: millrace user add NAME".to_owned());
    show(&console, &headers, StatusCode::OK, note.as_deref(), "", &next.next)
}

fn show(
    console: &Shared,
    headers: &HeaderMap,
    status: StatusCode,
    error: Option<&str>,
    user: &str,
    next: &str,
) -> Response {
    let (token, cookie) = console.sessions.login_token();
    let body = html! {
        form.login method="post" action="/login" {
            img src=(console.assets.url("icon.svg")) alt="" width="44" height="44";
            h1 { (console.state.name) }
            p.muted { "Log in to see the platform and its dashboards." }
            @if let Some(error) = error { div.problem role="alert" id="login-error" { p { (error) } } }
            input type="hidden" name="token" value=(token);
            input type="hidden" name="next" value=(safe_next(next));
            label { span { "User" }
                input name="user" type="text" value=(user) required autocomplete="username" autocapitalize="none"
                      spellcheck="false" autofocus[user.is_empty()] aria-describedby=[error.map(|_| "login-error")]; }
            label { span { "Password" }
                input name="password" type="password" required autocomplete="current-password" autofocus[!user.is_empty()]; }
            button.primary type="submit" { "Log in" }
        }
    };
    let page = layout::bare(console, headers, "Log in", &body);
    (status, AppendHeaders([(header::SET_COOKIE, cookie)]), page).into_response()
}

/// `POST /login`.
pub(crate) async fn submit(State(console): State<Shared>, request: Request) -> Response {
    let headers = request.headers().clone();
    let address = security::address(request.extensions());
    let Ok(Form(login)) = <Form<Login> as axum::extract::FromRequest<Shared>>::from_request(request, &console).await
    else {
        return show(
            &console,
            &headers,
            StatusCode::BAD_REQUEST,
            Some("The form could not be read. Try again."),
            "",
            "",
        );
    };
    let again = |status, error: &str| show(&console, &headers, status, Some(error), &login.user, &login.next);
    if !security::is_same_origin(&headers) || !console.sessions.login_token_is_good(&headers, &login.token) {
        return again(
            StatusCode::FORBIDDEN,
            "This form had expired, or cookies are off. Nothing was sent on; log in again.",
        );
    }
    match security::check_login(&console, address, &login.user, login.password.clone()).await {
        Ok(Some(mark)) => {
            let (_, cookie) = console.sessions.start(&login.user, &mark);
            tracing::info!(user = login.user, "logged in");
            (AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to(safe_next(&login.next))).into_response()
        }
        Ok(None) => again(StatusCode::UNAUTHORIZED, "The user name or the password is wrong."),
        Err(refused) => {
            let (status, message, hint, seconds) = refused.explain();
            let mut response = again(status, &format!("{message}: {hint}"));
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            response
        }
    }
}

/// A page asked for with a session that cannot be checked now. The cookie stays: it may be good.
pub(crate) fn unknown(console: &Shared, headers: &HeaderMap, refused: Refused) -> Response {
    let (status, message, hint, seconds) = refused.explain();
    let body = html! {
        div.login {
            h1 { (console.state.name) }
            (problem(&message, Some(&hint)))
            p.muted { "You need not log in again: reload the page when the primary answers. Whoever used the console shortly before it went away can use it meanwhile." }
            p { a href="" { "Reload" } }
        }
    };
    let page = layout::bare(console, headers, "Not now", &body);
    (status, [(header::RETRY_AFTER, seconds.to_string())], page).into_response()
}

/// The logout form's field.
#[derive(Debug, Deserialize)]
pub(crate) struct Logout {
    #[serde(default)]
    token: String,
}

/// `POST /logout`.
pub(crate) async fn logout(
    State(console): State<Shared>,
    Extension(session): Extension<Session>,
    headers: HeaderMap,
    Form(form): Form<Logout>,
) -> Response {
    if !security::is_same_origin(&headers) || !console.sessions.form_token_is_good(&session, &form.token) {
        return (StatusCode::FORBIDDEN, "the form does not belong to this session; reload the page\n").into_response();
    }
    let cookie = console.sessions.end(&session);
    (AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to("/login")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_paths_follow_a_login() {
        assert_eq!(safe_next("/dashboards/loans?from=2024-01-01"), "/dashboards/loans?from=2024-01-01");
        for bad in ["", "https://evil.example", "//evil.example", "/\\evil.example", "/login?next=x", "/a\nb"] {
            assert_eq!(safe_next(bad), "/", "{bad}");
        }
    }
}
