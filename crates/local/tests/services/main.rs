//! Services in the shapes that people write. The table in README.md says what each one does here, and `--check` must agree.

use std::path::{Path, PathBuf};
use std::process::Command;

use switchboard_local::check;
use switchboard_local::service::{Reading, Settings};
use switchboard_tests::stack::{binaries, root};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services")
}

/// Returns the rows of the table: the file, whether it starts, what is ignored, and what is refused.
fn rows() -> Vec<[String; 4]> {
    table(0)
}

/// Returns the rows of a table of README.md.
fn table<const CELLS: usize>(number: usize) -> Vec<[String; CELLS]> {
    let text = std::fs::read_to_string(folder().join("README.md")).expect("the tables are there");
    let (_, rows) = text.split("|\n|---").nth(number + 1).and_then(|table| table.split_once('\n')).expect("a table");
    let rows = rows.lines().take_while(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
        cells.try_into().unwrap_or_else(|_| panic!("{line}"))
    })
    .collect()
}

/// Returns the lines of a section of what `--check` says, each without its file and its reason.
fn places(lines: &[String], section: &str) -> String {
    let lines = lines.iter().skip_while(|line| *line != section).skip(1).take_while(|line| line.starts_with("  "));
    let place = |line: &String| {
        let mut parts = line.trim().splitn(3, ": ");
        let file = parts.next().expect("a text has a first part");
        let key = parts.next().filter(|key| !key.contains(' ')).unwrap_or_default();
        let line: String = file.split(':').skip(1).take(1).collect();
        format!("{line} {key}").trim().to_owned()
    };
    lines.map(place).collect::<Vec<_>>().join("; ")
}

#[test]
fn each_service_does_what_the_table_says() {
    let rows = rows();
    assert!(rows.len() >= 80, "{}", rows.len());
    let mut wrong = Vec::new();
    for [file, starts, ignored, refused] in rows {
        let reading = Reading::of(&folder().join(&file), &Settings::default());
        let lines = check::describe(&reading, &[]);
        let does_start = if reading.refused.is_empty() { "yes" } else { "no" };
        let is = [does_start.to_owned(), places(&lines, "ignored:"), places(&lines, "refused:")];
        if is != [starts, ignored, refused] {
            wrong.push(format!("| `{file}` | {} |\n{}", is.join(" | "), lines.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_service_is_in_the_table() {
    let table = rows();
    let mut folders = vec![folder()];
    while let Some(below) = folders.pop() {
        for path in std::fs::read_dir(below).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.strip_prefix(folder()).unwrap().to_string_lossy().into_owned();
            let is_service = name.starts_with(|_: char| !name.contains('/')) || name.contains("/serverless.");
            if path.is_dir() {
                folders.push(path);
            } else if is_service && ![".md", ".mjs", ".rs"].iter().any(|end| name.ends_with(end)) {
                assert!(table.iter().any(|[file, ..]| *file == name), "{name} is not in the table");
            }
        }
    }
}

/// The framework packages each service. Where it disagrees, the second table says so. A service that it refuses and that
/// starts here is at least told what is wrong.
#[test]
fn the_framework_accepts_what_starts_here() {
    let framework = root().join("infra/node_modules/serverless");
    assert!(framework.is_dir(), "run `make infra/node_modules` first (`make test` does)");
    let services: Vec<_> = rows().into_iter().filter(|[file, ..]| !file.starts_with("sam")).collect();
    let mut command = Command::new("node");
    command.arg(folder().join("framework.mjs")).arg(framework).arg(folder());
    let output = command.args(services.iter().map(|[file, ..]| file)).output().expect("Node runs");
    let lines = String::from_utf8(output.stdout).unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(lines.lines().count(), services.len(), "{lines}{log}");

    let mut differs = Vec::new();
    for ([file, starts, ignored, _], line) in services.iter().zip(lines.lines()) {
        let (asked, refusal): (String, Option<String>) = serde_json::from_str(line).unwrap();
        assert_eq!(*file, asked);
        let does_start = starts == "yes";
        if does_start == refusal.is_some() {
            differs.push((file.clone(), refusal.is_none()));
        }
        assert!(!does_start || refusal.is_none() || !ignored.is_empty(), "nothing is told of {file}: {refusal:?}");
    }
    let known = table(1).into_iter().map(|[file, says, _]| (file, says == "accepts"));
    assert_eq!(differs, known.collect::<Vec<_>>(), "{lines}");
}

/// Returns the texts of a list in the framework's schema.
fn names_of_the_framework(key: &str) -> Vec<String> {
    let provider = root().join("infra/node_modules/serverless/lib/plugins/aws/provider.js");
    let text = std::fs::read_to_string(provider).expect("run `make infra/node_modules` first (`make test` does)");
    let (_, names) = text.split_once(&format!(" {key}: {{\n")).expect("the schema has the key");
    let (names, _) = names.split_once(']').expect("the list has an end");
    names.split('\'').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_regions_and_runtimes_of_the_framework_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serverless.yml");
    let ignored = |lines: String| {
        let functions = "functions: {chat: {handler: chat, events: [websocket: $connect]}}";
        std::fs::write(&path, format!("service: finch\nprovider:\n  name: aws\n{lines}\n{functions}\n")).unwrap();
        Reading::of(&path, &Settings::default()).ignored.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for (key, schema) in [("region", "region"), ("runtime", "awsLambdaRuntime")] {
        let names = names_of_the_framework(schema);
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert_eq!(ignored(format!("  {key}: {name}")), [""; 0]);
            assert_eq!(ignored(format!("  {key}: {name}x")).len(), 1);
        }
    }
}

#[test]
fn the_exit_code_says_whether_something_is_refused() {
    for (file, expected) in [("event-http.yml", 0), ("several-wrong-things.yml", 1)] {
        let mut command = Command::new(binaries().join("switchboard-local"));
        let output = command.arg("--check").arg("--config").arg(folder().join(file)).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(expected), "{text}");
        assert!(text.starts_with("finch, stage dev, region us-east-1\nruns:\n  chat: "), "{text}");
    }
}
