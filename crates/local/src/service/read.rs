//! Reads the parts of a service in order: names, templates, functions, the API.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::definition::{API_ID, Function, Service, Settings};
use super::error::{Ignored, Location, Problem, ServiceError, ServiceErrors};
use super::findings::Findings;
use super::functions::{self, Definitions, is_word};
use super::generated::Names;
use super::key_path::KeyPath;
use super::kinds::{PASSIVE, TABLES};
use super::schema::{Provider, Root, Websocket};
use super::template::Templates;
use super::variables::{DEFAULT_REGION, DEFAULT_STAGE, Document, SCRIPTS};
use super::websocket::{self, Authorization};
use super::{declared, roles, routes, shapes, yaml};
use crate::gateway::{Definition, Paths};
use crate::iam::ACCOUNT_ID;

/// The plugin that gives each function a role of its own.
const ROLES_PER_FUNCTION: &str = "serverless-iam-roles-per-function";

/// The plugins whose work is done here, or has no meaning here.
const KNOWN_PLUGINS: [&str; 8] = [
    ROLES_PER_FUNCTION,
    "cargo-lambda",
    "serverless-cargo-lambda",
    "serverless-dotenv-plugin",
    "serverless-offline",
    "serverless-prune-plugin",
    "serverless-pseudo-parameters",
    "serverless-rust",
];

/// The framework's default for the route selection expression.
const DEFAULT_ROUTE_SELECTION_EXPRESSION: &str = "$request.body.action";

/// The most characters of [a stage's
/// name](https://docs.aws.amazon.com/apigatewayv2/latest/api-reference/apis-apiid-stages.html).
const MAX_STAGE_LENGTH: usize = 128;

/// What a serverless.yml says.
#[derive(Debug)]
pub struct Reading {
    /// The service, without its refused parts. It is `None` if too little of it can be read.
    pub service: Option<Service>,
    /// The parts that the stack leaves out.
    pub ignored: Vec<Ignored>,
    /// The parts that the stack refuses. With one of them, the service does not start.
    pub refused: Vec<ServiceError>,
}

impl Service {
    /// Reads the serverless.yml at `path` and the files that it includes.
    ///
    /// # Errors
    ///
    /// When a file is missing or not YAML, or a part of it is refused.
    pub fn load(path: &Path, settings: &Settings) -> Result<Self, ServiceErrors> {
        match Reading::of(path, settings) {
            Reading { service: Some(service), refused, .. } if refused.is_empty() => Ok(service),
            Reading { refused, .. } => Err(ServiceErrors(refused)),
        }
    }
}

impl Reading {
    /// Reads the serverless.yml at `path` and the files that it includes, as far as possible.
    #[must_use]
    pub fn of(path: &Path, settings: &Settings) -> Self {
        let folder = path.parent().unwrap_or(Path::new(""));
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if SCRIPTS.contains(&extension) {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let reason = format!(
                "this is a program: `osls print --config {file} > resolved.yml` writes YAML, and \
                 `--config resolved.yml` reads that"
            );
            return Self::failed(ServiceError::Invalid { location: Location::of_file(file), reason });
        }
        let document = match Document::load(path, settings) {
            Ok(document) => document,
            Err(error) => return Self::failed(with_line(error, folder)),
        };
        let validation = serde_json::from_value(document.value["configValidationMode"].clone()).unwrap_or_default();
        let findings = Findings::new(validation);
        for problem in &document.ignored {
            findings.ignore(&problem.at, problem.reason.clone());
        }
        for problem in &document.invalid {
            findings.report_invalid(&problem.at, problem.reason.clone());
        }
        let service = if document.is_complete() { service(&document, settings, &findings) } else { None };
        let (refused, ignored) = findings.into_parts();
        let idle = service.iter().flat_map(|service| &service.idle_functions);
        let idle: Vec<_> = idle.map(|key| KeyPath::default().key("functions").key(key).key("environment")).collect();
        let ignored = ignored.into_iter().filter(|it| !idle.iter().any(|idle| it.at.is_within(idle)));
        let mut texts = BTreeMap::new();
        // A value that a variable could not give is told once, with the variable.
        let refused = refused.into_iter().filter(|problem| {
            !document.errors.iter().any(|(at, _)| at.is_within(&problem.at) || problem.at.is_within(at))
        });
        let refused: Vec<_> = refused.map(|problem| document.error(problem)).collect();
        let refused = document.errors.iter().map(|(_, error)| error.clone()).chain(refused);
        let mut refused: Vec<_> = refused
            .map(|error| with_line_of(error, folder, &mut texts))
            .filter({
                let mut told = BTreeSet::new();
                move |error| told.insert(error.to_string())
            })
            .collect();
        refused.sort_by_key(ServiceError::place);
        let ignored = grouped(ignored.map(|problem| {
            let mut location = document.location(&problem.at);
            location.line = line(&location, folder, &mut texts);
            (location, problem.reason)
        }));
        Self { service, ignored, refused }
    }

