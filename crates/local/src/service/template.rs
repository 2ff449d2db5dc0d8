//! CloudFormation templates, as far as tables, environment values, roles and the WebSocket API need them.
//!
//! A service's definition of a generated resource is merged into the framework's: first `Resources`, level by level,
//! then the properties of `extensions`, each as a whole (`merge-custom-provider-resources.js`).

use std::cell::RefCell;
use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::definition::Table;
use super::error::{Problem, parse};
use super::findings::Findings;
use super::generated::{self, Names};
use super::intrinsics::{self, Intrinsics};
use super::key_path::{KeyPath, Placed, parts};
use super::kinds::{
    self, API_KEY, BUCKET, EXTENSIBLE, FUNCTION, FUNCTION_PROPERTIES, GATEWAY, GLOBAL_TABLE, IGNORED_IF_GENERATED,
    LOG_GROUP, POLICIES, ROLE, TABLES, USAGE_PLAN,
};
use super::resources::{Resource, Resources};
use super::tables::{self, TableDefinition};

/// The plugin that writes `#{AWS::Region}` for `Fn::Sub`.
const PSEUDO_PARAMETERS: &str = "serverless-pseudo-parameters";

/// All templates of a service, merged.
#[derive(Debug)]
pub(super) struct Templates {
    pub(super) intrinsics: Intrinsics,
    /// The properties of roles, policies and the gateway's resources, by logical id.
    pub(super) definitions: BTreeMap<String, Placed>,
    /// The properties that the templates add to generated resources, by logical id.
    pub(super) additions: BTreeMap<String, Properties>,
}

/// Properties by name.
pub(super) type Properties = BTreeMap<String, Placed>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, expecting = "a CloudFormation template")]
struct Template {
    #[serde(default)]
    resources: BTreeMap<String, ResourceDefinition>,
    #[serde(default)]
    conditions: BTreeMap<String, Value>,
    #[serde(default)]
    mappings: BTreeMap<String, Value>,
    #[serde(default)]
    parameters: BTreeMap<String, Parameter>,
    /// The extensions that `keys.rs` allows.
    #[serde(default, rename = "extensions")]
    extensions: BTreeMap<String, Extension>,
}

/// A parameter. Only its default matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", expecting = "a parameter")]
struct Parameter {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(default)]
    default: Value,
}

/// An addition to a resource that the framework generates.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, expecting = "a mapping with properties")]
struct Extension {
    #[serde(default)]
    properties: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, expecting = "a resource")]
struct ResourceDefinition {
    #[serde(rename = "Type")]
    kind: Option<String>,
    #[serde(default)]
    properties: Map<String, Value>,
    condition: Option<String>,
}

impl Templates {
    /// Reads `resources`: one template, or a list of them.
    pub(super) fn load(resources: &Value, names: &Names<'_>, findings: &Findings) -> (Self, Vec<Table>) {
        let mut reader = Reader::new(names, findings);
        for (template, at) in parts(resources, &KeyPath::default().key("resources")) {
            if let Some(template) = findings.parse(template, &at) {
                reader.add(template, &at);
            }
        }
        let Reader { mut templates, mut tables, extensions, conditional, named, .. } = reader;
        for (id, properties) in extensions {
            templates.additions.entry(id).or_default().extend(properties);
        }
        // The second round is for names that depend on other names.
        for _ in 0..2 {
            for (id, name, at) in &named {
                if let Ok((name, placeholders)) = templates.intrinsics.text_or_placeholder(name, at)
                    && placeholders.is_empty()
                {
                    templates.intrinsics.resources.rename(id, name);
                }
            }
        }
        for (id, condition, at) in conditional {
            if findings.keep(templates.intrinsics.condition(&condition, &at)) == Some(false) {
                templates.definitions.remove(&id);
                tables.retain(|table| table.logical_id != id);
            }
        }
        let default_prefix = format!("{}-{}", names.service, names.stage);
        let tables = tables::read(tables, &mut templates.intrinsics, &default_prefix, findings);
        (templates, tables)
    }

