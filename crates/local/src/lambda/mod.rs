//! Lambda: functions, their execution environments, and the Runtime API between the two.
//!
//! This module imitates [synchronous invocation](https://docs.aws.amazon.com/lambda/latest/dg/invocation-sync.html) and
//! the [execution environment lifecycle](https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html):
//! an execution environment handles one event at a time, so a function has as many environments as simultaneous events.
//!
//! Between two events an environment is frozen: its processes are stopped, unless `--no-freeze` is given. An
//! environment is retired when it has been idle for long, or when its binary was built anew. Events beyond the
//! concurrency of a function or of the account are throttled. Not here: streamed responses, and provisioned
//! concurrency.

mod environment;
mod extensions;
mod hint;
mod orphans;
mod process;
mod runtime_api;
mod settings;
mod variables;
mod waiting;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::faults::Faults;
use crate::inspector::{self, Inspector, Story, Text};
use crate::terminal;
use environment::Environment;
use waiting::Waiting;

pub use self::hint::Hint;
pub use self::orphans::OrphanGuard;
pub use self::settings::Settings;

/// The time that an event waits for an environment that has responded but not yet polled again. After it, the event
/// gets a new environment. A runtime polls within a millisecond; without the wait, a client that is as fast would see a
/// cold start that it would not see on AWS.
const POLL_TIMEOUT: Duration = Duration::from_millis(250);

/// The settings of one function.
#[derive(Debug, Clone)]
pub struct FunctionSettings {
    /// The function's key in the serverless.yml. It is the name in each of its lines in the terminal.
    pub key: String,
    /// The deployed name, `AWS_LAMBDA_FUNCTION_NAME`.
    pub name: String,
    /// `_HANDLER`.
    pub handler: String,
    /// The executable. Every cold start opens its path again, and so starts a new build.
    pub binary: PathBuf,
    /// `AWS_LAMBDA_FUNCTION_MEMORY_SIZE`; not enforced.
    pub memory_size_mb: u32,
    /// The time that an invocation may take, from its dispatch until the process polls again. The init comes before it.
    pub timeout: Duration,
    /// `AWS_REGION`.
    pub region: String,
    /// The user's variables. Variables that Lambda [reserves][vars] keep Lambda's values.
    ///
    /// [vars]: https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html#configuration-envvars-runtime
    pub environment: BTreeMap<String, String>,
    /// The stack's own variables (the SDK's endpoints). They override the user's.
    pub endpoints: BTreeMap<String, String>,
    /// The most execution environments at a time, at least 1. Further events wait; on AWS they do not.
    pub max_environments: usize,
    /// A permit for each simultaneous event. Events without a permit are throttled. Functions without a reservation
    /// share one semaphore ([concurrency](https://docs.aws.amazon.com/lambda/latest/dg/lambda-concurrency.html)).
    pub concurrency: Arc<Semaphore>,
    /// Injected faults. Only [`Chance::Kill`](crate::faults::Chance::Kill) is used here.
    pub faults: Arc<Faults>,
    /// The credentials with which the function signs its calls.
    pub credentials: Credentials,
    /// The settings of all functions.
    pub shared: Settings,
    /// Kills the function's processes if the stack cannot.
    pub guard: Arc<OrphanGuard>,
    /// It is told what happens.
    pub inspector: Arc<Inspector>,
    /// What the function is told of the host of its calls.
    pub hint: Arc<Hint>,
}

impl FunctionSettings {
    /// Returns the settings of a single function: the name of its binary, one environment at a time, AWS's defaults for
    /// the rest (128 MB, 3 s).
    #[must_use]
    pub fn of(binary: PathBuf, environment: BTreeMap<String, String>) -> Self {
        let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self {
            key: name.clone(),
            name: name.clone(),
            handler: name,
            binary,
            memory_size_mb: 128,
            timeout: Duration::from_secs(3),
            region: "us-east-1".to_owned(),
            environment,
            endpoints: BTreeMap::new(),
            max_environments: 1,
            concurrency: Arc::new(Semaphore::new(1)),
            faults: Arc::default(),
            credentials: Credentials::default(),
            shared: Settings::default(),
            guard: Arc::default(),
            inspector: Arc::default(),
            hint: Arc::default(),
        }
    }
}

