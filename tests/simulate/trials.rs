//! What `cargo test` runs: the protocol holds, every planted bug is found, and a seed is the same run twice.

use std::process::ExitCode;
use std::rc::Rc;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::explore::{self, Failure, Summary};
use crate::invariants::Violation;
use crate::members;
use crate::run;
use crate::settings::{BUGS, Bug, HANDLER_BUGS, Settings};

/// How many seeds the protocol must withstand here. `make simulate` runs as many as one likes.
const SEEDS: u64 = 2_000;

/// How many seeds the real handlers must withstand here. A seed takes 60 ms of CPU time, so CI runs more with
/// `make simulate`, where the compiler optimises them.
const HANDLER_SEEDS: u64 = 100;

/// Within how many seeds a planted bug must be found. It ends at the first.
const MAX_SEEDS: u64 = 10_000;

pub fn run(arguments: Vec<String>) -> ExitCode {
    let mut arguments = Arguments::from_iter(std::iter::once("simulate".to_owned()).chain(arguments));
    // Each trial uses every processor.
    arguments.test_threads.get_or_insert(1);
    let mut trials = vec![
        Trial::test("simulate::the protocol holds", || holds(SEEDS, &Settings::short(), "").map(drop)),
        Trial::test("simulate::the protocol holds at the times of a deployment", real_times),
        Trial::test("simulate::without faults nobody is told that something is missing", without_faults),
        Trial::test("simulate::a seed is the same run twice", || same_run(20, &Settings::short())),
        Trial::test("simulate::the handlers hold", || {
            holds(HANDLER_SEEDS, &Settings::handlers(), "--handlers").map(drop)
        }),
        Trial::test("simulate::a seed is the same run of the handlers twice", || same_run(5, &Settings::handlers())),
    ];
    let day = members::Size { users: 30, devices: 3, rooms: 3, hours: 4, kills: 0.0 };
    trials.push(Trial::test("simulate::members are right when every $disconnect is lost", move || {
        report(members::run_day(day, 1))
    }));
    let killed = members::Size { kills: 0.2, ..day };
    trials.push(Trial::test("simulate::members are right when presence is killed", move || {
        report(members::run_day(killed, 2))
    }));
    trials.push(Trial::test("simulate::members who reconnect at once", || report(members::run_storm(100, 1))));
    for (bug, name, _) in HANDLER_BUGS {
        trials.push(Trial::test(format!("simulate::the planted bug {name} around the handlers is found"), move || {
            is_found(bug)
        }));
    }
    for (bug, name, _) in BUGS {
        trials.push(if bug.is_harmless() {
            let arguments = format!("--bug {name}");
            let trial = move || holds(SEEDS / 4, &Settings::planted(bug), &arguments).map(drop);
            Trial::test(format!("simulate::the planted bug {name} breaks nothing"), trial)
        } else {
            Trial::test(format!("simulate::the planted bug {name} is found"), move || is_found(bug))
        });
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn report(report: Result<String, String>) -> Result<(), Failed> {
    report.map(|figures| println!("{figures}")).map_err(Failed::from)
}

/// `arguments` are those with which `make simulate` has the same settings.
fn holds(seeds: u64, settings: &Settings, arguments: &str) -> Result<Summary, Failed> {
    let summary = explore::run_all(0..seeds, settings, true);
    match summary.failures.first() {
        None => Ok(summary),
        Some(Failure { seed, violation, .. }) => {
            let Violation { invariant, text } = violation;
            Err(format!("{invariant}: {text}. `make simulate SEED={seed} ARGS='{arguments}'` shows it.").into())
        }
    }
}

fn real_times() -> Result<(), Failed> {
    let summary = holds(200, &Settings::real(24, 0.02), "--real")?;
    let resumes = summary.counts.resumes;
    if resumes.all < 1_000 || resumes.needless * 1_000 > resumes.all {
        return Err(format!("too often told without reason that something is missing: {resumes:?}").into());
    }
    Ok(())
}

fn without_faults() -> Result<(), Failed> {
    let summary = holds(SEEDS / 2, &Settings::short().without_faults(), "--without-faults")?;
    let counts = summary.counts;
    if counts.resumes.all == 0 || counts.resumes.needless + counts.questions.needless > 0 {
        return Err(format!("told without reason that something is missing: {counts:?}").into());
    }
    Ok(())
}

fn is_found(bug: Bug) -> Result<(), Failed> {
    let summary = explore::run_all(0..MAX_SEEDS, &Settings::planted(bug), true);
    if summary.failures.is_empty() { Err("no invariant noticed".into()) } else { Ok(()) }
}

fn same_run(seeds: u64, settings: &Settings) -> Result<(), Failed> {
    let settings = Rc::new(settings.clone());
    for seed in 0..seeds {
        let one = run::run(seed, &settings, Vec::new(), false);
        let two = run::run(seed, &settings, Vec::new(), true);
        if one.hash != two.hash
            || one.counts != two.counts
            || one.hash == run::run(seed + 1, &settings, Vec::new(), false).hash
        {
            return Err(format!("seed {seed}: {:016x} and {:016x}", one.hash, two.hash).into());
        }
    }
    Ok(())
}
