//! Templates of the AWS Serverless Application Model (SAM), translated into the words of a serverless.yml.
//!
//! This module follows [AWS::Serverless::Function](https://docs.aws.amazon.com/serverless-application-model/latest/developerguide/sam-resource-function.html),
//! [AWS::Serverless::WebSocketApi](https://docs.aws.amazon.com/serverless-application-model/latest/developerguide/sam-resource-websocketapi.html)
//! and [AWS::Serverless::SimpleTable](https://docs.aws.amazon.com/serverless-application-model/latest/developerguide/sam-resource-simpletable.html).
//! The other readers then read the result, and problems name the places in the template. Functions get the logical ids
//! that the framework would give them, so references are renamed.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::error::Problem;
use super::generated::{self, API, STAGE};
use super::key_path::KeyPath;
use super::kinds;
use policies::Policies;

const FUNCTION: &str = "AWS::Serverless::Function";
const WEBSOCKET_API: &str = "AWS::Serverless::WebSocketApi";
const SIMPLE_TABLE: &str = "AWS::Serverless::SimpleTable";
const CONNECTOR: &str = "AWS::Serverless::Connector";
const TRANSFORM: &str = "AWS::Serverless-2016-10-31";

/// SAM's default for the stage of a WebSocket API.
const DEFAULT_STAGE: &str = "default";

/// Lambda's defaults for the batch size of a stream, and for the memory and the timeout of a function. The framework has
/// others.
const DEFAULT_BATCH_SIZE: u32 = 100;
const DEFAULT_MEMORY_SIZE: u32 = 128;
const DEFAULT_TIMEOUT: u32 = 3;

/// The reason why a property is refused.
const NOT_SUPPORTED: &str = "not supported by the local stack";

/// The properties of functions that no client and no function can see.
const IGNORED_OF_FUNCTIONS: [&str; 24] = [
    "Architectures",
    "AssumeRolePolicyDocument",
    "AutoPublishAlias",
    "AutoPublishAliasAllProperties",
    "AutoPublishCodeSha256",
    "CodeSigningConfigArn",
    "DeadLetterQueue",
    "DeploymentPreference",
    "Description",
    "EphemeralStorage",
    "EventInvokeConfig",
    "KmsKeyArn",
    "PropagateTags",
    "ProvisionedConcurrencyConfig",
    "PublishToLatestPublished",
    "RecursiveLoop",
    "RolePath",
    "Runtime",
    "RuntimeManagementConfig",
    "SourceKMSKeyArn",
    "Tags",
    "Tracing",
    "VersionDeletionPolicy",
    "VersionDescription",
];

/// The properties of functions that are missing loudly, each with the framework's key for the same.
const NOT_HERE: [(&str, &str); 5] = [
    ("FileSystemConfigs", "fileSystemConfig"),
    ("FunctionUrlConfig", "url"),
    ("Layers", "layers"),
    ("SnapStart", "snapStart"),
    ("VpcConfig", "vpc"),
];

/// The properties of a WebSocket API that change nothing here.
const IGNORED_OF_APIS: [&str; 9] = [
    "AccessLogSettings",
    "DefaultRouteSettings",
    "Description",
    "DisableSchemaValidation",
    "IpAddressType",
    "Name",
    "PropagateTags",
    "RouteSettings",
    "Tags",
];

/// The framework's key of each property of a stream's event.
const STREAM: [(&str, &str); 10] = [
    ("Stream", "arn"),
    ("BatchSize", "batchSize"),
    ("BisectBatchOnFunctionError", "bisectBatchOnFunctionError"),
    ("Enabled", "enabled"),
    ("MaximumBatchingWindowInSeconds", "batchWindow"),
    ("MaximumRecordAgeInSeconds", "maximumRecordAgeInSeconds"),
    ("MaximumRetryAttempts", "maximumRetryAttempts"),
    ("ParallelizationFactor", "parallelizationFactor"),
    ("StartingPosition", "startingPosition"),
    ("TumblingWindowInSeconds", "tumblingWindowInSeconds"),
];

/// A template in the words of a serverless.yml.
#[derive(Debug, Default)]
pub(super) struct Translation {
    pub(super) value: Value,
    /// Parts that are left out, and parts that are refused, by their places in the template.
    pub(super) ignored: Vec<Problem>,
    pub(super) refused: Vec<Problem>,
    /// The places in the template of the translated parts.
    places: BTreeMap<KeyPath, KeyPath>,
    /// The logical ids that references must have here.
    names: BTreeMap<String, String>,
}

