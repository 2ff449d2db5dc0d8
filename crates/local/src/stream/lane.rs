//! Batching, retries and bisection: what happens to the records of a shard after they are read.
//!
//! Implements "Polling and batching streams", "Error handling" and "Configuring partial batch response" of [Using AWS
//! Lambda with DynamoDB](https://docs.aws.amazon.com/lambda/latest/dg/with-ddb.html). A shard has as many lanes as its
//! mapping's `ParallelizationFactor`. All records of one item are in the same lane, and each lane has one batch at a
//! time.
//!
//! Nothing here waits or does I/O: the caller passes records, the ends of invocations and the time.
//!
//! AWS does not document three things, so they are ours. A retry waits as long as [`retry_delay`] says. A partial
//! failure counts as an attempt of the remaining records, unless bisection makes it a split. Bisection halves a batch
//! at every failure of the whole batch, so that only a single record uses up attempts.

use std::collections::VecDeque;
use std::time::Duration;

use super::response::Answer;
use super::source::{RETENTION, Record, SequenceNumber};
use crate::service::StreamMapping;

/// The largest event: "6 MB", the quota of synchronous invocations, from "Lambda quotas".
pub(super) const PAYLOAD_LIMIT_BYTES: usize = 6 * 1024 * 1024;

const PREFIX: &str = r#"{"Records":["#;
const SUFFIX: &str = "]}";

/// The delay of the first retry. It doubles with every further one. AWS does not document its own.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(250);

/// The longest delay between two retries. AWS does not document its own.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);

/// The batches of one lane. All times are since the epoch.
#[derive(Debug)]
pub(super) struct Lane {
    mapping: StreamMapping,
    /// Records that are in no batch yet, each with the time at which it was read.
    queue: VecDeque<(Duration, Record)>,
    /// The size of the records in `queue`.
    queue_bytes: usize,
    /// The batch that is in flight or comes next. Behind it are the parts that were split off from it.
    batches: VecDeque<Batch>,
    in_flight: bool,
}

/// Records that are delivered together, at least one.
#[derive(Debug)]
struct Batch {
    records: Vec<Record>,
    /// The number of failed attempts of this batch.
    failures: u32,
    /// The number of invocations that had these records.
    invocations: u32,
    /// Whether the last of these invocations was a function error.
    function_error: bool,
    /// The time of the next attempt.
    due: Duration,
}

/// The next step of a lane.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Invoke the function with this event, and report the end with [`Lane::answered`].
    Invoke(String),
    /// Give these records up, and ask again.
    GiveUp(Discarded),
    /// Ask again at this time, or after the next records.
    Wait(Duration),
    /// Ask again after the next records or the end of the invocation.
    Idle,
}

/// Records that were given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Discarded {
    /// At least one record, in order.
    pub(super) records: Vec<Record>,
    pub(super) condition: Condition,
    /// The number of invocations that had these records.
    pub(super) invocations: u32,
    /// Whether the last invocation was a function error. A response that reports failures is not a function error.
    pub(super) function_error: bool,
}

/// The reason why records are given up. The names are those in an invocation record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(super) enum Condition {
    RetryAttemptsExhausted,
    RecordAgeExceeded,
}

/// The changes that an invocation made.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The records that are done.
    pub(super) done: Vec<SequenceNumber>,
    /// A line for the log about the other records.
    pub(super) note: Option<String>,
}

impl Lane {
    /// Makes a lane without records.
    pub(super) fn new(mapping: StreamMapping) -> Self {
        Self { mapping, queue: VecDeque::new(), queue_bytes: 0, batches: VecDeque::new(), in_flight: false }
    }

    /// Adds a record after all earlier ones.
    pub(super) fn push(&mut self, record: Record, now: Duration) {
        self.queue_bytes += record.json.len();
        self.queue.push_back((now, record));
    }

    /// Tells whether a full batch waits. Then no further record has to be read.
    pub(super) fn is_full(&self) -> bool {
        self.queue.len() >= self.batch_size() || self.queue_bytes >= PAYLOAD_LIMIT_BYTES
    }

    /// Returns the size of the records that wait.
    pub(super) fn queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// Returns the number of records in the batch that is in flight.
    pub(super) fn batch_len(&self) -> usize {
        self.batches.front().map_or(0, |batch| batch.records.len())
    }

    /// Returns the next step.
    pub(super) fn next(&mut self, now: Duration) -> Next {
        if self.in_flight {
            return Next::Idle;
        }
        let mut batch = match self.batches.pop_front() {
            Some(batch) => batch,
            None => match self.collect(now) {
                Ok(batch) => batch,
                Err(next) => return next,
            },
        };

        let maximum_age = self.mapping.maximum_record_age.unwrap_or(RETENTION).min(RETENTION);
        let too_old = |record: &&Record| now.saturating_sub(record.created) > maximum_age;
        let expired = batch.records.iter().take_while(too_old).count();
        if expired > 0 {
            let rest = batch.records.split_off(expired);
            let discarded = Discarded {
                records: std::mem::replace(&mut batch.records, rest),
                condition: Condition::RecordAgeExceeded,
                invocations: batch.invocations,
                function_error: batch.function_error,
            };
            if !batch.records.is_empty() {
                self.batches.push_front(batch);
            }
            return Next::GiveUp(discarded);
        }
        if self.mapping.maximum_retry_attempts.is_some_and(|retries| batch.failures > retries) {
            return Next::GiveUp(Discarded {
                records: batch.records,
                condition: Condition::RetryAttemptsExhausted,
                invocations: batch.invocations,
                function_error: batch.function_error,
            });
        }
        let next = if batch.due > now {
            Next::Wait(batch.due)
        } else {
            self.in_flight = true;
            Next::Invoke(event(&batch.records))
        };
        self.batches.push_front(batch);
        next
    }

