//! What flags change about Lambda.

use clap::{Args, FromArgMatches};

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
}

/// What Lambda does without any flag.
impl Default for Settings {
    fn default() -> Self {
        let matches = Self::augment_args(clap::Command::new("lambda")).get_matches_from(["lambda"]);
        Self::from_arg_matches(&matches).expect("every flag has a default or is optional")
    }
}
