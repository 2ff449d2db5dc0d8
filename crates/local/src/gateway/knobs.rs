//! The gateway's numbers, and what it does where nobody knows what API Gateway does: each a field and a flag.
//!
//! The numbers are those of "Amazon API Gateway quotas and important notes", section "API Gateway quotas for configuring
//! and running a WebSocket API"; below they are named as that page names them. KB there means 1024 bytes. All of them
//! can be changed here, also those that AWS does not raise: a test that waits ten minutes is not run.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, FromArgMatches, ValueEnum};

use crate::duration::{duration, text};

/// WebSocket frame size, in bytes. Not adjustable on AWS.
pub const FRAME_LIMIT: usize = 32 * 1024;

/// Message payload size, in bytes. Not adjustable on AWS.
pub const MESSAGE_LIMIT: usize = 128 * 1024;

/// "Length, in characters, of the URL". Not adjustable on AWS.
pub const URL_LIMIT: usize = 4096;

/// "Idle Connection Timeout". Not adjustable on AWS.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// "Connection duration for WebSocket API". Not adjustable on AWS.
pub const CONNECTION_DURATION: Duration = Duration::from_secs(2 * 60 * 60);

/// "Integration timeout": the most, and the default of an integration that names none.
pub const INTEGRATION_TIMEOUT: Duration = Duration::from_secs(29);

/// "New connections per second per account (across all WebSocket APIs) per Region".
pub const CONNECTION_RATE: u32 = 500;

/// "Throttle quota per account, per Region across HTTP APIs, REST APIs, WebSocket APIs, and WebSocket callback APIs",
/// in requests a second.
pub const REQUEST_RATE: u32 = 10_000;

/// The burst of the same quota.
pub const REQUEST_BURST: u32 = 5_000;

/// "Maximum Lambda authorizer result size", in bytes. Not adjustable on AWS.
pub const AUTHORIZER_RESULT_LIMIT: usize = 8 * 1024;

/// "Routes per API".
pub const ROUTES: usize = 300;

/// "Integrations per API". The Serverless Framework makes one for each function with a route.
pub const INTEGRATIONS: usize = 300;

/// Connections and requests that are refused beyond, and times after which a connection or a request ends.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Limits of API Gateway")]
pub struct Limits {
    /// Bytes in a frame, compressed or not; a longer one closes its connection with 1009.
    #[arg(long, value_name = "BYTES", default_value_t = FRAME_LIMIT)]
    pub frame_limit: usize,
    /// Bytes in a message without its compression, from a client or to one; a longer one closes with 1009, or is a 413 of
    /// @connections.
    #[arg(long, value_name = "BYTES", default_value_t = MESSAGE_LIMIT)]
    pub message_limit: usize,
    /// Characters in the URL of a handshake; a longer one is refused with 414.
    #[arg(long, value_name = "CHARACTERS", default_value_t = URL_LIMIT)]
    pub url_limit: usize,
    /// Bytes in the result of an authorizer; a longer one is refused with 500.
    #[arg(long, value_name = "BYTES", default_value_t = AUTHORIZER_RESULT_LIMIT)]
    pub authorizer_result_limit: usize,
    /// How long a connection may be idle before it is closed with 1001.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = text(IDLE_TIMEOUT))]
    pub idle_timeout: Duration,
    /// How long a connection may be open, whatever its traffic, before it is closed with 1001.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = text(CONNECTION_DURATION))]
    pub connection_duration: Duration,
    /// How fast these two times of a connection pass: `system`, or `x60` for an hour in a minute.
    ///
    /// Other times, and those in events, are the system's.
    #[arg(long, value_name = "SPEED", default_value = "system")]
    pub clock: Clock,
    /// How long the gateway waits for a function, which runs on after that: a 504 at $connect, an error frame elsewhere.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = text(INTEGRATION_TIMEOUT))]
    pub integration_timeout: Duration,
    /// New connections per second; others are refused with 429.
    #[arg(long, value_name = "N", default_value_t = CONNECTION_RATE)]
    pub connection_rate: u32,
    /// Messages and calls of @connections per second; others are answered with an error frame, or with 429.
    #[arg(long, value_name = "N", default_value_t = REQUEST_RATE)]
    pub request_rate: u32,
    /// How many of them may come at once.
    #[arg(long, value_name = "N", default_value_t = REQUEST_BURST)]
    pub request_burst: u32,
    /// Routes of the API, beyond which the start says that AWS has to be asked for more.
    #[arg(long, value_name = "N", default_value_t = ROUTES)]
    pub max_routes: usize,
    /// Functions with routes, beyond which the start says so, too.
    #[arg(long, value_name = "N", default_value_t = INTEGRATIONS)]
    pub max_integrations: usize,
}