/// Credentials that sign calls of AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: String,
}

/// A developer's credentials.
impl Default for Credentials {
    fn default() -> Self {
        let local = || "local".to_owned();
        Self { access_key_id: local(), secret_access_key: local(), session_token: local() }
    }
}

impl Credentials {
    /// Returns the credentials of the function with this key.
    #[must_use]
    pub fn of(function_key: &str) -> Self {
        Self { access_key_id: format!("local-{function_key}"), ..Self::default() }
    }

    /// Tells whether this is the session token, or that of an execution environment: each has its own, with a number
    /// after a dot.
    pub(crate) fn is_token(&self, token: Option<&str>) -> bool {
        let rest = token.and_then(|token| token.strip_prefix(self.session_token.as_str()));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('.').is_some_and(is_number))
    }
}

/// The reason why a function cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no file at the path of its binary.
    #[error("binary `{binary}` of function `{function}` not found in {}: build it first", folder.display())]
    BinaryNotFound {
        /// The file's name.
        binary: String,
        /// The function's key.
        function: String,
        /// The folder in which the file was expected.
        folder: PathBuf,
    },
}

/// The [`FunctionError::error_type`] of a throttled event.
const THROTTLED: &str = "Sandbox.Throttled";

/// The reason why an invocation has no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error_type}: {error_message}")]
pub struct FunctionError {
    /// The type that the function reported, or `Runtime.ExitError`, `Sandbox.Timedout`, …
    pub error_type: String,
    /// The text for the log. Clients never see it.
    pub error_message: String,
}

impl FunctionError {
    fn new(error_type: &str, error_message: impl Into<String>) -> Self {
        Self { error_type: error_type.to_owned(), error_message: error_message.into() }
    }

    /// Returns the error of an event that Lambda refuses because there are too many at once.
    #[must_use]
    pub fn throttled() -> Self {
        Self::new(THROTTLED, "Rate Exceeded.")
    }

    /// Tells whether Lambda refused the event (a `TooManyRequestsException` for its caller). No function has seen it
    /// then.
    #[must_use]
    pub fn is_throttle(&self) -> bool {
        self.error_type == THROTTLED
    }
}

/// A function and its execution environments. Dropping it kills their processes; [`Function::shutdown`] also waits
/// until they have ended.
#[derive(Debug)]
pub struct Function {
    events: mpsc::UnboundedSender<Pending>,
    concurrency: Arc<Semaphore>,
    /// True once the function is shut down. That drops the dispatcher and its environments, and so kills their
    /// processes. Every task that may own a process holds a receiver. So there is no process left when the last
    /// receiver is dropped.
    stop: watch::Sender<bool>,
}

/// An event on its way to an execution environment.
struct Pending {
    /// Where it comes from. Sources take turns.
    source: String,
    event: Bytes,
    /// The story that the event belongs to, if somebody watches.
    story: Option<Story>,
    reply: oneshot::Sender<Result<Bytes, FunctionError>>,
    /// The event's permit. It is given back with the reply.
    concurrency: OwnedSemaphorePermit,
}

