//! The transcripts of README.md and crates/REFERENCE.md, executed word for word with the real `wscat` and `ws`.
//!
//! Only the port differs: `localhost:3001` in them is this test's own stack.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use aws_sdk_apigatewaymanagement::primitives::Blob;
use serde_json::json;
use switchboard_tests::stack::{PATIENCE, Row, Stack, root, text};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// README.md, then crates/REFERENCE.md.
fn documents() -> String {
    ["README.md", "crates/REFERENCE.md"].map(|name| std::fs::read_to_string(root().join(name)).unwrap()).concat()
}

/// The fenced blocks of the documents in one language.
fn blocks(language: &str) -> Vec<String> {
    blocks_of(&documents(), language)
}

fn blocks_of(document: &str, language: &str) -> Vec<String> {
    let fenced = document.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.strip_prefix(&format!("{language}\n")).map(str::to_owned)).collect()
}

/// A terminal of a transcript.
struct Terminal {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Terminal {
    /// Runs a shell command line in `folder`, with the npm packages of `tests/clients` at hand.
    fn run(command: &str, folder: &Path) -> Self {
        let tools = clients().join("node_modules/.bin");
        assert!(tools.is_dir(), "no npm packages in {}: `make test` installs them", tools.display());
        let path = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(env!("PATH")))).unwrap();
        let mut process = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .current_dir(folder)
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { _process: process, input, output }
    }

    async fn types(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// The next line, without the prompts that wscat has shown before it.
    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await.expect("nothing was shown");
        line.unwrap().expect("the client has ended").trim_start_matches("> ").to_owned()
    }

    /// The next line must be this one, in which each `…` stands for anything.
    async fn shows(&mut self, expected: &str) {
        let line = self.line().await;
        assert!(fits(&line, expected), "expected {expected}\n   found {line}");
    }

    /// Waits until the client receives. Through a pipe wscat does not say that it is connected, and it forgets what was typed
    /// before. It shows what it receives.
    async fn is_ready(&mut self, stack: &Stack, row: &Row) {
        let id = text(row, "connectionId");
        stack.logged(1, &["gateway |", &id, "connected"]).await;
        let post = stack.management().await.post_to_connection().connection_id(id);
        post.data(Blob::new("ready")).send().await.unwrap();
        self.shows("ready").await;
    }
}

/// Whether a line is the expected one, in which each `…` stands for anything but nothing.
fn fits(line: &str, expected: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap()) else { return false };
    let mut parts: Vec<_> = parts.collect();
    let Some(end) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.char_indices().nth(1).and_then(|(second, _)| rest[second..].split_once(part)) {
            Some((_, later)) => rest = later,
            None => return false,
        }
    }
    rest.len() > end.len() && rest.ends_with(end)
}

fn clients() -> PathBuf {
    root().join("tests/clients")
}

/// The transcripts of wscat that contain `word`, or those that do not.
fn transcripts(word: &str, contain: bool) -> Vec<String> {
    let is_one = |block: &String| block.starts_with("$ wscat") && block.contains(word) == contain;
    blocks("console").into_iter().filter(is_one).collect()
}

/// Starts the client of a transcript.
fn open(transcript: &str, stack: &Stack) -> Terminal {
    let command = transcript.lines().next().unwrap().strip_prefix("$ ").unwrap();
    Terminal::run(&command.replace("localhost:3001", &stack.gateway), root())
}

#[tokio::test]
async fn the_wscat_transcript_is_true() {
    let stack = Stack::start().await;
    let transcripts = transcripts("room.", false);
    assert_eq!(transcripts.len(), 2);
    let mut terminals: Vec<Terminal> = Vec::new();
    for transcript in &transcripts {
        let others = stack.rows("connections").await;
        terminals.push(open(transcript, &stack));
        let rows = stack.settled("connections", others.len() + 1).await;
        let row = rows.iter().find(|row| !others.contains(row)).unwrap();
        terminals.last_mut().unwrap().is_ready(&stack, row).await;
    }
    for prefix in ["> ", "< "] {
        let mut lines = 0;
        for (terminal, transcript) in terminals.iter_mut().zip(&transcripts) {
            for line in transcript.lines().filter_map(|line| line.strip_prefix(prefix)) {
                lines += 1;
                match prefix {
                    "> " => terminal.types(line).await,
                    _ => terminal.shows(line).await,
                }
            }
        }
        assert!(lines > 0, "no line with {prefix}");
    }
}

