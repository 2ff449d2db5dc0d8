//! Access to the ports of the stack: requests of foreign web pages are refused.
//!
//! Every program of this machine can reach a port of 127.0.0.1. A browser is such a program, and it sends the requests
//! of any web page. It names the page in `Origin`, and the name that the page used for this machine in `Host`.
//!
//! So `Host` must be a name of this machine. A page whose domain was made to lead to 127.0.0.1 (DNS rebinding) sends
//! its own domain. The page itself must come from this machine as well. A request without `Origin` comes from a
//! program.
//!
//! This does not protect from other programs or other users of this machine.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use clap::Args;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, HOST, ORIGIN, VARY};
use http::{HeaderMap, HeaderValue, Uri};

use crate::terminal;

/// The names of this machine that never lead to another one.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The names that containers of Docker and Podman have for this machine.
const CONTAINER_HOSTS: [&str; 2] = ["host.docker.internal", "host.containers.internal"];

/// The origin of a page without one, for example of a page that was opened as a file.
const NULL: &str = "null";

/// The value that some browsers send in handshakes instead of `null`.
const FILE: &str = "file://";

/// The allowed origin that stands for every page of the web.
const ANY: &str = "*";

/// The most refusals that are printed. Without a limit, a page with many names could fill the terminal.
const MAX_LINES: usize = 50;

/// The most characters of an origin or a host that are printed.
const MAX_SHOWN_CHARACTERS: usize = 200;

/// The pages that may use the stack besides the pages of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
// clap names a group like its struct, and other groups have this name already.
#[group(skip)]
pub struct Settings {
    /// Let other machines use the gateway at this address; 0.0.0.0 is every one.
    ///
    /// It is an address of this machine, such as 192.168.1.2. DynamoDB, the pages and the inspector stay on this machine.
    #[arg(long, value_name = "ADDRESS", help_heading = "Ports")]
    pub host: Option<IpAddr>,
    /// Let pages of this origin in, such as https://example.com; may be repeated.
    ///
    /// They may use the gateway and DynamoDB as pages of this machine may. `null` is a page that was opened as a file, and
    /// `*` is every page.
    #[arg(long, value_name = "ORIGIN", value_parser = origin, help_heading = "Ports")]
    pub allow_origin: Vec<String>,
}

/// Reads an origin and writes it as browsers send it.
fn origin(text: &str) -> Result<String, String> {
    let origin = text.to_ascii_lowercase();
    match origin.as_str() {
        ANY => return Ok(origin),
        NULL | FILE => return Ok(NULL.to_owned()),
        _ => {}
    }
    let wrong = || "it is not an origin, such as https://example.com or http://192.168.1.2:5173".to_owned();
    let (scheme, authority) = origin.split_once("://").ok_or_else(wrong)?;
    let has_path = authority.contains(['/', '?', '#', '@']) || authority.contains(char::is_whitespace);
    if scheme.is_empty() || authority.is_empty() || has_path {
        return Err(wrong());
    }
    // Browsers leave out the default port of a scheme.
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    Ok(origin.strip_suffix(default_port).unwrap_or(&origin).to_owned())
}

/// The access to one port of the stack.
#[derive(Debug)]
pub(crate) struct Access {
    /// The name before its lines in the terminal.
    name: &'static str,
    settings: Settings,
    /// A further valid `Host` of this port.
    domain_name: Option<String>,
    /// Whether other machines may use this port.
    is_open: bool,
    /// The refusals that have been printed.
    told: Mutex<HashSet<Stranger>>,
}

/// The sender of a refused request. Its text is for the sender and for the developer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Stranger {
    /// A page with this origin.
    Page(String),
    /// A sender that uses this name for the machine. The name is empty if the request has none.
    Name(String),
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(origin) => write!(
                f,
                "The page's origin {origin} is not on this machine; the flag `--allow-origin {origin}` lets it in."
            ),
            Self::Name(host) => write!(
                f,
                "The request's Host `{host}` is not a name of this machine; use localhost, 127.0.0.1 or [::1]."
            ),
        }
    }
}

impl Access {
    /// Makes the access to a port. Its lines begin with `name`, and `domain_name` is a further valid `Host`.
    pub(crate) fn new(name: &'static str, settings: Settings, domain_name: Option<String>) -> Self {
        Self { name, settings, domain_name, is_open: false, told: Mutex::default() }
    }

    /// Lets other machines in, if the settings say so.
    pub(crate) fn open(self) -> Self {
        Self { is_open: self.settings.host.is_some(), ..self }
    }

    /// Checks a request and returns the origin of its page, if a page sent it. Prints one line for each stranger.
    pub(crate) fn check(&self, headers: &HeaderMap, uri: &Uri) -> Result<Option<HeaderValue>, Stranger> {
        self.origin(headers, uri).inspect_err(|stranger| self.tell(stranger))
    }

