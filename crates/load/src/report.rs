//! The result of a run, for people and for machines.

use std::collections::BTreeMap;
use std::fmt::Write;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// The lines of the histogram, and the width of its longest bar.
const LINES: u32 = 12;
const WIDTH: u64 = 50;

/// The result of a run. Times are in microseconds.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) connections: u64,
    pub(crate) topics: u64,
    pub(crate) has_history: bool,
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) received: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) busy: BTreeMap<String, u64>,
    pub(crate) reconnects: u64,
    pub(crate) rotations: u64,
    pub(crate) latency: Histogram<u64>,
    pub(crate) handshake: Histogram<u64>,
}

impl Outcome {
    /// The problem of the run in words, if it had one.
    pub(crate) fn problem(&self) -> Option<String> {
        let mut problems = Vec::new();
        if self.lost > 0 {
            problems.push(format!("{} deliveries were lost", self.lost));
        }
        if self.duplicated > 0 {
            problems.push(format!("{} deliveries came twice", self.duplicated));
        }
        let unanswered = self.sent - self.acked - self.refused.values().sum::<u64>();
        if unanswered > 0 {
            problems.push(format!("{unanswered} messages have no answer"));
        }
        problems.extend(self.refused.iter().map(|(code, count)| format!("{count} messages were refused: {code}")));
        problems.extend(
            self.busy.iter().map(|(said, count)| format!("the server throttles: it said {count} times: {said}")),
        );
        (!problems.is_empty()).then(|| problems.join("\n"))
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Nothing fails when it is written into a string.
        let _ = self.write(&mut text);
        text.trim_end().to_owned()
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let kept = if self.has_history { "with history" } else { "without history" };
        writeln!(
            text,
            "{} clients on {} topics {kept}, {} reconnects, {} rotations",
            self.connections, self.topics, self.reconnects, self.rotations
        )?;
        writeln!(text, "{} messages sent, {} acknowledged, {} received", self.sent, self.acked, self.received)?;
        let refused: u64 = self.refused.values().sum();
        writeln!(text, "{} lost, {} duplicated, {refused} refused", self.lost, self.duplicated)?;
        if self.lost > 0 && !self.has_history && self.reconnects > 0 {
            writeln!(text, "A topic without history loses what is published while a client is away.")?;
        }
        for (what, histogram) in [("connect", &self.handshake), ("latency", &self.latency)] {
            write!(text, "{what}:")?;
            for (name, micros) in quantiles(histogram) {
                write!(text, "  {name} {}", millis(micros))?;
            }
            writeln!(text)?;
        }
        self.draw(text)?;
        if let Some(problem) = self.problem() {
            writeln!(text, "\n{problem}")?;
        }
        Ok(())
    }

    /// Draws the latencies: each line has those up to a time, and the times grow by the same factor.
    fn draw(&self, text: &mut String) -> std::fmt::Result {
        if self.latency.is_empty() {
            return Ok(());
        }
        let (min, max) = (self.latency.min().max(1), self.latency.max().max(2));
        #[expect(clippy::cast_precision_loss, reason = "a line of a drawing need not be exact")]
        let (first, factor) = (min as f64, (max as f64 / min as f64).powf(1.0 / f64::from(LINES)).max(1.001));
        let mut lines = Vec::new();
        let mut from = 0;
        for line in 1..=LINES {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the largest one is `max`")]
            let to = if line == LINES { max } else { (first * factor.powi(line.cast_signed())) as u64 };
            if to > from {
                lines.push((to, self.latency.count_between(from, to)));
                from = to + 1;
            }
        }
        let most = lines.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
        writeln!(text)?;
        for (to, count) in lines {
            let length = usize::try_from((count * WIDTH).div_ceil(most)).unwrap_or_default();
            writeln!(text, "{:>10} │{} {count}", millis(to), "█".repeat(length))?;
        }
        Ok(())
    }

    pub(crate) fn json(&self) -> Value {
        let times = |histogram: &Histogram<u64>| -> Value {
            quantiles(histogram).map(|(name, micros)| (name.to_owned(), json!(micros))).into_iter().collect()
        };
        json!({
            "connections": self.connections,
            "topics": self.topics,
            "history": self.has_history,
            "sent": self.sent,
            "acknowledged": self.acked,
            "received": self.received,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "refused": self.refused,
            "throttled": self.busy,
            "reconnects": self.reconnects,
            "rotations": self.rotations,
            "connect_us": times(&self.handshake),
            "latency_us": times(&self.latency),
            "problem": self.problem(),
        })
    }
}

fn quantiles(histogram: &Histogram<u64>) -> [(&'static str, u64); 4] {
    let at = |quantile| histogram.value_at_quantile(quantile);
    [("p50", at(0.5)), ("p90", at(0.9)), ("p99", at(0.99)), ("max", histogram.max())]
}

fn millis(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}
