//! The child process of an execution environment.
//!
//! Processes that a function starts are frozen and killed with it while they stay in its process group. A process that
//! outlives a crash of its function is neither frozen nor killed.

use std::convert::Infallible;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::extensions::{Extensions, SHUTDOWN};
use super::orphans::Registration;
use super::runtime_api::{RuntimeApi, Server};
use super::variables::variables;
use super::{FunctionError, FunctionSettings};
use crate::inspector::Seat;
use crate::terminal;

/// The most bytes of a line of output. The rest of a longer line is dropped.
const LINE_LIMIT_BYTES: usize = 64 * 1024;

/// The time to wait for the last output of a process that has exited. The output is in its pipes already, unless a
/// process that it has started holds the pipes open.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_millis(100);

/// A child process, owned by a task that reaps it.
pub(super) struct Process {
    /// The error with which the process ended, once it has ended.
    exit: watch::Receiver<Option<FunctionError>>,
    /// Keeps the process alive: dropping this kills it.
    lease: Option<oneshot::Sender<Infallible>>,
    /// Whether the process has to be stopped.
    frozen: watch::Sender<bool>,
}

impl Process {
    /// Starts the binary of a function.
    pub(super) fn start(
        settings: &FunctionSettings,
        api: &RuntimeApi,
        alive: watch::Receiver<bool>,
        seat: Arc<Seat>,
    ) -> io::Result<Self> {
        let binary = std::path::absolute(&settings.binary)?;
        let folder = binary.parent().unwrap_or(Path::new("/"));
        let child = Command::new(&binary)
            .current_dir(folder)
            .env_clear()
            .envs(variables(settings, folder, api.address, &seat))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C in the terminal is for the stack, which ends its children itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        seat.started(child.id());
        if let Some(id) = child.id().filter(|_| settings.shared.debugs(&settings.key)) {
            let waits = settings.shared.debug_wait;
            if let Some(process) = i32::try_from(id).ok().and_then(Pid::from_raw).filter(|_| waits) {
                kill_process_group(process, Signal::STOP)?;
            }
            let how = if waits { "waits for a debugger" } else { "can be debugged" };
            terminal::line(&settings.key, &format!("process {id} {how}: gdb -p {id}"));
        }
        let registration = child.id().map(|group| settings.guard.register(group)).transpose()?;
        let (lease, lease_receiver) = oneshot::channel();
        let (exited, exit) = watch::channel(None);
        let frozen = watch::Sender::new(false);
        let commands = Commands {
            lease: lease_receiver,
            frozen: frozen.subscribe(),
            extensions: api.extensions.clone(),
            _server: api.server.clone(),
        };
        let (key, hint) = (settings.key.clone(), settings.hint.clone());
        let print = move |line: &str| {
            terminal::function_line(&key, line);
            hint.of_line(&key, line);
            seat.line(line);
        };
        tokio::spawn(supervise(child, print, commands, registration, alive, exited));
        Ok(Self { exit, lease: Some(lease), frozen })
    }

    /// Tells whether the process still runs.
    pub(super) fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Stops the process, or continues it.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.send_if_modified(|now| std::mem::replace(now, frozen) != frozen);
    }

    /// Waits until the process has ended. Returns the error of the event that it was handling.
    pub(super) async fn exited(&mut self) -> FunctionError {
        let exit = self.exit.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        exit.unwrap_or_else(|| exit_error(None))
    }

    /// Kills the process and waits until it has ended.
    pub(super) async fn kill(&mut self) {
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
    /// With an extension, the child first gets a signal and some time.
    extensions: Extensions,
    /// The runtime of a child fails when its server is gone.
    _server: Arc<Server>,
}

/// Owns a child until it is reaped: prints its output, stops and continues it, kills it on command, and reports how it
/// ended.
async fn supervise(
    mut child: Child,
    print: impl Fn(&str) + Clone + Send + 'static,
    mut commands: Commands,
    registration: Option<Registration>,
    _alive: watch::Receiver<bool>,
    exited: watch::Sender<Option<FunctionError>>,
) {
    let mut relays = JoinSet::new();
    if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
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
                if commands.extensions.are_there() {
                    // A process that is frozen hears the signal when it goes on.
                    let _ = signal(Signal::TERM);
                    let _ = signal(Signal::CONT);
                    if let Ok(status) = tokio::time::timeout(SHUTDOWN, child.wait()).await {
                        break status;
                    }
                }
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
