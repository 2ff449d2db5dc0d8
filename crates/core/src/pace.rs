//! The pace of everything that posts a lot: one lease for all functions of a stage, so that together they stay below the
//! account's rate of requests and leave a part of it to frames, handshakes and replies.
//!
//! The lease is one item of the table of messages, under `p` = `r` and `s` = `-`:
//!
//! | attribute | type | meaning |
//! |---|---|---|
//! | `tat` | N, epoch **microseconds** | when the next request may start, if all that were granted take place |
//! | `share`, `slowedAt` | N, N (µs) | the part of the rate that was left when the gateway refused posts, and when that was |
//!
//! A function takes the lease for a chunk of requests by moving `tat` (the generic cell rate algorithm), and spreads the
//! chunk over the time that it was granted. An item that is missing, or that a wrong clock wrote, is begun anew. Without
//! DynamoDB a function goes on at the rate that it knows: the lease makes posts later, and never fewer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use lambda_runtime::tracing::warn;
use tokio::sync::Mutex;

use crate::clock;
use crate::config::Config;
use crate::deadline::Deadline;
use crate::gateway::Gateway;
use crate::store::{Item, string};

/// How many requests a fan-out asks for at once: at 10,000 a second this is one write of DynamoDB in 25 ms.
pub(crate) const CHUNK: u32 = 250;

/// The part of the account's rate and burst that the lease gives out. The rest is for frames, handshakes and replies.
const LEASED: f64 = 0.9;

/// The longest that a chunk waits for its start. So a clock that is wrong makes its function slow, and does not stop it.
const MAX_WAIT_US: i64 = 2_000_000;

/// A `tat` that is further in the future than this comes from a wrong clock.
const MAX_AHEAD_US: i64 = 10_000_000;

/// A chunk that is not used up by then is worth nothing: its time is over.
const STALE_US: i64 = 1_000_000;

/// The gateway has refused this many posts of a chunk for their rate. One receiver alone is not the account's rate.
const THROTTLED: usize = 3;

/// Refusals multiply the shared rate by this, at most once in [`SLOWED_US`]. [`LEAST`] of the rate always stays.
const SLOWER: f64 = 0.9;
const SLOWED_US: i64 = 1_000_000;
const LEAST: f64 = 0.1;

/// How much of the rate comes back in a microsecond: 1 % in a second.
const FASTER: f64 = 0.01 / 1e6;

/// The longest that a call for the lease may take.
const ATTEMPT: Duration = Duration::from_millis(500);
const OPERATION: Duration = Duration::from_secs(1);

/// The lease, as an execution environment sees it.
#[derive(Debug, Clone)]
pub struct Pace {
    dynamodb: Client,
    /// Empty if there is none. Each execution environment then has the rate for itself.
    table: String,
    rate_per_us: f64,
    burst_us: i64,
    chunk: Arc<Mutex<Chunk>>,
}

/// Requests that were granted and did not take place yet.
#[derive(Debug)]
struct Chunk {
    left: u32,
    /// When the next one may start, and how long after it the one behind it.
    next_us: f64,
    step_us: f64,
    /// When the chunk is worth nothing any more.
    end_us: i64,
    /// The part of the rate that is used now.
    share: f64,
}