    fn origin(&self, headers: &HeaderMap, uri: &Uri) -> Result<Option<HeaderValue>, Stranger> {
        let hosts: Vec<_> = headers.get_all(HOST).iter().map(HeaderValue::as_bytes).collect();
        // A request through a proxy names the host a second time, in its target.
        let of_uri = uri.authority().map(|authority| authority.as_str().as_bytes());
        let is_known = |host: &&[u8]| std::str::from_utf8(host).is_ok_and(|host| self.knows(host));
        let mut hosts = hosts.into_iter().chain(of_uri).peekable();
        if hosts.peek().is_none() {
            return Err(Stranger::Name(String::new()));
        }
        if let Some(host) = hosts.find(|host| !is_known(host)) {
            return Err(Stranger::Name(shown(host)));
        }
        match headers.get_all(ORIGIN).iter().find(|origin| !self.allows(origin)) {
            Some(origin) => Err(Stranger::Page(shown(origin.as_bytes()))),
            None => Ok(headers.get(ORIGIN).cloned()),
        }
    }

    /// Returns whether a host, with or without a port, is a name of this machine.
    pub(crate) fn knows(&self, host: &str) -> bool {
        let (name, _) = split(host);
        let is_domain = |domain: &String| domain.eq_ignore_ascii_case(name) || domain.eq_ignore_ascii_case(host);
        is_loopback(host) || (self.is_open && is_open_host(name)) || self.domain_name.as_ref().is_some_and(is_domain)
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        let is_local = origin.split_once("://").is_some_and(|(_, authority)| is_loopback(authority));
        let is_allowed = |allowed: &String| {
            allowed == ANY || allowed.eq_ignore_ascii_case(origin) || (allowed == NULL && origin == FILE)
        };
        is_local || self.settings.allow_origin.iter().any(is_allowed)
    }

    fn tell(&self, stranger: &Stranger) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MAX_LINES && told.insert(stranger.clone()) {
            terminal::line(self.name, &format!("refused a request. {stranger}"));
            if told.len() == MAX_LINES {
                terminal::line(self.name, "refused requests from many senders; further refusals are not shown");
            }
        }
    }
}

/// Lets only a page with this origin read an answer. This replaces the header that the answer had before.
pub(crate) fn share(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    headers.remove(ACCESS_CONTROL_ALLOW_ORIGIN);
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
}

/// Returns whether other machines may use this host. A page can lead its own name to this machine, but no address, and
/// none of the names that containers have for their host.
fn is_open_host(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    address.parse::<IpAddr>().is_ok() || CONTAINER_HOSTS.iter().any(|name| name.eq_ignore_ascii_case(host))
}

/// Returns whether a host, with or without a port, is this machine.
fn is_loopback(authority: &str) -> bool {
    let (host, port) = split(authority);
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    port.is_none_or(is_port) && LOOPBACK.iter().any(|name| name.eq_ignore_ascii_case(host))
}

