//! Execution environments: one process each, with its own Runtime API.
//!
//! This module imitates the [execution environment
//! lifecycle](https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html).

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::extensions::About;
use super::process::Process;
use super::runtime_api::{Call, Invocation, RuntimeApi};
use super::{FunctionError, FunctionSettings};
use crate::faults::{Chance, Faults};
use crate::iam::ACCOUNT_ID;
use crate::inspector::{self, Seat};
use crate::terminal;
use crate::trace::trace_id;

/// An execution environment that has been initialised. Its process is killed when this is dropped.
pub(super) struct Environment {
    process: Process,
    api: RuntimeApi,
    /// The poll that waits for an event. There is none between an event and the next poll.
    poll: Option<oneshot::Sender<Invocation>>,
    function_arn: String,
    timeout: Duration,
    freezes: bool,
    faults: Arc<Faults>,
    /// The time at which the binary had been modified last when the process was started.
    built: Option<SystemTime>,
    /// The deadline of the first invocation, if the init is part of it.
    first_deadline: Option<Instant>,
    /// The deadline of the latest invocation.
    deadline: Instant,
    /// The time of the last poll.
    pub(super) idle_since: Instant,
    /// The place of this environment in the inspector.
    pub(super) seat: Arc<Seat>,
    /// The time that the init took, before the first event.
    pub(super) first_init: Option<Duration>,
}

impl Environment {
    /// Starts a process and waits until it polls for its first event. If that takes too long or fails, starts a second
    /// process, which has the function's time-out for its init and the event together. The task that owns the process
    /// holds `alive`. The init belongs to the `first` event.
    pub(super) async fn start(
        settings: &FunctionSettings,
        alive: &watch::Receiver<bool>,
        event: Option<&inspector::Invocation>,
    ) -> Result<Self, FunctionError> {
        let begin = Instant::now();
        let mut first = Self::launch(settings, alive.clone(), event).await?;
        let limit = settings.shared.init_timeout;
        let error = match tokio::time::timeout(limit, first.polled()).await {
            Ok(Ok(())) => return Ok(first.initialised(settings, begin)),
            Ok(Err(error)) => error,
            Err(_) => timed_out("Init", limit),
        };
        terminal::line(&settings.key, &format!("{error}; the init runs again, as part of the first event"));
        first.process.kill().await;

        let begin = Instant::now();
        let deadline = begin + settings.timeout;
        let mut second = Self::launch(settings, alive.clone(), event).await?;
        second.first_deadline = Some(deadline);
        let error = match tokio::time::timeout_at(deadline, second.polled()).await {
            Ok(Ok(())) => return Ok(second.initialised(settings, begin)),
            Ok(Err(error)) => error,
            Err(_) => timed_out("Task", settings.timeout),
        };
        second.process.kill().await;
        Err(error)
    }

    fn initialised(mut self, settings: &FunctionSettings, begin: Instant) -> Self {
        terminal::cold_start(&settings.key, begin.elapsed());
        self.first_init = Some(begin.elapsed());
        self
    }

    async fn launch(
        settings: &FunctionSettings,
        alive: watch::Receiver<bool>,
        event: Option<&inspector::Invocation>,
    ) -> Result<Self, FunctionError> {
        let start_error = |error: io::Error| {
            let binary = settings.binary.display();
            FunctionError::new("Runtime.InvalidEntrypoint", format!("cannot start {binary}: {error}"))
        };
        let about = About { function_name: settings.name.clone(), handler: settings.handler.clone() };
        let api = RuntimeApi::start(about).await.map_err(start_error)?;
        // Read before the start: a binary that is replaced in between is then started once too often, not never.
        let built = modified(settings);
        let seat = Seat::new(&settings.inspector, &settings.key);
        seat.take(event.cloned());
        let process = Process::start(settings, &api, alive, seat.clone()).map_err(start_error)?;
        Ok(Self {
            process,
            api,
            poll: None,
            function_arn: format!("arn:aws:lambda:{}:{ACCOUNT_ID}:function:{}", settings.region, settings.name),
            timeout: settings.timeout,
            freezes: !settings.shared.no_freeze,
            faults: settings.faults.clone(),
            built,
            first_deadline: None,
            deadline: Instant::now(),
            idle_since: Instant::now(),
            seat,
            first_init: None,
        })
    }

    /// Tells whether there is another binary now. A missing binary is being built, so it does not count.
    pub(super) fn is_outdated(&self, settings: &FunctionSettings) -> bool {
        modified(settings).is_some_and(|modified| self.built != Some(modified))
    }