impl Limits {
    /// The limits with their clock applied: in place of it, the times of a connection are shorter. How long a function
    /// takes and how much comes in a second is not sped up by any clock of the gateway, so neither are those limits.
    #[must_use]
    pub fn by_clock(&self) -> Self {
        let Clock(speed) = self.clock;
        Self {
            idle_timeout: self.idle_timeout / speed.get(),
            connection_duration: self.connection_duration / speed.get(),
            clock: Clock::SYSTEM,
            ..self.clone()
        }
    }
}

/// How many times as fast as the system's clock something passes; written `system` or `x{times}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock(NonZeroU32);

impl Clock {
    const SYSTEM: Self = Self(NonZeroU32::MIN);
}

impl FromStr for Clock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let speed =
            if text == "system" { Some(Self::SYSTEM.0) } else { text.strip_prefix('x').and_then(|x| x.parse().ok()) };
        speed.map(Self).ok_or_else(|| "it is neither `system` nor `x` and a whole number, such as `x60`".to_owned())
    }
}

/// What to do where the documentation of API Gateway is silent, or observers disagree.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Where the behaviour of API Gateway is unknown")]
pub struct Knobs {
    /// The longest frame that a client is sent, in bytes, compressed or not; 0 sends every message in one frame.
    #[arg(long, value_name = "BYTES", default_value_t = FRAME_LIMIT)]
    pub outbound_fragment: usize,
    /// What becomes of a client's offer to compress messages (permessage-deflate).
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub deflate: Deflate,
    /// What a POST to @connections does with bytes that are not UTF-8.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub non_utf8_post: NonUtf8Post,
    /// What @connections answers to an id that no connection can have.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub id_validation: IdValidation,
    /// The reason in the close frame and in $disconnect when @connections deleted the connection.
    #[arg(long, value_name = "TEXT", value_parser = close_reason, default_value = "Connection Closed Normally")]
    pub delete_close_reason: String,
    /// The reason in $disconnect when TCP ended without a close frame (1006).
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub abnormal_reason: String,
    /// Whether events have explicit nulls, as in 2020, or leave out what is not there.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub null_style: NullStyle,
    /// Read messages as JSON5 when their routes are selected: keys without quotes, comments, trailing commas.
    #[arg(long)]
    pub lenient_json: bool,
    /// What a response without statusCode means.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub missing_status_code: MissingStatusCode,
    /// What the sender hears of a well-formed response with status 400 or more on a one-way route.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub oneway_error_status: OnewayErrorStatus,
    /// Which messages keep a connection from being idle.
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub idle_counts: IdleCounts,
    /// Let a client's pings keep its connection from being idle, too.
    #[arg(long)]
    pub ping_resets_idle: bool,
    /// The status of a handshake whose $connect takes longer than the integration time-out.
    #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u16).range(500..600), default_value_t = 504)]
    pub connect_timeout_status: u16,
    /// What the sender of a message beyond the request rate hears.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub throttle_frame: ThrottleFrame,
    /// Messages per second of one connection, beyond which it is closed with 1008 [default: none].
    #[arg(long, value_name = "N")]
    pub client_message_rate: Option<u32>,
    /// What a POST does to a connection whose $connect still runs.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub post_to_pending: PostToPending,
    /// What happens when a client leaves while its $connect, which then accepts it, still runs.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub abort_during_connect: AbortDuringConnect,
    /// What is asked of the signatures of calls of @connections, and of handshakes where AWS_IAM asks for them.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub sigv4: Sigv4,
    /// The same as --sigv4 verify.
    #[arg(long, conflicts_with = "sigv4")]
    pub verify_signatures: bool,
    /// The domainName of events, in place of the handshake's Host.
    #[arg(long, value_name = "NAME")]
    pub domain_name: Option<String>,
}

/// See [`Knobs::deflate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Deflate {
    /// It is declined, as any server may.
    #[default]
    Never,
    /// It is accepted, as once recorded, and messages are compressed both ways.
    Negotiate,
}

/// See [`Knobs::non_utf8_post`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum NonUtf8Post {
    /// Replace them with U+FFFD.
    #[default]
    Lossy,
    /// Refuse the call with 400.
    Refuse,
}

/// See [`Knobs::id_validation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum IdValidation {
    /// 400 unless it is 15 characters of URL-safe Base64 and `=`, as every recorded id.
    #[default]
    Form,
    /// 410, as for any connection that is not open.
    None,
}

/// See [`Knobs::null_style`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum NullStyle {
    /// As in events recorded since 2022.
    #[default]
    Omit,
    /// As in events recorded in 2020.
    Explicit,
}

/// See [`Knobs::missing_status_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum MissingStatusCode {
    /// It is malformed, as for REST APIs.
    #[default]
    Error,
    /// It is a 200.
    Ok,
}

/// See [`Knobs::oneway_error_status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnewayErrorStatus {
    /// Nothing.
    #[default]
    Silent,
    /// `Internal server error`.
    ErrorFrame,
}