    fn failed(error: ServiceError) -> Self {
        Self { service: None, ignored: Vec::new(), refused: vec![error] }
    }
}

/// Joins the parts of one file that are left out for the same reason.
fn grouped(parts: impl Iterator<Item = (Location, String)>) -> Vec<Ignored> {
    let mut groups: Vec<Ignored> = Vec::new();
    let mut parts: Vec<_> = parts.collect();
    parts.sort_by_key(|(location, _)| (location.file.clone(), location.line));
    for (location, reason) in parts {
        let same = |group: &&mut Ignored| group.reason == reason && group.location.file == location.file;
        match groups.iter_mut().find(same) {
            Some(group) if location.line == group.location.line => {}
            Some(group) => group.also.extend(location.line.filter(|line| !group.also.contains(line))),
            None => groups.push(Ignored { location, also: Vec::new(), reason }),
        }
    }
    groups
}

/// The texts of files.
type Texts = BTreeMap<String, Option<String>>;

/// Adds the line of the key to an error. It reads the file once more for that.
fn with_line(error: ServiceError, folder: &Path) -> ServiceError {
    with_line_of(error, folder, &mut Texts::new())
}

fn with_line_of(mut error: ServiceError, folder: &Path, texts: &mut Texts) -> ServiceError {
    if let ServiceError::Invalid { location, .. } = &mut error {
        location.line = line(location, folder, texts);
    }
    error
}

fn line(location: &Location, folder: &Path, texts: &mut Texts) -> Option<usize> {
    let read = || std::fs::read_to_string(folder.join(&location.file)).ok();
    let text = texts.entry(location.file.clone()).or_insert_with(read);
    text.as_ref().and_then(|text| yaml::line(text, &location.key))
}

