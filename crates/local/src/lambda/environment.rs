//! Execution environments: one process each, with its own Runtime API.
//!
//! This module imitates the [execution environment
//! lifecycle](https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html) and the variables that
//! Lambda [defines](https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html).
//!
//! Processes that a function starts are frozen and killed with it while they stay in its process group. A process that
//! outlives a crash of its function is neither frozen nor killed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::orphans::Registration;
use super::runtime_api::{Call, Invocation, RuntimeApi};
use super::{FunctionError, FunctionSettings};
use crate::faults::{Chance, Faults};
use crate::iam::ACCOUNT_ID;
use crate::terminal;

/// The most bytes of a line of output. The rest of a longer line is dropped.
const LINE_LIMIT_BYTES: usize = 64 * 1024;

/// The time to wait for the last output of a process that has exited. The output is in its pipes already, unless a
/// process that it has started holds the pipes open.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_millis(100);

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
}

impl Environment {
    /// Starts a process and waits until it polls for its first event. If that takes too long or fails, starts a second
    /// process, which has the function's time-out for its init and the event together. The task that owns the process
    /// holds `alive`.
    pub(super) async fn start(
        settings: &FunctionSettings,
        alive: &watch::Receiver<bool>,
    ) -> Result<Self, FunctionError> {
        let begin = Instant::now();
        let mut first = Self::launch(settings, alive.clone()).await?;
        let limit = settings.shared.init_timeout;
        let error = match tokio::time::timeout(limit, first.polled()).await {
            Ok(Ok(())) => {
                terminal::cold_start(&settings.key, begin.elapsed());
                return Ok(first);
            }
            Ok(Err(error)) => error,
            Err(_) => timed_out("Init", limit),
        };
        terminal::line(&settings.key, &format!("{error}; the init runs again, as part of the first event"));
        first.process.kill().await;

        let begin = Instant::now();
        let deadline = begin + settings.timeout;
        let mut second = Self::launch(settings, alive.clone()).await?;
        second.first_deadline = Some(deadline);
        let error = match tokio::time::timeout_at(deadline, second.polled()).await {
            Ok(Ok(())) => {
                terminal::cold_start(&settings.key, begin.elapsed());
                return Ok(second);
            }
            Ok(Err(error)) => error,
            Err(_) => timed_out("Task", settings.timeout),
        };
        second.process.kill().await;
        Err(error)
    }

    async fn launch(settings: &FunctionSettings, alive: watch::Receiver<bool>) -> Result<Self, FunctionError> {
        let start_error = |error: io::Error| {
            let binary = settings.binary.display();
            FunctionError::new("Runtime.InvalidEntrypoint", format!("cannot start {binary}: {error}"))
        };
        let api = RuntimeApi::start().await.map_err(start_error)?;
        // Read before the start: a binary that is replaced in between is then started once too often, not never.
        let built = modified(settings);
        let process = Process::start(settings, api.address, alive).map_err(start_error)?;
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
        })
    }

    /// Tells whether there is another binary now. A missing binary is being built, so it does not count.
    pub(super) fn is_outdated(&self, settings: &FunctionSettings) -> bool {
        modified(settings).is_some_and(|modified| self.built != Some(modified))
    }

    /// Tells whether the process still runs and has not closed its poll.
    pub(super) fn is_alive(&self) -> bool {
        self.process.exit.borrow().is_none() && self.poll.as_ref().is_none_or(|poll| !poll.is_closed())
    }

    /// Gives the process an event and waits for its answer. A time-out or a crash ends the process; otherwise
    /// [`Environment::ready`] tells when the process can take the next event.
    pub(super) async fn invoke(&mut self, request_id: Uuid, event: Bytes) -> Result<Bytes, FunctionError> {
        let timeout = match self.first_deadline.take() {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => self.timeout,
        };
        self.deadline = Instant::now() + timeout;
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let (answer, answered) = oneshot::channel();
        let invocation = Invocation {
            request_id,
            deadline_ms: (now + timeout).as_millis(),
            function_arn: self.function_arn.clone(),
            trace_id: trace_id(now),
            event,
            answer,
        };
        self.process.freeze(false);
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
                Call::Next(poll) => {
                    self.poll = Some(poll);
                    Ok(())
                }
                Call::InitError(error) => Err(error),
            },
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

