//! The server of the web port: the files of a folder (`--web`), and the inspector.
//!
//! A file is found by its name below the folder. The folder may have symbolic links that lead out of it, because its
//! owner made them. A path cannot lead out, however it is written, and names that begin with a dot are not served.
//!
//! The stack checks `Host` and `Origin` of every request, as at its other ports (`access.rs`). No answer has a header
//! that lets a page of another origin read it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use clap::Args;
use percent_encoding::percent_decode_str;
use tokio::net::TcpListener;
use tower_http::services::ServeDir;

use crate::access::{self, Access};
use crate::inspector;

/// The port with `--web`, unless `--web-port` chooses another one.
const DEFAULT_PORT: u16 = 3000;

/// The pages of the stack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
// clap names a group like its struct, and other groups have this name already.
#[group(skip)]
pub struct Settings {
    /// Serve the files of this folder at http://localhost:3000.
    ///
    /// `/` is index.html, and the inspector is at `/inspect`.
    #[arg(long, value_name = "DIR", help_heading = "Ports")]
    pub web: Option<PathBuf>,
    /// The port of the inspector and of pages [default: 3000 with --web].
    ///
    /// 0 chooses a free one. Without this flag and --web there is no such port.
    #[arg(long, value_name = "PORT", help_heading = "Ports")]
    pub web_port: Option<u16>,
}

impl Settings {
    /// Returns the port, if one is wanted.
    pub(crate) fn port(&self) -> Option<u16> {
        self.web_port.or_else(|| self.web.is_some().then_some(DEFAULT_PORT))
    }
}

/// A server of the web port. It does not serve yet.
#[derive(Debug)]
pub(crate) struct Web {
    listener: TcpListener,
    router: Router,
    /// The address of the port.
    pub(crate) address: SocketAddr,
}

impl Web {
    /// Makes a server of these files and of the inspector. Without files, `/` leads to the inspector.
    pub(crate) fn new(
        listener: TcpListener,
        address: SocketAddr,
        settings: &Settings,
        access: access::Settings,
        inspected: inspector::Parts,
    ) -> Self {
        let router = match &settings.web {
            Some(folder) => {
                Router::new().fallback_service(ServeDir::new(folder)).layer(middleware::from_fn(hide_dot_files))
            }
            None => Router::new().route("/", get(|| std::future::ready(Redirect::temporary("/inspect")))),
        };
        let access = Arc::new(Access::new("web", access, None));
        let router = router
            .merge(inspector::router(inspected))
            .layer(middleware::from_fn(add_headers))
            .layer(middleware::from_fn_with_state(access, refuse_strangers));
        Self { listener, router, address }
    }

    /// Serves until the future is dropped.
    pub(crate) async fn serve(self) {
        let listener = self.listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        // This never returns: axum tries again after a failed accept.
        let _ = axum::serve(listener, self.router).await;
    }
}

async fn refuse_strangers(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match access.check(request.headers(), request.uri()) {
        Ok(_) => next.run(request).await,
        Err(stranger) => (StatusCode::FORBIDDEN, stranger.to_string()).into_response(),
    }
}

/// Answers 404 to names that begin with a dot, such as `.git` and `.env`. They are seldom meant for a page.
async fn hide_dot_files(request: Request, next: Next) -> Response {
    let path = percent_decode_str(request.uri().path()).decode_utf8_lossy();
    if path.split(['/', '\\']).any(|name| name.starts_with('.')) {
        return StatusCode::NOT_FOUND.into_response();
    }
    next.run(request).await
}

/// Adds headers that fit every page: a browser asks again each time, believes the type, tells no other server the
/// address, and shows no page inside a page of another origin. A page adds its own policy in its HTML.
async fn add_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static("frame-ancestors 'self'"));
    response
}
