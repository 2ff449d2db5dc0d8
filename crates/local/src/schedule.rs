//! Schedules: a function gets an event of EventBridge at a fixed rate.
//!
//! The first event comes when the first period has passed, and the next one is not kept back by one that takes long. AWS
//! repeats an event that fails; here it is shown in the function's log, and the next one comes in time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use uuid::Uuid;

use crate::iam::ACCOUNT_ID;
use crate::lambda::Function;

/// Invokes a function at a rate until the task is aborted.
pub(crate) fn start(function: Arc<Function>, rate: Duration, region: String) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = interval_at(Instant::now() + rate, rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let function = function.clone();
            let event = event(&region);
            tokio::spawn(async move { drop(function.invoke(event).await) });
        }
    })
}

/// [A scheduled event](https://docs.aws.amazon.com/lambda/latest/dg/with-eventbridge-scheduler.html), as a rule sends it.
fn event(region: &str) -> Bytes {
    let time = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let event = json!({
        "version": "0",
        "id": Uuid::new_v4().to_string(),
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": ACCOUNT_ID,
        "time": time,
        "region": region,
        "resources": [format!("arn:aws:events:{region}:{ACCOUNT_ID}:rule/schedule")],
        "detail": {},
    });
    Bytes::from(event.to_string())
}