/// See [`Knobs::idle_counts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum IdleCounts {
    /// Those of the client and those to it.
    #[default]
    Both,
    /// Those of the client.
    Inbound,
}

/// See [`Knobs::throttle_frame`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ThrottleFrame {
    /// `Too Many Requests`.
    #[default]
    TooManyRequests,
    /// Nothing.
    None,
}

/// See [`Knobs::post_to_pending`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PostToPending {
    /// 410, as documented.
    #[default]
    Gone,
    /// No answer until $connect has ended, as reported.
    Hang,
}

/// See [`Knobs::abort_during_connect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum AbortDuringConnect {
    /// Nothing: there was no connection.
    #[default]
    Silent,
    /// $disconnect with 1006.
    Disconnect,
}

impl Knobs {
    /// [`Knobs::sigv4`], or [`Knobs::verify_signatures`] if that is given.
    #[must_use]
    pub fn sigv4(&self) -> Sigv4 {
        if self.verify_signatures { Sigv4::Verify } else { self.sigv4 }
    }
}

/// See [`Knobs::sigv4`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Sigv4 {
    /// Nothing: unsigned calls are served, and unsigned handshakes, too.
    Off,
    /// They must be there and be made for execute-api.
    #[default]
    Present,
    /// They must be made with the credentials that functions are given.
    Verify,
}

/// Everything about the gateway that a flag can change.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Settings {
    /// Sizes, times and rates.
    #[command(flatten)]
    pub limits: Limits,
    /// Open questions.
    #[command(flatten)]
    pub knobs: Knobs,
}

/// What the gateway does without any flag.
impl Default for Settings {
    fn default() -> Self {
        let matches = Self::augment_args(clap::Command::new("gateway")).get_matches_from(["gateway"]);
        Self::from_arg_matches(&matches).expect("every flag has a default or is optional")
    }
}

/// RFC 6455, section 5.5: a control frame has 125 bytes, and two of these are the code.
fn close_reason(text: &str) -> Result<String, String> {
    if text.len() <= 123 { Ok(text.to_owned()) } else { Err("a close frame's reason has at most 123 bytes".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Program {
        #[command(flatten)]
        settings: Settings,
    }

    fn parse(flags: &[&str]) -> Result<Settings, String> {
        let parsed = <Program as clap::Parser>::try_parse_from([&["program"], flags].concat());
        parsed.map(|program| program.settings).map_err(|error| error.to_string())
    }

    #[test]
    fn without_flags_the_gateway_is_as_on_aws() {
        let settings = Settings::default();
        assert_eq!(settings, parse(&[]).unwrap());
        assert_eq!((settings.limits.frame_limit, settings.limits.message_limit), (32_768, 131_072));
        assert_eq!(settings.knobs.delete_close_reason, "Connection Closed Normally");
    }

    #[test]
    fn times_are_written_with_their_unit() {
        assert_eq!(parse(&[]).unwrap().limits.idle_timeout, IDLE_TIMEOUT);
        assert_eq!(parse(&["--idle-timeout", "1m 30s"]).unwrap().limits.idle_timeout, Duration::from_secs(90));
        assert_eq!(parse(&["--idle-timeout", "50ms"]).unwrap().limits.idle_timeout, Duration::from_millis(50));
        assert!(parse(&["--idle-timeout", "30"]).unwrap_err().contains("time unit needed"));
        assert!(parse(&["--idle-timeout", "1000years"]).unwrap_err().contains("at most 365 days"));
        assert!(parse(&["--connect-timeout-status", "200"]).is_err());
    }

    #[test]
    fn a_faster_clock_shortens_the_times_of_connections_alone() {
        let limits = parse(&["--clock", "x60"]).unwrap().limits;
        assert_eq!((limits.idle_timeout, limits.connection_duration), (IDLE_TIMEOUT, CONNECTION_DURATION));
        let expected = ["--idle-timeout", "10s", "--connection-duration", "2m"];
        assert_eq!(limits.by_clock(), parse(&expected).unwrap().limits);
        assert_eq!(limits.by_clock().by_clock(), limits.by_clock());
        assert_eq!(parse(&["--clock", "system"]).unwrap(), parse(&["--clock", "x1"]).unwrap());
        for wrong in ["", "x", "60", "x0", "x-1", "x0.5", "fast"] {
            assert!(parse(&["--clock", wrong]).unwrap_err().contains("neither `system` nor"), "{wrong}");
        }
    }

    #[test]
    fn a_reason_that_no_close_frame_can_carry_is_refused() {
        let reason = |length: usize| parse(&["--delete-close-reason", &"x".repeat(length)]);
        assert!(reason(123).is_ok());
        assert!(reason(124).unwrap_err().contains("at most 123 bytes"));
    }
}
