//! The conformance suite: what clients, functions and callers of `@connections` see of a WebSocket API. It has a row for
//! each behaviour, and tries it on real processes, from outside.
//!
//! Each row is a trial. Its name has the row's id, a mark for how well AWS's behaviour is known, and the claim.
//! `TARGET=wss://…/dev`, an environment variable or an argument, points the rows that work anywhere at an endpoint that
//! runs `tests/fixture/conformance.yml`. It deploys nothing. Without `TARGET` the rows run on stacks of our own. The
//! scoreboard at the end lists what each row has shown, and why a row was skipped.

#![expect(clippy::unwrap_used, reason = "a helper that fails should fail its row, like an assertion in the row itself")]
#![expect(clippy::print_stdout, reason = "the scoreboard is the program's output")]
#![expect(unreachable_pub, reason = "in a test binary nothing is reachable, and `pub` is what its modules share")]

mod api;
mod authorizers;
mod bad_input;
mod clients;
mod endpoint;
mod events;
mod functions;
mod handshake;
mod management;
mod order;
mod proof;
mod quotas;
mod responses;
mod routing;
mod sources;
mod table;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use api::Api;
use endpoint::Endpoint;
use table::{Check, Row, Seen};

/// How long a row may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Rows mostly wait, so more of them run at a time than there are processors.
const THREADS: usize = 12;

/// What all rows share.
struct Suite {
    rows: Vec<Row>,
    /// Somebody else's endpoint.
    target: Option<Endpoint>,
    /// The API of all rows that need none of their own.
    shared: OnceCell<Arc<Api>>,
    seen: Mutex<BTreeMap<&'static str, Seen>>,
    runtime: Runtime,
}

impl Suite {
    /// Tries a row.
    fn attempt(self: &Arc<Self>, row: &Row) -> Seen {
        let check = match &row.check {
            Check::Skipped(why) => return Seen::Skipped((*why).to_owned()),
            Check::Ours(why, _) if self.target.is_some() => return Seen::Skipped((*why).to_owned()),
            Check::Proved(_) if self.target.is_some() => {
                return Seen::Skipped("seen from inside our stack only".to_owned());
            }
            Check::Anywhere(_) if self.target.is_some() && row.is_unresolved() => {
                return Seen::Skipped("AWS's behaviour is unknown, and the row checks only our flag".to_owned());
            }
            Check::Proved(tests) => {
                let tests = *tests;
                let prove = async move {
                    for test in tests {
                        proof::run(test).await;
                    }
                };
                return self.outcome(row, Seen::Proved(tests), prove);
            }
            Check::Anywhere(check) | Check::Ours(_, check) => check.clone(),
        };
        let suite = self.clone();
        let check = async move {
            let api = suite.shared.get_or_init(|| suite.share()).await.clone();
            check(api).await;
        };
        self.outcome(row, Seen::Expected, check)
    }

    /// What a row has shown: `passed`, unless its check panics.
    fn outcome(&self, row: &Row, passed: Seen, check: impl Future<Output = ()> + Send + 'static) -> Seen {
        self.runtime.block_on(async {
            let attempt = tokio::spawn(api::ROW.scope(row.id, check));
            match tokio::time::timeout(PATIENCE, attempt).await {
                Ok(Ok(())) => passed,
                Ok(Err(panic)) if self.target.is_some() && row.is_inferred() => Seen::Observed(message(panic)),
                Ok(Err(panic)) => Seen::Failed(message(panic)),
                Err(_) => Seen::Failed(format!("it took more than {PATIENCE:?}")),
            }
        })
    }

    async fn share(&self) -> Arc<Api> {
        Arc::new(match &self.target {
            Some(endpoint) => Api::elsewhere(endpoint.clone()),
            None => Api::ours(&[]).await,
        })
    }
}

