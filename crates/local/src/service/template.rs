//! CloudFormation templates, as far as tables, environment values, roles and the WebSocket API need them.
//!
//! A service's definition of a generated resource is merged into the framework's: first `Resources`, level by level,
//! then the properties of `extensions`, each as a whole (`merge-custom-provider-resources.js`).

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::definition::Table;
use super::error::{Problem, parse};
use super::generated::{self, Names};
use super::intrinsics::{self, Intrinsics};
use super::key_path::{KeyPath, Placed, parts};
use super::kinds::{API_KEY, EXTENSIBLE, GATEWAY, IGNORED_IF_GENERATED, POLICIES, ROLE, TABLE, USAGE_PLAN};
use super::resources::{Resource, Resources};
use super::tables::{self, TableDefinition};

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
    /// The extensions that `keys.rs` allows.
    #[serde(default, rename = "extensions")]
    extensions: BTreeMap<String, Extension>,
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
    pub(super) fn load(resources: &Value, names: &Names<'_>) -> Result<(Self, Vec<Table>), Problem> {
        let mut reader = Reader::new(names);
        for (template, at) in parts(resources, &KeyPath::default().key("resources")) {
            reader.add(parse(template, &at)?, &at)?;
        }
        let Reader { mut templates, tables, extensions, conditional } = reader;
        for (id, properties) in extensions {
            templates.additions.entry(id).or_default().extend(properties);
        }
        for (id, condition, at) in conditional {
            if !templates.intrinsics.condition(&condition, &at)? {
                templates.definitions.remove(&id);
            }
        }
        let default_prefix = format!("{}-{}", names.service, names.stage);
        let tables = tables::read(tables, &mut templates.intrinsics, &default_prefix)?;
        Ok((templates, tables))
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
struct Reader {
    templates: Templates,
    tables: Vec<TableDefinition>,
    extensions: BTreeMap<String, Properties>,
    /// The resources with a condition: logical id, name and place of the condition.
    conditional: Vec<(String, String, KeyPath)>,
}

impl Reader {
    fn new(names: &Names<'_>) -> Self {
        let resources = Resources {
            stack_name: names.stack.clone(),
            region: names.region.to_owned(),
            by_id: generated::resources(names),
        };
        let intrinsics = Intrinsics { resources, conditions: BTreeMap::new() };
        let templates = Templates { intrinsics, definitions: BTreeMap::new(), additions: BTreeMap::new() };
        Self { templates, tables: Vec::new(), extensions: BTreeMap::new(), conditional: Vec::new() }
    }

    fn add(&mut self, template: Template, at: &KeyPath) -> Result<(), Problem> {
        for (name, condition) in template.conditions {
            let at = at.key("Conditions").key(&name);
            self.templates.intrinsics.conditions.insert(name, (condition, at));
        }
        for (id, definition) in template.resources {
            let at = at.key("Resources").key(&id);
            match self.resources().get(&id).map(|known| known.kind.clone()) {
                Some(known) => self.add_to_known(id, &known, definition, &at)?,
                None => self.add_resource(id, definition, &at)?,
            }
        }
        for (id, extension) in template.extensions {
            let at = at.key("extensions").key(&id);
            if !self.resources().get(&id).is_some_and(|it| EXTENSIBLE.contains(&it.kind.as_str())) {
                return Err(Problem::new(&at, "the framework generates no resource of this logical id"));
            }
            merge(self.extensions.entry(id).or_default(), extension.properties, &at.key("Properties"));
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
        }
        if IGNORED_IF_GENERATED.contains(&known) {
            return Ok(());
        }
        Err(Problem::new(at, "the stack has a resource of this logical id already"))
    }

    fn add_resource(&mut self, id: String, definition: ResourceDefinition, at: &KeyPath) -> Result<(), Problem> {
        let kind = definition.kind.ok_or_else(|| Problem::new(at, "missing field `Type`"))?;
        let properties_at = at.key("Properties");
        let resource = if kind == TABLE {
            let (logical_id, properties) = (id.clone(), definition.properties);
            let has_stream = properties.contains_key("StreamSpecification");
            self.tables.push(TableDefinition { logical_id, properties, at: properties_at });
            Resource::table(has_stream)
        } else {
            let name = format!("{}-{id}", self.templates.intrinsics.resources.stack_name);
            let is_of = |kinds: &[&str]| kinds.contains(&kind.as_str());
            if kind == ROLE || is_of(&POLICIES) || is_of(&GATEWAY) {
                let properties = Value::Object(definition.properties);
                self.templates.definitions.insert(id.clone(), (properties, properties_at));
            }
            self.conditional.extend(definition.condition.map(|name| (id.clone(), name, at.key("Condition"))));
            Resource::new(&kind, if is_of(&[API_KEY, USAGE_PLAN]) { short_id(&name) } else { name })
        };
        self.templates.intrinsics.resources.by_id.insert(id, resource);
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