fn exit_error(status: Option<ExitStatus>) -> FunctionError {
    let message = match status {
        Some(status) if status.signal().is_some() => format!("Runtime exited with error: {status}"),
        Some(status) if !status.success() => {
            format!("Runtime exited with error: exit status {}", status.code().unwrap_or_default())
        }
        Some(_) | None => "Runtime exited without providing a reason".to_owned(),
    };
    FunctionError::new("Runtime.ExitError", message)
}

/// A child process, owned by a task that reaps it.
struct Process {
    /// The error with which the process ended, once it has ended.
    exit: watch::Receiver<Option<FunctionError>>,
    /// Keeps the process alive: dropping this kills it.
    lease: Option<oneshot::Sender<Infallible>>,
    /// Whether the process has to be stopped.
    frozen: watch::Sender<bool>,
}

impl Process {
    fn start(settings: &FunctionSettings, runtime_api: SocketAddr, alive: watch::Receiver<bool>) -> io::Result<Self> {
        let binary = std::path::absolute(&settings.binary)?;
        let folder = binary.parent().unwrap_or(Path::new("/"));
        let child = Command::new(&binary)
            .current_dir(folder)
            .env_clear()
            .envs(variables(settings, folder, runtime_api))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C in the terminal is for the stack, which ends its children itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let registration = child.id().map(|group| settings.guard.register(group)).transpose()?;
        let (lease, lease_receiver) = oneshot::channel();
        let (exited, exit) = watch::channel(None);
        let frozen = watch::Sender::new(false);
        let commands = Commands { lease: lease_receiver, frozen: frozen.subscribe() };
        tokio::spawn(supervise(child, settings.key.clone(), commands, registration, alive, exited));
        Ok(Self { exit, lease: Some(lease), frozen })
    }

    /// Stops the process, or continues it.
    fn freeze(&self, frozen: bool) {
        self.frozen.send_if_modified(|now| std::mem::replace(now, frozen) != frozen);
    }

    async fn exited(&mut self) -> FunctionError {
        let exit = self.exit.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        exit.unwrap_or_else(|| exit_error(None))
    }

    async fn kill(&mut self) {
        self.lease = None;
        self.exited().await;
    }
}

/// The commands that [`Process`] gives to the task that owns the child.
struct Commands {
    /// The child is killed when the other end is dropped.
    lease: oneshot::Receiver<Infallible>,
    /// The child is stopped while this is true.
    frozen: watch::Receiver<bool>,
}

/// Owns a child until it is reaped: prints its output, stops and continues it, kills it on command, and reports how it
/// ended.
async fn supervise(
    mut child: Child,
    key: String,
    mut commands: Commands,
    registration: Option<Registration>,
    _alive: watch::Receiver<bool>,
    exited: watch::Sender<Option<FunctionError>>,
) {
    let mut relays = JoinSet::new();
    if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
        let print = move |line: &str| terminal::function_line(&key, line);
        relays.spawn(relay(stdout, print.clone()));
        relays.spawn(relay(stderr, print));
    }
    // Only this task sends signals, because it knows that the child is not reaped yet. The signals also reach the
    // processes that the child has started. They fail only if the child has exited in the meantime.
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let signal = |signal| group.map(|group| kill_process_group(group, signal));
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            _ = &mut commands.lease => {
                let _ = signal(Signal::KILL);
                break child.wait().await;
            }
            Ok(()) = commands.frozen.changed() => {
                let _ = signal(if *commands.frozen.borrow_and_update() { Signal::STOP } else { Signal::CONT });
            }
        }
    };
    drop(registration);
    let last_output = async { while relays.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_OUTPUT_TIMEOUT, last_output).await;
    // Another process that holds the pipes open may go on writing to them.
    relays.detach_all();
    exited.send_replace(Some(exit_error(status.ok())));
}

/// Reads `output` to its end and prints its lines. The process never blocks on a full pipe.
async fn relay(output: impl AsyncRead + Unpin, mut print: impl FnMut(&str)) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while let Ok(bytes) = output.fill_buf().await
        && !bytes.is_empty()
    {
        let newline = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..newline.unwrap_or(bytes.len())];
        let room = LINE_LIMIT_BYTES - line.len();
        line.extend_from_slice(&part[..part.len().min(room)]);
        let consumed = part.len() + usize::from(newline.is_some());
        output.consume(consumed);
        if newline.is_some() {
            print(&String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line)));
            line.clear();
        }
    }
    if !line.is_empty() {
        print(&String::from_utf8_lossy(&line));
    }
}