/// Tells whether a file is a template of CloudFormation.
pub(super) fn is_template(root: &Value) -> bool {
    root["Resources"].is_object() && root.get("service").is_none()
}

/// Translates a template. `parameters` are values of its parameters, and `service` is the name of the stack.
pub(super) fn translate(root: &Value, service: &str, parameters: &BTreeMap<String, String>) -> Translation {
    let mut translation = Translation::default();
    translation.read(root, service, parameters);
    translation
}

impl Translation {
    /// Returns the place in the template of a place in the translation.
    pub(super) fn original(&self, at: &KeyPath) -> KeyPath {
        let mut steps = at.0.clone();
        let mut below = Vec::new();
        loop {
            if let Some(place) = self.places.get(&KeyPath(steps.clone())) {
                return below.into_iter().rev().fold(place.clone(), |place, step| place.then(step));
            }
            match steps.pop() {
                Some(step) => below.push(step),
                None => return at.clone(),
            }
        }
    }

    fn refuse(&mut self, at: &KeyPath, reason: impl Into<String>) {
        self.refused.push(Problem::new(at, reason));
    }

    fn read(&mut self, root: &Value, service: &str, parameters: &BTreeMap<String, String>) {
        let top = KeyPath::default();
        let transforms = match &root["Transform"] {
            Value::Array(items) => items.clone(),
            Value::Null => Vec::new(),
            one => vec![one.clone()],
        };
        if transforms.iter().any(|transform| transform != TRANSFORM) {
            self.refuse(&top.key("Transform"), format!("only {TRANSFORM} is read"));
        }
        let known = ["Api", "Function", "HttpApi", "SimpleTable", "StateMachine"];
        for (key, _) in entries(&root["Globals"]).filter(|(key, _)| !known.contains(&key.as_str())) {
            self.refuse(&top.key("Globals").key(key), NOT_SUPPORTED);
        }
        let resources: Vec<_> = entries(&root["Resources"]).collect();
        let is_api = |resource: &Value| {
            resource["Type"] == WEBSOCKET_API
                || (resource["Type"] == kinds::API && resource["Properties"]["ProtocolType"] == "WEBSOCKET")
        };
        let mut stage = None;
        for (id, resource) in &resources {
            let at = top.key("Resources").key(id);
            let is_read = resource["Type"] == FUNCTION || resource["Type"] == SIMPLE_TABLE || is_api(resource);
            if is_read && !resource["Condition"].is_null() {
                self.refuse(&at.key("Condition"), NOT_SUPPORTED);
            }
            if resource["Type"] == FUNCTION {
                self.names.insert((*id).clone(), generated::function_id(id));
            } else if is_api(resource) {
                if self.names.values().any(|name| name == API) {
                    self.refuse(&at, "a second WebSocket API does not run here");
                }
                self.names.insert((*id).clone(), API.to_owned());
            } else if resource["Type"] == kinds::STAGE {
                self.names.insert((*id).clone(), STAGE.to_owned());
            }
            if is_api(resource) || resource["Type"] == kinds::STAGE {
                let name = &resource["Properties"]["StageName"];
                let known = self.stage(name, root, parameters, &at.key("Properties").key("StageName"));
                stage = known.or(stage);
            }
        }
        let mut functions = Map::new();
        let mut others = Map::new();
        for (id, resource) in &resources {
            if resource["Type"] == FUNCTION {
                functions.insert((*id).clone(), self.function(id, resource, root, &mut others));
            }
        }
        let mut route_selection_expression = Value::Null;
        for (id, resource) in &resources {
            let at = top.key("Resources").key(id);
            match resource["Type"].as_str() {
                Some(FUNCTION) => {}
                Some(WEBSOCKET_API) => {
                    route_selection_expression = resource["Properties"]["RouteSelectionExpression"].clone();
                    self.api(resource, &at, &mut functions, &mut others);
                }
                Some(kind) => {
                    let mut resource = if kind == SIMPLE_TABLE {
                        self.simple_table(&resource["Properties"], &at.key("Properties"))
                    } else {
                        self.renamed(resource)
                    };
                    if kind == kinds::STAGE || is_api(&resource) {
                        if is_api(&resource) {
                            route_selection_expression = resource["Properties"]["RouteSelectionExpression"].clone();
                        }
                        let dropped =
                            ["ApiId", "DeploymentId", "ProtocolType", "RouteSelectionExpression", "StageName"];
                        if let Some(properties) = resource["Properties"].as_object_mut() {
                            properties.retain(|key, _| !dropped.contains(&key.as_str()));
                        }
                    }
                    let name = self.names.get(*id).unwrap_or(id).clone();
                    self.places.insert(top.key("resources").key("Resources").key(&name), at);
                    others.insert(name, resource);
                }
                None => self.refuse(&at, "missing field `Type`"),
            }
        }
        let mut template = Map::new();
        for part in ["Parameters", "Conditions", "Mappings"] {
            if !root[part].is_null() {
                template.insert(part.to_owned(), root[part].clone());
                self.places.insert(top.key("resources").key(part), top.key(part));
            }
        }
        template.insert("Resources".to_owned(), Value::Object(others));
        let parameter = |(key, value): (&String, &String)| json!({"ParameterKey": key, "ParameterValue": value});
        let mut provider = json!({
            "name": "aws",
            "stage": stage.unwrap_or_else(|| DEFAULT_STAGE.to_owned()),
            "stackName": service,
            "memorySize": DEFAULT_MEMORY_SIZE,
            "timeout": DEFAULT_TIMEOUT,
            "stackParameters": parameters.iter().map(parameter).collect::<Vec<_>>(),
        });
        if !route_selection_expression.is_null() {
            provider["websocketsApiRouteSelectionExpression"] = route_selection_expression;
        }
        self.places.insert(top.key("functions"), top.key("Resources"));
        self.value = json!({"service": service, "provider": provider, "functions": functions, "resources": template});
    }