fn main() {
    let (target, arguments) = arguments();
    if let [_, command, id, endpoint @ ..] = arguments.as_slice()
        && command == management::POST
    {
        let endpoint = endpoint.first().map(String::as_str);
        return Runtime::new().unwrap().block_on(management::post_as_configured(id, endpoint)).unwrap();
    }
    let mut arguments = Arguments::from_iter(arguments);
    arguments.test_threads.get_or_insert(THREADS);
    let groups = [
        handshake::rows(),
        events::rows(),
        routing::rows(),
        responses::rows(),
        management::rows(),
        quotas::rows(),
        authorizers::rows(),
        functions::rows(),
        order::rows(),
        clients::rows(),
        bad_input::rows(),
    ];
    let mut suite = Arc::new(Suite {
        rows: groups.into_iter().flatten().collect(),
        target,
        shared: OnceCell::new(),
        seen: Mutex::default(),
        runtime: Runtime::new().unwrap(),
    });
    let mut trials: Vec<_> = (0..suite.rows.len()).map(|index| trial(&suite, index, &arguments)).collect();
    let explained = suite.clone();
    let compare = move || sources::compare(&explained.rows).map_err(Failed::from);
    trials.push(Trial::test("SOURCES.md explains every source, and no other", compare));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if arguments.list {
        return;
    }
    // A row that took too long still runs and holds the shared stack, which then does not end. The run has failed anyway.
    let api = Arc::get_mut(&mut suite).and_then(|suite| suite.shared.take()).and_then(Arc::into_inner);
    let refuted = api.map(|api| suite.runtime.block_on(api.finish()).1).unwrap_or_default();
    let is_refuted = !refuted.is_empty();
    let mut seen = suite.seen.lock().unwrap_or_else(PoisonError::into_inner);
    for (row, what) in refuted {
        println!("{row} FAILED: {what}");
        seen.insert(row, Seen::Failed(what));
    }
    let target = suite.target.as_ref().map_or_else(|| "our own stack".to_owned(), Endpoint::ws);
    print!("{}", table::scoreboard(&target, &suite.rows, &seen));
    conclusion.exit_if_failed();
    if is_refuted {
        std::process::exit(101);
    }
}

/// The trial of a row. A row that is skipped is `ignored`, and the scoreboard has the reason.
fn trial(suite: &Arc<Suite>, index: usize, arguments: &Arguments) -> Trial {
    let row = &suite.rows[index];
    let is_skipped =
        matches!(row.check, Check::Skipped(_)) || (suite.target.is_some() && !matches!(row.check, Check::Anywhere(_)));
    let (name, suite) = (row.name(), suite.clone());
    if is_skipped && arguments.filter.as_ref().is_none_or(|filter| name.contains(filter)) {
        suite.seen.lock().unwrap().insert(row.id, suite.attempt(row));
    }
    let run = move || {
        let row = &suite.rows[index];
        let seen = suite.attempt(row);
        suite.seen.lock().unwrap().insert(row.id, seen.clone());
        match seen {
            Seen::Failed(what) => Err(Failed::from(format!("{what} (source: {})", row.source))),
            _ => Ok(()),
        }
    };
    Trial::test(name, run).with_ignored_flag(is_skipped)
}

/// The target, and the arguments for the test runner.
#[expect(clippy::disallowed_methods, reason = "what to test is said where make says it")]
fn arguments() -> (Option<Endpoint>, Vec<String>) {
    let (targets, arguments): (Vec<_>, Vec<_>) = std::env::args().partition(|it| it.starts_with("TARGET="));
    let argument = targets.last().map(|it| it["TARGET=".len()..].to_owned());
    let target = argument.or_else(|| std::env::var("TARGET").ok()).filter(|it| !it.is_empty());
    let parse = |url: String| Endpoint::parse(&url).unwrap_or_else(|| panic!("TARGET={url} is not ws(s)://host/stage"));
    (target.map(parse), arguments)
}

fn message(panic: tokio::task::JoinError) -> String {
    let payload = panic.into_panic();
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
