//! The Serverless Framework's variables: `${self:custom.x}`, `${sls:stage}`, `${opt:stage}`, `${env:NAME}`,
//! `${file(infra/tables.yml):key}`, each with fallbacks after commas
//! ([Variables](https://www.serverless.com/framework/docs/guides/variables)).
//!
//! `${param:name}` comes from `--param`, else from `params`, for the stage or by default. `${env:NAME}` also comes from a
//! `.env` file, as the framework reads it (`dotenv.rs`).
//!
//! Sources that need an AWS account (`ssm`, `cf`, `s3`) and those of plugins have no value here, so that fallbacks count.
//! Without a fallback, an environment variable of a function keeps the text of the variable. Not here: files of JavaScript.
//! `${AWS::Region}` and `${Table.Arn}` belong to CloudFormation and stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::definition::Settings;
use super::dotenv;
use super::error::{Location, Problem, ServiceError};
use super::key_path::{KeyPath, Step};
use super::keys::{Treatment, treatment};
use super::sam::{self, Translation};
use super::yaml;
use crate::iam::ACCOUNT_ID;

/// The framework's default for the stage.
pub(super) const DEFAULT_STAGE: &str = "dev";

/// The framework's default for the region.
pub(super) const DEFAULT_REGION: &str = "us-east-1";

/// How to read what this program cannot read itself.
const PRINT: &str = "`osls print > resolved.yml` resolves it, and `--config resolved.yml` reads that";

/// A service's files as one document, with files included, variables resolved and ignored keys left out.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) value: Value,
    /// The problems of variables and of keys that are not supported, each with its key in this document.
    pub(super) errors: Vec<(KeyPath, ServiceError)>,
    /// The parts that are left out.
    pub(super) ignored: Vec<Problem>,
    /// Those that the framework would refuse.
    pub(super) invalid: Vec<Problem>,
    /// The variables that the serverless-dotenv-plugin gives to every function.
    pub(super) dotenv: BTreeMap<String, String>,
    /// Whether this is a template of SAM.
    pub(super) is_template: bool,
    /// The names of the plugins.
    pub(super) plugins: Vec<String>,
    /// The place in the files of each value, by its key in this document.
    origins: BTreeMap<KeyPath, (String, KeyPath)>,
}

impl Document {
    /// Reads a serverless.yml and its includes.
    pub(super) fn load(path: &Path, settings: &Settings) -> Result<Self, ServiceError> {
        let main = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut resolver = Resolver {
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            main: main.clone(),
            settings,
            files: BTreeMap::new(),
            expanding: Vec::new(),
            within: Vec::new(),
            origins: BTreeMap::new(),
            leniency: Leniency::None,
            unasked: BTreeSet::new(),
            errors: Vec::new(),
            ignored: Vec::new(),
            invalid: Vec::new(),
            dotenv: BTreeMap::new(),
        };
        let mut root = match resolver.read(&main) {
            Ok(root) => root,
            // The path as it was given says where this program has looked.
            Err(ServiceError::Read { source, .. }) => {
                return Err(ServiceError::Read { file: path.display().to_string(), source });
            }
            Err(error) => return Err(error),
        };
        let template = sam::is_template(&root).then(|| sam::translate(&root, &stack_name(path), &settings.parameters));
        if let Some(template) = &template {
            root = template.value.clone();
        }
        let is_template = template.is_some();
        let has_plugin = dotenv::has_plugin(&root);
        let plugins = dotenv::plugins(&root).map(str::to_owned).collect();
        if has_plugin || dotenv::is_used(&root) {
            resolver.read_dotenv(&root)?;
        }
        let value = resolver.resolve(Node { value: root, file: main, key: KeyPath::default() }, &KeyPath::default())?;
        if let Some(template) = template {
            resolver.place_in(&template);
        }
        let Resolver { origins, errors, ignored, invalid, dotenv, .. } = resolver;
        let dotenv = if has_plugin { dotenv } else { BTreeMap::new() };
        Ok(Self { value, errors, ignored, invalid, dotenv, is_template, plugins, origins })
    }

