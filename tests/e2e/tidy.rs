//! The workspace's own order: the dependency arrows of its map, what its documents say of files and folders, and the
//! lists of variables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use switchboard_tests::stack::root;

/// The packages of this workspace that each one depends on. `kind` is null for its code, or `"dev"` for its tests.
fn arrows(kind: &serde_json::Value) -> BTreeMap<String, Vec<String>> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = std::process::Command::new("cargo").args(arguments).current_dir(root()).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let ours: Vec<_> = packages.iter().map(name).collect();
    let arrows = packages.iter().map(|package| {
        let dependencies = package["dependencies"].as_array().unwrap();
        let of_kind = dependencies.iter().filter(|dependency| dependency["kind"] == *kind).map(name);
        (name(package), of_kind.filter(|dependency| ours.contains(dependency)).collect())
    });
    arrows.collect()
}

#[test]
fn functions_know_core_and_the_emulator_knows_nobody() {
    for (package, dependencies) in arrows(&serde_json::Value::Null) {
        let allowed: &[&str] = match package.as_str() {
            "switchboard-client" | "switchboard-core" | "switchboard-local" => &[],
            // Some of its functions run as those of the service do.
            "switchboard-fixture" => &["switchboard-core"],
            "switchboard-tests" => &[],
            "switchboard-load" => &["switchboard-client"],
            _ => &["switchboard-core"],
        };
        assert_eq!(dependencies, allowed, "{package}");
    }
}

#[test]
fn only_the_end_to_end_tests_know_both_halves() {
    for (package, dependencies) in arrows(&"dev".into()) {
        let allowed: &[&str] = match package.as_str() {
            // The simulation calls the handlers.
            "switchboard-tests" => &[
                "connect",
                "default",
                "disconnect",
                "fan-out",
                "presence",
                "publish",
                "send-message",
                "switchboard-client",
                "switchboard-core",
                "switchboard-local",
            ],
            "switchboard-client" | "switchboard-load" | "switchboard-local" => &["switchboard-tests"],
            _ => &[],
        };
        assert_eq!(dependencies, allowed, "{package}");
    }
}

#[test]
fn every_folder_stands_in_the_readme_above_it() {
    for folder in ["crates", "tests"] {
        let readme = std::fs::read_to_string(root().join(folder).join("README.md")).unwrap();
        // A README names folders in bold, `**connect, default**`, or as code.
        let marked = ["**", "`"].into_iter().flat_map(|mark| readme.split(mark).skip(1).step_by(2));
        let names: Vec<_> = marked.flat_map(|marked| marked.split(", ")).collect();
        for path in folders(&root().join(folder)) {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(names.contains(&name), "{folder}/README.md does not tell of {name}");
        }
    }
}

#[test]
fn every_link_of_a_document_leads_to_a_file() {
    for document in documents(root()) {
        let text = std::fs::read_to_string(&document).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
            let path = document.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {target}, which is not there", document.display());
        }
    }
}

/// A test is named as `module::function`, and a row of the conformance suite by its id.
#[test]
fn every_test_that_the_table_of_security_names_exists() {
    let mut sources = Vec::new();
    let mut below = vec![root().join("crates"), root().join("tests")];
    while let Some(folder) = below.pop() {
        below.extend(folders(&folder));
        let is_source =
            |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs" || extension == "py");
        sources.extend(entries(&folder).filter(is_source).map(|path| {
            let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (module, std::fs::read_to_string(path).unwrap())
        }));
    }
    let is_there = |name: &str, module: Option<&str>, texts: &[String]| {
        let exists = sources.iter().any(|(source, text)| {
            module.is_none_or(|module| module == source) && texts.iter().any(|wanted| text.contains(wanted))
        });
        assert!(exists, "tests/SECURITY.md names {name}, which does not exist");
    };
    let is_row = |name: &str| {
        name.split_once('-').is_some_and(|(group, number)| group.len() == 2 && number.parse::<u8>().is_ok())
    };
    let table = std::fs::read_to_string(root().join("tests/SECURITY.md")).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let mut count = 0;
    for name in rows.flat_map(|row| row.split('`').skip(1).step_by(2)) {
        match name.rsplit_once("::") {
            // Trials of a `main` of its own have their names in a text.
            Some(("soak::flood", _)) => is_there(name, Some("main"), &[format!("\"{name}\"")]),
            Some((module, function)) => {
                is_there(name, Some(module), &["fn", "def"].map(|word| format!("{word} {function}(")));
            }
            None if is_row(name) => is_there(name, None, &[format!("\"{name}\"")]),
            None => continue,
        }
        count += 1;
    }
    assert!(count > 80, "{count}");
}

/// `log.rs` reads these two. Each crate's `config.rs` reads all others.
const READ_BY_THE_LOG: [&str; 2] = ["AWS_LAMBDA_LOG_LEVEL", "RUST_LOG"];

#[test]
fn the_readme_and_the_example_list_every_variable_that_the_functions_read() {
    let mut read: Vec<_> = READ_BY_THE_LOG.iter().map(|name| (*name).to_owned()).collect();
    for folder in folders(&root().join("crates")) {
        let Ok(source) = std::fs::read_to_string(folder.join("src/config.rs")) else { continue };
        let code = source.split("#[cfg(test)]").next().unwrap();
        let literals = code.split('"').skip(1).step_by(2).filter(|literal| is_name(literal));
        read.extend(literals.map(str::to_owned));
    }
    read.sort();
    // A function may have several uses for one variable.
    read.dedup();

    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n## Configuration\n").unwrap();
    let mut documented = BTreeMap::new();
    for row in section.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split(" | ").collect();
        // A default is code and nothing else. Other cells, such as "required", are prose.
        let default = cells[1].strip_prefix('`').and_then(|cell| cell.strip_suffix('`')).unwrap_or_default();
        let names = cells[0].split('`').filter(|name| is_name(name));
        documented.extend(names.map(|name| (name.to_owned(), default.to_owned())));
    }
    assert_eq!(documented.keys().cloned().collect::<Vec<_>>(), read, "README.md, then the code");

    let example = std::fs::read_to_string(root().join(".env.example")).unwrap();
    let lines: Vec<_> = example.lines().collect();
    let mut listed = BTreeMap::new();
    for pair in lines.windows(2) {
        if let Some((name, default)) = pair[1].split_once('=').filter(|(name, _)| is_name(name)) {
            assert!(pair[0].starts_with("# "), "{name} has no comment in .env.example");
            assert_eq!(listed.insert(name.to_owned(), default.to_owned()), None, "{name} is there twice");
        }
    }
    assert_eq!(listed, documented, ".env.example, then README.md");
}

/// Says whether a text is the name of an environment variable.
fn is_name(text: &str) -> bool {
    text.contains('_') && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// The folders in a folder, except those for installed packages and builds.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        path.is_dir() && !name.starts_with(['.', '_']) && !["node_modules", "target"].contains(&name)
    };
    entries(folder).filter(is_ours).collect()
}

/// Every Markdown file in a folder and below.
fn documents(folder: &Path) -> Vec<PathBuf> {
    let here = entries(folder).filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    here.chain(folders(folder).iter().flat_map(|folder| documents(folder))).collect()
}

/// The paths of what is in a folder.
fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())
}
