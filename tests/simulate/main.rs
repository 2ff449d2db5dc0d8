//! The simulation: the protocol of reliable topics under random schedules, kills and lost answers, in virtual time.
//!
//! It has two subjects under one checker. The first is a model: the protocol that the functions are to follow, call by call,
//! on tables that behave as DynamoDB promises and no better. The second is the functions' real handlers, in [`handlers`].
//! `make simulate` runs many seeds or shows one; `cargo test` runs a few thousand, and finds every planted bug. One seed is
//! one run, the same on every machine.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the report is the program's output")]
#![expect(unreachable_pub, reason = "in a test binary nothing is reachable, and `pub` is what its modules share")]

mod calls;
mod client;
mod explore;
mod faults;
mod frame;
mod handlers;
mod invariants;
mod lambda;
mod members;
mod protocol;
mod random;
mod run;
mod sender;
mod settings;
mod table;
mod trials;
mod world;

use std::process::ExitCode;

use settings::{BUGS, HANDLER_BUGS, Settings};

const USAGE: &str = "\
make simulate                               runs seeds 0 to 9,999
make simulate SEEDS=100000                  runs seeds 0 to 99,999
make simulate SEED=7                        runs seed 7 and prints each step
make simulate SEED=7 SEEDS=1000             runs seeds 7 to 1,006
make simulate ARGS='--bug no-binding'       breaks a rule of the protocol
make simulate ARGS='--set kill=0.1'         changes a number
make simulate ARGS=--real                   times and rates as on AWS, messages kept for 24 h
make simulate ARGS=--without-faults         nothing goes wrong
make simulate ARGS='--bug no-binding --shortest --set senders=1 --set clients=1'
                                            shows the shortest run that breaks an invariant, not the first
make simulate HANDLERS=1                    runs the functions' real handlers; most of the rest works as above
make simulate ARGS='--members 1000'         1,000 members who reconnect at once, and a day of 1,000 users in topics with presence
make simulate ARGS=--measure                how often clients are told that they may have missed something";

/// How many seeds are run if nothing is said.
const SEEDS: u64 = 10_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((_, arguments)) = arguments.split_first().filter(|(first, _)| *first == "--run") else {
        return trials::run(arguments);
    };
    if arguments.iter().any(|argument| argument == "--help") {
        let bugs: Vec<_> =
            BUGS.iter().chain(&HANDLER_BUGS).map(|(_, name, text)| format!("  {name}: {text}")).collect();
        let numbers = Settings::short().names();
        println!("{USAGE}\n\nbugs:\n{}\n\nnumbers and their defaults:\n{numbers}", bugs.join("\n"));
        return ExitCode::SUCCESS;
    }
    match Request::parse(arguments) {
        Ok(request) => request.serve(),
        Err(mistake) => {
            eprintln!("{mistake}; `make simulate ARGS=--help` explains");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
struct Request {
    settings: Settings,
    first: Option<u64>,
    seeds: Option<u64>,
    /// Look for the shortest failing run instead of the first.
    shortest: bool,
    measure: bool,
    members: Option<usize>,
}

impl Request {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let settings = Settings::short();
        let mut request = Self { settings, first: None, seeds: None, shortest: false, measure: false, members: None };
        let mut assignments = Vec::new();
        let arguments_name_handlers = arguments.iter().any(|argument| argument == "--handlers");
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} lacks its value"));
            match argument.as_str() {
                "--seed" => request.first = Some(number(value()?)?),
                "--seeds" => request.seeds = Some(number(value()?)?),
                "--bug" => request.settings = Settings::planted(value()?.parse()?),
                "--set" => assignments.push(value()?),
                "--handlers" => request.settings = Settings::handlers(),
                "--real" => request.settings = Settings::real(24, 0.02),
                "--without-faults" => request.settings = request.settings.without_faults(),
                "--shortest" => request.shortest = true,
                "--measure" => request.measure = true,
                "--members" => request.members = usize::try_from(number(value()?)?).ok(),
                _ => return Err(format!("{argument} is not known")),
            }
        }
        if arguments_name_handlers && !request.settings.handlers {
            return Err("this bug or setting is one of the model".to_owned());
        }
        for assignment in assignments {
            request.settings.set(assignment)?;
        }
        Ok(request)
    }

    fn serve(self) -> ExitCode {
        let Self { settings, first, seeds, shortest, measure, members } = self;
        if let Some(users) = members {
            let size = members::Size { users, devices: 3, rooms: users.div_ceil(20), hours: 24, kills: 0.0 };
            let seed = first.unwrap_or(1);
            let show = |report: Result<String, String>| {
                println!("{}", report.as_ref().unwrap_or_else(|mistake| mistake));
                report.is_ok()
            };
            // A day of 1,000 users takes a quarter of an hour.
            let is_right = show(members::run_storm(users, seed)) & show(members::run_day(size, seed));
            return if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        if measure {
            explore::measure(seeds.unwrap_or(1_000), &settings);
            return ExitCode::SUCCESS;
        }
        if let (Some(seed), None) = (first, seeds) {
            return explore::show(seed, settings);
        }
        let first = first.unwrap_or(0);
        explore::explore(first..first + seeds.unwrap_or(SEEDS), settings, shortest)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("{text} is not a number"))
}
