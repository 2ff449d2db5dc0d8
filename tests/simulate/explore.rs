//! Runs many seeds, and shows one.

use std::ops::Range;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::invariants::{Answers, Counts, HandlerCounts, Violation};
use crate::run::{self, Outcome};
use crate::settings::Settings;

/// Most pings find nothing. Their lines are shown only if they contain one of these.
const TELLING: [&str; 8] =
    ["behind", "is killed", "out of time", "times out", "unidentified", "DELETE", "410", "fails"];

/// How many seeds a thread takes at a time.
const CHUNK: u64 = 64;

/// A function runs on the main thread of its process, which has 8 MB of stack on Linux. Debug builds use a quarter of that.
const STACK: usize = 8 << 20;

/// A seed that broke something.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub violation: Violation,
    pub steps: u64,
}

/// What many seeds have shown.
#[derive(Debug, Default)]
pub struct Summary {
    pub seeds: u64,
    pub counts: Counts,
    /// The failures are in the order of their seeds.
    pub failures: Vec<Failure>,
}

/// Runs seeds on all processors. With `until_found` it stops after the first that fails.
pub fn run_all(seeds: Range<u64>, settings: &Settings, until_found: bool) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let end = AtomicU64::new(seeds.end);
    let summary = Mutex::new(Summary::default());
    let work = || {
        let settings = Rc::new(settings.clone());
        let mut mine = Summary::default();
        loop {
            let chunk = next.fetch_add(CHUNK, Ordering::Relaxed);
            if chunk >= end.load(Ordering::Relaxed) {
                break;
            }
            for seed in chunk..(chunk + CHUNK).min(seeds.end) {
                let Outcome { violation, counts, steps, .. } = run::run(seed, &settings, Vec::new(), false);
                mine.seeds += 1;
                mine.counts.add(&counts);
                if let Some(violation) = violation {
                    mine.failures.push(Failure { seed, violation, steps });
                    if until_found {
                        // Chunks before this one still run, so the first seed is found even if its thread is slow.
                        end.fetch_min(chunk, Ordering::Relaxed);
                        break;
                    }
                }
            }
        }
        if let Ok(mut summary) = summary.lock() {
            summary.seeds += mine.seeds;
            summary.counts.add(&mine.counts);
            summary.failures.extend(mine.failures);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).expect("the machine has a thread");
        }
    });
    let mut summary = summary.into_inner().unwrap_or_default();
    summary.failures.sort_by_key(|failure| failure.seed);
    summary
}

/// Runs seeds, reports, and shows the first that fails, or the shortest.
pub fn explore(seeds: Range<u64>, settings: Settings, shortest: bool) -> ExitCode {
    let began = Instant::now();
    let summary = run_all(seeds, &settings, false);
    let seconds = began.elapsed().as_secs_f64();
    let Summary { seeds, counts, failures } = &summary;
    let Counts { calls, faults, acknowledged, applied, epochs, resumes, questions, handlers } = counts;
    println!(
        "{seeds} seeds in {seconds:.1} s ({:.0} a second): {calls} calls, {faults} faults, {acknowledged} messages \
         acknowledged, {applied} numbers applied by clients, {epochs} epochs",
        *seeds as f64 / seconds
    );
    print_answers("resumed", *resumes);
    print_answers("asked because of a gap", *questions);
    if settings.handlers {
        let HandlerCounts { unsubscribed, overtaken, several, newest, queried, broadcast } = handlers;
        println!(
            "{unsubscribed} times a client unsubscribed, and {overtaken} times its frames overtook each other; \
             {several} acks of several messages, {newest} subscriptions with `last`, {queried} queries, \
             {broadcast} posts of what was said to everybody"
        );
    }
    println!("{} seeds broke an invariant", failures.len());
    let mut invariants: Vec<_> = failures.iter().map(|failure| failure.violation.invariant).collect();
    invariants.sort();
    invariants.dedup();
    for invariant in invariants {
        let of_it: Vec<_> = failures.iter().filter(|failure| failure.violation.invariant == invariant).collect();
        let seeds: Vec<_> = of_it.iter().take(5).map(|failure| failure.seed.to_string()).collect();
        println!("  {} x {invariant} (seeds {})", of_it.len(), seeds.join(", "));
    }
    let chosen = if shortest { failures.iter().min_by_key(|failure| failure.steps) } else { failures.first() };
    match chosen {
        None => ExitCode::SUCCESS,
        Some(failure) => show(failure.seed, settings),
    }
}