    /// Returns the resources of a kind, each with its `Ref`, properties and place.
    pub(super) fn of_kind<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<(String, T, KeyPath)>, Problem> {
        let mut found = Vec::new();
        for (id, (properties, at)) in &self.definitions {
            let (resource, name) = self.intrinsics.resources.named(id, at)?;
            if resource.kind == kind {
                found.push((name.to_owned(), parse(properties, at)?, at.clone()));
            }
        }
        Ok(found)
    }
}

/// The templates that have been read so far.
struct Reader<'a> {
    templates: Templates,
    tables: Vec<TableDefinition>,
    extensions: BTreeMap<String, Properties>,
    /// The resources with a condition: logical id, name and place of the condition.
    conditional: Vec<(String, String, KeyPath)>,
    /// The resources with a name of their own: logical id, name and its place.
    named: Vec<(String, Value, KeyPath)>,
    parameters: &'a BTreeMap<String, String>,
    findings: &'a Findings,
}

impl<'a> Reader<'a> {
    fn new(names: &'a Names<'_>, findings: &'a Findings) -> Self {
        let resources = Resources {
            stack_name: names.stack.clone(),
            region: names.region.to_owned(),
            by_id: generated::resources(names),
            has_plugins: !names.plugins.is_empty(),
        };
        let intrinsics = Intrinsics {
            resources,
            conditions: BTreeMap::new(),
            mappings: BTreeMap::new(),
            has_pseudo_parameters: names.plugins.iter().any(|plugin| plugin == PSEUDO_PARAMETERS),
            placeholders: RefCell::default(),
            used: RefCell::default(),
        };
        let templates = Templates { intrinsics, definitions: BTreeMap::new(), additions: BTreeMap::new() };
        Self {
            templates,
            tables: Vec::new(),
            extensions: BTreeMap::new(),
            conditional: Vec::new(),
            named: Vec::new(),
            parameters: &names.parameters,
            findings,
        }
    }

    fn add(&mut self, template: Template, at: &KeyPath) {
        for (name, condition) in template.conditions {
            let at = at.key("Conditions").key(&name);
            self.templates.intrinsics.conditions.insert(name, (condition, at));
        }
        self.templates.intrinsics.mappings.extend(template.mappings);
        for (id, parameter) in template.parameters {
            let default = match &parameter.default {
                // The default of such a parameter is the name of a parameter of SSM.
                _ if parameter.kind.starts_with("AWS::SSM::Parameter::Value") => None,
                Value::String(text) => Some(text.clone()),
                Value::Null => None,
                other => Some(other.to_string()),
            };
            let value = self.parameters.get(&id).cloned().or(default);
            self.templates.intrinsics.resources.by_id.insert(id, Resource::parameter(value));
        }
        for (id, definition) in template.resources {
            let at = at.key("Resources").key(&id);
            let result = match self.resources().get(&id).map(|known| known.kind.clone()) {
                Some(known) => self.add_to_known(id, &known, definition, &at),
                None => self.add_resource(id, definition, &at),
            };
            self.findings.keep(result);
        }
        for (id, extension) in template.extensions {
            let at = at.key("extensions").key(&id);
            let result = self.extend(id, extension, &at);
            self.findings.keep(result);
        }
    }

    /// Extends a resource that the framework generates.
    fn extend(&mut self, id: String, extension: Extension, at: &KeyPath) -> Result<(), Problem> {
        let kind = self.resources().get(&id).filter(|known| known.at.is_none()).map(|known| known.kind.clone());
        let at = at.key("Properties");
        match kind.as_deref() {
            Some(kind) if EXTENSIBLE.contains(&kind) => {
                merge(self.extensions.entry(id).or_default(), extension.properties, &at);
            }
            Some(ROLE) => {
                let changes = ["Policies", "ManagedPolicyArns", "PermissionsBoundary", "RoleName"];
                if changes.iter().any(|change| extension.properties.contains_key(*change)) {
                    self.templates.additions.entry(id).or_default();
                    self.findings
                        .ignore(&at, "a role that is changed here is not read: every function may do everything");
                }
            }
            Some(BUCKET | LOG_GROUP) => {}
            Some(FUNCTION) => {
                if let Some(key) = extension.properties.keys().find(|key| !FUNCTION_PROPERTIES.contains(&key.as_str()))
                {
                    return Err(Problem::new(&at.key(key), "not supported here: write it into `functions`"));
                }
            }
            Some(_) => return Err(Problem::new(&at, "the local stack does not extend resources of this kind")),
            None if generated::is_generated_for_others(&id) => {}
            None if self.templates.intrinsics.resources.has_plugins => {
                self.findings.ignore(&at, "the framework generates no resource of this logical id; a plugin may");
            }
            None => return Err(Problem::new(&at, "the framework generates no resource of this logical id")),
        }
        Ok(())
    }

