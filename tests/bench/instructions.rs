//! How many instructions an event costs its function, counted by valgrind. A count does not depend on what else the machine does,
//! so CI compares it with the record beside this file.
//!
//! The function under test is wrapped in a script that starts it under valgrind. It runs twice: once for its first event, once for
//! some more. The difference is the cost of a warm event; the first run has the start of the process, too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use switchboard_tests::stack::{Stack, binaries, root};

use super::{Event, FAST, Room, wrap};

/// These events are counted.
const EVENTS: [Event; 8] = [
    Event::Connect,
    Event::Disconnect,
    Event::Ping,
    Event::Subscribe,
    Event::SendMessage,
    Event::MessageToOne,
    Event::KeptAndAcknowledged,
    Event::PutItem,
];

/// How many more events the second run has.
const MORE: usize = 40;

/// An event may cost this many percent more than the record says. Answers come in pieces of different sizes, and timers fire,
/// so two counts of the same binary differ by up to two percent.
const TOLERANCE: u64 = 10;

/// The file beside this one.
const RECORD: &str = "tests/bench/instructions.json";

/// The counts, and what made the code.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Record {
    /// The compiler and the processor's architecture.
    compiler: String,
    /// Instructions of a warm event, by the event's name.
    event: BTreeMap<String, u64>,
    /// Instructions of a process until it has served its first event. The functions that also prepare the test are not in it.
    first: BTreeMap<String, u64>,
}

/// Counts the events with this part in their names, and compares the counts with the record or replaces it.
pub(crate) async fn run(is_recorded: bool, part: &str) -> ExitCode {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("the instructions were not counted: there is no valgrind here");
        return ExitCode::SUCCESS;
    }
    let mut now = Record { compiler: compiler(), event: BTreeMap::new(), first: BTreeMap::new() };
    println!("{:42} {:>14} {:>14}", "instructions", "an event", "the first one");
    for event in EVENTS.into_iter().filter(|event| name(*event).contains(part)) {
        let (first, all) = tokio::join!(count(event, 1), count(event, 1 + MORE));
        let each = all.saturating_sub(first) / MORE as u64;
        now.event.insert(name(event), each);
        let serves_others = matches!(event.binary(), "connect" | "default");
        let first = (!serves_others).then_some(first);
        println!("{:42} {each:>14} {:>14}", name(event), first.map_or(String::new(), |first| first.to_string()));
        now.first.extend(first.map(|first| (name(event), first)));
    }
    let file = root().join(RECORD);
    if is_recorded {
        fs::write(&file, serde_json::to_string_pretty(&now).unwrap() + "\n").unwrap();
        return ExitCode::SUCCESS;
    }
    let before: Record = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    if before.compiler != now.compiler {
        println!("the record is of {}, and this is {}: they are not compared", before.compiler, now.compiler);
        return ExitCode::SUCCESS;
    }
    let dearer: Vec<_> = [(&before.event, &now.event), (&before.first, &now.first)]
        .into_iter()
        .flat_map(|(before, now)| {
            now.iter().map(|(name, count)| (name, *count, before.get(name).copied().unwrap_or(0)))
        })
        .filter(|(_, count, before)| *count > before * (100 + TOLERANCE) / 100)
        .collect();
    for (name, count, before) in &dearer {
        println!("{name}: {count} instructions, and the record has {before}");
    }
    if dearer.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("if the new cost is worth it, record it: make instructions RECORD=1");
    ExitCode::FAILURE
}

fn name(event: Event) -> String {
    match event {
        Event::KeptAndAcknowledged => "message that is kept, acknowledged".to_owned(),
        _ => event.name(),
    }
}

fn compiler() -> String {
    let version = Command::new("rustc").arg("--version").output().unwrap();
    format!("{} on {}", String::from_utf8(version.stdout).unwrap().trim(), std::env::consts::ARCH)
}

/// The instructions of the only process of a function, from its start until it has served so many events of this kind.
async fn count(event: Event, times: usize) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let of = folder.path().display();
    wrap(folder.path(), &binaries(), event.binary(), |function| {
        let valgrind = format!("valgrind --quiet --tool=callgrind --callgrind-out-file={of}/counts");
        format!("#!/bin/sh\necho $$ > {of}/pid\nexec {valgrind} {}\n", function.display())
    });
    let path = folder.path().to_str().unwrap();
    let stack = Stack::with(&[&["--binaries", path, "--max-environments", "1"][..], &FAST].concat()).await;
    let mut room = Room::open(&stack, 0).await;
    if event == Event::Disconnect {
        for _ in 0..times {
            room.happens(Event::Connect).await;
        }
    }
    room.repeat(event, times).await;
    let process = fs::read_to_string(folder.path().join("pid")).unwrap();
    // valgrind writes its counts when a signal ends the process.
    assert!(Command::new("kill").args(["-TERM", process.trim()]).status().unwrap().success());
    total(&folder.path().join("counts"), process.trim()).await
}

/// The number in the line `totals: 123` of valgrind's file, once valgrind has written it.
async fn total(file: &Path, process: &str) -> u64 {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        // It is the last line.
        if let Some(count) = text.lines().find_map(|line| line.strip_prefix("totals: ")) {
            return count.trim().parse().unwrap();
        }
        assert!(tokio::time::Instant::now() < deadline, "valgrind wrote no counts");
        // The stack freezes the process between events, perhaps only now, and a frozen process does not end. It may also be gone.
        let _ = Command::new("kill").args(["-CONT", process]).stderr(Stdio::null()).status();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
