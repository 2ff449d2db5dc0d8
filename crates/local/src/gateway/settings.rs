//! The gateway's settings: its limits, and its behaviour where that of API Gateway is unknown. Each is a field and a
//! flag.
//!
//! The limits are those of "Amazon API Gateway quotas and important notes", section "API Gateway quotas for configuring
//! and running a WebSocket API". The texts in quotation marks below are that page's names. On that page, KB means 1024
//! bytes. Every limit can be changed here, even if AWS does not raise it, because nobody runs a test that waits ten
//! minutes.

use std::num::{NonZeroU16, NonZeroU32};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, FromArgMatches, ValueEnum};

use crate::duration::{duration, text};
pub use crate::signature::Sigv4;

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

/// "Integration timeout". This is the largest value, and the default of an integration without one.
pub const INTEGRATION_TIMEOUT: Duration = Duration::from_secs(29);

/// "New connections per second per account (across all WebSocket APIs) per Region".
pub const CONNECTION_RATE: u32 = 500;

/// "Throttle quota per account, per Region across HTTP APIs, REST APIs, WebSocket APIs, and WebSocket callback APIs",
/// in requests per second.
pub const REQUEST_RATE: u32 = 10_000;

/// The burst of the same quota.
pub const REQUEST_BURST: u32 = 5_000;

/// "Maximum Lambda authorizer result size", in bytes. Not adjustable on AWS.
pub const AUTHORIZER_RESULT_LIMIT: usize = 8 * 1024;

/// "Routes per API".
pub const ROUTES: usize = 300;

/// Ours. It is more than functions can use on one machine, and it keeps the messages of a fast client from filling the queue of
/// everybody.
pub const MESSAGES_AT_ONCE: NonZeroU16 = NonZeroU16::new(100).unwrap();

/// "Integrations per API". The Serverless Framework makes one for each function with a route.
pub const INTEGRATIONS: usize = 300;

/// The sizes, rates and times above which a connection or a request is refused or ends.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Limits of API Gateway")]
pub struct Limits {
    /// The most bytes of a frame from a client, counted after compression. A longer frame closes the connection with
    /// 1009.
    #[arg(long, value_name = "BYTES", default_value_t = FRAME_LIMIT)]
    pub frame_limit: usize,
    /// The most bytes of a message, counted without compression. A longer message from a client closes the connection
    /// with 1009, and @connections refuses a longer one with 413.
    #[arg(long, value_name = "BYTES", default_value_t = MESSAGE_LIMIT)]
    pub message_limit: usize,
    /// The most characters of a handshake's URL. A longer URL is refused with 414.
    #[arg(long, value_name = "CHARACTERS", default_value_t = URL_LIMIT)]
    pub url_limit: usize,
    /// The most bytes of an authorizer's result. A longer result refuses the handshake with 500.
    #[arg(long, value_name = "BYTES", default_value_t = AUTHORIZER_RESULT_LIMIT)]
    pub authorizer_result_limit: usize,
    /// The longest time that a connection may be idle. Then it is closed with 1001.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = text(IDLE_TIMEOUT))]
    pub idle_timeout: Duration,
    /// The longest time that a connection may be open, even with traffic. Then it is closed with 1001.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = text(CONNECTION_DURATION))]
    pub connection_duration: Duration,
    /// The speed of these two times: `system`, or for example `x60` for an hour in a minute.
    ///
    /// All other times, and the times in events, are the system's.
    #[arg(long, value_name = "SPEED", default_value = "system")]
    pub clock: Clock,
    /// The longest time that the gateway waits for a function. Then the client gets a 504 at $connect or an error frame
    /// elsewhere, and the function keeps running.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = text(INTEGRATION_TIMEOUT))]
    pub integration_timeout: Duration,
    /// The most new connections per second. Further ones are refused with 429.
    #[arg(long, value_name = "N", default_value_t = CONNECTION_RATE)]
    pub connection_rate: u32,
    /// The most messages and calls of @connections per second. A further message is answered with an error frame, and a
    /// further call with 429.
    #[arg(long, value_name = "N", default_value_t = REQUEST_RATE)]
    pub request_rate: u32,
    /// The most messages and calls of @connections at once.
    #[arg(long, value_name = "N", default_value_t = REQUEST_BURST)]
    pub request_burst: u32,
    /// The number of routes that AWS allows at first. With more, the stack prints a warning when it starts.
    #[arg(long, value_name = "N", default_value_t = ROUTES)]
    pub max_routes: usize,
    /// The number of functions with routes that AWS allows at first. With more, the stack prints a warning as well.
    #[arg(long, value_name = "N", default_value_t = INTEGRATIONS)]
    pub max_integrations: usize,
}

