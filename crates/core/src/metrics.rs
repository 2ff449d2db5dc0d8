//! Numbers for CloudWatch, as lines of a function's log in the [embedded metric
//! format](https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html).
//!
//! CloudWatch makes metrics of such lines on its own, so a function sends nothing and waits for nothing. No crate writes
//! the line, because it is one JSON object; the crates for it bring a sink, a thread or macros.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::clock::now_ms;
use crate::config::Config;
use crate::error::{GATEWAY_THROTTLED, UNKNOWN_ITEM};
use crate::gateway::Throttled;
use crate::publication::Fanout;

/// The metrics. Their names are CloudWatch's too: dashboard and alarms use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// 1 for the first event of an execution environment.
    ColdStart,
    /// Faults by their type instead of by function: 1 for an event that failed, by [`crate::Error::error_type`], and the
    /// number of rows that a publish skipped, as [`UNKNOWN_ITEM`].
    Fault,
    /// Requests that the gateway refused for their rate since the event before, as [`GATEWAY_THROTTLED`]. One metric for all
    /// functions, because they share the account's rate.
    Throttled,
    /// Receivers of one publish that is [large](SMALL) or imperfect. The metrics below are of the same publishes.
    FanOut,
    /// Receivers whose frame the gateway took.
    Delivered,
    /// Receivers that were gone and are forgotten.
    Stale,
    /// Receivers that the gateway called gone for the first time. Their rows stay.
    Suspect,
    /// Receivers that may still have been opening.
    Pending,
    /// Receivers that did not read. Their connections were closed.
    Dropped,
    /// Receivers that were given up.
    Failed,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::ColdStart,
        Self::Fault,
        Self::Throttled,
        Self::FanOut,
        Self::Delivered,
        Self::Stale,
        Self::Suspect,
        Self::Pending,
        Self::Dropped,
        Self::Failed,
    ];

    /// The one dimension that it has.
    #[must_use]
    pub fn dimension(self) -> &'static str {
        if matches!(self, Self::Fault | Self::Throttled) { "ErrorType" } else { "Function" }
    }

    /// Its name in CloudWatch.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// A publish to so many receivers writes no metrics if each of them has got its frame.
const SMALL: usize = 100;

/// Writes a function's numbers.
#[derive(Debug, Clone)]
pub struct Metrics {
    namespace: Option<String>,
    function: String,
    throttled: Arc<Throttled>,
}

impl Metrics {
    /// Takes the namespace from `config`; without one, nothing is written.
    #[must_use]
    pub(crate) fn new(config: &Config, function: String, throttled: Arc<Throttled>) -> Self {
        Self { namespace: config.metrics_namespace.clone(), function, throttled }
    }

    /// Counts the first event of an execution environment, an event that failed, and the requests that the gateway refused for
    /// their rate. Lambda's own metrics count the other events and their times, for nothing.
    pub fn served(&self, error_type: Option<&str>) {
        static WARM: AtomicBool = AtomicBool::new(false);
        let mut values = Vec::new();
        if !WARM.swap(true, Ordering::Relaxed) {
            values.push((Metric::ColdStart, json!(1)));
        }
        if error_type.is_some() {
            values.push((Metric::Fault, json!(1)));
        }
        self.write(&values, error_type);
        let throttled = self.throttled.take_for_metrics();
        if throttled > 0 {
            self.write(&[(Metric::Throttled, json!(throttled))], Some(GATEWAY_THROTTLED));
        }
    }

    /// Counts the receivers of one publish if it is large, or if not each of them has got its frame.
    pub fn published(&self, fanout: &Fanout) {
        self.write(&counts(fanout), (fanout.unreadable > 0).then_some(UNKNOWN_ITEM));
    }

    /// Ignores a log that cannot be written to: it is no reason to fail an event.
    fn write(&self, values: &[(Metric, Value)], error_type: Option<&str>) {
        if let Some(namespace) = self.namespace.as_ref().filter(|_| !values.is_empty()) {
            let line = self.line(namespace, now_ms(), values, error_type);
            let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
        }
    }