impl Function {
    /// Sets up a function without a process. The first event starts one.
    ///
    /// # Errors
    ///
    /// When the binary does not exist.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(settings: FunctionSettings) -> Result<Self, Error> {
        if !settings.binary.is_file() {
            return Err(Error::BinaryNotFound {
                binary: settings.binary.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                function: settings.key,
                folder: settings.binary.parent().map(PathBuf::from).unwrap_or_default(),
            });
        }
        let (events, pending) = mpsc::unbounded_channel();
        let stop = watch::Sender::new(false);
        let dispatcher = Dispatcher {
            permits: Arc::new(Semaphore::new(settings.max_environments.max(1))),
            settings,
            stop: stop.subscribe(),
            pool: watch::Sender::new(Pool::default()),
        };
        let concurrency = dispatcher.settings.concurrency.clone();
        let dispatcher = Arc::new(dispatcher);
        tokio::spawn(until_stopped(stop.subscribe(), dispatcher.clone().retire()));
        tokio::spawn(until_stopped(stop.subscribe(), dispatcher.run(pending)));
        Ok(Self { events, concurrency, stop })
    }

    /// Invokes the function synchronously with `event` and returns its response.
    ///
    /// The invocation runs to its end even if the returned future is dropped. The future that is polled first is dispatched
    /// first. If events wait for an environment, their sources take turns.
    ///
    /// # Errors
    ///
    /// When the event is throttled, or when the function reported an error, crashed, ran out of time, could not be
    /// started or is shut down.
    pub async fn invoke(&self, event: Bytes) -> Result<Bytes, FunctionError> {
        self.invoke_in(event, None).await
    }

    /// Invokes the function as a part of a story.
    pub(crate) async fn invoke_in(&self, event: Bytes, story: Option<Story>) -> Result<Bytes, FunctionError> {
        self.invoke_for("", event, story).await
    }

    /// Invokes the function for a source of events.
    pub(crate) async fn invoke_for(
        &self,
        source: &str,
        event: Bytes,
        story: Option<Story>,
    ) -> Result<Bytes, FunctionError> {
        let Ok(concurrency) = self.concurrency.clone().try_acquire_owned() else {
            return Err(FunctionError::throttled());
        };
        let (reply, response) = oneshot::channel();
        // After a shutdown nothing takes the event, and its reply channel closes.
        let _ = self.events.send(Pending { source: source.to_owned(), event, story, reply, concurrency });
        response.await.unwrap_or_else(|_| Err(FunctionError::new("Sandbox.Shutdown", "the function is shut down")))
    }

    /// Kills all processes, also those that are handling an event, and returns when they have ended. Invocations in
    /// progress and all later ones fail.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        self.stop.closed().await;
    }
}

/// Hands events to execution environments.
struct Dispatcher {
    settings: FunctionSettings,
    permits: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
    pool: watch::Sender<Pool>,
}

/// The environments without an event.
#[derive(Default)]
struct Pool {
    /// The environments that poll for their next event. The most recently used one is last.
    idle: Vec<Environment>,
    /// The number of environments that have responded and are about to poll.
    returning: usize,
}

impl Dispatcher {
    async fn run(self: Arc<Self>, mut pending: mpsc::UnboundedReceiver<Pending>) {
        let mut waiting = Waiting::default();
        while let Some(first) = pending.recv().await {
            waiting.push(first.source.clone(), first);
            loop {
                let Ok(permit) = self.permits.clone().acquire_owned().await else {
                    return;
                };
                while let Ok(event) = pending.try_recv() {
                    waiting.push(event.source.clone(), event);
                }
                let Some(event) = waiting.pop() else { break };
                tokio::spawn(until_stopped(self.stop.clone(), self.clone().serve(event, permit)));
            }
        }
    }

    /// Serves one event. The permit is given back when the environment is idle again or gone.
    async fn serve(self: Arc<Self>, pending: Pending, _permit: OwnedSemaphorePermit) {
        let Pending { event, story, reply, concurrency, .. } = pending;
        let request_id = Uuid::new_v4();
        let inspector = &self.settings.inspector;
        let invocation = story.map(|story| inspector::Invocation {
            story,
            number: inspector.invocation(),
            request_id: request_id.to_string(),
        });
        let number = invocation.as_ref().map(|invocation| invocation.number).unwrap_or_default();
        let arrived = Instant::now();
        let mut environment = match self.environment(invocation.as_ref()).await {
            Ok(environment) => environment,
            Err(error) => {
                inspector.tell(story, || self.begins(number, request_id, None, arrived, &event));
                inspector.tell(story, || responds(number, arrived, &Err(error.clone())));
                self.report(&error, request_id);
                drop(concurrency);
                let _ = reply.send(Err(error));
                return;
            }
        };
        inspector.tell(story, || self.begins(number, request_id, Some(&environment), arrived, &event));
        environment.seat.take(invocation);
        let begin = Instant::now();
        let response = environment.invoke(request_id, event).await;
        inspector.tell(story, || responds(number, begin, &response));
        if let Err(error) = &response {
            self.report(error, request_id);
        }

        // Counted before the reply, so that the caller's next event waits for this environment.
        let alive = environment.is_alive();
        self.pool.send_modify(|pool| pool.returning += usize::from(alive));
        // The caller may have gone away. Then nobody needs the reply.
        drop(concurrency);
        let _ = reply.send(response);
        if !alive {
            return;
        }
        let ready = environment.ready().await;
        if let Err(error) = &ready {
            inspector.tell(story, || responds(number, begin, &Err(error.clone())));
            self.report(error, request_id);
        }
        environment.seat.end();
        self.pool.send_modify(|pool| {
            pool.returning -= 1;
            if ready.is_ok() {
                pool.idle.push(environment);
            }
        });
    }

