//! Numbers for CloudWatch, as lines of a function's log in the [embedded metric
//! format](https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html).
//!
//! CloudWatch makes metrics of such lines on its own, so a function sends nothing and waits for nothing. No crate writes
//! the line, because it is one JSON object; the crates for it bring a sink, a thread or macros.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::clock::now_ms;
use crate::config::Config;
use crate::error::UNKNOWN_ITEM;
use crate::publication::Fanout;

/// The metrics. Their names are CloudWatch's too: dashboard and alarms use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Milliseconds that an event took, from its arrival in the function to the response.
    Duration,
    /// 1 for the first event of an execution environment.
    ColdStart,
    /// Faults by their type instead of by function: 1 for an event that failed, by [`crate::Error::error_type`], and the
    /// number of rows that a publish skipped, as [`UNKNOWN_ITEM`].
    Fault,
    /// Receivers of one publish.
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
        Self::Duration,
        Self::ColdStart,
        Self::Fault,
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
        if self == Self::Fault { "ErrorType" } else { "Function" }
    }

    /// Its name in CloudWatch.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    fn unit(self) -> &'static str {
        if self == Self::Duration { "Milliseconds" } else { "Count" }
    }
}

/// Writes a function's numbers.
#[derive(Debug, Clone)]
pub struct Metrics {
    namespace: Option<String>,
    function: String,
}

impl Metrics {
    /// Takes the namespace from `config`; without one, nothing is written.
    #[must_use]
    pub fn new(config: &Config, function: String) -> Self {
        Self { namespace: config.metrics_namespace.clone(), function }
    }

    /// Counts one event.
    pub fn served(&self, duration_ms: f64, error_type: Option<&str>) {
        static WARM: AtomicBool = AtomicBool::new(false);
        let mut values = vec![(Metric::Duration, json!(duration_ms))];
        if !WARM.swap(true, Ordering::Relaxed) {
            values.push((Metric::ColdStart, json!(1)));
        }
        if error_type.is_some() {
            values.push((Metric::Fault, json!(1)));
        }
        self.write(&values, error_type);
    }

    /// Counts the receivers of one publish.
    pub fn published(&self, fanout: &Fanout) {
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
        let values: Vec<_> = seen.map(|(metric, count)| (metric, json!(count))).collect();
        self.write(&values, (fanout.unreadable > 0).then_some(UNKNOWN_ITEM));
    }

    /// Ignores a log that cannot be written to: it is no reason to fail an event.
    fn write(&self, values: &[(Metric, Value)], error_type: Option<&str>) {
        if let Some(namespace) = &self.namespace {
            let line = self.line(namespace, now_ms(), values, error_type);
            let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
        }
    }

    fn line(&self, namespace: &str, now_ms: i64, values: &[(Metric, Value)], error_type: Option<&str>) -> Value {
        let directives = ["Function", "ErrorType"].map(|dimension| {
            let metrics = values.iter().filter(|(metric, _)| metric.dimension() == dimension);
            let metrics: Vec<_> =
                metrics.map(|(metric, _)| json!({ "Name": metric.name(), "Unit": metric.unit() })).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_its_metrics_by_dimension() {
        let metrics = Metrics { namespace: None, function: "chat-dev-connect".to_owned() };
        let values = [(Metric::Duration, json!(1.5)), (Metric::Fault, json!(1))];
        let line = metrics.line("chat-dev", 1_700_000_000_000, &values, Some("Store.Failed"));
        let expected = json!({
            "_aws": {
                "Timestamp": 1_700_000_000_000_i64,
                "CloudWatchMetrics": [
                    {
                        "Namespace": "chat-dev",
                        "Dimensions": [["Function"]],
                        "Metrics": [{ "Name": "Duration", "Unit": "Milliseconds" }],
                    },
                    {
                        "Namespace": "chat-dev",
                        "Dimensions": [["ErrorType"]],
                        "Metrics": [{ "Name": "Fault", "Unit": "Count" }],
                    },
                ],
            },
            "Function": "chat-dev-connect",
            "Duration": 1.5,
            "Fault": 1,
            "ErrorType": "Store.Failed",
        });
        assert_eq!(line, expected);
    }
}
