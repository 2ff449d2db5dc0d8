//! The workspace's own order: the dependency arrows of its map, and what its READMEs say of files and folders.

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
            "switchboard-core" | "switchboard-local" | "switchboard-fixture" | "switchboard-tests" => &[],
            _ => &["switchboard-core"],
        };
        assert_eq!(dependencies, allowed, "{package}");
    }
}

#[test]
fn only_the_end_to_end_tests_know_both_halves() {
    for (package, dependencies) in arrows(&"dev".into()) {
        let allowed: &[&str] = match package.as_str() {
            "switchboard-tests" => &["switchboard-core", "switchboard-local"],
            "switchboard-local" => &["switchboard-tests"],
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
fn every_link_of_a_readme_leads_to_a_file() {
    for readme in readmes(root()) {
        let text = std::fs::read_to_string(&readme).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
            let path = readme.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {target}, which is not there", readme.display());
        }
    }
}

/// The folders in a folder, except those for installed packages and builds.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        path.is_dir() && !name.starts_with(['.', '_']) && !["node_modules", "target"].contains(&name)
    };
    entries.filter(is_ours).collect()
}

/// Every README in a folder and below.
fn readmes(folder: &Path) -> Vec<PathBuf> {
    let here = Some(folder.join("README.md")).filter(|readme| readme.is_file());
    here.into_iter().chain(folders(folder).iter().flat_map(|folder| readmes(folder))).collect()
}
