//! Event source mappings: each reads a table's stream and invokes a function.
//!
//! Implements ["Using AWS Lambda with DynamoDB"](https://docs.aws.amazon.com/lambda/latest/dg/with-ddb.html): one shard
//! is read in order and delivered in batches, synchronously, at least once. A flag splits the stream into several shards. `lane.rs` decides what happens to a batch;
//! this file reads records, invokes the function and saves the position.
//!
//! A mapping skips the records that its filter criteria do not match (`filter.rs`), as if they were done.
//!
//! Not here: tumbling windows. Nothing is sent to an on-failure destination; the log has a line instead. A mapping
//! follows its table by name: if the table is deleted and created again while the stack runs, the mapping goes on with
//! the new one.

mod failure;
mod filter;
mod lane;
mod position;
mod response;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dynoxide::DynoxideError;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::faults::{Chance, Delay, Faults};
use crate::iam::ACCOUNT_ID;
use crate::inspector::{Event, Inspector};
use crate::lambda::Function;
use crate::service::{Service, StartingPosition, StreamMapping};
use crate::table::Tables;
use crate::terminal;

pub use self::filter::Filter;

use self::failure::{Origin, invocation_record};
use self::lane::{Discarded, Lane, Next, PAYLOAD_LIMIT_BYTES};
use self::position::{Position, Positions, Progress};
use self::response::Answer;
use self::source::{SequenceNumber, Source};

/// "Lambda polls shards in your DynamoDB stream for records at a base rate of 4 times per second", from "Polling and
/// batching streams".
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// The delay after the engine has failed. It doubles with every further failure. Ours.
const FIRST_ENGINE_DELAY: Duration = Duration::from_millis(500);

/// The longest such delay. Ours.
const MAX_ENGINE_DELAY: Duration = Duration::from_secs(30);

/// The time that a shutdown waits for invocations in progress. Ours; the gateway's is the same.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The reason why mappings cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A table has no stream, or the engine cannot read it.
    #[error("the stream of the table {table_name} cannot be read")]
    Source {
        /// The table.
        table_name: String,
        /// The engine's error.
        #[source]
        source: DynoxideError,
    },
    /// The positions in the data directory are unreadable.
    #[error("{path}: the mappings' positions cannot be read; delete the file to start at their starting positions")]
    Positions {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// The enabled mappings of a service, each with its position. They do not run yet.
#[derive(Debug)]
pub struct Mappings {
    mappings: Vec<Mapping>,
}

impl Mappings {
    /// Finds the stream of every mapping, and the mapping's position there: the position that an earlier stack saved in
    /// `data_dir`, else the mapping's starting position. `LATEST` is after the last record that is in the stream now.
    ///
    /// `functions` has function keys as its keys.
    ///
    /// # Errors
    ///
    /// When a stream or the positions cannot be read.
    pub fn open(
        service: &Service,
        functions: &BTreeMap<&str, Arc<Function>>,
        tables: &Tables,
        data_dir: Option<&Path>,
        faults: &Arc<Faults>,
        inspector: &Arc<Inspector>,
        shards: usize,
    ) -> Result<Self, StreamError> {
        let shards = shards.max(1);
        let positions = Positions::open(data_dir).map_err(|(path, source)| StreamError::Positions { path, source })?;
        let positions = Arc::new(positions);
        let mut mappings = Vec::new();
        for (key, definition) in &service.functions {
            let enabled = definition.streams.iter().filter(|mapping| mapping.enabled);
            for mapping in enabled {
                let table = service.tables.iter().find(|table| table.logical_id == mapping.table);
                let table_name = table.and_then(|table| table.create_table["TableName"].as_str());
                let table_name = table_name.unwrap_or(&mapping.table);
                let failed = |source| StreamError::Source { table_name: table_name.to_owned(), source };
                let source = Source::open(tables.database(), table_name, &service.region).map_err(failed)?;
                let origin = Origin {
                    function_arn: format!(
                        "arn:aws:lambda:{}:{ACCOUNT_ID}:function:{}",
                        service.region, definition.name
                    ),
                    stream_arn: source.stream_arn.clone(),
                    shard_id: source.shard_id.clone(),
                };
                let name = format!("{key}/{table_name}");
                let position = starting_point(&name, mapping, &source, &positions).map_err(failed)?;
                let mapping = Mapping {
                    log: Log { function_key: key.clone() },
                    name,
                    function: Arc::clone(&functions[key.as_str()]),
                    source: Arc::new(source),
                    filter: Arc::new(mapping.filter.clone()),
                    lanes: lanes(shards, mapping),
                    shards,
                    settings: mapping.clone(),
                    origin,
                    progress: Progress::new(position),
                    positions: Arc::clone(&positions),
                    engine_failures: 0,
                    faults: Arc::clone(faults),
                    inspector: Arc::clone(inspector),
                    table_name: table_name.to_owned(),
                };
                mapping.save();
                mappings.push(mapping);
            }
        }
        Ok(Self { mappings })
    }

    /// Starts the delivery of records.
    #[must_use]
    pub fn start(self) -> RunningMappings {
        let stop = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        for mapping in self.mappings {
            tasks.spawn(mapping.run(stop.subscribe()));
        }
        RunningMappings { stop, tasks }
    }
}

/// Mappings that deliver records. Dropping this stops them at once.
#[derive(Debug)]
pub struct RunningMappings {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl RunningMappings {
    /// Starts no further batches and returns when all invocations have ended, or after 2 s. The next stack on the same
    /// data directory delivers the records again that are not done by then.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        // Tasks report their failures themselves, and the panic hook prints panics.
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, ended).await.is_err() {
            terminal::line("stream", "stopped without waiting for the last invocations");
        }
    }
}