/// Each client leaves before the next one comes. The README has a made-up epoch in the place of the topic's.
#[tokio::test]
async fn the_transcript_of_a_resume_is_true() {
    let stack = Stack::start().await;
    let transcripts = transcripts("room.7", true);
    assert_eq!(transcripts.len(), 3);
    let made_up = "k3f9xq2a";
    let mut epoch = None;
    for transcript in &transcripts {
        let mut terminal = open(transcript, &stack);
        let row = stack.settled("connections", 1).await.remove(0);
        terminal.is_ready(&stack, &row).await;
        for line in transcript.lines().skip(1) {
            if let Some(typed) = line.strip_prefix("> ") {
                terminal.types(&typed.replace(made_up, epoch.as_deref().unwrap_or(made_up))).await;
                continue;
            }
            let shown = terminal.line().await;
            let json: serde_json::Value =
                serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{error}: {shown}"));
            let epoch = epoch.get_or_insert_with(|| json["epoch"].as_str().unwrap().to_owned());
            let expected = line.strip_prefix("< ").unwrap().replace(made_up, epoch);
            assert!(fits(&shown, &expected), "expected {expected}\n   found {shown}");
        }
        drop(terminal);
        stack.settled("connections", 0).await;
    }
}

/// The third part is what the first client shows after the second one has left.
#[tokio::test]
async fn the_transcript_of_who_is_here_is_true() {
    let stack = Stack::start().await;
    let parts: Vec<_> = blocks("console").into_iter().filter(|block| block.contains("room.9")).collect();
    assert_eq!(parts.len(), 3);
    let mut first = None;
    for part in &parts {
        let others = stack.rows("connections").await;
        let is_new = part.starts_with("$ ");
        let mut terminal = if is_new { open(part, &stack) } else { first.take().unwrap() };
        if is_new {
            let rows = stack.settled("connections", others.len() + 1).await;
            terminal.is_ready(&stack, rows.iter().find(|row| !others.contains(row)).unwrap()).await;
        }
        for line in part.lines().skip(usize::from(is_new)) {
            match line.strip_prefix("> ") {
                Some(typed) => terminal.types(typed).await,
                None => terminal.shows(line.strip_prefix("< ").unwrap()).await,
            }
        }
        if first.is_none() {
            first = Some(terminal);
        } else {
            // It stays until the first client has heard of it.
            stack.logged(2, &["presence |", "\"joined\":1"]).await;
        }
    }
}

/// The test needs the AWS CLI. On a machine without it, nothing is tried.
#[tokio::test]
async fn the_commands_of_the_aws_cli_do_what_they_say() {
    if !Command::new("aws").arg("--version").output().await.is_ok_and(|output| output.status.success()) {
        return;
    }
    let stack = Stack::start().await;
    let mut one = stack.connect("?userId=1").await;
    one.ask(json!({"type": "subscribe", "topic": "general", "id": "s"})).await;
    for count in 1..=11 {
        one.ask(json!({"type": "message", "topic": "room.7", "message": count, "id": format!("m{count}")})).await;
    }
    let commands: Vec<_> = blocks("").into_iter().filter(|block| block.starts_with("aws dynamodb ")).collect();
    assert_eq!(commands.len(), 3);
    for command in commands {
        let local = command.replace("localhost:8000", &stack.dynamodb);
        let mut aws = Command::new("sh");
        aws.args(["-c", &local]).env("AWS_DEFAULT_REGION", "us-east-1").env("AWS_DEFAULT_OUTPUT", "json");
        aws.env("AWS_ACCESS_KEY_ID", "local").env("AWS_SECRET_ACCESS_KEY", "local");
        let output = aws.output().await.unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match command.split_whitespace().nth(2).unwrap() {
            "put-item" => assert_eq!(one.next().await["payload"]["data"], "deploy done"),
            "scan" => assert_eq!(answer["Items"][0]["userId"]["S"], "1"),
            _ => {
                let items = answer["Items"].as_array().unwrap();
                let found: Vec<_> = items.iter().map(|item| item["json"]["S"].as_str().unwrap()).collect();
                assert_eq!(found, ["11", "10", "9", "8", "7", "6", "5", "4", "3", "2"]);
                assert!(items[0]["s"]["S"].as_str().unwrap().ends_with("/000000000011"), "{}", items[0]);
            }
        }
    }
}