/// Returns the whole environment of a process. It inherits nothing from the developer's shell.
fn variables(settings: &FunctionSettings, folder: &Path, runtime_api: SocketAddr) -> BTreeMap<String, String> {
    let FunctionSettings { name, handler, memory_size_mb, region, .. } = settings;
    let credentials = settings.credentials.clone();
    let log_stream = format!("{}/[$LATEST]{:032x}", jiff::Timestamp::now().strftime("%Y/%m/%d"), fastrand::u128(..));
    let unreserved = [("LANG", "en_US.UTF-8"), ("PATH", "/usr/local/bin:/usr/bin/:/bin:/opt/bin"), ("TZ", ":UTC")];
    let reserved = [
        ("_HANDLER", handler.clone()),
        ("AWS_REGION", region.clone()),
        ("AWS_DEFAULT_REGION", region.clone()),
        ("AWS_LAMBDA_FUNCTION_NAME", name.clone()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory_size_mb.to_string()),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".to_owned()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
        ("AWS_LAMBDA_LOG_STREAM_NAME", log_stream),
        ("AWS_ACCESS_KEY_ID", credentials.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key),
        ("AWS_SESSION_TOKEN", credentials.session_token),
        ("AWS_LAMBDA_RUNTIME_API", runtime_api.to_string()),
        ("LAMBDA_TASK_ROOT", folder.display().to_string()),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime".to_owned()),
    ];
    let mut variables: BTreeMap<_, _> =
        unreserved.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    variables.extend(settings.environment.clone());
    variables.extend(settings.endpoints.clone());
    variables.extend(reserved.into_iter().map(|(name, value)| (name.to_owned(), value)));
    variables
}

/// Makes a trace id: `Root=1-{epoch seconds}-{96 bits};Parent={64 bits};Sampled=0`, in hex.
fn trace_id(now: Duration) -> String {
    let root = fastrand::u128(..) >> 32;
    format!("Root=1-{:08x}-{root:024x};Parent={:016x};Sampled=0", now.as_secs(), fastrand::u64(..))
}

#[cfg(test)]
mod tests {
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
        let mut dead = Environment::start(&settings, &stop).await.unwrap();
        assert!(dead.is_alive());
        dead.process.kill().await;
        assert!(!dead.is_alive());

        let pool = watch::Sender::new(Pool { idle: vec![dead], returning: 0 });
        let dispatcher = Dispatcher { settings, permits: Arc::new(Semaphore::new(1)), stop, pool };
        assert!(dispatcher.environment().await.unwrap().is_alive());
    }

    async fn printed(output: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        relay(output, |line| lines.push(line.to_owned())).await;
        lines
    }

    #[tokio::test]
    async fn output_is_printed_line_by_line() {
        assert_eq!(printed(b"one\n\nthree\r\nfour").await, ["one", "", "three", "four"]);
    }

    #[tokio::test]
    async fn a_line_over_the_limit_is_cut_and_the_next_one_is_whole() {
        let lines = printed(format!("{}\nnext\n", "x".repeat(3 * LINE_LIMIT_BYTES)).as_bytes()).await;
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LINE_LIMIT_BYTES, 4]);
    }

    #[tokio::test]
    async fn invalid_utf8_is_replaced() {
        assert_eq!(printed(b"a\xffb\n").await, ["a\u{fffd}b"]);
    }

    #[test]
    fn an_exit_error_names_the_status_or_the_signal() {
        let message = |status| exit_error(Some(ExitStatus::from_raw(status))).error_message;
        assert_eq!(message(3 << 8), "Runtime exited with error: exit status 3");
        assert_eq!(message(9), "Runtime exited with error: signal: 9 (SIGKILL)");
        assert_eq!(message(0), "Runtime exited without providing a reason");
    }

    #[test]
    fn a_trace_id_has_the_form_of_an_x_ray_header() {
        let id = trace_id(Duration::from_secs(1_700_000_000));
        assert!(id.starts_with("Root=1-6553f100-") && id.ends_with(";Sampled=0"), "{id}");
        assert_eq!(id.len(), "Root=1-6553f100-000000000000000000000000;Parent=0000000000000000;Sampled=0".len());
    }
}