/// The lanes of a mapping: as many in each shard as batches of it may run at once.
fn lanes(shards: usize, mapping: &StreamMapping) -> Vec<Lane> {
    let lanes = (0..shards).flat_map(|_| 0..mapping.parallelization_factor.max(1));
    lanes.map(|_| Lane::new(mapping.clone())).collect()
}

/// The place of a hash among `count`.
fn of_hash(hash: u64, count: usize) -> usize {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    usize::try_from(hash % count.max(1)).unwrap_or_default()
}

/// Returns the position at which a mapping begins: its saved position, if that is still in the stream.
fn starting_point(
    name: &str,
    mapping: &StreamMapping,
    source: &Source,
    positions: &Positions,
) -> Result<Option<SequenceNumber>, DynoxideError> {
    let range = source.range()?;
    let Some(position) = positions.get(name).filter(|position| position.stream_arn == source.stream_arn) else {
        return Ok(match mapping.starting_position {
            StartingPosition::TrimHorizon => None,
            StartingPosition::Latest => range.map(|range| *range.end()),
        });
    };
    match (position.sequence_number, range) {
        (Some(number), range) if !range.as_ref().is_some_and(|range| range.contains(&number)) => {
            let text = format!("{name}: {number} is no longer in the stream; starting at its first record");
            terminal::line("stream", &text);
            Ok(None)
        }
        (number, _) => Ok(number),
    }
}

/// The lines of one mapping.
struct Log {
    function_key: String,
}

impl Log {
    fn line(&self, text: fmt::Arguments<'_>) {
        terminal::line("stream", &format!("{}: {text}", self.function_key));
    }
}