impl Pace {
    pub(crate) fn new(dynamodb: &Client, config: &Config) -> Self {
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT).operation_timeout(OPERATION).build();
        let dynamodb = Client::from_conf(dynamodb.config().to_builder().timeout_config(timeouts).build());
        let (rate, burst) = (f64::from(config.request_rate) * LEASED, f64::from(config.request_burst) * LEASED);
        let chunk = Chunk { left: 0, next_us: 0.0, step_us: 0.0, end_us: 0, share: 1.0 };
        Self {
            dynamodb,
            table: config.messages_table.clone(),
            rate_per_us: rate / 1e6,
            burst_us: whole(burst / rate * 1e6),
            chunk: Arc::new(Mutex::new(chunk)),
        }
    }

    /// Waits until one more request may start, or the deadline passes. `size` requests are leased at once.
    pub async fn turn(&self, gateway: &Gateway, size: u32, deadline: Deadline) {
        let mut chunk = self.chunk.lock().await;
        if chunk.left == 0 || now_us() > chunk.end_us {
            if gateway.throttled().take_for_pace() >= THROTTLED {
                self.slow(&mut chunk).await;
            }
            self.lease(&mut chunk, size).await;
        }
        let wait = whole(chunk.next_us) - now_us();
        chunk.left -= 1;
        chunk.next_us += chunk.step_us;
        // Other events of this execution environment take their turns meanwhile: their deadlines may be earlier.
        drop(chunk);
        if let Ok(wait) = u64::try_from(wait) {
            tokio::time::sleep(Duration::from_micros(wait).min(deadline.left())).await;
        }
    }

    /// Takes the lease for so many requests.
    async fn lease(&self, chunk: &mut Chunk, size: u32) {
        let now = now_us();
        let floor = now - self.burst_us;
        let step_us = 1.0 / (self.rate_per_us * chunk.share);
        let cost = whole(step_us * f64::from(size));
        let start = match self.take(now, floor, cost).await {
            Ok(Some((start, share))) => {
                chunk.share = share;
                start
            }
            // Without the item, the chunks of this execution environment follow each other.
            Ok(None) => whole(chunk.next_us).max(floor),
            Err(error) => {
                warn!(error, "the lease of the rate cannot be taken: a fan-out goes on at the rate that it knows");
                whole(chunk.next_us).max(now)
            }
        };
        let start = start.min(now + MAX_WAIT_US);
        #[expect(clippy::cast_precision_loss, reason = "microseconds of this century are exact in 53 bits")]
        let next_us = start as f64;
        let end_us = start.max(now) + cost + STALE_US;
        *chunk = Chunk { left: size, next_us, step_us, end_us, share: chunk.share };
    }

    /// Moves the item's `tat`. Returns when the chunk starts, and the part of the rate that is left. There is nothing without a
    /// table.
    async fn take(&self, now: i64, floor: i64, cost: i64) -> Result<Option<(i64, f64)>, String> {
        if self.table.is_empty() {
            return Ok(None);
        }
        loop {
            let running = self
                .update("SET tat = tat + :cost", "tat BETWEEN :floor AND :ceiling")
                .expression_attribute_values(":floor", number(floor))
                .expression_attribute_values(":ceiling", number(now + MAX_AHEAD_US))
                .expression_attribute_values(":cost", number(cost))
                .send();
            match running.await {
                Ok(old) => {
                    let old = old.attributes.unwrap_or_default();
                    return Ok(Some((read(&old, "tat").map_or(floor, whole), share(&old, now))));
                }
                Err(error) if is_condition(error.as_service_error()) => {}
                Err(error) => return Err(crate::error::describe(&error)),
            }
            // Nobody has posted for a while, or nobody ever has, or `tat` is nonsense.
            let idle = self
                .update("SET tat = :start", "attribute_not_exists(tat) OR NOT tat BETWEEN :floor AND :ceiling")
                .expression_attribute_values(":floor", number(floor))
                .expression_attribute_values(":ceiling", number(now + MAX_AHEAD_US))
                .expression_attribute_values(":start", number(floor + cost))
                .send();
            match idle.await {
                Ok(old) => return Ok(Some((floor, share(&old.attributes.unwrap_or_default(), now)))),
                // Another function was first.
                Err(error) if is_condition(error.as_service_error()) => {}
                Err(error) => return Err(crate::error::describe(&error)),
            }
        }
    }

    /// Lowers the shared rate, unless another function did so a moment ago.
    async fn slow(&self, chunk: &mut Chunk) {
        chunk.share = (chunk.share * SLOWER).max(LEAST);
        warn!(share = chunk.share, "the gateway refuses posts for their rate: all fan-outs post more slowly");
        if self.table.is_empty() {
            return;
        }
        let now = now_us();
        let condition = "attribute_not_exists(slowedAt) OR NOT slowedAt BETWEEN :before AND :ceiling";
        let slowed = self
            .update("SET #share = :share, slowedAt = :now", condition)
            .expression_attribute_names("#share", "share")
            .expression_attribute_values(":share", AttributeValue::N(format!("{:.4}", chunk.share)))
            .expression_attribute_values(":now", number(now))
            .expression_attribute_values(":before", number(now - SLOWED_US))
            .expression_attribute_values(":ceiling", number(now + MAX_AHEAD_US))
            .send();
        if let Err(error) = slowed.await
            && !is_condition(error.as_service_error())
        {
            warn!(error = crate::error::describe(&error), "the shared rate cannot be lowered");
        }
    }

    fn update(
        &self,
        update: &str,
        condition: &str,
    ) -> aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder {
        let key = Item::from([("p".to_owned(), string("r")), ("s".to_owned(), string("-"))]);
        let call = self.dynamodb.update_item().table_name(&self.table).set_key(Some(key));
        call.update_expression(update).condition_expression(condition).return_values(ReturnValue::AllOld)
    }
}

/// The part of the rate that is left, of an item that was read at `now`.
fn share(item: &Item, now: i64) -> f64 {
    let (Some(share), Some(slowed_at)) = (read(item, "share"), read(item, "slowedAt")) else { return 1.0 };
    #[expect(clippy::cast_precision_loss, reason = "microseconds of this century are exact in 53 bits")]
    let since = now as f64 - slowed_at;
    if since < -(MAX_AHEAD_US as f64) { 1.0 } else { (share + since.max(0.0) * FASTER).clamp(LEAST, 1.0) }
}

fn read(item: &Item, name: &str) -> Option<f64> {
    item.get(name)?.as_n().ok()?.parse().ok().filter(|number: &f64| number.is_finite())
}

fn number(number: i64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
fn whole(number: f64) -> i64 {
    number as i64
}

fn now_us() -> i64 {
    let since = clock::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn is_condition(error: Option<&UpdateItemError>) -> bool {
    error.is_some_and(UpdateItemError::is_conditional_check_failed_exception)
}

#[cfg(test)]
pub(crate) mod tests;
