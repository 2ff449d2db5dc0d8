//! What a row of the contract is, how it is told, and the scoreboard.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;

use crate::bed::Bed;

type Check = Arc<dyn Fn(Arc<Bed>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// One row of the contract.
pub struct Row {
    pub id: &'static str,
    /// How well AWS's behaviour is known: documented (D), observed (O), measured on Rust's side (S), inferred (I), or
    /// not at all (?). `SOURCES.md` explains what each means for a failure.
    pub mark: &'static str,
    /// Where it is documented or was observed: codes of `SOURCES.md`, with `; ` between them.
    pub source: &'static str,
    /// What is expected.
    pub claim: &'static str,
    pub way: Way,
}

/// How a row is told.
pub enum Way {
    /// From outside, at any endpoint with the test bed.
    Anywhere(Check),
    /// On a stack of our own, and why only there.
    Ours(&'static str, Check),
    /// By tests of this repository that see what cannot be seen from outside, `{file}::{name}`. The row runs them.
    Proved(&'static [&'static str]),
    /// Not at all, and why.
    Untold(&'static str),
}

/// Reads what functions were invoked with.
pub const LOG: &str = "reads the log of our own stack";
/// Starts a stack with flags.
pub const FLAGS: &str = "starts our own stack with flags";
/// Starts a stack with another serverless.yml.
pub const SERVICE: &str = "needs another API than the test bed";

pub fn row(id: &'static str, mark: &'static str, source: &'static str, claim: &'static str) -> Row {
    Row { id, mark, source, claim, way: Way::Untold("nobody has written it") }
}

impl Row {
    pub fn anywhere<F>(self, check: impl Fn(Arc<Bed>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { way: Way::Anywhere(Arc::new(move |bed| Box::pin(check(bed)))), ..self }
    }

    pub fn ours<F>(self, why: &'static str, check: impl Fn(Arc<Bed>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { way: Way::Ours(why, Arc::new(move |bed| Box::pin(check(bed)))), ..self }
    }

    pub fn proved(self, by: &'static [&'static str]) -> Self {
        Self { way: Way::Proved(by), ..self }
    }

    pub fn untold(self, why: &'static str) -> Self {
        Self { way: Way::Untold(why), ..self }
    }

    /// The name of its trial.
    pub fn name(&self) -> String {
        format!("{} [{}] {}", self.id, self.mark, self.claim)
    }

    /// Whether nothing but our own reading of AWS stands behind it.
    pub fn is_inferred(&self) -> bool {
        self.mark == "I"
    }

    pub fn is_unresolved(&self) -> bool {
        self.mark == "?"
    }
}

/// What was seen of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Expected,
    /// The tests of this repository that prove it have passed.
    Proved(&'static [&'static str]),
    /// Something else than was inferred, at somebody else's endpoint: that is news, not a failure.
    Observed(String),
    Failed(String),
    /// Not tried, and why.
    Untried(String),
}

impl Seen {
    fn kind(&self) -> usize {
        match self {
            Self::Expected => 0,
            Self::Proved(_) => 1,
            Self::Observed(_) => 2,
            Self::Failed(_) => 3,
            Self::Untried(_) => 4,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Expected => "as expected".to_owned(),
            Self::Proved(by) => format!("proved by {}", by.join(", ")),
            Self::Observed(what) => format!("DIFFERS FROM WHAT WAS INFERRED: {what}"),
            Self::Failed(what) => format!("FAILED: {what}"),
            Self::Untried(why) => format!("not tried: {why}"),
        }
    }
}

/// Each row with what was seen, and the counts by mark.
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
        "mark", "as expected", "proved", "differ", "failed", "not tried"
    );
    for (mark, [expected, proved, observed, failed, untried]) in counts {
        let _ = writeln!(text, "{mark:6} {expected:>12} {proved:>12} {observed:>12} {failed:>12} {untried:>12}");
    }
    text
}