/// Splits host and port. The colons of an IPv6 address are in brackets.
fn split(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !authority.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

fn shown(value: &[u8]) -> String {
    String::from_utf8_lossy(value).chars().take(MAX_SHOWN_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(allow_origin: &[&str], domain_name: Option<&str>) -> Access {
        let allow_origin = allow_origin.iter().map(|text| origin(text).unwrap()).collect();
        Access::new("test", Settings { allow_origin, host: None }, domain_name.map(str::to_owned))
    }

    fn check(access: &Access, headers: &[(http::HeaderName, &str)], uri: &str) -> Result<Option<String>, Stranger> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value.parse().unwrap());
        }
        let origin = access.check(&map, &uri.parse().unwrap())?;
        Ok(origin.map(|origin| origin.to_str().unwrap().to_owned()))
    }

    #[test]
    fn a_request_must_name_this_machine() {
        let door = access(&[], None);
        for host in ["localhost", "LOCALHOST:3001", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"] {
            assert_eq!(check(&door, &[(HOST, host)], "/"), Ok(None), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:3001",
            "localhost.evil.example",
            "localhost:3001.evil.example",
            "localhost@evil.example",
            "evil.example@localhost",
            "127.0.0.1.evil.example",
            "127.0.0.2",
            "0.0.0.0",
            "::1",
            "[::1].evil.example",
            "localhost:",
        ] {
            assert_eq!(check(&door, &[(HOST, host)], "/"), Err(Stranger::Name(host.to_owned())), "{host}");
        }
        assert_eq!(check(&door, &[], "/"), Err(Stranger::Name(String::new())));
        // A second header and the target of the request must be names of this machine as well.
        let stranger = || Err(Stranger::Name("evil.example".to_owned()));
        assert_eq!(check(&door, &[(HOST, "localhost"), (HOST, "evil.example")], "/"), stranger());
        assert_eq!(check(&door, &[(HOST, "localhost")], "http://evil.example/"), stranger());
        assert_eq!(check(&door, &[], "http://localhost:3001/"), Ok(None));
    }

    #[test]
    fn the_domain_name_is_a_valid_host_but_not_a_valid_origin() {
        let door = access(&[], Some("chat.example"));
        for host in ["chat.example", "Chat.Example", "chat.example:3001", "localhost"] {
            assert_eq!(check(&door, &[(HOST, host)], "/"), Ok(None), "{host}");
        }
        assert!(check(&door, &[(HOST, "example")], "/").is_err());
        assert!(check(&door, &[(HOST, "chat.example"), (ORIGIN, "https://chat.example")], "/").is_err());
    }

    #[test]
    fn other_machines_may_name_an_address_but_no_domain() {
        let settings = Settings { host: "0.0.0.0".parse().ok(), ..Settings::default() };
        let door = Access::new("test", settings.clone(), None).open();
        for host in ["192.168.1.2", "192.168.1.2:3001", "[fe80::1]:3001", "host.docker.internal:3001", "localhost"] {
            assert_eq!(check(&door, &[(HOST, host)], "/"), Ok(None), "{host}");
            let other_port = Access::new("test", settings.clone(), None);
            assert_eq!(check(&other_port, &[(HOST, host)], "/").is_ok(), host == "localhost", "{host}");
        }
        for host in ["evil.example:3001", "192.168.1.2.evil.example", "docker.internal", "192.168.1", "fe80::1"] {
            assert_eq!(check(&door, &[(HOST, host)], "/"), Err(Stranger::Name(host.to_owned())), "{host}");
        }
        assert!(check(&door, &[(HOST, "192.168.1.2"), (ORIGIN, "http://192.168.1.2")], "/").is_err());
    }

    #[test]
    fn a_page_must_come_from_this_machine() {
        let door = access(&[], None);
        for origin in ["http://localhost:5173", "https://localhost", "http://127.0.0.1:1", "http://[::1]:5173"] {
            let headers = [(HOST, "localhost"), (ORIGIN, origin)];
            assert_eq!(check(&door, &headers, "/"), Ok(Some(origin.to_owned())), "{origin}");
        }
        for origin in [
            "https://evil.example",
            "http://localhost.evil.example",
            "http://localhost@evil.example",
            "http://localhost:80@evil.example",
            "http://localhost:80.evil.example",
            "http://localhost/x",
            "http://localhost http://evil.example",
            "localhost",
            "null",
            "file://",
            "",
        ] {
            let headers = [(HOST, "localhost"), (ORIGIN, origin)];
            assert_eq!(check(&door, &headers, "/"), Err(Stranger::Page(origin.to_owned())), "{origin}");
        }
        let two = [(HOST, "localhost"), (ORIGIN, "http://localhost"), (ORIGIN, "https://evil.example")];
        assert!(check(&door, &two, "/").is_err());
    }

    #[test]
    fn only_pages_of_allowed_origins_may_enter() {
        let enters = |allowed: &[&str], origin: &str| {
            check(&access(allowed, None), &[(HOST, "localhost"), (ORIGIN, origin)], "/").is_ok()
        };
        let allowed = ["https://Chat.example:443", "http://192.168.1.2:5173"];
        assert!(enters(&allowed, "https://chat.example") && enters(&allowed, "http://192.168.1.2:5173"));
        for origin in ["http://chat.example", "https://chat.example:444", "https://a.chat.example", "null"] {
            assert!(!enters(&allowed, origin), "{origin}");
        }
        assert!(
            enters(&["null"], "null") && enters(&["file://"], "file://") && !enters(&["null"], "https://x.example")
        );
        assert!(enters(&["*"], "https://x.example") && enters(&["*"], "null"));
        for text in ["", "example.com", "https://", "https://x.example/", "https://x.example/a", "*.example.com"] {
            assert!(origin(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_names_the_flag_or_the_names_that_are_accepted() {
        let page = Stranger::Page("https://evil.example".to_owned()).to_string();
        assert!(page.contains("--allow-origin https://evil.example"), "{page}");
        assert!(Stranger::Name("evil.example".to_owned()).to_string().contains("use localhost"));
    }

    #[test]
    fn each_stranger_has_one_line_up_to_a_limit() {
        let door = access(&[], None);
        for number in 0..3 * MAX_LINES {
            for _ in 0..2 {
                let origin = format!("https://{number}.example");
                assert!(check(&door, &[(HOST, "localhost"), (ORIGIN, &origin)], "/").is_err());
            }
        }
        assert_eq!(door.told.lock().unwrap().len(), MAX_LINES);
        let long = Stranger::Name("x".repeat(MAX_SHOWN_CHARACTERS));
        assert_eq!(check(&door, &[(HOST, &"x".repeat(9000))], "/"), Err(long));
    }
}
