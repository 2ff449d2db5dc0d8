//! The log of a function: lines of JSON on the standard output, with one exception.
//!
//! An event that goes well writes nothing, because log lines are paid for by the byte, and there are millions of such events.
//! Its [details](DETAIL) wait in memory. The first line of the level ERROR writes them in front of itself, so a fault is
//! complete. They are forgotten when the event ends. An execution environment may serve several events at once, and each has its own
//! details. One event in `LOG_ONE_IN` writes them at once, and at the level DEBUG each one does.
//!
//! Details have the level INFO. Lambda drops lines below the level of the function, and it would drop those of the level DEBUG
//! also when they come with a fault.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::task::{Context, Poll};

use lambda_runtime::tracing::level_filters::LevelFilter;
use lambda_runtime::tracing::subscriber::filter::Targets;
use lambda_runtime::tracing::subscriber::fmt::{self, MakeWriter};
use lambda_runtime::tracing::subscriber::{layer::SubscriberExt, registry, util::SubscriberInitExt};
use lambda_runtime::tracing::{self, Level, Metadata, error, warn};
use lambda_runtime::{LambdaInvocation, Service, tower};
use tokio::task::futures::TaskLocalFuture;

use crate::Error;
use crate::config::variable;

/// The target of lines about an event that nobody needs if it goes well: `info!(target: DETAIL, …)`.
pub const DETAIL: &str = "detail";

/// The details of one event take at most this much memory. The oldest ones go first.
const MAX_BYTES: usize = 16 * 1024;

tokio::task_local! {
    /// The details of the event that is being served. Outside of an event there are none.
    static DETAILS: RefCell<Details>;
}

#[derive(Default)]
pub(crate) struct Details {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether they go to the log at once.
    are_written: bool,
}

impl Details {
    /// Those of a new event. One in `one_in` writes them at once; zero means that none does.
    fn new(one_in: u32) -> Self {
        let is_chosen = one_in > 0 && fastrand::u32(..one_in) == 0;
        Self { are_written: is_chosen || tracing::enabled!(Level::DEBUG), ..Self::default() }
    }

    fn keep(&mut self, line: &[u8]) {
        self.bytes += line.len();
        self.lines.push_back(line.to_vec());
        while self.bytes > MAX_BYTES {
            self.bytes -= self.lines.pop_front().map_or(self.bytes, |line| line.len());
        }
    }

    /// Writes what is there, and lets what follows go to the log at once.
    fn write(&mut self, log: &mut impl Write) -> io::Result<()> {
        self.are_written = true;
        self.bytes = 0;
        self.lines.drain(..).try_for_each(|line| log.write_all(&line))
    }
}

/// Starts the log. Every `main` does this first, so that a wrong configuration is logged as well.
///
/// `lambda_runtime` could do it, but its filter also understands spans and fields. We have none, and the regular expressions
/// behind them make each binary 0.5 MB larger.
pub fn start() {
    let rust_log = variable("RUST_LOG");
    let filter = rust_log.as_deref().map(str::parse::<Targets>);
    let is_wrong = matches!(filter, Some(Err(_)));
    let filter = filter.and_then(Result::ok).unwrap_or_else(|| {
        let level = variable("AWS_LAMBDA_LOG_LEVEL").and_then(|level| level.parse().ok());
        Targets::new().with_default(level.unwrap_or(LevelFilter::INFO))
    });
    let lines = fmt::layer().with_target(false).without_time().with_writer(Writers);
    let is_json = variable("AWS_LAMBDA_LOG_FORMAT").is_some_and(|format| format.eq_ignore_ascii_case("json"));
    // Lambda asks for JSON, and reads the level of each line from it.
    if is_json {
        registry().with(filter).with(lines.json()).init();
    } else {
        registry().with(filter).with(lines).init();
    }
    if is_wrong {
        warn!(RUST_LOG = rust_log, "RUST_LOG is no filter, such as switchboard_core=debug,info: it does not count");
    }
    if tracing::enabled!(Level::TRACE) {
        warn!("the log level is TRACE: the log shows whole events, with bodies and tokens");
    }
}

/// Logs why a function cannot start. Lambda itself only sees that the process ends.
pub fn cannot_start(error: &Error) {
    error!(outcome = error.error_type(), %error, "the function cannot start");
}

/// Gives each event its own details. The layer is around the whole runtime, which itself logs panics and events that it cannot read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    /// One event in so many writes its details at once; zero means that none does.
    pub(crate) one_in: u32,
}

impl<S> tower::Layer<S> for Layer {
    type Service = Logged<S>;

    fn layer(&self, service: S) -> Logged<S> {
        Logged { service, one_in: self.one_in }
    }
}

/// A service whose events have details.
#[derive(Debug, Clone)]
pub(crate) struct Logged<S> {
    service: S,
    one_in: u32,
}

impl<S: Service<LambdaInvocation>> Service<LambdaInvocation> for Logged<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = TaskLocalFuture<RefCell<Details>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, event: LambdaInvocation) -> Self::Future {
        DETAILS.scope(RefCell::new(Details::new(self.one_in)), self.service.call(event))
    }
}

struct Writers;

/// Writes one line.
enum Line {
    Now,
    /// It is written with the next fault.
    Later,
}

impl MakeWriter<'_> for Writers {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line::Now
    }

    fn make_writer_for(&self, line: &Metadata<'_>) -> Line {
        let is_later = DETAILS.try_with(|details| {
            let mut details = details.borrow_mut();
            if *line.level() == Level::ERROR {
                // A log that cannot be written to is no reason to fail an event.
                let _ = details.write(&mut io::stdout().lock());
            }
            line.target() == DETAIL && !details.are_written
        });
        if is_later.unwrap_or(false) { Line::Later } else { Line::Now }
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            Self::Now => io::stdout().lock().write(line),
            Self::Later => {
                // The event that `make_writer_for` has found is still the current one.
                let _ = DETAILS.try_with(|details| details.borrow_mut().keep(line));
                Ok(line.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_details_are_kept_and_written_once() {
        let mut details = Details::default();
        for line in 0..5 {
            details.keep(format!("{line}{}\n", "x".repeat(MAX_BYTES / 3)).as_bytes());
        }
        assert!(details.bytes <= MAX_BYTES, "{}", details.bytes);
        let mut log = Vec::new();
        details.write(&mut log).unwrap();
        let firsts: Vec<_> = String::from_utf8(log).unwrap().lines().map(|line| line[..1].to_owned()).collect();
        assert_eq!(firsts, ["3", "4"]);
        let mut nothing = Vec::new();
        details.write(&mut nothing).unwrap();
        assert_eq!((nothing, details.are_written), (Vec::new(), true));
    }

    #[test]
    fn a_line_that_is_larger_than_everything_is_dropped() {
        let mut details = Details::default();
        details.keep(&vec![b'x'; MAX_BYTES + 1]);
        assert_eq!((details.lines.len(), details.bytes), (0, 0));
    }
}
