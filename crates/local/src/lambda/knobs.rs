//! What flags change about Lambda.

use std::time::Duration;

use clap::{Args, FromArgMatches};

use crate::duration::{duration, text};

/// "Concurrent executions" of an account ("Lambda quotas").
pub const ACCOUNT_CONCURRENCY: usize = 1000;

/// "Limited to 10 seconds": the init phase ("Understanding the Lambda execution environment lifecycle").
pub const INIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an environment may be idle. AWS says no more than "some period of time".
pub const IDLE_ENVIRONMENT_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// How execution environments live.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Lambda")]
// Its name would be taken: a group is called like its struct.
#[group(skip)]
pub struct Settings {
    /// Let functions run on between two events, which Lambda does not: there what a function has left undone when it
    /// responds is done at its next event, or never.
    #[arg(long)]
    pub no_freeze: bool,
    /// How long a function may take to get ready for its first event, before it is started again under its own time-out.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = text(INIT_TIMEOUT))]
    pub init_timeout: Duration,
    /// How long an execution environment may be without an event before it is retired.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = text(IDLE_ENVIRONMENT_TIMEOUT))]
    pub idle_environment_timeout: Duration,
    /// Simultaneous events of all functions, less what some reserve for themselves (`reservedConcurrency`); those beyond
    /// are throttled.
    #[arg(long, value_name = "N", default_value_t = ACCOUNT_CONCURRENCY)]
    pub account_concurrency: usize,
}

/// What Lambda does without any flag.
impl Default for Settings {
    fn default() -> Self {
        let matches = Self::augment_args(clap::Command::new("lambda")).get_matches_from(["lambda"]);
        Self::from_arg_matches(&matches).expect("every flag has a default or is optional")
    }
}