/// One mapping.
struct Mapping {
    log: Log,
    /// Function key and table name.
    name: String,
    function: Arc<Function>,
    settings: StreamMapping,
    source: Arc<Source>,
    filter: Arc<Filter>,
    origin: Origin,
    /// The lanes of each shard, one shard after the other.
    lanes: Vec<Lane>,
    /// How many shards the stream is taken to have. The engine has one.
    shards: usize,
    progress: Progress,
    positions: Arc<Positions>,
    /// The number of the engine's failures in a row.
    engine_failures: u32,
    /// Injected faults. Only those of streams are used here.
    faults: Arc<Faults>,
    /// It is told what happens.
    inspector: Arc<Inspector>,
    table_name: String,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Mapping {
    /// Delivers records until `stop` is true and the last invocation has ended.
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut invocations = FuturesUnordered::new();
        let mut poll_at = Duration::ZERO;
        loop {
            let stopping = *stop.borrow();
            if stopping && invocations.is_empty() {
                return;
            }
            let mut wake_at = None;
            if !stopping {
                // Reads to the end of the shard, so that batches are as large as possible.
                while poll_at <= now() && !self.is_full() {
                    poll_at = self.read().await;
                }
                for index in 0..self.lanes.len() {
                    match self.next(index) {
                        Next::Invoke(event) => invocations.push(self.invoke(index, event)),
                        Next::Wait(until) => wake_at = [wake_at, Some(until)].into_iter().flatten().min(),
                        Next::Idle | Next::GiveUp(_) => {}
                    }
                }
                if !self.is_full() {
                    wake_at = [wake_at, Some(poll_at)].into_iter().flatten().min();
                }
            }
            let wake = async {
                match wake_at {
                    Some(at) => tokio::time::sleep(at.saturating_sub(now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((index, answer)) = invocations.next() => self.answered(index, answer),
                () = wake => {}
                // The sender lives longer than this task: dropping the sender aborts the task.
                _ = stop.wait_for(|stop| *stop), if !stopping => {}
            }
        }
    }

    /// Tells whether more records would only fill the memory, because a full batch waits in each lane already, or much waits
    /// in some. One busy lane does not hold up the others.
    fn is_full(&self) -> bool {
        let bytes: usize = self.lanes.iter().map(Lane::queue_bytes).sum();
        bytes >= PAYLOAD_LIMIT_BYTES || self.lanes.iter().all(Lane::is_full)
    }

    /// Reads the next records into the lanes and returns the time of the next read.
    async fn read(&mut self) -> Duration {
        let (source, after, now) = (Arc::clone(&self.source), self.progress.read, now());
        let filter = Arc::clone(&self.filter);
        let read = tokio::task::spawn_blocking(move || source.read(after, &filter, now)).await;
        let page = match read {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => return self.engine_failed(&error),
            Err(error) => return self.engine_failed(&error),
        };
        self.engine_failures = 0;
        let Some(last) = page.last else {
            return now + POLL_INTERVAL;
        };
        if page.trimmed > 0 {
            let hours = source::RETENTION.as_secs() / 3600;
            self.log.line(format_args!("skipped {} record(s) older than {hours} h", page.trimmed));
        }
        self.progress.read(page.records.iter().map(|record| record.sequence_number), last);
        let lanes_of_a_shard = self.lanes.len() / self.shards;
        for record in page.records {
            let shard = of_hash(record.partition_hash, self.shards);
            let lane = shard * lanes_of_a_shard + of_hash(record.key_hash, lanes_of_a_shard);
            self.lanes[lane].push(record, now);
        }
        self.save();
        now
    }

    fn engine_failed(&mut self, error: &dyn fmt::Display) -> Duration {
        let delay = FIRST_ENGINE_DELAY.saturating_mul(1 << self.engine_failures.min(16)).min(MAX_ENGINE_DELAY);
        self.engine_failures = self.engine_failures.saturating_add(1);
        self.log.line(format_args!("the stream cannot be read, the next attempt is in {delay:?}: {error}"));
        now() + delay
    }

    /// Returns the next step of a lane, after it has given up all records that it must give up.
    fn next(&mut self, index: usize) -> Next {
        loop {
            match self.lanes[index].next(now()) {
                Next::GiveUp(discarded) => self.give_up(&discarded),
                next => return next,
            }
        }
    }

    fn invoke(&self, index: usize, event: String) -> impl Future<Output = (usize, Answer)> + Send + use<> {
        let function = Arc::clone(&self.function);
        let report = self.settings.report_batch_item_failures;
        let faults = Arc::clone(&self.faults);
        let story = self.inspector.begin(|| Event::Batch {
            function: self.log.function_key.clone(),
            table: self.table_name.clone(),
            records: self.lanes[index].batch_len(),
        });
        let inspector = Arc::clone(&self.inspector);
        async move {
            faults.delay(Delay::StreamDelay).await;
            let event = Bytes::from(event);
            if faults.injects(Chance::DuplicateStreamRecord) {
                // The fault imitates a lost answer, so the answer to the second delivery counts.
                let _ = function.invoke_in(event.clone(), story).await;
            }
            match function.invoke_in(event, story).await {
                Ok(response) => (index, Answer::parse(&response, report)),
                // The log has the reason already.
                Err(error) if error.is_throttle() => {
                    inspector.tell(story, || Event::Trouble { reason: error.to_string() });
                    (index, Answer::Throttled)
                }
                Err(_) => (index, Answer::FunctionError),
            }
        }
    }

    fn answered(&mut self, index: usize, answer: Answer) {
        let changes = self.lanes[index].answered(answer, now());
        if let Some(note) = changes.note {
            self.log.line(format_args!("{note}"));
        }
        self.progress.finish(changes.done);
        self.save();
    }

    fn give_up(&mut self, discarded: &Discarded) {
        let count = discarded.records.len();
        let record = invocation_record(discarded, &self.origin, now());
        match &self.settings.on_failure {
            Some(destination) => {
                self.log.line(format_args!("gave up {count} record(s); to {destination}: {record}"));
            }
            None => self.log.line(format_args!("gave up {count} record(s), with no on-failure destination: {record}")),
        }
        self.progress.finish(discarded.records.iter().map(|record| record.sequence_number));
        self.save();
    }

    /// Saves the position up to which all records are done. After a restart at most the batches in flight are repeated.
    fn save(&self) {
        let stream_arn = self.origin.stream_arn.clone();
        let position = Position { stream_arn, sequence_number: self.progress.done };
        if let Err(error) = self.positions.set(&self.name, position) {
            self.log.line(format_args!("the position cannot be saved: {error}"));
        }
    }
}

/// Returns the time since the epoch. The age of records needs the wall clock. A step of the clock changes other waits
/// by at most that step.
fn now() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}
