//! The console through its router: who gets in, what pages and data say, what errors look like.

#![expect(clippy::unwrap_used, reason = "a test may panic; this covers its helpers too")]

#[path = "console/backups.rs"]
mod backups;
#[path = "console/cluster.rs"]
mod cluster;
#[path = "../examples/dev/made_up.rs"]
mod made_up;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::connect_info::MockConnectInfo,
    http::{HeaderMap, Request, StatusCode, header},
};
use http_body_util::BodyExt;
use millrace_base::{Clock, Secret, clock::ManualClock};
use millrace_console::{Accounts, ConsoleState, users};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// A console with one user, `ann` / `open sesame`, and its clock.
struct Bench {
    router: Router,
    clock: Arc<ManualClock>,
    source: Arc<made_up::Source>,
    people: Arc<made_up::People>,
    accounts: Arc<Accounts>,
    shutdown: CancellationToken,
    cookie: String,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// The `name=value` of a `Set-Cookie`.
fn pair(answer: &Answer) -> String {
    answer.header(header::SET_COOKIE).split(';').next().unwrap().to_owned()
}

/// The value of the hidden field `token`.
fn token(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"token\" value=\"").expect("a form with a token");
    rest.split_once('"').unwrap().0.to_owned()
}

impl Bench {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        clock.advance(Duration::from_secs(1_717_200_000));
        let people = Arc::new(made_up::People::default());
        let accounts = Arc::new(Accounts::new(people.clone(), clock.clone()));
        accounts.set_password("ann", Secret::new("open sesame")).await.unwrap();
        let source = Arc::new(made_up::Source::new(clock.clone()));
        let shutdown = CancellationToken::new();
        let state = ConsoleState {
            catalog: Arc::new(made_up::catalog()),
            reader: source.clone(),
            operator: source.clone(),
            accounts: accounts.clone(),
            session_key: Secret::new("a key for tests"),
            clock: clock.clone(),
            name: "Kilima".to_owned(),
            tls: true,
            shutdown: shutdown.clone(),
        };
        let router = millrace_console::router(state).layer(MockConnectInfo(SocketAddr::from(([127, 0, 0, 1], 50_000))));
        Self { router, clock, source, people, accounts, shutdown, cookie: String::new() }
    }

    async fn logged_in() -> Self {
        let mut bench = Self::new().await;
        let answer = bench.log_in("ann", "open sesame", "").await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
        bench.cookie = pair(&answer);
        bench
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, text: String::from_utf8_lossy(&bytes).into_owned() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).header(header::COOKIE, &self.cookie).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, cookie: &str, site: &str, form: &[(&str, &str)]) -> Answer {
        let body = form
            .iter()
            .map(|(k, v)| format!("{k}={}", v.replace(' ', "+").replace('/', "%2F")))
            .collect::<Vec<_>>()
            .join("&");
        self.send(
            Request::post(path)
                .header(header::COOKIE, cookie)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header("sec-fetch-site", site)
                .body(Body::from(body))
                .unwrap(),
        )
        .await
    }

    async fn log_in(&self, user: &str, password: &str, next: &str) -> Answer {
        let form = self.get("/login").await;
        let fields = [("user", user), ("password", password), ("token", &token(&form.text)), ("next", next)];
        self.post("/login", &pair(&form), "same-origin", &fields).await
    }
}