impl Limits {
    /// Returns the limits with shorter connection times instead of a faster clock.
    ///
    /// The other limits stay as they are, because a clock of the gateway does not speed up functions or clients.
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

/// A speed, as a multiple of the system's clock. It is written `system` or `x{times}`.
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
        speed.map(Self).ok_or_else(|| "it is not `system`, and not `x` with a whole number, such as `x60`".to_owned())
    }
}

/// The behaviour where the documentation of API Gateway says nothing or observers disagree.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Where the behaviour of API Gateway is unknown")]
pub struct Behaviour {
    /// The most bytes of a frame to a client, counted after compression; 0 sends every message in one frame.
    #[arg(long, value_name = "BYTES", default_value_t = FRAME_LIMIT)]
    pub outbound_fragment: usize,
    /// How the gateway answers a client's offer to compress messages (permessage-deflate).
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub deflate: Deflate,
    /// How the gateway treats bytes of a POST to @connections that are not UTF-8.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub non_utf8_post: NonUtf8Post,
    /// How @connections answers if the id does not have the form of an id.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub id_validation: IdValidation,
    /// The reason in the close frame and in $disconnect after @connections deleted the connection.
    #[arg(long, value_name = "TEXT", value_parser = close_reason, default_value = "Connection Closed Normally")]
    pub delete_close_reason: String,
    /// The reason in $disconnect after TCP ended without a close frame (1006).
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub abnormal_reason: String,
    /// Whether events leave out absent members or have them as explicit nulls, as in 2020.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub null_style: NullStyle,
    /// Read messages as JSON5 to select their routes: keys without quotes, comments, trailing commas.
    #[arg(long)]
    pub lenient_json: bool,
    /// How the gateway reads a response without statusCode.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub missing_status_code: MissingStatusCode,
    /// How the gateway answers the sender if a one-way route returns a status of 400 or more.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub oneway_error_status: OnewayErrorStatus,
    /// Which messages restart the idle timer of a connection.
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub idle_counts: IdleCounts,
    /// Let a client's pings restart the idle timer as well.
    #[arg(long)]
    pub ping_resets_idle: bool,
    /// The status of a handshake whose $connect takes longer than the integration timeout.
    #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u16).range(500..600), default_value_t = 504)]
    pub connect_timeout_status: u16,
    /// How the gateway answers a message above the request rate.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub throttle_frame: ThrottleFrame,
    /// The most messages per second of one connection; more close it with 1008 [default: no limit].
    #[arg(long, value_name = "N")]
    pub client_message_rate: Option<u32>,
    /// The most messages of one connection that run at once. The gateway reads the next one when one of them has ended.
    #[arg(long, value_name = "N", default_value_t = MESSAGES_AT_ONCE)]
    pub client_messages_at_once: NonZeroU16,
    /// How @connections answers a POST to a connection whose $connect is still running.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub post_to_pending: PostToPending,
    /// What happens if a client leaves while $connect is running, and $connect then accepts it.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub abort_during_connect: AbortDuringConnect,
    /// How the gateway checks the signatures of calls of @connections, and of handshakes if $connect has AWS_IAM.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub sigv4: Sigv4,
    /// The same as --sigv4 verify.
    #[arg(long, conflicts_with = "sigv4")]
    pub verify_signatures: bool,
    /// The domainName of events, instead of the Host of the handshake.
    #[arg(long, value_name = "NAME")]
    pub domain_name: Option<String>,
}

/// See [`Behaviour::deflate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Deflate {
    /// Decline the offer, as any server may.
    #[default]
    Never,
    /// Accept the offer, as AWS did in a recording, and compress messages in both directions.
    Negotiate,
}

/// See [`Behaviour::non_utf8_post`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum NonUtf8Post {
    /// Replace them with U+FFFD.
    #[default]
    Lossy,
    /// Refuse the call with 400.
    Refuse,
}

/// See [`Behaviour::id_validation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum IdValidation {
    /// Answer 400. Every recorded id is 15 characters of URL-safe Base64 and `=`.
    #[default]
    Form,
    /// Answer 410, as for any connection that is not open.
    None,
}

/// See [`Behaviour::null_style`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum NullStyle {
    /// Leave them out, as in events recorded since 2022.
    #[default]
    Omit,
    /// Write nulls, as in events recorded in 2020.
    Explicit,
}

