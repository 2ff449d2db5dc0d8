//! Faults on demand. They imitate failures that are rare on AWS, as often as a developer wants to see them.
//!
//! Every kind of fault has its own sequence of decisions, made from the seed. With the same seed the nth decision of a
//! kind is the same in every run, whatever other faults are switched on. The order of requests decides which request
//! meets which decision.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::duration::duration;
use crate::terminal;

/// The settings of faults.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Faults")]
// clap names a group like its struct, and the crate has more than one `Settings`.
#[group(skip)]
pub struct Settings {
    /// Inject a fault, with a probability from 0 to 1 or for a time. May be repeated.
    ///
    /// With a probability: lost-disconnect, half-open, gone, throttle, error, hang, internal-error, reorder-messages,
    /// kill, dynamodb-throttle, unprocessed, transaction-conflict, duplicate-stream-record. With a time: post-delay,
    /// disconnect-delay, message-delay, stream-delay.
    ///
    /// lost-disconnect: $disconnect does not run. half-open: if the client vanishes, the gateway does not notice; posts
    /// succeed until it has been idle for too long. gone, throttle, error, hang: a POST to @connections is answered
    /// with 410, 429 or 500, or not at all. internal-error: the gateway fails at a message and closes its connection
    /// with 1011. reorder-messages: a message waits until the next one of its connection is handed on, for at most 1 s;
    /// the others keep their order. kill: a function's process is killed, before or after it has done its work.
    /// dynamodb-throttle: DynamoDB refuses a call of a function. transaction-conflict: it refuses a transaction.
    /// unprocessed: a function's BatchWriteItem returns a part of its writes as unprocessed. duplicate-stream-record: a
    /// batch of a stream is delivered twice. post-delay, disconnect-delay, stream-delay: every POST, $disconnect or
    /// batch of a stream comes that late. message-delay: every message is handed on up to that late, so that messages
    /// overtake each other.
    #[arg(long = "fault", value_name = "KIND=VALUE", verbatim_doc_comment)]
    pub faults: Vec<Fault>,
    /// The start of the decisions. With the same seed, each kind of fault decides the same.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// A fault with a probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Chance {
    /// `$disconnect` is lost.
    LostDisconnect,
    /// If TCP ends without a close frame, the gateway does not notice. Decided when a client connects.
    HalfOpen,
    /// A POST is answered with 410, though the connection is open.
    Gone,
    /// A POST is answered with 429.
    Throttle,
    /// A POST is answered with 500.
    Error,
    /// A POST is not answered.
    Hang,
    /// The gateway fails at a message of a client.
    InternalError,
    /// A message of a client is handed on after the next one of its connection.
    ReorderMessages,
    /// A function's process is killed.
    Kill,
    /// A call of a function is answered with `ProvisionedThroughputExceededException`.
    DynamodbThrottle,
    /// A `BatchWriteItem` of a function leaves some of its writes unprocessed, and does at least one.
    Unprocessed,
    /// A transaction of a function is cancelled because of a conflict.
    TransactionConflict,
    /// A batch of a stream is delivered twice; the second answer counts.
    DuplicateStreamRecord,
}

/// A fault that delays something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Delay {
    /// Delays every POST by this time.
    PostDelay,
    /// Delays every `$disconnect` by this time.
    DisconnectDelay,
    /// Delays every message by up to this time.
    MessageDelay,
    /// Delays every delivery of a stream's batch by this time.
    StreamDelay,
}

/// The value of one `--fault`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// A fault with its probability.
    Chance(Chance, f64),
    /// A delay with its time.
    Delay(Delay, Duration),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, value) = text.split_once('=').ok_or("expected KIND=VALUE")?;
        if let Ok(chance) = Chance::from_str(kind, false) {
            let probability = value.parse().ok().filter(|probability| (0.0..=1.0).contains(probability));
            return Ok(Self::Chance(chance, probability.ok_or("a probability is a number from 0 to 1")?));
        }
        match Delay::from_str(kind, false) {
            Ok(delay) => Ok(Self::Delay(delay, duration(value)?)),
            Err(_) => {
                let mut kinds: Vec<_> = Chance::value_variants().iter().map(name).collect();
                kinds.extend(Delay::value_variants().iter().map(name));
                Err(format!("`{kind}` is not one of {}", kinds.join(", ")))
            }
        }
    }
}

/// The faults that are switched on, with the state of their decisions.
#[derive(Debug, Default)]
pub struct Faults {
    chances: BTreeMap<Chance, (f64, Mutex<Decisions>)>,
    delays: BTreeMap<Delay, (Duration, Mutex<Decisions>)>,
}

/// The random numbers of one kind of fault.
#[derive(Debug)]
struct Decisions {
    random: fastrand::Rng,
    made: u64,
}