    /// Returns the most recently used idle environment, or a new one.
    async fn environment(&self, first: Option<&inspector::Invocation>) -> Result<Environment, FunctionError> {
        while let Some(environment) = self.take_idle().await {
            let why = if !environment.is_alive() {
                "the process died while idle; starting another one"
            } else if environment.is_outdated(&self.settings) {
                "the binary was built anew; starting it"
            } else {
                return Ok(environment);
            };
            terminal::line(&self.settings.key, why);
        }
        Environment::start(&self.settings, &self.stop, first).await
    }

    /// Makes the fact that an event has its environment, or that there is none for it.
    fn begins(
        &self,
        invocation: u64,
        request_id: Uuid,
        environment: Option<&Environment>,
        arrived: Instant,
        event: &Bytes,
    ) -> inspector::Event {
        inspector::Event::Invocation {
            invocation,
            function: self.settings.key.clone(),
            environment: environment.map(|environment| environment.seat.identity().0),
            process: environment.map(|environment| environment.seat.identity().1),
            init: environment.and_then(|environment| environment.first_init).map(Into::into),
            waited: arrived.elapsed().into(),
            request: request_id.to_string(),
            event: Text::event(event),
        }
    }

    async fn take_idle(&self) -> Option<Environment> {
        let mut changes = self.pool.subscribe();
        let take = async {
            loop {
                let (mut taken, mut returning) = (None, 0);
                self.pool.send_if_modified(|pool| {
                    taken = pool.idle.pop();
                    returning = pool.returning;
                    false
                });
                if taken.is_some() || returning == 0 || changes.changed().await.is_err() {
                    return taken;
                }
            }
        };
        tokio::time::timeout(POLL_TIMEOUT, take).await.unwrap_or_default()
    }

    /// Retires environments that have been idle for too long.
    async fn retire(self: Arc<Self>) {
        let mut changes = self.pool.subscribe();
        let timeout = self.settings.shared.idle_environment_timeout;
        loop {
            let oldest = changes.borrow_and_update().idle.iter().map(|environment| environment.idle_since).min();
            let retiring = async {
                match oldest {
                    Some(since) => tokio::time::sleep_until(since + timeout).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = retiring => self.pool.send_modify(|pool| {
                    let now = Instant::now();
                    pool.idle.retain(|environment| environment.idle_since + timeout > now);
                }),
            }
        }
    }

    fn report(&self, error: &FunctionError, request_id: Uuid) {
        terminal::line(&self.settings.key, &format!("{error} (request {request_id})"));
        Hint::of_failure(&self.settings, error);
    }
}

/// Makes the fact that an invocation has ended.
fn responds(invocation: u64, begin: Instant, response: &Result<Bytes, FunctionError>) -> inspector::Event {
    inspector::Event::Response {
        invocation,
        ms: begin.elapsed().into(),
        text: response.as_ref().ok().map(Text::new),
        error: response.as_ref().err().map(ToString::to_string),
    }
}

/// Runs `work` until it is done or the function is shut down.
async fn until_stopped(mut stop: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = work => {}
    }
}