    /// Returns the name of a stage: a text, or the value of a parameter.
    fn stage(
        &mut self,
        name: &Value,
        root: &Value,
        parameters: &BTreeMap<String, String>,
        at: &KeyPath,
    ) -> Option<String> {
        let parameter = name["Ref"].as_str();
        let default = parameter.and_then(|parameter| root["Parameters"][parameter]["Default"].as_str());
        let given = parameter.and_then(|parameter| parameters.get(parameter)).map(String::as_str);
        let text = name.as_str().or(given).or(default);
        if text.is_none() && !name.is_null() {
            self.refuse(at, "expected a name, or a parameter with a default: `--param NAME=VALUE` gives a value");
        }
        text.map(str::to_owned)
    }

    fn function(&mut self, id: &str, resource: &Value, root: &Value, others: &mut Map<String, Value>) -> Value {
        let top = KeyPath::default();
        let at = top.key("Resources").key(id).key("Properties");
        let to = top.key("functions").key(id);
        self.places.insert(to.clone(), at.clone());
        let mut function = Map::new();
        let mut set = |places: &mut BTreeMap<KeyPath, KeyPath>, key: &str, value: Value, at: KeyPath| {
            places.insert(to.key(key), at);
            function.insert(key.to_owned(), value);
        };
        let binary = resource["Metadata"]["BuildProperties"]["Binary"].as_str();
        let mut variables = Map::new();
        let mut policies = None;
        let mut boundary = None;
        let ignored = &resource["IgnoreGlobals"];
        let is_ignored =
            |key: &str| ignored == "*" || ignored.as_array().is_some_and(|keys| keys.iter().any(|it| it == key));
        let globals: Vec<_> = entries(&root["Globals"]["Function"]).filter(|(key, _)| !is_ignored(key)).collect();
        let own = entries(&resource["Properties"]).collect();
        for (properties, at) in [(globals, top.key("Globals").key("Function")), (own, at.clone())] {
            for (key, value) in properties {
                let at = at.key(key);
                let value = self.renamed(value);
                match key.as_str() {
                    "Handler" => {
                        let handler = binary.map_or(value, Value::from);
                        set(&mut self.places, "handler", handler, at);
                    }
                    "MemorySize" => set(&mut self.places, "memorySize", value, at),
                    "Timeout" => set(&mut self.places, "timeout", value, at),
                    "ReservedConcurrentExecutions" => set(&mut self.places, "reservedConcurrency", value, at),
                    "Role" => set(&mut self.places, "role", value, at),
                    "Environment" => {
                        let at = at.key("Variables");
                        for (name, value) in entries(&value["Variables"]) {
                            self.places.insert(to.key("environment").key(name), at.key(name));
                            variables.insert(name.clone(), value.clone());
                        }
                    }
                    "LoggingConfig" => {
                        let log = json!({
                            "logFormat": value.get("LogFormat").unwrap_or(&json!("Text")),
                            "applicationLogLevel": value["ApplicationLogLevel"],
                        });
                        set(&mut self.places, "logs", log, at);
                    }
                    "CodeUri" => {
                        if let Some(uri) = value.as_str() {
                            let is_file = uri.ends_with(".zip");
                            let artifact = if is_file {
                                uri.to_owned()
                            } else {
                                format!("{}/bootstrap.zip", uri.trim_end_matches('/'))
                            };
                            set(&mut self.places, "package", json!({ "artifact": artifact }), at);
                        }
                    }
                    // A name that is put together matters to nobody here.
                    "FunctionName" if value.is_string() => set(&mut self.places, "name", value, at),
                    "FunctionName" | "Events" => {}
                    "PackageType" if value == "Zip" => {}
                    "Policies" => policies = Some((value, at)),
                    "PermissionsBoundary" => boundary = Some((value, at)),
                    key if IGNORED_OF_FUNCTIONS.contains(&key) => {}
                    key => match NOT_HERE.iter().find(|(known, _)| *known == key) {
                        Some((_, key)) => set(&mut self.places, key, value, at),
                        None => self.refuse(&at, NOT_SUPPORTED),
                    },
                }
            }
        }
        let mut events = Vec::new();
        for (name, event) in entries(&resource["Properties"]["Events"]) {
            let at = at.key("Events").key(name);
            let event = self.renamed(event);
            if let Some(event) = self.event(&event, &at) {
                self.places.insert(to.key("events").index(events.len()), at);
                events.push(event);
            }
        }
        let is_connector = |other: &Value| other["Type"] == CONNECTOR && other["Properties"]["Source"]["Id"] == id;
        let is_connected = !resource["Connectors"].is_null()
            || entries(&root["Resources"]).any(|(_, resource)| is_connector(resource));
        // Where there is a role, policies have no meaning.
        if let Some((policies, at)) = policies.filter(|_| !function.contains_key("role")) {
            if is_connected {
                let reason = "what connectors allow is not read here: the function may do everything";
                self.ignored.push(Problem::new(&at, reason));
            } else {
                let role = format!("{id}Role");
                others.insert(role.clone(), self.role(&role, &policies, &at, boundary));
                self.places.insert(to.key("role"), at);
                function.insert("role".to_owned(), Value::from(role));
            }
        }
        function.insert("environment".to_owned(), Value::Object(variables));
        function.insert("events".to_owned(), Value::Array(events));
        Value::Object(function)
    }