fn print_answers(what: &str, answers: Answers) {
    let Answers { all, lost, needless } = answers;
    let percent = |part: u64| 100.0 * part as f64 / (all.max(1)) as f64;
    println!(
        "{all} times a client {what}: recovered {:.2} %, not recovered {:.2} %, and {:.3} % although nothing was missing",
        percent(all - lost),
        percent(lost - needless),
        percent(needless)
    );
}

/// Runs one seed and prints each step. If it fails, faults that it can fail without are left out first.
pub fn show(seed: u64, settings: Settings) -> ExitCode {
    let settings = Rc::new(settings);
    let whole = run::run(seed, &settings, Vec::new(), true);
    let hash = whole.hash;
    let (outcome, left_out) = shrink(seed, &settings, &whole).unwrap_or((whole, 0));
    println!("\nseed {seed}{}", if left_out > 0 { format!(", {left_out} faults left out") } else { String::new() });
    let dull = |line: &&String| line.contains("ms  ping ") && !TELLING.iter().any(|text| line.contains(text));
    for line in outcome.trace.iter().filter(|line| !dull(line)) {
        println!("{line}");
    }
    println!("seed {seed}: trace hash {hash:016x}, {} calls are shown here without dull pings", outcome.counts.calls);
    match outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("BROKEN {}\n       {}", violation.invariant, violation.text);
            ExitCode::FAILURE
        }
    }
}

/// Leaves out one fault after the other, as long as the same invariant breaks.
fn shrink(seed: u64, settings: &Rc<Settings>, whole: &Outcome) -> Option<(Outcome, usize)> {
    let invariant = whole.violation.as_ref()?.invariant;
    let mut left_out = Vec::new();
    let mut faults = whole.counts.faults;
    let mut fault = 1;
    while fault <= faults {
        let mut fewer = left_out.clone();
        fewer.push(fault);
        let outcome = run::run(seed, settings, fewer.clone(), false);
        if outcome.violation.is_some_and(|violation| violation.invariant == invariant) {
            left_out = fewer;
            faults = outcome.counts.faults;
        }
        fault += 1;
    }
    let left = left_out.len();
    Some((run::run(seed, settings, left_out, true), left))
}

/// How often `recovered` is false although nothing was missing, at the model's times and at those of a deployment.
pub fn measure(seeds: u64, short: &Settings) {
    println!("{:48} {:>9} {:>12} {:>12} {:>24}", "", "resumes", "recovered", "missed some", "told so without reason");
    let mut rows = vec![("the model's times".to_owned(), short.clone())];
    for (hours, topic) in [(1, "busy"), (24, "busy"), (72, "busy"), (24, "quiet")] {
        for (rarity, text) in [(1.0, "5 %"), (0.02, "0.1 %"), (0.0002, "0.001 %")] {
            let mut settings = Settings::real(hours, rarity);
            settings.bug = short.bug;
            if topic == "quiet" {
                settings.gap = (3_600_000, 96 * 3_600_000);
                settings.messages = 10;
                settings.events = 3;
            }
            rows.push((format!("{topic}, kept {hours} h, killed at {text} of the calls"), settings));
        }
    }
    for (name, settings) in rows {
        let summary = run_all(0..seeds, &settings, false);
        let Answers { all, lost, needless } = summary.counts.resumes;
        let percent = |part: u64| 100.0 * part as f64 / (all.max(1)) as f64;
        println!(
            "{name:48} {all:>9} {:>10.3} % {:>10.3} % {:>22.4} %",
            percent(all - lost),
            percent(lost - needless),
            percent(needless)
        );
        for failure in summary.failures.iter().take(3) {
            println!("  seed {} broke {}: {}", failure.seed, failure.violation.invariant, failure.violation.text);
        }
    }
}
