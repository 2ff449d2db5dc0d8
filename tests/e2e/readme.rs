//! The README's transcripts, executed word for word with the real `wscat` and `ws`.
//!
//! Only the port differs: `localhost:3001` in the README is this test's own stack.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use aws_sdk_apigatewaymanagement::primitives::Blob;
use switchboard_tests::stack::{PATIENCE, Stack, root, text};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The fenced blocks of the README in one language.
fn blocks(language: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let fenced = readme.split("```").skip(1).step_by(2);
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

    /// The next line must be this one, in which `…` stands for anything.
    async fn shows(&mut self, expected: &str) {
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await.expect("nothing was shown");
        let line = line.unwrap().expect("the client has ended");
        let fits = match expected.split_once('…') {
            None => line == expected,
            Some((start, end)) => {
                line.len() > start.len() + end.len() && line.starts_with(start) && line.ends_with(end)
            }
        };
        assert!(fits, "expected {expected}\n   found {line}");
    }
}

fn clients() -> PathBuf {
    root().join("tests/clients")
}

#[tokio::test]
async fn the_wscat_transcript_is_true() {
    let stack = Stack::start().await;
    let transcripts: Vec<_> = blocks("console").into_iter().filter(|block| block.starts_with("$ wscat")).collect();
    assert_eq!(transcripts.len(), 2);
    let mut terminals = Vec::new();
    for transcript in &transcripts {
        let command = transcript.lines().next().unwrap().strip_prefix("$ ").unwrap();
        terminals.push(Terminal::run(&command.replace("localhost:3001", &stack.gateway), root()));
    }
    // Through a pipe wscat does not say that it is connected, and it forgets what was typed before. It shows what it
    // receives.
    let management = stack.management().await;
    for row in stack.settled("connections", 2).await {
        stack.logged(1, &["gateway |", &text(&row, "connectionId"), "connected"]).await;
        let post = management.post_to_connection().connection_id(text(&row, "connectionId"));
        post.data(Blob::new("ready")).send().await.unwrap();
    }
    for terminal in &mut terminals {
        terminal.shows("ready").await;
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
async fn every_error_code_of_the_readme_exists_and_none_is_missing() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let source = std::fs::read_to_string(root().join("crates/core/src/error.rs")).unwrap();
    let table = readme.split("| code | the frame … |").nth(1).unwrap();
    let documented: Vec<_> = table.lines().skip(2).map_while(|line| line.split('`').nth(1)).collect();
    let start = source.find("pub fn code(").unwrap();
    let body = &source[start..start + source[start..].find("\n    }\n").unwrap()];
    let mut defined: Vec<_> = body.split('"').skip(1).step_by(2).collect();
    defined.sort_unstable();
    let mut sorted = documented.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, defined);
}
