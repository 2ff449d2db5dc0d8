//! The dependency arrows of the workspace, as its map draws them.

use std::collections::BTreeMap;

use switchboard_tests::stack::root;

/// The packages of this workspace that each one depends on, tests aside.
fn arrows() -> BTreeMap<String, Vec<String>> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = std::process::Command::new("cargo").args(arguments).current_dir(root()).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let ours: Vec<_> = packages.iter().map(name).collect();
    let arrows = packages.iter().map(|package| {
        let dependencies = package["dependencies"].as_array().unwrap();
        let normal = dependencies.iter().filter(|dependency| dependency["kind"].is_null()).map(name);
        (name(package), normal.filter(|dependency| ours.contains(dependency)).collect())
    });
    arrows.collect()
}

#[test]
fn functions_know_core_and_the_emulator_knows_nobody() {
    for (package, dependencies) in arrows() {
        let allowed: &[&str] = match package.as_str() {
            "switchboard-core" | "switchboard-local" | "switchboard-fixture" | "switchboard-tests" => &[],
            _ => &["switchboard-core"],
        };
        assert_eq!(dependencies, allowed, "{package}");
    }
}

#[test]
fn every_room_says_what_lives_there() {
    for folder in ["crates", "crates/local", "infra", "tests", "tests/events"] {
        let readme = root().join(folder).join("README.md");
        assert!(readme.is_file(), "{} is missing", readme.display());
    }
}