    /// Tells whether all functions and templates are there. Without one of them, other parts would seem to be wrong.
    pub(super) fn is_complete(&self) -> bool {
        !self.errors.iter().any(|(at, _)| match at.keys().as_slice() {
            [] | ["service" | "provider" | "functions"] | ["functions", _] => true,
            ["resources", rest @ ..] => rest.len() <= 2,
            _ => false,
        })
    }

    /// Converts a problem to an error that names the file and the key.
    pub(super) fn error(&self, problem: Problem) -> ServiceError {
        ServiceError::Invalid { location: self.location(&problem.at), reason: problem.reason }
    }

    /// Returns the place in the files of the value at a key of this document.
    pub(super) fn location(&self, at: &KeyPath) -> Location {
        // A missing key, or an index into an interpolated text, has no origin of its own. Then its parent's counts.
        let mut parent = at.clone();
        let mut below = Vec::new();
        loop {
            if let Some((file, key)) = self.origins.get(&parent) {
                let key = below.into_iter().rev().fold(key.clone(), |key, step| key.then(step));
                return Location { file: file.clone(), line: None, key };
            }
            match parent.0.pop() {
                Some(step) => below.push(step),
                None => {
                    return Location { file: String::new(), line: None, key: at.clone() };
                }
            }
        }
    }
}

/// A value as the file has it, with its variables unresolved.
#[derive(Debug, Clone)]
struct Node {
    value: Value,
    file: String,
    key: KeyPath,
}

impl Node {
    fn child(&self, step: Step, value: Value) -> Self {
        Self { value, file: self.file.clone(), key: self.key.then(step) }
    }

    /// Returns another value at this one's place.
    fn with(&self, value: impl Into<Value>) -> Self {
        Self { value: value.into(), file: self.file.clone(), key: self.key.clone() }
    }

    fn error(&self, reason: impl Into<String>) -> ServiceError {
        ServiceError::Invalid {
            location: Location { file: self.file.clone(), line: None, key: self.key.clone() },
            reason: reason.into(),
        }
    }

    /// Returns a scalar as a text that can be part of a longer one.
    fn text(&self) -> Option<String> {
        match &self.value {
            Value::String(text) => Some(text.clone()),
            Value::Number(_) | Value::Bool(_) => Some(self.value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

struct Resolver<'a> {
    folder: PathBuf,
    main: String,
    settings: &'a Settings,
    files: BTreeMap<String, Value>,
    /// The texts whose variables are being resolved, outermost first. A text that occurs again is a cycle.
    expanding: Vec<(String, KeyPath, String)>,
    /// The mappings and lists around the value that is being resolved. One that occurs again is a cycle, too.
    within: Vec<(String, KeyPath)>,
    origins: BTreeMap<KeyPath, (String, KeyPath)>,
    leniency: Leniency,
    /// The sources that cannot be asked here, of the value that is being resolved.
    unasked: BTreeSet<String>,
    errors: Vec<(KeyPath, ServiceError)>,
    ignored: Vec<Problem>,
    invalid: Vec<Problem>,
    /// The variables of the `.env` file.
    dotenv: BTreeMap<String, String>,
}

/// The treatment of a variable without a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leniency {
    /// It is a problem.
    None,
    /// It stays as it is if only a deployment could know the value; see [`Treatment::ReadWithPlaceholders`].
    Placeholders,
    /// It stays as it is; see [`Treatment::ReadLeniently`].
    Full,
}

/// Returns the name of the folder, as far as a stack may have it. A template has no name of its own.
fn stack_name(path: &Path) -> String {
    let folder = std::path::absolute(path).ok();
    let name = folder.as_deref().and_then(Path::parent).and_then(Path::file_name).unwrap_or_default();
    let name: String =
        name.to_string_lossy().chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '-' }).collect();
    let name = name.trim_matches('-');
    if name.len() > 1 && name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        name.to_owned()
    } else {
        "sam-app".to_owned()
    }
}