    fn line(&self, namespace: &str, now_ms: i64, values: &[(Metric, Value)], error_type: Option<&str>) -> Value {
        let directives = ["Function", "ErrorType"].map(|dimension| {
            let metrics = values.iter().filter(|(metric, _)| metric.dimension() == dimension);
            let metrics: Vec<_> =
                metrics.map(|(metric, _)| json!({ "Name": metric.name(), "Unit": "Count" })).collect();
            json!({ "Namespace": namespace, "Dimensions": [[dimension]], "Metrics": metrics })
        });
        let directives = directives.into_iter().filter(|directive| directive["Metrics"] != json!([]));
        let mut line = json!({
            "_aws": { "Timestamp": now_ms, "CloudWatchMetrics": directives.collect::<Vec<_>>() },
            "Function": self.function,
        });
        for (metric, value) in values {
            line[metric.name()] = value.clone();
        }
        if let Some(error_type) = error_type {
            line["ErrorType"] = json!(error_type);
        }
        line
    }
}

/// The numbers of a publish. There are none if it is small and each receiver has got its frame.
fn counts(fanout: &Fanout) -> Vec<(Metric, Value)> {
    if fanout.settled() <= SMALL && fanout.settled() == fanout.delivered && fanout.unreadable == 0 {
        return Vec::new();
    }
    let values = [
        (Metric::FanOut, fanout.settled()),
        (Metric::Delivered, fanout.delivered),
        (Metric::Stale, fanout.stale),
        (Metric::Suspect, fanout.suspect),
        (Metric::Pending, fanout.pending),
        (Metric::Dropped, fanout.dropped),
        (Metric::Failed, fanout.failed),
        (Metric::Fault, fanout.unreadable),
    ];
    // What did not happen is not written: a log line is paid for by the byte, and alarms take silence for 0.
    let seen = values.into_iter().filter(|(metric, count)| *count > 0 || *metric == Metric::FanOut);
    seen.map(|(metric, count)| (metric, json!(count))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_and_imperfect_publishes_are_counted() {
        let perfect = |delivered| Fanout { delivered, ..Fanout::default() };
        assert_eq!(counts(&perfect(0)), []);
        assert_eq!(counts(&perfect(SMALL)), []);
        let large = SMALL + 1;
        assert_eq!(counts(&perfect(large)), [(Metric::FanOut, json!(large)), (Metric::Delivered, json!(large))]);
        let failed = Fanout { failed: 1, ..perfect(1) };
        let expected = [(Metric::FanOut, json!(2)), (Metric::Delivered, json!(1)), (Metric::Failed, json!(1))];
        assert_eq!(counts(&failed), expected);
        let unreadable = Fanout { unreadable: 1, ..perfect(0) };
        assert_eq!(counts(&unreadable), [(Metric::FanOut, json!(0)), (Metric::Fault, json!(1))]);
    }

    #[test]
    fn a_line_names_its_metrics_by_dimension() {
        let metrics = Metrics { namespace: None, function: "chat-dev-connect".to_owned(), throttled: Arc::default() };
        let values = [(Metric::ColdStart, json!(1)), (Metric::Fault, json!(1))];
        let line = metrics.line("chat-dev", 1_700_000_000_000, &values, Some("Store.Failed"));
        let expected = json!({
            "_aws": {
                "Timestamp": 1_700_000_000_000_i64,
                "CloudWatchMetrics": [
                    {
                        "Namespace": "chat-dev",
                        "Dimensions": [["Function"]],
                        "Metrics": [{ "Name": "ColdStart", "Unit": "Count" }],
                    },
                    {
                        "Namespace": "chat-dev",
                        "Dimensions": [["ErrorType"]],
                        "Metrics": [{ "Name": "Fault", "Unit": "Count" }],
                    },
                ],
            },
            "Function": "chat-dev-connect",
            "ColdStart": 1,
            "Fault": 1,
            "ErrorType": "Store.Failed",
        });
        assert_eq!(line, expected);
    }
}