    /// Makes the role of a function from its policies and their boundary. The role has the logical id that SAM gives it.
    fn role(&mut self, id: &str, policies: &Value, at: &KeyPath, boundary: Option<(Value, KeyPath)>) -> Value {
        let to = KeyPath::default().key("resources").key("Resources").key(id).key("Properties");
        let mut read = Policies::default();
        let (inline, managed) = read.read(policies, at, &to.key("Policies"));
        for (to, at) in [(to.key("Policies"), at.clone()), (to.key("ManagedPolicyArns"), at.clone())] {
            self.places.insert(to, at);
        }
        self.places.extend(read.documents);
        for (at, name) in read.unread {
            let reason = format!(
                "the policy {name} is not read: what it allows of DynamoDB, @connections and SSM is refused, unless \
                 `--no-iam` is given"
            );
            self.ignored.push(Problem::new(&at, reason));
        }
        let mut properties = json!({"Policies": inline, "ManagedPolicyArns": managed});
        if let Some((boundary, at)) = boundary {
            self.places.insert(to.key("PermissionsBoundary"), at);
            properties["PermissionsBoundary"] = boundary;
        }
        json!({"Type": kinds::ROLE, "Properties": properties})
    }

    fn event(&mut self, event: &Value, at: &KeyPath) -> Option<Value> {
        let properties = &event["Properties"];
        match event["Type"].as_str() {
            Some("DynamoDB") => Some(json!({"stream": self.stream(properties, &at.key("Properties"))})),
            Some(kind @ ("Schedule" | "ScheduleV2")) => {
                let rate = &properties[if kind == "Schedule" { "Schedule" } else { "ScheduleExpression" }];
                let mut schedule = json!({ "rate": rate });
                if let Some(input) = properties.get("Input") {
                    schedule["input"] = input.clone();
                }
                if properties["Enabled"] == false || properties["State"] == "DISABLED" {
                    schedule["enabled"] = json!(false);
                }
                Some(json!({ "schedule": schedule }))
            }
            Some(kind) => {
                self.ignored.push(Problem::new(at, format!("`{kind}` events never come here")));
                None
            }
            None => {
                self.refuse(at, "missing field `Type`");
                None
            }
        }
    }