    /// Adds the definition of a resource that is in the stack already. Only generated resources may be there twice.
    fn add_to_known(
        &mut self,
        id: String,
        known: &str,
        definition: ResourceDefinition,
        at: &KeyPath,
    ) -> Result<(), Problem> {
        let additions = &mut self.templates.additions;
        if EXTENSIBLE.contains(&known) {
            // The framework has this check, too.
            let kind = definition.kind.ok_or_else(|| Problem::new(at, "missing field `Type`"))?;
            if kind == known {
                merge(additions.entry(id).or_default(), definition.properties, &at.key("Properties"));
                return Ok(());
            }
        }
        if known == ROLE {
            additions.entry(id).or_default();
            self.findings.ignore(at, "a role that is changed here is not read: every function may do everything");
        }
        if IGNORED_IF_GENERATED.contains(&known) {
            return Ok(());
        }
        Err(Problem::new(at, "the stack has a resource of this logical id already"))
    }

    fn add_resource(&mut self, id: String, definition: ResourceDefinition, at: &KeyPath) -> Result<(), Problem> {
        let kind = definition.kind.ok_or_else(|| Problem::new(at, "missing field `Type`"))?;
        let properties_at = at.key("Properties");
        self.conditional.extend(definition.condition.map(|name| (id.clone(), name, at.key("Condition"))));
        let resource = if TABLES.contains(&kind.as_str()) {
            let (logical_id, mut properties) = (id.clone(), definition.properties);
            if kind == GLOBAL_TABLE {
                // Replicas share what they write, and each has a throughput of its own. Here is one, which has no limit.
                properties.remove("Replicas");
                properties.insert("BillingMode".to_owned(), Value::from("PAY_PER_REQUEST"));
            }
            let has_stream = properties.contains_key("StreamSpecification");
            self.tables.push(TableDefinition { logical_id, properties, at: properties_at });
            Resource::table(has_stream)
        } else {
            let name = format!("{}-{id}", self.templates.intrinsics.resources.stack_name);
            let is_of = |kinds: &[&str]| kinds.contains(&kind.as_str());
            let name_property = kinds::name_property(&kind);
            if let Some((key, name)) = name_property.and_then(|key| Some((key, definition.properties.get(key)?))) {
                self.named.push((id.clone(), name.clone(), properties_at.key(key)));
            }
            if kind == ROLE || is_of(&POLICIES) || is_of(&GATEWAY) {
                let properties = Value::Object(definition.properties);
                self.templates.definitions.insert(id.clone(), (properties, properties_at));
            }
            Resource::new(&kind, if is_of(&[API_KEY, USAGE_PLAN]) { short_id(&name) } else { name })
        };
        self.templates.intrinsics.resources.by_id.insert(id, resource.placed(at));
        Ok(())
    }

    fn resources(&self) -> &BTreeMap<String, Resource> {
        &self.templates.intrinsics.resources.by_id
    }
}

/// Adds properties to others. A mapping is merged with the existing one.
fn merge(properties: &mut Properties, added: Map<String, Value>, at: &KeyPath) {
    for (key, value) in added {
        let at = at.key(&key);
        match (properties.get_mut(&key), value) {
            (Some((Value::Object(entries), _)), Value::Object(added)) if intrinsics::call(&added).is_none() => {
                entries.extend(added);
            }
            (_, value) => drop(properties.insert(key, (value, at))),
        }
    }
}

/// Makes an id like those of keys and plans in API Gateway: ten characters. It is the same in every run.
fn short_id(name: &str) -> String {
    sha256(name)[..10].to_owned()
}

/// Returns the digest in hexadecimal.
pub(super) fn sha256(text: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(text))
}
