//! Some rows are about what nobody sees from outside. Other tests of this repository prove them. Such a row runs those
//! tests, each in the test binary that cargo has built from its file.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::SystemTime;

use switchboard_tests::stack::root;
use tokio::process::Command;

const BUILD: &str = "run `cargo build --workspace --all-targets` (`make conformance` does)";

/// Runs the test `{file}::{name}`. Panics unless it has run and passed.
pub async fn run(test: &str) {
    let (file, name) = test.rsplit_once("::").unwrap();
    let binary = binary(file);
    let listed = call(&binary, file, &["--list"]).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    let tests = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let paths: Vec<_> = tests.filter(|path| path.rsplit("::").next() == Some(name)).collect();
    let [path] = paths[..] else { panic!("{file} has not one test {name}, but {paths:?}") };
    let output = call(&binary, file, &["--exact", path]).await;
    let text = String::from_utf8_lossy(&output.stdout);
    // An ignored test does not fail, but it does not pass either.
    let has_passed = output.status.success() && text.contains("test result: ok. 1 passed;");
    assert!(has_passed, "{test}: {text}{}", String::from_utf8_lossy(&output.stderr));
}

/// Calls a test binary in the folder that cargo calls it in.
async fn call(binary: &Path, file: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary);
    command.current_dir(package(file)).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.unwrap()
}

/// The folder of a file's package.
fn package(file: &str) -> PathBuf {
    let mut folders = Path::new(file).ancestors().skip(1).map(|folder| root().join(folder));
    folders.find(|folder| folder.join("Cargo.toml").is_file()).unwrap()
}

/// The newest test binary that was built from this file. Beside each binary cargo writes a list of its source files.
fn binary(file: &str) -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let built = entries.filter(|path| path.extension().is_some_and(|extension| extension == "d")).filter_map(|list| {
        let binary = list.with_extension("");
        let built = modified(&binary)?;
        let list = std::fs::read_to_string(list).ok()?;
        let (_, sources) = list.lines().next()?.split_once(": ")?;
        let sources: Vec<_> = sources.split(' ').map(|source| root().join(source)).collect();
        sources.contains(&root().join(file)).then_some((built, binary, sources))
    });
    let (built, binary, mut sources) =
        built.max_by_key(|(built, ..)| *built).unwrap_or_else(|| panic!("no test binary has {file}: {BUILD}"));
    // The tests of a package are linked with its library.
    files(&package(file).join("src"), &mut sources);
    if let Some(newer) = sources.iter().find(|source| modified(source).is_none_or(|modified| modified > built)) {
        panic!("{} is newer than the test binary of {file}: {BUILD}", newer.display());
    }
    binary
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

/// Every file below a folder, which need not be there.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}
