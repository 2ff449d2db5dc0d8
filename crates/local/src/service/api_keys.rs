//! The keys of clients, which are resources of [API Gateway
//! V1](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/AWS_ApiGateway.html). They are read if a
//! route requires one. Quotas and throttles of usage plans are not imitated.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::definition::API_ID;
use super::error::Problem;
use super::kinds::{API_KEY, USAGE_PLAN, USAGE_PLAN_KEY};
use super::template::{self, Templates};
use crate::gateway::ApiKey;

/// The numbers of characters of [an API
/// key](https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-setup-api-keys.html).
const KEY_LENGTH: std::ops::RangeInclusive<usize> = 20..=128;

/// The number of characters of the keys that API Gateway makes.
const GENERATED_KEY_LENGTH: usize = 40;

/// [AWS::ApiGateway::ApiKey](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigateway-apikey.html)
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ApiKeyProperties {
    value: Option<Value>,
    enabled: Option<Value>,
    #[serde(rename = "CustomerId")]
    _customer_id: Option<IgnoredAny>,
    #[serde(rename = "Description")]
    _description: Option<IgnoredAny>,
    #[serde(rename = "GenerateDistinctId")]
    _generate_distinct_id: Option<IgnoredAny>,
    #[serde(rename = "Name")]
    _name: Option<IgnoredAny>,
}

/// [AWS::ApiGateway::UsagePlan](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigateway-usageplan.html)
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct UsagePlanProperties {
    #[serde(default)]
    api_stages: Vec<ApiStage>,
    #[serde(rename = "Description")]
    _description: Option<IgnoredAny>,
    #[serde(rename = "Quota")]
    _quota: Option<IgnoredAny>,
    #[serde(rename = "Throttle")]
    _throttle: Option<IgnoredAny>,
    #[serde(rename = "UsagePlanName")]
    _usage_plan_name: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ApiStage {
    api_id: Value,
    stage: Value,
    #[serde(rename = "Throttle")]
    _throttle: Option<IgnoredAny>,
}

/// [AWS::ApiGateway::UsagePlanKey](https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-apigateway-usageplankey.html)
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct UsagePlanKeyProperties {
    key_id: Value,
    #[serde(rename = "KeyType")]
    _key_type: KeyType,
    usage_plan_id: Value,
}

#[derive(Debug, Deserialize)]
enum KeyType {
    #[serde(rename = "API_KEY")]
    ApiKey,
}

/// Returns the keys that a usage plan allows for the stage.
pub(super) fn read(templates: &Templates, stage: &str) -> Result<Vec<ApiKey>, Problem> {
    let mut plans = BTreeSet::new();
    for (name, properties, at) in templates.of_kind::<UsagePlanProperties>(USAGE_PLAN)? {
        let at = at.key("ApiStages");
        for (index, api_stage) in properties.api_stages.iter().enumerate() {
            let at = at.index(index);
            let api_id = templates.intrinsics.lenient_text(&api_stage.api_id, &at.key("ApiId"))?;
            if api_id.as_deref() == Some(API_ID)
                && templates.intrinsics.lenient_text(&api_stage.stage, &at.key("Stage"))?.as_deref() == Some(stage)
            {
                plans.insert(name.clone());
            }
        }
    }
    let mut usable = BTreeSet::new();
    for (_, properties, at) in templates.of_kind::<UsagePlanKeyProperties>(USAGE_PLAN_KEY)? {
        let plan = templates.intrinsics.lenient_text(&properties.usage_plan_id, &at.key("UsagePlanId"))?;
        if plan.is_some_and(|plan| plans.contains(&plan)) {
            usable.extend(templates.intrinsics.lenient_text(&properties.key_id, &at.key("KeyId"))?);
        }
    }
    let mut keys: BTreeMap<String, ApiKey> = BTreeMap::new();
    for (id, properties, at) in templates.of_kind::<ApiKeyProperties>(API_KEY)? {
        // A key without `Enabled` is not enabled: that is the default of CreateApiKey.
        let enabled = properties.enabled.map_or(Ok(false), |it| templates.intrinsics.boolean(&it, &at.key("Enabled")));
        if !usable.contains(&id) || !enabled? {
            continue;
        }
        let at = at.key("Value");
        let value = properties.value.map_or(Ok(None), |value| templates.intrinsics.lenient_text(&value, &at))?;
        let value = value.unwrap_or_else(|| template::sha256(&id)[..GENERATED_KEY_LENGTH].to_owned());
        if !KEY_LENGTH.contains(&value.len()) {
            let reason = format!("a key has {} to {} characters", KEY_LENGTH.start(), KEY_LENGTH.end());
            return Err(Problem::new(&at, reason));
        }
        if keys.insert(value.clone(), ApiKey { id, value }).is_some() {
            return Err(Problem::new(&at, "another key has this value already"));
        }
    }
    Ok(keys.into_values().collect())
}

#[cfg(test)]
mod tests;