    /// Takes the end of the invocation that the last [`Next::Invoke`] asked for.
    pub(super) fn answered(&mut self, answer: Answer, now: Duration) -> Changes {
        self.in_flight = false;
        let Some(mut batch) = self.batches.pop_front() else {
            return Changes::default();
        };
        if answer == Answer::Throttled {
            let (count, first) = (batch.records.len(), batch.records[0].sequence_number);
            batch.due = now + FIRST_RETRY_DELAY;
            self.batches.push_front(batch);
            let note =
                format!("{count} record(s) from {first} were throttled; the next delivery is in {FIRST_RETRY_DELAY:?}");
            return Changes { done: Vec::new(), note: Some(note) };
        }
        batch.invocations += 1;
        batch.function_error = answer == Answer::FunctionError;
        let done = match answer {
            Answer::Succeeded => batch.records.len(),
            // A number that is not in the batch fails the whole batch, because its meaning is not clear.
            Answer::FailedFrom(first) => {
                batch.records.iter().position(|record| record.sequence_number == first).unwrap_or(0)
            }
            Answer::Failed | Answer::FunctionError | Answer::Throttled => 0,
        };
        let rest = batch.records.split_off(done);
        let done: Vec<_> =
            std::mem::replace(&mut batch.records, rest).iter().map(|record| record.sequence_number).collect();
        if batch.records.is_empty() {
            return Changes { done, note: None };
        }
        let note = self.again(batch, !done.is_empty(), now);
        Changes { done, note: Some(note) }
    }

    /// Puts a batch back in front after at least its first record failed. The batch stays whole or is halved.
    fn again(&mut self, mut batch: Batch, shortened: bool, now: Duration) -> String {
        let (count, first) = (batch.records.len(), batch.records[0].sequence_number);
        let bisect = self.mapping.bisect_batch_on_function_error;
        if bisect && shortened {
            batch.failures = 0;
            batch.due = now;
            self.batches.push_front(batch);
            return format!("{count} record(s) from {first} failed; they are delivered again");
        }
        if bisect && count > 1 {
            let second_half = batch.records.split_off(count / 2);
            batch.failures = 0;
            batch.due = now;
            let first_half = std::mem::replace(&mut batch.records, second_half);
            let first_half = Batch { records: first_half, ..batch };
            self.batches.push_front(batch);
            self.batches.push_front(first_half);
            return format!("{count} record(s) from {first} failed; they are delivered in halves");
        }
        batch.failures = batch.failures.saturating_add(1);
        let delay = retry_delay(batch.failures);
        batch.due = now + delay;
        let note = match self.mapping.maximum_retry_attempts {
            Some(retries) if batch.failures > retries => format!("{count} record(s) from {first} failed"),
            _ => format!("{count} record(s) from {first} failed; they are delivered again in {delay:?}"),
        };
        self.batches.push_front(batch);
        note
    }

    /// Takes a batch from the queue: at once if it is full, else after the first record has waited for the batch
    /// window.
    fn collect(&mut self, now: Duration) -> Result<Batch, Next> {
        let Some((oldest, _)) = self.queue.front() else {
            return Err(Next::Idle);
        };
        let window_end = *oldest + self.mapping.batch_window;
        let (mut count, mut bytes) = (0, PREFIX.len() + SUFFIX.len());
        for (_, record) in self.queue.iter().take(self.batch_size()) {
            // There is a comma between two records.
            let size = record.json.len() + usize::from(count > 0);
            // The Runtime API of the function handles a single record that is too large.
            if count > 0 && bytes + size > PAYLOAD_LIMIT_BYTES {
                break;
            }
            bytes += size;
            count += 1;
        }
        let full = count == self.batch_size() || count < self.queue.len();
        if !full && window_end > now {
            return Err(Next::Wait(window_end));
        }
        let records: Vec<_> = self.queue.drain(..count).map(|(_, record)| record).collect();
        self.queue_bytes -= records.iter().map(|record| record.json.len()).sum::<usize>();
        Ok(Batch { records, failures: 0, invocations: 0, function_error: false, due: Duration::ZERO })
    }

    fn batch_size(&self) -> usize {
        usize::try_from(self.mapping.batch_size).unwrap_or(usize::MAX)
    }
}

fn event(records: &[Record]) -> String {
    let records: Vec<_> = records.iter().map(|record| record.json.as_str()).collect();
    [PREFIX, &records.join(","), SUFFIX].concat()
}

/// Returns the delay after this number of failures of a batch, at least one.
fn retry_delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(u32::BITS - 1);
    FIRST_RETRY_DELAY.saturating_mul(1 << doublings).min(MAX_RETRY_DELAY)
}

#[cfg(test)]
mod tests;
