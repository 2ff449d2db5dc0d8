//! The settings of Lambda that flags change.

use std::time::Duration;

use clap::{Args, FromArgMatches};

use crate::duration::{duration, text};

/// The default of `--account-concurrency`: "Concurrent executions" of an account ("Lambda quotas").
const ACCOUNT_CONCURRENCY: usize = 1000;

/// The default of `--init-timeout`. "Limited to 10 seconds": the init phase ("Understanding the Lambda execution
/// environment lifecycle").
const INIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The default of `--idle-environment-timeout`. AWS only says "some period of time".
const IDLE_ENVIRONMENT_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// The settings of all functions.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Lambda")]
// clap names a group like its struct, and the crate has more than one `Settings`.
#[group(skip)]
pub struct Settings {
    /// Let functions run on between two events.
    ///
    /// Lambda does not: there, work that a function has not done when it responds waits for its next event, or is lost.
    #[arg(long, help_heading = "Functions")]
    pub no_freeze: bool,
    /// Debug this function: one process, no time-out; may be repeated.
    ///
    /// It has one execution environment, no time-out and no freeze, and the terminal shows its process.
    #[arg(long, value_name = "FUNCTION", help_heading = "Functions")]
    pub debug: Vec<String>,
    /// Stop such a process at its start, until a debugger continues it.
    #[arg(long, help_heading = "Functions", requires = "debug")]
    pub debug_wait: bool,
    /// The time for the init of a function. After it, the function is started again under its own time-out.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = text(INIT_TIMEOUT))]
    pub init_timeout: Duration,
    /// The time after which an execution environment without an event is retired.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = text(IDLE_ENVIRONMENT_TIMEOUT))]
    pub idle_environment_timeout: Duration,
    /// The most simultaneous events of all functions, minus the reservations of single functions
    /// (`reservedConcurrency`). Further events are throttled.
    #[arg(long, value_name = "N", default_value_t = ACCOUNT_CONCURRENCY)]
    pub account_concurrency: usize,
}

impl Settings {
    /// Tells whether somebody debugs this function.
    #[must_use]
    pub fn debugs(&self, key: &str) -> bool {
        self.debug.iter().any(|debugged| debugged == key)
    }
}

/// The settings without any flag.
impl Default for Settings {
    fn default() -> Self {
        let matches = Self::augment_args(clap::Command::new("lambda")).get_matches_from(["lambda"]);
        Self::from_arg_matches(&matches).expect("every flag has a default or is optional")
    }
}
