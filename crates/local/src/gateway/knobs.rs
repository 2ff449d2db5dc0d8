//! The gateway's numbers, and what it does where nobody knows what API Gateway does: each a field and a flag.
//!
//! The numbers are those of "Amazon API Gateway quotas and important notes", section "API Gateway quotas for configuring
//! and running a WebSocket API"; below they are named as that page names them. KB there means 1024 bytes. All of them
//! can be changed here, also those that AWS does not raise: a test that waits ten minutes is not run.
//!
//! There is no flag to negotiate permessage-deflate, which API Gateway does: the WebSocket library that is used here
//! cannot, and any server may decline. Nor is there one to parse messages leniently (`{action: "x"}`), of which there
//! is a single report.

use clap::{Args, FromArgMatches, ValueEnum};

/// WebSocket frame size, in bytes. Not adjustable on AWS.
pub const FRAME_LIMIT: usize = 32 * 1024;

/// Message payload size, in bytes. Not adjustable on AWS.
pub const MESSAGE_LIMIT: usize = 128 * 1024;

/// "Length, in characters, of the URL". Not adjustable on AWS.
pub const URL_LIMIT: usize = 4096;

/// Connections and requests that are refused beyond, and times after which a connection or a request ends.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Limits of API Gateway")]
pub struct Limits {
    /// Bytes in a frame; a longer one closes its connection with 1009.
    #[arg(long, value_name = "BYTES", default_value_t = FRAME_LIMIT)]
    pub frame_limit: usize,
    /// Bytes in a message, from a client or to one; a longer one closes with 1009, or is a 413 of @connections.
    #[arg(long, value_name = "BYTES", default_value_t = MESSAGE_LIMIT)]
    pub message_limit: usize,
    /// Characters in the URL of a handshake; a longer one is refused with 414.
    #[arg(long, value_name = "CHARACTERS", default_value_t = URL_LIMIT)]
    pub url_limit: usize,
}

/// What to do where the documentation of API Gateway is silent, or observers disagree.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Where the behaviour of API Gateway is unknown")]
pub struct Knobs {
    /// The longest frame that a client is sent, in bytes; 0 sends every message in one frame.
    #[arg(long, value_name = "BYTES", default_value_t = FRAME_LIMIT)]
    pub outbound_fragment: usize,
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
    /// What a response without statusCode means.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub missing_status_code: MissingStatusCode,
    /// What the sender hears of a well-formed response with status 400 or more on a one-way route.
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub oneway_error_status: OnewayErrorStatus,
    /// The domainName of events, in place of the handshake's Host.
    #[arg(long, value_name = "NAME")]
    pub domain_name: Option<String>,
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
    fn a_reason_that_no_close_frame_can_carry_is_refused() {
        let reason = |length: usize| parse(&["--delete-close-reason", &"x".repeat(length)]);
        assert!(reason(123).is_ok());
        assert!(reason(124).unwrap_err().contains("at most 123 bytes"));
    }
}
