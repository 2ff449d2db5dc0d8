//! The `Policies` of a function of SAM, in the words of the role that SAM makes of them.
//!
//! The statements of SAM's own templates are those of its [list of policy
//! templates](https://github.com/aws/serverless-application-model/blob/develop/samtranslator/policy_templates_data/policy_templates.json).

use serde_json::{Value, json};

use super::super::key_path::KeyPath;
use super::super::roles;

/// A statement of a template: its actions and its resources. `${HERE}` is the region and the account.
type Template = (&'static [&'static str], &'static [&'static str]);

const TABLE: &str = "arn:${AWS::Partition}:dynamodb:${HERE}:table/${TableName}";
const INDEXES: &str = "arn:${AWS::Partition}:dynamodb:${HERE}:table/${TableName}/index/*";
const BACKUPS: &str = "arn:${AWS::Partition}:dynamodb:${HERE}:table/${TableName}/backup/*";
const STREAM: &str = "arn:${AWS::Partition}:dynamodb:${HERE}:table/${TableName}/stream/${StreamName}";
const STREAMS: &str = "arn:${AWS::Partition}:dynamodb:${HERE}:table/${TableName}/stream/*";
const PARAMETER: &str = "arn:${AWS::Partition}:ssm:${HERE}:parameter/${ParameterName}";
const PARAMETER_WITH_SLASH: &str = "arn:${AWS::Partition}:ssm:${HERE}:parameter${ParameterName}";

const DESCRIBE_PARAMETERS: Template = (&["ssm:DescribeParameters"], &["*"]);
const READ_PARAMETERS: &[&str] = &["ssm:GetParameters", "ssm:GetParameter", "ssm:GetParametersByPath"];

/// SAM's templates about services that are here.
const TEMPLATES: [(&str, &[Template]); 9] = [
    (
        "DynamoDBBackupFullAccessPolicy",
        &[
            (&["dynamodb:CreateBackup", "dynamodb:DescribeContinuousBackups"], &[TABLE]),
            (&["dynamodb:DeleteBackup", "dynamodb:DescribeBackup", "dynamodb:ListBackups"], &[BACKUPS]),
        ],
    ),
    (
        "DynamoDBCrudPolicy",
        &[(
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
            &[TABLE, INDEXES],
        )],
    ),
    (
        "DynamoDBReadPolicy",
        &[(
            &["dynamodb:GetItem", "dynamodb:Scan", "dynamodb:Query", "dynamodb:BatchGetItem", "dynamodb:DescribeTable"],
            &[TABLE, INDEXES],
        )],
    ),
    ("DynamoDBReconfigurePolicy", &[(&["dynamodb:UpdateTable"], &[TABLE])]),
    (
        "DynamoDBRestoreFromBackupPolicy",
        &[
            (&["dynamodb:RestoreTableFromBackup"], &[BACKUPS]),
            (
                &[
                    "dynamodb:PutItem",
                    "dynamodb:UpdateItem",
                    "dynamodb:DeleteItem",
                    "dynamodb:GetItem",
                    "dynamodb:Query",
                    "dynamodb:Scan",
                    "dynamodb:BatchWriteItem",
                ],
                &[TABLE],
            ),
        ],
    ),
    (
        "DynamoDBStreamReadPolicy",
        &[
            (&["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"], &[STREAM]),
            (&["dynamodb:ListStreams"], &[STREAMS]),
        ],
    ),
    (
        "DynamoDBWritePolicy",
        &[(&["dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:BatchWriteItem"], &[TABLE, INDEXES])],
    ),
    ("SSMParameterReadPolicy", &[DESCRIBE_PARAMETERS, (READ_PARAMETERS, &[PARAMETER])]),
    ("SSMParameterWithSlashPrefixReadPolicy", &[DESCRIBE_PARAMETERS, (READ_PARAMETERS, &[PARAMETER_WITH_SLASH])]),
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
    let (_, statements) = TEMPLATES.iter().find(|(known, _)| *known == template)?;
    let arn = |arn: &&str| {
        let text = arn.replace("${HERE}", "${AWS::Region}:${AWS::AccountId}");
        json!({"Fn::Sub": [text, parameters]})
    };
    let statement = |(actions, resources): &Template| {
        let resources: Vec<_> = resources.iter().map(arn).collect();
        json!({"Effect": "Allow", "Action": actions, "Resource": resources})
    };
    Some(statements.iter().map(statement).collect())
}