impl Faults {
    /// Switches faults on. If a kind is given twice, the later one counts.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let mut faults = Self::default();
        for fault in &settings.faults {
            match *fault {
                Fault::Chance(chance, probability) => {
                    faults.chances.insert(chance, (probability, decisions(settings.seed, &chance)));
                }
                Fault::Delay(delay, time) => {
                    faults.delays.insert(delay, (time, decisions(settings.seed, &delay)));
                }
            }
        }
        faults
    }

    /// Tells whether a fault is switched on, with any probability.
    #[must_use]
    pub fn is_enabled(&self, chance: Chance) -> bool {
        self.chances.contains_key(&chance)
    }

    /// Decides whether a fault happens. If it does, the terminal shows a line.
    #[must_use]
    pub fn injects(&self, chance: Chance) -> bool {
        let Some((probability, decisions)) = self.chances.get(&chance) else { return false };
        let mut decisions = decisions.lock().unwrap_or_else(PoisonError::into_inner);
        decisions.made += 1;
        let happens = decisions.random.f64() < *probability;
        if happens {
            terminal::line("fault", &format!("{} (decision {})", name(&chance), decisions.made));
        }
        happens
    }

    /// Decides whether a fault happens to a part of `count` things. Returns the number: at least one, and not all.
    #[must_use]
    pub fn injects_part(&self, chance: Chance, count: usize) -> Option<usize> {
        if count < 2 || !self.injects(chance) {
            return None;
        }
        let (_, decisions) = self.chances.get(&chance)?;
        Some(decisions.lock().unwrap_or_else(PoisonError::into_inner).random.usize(1..count))
    }

    /// Tosses a coin between two forms of a fault that happens.
    #[must_use]
    pub fn coin(&self, chance: Chance) -> bool {
        self.chances
            .get(&chance)
            .is_some_and(|(_, decisions)| decisions.lock().unwrap_or_else(PoisonError::into_inner).random.bool())
    }

    /// Waits for the whole time of a delay. Without the fault it returns at once; a timer of zero would take a
    /// millisecond.
    pub async fn delay(&self, delay: Delay) {
        if let Some((time, _)) = self.delays.get(&delay) {
            tokio::time::sleep(*time).await;
        }
    }

    /// Waits for a random part of the time of a delay.
    pub async fn random_delay(&self, delay: Delay) {
        if let Some((time, decisions)) = self.delays.get(&delay) {
            let part = decisions.lock().unwrap_or_else(PoisonError::into_inner).random.f64();
            tokio::time::sleep(time.mul_f64(part)).await;
        }
    }
}

/// Returns the kind's name as `--fault` has it.
fn name(kind: &impl ValueEnum) -> String {
    kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Seeds the decisions of a kind. The name is part of the seed, so that two kinds do not decide alike.
fn decisions(seed: u64, kind: &impl ValueEnum) -> Mutex<Decisions> {
    // FNV-1a, because the hash of the standard library may change with its version.
    let hash = name(kind)
        .bytes()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Mutex::new(Decisions { random: fastrand::Rng::with_seed(hash), made: 0 })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::Instant;

    use super::*;

    fn settings(seed: u64, faults: &[&str]) -> Settings {
        Settings { faults: faults.iter().map(|fault| fault.parse().unwrap()).collect(), seed }
    }

    fn sequence(settings: &Settings, chance: Chance) -> Vec<bool> {
        let faults = Faults::new(settings);
        (0..1000).map(|_| faults.injects(chance)).collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_decisions_with_any_other_faults() {
        let alone = sequence(&settings(7, &["gone=0.1"]), Chance::Gone);
        assert_eq!(sequence(&settings(7, &["kill=0.5", "gone=0.1", "message-delay=1s"]), Chance::Gone), alone);
        assert_ne!(sequence(&settings(8, &["gone=0.1"]), Chance::Gone), alone);
        assert_ne!(sequence(&settings(7, &["kill=0.1"]), Chance::Kill), alone);
        let happened = alone.iter().filter(|happened| **happened).count();
        assert!((50..150).contains(&happened), "{happened}");
    }

    #[test]
    fn a_fault_happens_always_with_probability_one_and_never_with_zero() {
        assert!(sequence(&settings(0, &["gone=1"]), Chance::Gone).iter().all(|happened| *happened));
        assert!(!sequence(&settings(0, &["gone=0"]), Chance::Gone).contains(&true));
        assert!(!sequence(&settings(0, &[]), Chance::Gone).contains(&true));
    }

    #[test]
    fn a_part_is_neither_nothing_nor_all() {
        let faults = Faults::new(&settings(7, &["unprocessed=1"]));
        let parts: Vec<_> = (0..100).map(|_| faults.injects_part(Chance::Unprocessed, 3).unwrap()).collect();
        assert!(
            parts.contains(&1) && parts.contains(&2) && parts.iter().all(|part| (1..3).contains(part)),
            "{parts:?}"
        );
        assert_eq!(faults.injects_part(Chance::Unprocessed, 1), None);
        assert_eq!(faults.injects_part(Chance::Gone, 3), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_is_whole_or_up_to_its_time_or_none() {
        let settings = settings(7, &["post-delay=200ms", "message-delay=1s"]);
        let delays = async || {
            let faults = Faults::new(&settings);
            let start = Instant::now();
            faults.delay(Delay::PostDelay).await;
            let whole = start.elapsed();
            faults.random_delay(Delay::MessageDelay).await;
            let one = start.elapsed() - whole;
            faults.random_delay(Delay::MessageDelay).await;
            (whole, one, start.elapsed() - whole - one)
        };
        let (whole, one, other) = delays().await;
        assert_eq!(whole, Duration::from_millis(200));
        assert!(one != other && one.max(other) <= Duration::from_secs(1), "{one:?} {other:?}");
        assert_eq!(delays().await, (whole, one, other));

        let faults = Faults::new(&settings);
        assert!(faults.delay(Delay::DisconnectDelay).now_or_never().is_some());
        assert!(Faults::default().random_delay(Delay::MessageDelay).now_or_never().is_some());
    }

    #[test]
    fn an_unknown_fault_or_a_wrong_value_is_refused() {
        for (text, reason) in [
            ("gone", "KIND=VALUE"),
            ("gone=2", "from 0 to 1"),
            ("gone=NaN", "from 0 to 1"),
            ("gone=1s", "from 0 to 1"),
            ("post-delay=200", "time unit needed"),
            ("typhoon=1", "`typhoon` is not one of lost-disconnect, half-open, gone, "),
        ] {
            assert!(text.parse::<Fault>().unwrap_err().contains(reason), "{text}");
        }
    }
}
