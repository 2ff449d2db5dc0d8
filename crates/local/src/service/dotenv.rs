//! `.env` files, which the framework reads if `useDotenv` is set, from its version 4 on, or with a plugin. The file of the
//! stage comes first; `.env` counts if there is none (`load-dotenv.js`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::error::ServiceError;

/// This plugin also gives the variables to every function.
const PLUGIN: &str = "serverless-dotenv-plugin";

/// Tells whether the framework reads `.env` for a service.
pub(super) fn is_used(root: &Value) -> bool {
    let version = root["frameworkVersion"].as_str().unwrap_or_default();
    let is_4 = version.trim_start_matches(['^', '~', '=', ' ']).starts_with('4');
    root["useDotenv"] == Value::Bool(true) || is_4
}

/// Tells whether a service has the plugin.
pub(super) fn has_plugin(root: &Value) -> bool {
    plugins(root).any(|plugin| plugin == PLUGIN)
}

/// Returns the names of a service's plugins.
pub(super) fn plugins(root: &Value) -> impl Iterator<Item = &str> {
    let plugins = &root["plugins"];
    let plugins = plugins.as_array().or_else(|| plugins["modules"].as_array());
    plugins.into_iter().flatten().filter_map(Value::as_str)
}

/// Reads the file of the stage, else `.env`. Without a file there are no variables.
pub(super) fn read(folder: &Path, stage: &str) -> Result<BTreeMap<String, String>, ServiceError> {
    for file in [format!(".env.{stage}"), ".env".to_owned()] {
        let text = match std::fs::read_to_string(folder.join(&file)) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(ServiceError::Read { file, source: Arc::new(source) }),
        };
        return parse(&file, &text);
    }
    Ok(BTreeMap::new())
}

fn parse(file: &str, text: &str) -> Result<BTreeMap<String, String>, ServiceError> {
    let variables: Result<_, _> = dotenvy::from_read_iter(text.as_bytes()).collect();
    variables.map_err(|error| ServiceError::Syntax {
        file: file.to_owned(),
        line: 1,
        column: 1,
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_file_of_the_stage_wins() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path(), "dev").unwrap().is_empty());
        std::fs::write(folder.path().join(".env"), "# a comment\nCOLOUR=green\nexport NEST='a b' # why\n").unwrap();
        let expected = [("COLOUR", "green"), ("NEST", "a b")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(read(folder.path(), "dev").unwrap(), BTreeMap::from(expected));
        std::fs::write(folder.path().join(".env.dev"), "COLOUR=red\n").unwrap();
        assert_eq!(read(folder.path(), "dev").unwrap().into_values().collect::<Vec<_>>(), ["red"]);
    }

    #[test]
    fn it_is_used_where_the_framework_uses_it() {
        for (root, expected) in [
            (json!({"useDotenv": true}), true),
            (json!({"frameworkVersion": "^4"}), true),
            (json!({"frameworkVersion": "^3 || ^4"}), false),
            (json!({}), false),
        ] {
            assert_eq!(is_used(&root), expected, "{root}");
        }
        assert!(has_plugin(&json!({"plugins": {"modules": [PLUGIN]}})));
    }
}