fn service(document: &Document, settings: &Settings, findings: &Findings) -> Option<Service> {
    let top = KeyPath::default();
    let mut value = document.value.clone();
    // `provider: aws` is the short form.
    if value["provider"].is_string() {
        value["provider"] = json!({"name": value["provider"]});
    }
    let mut root: Root = findings.parse(&value, &top)?;
    root.provider
        .environment
        .extend(document.dotenv.iter().map(|(name, value)| (name.clone(), Value::from(value.clone()))));
    let provider = &root.provider;
    let service_name = root.service.0;

    if !is_service_name(&service_name) {
        let reason = format!("`{service_name}` is not a letter followed by letters, digits and `-`");
        findings.refuse(Problem::new(&top.key("service"), reason));
    }
    let mut stage = settings.stage.as_ref().or(provider.stage.as_ref()).map_or(DEFAULT_STAGE, String::as_str);
    // API Gateway allows `_`, and SAM asks nobody else. The framework does not, because names of resources contain the stage.
    let has_word = is_word(stage) && (document.is_template || !stage.contains('_'));
    if stage.len() > MAX_STAGE_LENGTH || !has_word {
        let others = if document.is_template { ", `-` and `_`" } else { " and `-`" };
        let reason = format!("the stage `{stage}` is not 1 to {MAX_STAGE_LENGTH} letters, digits{others}");
        findings.refuse(Problem::new(&top.key("provider").key("stage"), reason));
        stage = DEFAULT_STAGE;
    }
    if let Some(stack) = provider.stack_name.as_ref().filter(|stack| !is_service_name(stack)) {
        let reason = format!("`{stack}` is not a letter followed by letters, digits and `-`");
        findings.refuse(Problem::new(&top.key("provider").key("stackName"), reason));
    }
    let region = settings.region.as_ref().or(provider.region.as_ref()).map_or(DEFAULT_REGION, String::as_str);
    report_shape(&top.key("provider"), "region", &value["provider"]["region"], findings);
    let foreign: Vec<_> = document.plugins.iter().filter(|it| !KNOWN_PLUGINS.contains(&it.as_str())).collect();
    if !foreign.is_empty() {
        let names = foreign.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        findings.ignore(&top.key("plugins"), format!("plugins do not run here: {names}"));
    }

    let definitions = functions::definitions(&root.functions, findings);
    for (definition, at) in definitions.values() {
        report_shape(at, "package", &definition.package, findings);
    }
    let names = definitions.iter().map(|(key, (definition, _))| {
        let default = || format!("{service_name}-{stage}-{key}");
        (key.clone(), definition.name.clone().unwrap_or_else(default))
    });
    let names: BTreeMap<String, String> = names.collect();
    let route_keys = websocket_events(&definitions).map(|event| event.route.clone()).collect();
    let parameters = provider.stack_parameters.iter().filter_map(|parameter| {
        let value =
            parameter.parameter_value.as_str().map_or_else(|| parameter.parameter_value.to_string(), str::to_owned);
        Some((parameter.parameter_key.clone(), value)).filter(|(_, value)| !value.contains("${"))
    });
    let (templates, tables) = Templates::load(
        &root.resources,
        &Names {
            service: &service_name,
            stage,
            region,
            stack: provider.stack_name.clone().unwrap_or_else(|| format!("{service_name}-{stage}")),
            functions: &names,
            routes: &route_keys,
            parameters: parameters.collect(),
            plugins: &document.plugins,
        },
        findings,
    );
    let api = api(&definitions, &names, provider, &templates, region, stage, findings);
    let mut sources: BTreeMap<_, _> = definitions
        .iter()
        .map(|(key, (definition, at))| {
            (key.clone(), functions::sources(definition, at, &templates.intrinsics, findings))
        })
        .collect();
    declared::add_mappings(&templates, &names, &mut sources, findings);
    let authorizer = api.authorizer.iter().map(|authorizer| &authorizer.function);
    let invoked: BTreeSet<&String> = api.routes.values().chain(authorizer).collect();
    let mut functions = BTreeMap::new();
    templates.intrinsics.used.take();
    for (key, placed) in &definitions {
        let sources = sources.remove(key).unwrap_or_default();
        if invoked.contains(key) || !sources.streams.is_empty() || !sources.schedules.is_empty() {
            let name = names[key].clone();
            let function = functions::function(name, placed, sources, provider, &templates.intrinsics, findings);
            functions.insert(key.clone(), function);
        }
    }
    name_absent_resources(&templates, findings);
    if !settings.no_iam {
        roles(&mut functions, &definitions, provider, &templates, document, findings);
    }
    let idle_functions = names.into_keys().filter(|key| !functions.contains_key(key)).collect();
    Some(Service { name: service_name, region: region.to_owned(), functions, idle_functions, api, tables })
}

/// Reports the value of a key that the framework refuses.
fn report_shape(parent: &KeyPath, key: &str, value: &Value, findings: &Findings) {
    if let Some(reason) = shapes::problem(&parent.keys(), key, value) {
        findings.report_invalid(&parent.key(key), reason);
    }
}

/// Reports the resources that the environment of a function names and that are not here.
fn name_absent_resources(templates: &Templates, findings: &Findings) {
    let intrinsics = &templates.intrinsics;
    for id in intrinsics.used.take() {
        let Some(resource) = intrinsics.resources.by_id.get(&id) else { continue };
        let Some(at) = &resource.at else { continue };
        if !TABLES.contains(&resource.kind.as_str()) && !PASSIVE.contains(&resource.kind.as_str()) {
            findings.ignore(at, format!("{} is not imitated: calls to it leave this machine", resource.kind));
        }
    }
}