impl Resolver<'_> {
    /// Gives every place that of the template, and adds what its translation has found.
    fn place_in(&mut self, template: &Translation) {
        for (_, key) in self.origins.values_mut() {
            *key = template.original(key);
        }
        for (_, error) in &mut self.errors {
            if let ServiceError::Invalid { location, .. } = error {
                location.key = template.original(&location.key);
            }
        }
        self.ignored.extend(template.ignored.iter().cloned());
        let refused = template.refused.iter().map(|problem| {
            let location = Location { file: self.main.clone(), line: None, key: problem.at.clone() };
            (problem.at.clone(), ServiceError::Invalid { location, reason: problem.reason.clone() })
        });
        self.errors.extend(refused);
    }

    /// Resolves a value and everything in it. `at` is its key in the resolved document.
    fn resolve(&mut self, node: Node, at: &KeyPath) -> Result<Value, ServiceError> {
        let written_at = (node.file.clone(), node.key.clone());
        let depth = self.expanding.len();
        self.unasked.clear();
        let node = match self.expand(node.clone()) {
            Ok(expanded) => expanded,
            Err(error) => {
                self.expanding.truncate(depth);
                match self.leniency {
                    Leniency::Full => node,
                    Leniency::Placeholders if !self.unasked.is_empty() => {
                        let keys = at.keys();
                        let mut names = keys.iter().skip_while(|key| **key != "environment").skip(1);
                        let name = names.next().copied().unwrap_or_default();
                        let reason = format!("only a deployment knows this value; `--env {name}=VALUE` gives one");
                        self.ignored.push(Problem::new(at, reason));
                        node
                    }
                    Leniency::None | Leniency::Placeholders => {
                        self.origins.insert(at.clone(), written_at);
                        self.errors.push((at.clone(), error));
                        return Ok(Value::Null);
                    }
                }
            }
        };
        if !node.value.is_object() && !node.value.is_array() {
            self.origins.insert(at.clone(), written_at);
            return Ok(node.value);
        }
        let place = (node.file.clone(), node.key.clone());
        if self.within.contains(&place) {
            return Err(node.error("a variable includes the mapping or list that it is part of"));
        }
        self.origins.insert(at.clone(), place.clone());
        self.within.push(place);
        let value = match &node.value {
            Value::Object(entries) => {
                let mut resolved = Map::new();
                for (key, value) in entries {
                    let child = node.child(Step::Key(key.clone()), value.clone());
                    let child_at = at.key(key);
                    let leniency = match treatment(at, key, entries) {
                        Treatment::Ignore => continue,
                        // `--env` gives this variable a value.
                        Treatment::ReadWithPlaceholders if self.settings.variables.contains_key(key) => continue,
                        // `vpc: false` and the like switch off a feature that the stack does not have.
                        Treatment::Warn(_) | Treatment::Refuse(_)
                            if *value == Value::Null || *value == Value::Bool(false) =>
                        {
                            continue;
                        }
                        Treatment::Warn(reason) => {
                            self.ignored.push(Problem::new(&child_at, reason));
                            continue;
                        }
                        Treatment::Invalid(reason) => {
                            self.invalid.push(Problem::new(&child_at, reason));
                            continue;
                        }
                        Treatment::Refuse(reason) => {
                            self.errors.push((child_at, child.error(reason)));
                            continue;
                        }
                        Treatment::Read => self.leniency,
                        Treatment::ReadWithPlaceholders => Leniency::Placeholders,
                        Treatment::ReadLeniently => Leniency::Full,
                    };
                    let outside = std::mem::replace(&mut self.leniency, leniency);
                    resolved.insert(key.clone(), self.resolve(child, &child_at)?);
                    self.leniency = outside;
                }
                Value::Object(resolved)
            }
            Value::Array(items) => {
                let mut resolved = Vec::new();
                for (index, value) in items.iter().enumerate() {
                    let child = node.child(Step::Index(index), value.clone());
                    resolved.push(self.resolve(child, &at.index(index))?);
                }
                Value::Array(resolved)
            }
            scalar => scalar.clone(),
        };
        self.within.pop();
        Ok(value)
    }

    /// Resolves the variables of a text, and of their values, until there are none. Leaves a value that is not a text.
    fn expand(&mut self, mut node: Node) -> Result<Node, ServiceError> {
        let depth = self.expanding.len();
        while let Value::String(text) = &node.value {
            let pieces = pieces(text);
            if pieces.iter().all(|piece| matches!(piece, Piece::Text(_))) {
                break;
            }
            let here = (node.file.clone(), node.key.clone(), text.clone());
            if self.expanding.contains(&here) {
                return Err(node.error(format!("`{text}` leads back to itself")));
            }
            self.expanding.push(here);
            if let [Piece::Variable(variable)] = pieces.as_slice() {
                node = self.variable(variable, &node)?;
                continue;
            }
            let mut expanded = String::new();
            for piece in &pieces {
                match piece {
                    Piece::Text(text) => expanded.push_str(text),
                    Piece::Variable(variable) => {
                        let value = self.variable(variable, &node)?;
                        let value = self.expand(value)?;
                        let text = value.text();
                        expanded.push_str(&text.ok_or_else(|| node.error(format!("`${{{variable}}}` is not a text")))?);
                    }
                }
            }
            node = node.with(expanded);
            break;
        }
        self.expanding.truncate(depth);
        Ok(node)
    }

    /// Returns the value of the text between `${` and `}`: the first of its comma-separated sources that has a value.
    fn variable(&mut self, variable: &str, at: &Node) -> Result<Node, ServiceError> {
        for source in alternatives(variable) {
            if let Some(node) = self.source(source.trim(), at)? {
                return Ok(node);
            }
        }
        Err(at.error(format!("`${{{variable}}}` has no value{}", self.hint(variable))))
    }

    /// Returns what helps if a variable has no value.
    fn hint(&self, variable: &str) -> String {
        let alternatives = alternatives(variable);
        let sources: Vec<_> = alternatives.iter().map(|source| source.trim()).collect();
        let first = sources.first().copied().unwrap_or_default();
        match first.split_once(':') {
            _ if sources.iter().any(|source| source.starts_with("file(")) => ": no such file or key".to_owned(),
            _ if !self.unasked.is_empty() => {
                let unasked: Vec<_> = self.unasked.iter().map(|source| format!("`{source}`")).collect();
                format!(": {} cannot be asked here; add a fallback, or: {PRINT}", unasked.join(" and "))
            }
            Some(("env", name)) => format!(": set {name} in the environment, or in `.env` with `useDotenv: true`"),
            Some(("param", name)) => format!(": `--param {name}=VALUE` gives one"),
            Some(("opt", name)) if !["stage", "region"].contains(&name) => {
                ": of the framework's options there are only `--stage` and `--region`; add a fallback".to_owned()
            }
            Some(("opt", name)) => format!(": `--{name}` gives one"),
            _ => String::new(),
        }
    }

    fn source(&mut self, source: &str, at: &Node) -> Result<Option<Node>, ServiceError> {
        // `self:custom.${sls:stage}` and `${self:custom.fallback}` hold variables themselves.
        let expanded = self.expand(at.with(source))?;
        if matches!(pieces(source).as_slice(), [Piece::Variable(_)]) {
            return Ok(Some(expanded));
        }
        let source = expanded.text().unwrap_or_default();
        if let Some(literal) = literal(&source) {
            return Ok(Some(at.with(literal)));
        }
        if let Some(rest) = source.strip_prefix("file(") {
            return match rest.split_once(')') {
                Some((path, "")) => self.included(path.trim(), "", at),
                Some((path, address)) if address.starts_with(':') => self.included(path.trim(), &address[1..], at),
                _ => Err(at.error(format!("`{source}` is not of the form file(path):key"))),
            };
        }
        if let Some(text) = source.strip_prefix("strToBool(").and_then(|rest| rest.strip_suffix(')')) {
            let text = text.trim().trim_matches(['\'', '"']);
            return match text {
                "true" | "1" => Ok(Some(at.with(true))),
                "false" | "0" => Ok(Some(at.with(false))),
                _ => Err(at.error(format!("`{text}` is not one of `true`, `false`, `1`, `0`"))),
            };
        }
        match source.split_once(':') {
            Some(("self", address)) => {
                let value = self.read(&self.main.clone())?;
                self.lookup(Node { value, file: self.main.clone(), key: KeyPath::default() }, address)
            }
            Some(("sls", "stage")) => self.stage(at).map(Some),
            // The framework makes one up for each of its runs.
            Some(("sls", "instanceId")) => Ok(Some(at.with("local"))),
            Some(("aws", "accountId")) => Ok(Some(at.with(ACCOUNT_ID))),
            Some(("aws", "region")) => self.region(at).map(Some),
            Some(("opt", "stage")) => Ok(self.settings.stage.as_ref().map(|stage| at.with(stage.as_str()))),
            Some(("opt", "region")) => Ok(self.settings.region.as_ref().map(|region| at.with(region.as_str()))),
            Some(("opt", _)) => Ok(None),
            Some(("param", name)) => self.parameter(name, at),
            Some(("env", name)) => {
                let value = self.settings.environment.get(name).or_else(|| self.dotenv.get(name));
                Ok(value.map(|value| at.with(value.as_str())))
            }
            Some(("sls" | "aws", _)) => Err(at.error(format!("the framework has no variable `{source}`"))),
            Some((name, _)) => {
                // `ssm(eu-west-1)` is `ssm` in another region.
                self.unasked.insert(name.split('(').next().unwrap_or(name).to_owned());
                Ok(None)
            }
            None => Err(at.error(format!("`{source}` is neither a variable nor a text in quotes"))),
        }
    }

    /// Returns `${sls:stage}`: the flag, else the provider's, else `dev`.
    fn stage(&mut self, at: &Node) -> Result<Node, ServiceError> {
        if let Some(stage) = &self.settings.stage {
            return Ok(at.with(stage.as_str()));
        }
        let value = self.read(&self.main.clone())?;
        let main = Node { value, file: self.main.clone(), key: KeyPath::default() };
        Ok(self.lookup(main, "provider.stage")?.unwrap_or_else(|| at.with(DEFAULT_STAGE)))
    }

    /// Returns `${aws:region}`: the flag, else the provider's, else the framework's default.
    fn region(&mut self, at: &Node) -> Result<Node, ServiceError> {
        if let Some(region) = &self.settings.region {
            return Ok(at.with(region.as_str()));
        }
        let value = self.read(&self.main.clone())?;
        let main = Node { value, file: self.main.clone(), key: KeyPath::default() };
        Ok(self.lookup(main, "provider.region")?.unwrap_or_else(|| at.with(DEFAULT_REGION)))
    }

    /// Reads the `.env` file of the stage, else `.env`.
    fn read_dotenv(&mut self, root: &Value) -> Result<(), ServiceError> {
        let top = Node { value: root.clone(), file: self.main.clone(), key: KeyPath::default() };
        // The stage may come from a variable of `.env` itself. Then the framework does not know it yet either.
        let stage = self.stage(&top).and_then(|stage| self.expand(stage)).ok();
        self.expanding.clear();
        let stage = stage.and_then(|stage| stage.text()).unwrap_or_else(|| DEFAULT_STAGE.to_owned());
        self.dotenv = dotenv::read(&self.folder, &stage)?;
        Ok(())
    }

    /// Returns `${param:name}`: the flag's, else the stage's, else the default, in either of the framework's places.
    fn parameter(&mut self, name: &str, at: &Node) -> Result<Option<Node>, ServiceError> {
        if let Some(value) = self.settings.parameters.get(name) {
            return Ok(Some(at.with(value.as_str())));
        }
        // `provider.stage` is usually a variable itself.
        let stage = self.stage(at)?;
        let stage = self.expand(stage)?.text().unwrap_or_default();
        for address in [
            format!("stages.{stage}.params.{name}"),
            format!("params.{stage}.{name}"),
            format!("stages.default.params.{name}"),
            format!("params.default.{name}"),
        ] {
            let value = self.read(&self.main.clone())?;
            let main = Node { value, file: self.main.clone(), key: KeyPath::default() };
            if let Some(node) = self.lookup(main, &address)? {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    fn included(&mut self, path: &str, address: &str, at: &Node) -> Result<Option<Node>, ServiceError> {
        let file = path.trim_start_matches("./");
        let extension = Path::new(file).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if SCRIPTS.contains(&extension) {
            return Err(at.error(format!("`{file}` is a program: {PRINT}")));
        }
        if !self.folder.join(file).exists() {
            return Ok(None);
        }
        let value = self.read(file)?;
        self.lookup(Node { value, file: file.to_owned(), key: KeyPath::default() }, address)
    }

    /// Follows a dotted address. Resolves variables on the way.
    fn lookup(&mut self, mut node: Node, address: &str) -> Result<Option<Node>, ServiceError> {
        for name in address.split('.').filter(|name| !name.is_empty()) {
            node = self.expand(node)?;
            let found = match &node.value {
                Value::Object(entries) => entries.get(name).map(|value| (Step::Key(name.to_owned()), value)),
                Value::Array(items) => {
                    let index = name.parse::<usize>().ok();
                    index.and_then(|index| Some((Step::Index(index), items.get(index)?)))
                }
                _ => None,
            };
            let Some((step, value)) = found else {
                return Ok(None);
            };
            node = node.child(step, value.clone());
        }
        Ok(Some(node).filter(|node| !node.value.is_null()))
    }

    fn read(&mut self, file: &str) -> Result<Value, ServiceError> {
        if let Some(value) = self.files.get(file) {
            return Ok(value.clone());
        }
        let text = std::fs::read_to_string(self.folder.join(file))
            .map_err(|source| ServiceError::Read { file: file.to_owned(), source: Arc::new(source) })?;
        let is_text = !["yml", "yaml", "json"].map(|it| format!(".{it}")).iter().any(|it| file.ends_with(it.as_str()));
        // The framework takes a file of any other name for a text.
        let value = if is_text && file != self.main { Value::from(text) } else { yaml::parse(file, &text)? };
        self.files.insert(file.to_owned(), value.clone());
        Ok(value)
    }
}

/// The extensions of files that only Node can read.
pub(super) const SCRIPTS: [&str; 6] = ["js", "cjs", "mjs", "ts", "cts", "mts"];

/// A part of a text with variables.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    /// The text between `${` and `}`.
    Variable(&'a str),
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    // Text before `start` is in `pieces`; text before `from` has been searched.
    let (mut start, mut from) = (0, 0);
    while let Some(open) = text[from..].find("${").map(|offset| from + offset) {
        from = open + 2;
        let Some(close) = closing_brace(&text[from..]).map(|offset| from + offset) else {
            continue;
        };
        let inner = &text[from..close];
        if is_variable(inner) {
            if start < open {
                pieces.push(Piece::Text(&text[start..open]));
            }
            pieces.push(Piece::Variable(inner));
            start = close + 1;
            from = start;
        }
    }
    if start < text.len() {
        pieces.push(Piece::Text(&text[start..]));
    }
    pieces
}

/// Tells whether a text is a variable of the framework: a source's name, then `:` or `(`. `AWS::Region`, `Table.Arn`
/// and `!Literal` are CloudFormation's.
fn is_variable(inner: &str) -> bool {
    let name = inner.bytes().take_while(u8::is_ascii_alphanumeric).count();
    let rest = &inner[name..];
    inner.starts_with(|first: char| first.is_ascii_lowercase())
        && (rest.starts_with('(') || rest.starts_with(':') && !rest.starts_with("::"))
}

/// Finds the `}` that closes a variable. `text` begins inside the variable.
fn closing_brace(text: &str) -> Option<usize> {
    outside(text).find(|&(_, character, depth)| character == '}' && depth == 0).map(|(offset, ..)| offset)
}

fn alternatives(variable: &str) -> Vec<&str> {
    let mut alternatives = Vec::new();
    let mut start = 0;
    for (offset, character, depth) in outside(variable) {
        if character == ',' && depth == 0 {
            alternatives.push(&variable[start..offset]);
            start = offset + 1;
        }
    }
    alternatives.push(&variable[start..]);
    alternatives
}

/// Returns the characters of `text` outside quotes, each with its offset and its depth in braces and parentheses.
fn outside(text: &str) -> impl Iterator<Item = (usize, char, u32)> {
    let (mut quote, mut depth) = (None, 0_u32);
    text.char_indices().filter_map(move |(offset, character)| {
        let before = depth;
        match (quote, character) {
            (Some(open), _) => {
                quote = Some(open).filter(|&open| open != character);
                return None;
            }
            (None, '\'' | '"') => quote = Some(character),
            (None, '{' | '(') => depth += 1,
            (None, '}' | ')') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
        Some((offset, character, before))
    })
}

/// Reads a fallback that is a value: a text in quotes, a number, a boolean or null.
fn literal(source: &str) -> Option<Value> {
    for quote in ['\'', '"'] {
        if let Some(text) = source.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return Some(Value::from(text));
        }
    }
    let value = serde_json::from_str(source).ok()?;
    matches!(value, Value::Null | Value::Bool(_) | Value::Number(_)).then_some(value)
}

#[cfg(test)]
mod tests;
