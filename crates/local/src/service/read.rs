//! Reads the parts of a service in order: names, templates, functions, the API.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::definition::{API_ID, Function, Service, Settings};
use super::error::{Problem, ServiceError, parse};
use super::functions::{self, Definitions, is_word};
use super::generated::Names;
use super::key_path::KeyPath;
use super::schema::{Provider, Root, Websocket};
use super::template::Templates;
use super::variables::{DEFAULT_STAGE, Document};
use super::websocket::{self, Authorization};
use super::{roles, routes, yaml};
use crate::gateway::{Definition, Paths};
use crate::iam::ACCOUNT_ID;

/// The framework's default for the region.
const DEFAULT_REGION: &str = "us-east-1";

/// The framework's default for the route selection expression.
const DEFAULT_ROUTE_SELECTION_EXPRESSION: &str = "$request.body.action";

/// The most characters of [a stage's
/// name](https://docs.aws.amazon.com/apigatewayv2/latest/api-reference/apis-apiid-stages.html).
const MAX_STAGE_LENGTH: usize = 128;

impl Service {
    /// Reads the serverless.yml at `path` and the files that it includes.
    ///
    /// # Errors
    ///
    /// When a file is missing or not YAML, or a key is unknown, not supported, or has a value that it cannot have.
    pub fn load(path: &Path, settings: &Settings) -> Result<Self, ServiceError> {
        let read = || {
            let document = Document::load(path, settings)?;
            service(&document.value, settings).map_err(|problem| document.error(problem))
        };
        read().map_err(|error| with_line(error, path.parent().unwrap_or(Path::new(""))))
    }
}

/// Adds the line of the key to an error. It reads the file once more for that.
fn with_line(mut error: ServiceError, folder: &Path) -> ServiceError {
    if let ServiceError::Invalid { location, .. } = &mut error {
        let text = std::fs::read_to_string(folder.join(&location.file));
        location.line = text.ok().and_then(|text| yaml::line(&text, &location.key));
    }
    error
}

fn service(document: &Value, settings: &Settings) -> Result<Service, Problem> {
    let top = KeyPath::default();
    let root: Root = parse(document, &top)?;
    let provider = &root.provider;

    if !is_service_name(&root.service) {
        let reason = format!("`{}` is not a letter followed by letters, digits and `-`", root.service);
        return Err(Problem::new(&top.key("service"), reason));
    }
    let stage = settings.stage.as_ref().or(provider.stage.as_ref()).map_or(DEFAULT_STAGE, String::as_str);
    if stage.len() > MAX_STAGE_LENGTH || !is_word(stage) {
        let reason = format!("the stage `{stage}` is not 1 to {MAX_STAGE_LENGTH} letters, digits, `-` and `_`");
        return Err(Problem::new(&top.key("provider").key("stage"), reason));
    }
    let region = provider.region.as_deref().unwrap_or(DEFAULT_REGION);

    let definitions = functions::definitions(&root.functions)?;
    let names = definitions.iter().map(|(key, (definition, _))| {
        let default = || format!("{}-{stage}-{key}", root.service);
        (key.clone(), definition.name.clone().unwrap_or_else(default))
    });
    let names: BTreeMap<String, String> = names.collect();
    let route_keys = websocket_events(&definitions).map(|event| event.route.clone()).collect();
    let (templates, tables) = Templates::load(
        &root.resources,
        &Names {
            service: &root.service,
            stage,
            region,
            stack: provider.stack_name.clone().unwrap_or_else(|| format!("{}-{stage}", root.service)),
            functions: &names,
            routes: &route_keys,
        },
    )?;
    let functions = functions(&definitions, &names, provider, &templates, settings.no_iam)?;
    let api = api(&definitions, &names, provider, &templates, region, stage)?;
    Ok(Service { name: root.service, region: region.to_owned(), functions, api, tables })
}

fn functions(
    definitions: &Definitions,
    names: &BTreeMap<String, String>,
    provider: &Provider,
    templates: &Templates,
    no_iam: bool,
) -> Result<BTreeMap<String, Function>, Problem> {
    let has_default_role = !no_iam && definitions.values().any(|(definition, _)| definition.role.is_null());
    let default_role = if has_default_role { roles::default(templates, provider)? } else { None }.map(Arc::new);
    let mut functions = BTreeMap::new();
    for (key, (definition, at)) in definitions {
        let name = names[key].clone();
        let mut function = functions::function(name, definition, at, provider, &templates.intrinsics)?;
        if !no_iam {
            function.role = match &definition.role {
                Value::Null => default_role.clone(),
                role => roles::read(templates, role, &at.key("role"))?.map(Arc::new),
            };
        }
        functions.insert(key.clone(), function);
    }
    Ok(functions)
}

fn api(
    definitions: &Definitions,
    names: &BTreeMap<String, String>,
    provider: &Provider,
    templates: &Templates,
    region: &str,
    stage: &str,
) -> Result<Definition, Problem> {
    let mut routes = BTreeMap::new();
    let mut authorizer = None;
    for (key, (definition, at)) in definitions {
        routes::add(&mut routes, key, definition, at)?;
        authorizer = routes::authorizer(definition, at, names, &templates.intrinsics)?.or(authorizer);
    }
    if routes.is_empty() {
        return Err(Problem::new(&KeyPath::default().key("functions"), "no function has a websocket event"));
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
    match websocket::complete(templates, &mut api)? {
        Some((Authorization::Custom, at)) if api.authorizer.is_none() => {
            return Err(Problem::new(&at, "the `$connect` event has no `authorizer`"));
        }
        Some((Authorization::None, _)) => api.authorizer = None,
        Some((Authorization::Iam, _)) => (api.authorizer, api.is_iam_authorized) = (None, true),
        Some((Authorization::Custom, _)) | None => {}
    }
    Ok(api)
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