/// Gives functions their roles.
fn roles(
    functions: &mut BTreeMap<String, Function>,
    definitions: &Definitions,
    provider: &Provider,
    templates: &Templates,
    document: &Document,
    findings: &Findings,
) {
    let has_default_role = functions.keys().any(|key| definitions[key].0.role.is_null());
    let default_role = has_default_role.then(|| findings.keep(roles::default(templates, provider, findings)));
    let default_role = default_role.flatten().flatten().map(Arc::new);
    let has_own_roles = document.plugins.iter().any(|plugin| plugin == ROLES_PER_FUNCTION);
    for (key, function) in functions {
        let placed = &definitions[key];
        let (definition, at) = placed;
        let has_own_statements = !definition.iam_role_statements.is_null();
        if has_own_statements && !has_own_roles {
            findings.report_unknown(&at.key("iamRoleStatements"));
        }
        function.role = match &definition.role {
            Value::Null if has_own_statements && has_own_roles => {
                let role = roles::of_function(templates, provider, key, placed, findings);
                findings.keep(role).map(Arc::new)
            }
            Value::Null => default_role.clone(),
            role => findings.keep(roles::read(templates, role, &at.key("role"), findings)).flatten().map(Arc::new),
        };
    }
}

fn api(
    definitions: &Definitions,
    names: &BTreeMap<String, String>,
    provider: &Provider,
    templates: &Templates,
    region: &str,
    stage: &str,
    findings: &Findings,
) -> Definition {
    let mut routes = BTreeMap::new();
    let mut authorizer = None;
    for (key, (definition, at)) in definitions {
        routes::add(&mut routes, key, definition, at, findings);
        let own = findings.keep(routes::authorizer(definition, at, names, &templates.intrinsics));
        authorizer = own.flatten().or(authorizer);
    }
    let two_way = websocket_events(definitions).filter(|event| event.is_two_way());
    let route_selection_expression = provider.websockets_api_route_selection_expression.clone();
    let mut api = Definition {
        api_id: API_ID.to_owned(),
        arn: format!("arn:aws:execute-api:{region}:{ACCOUNT_ID}:{API_ID}"),
        stage: stage.to_owned(),
        stage_variables: BTreeMap::new(),
        paths: Paths::default(),
        route_selection_expression: route_selection_expression
            .unwrap_or_else(|| DEFAULT_ROUTE_SELECTION_EXPRESSION.to_owned()),
        routes,
        two_way_routes: two_way.map(|event| event.route.clone()).collect(),
        request_models: BTreeMap::new(),
        authorizer,
        is_iam_authorized: false,
        api_keys: None,
    };
    declared::add_routes(templates, names, &mut api, findings);
    if api.routes.is_empty() && findings.has_refused_nothing() {
        findings.refuse(Problem::new(&KeyPath::default().key("functions"), "no function has a websocket event"));
    }
    match findings.keep(websocket::complete(templates, &mut api)).flatten() {
        Some((Authorization::Custom, at)) if api.authorizer.is_none() => {
            findings.refuse(Problem::new(&at, "the `$connect` event has no `authorizer`"));
        }
        Some((Authorization::None, _)) => api.authorizer = None,
        Some((Authorization::Iam, _)) => (api.authorizer, api.is_iam_authorized) = (None, true),
        Some((Authorization::Custom, _)) | None => {}
    }
    api
}

fn websocket_events(definitions: &Definitions) -> impl Iterator<Item = &Websocket> {
    definitions.values().flat_map(|(definition, _)| &definition.events).filter_map(|event| event.websocket.as_ref())
}

/// Tests the framework's pattern: a letter, then letters, digits and `-`, at least two characters in all.
fn is_service_name(name: &str) -> bool {
    let rest = name.strip_prefix(|first: char| first.is_ascii_alphabetic());
    rest.is_some_and(|rest| !rest.is_empty() && is_word(rest) && !rest.contains('_'))
}

#[cfg(test)]
mod tests;