#[tokio::test]
async fn without_a_session_nothing_is_shown() {
    let bench = Bench::new().await;
    for (path, to) in [
        ("/", "/login"),
        ("/dashboards/loans?from=2024-01-01", "/login?next=%2Fdashboards%2Floans%3Ffrom%3D2024-01-01"),
        ("/runs", "/login?next=%2Fruns"),
        ("/no/such/page", "/login?next=%2Fno%2Fsuch%2Fpage"),
    ] {
        let answer = bench.get(path).await;
        assert_eq!((answer.status, answer.header(header::LOCATION)), (StatusCode::SEE_OTHER, to), "{path}");
    }
    for path in
        ["/api/v1/status", "/api/v1/dashboards/loans/tiles/0", "/api/v1/reports/status.csv", "/api/nope", "/metrics"]
    {
        let answer = bench.get(path).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(answer.header(header::WWW_AUTHENTICATE).starts_with("Basic"), "{path}");
    }
    assert_eq!(bench.get("/events").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(bench.get("/healthz").await.text, "ok\n");
    assert_eq!(bench.get("/readyz").await.text, "ready\n");
}

#[tokio::test]
async fn a_login_gives_a_cookie_and_leads_on() {
    let bench = Bench::new().await;
    let answer = bench.log_in("ann", "open sesame", "/dashboards/loans").await;
    assert_eq!((answer.status, answer.header(header::LOCATION)), (StatusCode::SEE_OTHER, "/dashboards/loans"));
    let cookie = answer.header(header::SET_COOKIE);
    for part in ["__Host-millrace-", "; Path=/;", "HttpOnly", "SameSite=Lax", "Secure", "Max-Age=43200"] {
        assert!(cookie.contains(part), "{part} in {cookie}");
    }
    let elsewhere = bench.log_in("ann", "open sesame", "//evil.example").await;
    assert_eq!(elsewhere.header(header::LOCATION), "/");
}

#[tokio::test]
async fn wrong_passwords_are_counted() {
    let bench = Bench::new().await;
    for user in ["ann", "nobody"] {
        let answer = bench.log_in(user, "guess", "").await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(answer.text.contains("The user name or the password is wrong."));
        assert!(!answer.text.contains("guess"), "the password does not come back");
    }
    for _ in 0..7 {
        bench.log_in("ann", "guess", "").await;
    }
    let answer = bench.log_in("ann", "open sesame", "").await;
    assert_eq!((answer.status, answer.header(header::RETRY_AFTER)), (StatusCode::TOO_MANY_REQUESTS, "300"));
    assert!(answer.text.contains("too many failed logins: try again in 5 min 0 s"));
    bench.clock.advance(Duration::from_secs(300));
    assert_eq!(bench.log_in("ann", "open sesame", "").await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn forms_from_elsewhere_are_refused() {
    let bench = Bench::logged_in().await;
    let form = bench.get("/login").await;
    assert_eq!(form.header(header::LOCATION), "/", "already logged in");
    let stranger = Bench::new().await;
    let form = stranger.get("/login").await;
    let (cookie, token_value) = (pair(&form), token(&form.text));
    let fields =
        |token: &str| [("user", "ann".to_owned()), ("password", "open sesame".to_owned()), ("token", token.to_owned())];
    for (cookie, token, site) in [
        ("", token_value.as_str(), "same-origin"),
        (&cookie, "forged", "same-origin"),
        (&cookie, &token_value, "cross-site"),
    ] {
        let fields = fields(token);
        let fields: Vec<_> = fields.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let answer = stranger.post("/login", cookie, site, &fields).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert!(answer.text.contains("log in again"));
    }
    for (token, site) in [("", "same-origin"), ("forged", "same-origin")] {
        let answer = bench.post("/logout", &bench.cookie, site, &[("token", token)]).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
    }
    let page = bench.get("/").await;
    let answer = bench.post("/logout", &bench.cookie, "cross-site", &[("token", &token(&page.text))]).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let answer = bench.post("/logout", &bench.cookie, "same-origin", &[("token", &token(&page.text))]).await;
    assert_eq!(answer.header(header::LOCATION), "/login");
    assert_eq!(bench.get("/").await.status, StatusCode::SEE_OTHER, "the old cookie no longer serves");
}

#[tokio::test]
async fn a_session_ends_and_cannot_be_forged() {
    let mut bench = Bench::logged_in().await;
    assert_eq!(bench.get("/").await.status, StatusCode::OK);
    bench.clock.advance(Duration::from_secs(7 * 3600));
    let renewed = bench.get("/").await;
    assert!(renewed.header(header::SET_COOKIE).starts_with("__Host-millrace-"), "renewed by use");
    bench.clock.advance(Duration::from_secs(5 * 3600 + 1));
    assert_eq!(bench.get("/").await.status, StatusCode::SEE_OTHER, "expired");
    bench.cookie = pair(&renewed);
    assert_eq!(bench.get("/").await.status, StatusCode::OK);
    bench.cookie = bench.cookie.replacen('.', ".9", 1);
    assert_eq!(bench.get("/").await.status, StatusCode::SEE_OTHER, "a later expiry is not signed");
}

#[tokio::test]
async fn a_session_ends_with_its_user_and_its_password() {
    let bench = Bench::logged_in().await;
    assert_eq!(bench.get("/runs").await.status, StatusCode::OK);
    // through this process: at once
    bench.accounts.set_password("ann", Secret::new("another")).await.unwrap();
    let answer = bench.get("/runs").await;
    assert_eq!((answer.status, answer.header(header::LOCATION)), (StatusCode::SEE_OTHER, "/login?next=%2Fruns"));
    assert_eq!(bench.get("/api/v1/status").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(bench.get("/events").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(bench.get("/login").await.status, StatusCode::OK, "the form, not a way round in circles");

    // behind its back: within half a minute
    let mut bench = Bench::logged_in().await;
    let other: Arc<dyn millrace_console::Users> = bench.people.clone();
    users::create(&other, "ann", Secret::new("another")).await.unwrap();
    bench.clock.advance(Duration::from_secs(30));
    assert_eq!(bench.get("/").await.status, StatusCode::SEE_OTHER);
    bench.cookie = pair(&bench.log_in("ann", "another", "").await);
    assert_eq!(bench.get("/").await.status, StatusCode::OK);
    bench.people.remove("ann");
    bench.clock.advance(Duration::from_secs(30));
    assert_eq!(bench.get("/").await.status, StatusCode::SEE_OTHER);
    assert_eq!(bench.get("/api/v1/reports/status.csv").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_stream_ends_with_its_session() {
    let bench = Bench::logged_in().await;
    let request = Request::get("/events").header(header::COOKIE, &bench.cookie).body(Body::empty()).unwrap();
    let mut body = bench.router.clone().oneshot(request).await.unwrap().into_body();
    next_event(&mut body).await.unwrap();
    bench.people.remove("ann");
    bench.accounts.forget("ann");
    while next_event(&mut body).await.is_some() {}
}

#[tokio::test]
async fn a_renewed_session_stays_logged_out() {
    let mut bench = Bench::logged_in().await;
    bench.clock.advance(Duration::from_secs(7 * 3600));
    let page = bench.get("/").await;
    let renewed = pair(&page);
    assert_ne!(renewed, bench.cookie);
    let answer = bench.post("/logout", &bench.cookie, "same-origin", &[("token", &token(&page.text))]).await;
    assert_eq!(answer.header(header::LOCATION), "/login");
    bench.cookie = renewed;
    assert_eq!(bench.get("/").await.status, StatusCode::SEE_OTHER, "the other cookie of the same session");
}

#[tokio::test]
async fn when_users_cannot_be_looked_up_those_seen_before_stay_in() {
    let mut bench = Bench::logged_in().await;
    assert_eq!(bench.get("/").await.status, StatusCode::OK);
    let stranger = {
        // signed with the same key by an earlier process, which this one knows nothing of
        let earlier = Bench::new().await;
        earlier.accounts.set_password("bob", Secret::new("x")).await.unwrap();
        pair(&earlier.log_in("bob", "x", "").await)
    };
    bench.people.silence(true);
    bench.clock.advance(Duration::from_secs(60));
    let before = bench.people.asked();
    for _ in 0..5 {
        assert_eq!(bench.get("/").await.status, StatusCode::OK, "the console serves while the primary is down");
    }
    assert_eq!(bench.people.asked(), before + 1, "a silent store is not pestered");
    assert_eq!(bench.get("/api/v1/status").await.status, StatusCode::OK);

    let ann = std::mem::replace(&mut bench.cookie, stranger);
    let page = bench.get("/runs").await;
    assert_eq!((page.status, page.header(header::RETRY_AFTER)), (StatusCode::SERVICE_UNAVAILABLE, "10"));
    assert!(page.text.contains("logins cannot be checked now: the list of users cannot be read now"), "{}", page.text);
    assert_eq!(page.header(header::SET_COOKIE), "", "the cookie may be good and stays");
    assert_eq!(bench.get("/api/v1/status").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(bench.get("/login").await.status, StatusCode::OK);
    assert_eq!(bench.log_in("ann", "open sesame", "").await.status, StatusCode::SERVICE_UNAVAILABLE);

    bench.cookie = ann;
    bench.people.silence(false);
    bench.people.remove("ann");
    bench.clock.advance(Duration::from_secs(10));
    assert_eq!(bench.get("/").await.status, StatusCode::SEE_OTHER, "what the store says counts again");
}

#[tokio::test]
async fn a_silent_store_is_made_up_for_only_so_long() {
    let mut bench = Bench::logged_in().await;
    bench.people.silence(true);
    // used all the time, so that the cookie is renewed
    for _ in 0..11 {
        bench.clock.advance(Duration::from_secs(3600));
        let answer = bench.get("/").await;
        assert_eq!(answer.status, StatusCode::OK);
        if !answer.header(header::SET_COOKIE).is_empty() {
            bench.cookie = pair(&answer);
        }
    }
    bench.clock.advance(Duration::from_secs(3600));
    assert_eq!(bench.get("/").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn machines_are_let_in_while_users_cannot_be_looked_up() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let bench = Bench::new().await;
    let get = async |pair: &str| {
        let basic = format!("Basic {}", STANDARD.encode(pair));
        let request = Request::get("/metrics").header(header::AUTHORIZATION, basic).body(Body::empty()).unwrap();
        bench.send(request).await.status
    };
    assert_eq!(get("ann:open sesame").await, StatusCode::OK);
    bench.people.silence(true);
    bench.clock.advance(Duration::from_secs(60));
    assert_eq!(get("ann:open sesame").await, StatusCode::OK);
    assert_eq!(get("ann:guess").await, StatusCode::SERVICE_UNAVAILABLE);
    bench.people.silence(false);
    for _ in 0..8 {
        assert_eq!(get("ann:guess").await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(get("ann:open sesame").await, StatusCode::TOO_MANY_REQUESTS, "the limit tells nothing of the guess");
    bench.clock.advance(Duration::from_secs(300));
    bench.accounts.set_password("ann", Secret::new("another")).await.unwrap();
    assert_eq!(get("ann:open sesame").await, StatusCode::UNAUTHORIZED);
    assert_eq!(get("ann:another").await, StatusCode::OK);
}

#[tokio::test]
async fn machines_may_use_basic() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let bench = Bench::new().await;
    for (pair, status) in [("ann:open sesame", StatusCode::OK), ("ann:guess", StatusCode::UNAUTHORIZED)] {
        let request =
            Request::get("/api/v1/status").header(header::AUTHORIZATION, format!("Basic {}", STANDARD.encode(pair)));
        assert_eq!(bench.send(request.body(Body::empty()).unwrap()).await.status, status, "{pair}");
    }
}

#[tokio::test]
async fn every_answer_carries_the_security_headers() {
    let bench = Bench::logged_in().await;
    for path in
        ["/", "/dashboards/loans", "/nope", "/api/v1/status", "/api/nope", "/metrics", "/healthz", "/assets/nope.js"]
    {
        let answer = bench.get(path).await;
        let policy = answer.header(header::CONTENT_SECURITY_POLICY);
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(answer.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff", "{path}");
        assert_eq!(answer.header(header::CACHE_CONTROL), "no-store", "{path}");
    }
}

#[tokio::test]
async fn pages_hold_no_inline_script_or_style() {
    let bench = Bench::logged_in().await;
    for path in ["/", "/dashboards/loans", "/reports", "/reports/payments", "/runs", "/cluster", "/proxy", "/backups"] {
        let page = bench.get(path).await.text;
        assert!(!page.contains(" style=") && !page.contains("<style"), "{path}");
        for script in page.split("<script").skip(1) {
            assert!(
                script.starts_with(" src=\"/assets/")
                    || script.starts_with(" type=\"module\" src=\"/assets/")
                    || script.starts_with(" type=\"application/json\">"),
                "{path}: {script:.60}"
            );
        }
        assert!(
            !page.contains("http://") || path == "/dashboards/loans" || path == "/reports/payments",
            "{path} names another host"
        );
    }
}

#[tokio::test]
async fn assets_are_compressed_and_kept() {
    let bench = Bench::new().await;
    let page = bench.get("/login").await.text;
    let url = page.split('"').find(|part| part.starts_with("/assets/app.js?v=")).unwrap();
    let request = Request::get(url).header(header::ACCEPT_ENCODING, "gzip, br;q=0.9");
    let answer = bench.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!((answer.status, answer.header(header::CONTENT_ENCODING)), (StatusCode::OK, "br"));
    assert!(answer.header(header::CACHE_CONTROL).contains("immutable"));
    assert_eq!(bench.get(url).await.header(header::CONTENT_ENCODING), "");
    let request = Request::get(url).header(header::ACCEPT_ENCODING, "br;q=0, gzip;q=0.5");
    let refused = bench.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(refused.header(header::CONTENT_ENCODING), "gzip");
    let request = Request::get(url).header(header::IF_NONE_MATCH, answer.header(header::ETAG));
    assert_eq!(bench.send(request.body(Body::empty()).unwrap()).await.status, StatusCode::NOT_MODIFIED);
    let other = bench.get("/assets/app.js?v=0123456789").await;
    assert_eq!(
        (other.status, other.header(header::CACHE_CONTROL)),
        (StatusCode::OK, "no-cache"),
        "an older page's URL"
    );
    assert_eq!(bench.get("/assets/..%2FCargo.toml").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn pages_and_data_are_compressed_for_those_who_take_it() {
    let bench = Bench::logged_in().await;
    for path in [
        "/dashboards/loans?from=2024-01-01",
        "/api/v1/dashboards/loans/tiles/4",
        "/api/v1/reports/payments.csv",
        "/metrics",
    ] {
        let plain = bench.get(path).await;
        assert_eq!((plain.status, plain.header(header::CONTENT_ENCODING)), (StatusCode::OK, ""), "{path}");
        let request = Request::get(path).header(header::COOKIE, &bench.cookie).header(header::ACCEPT_ENCODING, "gzip");
        let response = bench.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip", "{path}");
        assert_eq!(response.headers()[header::VARY], "accept-encoding", "{path}");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(bytes.as_ref()), &mut text).unwrap();
        // a page differs in its form's token
        assert_eq!(text.len(), plain.text.len(), "{path}");
        assert!(bytes.len() * 2 < text.len(), "{path}: {} of {} bytes", bytes.len(), text.len());
    }
    let request = Request::get("/events").header(header::COOKIE, &bench.cookie).header(header::ACCEPT_ENCODING, "gzip");
    let events = bench.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert!(!events.headers().contains_key(header::CONTENT_ENCODING), "events must not wait in a buffer");
}

#[tokio::test]
async fn scripts_do_not_make_the_browser_ask_for_a_password() {
    let bench = Bench::new().await;
    let request = Request::get("/api/v1/status").header("sec-fetch-dest", "empty").body(Body::empty()).unwrap();
    let answer = bench.send(request).await;
    assert_eq!((answer.status, answer.header(header::WWW_AUTHENTICATE)), (StatusCode::UNAUTHORIZED, ""));
}

#[tokio::test]
async fn a_dashboard_works_without_script() {
    let bench = Bench::logged_in().await;
    let page = bench.get("/dashboards/loans?from=2024-01-01&branch=%3Cscript%3Ealert(1)").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(!page.text.contains("<script>alert(1)"), "filters are escaped");
    assert!(page.text.contains("name=\"from\" value=\"2024-01-01\""), "filters stay in the form");
    // a table of each chart, its CSV, and a link from a row to its rows and back
    assert!(page.text.contains("<td class=\"num\">18,204</td>") || page.text.contains("<span class=\"whole\">"));
    assert!(page.text.contains("<td><a href=\"/reports/payments?customer=Amina%20Otieno&amp;from=2024-01-01&amp;branch=%3Cscript%3Ealert%281%29&amp;_back=%2Fdashboards%2Floans%3Ffrom%3D2024-01-01%26branch"));
    assert!(page.text.contains("href=\"/api/v1/reports/monthly_revenue.csv?from=2024-01-01"));
    assert!(page.text.contains("&lt;b&gt;Halima&lt;/b&gt;") && !page.text.contains("<b>Halima"), "values are escaped");
}

#[tokio::test]
async fn a_dashboard_remembers_nothing_but_its_url() {
    let bench = Bench::logged_in().await;
    let page =
        bench.get("/reports/payments?customer=Amina+Otieno&_back=%2Fdashboards%2Floans%3Ffrom%3D2024-01-01").await;
    assert!(page.text.contains("<a href=\"/dashboards/loans?from=2024-01-01\" rel=\"up\">Loans</a>"), "breadcrumb");
    let nested = "/reports/payments?_back=%2Freports%2Fstatus%3F_back%3D%252Fdashboards%252Floans%253Fbranch%253DKSM";
    let page = bench.get(nested).await;
    for link in ["<a href=\"/dashboards/loans?branch=KSM\" rel=\"up\">Loans</a>", "rel=\"up\">Loan status</a>"] {
        assert!(page.text.contains(link), "{link}");
    }
    let page = bench.get("/reports/payments?_back=https%3A%2F%2Fevil.example").await;
    assert!(page.text.contains("<a href=\"/reports\" rel=\"up\">Reports</a>"));
    assert!(!page.text.contains("href=\"https://evil"));
}

#[tokio::test]
async fn a_failing_tile_says_so_and_leaves_the_others() {
    let bench = Bench::logged_in().await;
    let page = bench.get("/dashboards/loans?branch=FAIL").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.text.contains("data-state=\"error\""));
    assert!(page.text.contains("the report failed: division by zero"));
    assert!(page.text.contains("choose another branch"));
    let tile = bench.get("/api/v1/dashboards/loans/tiles/0?branch=FAIL").await;
    assert_eq!(tile.status, StatusCode::BAD_GATEWAY);
    let late = bench.get("/dashboards/loans?branch=LATE").await;
    assert_eq!(late.text.matches("data-state=\"loading\"").count(), 1, "one tile is late, the page is not");
    assert_eq!(late.text.matches("data-state=\"ready\"").count(), 9);
}

#[tokio::test]
async fn bad_filters_are_named() {
    let bench = Bench::logged_in().await;
    let tile = bench.get("/api/v1/dashboards/loans/tiles/4?from=2024-02-30").await;
    assert_eq!(tile.status, StatusCode::BAD_REQUEST);
    insta::assert_snapshot!(tile.text, @r#"{"error":{"message":"`2024-02-30` is not a date like 2024-01-31 for “From”","hint":"change the filter above, or clear it"}}"#);
    let page = bench.get("/reports/status?from=soon").await;
    assert_eq!(page.status, StatusCode::BAD_REQUEST);
    assert!(page.text.contains("`soon` is not a date like 2024-01-31 for “From”"));
}

#[tokio::test]
async fn unknown_names_are_answered_with_what_there_is() {
    let bench = Bench::logged_in().await;
    for path in ["/dashboards/nope", "/reports/nope", "/nope"] {
        let page = bench.get(path).await;
        assert_eq!(page.status, StatusCode::NOT_FOUND, "{path}");
        assert!(page.text.contains("href=\"/dashboards/loans\">Loans</a>"), "{path}");
        assert!(page.text.contains("nope"), "{path}");
    }
    let api = bench.get("/api/v1/dashboards/nope/tiles/0").await;
    insta::assert_snapshot!(api.text, @r#"{"error":{"message":"there is no dashboard `nope`","hint":"known: arrears, loans"}}"#);
    let api = bench.get("/api/v1/dashboards/loans/tiles/99").await;
    insta::assert_snapshot!(api.text, @r#"{"error":{"message":"dashboard `loans` has no tile 99","hint":"tiles are numbered 0 to 9"}}"#);
    assert_eq!(bench.get("/api/v1/reports/nope.csv").await.status, StatusCode::NOT_FOUND);
    assert_eq!(bench.get("/api/v1/reports/status.xlsx").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_pack_says_which_dashboard_is_opened_first() {
    let bench = Bench::logged_in().await;
    assert_eq!(bench.get("/dashboards").await.header(header::LOCATION), "/dashboards/loans", "not the first by name");
}

#[tokio::test]
async fn csv_is_whole_and_safe() {
    let bench = Bench::logged_in().await;
    let csv = bench.get("/api/v1/reports/top_customers.csv?from=2024-01-01").await;
    assert_eq!(csv.header(header::CONTENT_TYPE), "text/csv; charset=utf-8; header=present");
    assert_eq!(csv.header(header::CONTENT_DISPOSITION), "attachment; filename=\"top_customers.csv\"");
    assert!(csv.text.starts_with("customer,total_paid\r\nAmina Otieno,1820000.00\r\n"), "{}", csv.text);
    assert!(csv.text.contains("\"'=HYPERLINK(\"\"http://x\"\""), "{}", csv.text);
    assert_eq!(csv.text.lines().count(), 11);
}

#[tokio::test]
async fn rows_are_sorted_by_known_columns_only() {
    let bench = Bench::logged_in().await;
    let page = bench.get("/reports/payments?_sort=-amount").await;
    assert!(page.text.contains("aria-sort=\"descending\""));
    let asked = bench.source.last_asked().unwrap();
    assert_eq!(asked, "SELECT * FROM (\npayments\n) AS report ORDER BY \"amount\" DESC NULLS LAST");
    bench.get("/reports/payments?_sort=amount%22%20desc%3B--").await;
    assert_eq!(bench.source.last_asked().unwrap(), "payments");
}

#[tokio::test]
async fn a_tile_as_json_is_exact() {
    let bench = Bench::logged_in().await;
    let tile = bench.get("/api/v1/dashboards/loans/tiles/5").await;
    let mut value: serde_json::Value = serde_json::from_str(&tile.text).unwrap();
    value["freshness"]["lsn"] = "…".into();
    value["freshness"]["run_id"] = 0.into();
    value["rows"][0][1] = 0.into();
    value["texts"][0][1] = "…".into();
    value["hash"] = "…".into();
    insta::assert_json_snapshot!("tile", value);
}

#[tokio::test]
async fn runs_have_pages() {
    let bench = Bench::logged_in().await;
    let first = bench.get("/runs").await.text;
    assert_eq!(first.matches("<tr id=\"run-").count(), 50);
    assert!(first.contains("href=\"/runs?page=2\"") && !first.contains("rel=\"prev\""));
    assert!(first.contains("no space left on device"), "a failed run says why");
    let second = bench.get("/runs?page=2").await.text;
    assert!(second.contains("rel=\"prev\""));
    let newest: i64 = first.split("<tr id=\"run-").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    let older = newest - 130;
    let of_run = bench.get(&format!("/runs?run={older}")).await.text;
    assert!(of_run.contains(&format!("<tr id=\"run-{older}\">")), "where a badge leads, the run is, however old");
    let coming = bench.get(&format!("/runs?run={}", newest + 5)).await.text;
    assert!(coming.contains("Page 1<"), "a run that is not there yet");
}

#[tokio::test]
async fn without_the_primary_nothing_is_said_of_what_it_holds() {
    let bench = Bench::logged_in().await;
    assert!(bench.get("/").await.text.contains("<dd>812 B<span"));
    bench.source.stop_primary();
    let page = bench.get("/").await.text;
    assert!(page.contains("<dd>unknown</dd>") && page.contains("The primary does not answer"), "{page}");
}

#[tokio::test]
async fn a_filter_offers_its_values_even_when_they_cannot_be_found_anew() {
    let bench = Bench::logged_in().await;
    let offered = "<option value=\"KSM-03\">KSM-03</option>";
    assert!(bench.get("/dashboards/loans").await.text.contains(offered));
    bench.source.refuse("branches");
    bench.clock.advance(Duration::from_secs(60));
    assert!(bench.get("/dashboards/loans").await.text.contains(offered));
}

#[tokio::test]
async fn a_chart_says_what_it_measures() {
    let bench = Bench::logged_in().await;
    let page = bench.get("/dashboards/loans").await.text;
    assert!(page.contains("<p class=\"measure\">Total paid (KES) by customer</p>"));
    assert!(page.contains("<p class=\"measure\">Interest, Penalties (KES) by month</p>"));
    assert!(page.contains("<p class=\"measure\">Loans by status</p>"));
}

#[tokio::test]
async fn metrics_follow_the_exporters_names() {
    let bench = Bench::logged_in().await;
    let metrics = bench.get("/metrics").await;
    assert_eq!(metrics.header(header::CONTENT_TYPE), "text/plain; version=0.0.4; charset=utf-8");
    for line in [
        "pg_up{node=\"a\",role=\"primary\"} 1",
        "pg_replication_lag_bytes{node=\"c\"} 18440",
        "pg_replication_slots_active{slot_name=\"millrace_capture\",slot_type=\"logical\"} 1",
        "millrace_capture_lag_seconds 0.34",
        "asset_freshness_seconds{asset=\"warehouse\"} 0.6",
        "process_resident_memory_bytes 412000000",
    ] {
        assert!(metrics.text.lines().any(|l| l == line), "{line} in\n{}", metrics.text);
    }
    for line in metrics.text.lines().filter(|l| !l.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = name.split('{').next().unwrap();
        // a histogram's lines are named after their kind
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|kind| name.strip_suffix(kind));
        let has = |what: &str| metrics.text.lines().any(|l| l.starts_with(&format!("# TYPE {what}")));
        assert!(has(&format!("{name} ")) || of_histogram.is_some_and(|h| has(&format!("{h} histogram"))), "{line}");
    }
}

/// The next event of a stream, as JSON.
async fn next_event(body: &mut Body) -> Option<serde_json::Value> {
    let frame = tokio::time::timeout(Duration::from_secs(20), body.frame()).await.expect("an event in time")?;
    let text = String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap();
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    Some(serde_json::from_str(data).unwrap())
}

#[tokio::test]
async fn events_follow_the_watermark_and_end_with_the_platform() {
    let bench = Bench::logged_in().await;
    let request = Request::get("/events").header(header::COOKIE, &bench.cookie).body(Body::empty()).unwrap();
    let response = bench.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut body = response.into_body();
    let first = next_event(&mut body).await.unwrap();
    bench.clock.advance(Duration::from_secs(2));
    let second = next_event(&mut body).await.unwrap();
    assert_ne!(first["freshness"]["lsn"], second["freshness"]["lsn"]);
    assert_eq!(second["now"], bench.clock.wall().0);
    bench.shutdown.cancel();
    while next_event(&mut body).await.is_some() {}
}

#[tokio::test]
async fn the_overview_says_what_to_do() {
    let bench = Bench::logged_in().await;
    bench.clock.advance(Duration::from_secs(40));
    let page = bench.get("/").await.text;
    assert!(page.contains("Something needs you"), "{page}");
    assert!(page.contains("replays 18 KiB behind the primary") && page.contains("→ millrace logs c"));
    assert!(page.contains("aria-current=\"page\""));
}