    /// Tells whether the process still runs and has not closed its poll.
    pub(super) fn is_alive(&self) -> bool {
        self.process.is_alive() && self.poll.as_ref().is_none_or(|poll| !poll.is_closed())
    }

    /// Gives the process an event and waits for its answer. A time-out or a crash ends the process; otherwise
    /// [`Environment::ready`] tells when the process can take the next event.
    pub(super) async fn invoke(&mut self, request_id: Uuid, event: Bytes) -> Result<Bytes, FunctionError> {
        let timeout = match self.first_deadline.take() {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => self.timeout,
        };
        self.deadline = Instant::now() + timeout;
        self.first_init = None;
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let (answer, answered) = oneshot::channel();
        let invocation = Invocation {
            request_id,
            deadline_ms: (now + timeout).as_millis(),
            function_arn: self.function_arn.clone(),
            trace_id: trace_header(),
            event,
            answer,
        };
        self.process.freeze(false);
        self.api.extensions.announce(&invocation);
        let is_killed = self.faults.injects(Chance::Kill);
        if is_killed && !self.faults.coin(Chance::Kill) {
            self.process.kill().await;
            return Err(self.process.exited().await);
        }
        if let Some(poll) = self.poll.take() {
            // A process that has just died does not take it; the `select!` below notices that.
            let _ = poll.send(invocation);
        }
        tokio::select! {
            biased;
            Ok(answer) = answered => {
                if !is_killed {
                    return answer;
                }
                // The fault: the function has done its work, but its answer is lost.
                self.process.kill().await;
                Err(self.process.exited().await)
            }
            error = self.process.exited() => Err(error),
            () = tokio::time::sleep_until(self.deadline) => {
                self.process.kill().await;
                Err(timed_out("Task", self.timeout))
            }
        }
    }

    /// Waits until the process polls again, and then freezes it. Until the poll, the time of its invocation goes on: on
    /// AWS, too, the invoke phase ends with the poll and not with the response.
    pub(super) async fn ready(&mut self) -> Result<(), FunctionError> {
        if let Ok(polled) = tokio::time::timeout_at(self.deadline, self.polled()).await {
            self.idle_since = Instant::now();
            self.process.freeze(polled.is_ok() && self.freezes);
            return polled;
        }
        self.process.kill().await;
        Err(timed_out("Task", self.timeout))
    }

    async fn polled(&mut self) -> Result<(), FunctionError> {
        tokio::select! {
            biased;
            Some(call) = self.api.calls.recv() => match call {
                Call::Next(poll) => self.poll = Some(poll),
                Call::InitError(error) => return Err(error),
            },
            error = self.process.exited() => return Err(error),
        }
        tokio::select! {
            () = self.api.extensions.ready() => Ok(()),
            error = self.process.exited() => Err(error),
        }
    }
}

/// Returns the time at which the binary was modified last, if there is a binary.
fn modified(settings: &FunctionSettings) -> Option<SystemTime> {
    std::fs::metadata(&settings.binary).and_then(|metadata| metadata.modified()).ok()
}

fn timed_out(what: &str, limit: Duration) -> FunctionError {
    FunctionError::new("Sandbox.Timedout", format!("{what} timed out after {:.2} seconds", limit.as_secs_f64()))
}

/// Makes a trace header for an event that is not sampled.
fn trace_header() -> String {
    format!("{};Parent={:016x};Sampled=0", trace_id(), fastrand::u64(..))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::lambda::{Dispatcher, Pool};

    #[tokio::test]
    async fn an_environment_that_died_while_idle_is_replaced() {
        let test = std::env::current_exe().unwrap();
        let binary = test.parent().and_then(Path::parent).unwrap().join("fixture");
        assert!(binary.is_file(), "run `cargo build --workspace --bins` first");
        let settings = FunctionSettings::of(binary, BTreeMap::new());
        let (_stop, stop) = watch::channel(false);
        let mut dead = Environment::start(&settings, &stop, None).await.unwrap();
        assert!(dead.is_alive());
        dead.process.kill().await;
        assert!(!dead.is_alive());

        let pool = watch::Sender::new(Pool { idle: vec![dead], returning: 0 });
        let dispatcher = Dispatcher { settings, permits: Arc::new(Semaphore::new(1)), stop, pool };
        assert!(dispatcher.environment(None).await.unwrap().is_alive());
    }

    #[test]
    fn a_trace_header_has_the_form_of_x_rays() {
        let header = trace_header();
        assert!(header.starts_with("Root=1-") && header.ends_with(";Sampled=0"), "{header}");
        assert_eq!(header.len(), "Root=1-6553f100-000000000000000000000000;Parent=0000000000000000;Sampled=0".len());
    }
}
