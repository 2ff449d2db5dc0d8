//! Finds the binary of each function, in the layouts that Rust services have.
//!
//! | what names the binary | example |
//! |---|---|
//! | `handler`, maybe with folders | `connect` |
//! | `package.artifact`: its folder or its name | `target/lambda/connect/bootstrap.zip` |
//! | the part of `handler` behind the last dot or slash | `chat.connect` |
//! | the function's key | `connect` |
//!
//! Each name is looked for as `FOLDER/name`, as cargo builds it, and as `FOLDER/name/bootstrap`, as cargo-lambda does.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::service::{Function, Service};

/// The name that Lambda wants for a binary. It says nothing about the function.
const BOOTSTRAP: &str = "bootstrap";

/// The folders in `target` in which builds leave binaries.
const TARGETS: [&str; 3] = ["debug", "lambda", "release"];

/// The folder beside a template in which `sam build` leaves binaries.
const SAM_BUILD: &str = ".aws-sam/build";

/// Functions without a binary.
#[derive(Debug, thiserror::Error)]
pub struct Missing {
    /// The functions by their keys, each with the names that its binary may have.
    pub functions: Vec<(String, Vec<String>)>,
    /// The folders that were searched.
    pub folders: Vec<PathBuf>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions = self.functions.iter().map(|(key, names)| format!("`{key}` (tried {})", names.join(", ")));
        let folders = self.folders.iter().map(|folder| folder.display().to_string());
        write!(
            f,
            "binaries not found, build them first: {}; each as NAME and NAME/{BOOTSTRAP} in {}",
            functions.collect::<Vec<_>>().join(", "),
            folders.collect::<Vec<_>>().join(", ")
        )
    }
}

/// Returns the folders to search if `--binaries` names none: that of this program, those of the nearest `target` in or
/// above the folder of the service, and that of `sam build`. The service's come first, unless this program is one of them.
#[must_use]
pub fn default_folders(program: &Path, config: &Path) -> Vec<PathBuf> {
    let config = std::path::absolute(config).unwrap_or_default();
    let target = config.ancestors().skip(1).map(|folder| folder.join("target")).find(|target| target.is_dir());
    let folders = target.iter().flat_map(|target| TARGETS.map(|name| target.join(name)));
    let of_sam = config.parent().map(|folder| folder.join(SAM_BUILD));
    let mut folders: Vec<_> = folders.chain(of_sam).filter(|folder| folder.is_dir()).collect();
    let Some(own) = program.parent().map(PathBuf::from) else { return folders };
    let is_of_service = folders.contains(&own);
    folders.retain(|folder| *folder != own);
    folders.insert(if is_of_service { 0 } else { folders.len() }, own);
    folders
}

/// Finds the binary of each function, by the function's key.
///
/// # Errors
///
/// When a function has none.
pub fn find_all(service: &Service, folders: &[PathBuf]) -> Result<Vec<(String, PathBuf)>, Missing> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (key, function) in &service.functions {
        match find(key, function, folders) {
            Some(path) => found.push((key.clone(), path)),
            None => missing.push((key.clone(), names(key, &function.handler, function.artifact.as_deref()))),
        }
    }
    if missing.is_empty() { Ok(found) } else { Err(Missing { functions: missing, folders: folders.to_vec() }) }
}

/// Finds the binary of a function.
#[must_use]
pub fn find(key: &str, function: &Function, folders: &[PathBuf]) -> Option<PathBuf> {
    let names = names(key, &function.handler, function.artifact.as_deref());
    let paths = names
        .iter()
        .flat_map(|name| folders.iter().flat_map(move |folder| [folder.join(name), folder.join(name).join(BOOTSTRAP)]));
    paths.into_iter().find(|path| path.is_file())
}

/// Returns the names that the binary may have, best first.
fn names(key: &str, handler: &str, artifact: Option<&str>) -> Vec<String> {
    let mut names = vec![handler.to_owned()];
    let artifact = artifact.map(Path::new);
    let stem = artifact.and_then(Path::file_stem);
    let folder = artifact.and_then(Path::parent).and_then(Path::file_name);
    let of_artifact = if stem.is_some_and(|stem| stem == BOOTSTRAP) { folder } else { stem };
    names.extend(of_artifact.map(|name| name.to_string_lossy().into_owned()));
    let last = handler.rsplit('/').next().unwrap_or(handler);
    names.extend([last.rsplit('.').next().unwrap_or(last).to_owned(), last.to_owned(), key.to_owned()]);
    // Every function may have this handler.
    let (bootstrap, mut names): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name == BOOTSTRAP);
    names.extend(bootstrap);
    let mut unique: Vec<String> = Vec::new();
    for name in names {
        if !name.is_empty() && !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_has_one_of_several_names() {
        for (handler, artifact, expected) in [
            ("connect", None, &["connect", "key"][..]),
            ("bootstrap", Some("target/lambda/greet/bootstrap.zip"), &["greet", "key", "bootstrap"]),
            ("connect", Some("target/lambda/arm64/on-connect.zip"), &["connect", "on-connect", "key"]),
            ("parrot.greet", None, &["parrot.greet", "greet", "key"]),
            ("functions/talk.talk", None, &["functions/talk.talk", "talk", "talk.talk", "key"]),
        ] {
            assert_eq!(names("key", handler, artifact), expected, "{handler}");
        }
    }

    #[test]
    fn the_nearest_target_of_the_service_is_searched_too() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["target/debug", "target/lambda", "services/chat", ".aws-sam/build"] {
            std::fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        let folders = default_folders(Path::new("/bin/program"), &folder.path().join("services/chat/serverless.yml"));
        let target = folder.path().join("target");
        assert_eq!(folders, [target.join("debug"), target.join("lambda"), PathBuf::from("/bin")]);
        let program = target.join("lambda/program");
        let folders = default_folders(&program, &folder.path().join("template.yaml"));
        let of_sam = folder.path().join(".aws-sam/build");
        assert_eq!(folders, [target.join("lambda"), target.join("debug"), of_sam]);
    }
}