    fn stream(&mut self, properties: &Value, at: &KeyPath) -> Value {
        let mut stream = json!({"type": "dynamodb", "batchSize": DEFAULT_BATCH_SIZE});
        for (key, value) in entries(properties) {
            match key.as_str() {
                "FunctionResponseTypes" => stream["functionResponseType"] = value[0].clone(),
                "FilterCriteria" => {
                    let filters = value["Filters"].as_array().into_iter().flatten();
                    let pattern = |filter: &Value| {
                        filter["Pattern"].as_str().and_then(|pattern| serde_json::from_str::<Value>(pattern).ok())
                    };
                    match filters.map(pattern).collect::<Option<Vec<_>>>() {
                        Some(patterns) => stream["filterPatterns"] = Value::Array(patterns),
                        None => self.refuse(&at.key(key), "a `Pattern` is a text of JSON"),
                    }
                }
                "DestinationConfig" => {
                    let arn = &value["OnFailure"]["Destination"];
                    stream["destinations"] = json!({"onFailure": {"type": "sqs", "arn": arn}});
                }
                key => match STREAM.iter().find(|(known, _)| *known == key) {
                    Some((_, key)) => stream[*key] = value.clone(),
                    None => self.refuse(&at.key(key), NOT_SUPPORTED),
                },
            }
        }
        stream
    }

    /// Adds the routes of a WebSocket API to its functions.
    fn api(&mut self, api: &Value, at: &KeyPath, functions: &mut Map<String, Value>, others: &mut Map<String, Value>) {
        let top = KeyPath::default();
        let at = at.key("Properties");
        let properties = &api["Properties"];
        for (key, value) in entries(properties) {
            let at = at.key(key);
            match key.as_str() {
                "Routes" => {
                    for (route, value) in entries(value) {
                        self.route(route, value, &at.key(route), &properties["Auth"], functions);
                    }
                }
                "Auth" => match value["AuthType"].as_str() {
                    Some("NONE" | "CUSTOM") => {}
                    Some("AWS_IAM") => {
                        let properties = json!({"AuthorizationType": "AWS_IAM"});
                        let id = generated::route_id("$connect");
                        self.places.insert(top.key("resources").key("Resources").key(&id), at.clone());
                        others.insert(id, json!({"Type": kinds::ROUTE, "Properties": properties}));
                    }
                    _ => self.refuse(&at.key("AuthType"), "expected NONE, AWS_IAM or CUSTOM"),
                },
                "StageVariables" => {
                    self.places.insert(top.key("resources").key("Resources").key(STAGE), at.clone());
                    let properties = json!({"StageVariables": self.renamed(value)});
                    others.insert(STAGE.to_owned(), json!({"Type": kinds::STAGE, "Properties": properties}));
                }
                "RouteSelectionExpression" | "StageName" => {}
                "Domain" => self.ignored.push(Problem::new(&at, "custom domains of SAM are not served here")),
                key if IGNORED_OF_APIS.contains(&key) => {}
                _ => self.refuse(&at, NOT_SUPPORTED),
            }
        }
    }

    fn route(&mut self, route: &str, value: &Value, at: &KeyPath, auth: &Value, functions: &mut Map<String, Value>) {
        for (key, _) in entries(value) {
            if !["FunctionArn", "OperationName", "RouteResponseSelectionExpression"].contains(&key.as_str()) {
                self.refuse(&at.key(key), NOT_SUPPORTED);
            }
        }
        let function = referred(&value["FunctionArn"]).filter(|id| functions.contains_key(*id)).map(str::to_owned);
        let Some(function) = function else {
            self.refuse(&at.key("FunctionArn"), "expected the `Arn` of a function of the template");
            return;
        };
        let mut event = json!({ "route": route });
        if let Some(expression) = value.get("RouteResponseSelectionExpression") {
            event["routeResponseSelectionExpression"] = expression.clone();
        }
        if route == "$connect" && auth["AuthType"] == "CUSTOM" {
            event["authorizer"] = json!({"name": "authorizer", "arn": self.renamed(&auth["AuthArn"])});
            if let Some(source) = auth.get("IdentitySource") {
                event["authorizer"]["identitySource"] = source.clone();
            }
        }
        if let Some(events) = functions[&function]["events"].as_array_mut() {
            let to = KeyPath::default().key("functions").key(&function).key("events").index(events.len());
            self.places.insert(to, at.clone());
            events.push(json!({ "websocket": event }));
        }
    }