#[tokio::test]
async fn the_topic_scripts_do_what_they_say() {
    let stack = Stack::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(clients().join("node_modules"), folder.path().join("node_modules")).unwrap();
    for script in blocks("js") {
        let name = script.lines().next().unwrap().strip_prefix("// ").unwrap();
        std::fs::write(folder.path().join(name), script.replace("localhost:3001", &stack.gateway)).unwrap();
    }
    let transcript = blocks("console").into_iter().find(|block| block.starts_with("$ node subscribe.mjs")).unwrap();
    let mut lines = transcript.lines();
    let mut subscriber = Terminal::run(lines.next().unwrap().strip_prefix("$ ").unwrap(), folder.path());
    stack.logged(1, &["default |", "served"]).await;
    let _publisher = Terminal::run("node publish.mjs", folder.path());
    for line in lines {
        subscriber.shows(line).await;
    }
}

#[tokio::test]
async fn every_error_code_of_the_reference_exists_and_none_is_missing() {
    let documents = documents();
    let source = std::fs::read_to_string(root().join("crates/core/src/error.rs")).unwrap();
    let table = documents.split("| code | the frame … |").nth(1).unwrap();
    let documented: Vec<_> = table.lines().skip(2).map_while(|line| line.split('`').nth(1)).collect();
    let start = source.find("pub fn code(").unwrap();
    let body = &source[start..start + source[start..].find("\n    }\n").unwrap()];
    let mut defined: Vec<_> = body.split('"').skip(1).step_by(2).collect();
    defined.sort_unstable();
    let mut sorted = documented.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, defined);
}

/// The service in the README of the local stack is built and started in a folder of its own, without any network.
#[tokio::test]
async fn the_service_of_a_stranger_starts_with_one_command() {
    let document = std::fs::read_to_string(root().join("crates/local/README.md")).unwrap();
    let (_, section) = document.split_once("## A service of your own").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("src")).unwrap();
    for (language, name) in [("toml", "Cargo.toml"), ("rust", "src/main.rs"), ("yaml", "serverless.yml")] {
        let [text] = <[String; 1]>::try_from(blocks_of(section, language)).unwrap();
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    // The versions that are here anyway, and what was built of them before.
    std::fs::copy(root().join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    let built = root().join("target/stranger");
    std::fs::create_dir_all(&built).unwrap();
    std::os::unix::fs::symlink(built, folder.path().join("target")).unwrap();
    let mut cargo = Command::new("cargo");
    let output = cargo
        .args(["build", "--offline"])
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .current_dir(folder.path())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let consoles = blocks_of(section, "console");
    assert_eq!(consoles[1], "$ switchboard-local\n");
    let mut command = switchboard_tests::stack::command(&[]);
    command.current_dir(folder.path());
    let stack = Stack::run(command).await;
    let mut transcript = consoles[2].lines();
    let open = transcript.next().unwrap().strip_prefix("$ ").unwrap();
    let mut terminal = Terminal::run(&open.replace("localhost:3001", &stack.gateway), folder.path());
    let line = stack.logged(1, &["gateway |", "connected"]).await.remove(0);
    let id = line.split_whitespace().nth(2).unwrap();
    let ready = stack.management().await.post_to_connection().connection_id(id).data(Blob::new("ready"));
    ready.send().await.unwrap();
    terminal.shows("ready").await;
    for line in transcript {
        match line.split_at(2) {
            ("> ", typed) => terminal.types(typed).await,
            (_, shown) => terminal.shows(shown).await,
        }
    }
}