/// See [`Behaviour::missing_status_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum MissingStatusCode {
    /// The response is malformed, as for REST APIs.
    #[default]
    Error,
    /// The status is 200.
    Ok,
}

/// See [`Behaviour::oneway_error_status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnewayErrorStatus {
    /// Send nothing.
    #[default]
    Silent,
    /// Send an error frame: `Internal server error`.
    ErrorFrame,
}

/// See [`Behaviour::idle_counts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum IdleCounts {
    /// Messages in both directions.
    #[default]
    Both,
    /// Only messages from the client.
    Inbound,
}

/// See [`Behaviour::throttle_frame`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ThrottleFrame {
    /// Send an error frame: `Too Many Requests`.
    #[default]
    TooManyRequests,
    /// Send nothing.
    None,
}

/// See [`Behaviour::post_to_pending`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PostToPending {
    /// Answer 410, as documented.
    #[default]
    Gone,
    /// Answer only when $connect has ended, as users have reported.
    Hang,
}

/// See [`Behaviour::abort_during_connect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum AbortDuringConnect {
    /// Do nothing, because there was no connection.
    #[default]
    Silent,
    /// Run $disconnect with 1006.
    Disconnect,
}

impl Behaviour {
    /// Returns [`Behaviour::sigv4`], or [`Sigv4::Verify`] if [`Behaviour::verify_signatures`] is set.
    #[must_use]
    pub fn sigv4(&self) -> Sigv4 {
        if self.verify_signatures { Sigv4::Verify } else { self.sigv4 }
    }
}

/// The settings of the gateway. Each has a flag.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Settings {
    /// The sizes, times and rates.
    #[command(flatten)]
    pub limits: Limits,
    /// The behaviour where that of API Gateway is unknown.
    #[command(flatten)]
    pub behaviour: Behaviour,
}

/// The settings without any flag.
impl Default for Settings {
    fn default() -> Self {
        let matches = Self::augment_args(clap::Command::new("gateway")).get_matches_from(["gateway"]);
        Self::from_arg_matches(&matches).expect("every flag has a default or is optional")
    }
}

/// Checks the length of a close reason. A control frame has at most 125 bytes, and two are the code (RFC 6455, 5.5).
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
    fn the_defaults_are_those_of_aws() {
        let settings = Settings::default();
        assert_eq!(settings, parse(&[]).unwrap());
        assert_eq!((settings.limits.frame_limit, settings.limits.message_limit), (32_768, 131_072));
        assert_eq!(settings.behaviour.delete_close_reason, "Connection Closed Normally");
    }

    #[test]
    fn a_time_needs_a_unit() {
        assert_eq!(parse(&[]).unwrap().limits.idle_timeout, IDLE_TIMEOUT);
        assert_eq!(parse(&["--idle-timeout", "1m 30s"]).unwrap().limits.idle_timeout, Duration::from_secs(90));
        assert_eq!(parse(&["--idle-timeout", "50ms"]).unwrap().limits.idle_timeout, Duration::from_millis(50));
        assert!(parse(&["--idle-timeout", "30"]).unwrap_err().contains("time unit needed"));
        assert!(parse(&["--idle-timeout", "1000years"]).unwrap_err().contains("at most 365 days"));
        assert!(parse(&["--connect-timeout-status", "200"]).is_err());
    }

    #[test]
    fn a_faster_clock_shortens_only_the_times_of_connections() {
        let limits = parse(&["--clock", "x60"]).unwrap().limits;
        assert_eq!((limits.idle_timeout, limits.connection_duration), (IDLE_TIMEOUT, CONNECTION_DURATION));
        let expected = ["--idle-timeout", "10s", "--connection-duration", "2m"];
        assert_eq!(limits.by_clock(), parse(&expected).unwrap().limits);
        assert_eq!(limits.by_clock().by_clock(), limits.by_clock());
        assert_eq!(parse(&["--clock", "system"]).unwrap(), parse(&["--clock", "x1"]).unwrap());
        for wrong in ["", "x", "60", "x0", "x-1", "x0.5", "fast"] {
            assert!(parse(&["--clock", wrong]).unwrap_err().contains("it is not `system`"), "{wrong}");
        }
    }

    #[test]
    fn a_reason_that_does_not_fit_a_close_frame_is_refused() {
        let reason = |length: usize| parse(&["--delete-close-reason", &"x".repeat(length)]);
        assert!(reason(123).is_ok());
        assert!(reason(124).unwrap_err().contains("at most 123 bytes"));
    }
}