    fn simple_table(&mut self, properties: &Value, at: &KeyPath) -> Value {
        let name = properties["PrimaryKey"]["Name"].as_str().unwrap_or("id");
        let kind = match properties["PrimaryKey"]["Type"].as_str() {
            None | Some("String") => "S",
            Some("Number") => "N",
            Some("Binary") => "B",
            Some(_) => {
                self.refuse(&at.key("PrimaryKey").key("Type"), "expected String, Number or Binary");
                "S"
            }
        };
        let mut table = self.renamed(properties);
        if let Some(table) = table.as_object_mut() {
            table.remove("PrimaryKey");
        } else {
            table = json!({});
        }
        table["AttributeDefinitions"] = json!([{"AttributeName": name, "AttributeType": kind}]);
        table["KeySchema"] = json!([{"AttributeName": name, "KeyType": "HASH"}]);
        if properties.get("ProvisionedThroughput").is_none() {
            table["BillingMode"] = json!("PAY_PER_REQUEST");
        }
        json!({"Type": kinds::TABLE, "Properties": table})
    }

    /// Returns a value whose references have the logical ids of the translation.
    fn renamed(&self, value: &Value) -> Value {
        let name = |id: &str| self.names.get(id).cloned().unwrap_or_else(|| id.to_owned());
        let attribute = |text: &str| match text.split_once('.') {
            Some((id, attribute)) => format!("{}.{attribute}", name(id)),
            None => name(text),
        };
        match value {
            Value::Array(items) => items.iter().map(|item| self.renamed(item)).collect(),
            Value::Object(entries) => {
                let renamed = entries.iter().map(|(key, value)| {
                    let value = match (key.as_str(), value) {
                        ("Ref", Value::String(id)) => Value::from(name(id)),
                        ("Fn::GetAtt", Value::String(text)) => Value::from(attribute(text)),
                        ("Fn::GetAtt", Value::Array(parts)) => {
                            let mut parts = parts.clone();
                            if let Some(first) = parts.first_mut() {
                                *first = first.as_str().map(&name).into();
                            }
                            Value::Array(parts)
                        }
                        ("Fn::Sub", Value::String(text)) => Value::from(substituted(text, attribute)),
                        ("Fn::Sub", Value::Array(parts)) => {
                            let mut parts: Vec<_> = parts.iter().map(|part| self.renamed(part)).collect();
                            if let Some(Value::String(text)) = parts.first_mut() {
                                *text = substituted(text, attribute);
                            }
                            Value::Array(parts)
                        }
                        (_, value) => self.renamed(value),
                    };
                    (key.clone(), value)
                });
                Value::Object(renamed.collect())
            }
            scalar => scalar.clone(),
        }
    }
}

/// Renames what stands between `${` and `}`.
fn substituted(text: &str, rename: impl Fn(&str) -> String) -> String {
    let mut parts = text.split("${");
    let mut renamed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('}') {
            Some((reference, rest)) => renamed.push_str(&format!("${{{}}}{rest}", rename(reference))),
            None => renamed.push_str(&format!("${{{part}")),
        }
    }
    renamed
}

/// Returns the logical id in a `Ref`, a `Fn::GetAtt`, or a `Fn::Sub` of one of these.
fn referred(value: &Value) -> Option<&str> {
    let attribute = &value["Fn::GetAtt"];
    let substituted = value["Fn::Sub"].as_str().and_then(|text| text.strip_prefix("${")?.strip_suffix('}'));
    let text = value["Ref"].as_str().or(attribute[0].as_str()).or(attribute.as_str()).or(substituted)?;
    Some(text.split('.').next().unwrap_or(text))
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

mod policies;
#[cfg(test)]
mod tests;
