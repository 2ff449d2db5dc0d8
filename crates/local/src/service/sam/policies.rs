//! The `Policies` of a function of SAM, in the words of the role that SAM makes of them.
//!
//! The actions of SAM's own templates are those of the [list of policy
//! templates](https://docs.aws.amazon.com/serverless-application-model/latest/developerguide/serverless-policy-template-list.html).

use serde_json::{Value, json};

use super::super::key_path::KeyPath;
use super::super::roles;

/// SAM's templates for a table and its indexes, each with its actions.
const OF_TABLES: [(&str, &[&str]); 4] = [
    (
        "DynamoDBCrudPolicy",
        &[
            "dynamodb:GetItem",
            "dynamodb:DeleteItem",
            "dynamodb:PutItem",
            "dynamodb:Scan",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
            "dynamodb:BatchWriteItem",
            "dynamodb:BatchGetItem",
            "dynamodb:DescribeTable",
            "dynamodb:ConditionCheckItem",
        ],
    ),
    (
        "DynamoDBReadPolicy",
        &["dynamodb:GetItem", "dynamodb:Scan", "dynamodb:Query", "dynamodb:BatchGetItem", "dynamodb:DescribeTable"],
    ),
    ("DynamoDBWritePolicy", &["dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:BatchWriteItem"]),
    ("DynamoDBReconfigurePolicy", &["dynamodb:UpdateTable"]),
];

/// What a function's policies become.
#[derive(Debug, Default)]
pub(super) struct Policies {
    /// The place of each document among the `Policies` of the role, and in the template.
    pub(super) documents: Vec<(KeyPath, KeyPath)>,
    /// The places and names of policies that are not read.
    pub(super) unread: Vec<(KeyPath, String)>,
}

impl Policies {
    /// Returns the `Policies` and the `ManagedPolicyArns` of the role. Both have the form of `policies`, so lists and
    /// `Fn::If` keep their places. `to` is the place of the role's `Policies`.
    pub(super) fn read(&mut self, policies: &Value, at: &KeyPath, to: &KeyPath) -> (Value, Value) {
        if let Some(items) = policies.as_array() {
            let read = |(index, item)| self.read(item, &at.index(index), &to.index(index));
            let (inline, managed): (Vec<_>, Vec<_>) = items.iter().enumerate().map(read).unzip();
            return (inline.into(), managed.into());
        }
        if let Some([condition, then, otherwise]) = policies["Fn::If"].as_array().map(Vec::as_slice) {
            let (at, to) = (at.key("Fn::If"), to.key("Fn::If"));
            let then = self.read(then, &at.index(1), &to.index(1));
            let otherwise = self.read(otherwise, &at.index(2), &to.index(2));
            let either = |then, otherwise| json!({"Fn::If": [condition, then, otherwise]});
            return (either(then.0, otherwise.0), either(then.1, otherwise.1));
        }
        self.one(policies, at, to)
    }

    fn one(&mut self, policy: &Value, at: &KeyPath, to: &KeyPath) -> (Value, Value) {
        let nothing = || json!({"Ref": "AWS::NoValue"});
        if !policy["Statement"].is_null() {
            self.documents.push((to.key("PolicyDocument"), at.clone()));
            return (json!({"PolicyDocument": policy}), nothing());
        }
        let arn = policy.as_str().or(policy["Fn::Sub"].as_str());
        if let Some(name) = arn.and_then(|arn| arn.rsplit('/').next()) {
            if roles::is_known(name) {
                return (nothing(), format!("arn:aws:iam::aws:policy/{name}").into());
            }
            self.unread.push((at.clone(), name.to_owned()));
            return (nothing(), nothing());
        }
        match policy.as_object().and_then(|entries| entries.iter().next()) {
            Some((key, _)) if key == "Ref" || key.starts_with("Fn::") => (nothing(), policy.clone()),
            Some((template, parameters)) => match statements(template, parameters) {
                Some(statements) => (json!({"PolicyDocument": {"Statement": statements}}), nothing()),
                None => {
                    self.unread.push((at.clone(), template.clone()));
                    (nothing(), nothing())
                }
            },
            None => (nothing(), nothing()),
        }
    }
}

/// Returns the statements of a template of SAM, if it is about a service that is here.
fn statements(template: &str, parameters: &Value) -> Option<Value> {
    let arn = |below: &str| {
        let text =
            format!("arn:${{AWS::Partition}}:{below}").replace(":ACCOUNT:", ":${AWS::Region}:${AWS::AccountId}:");
        json!({"Fn::Sub": [text, parameters]})
    };
    let allow =
        |actions: &[&str], resources: Value| json!({"Effect": "Allow", "Action": actions, "Resource": resources});
    Some(match template {
        "DynamoDBStreamReadPolicy" => json!([
            allow(
                &["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"],
                arn("dynamodb:ACCOUNT:table/${TableName}/stream/${StreamName}"),
            ),
            allow(&["dynamodb:ListStreams"], arn("dynamodb:ACCOUNT:table/${TableName}/stream/*")),
        ]),
        "SSMParameterReadPolicy" => json!([
            allow(&["ssm:DescribeParameters"], json!("*")),
            allow(
                &["ssm:GetParameters", "ssm:GetParameter", "ssm:GetParametersByPath"],
                arn("ssm:ACCOUNT:parameter/${ParameterName}"),
            ),
        ]),
        template => {
            let (_, actions) = OF_TABLES.iter().find(|(known, _)| *known == template)?;
            let table = "dynamodb:ACCOUNT:table/${TableName}";
            json!([allow(actions, json!([arn(table), arn(&format!("{table}/index/*"))]))])
        }
    })
}
