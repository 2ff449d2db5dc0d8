//! What a row is, how it is checked, and the scoreboard.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;

use crate::api::Api;

type Run = Arc<dyn Fn(Arc<Api>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A row: one behaviour of API Gateway or Lambda.
pub struct Row {
    pub id: &'static str,
    /// How well AWS's behaviour is known: documented (D), observed (O), measured on Rust's side (S), inferred (I), or
    /// not at all (?). `SOURCES.md` explains what each means for a failure.
    pub mark: &'static str,
    /// Where it is documented or was observed: codes of `SOURCES.md`, with `; ` between them.
    pub source: &'static str,
    /// The expected behaviour.
    pub claim: &'static str,
    pub check: Check,
}

/// How a row is checked.
pub enum Check {
    /// From outside, at any endpoint with the API.
    Anywhere(Run),
    /// On a stack of our own. The text says why only there.
    Ours(&'static str, Run),
    /// By other tests of this repository, `{file}::{name}`, which the row runs.
    Proved(&'static [&'static str]),
    /// Not at all. The text says why.
    Skipped(&'static str),
}

/// The row reads the events that functions got.
pub const LOG: &str = "reads the log of our own stack";
/// The row starts a stack with flags.
pub const FLAGS: &str = "starts our own stack with flags";
/// The row starts a stack with another serverless.yml.
pub const SERVICE: &str = "needs another API than conformance.yml";

pub fn row(id: &'static str, mark: &'static str, source: &'static str, claim: &'static str) -> Row {
    Row { id, mark, source, claim, check: Check::Skipped("nobody has written it") }
}

impl Row {
    pub fn anywhere<F>(self, check: impl Fn(Arc<Api>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { check: Check::Anywhere(Arc::new(move |api| Box::pin(check(api)))), ..self }
    }

    pub fn ours<F>(self, why: &'static str, check: impl Fn(Arc<Api>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { check: Check::Ours(why, Arc::new(move |api| Box::pin(check(api)))), ..self }
    }

    pub fn proved(self, by: &'static [&'static str]) -> Self {
        Self { check: Check::Proved(by), ..self }
    }

    pub fn skipped(self, why: &'static str) -> Self {
        Self { check: Check::Skipped(why), ..self }
    }

    /// The name of its trial.
    pub fn name(&self) -> String {
        format!("{} [{}] {}", self.id, self.mark, self.claim)
    }

    /// Whether only our own reading of AWS stands behind it.
    pub fn is_inferred(&self) -> bool {
        self.mark == "I"
    }

    pub fn is_unresolved(&self) -> bool {
        self.mark == "?"
    }
}

/// What a row has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Expected,
    /// The tests of this repository that prove it have passed.
    Proved(&'static [&'static str]),
    /// Somebody else's endpoint does not behave as was inferred. That is news, not a failure.
    Observed(String),
    Failed(String),
    /// The row was skipped. The text says why.
    Skipped(String),
}

impl Seen {
    fn kind(&self) -> usize {
        match self {
            Self::Expected => 0,
            Self::Proved(_) => 1,
            Self::Observed(_) => 2,
            Self::Failed(_) => 3,
            Self::Skipped(_) => 4,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Expected => "as expected".to_owned(),
            Self::Proved(by) => format!("proved by {}", by.join(", ")),
            Self::Observed(what) => format!("DIFFERS FROM WHAT WAS INFERRED: {what}"),
            Self::Failed(what) => format!("FAILED: {what}"),
            Self::Skipped(why) => format!("skipped: {why}"),
        }
    }
}

/// Each row with what it has shown, and the counts by mark.
pub fn scoreboard(target: &str, rows: &[Row], seen: &BTreeMap<&'static str, Seen>) -> String {
    let mut text = format!("\nscoreboard of {target}\n\n");
    let mut counts: BTreeMap<&str, [usize; 5]> = BTreeMap::new();
    for row in rows {
        let Some(seen) = seen.get(row.id) else { continue };
        counts.entry(row.mark).or_default()[seen.kind()] += 1;
        counts.entry("total").or_default()[seen.kind()] += 1;
        let seen = seen.text().replace('\n', " ");
        let _ = writeln!(text, "{:6} {:5} {}\n{:12} seen: {seen} ({})", row.id, row.mark, row.claim, "", row.source);
    }
    let _ = writeln!(
        text,
        "\n{:6} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "mark", "as expected", "proved", "differ", "failed", "skipped"
    );
    for (mark, [expected, proved, observed, failed, untried]) in counts {
        let _ = writeln!(text, "{mark:6} {expected:>12} {proved:>12} {observed:>12} {failed:>12} {untried:>12}");
    }
    text
}
