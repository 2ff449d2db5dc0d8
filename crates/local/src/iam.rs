//! IAM for functions: the policies of their roles, and the error for a call that these do not allow.
//!
//! Implements "Policy evaluation logic" and "IAM JSON policy elements: Action, Resource" of the [IAM User
//! Guide](https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html) for identity-based
//! policies: an explicit deny wins, and a call that no statement allows is refused. Not here: conditions, policy
//! variables, permissions boundaries, and policies of resources or organisations.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use wildmatch::WildMatch;

use crate::terminal;

/// The id of the account in every ARN.
pub const ACCOUNT_ID: &str = "123456789012";

/// A role: the permissions of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// `RoleName`, else a name made of the stack's name and the logical id.
    pub name: String,
    /// The statements of all its policies.
    pub statements: Vec<Statement>,
}

/// A statement of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Elements")]
pub struct Statement {
    /// Whether it allows or denies.
    pub effect: Effect,
    /// `Action` or `NotAction`, such as `dynamodb:*`.
    pub actions: Patterns,
    /// `Resource` or `NotResource`: ARNs with `*` and `?`.
    pub resources: Patterns,
}

/// The effect of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Effect {
    /// The statement allows, unless another one denies.
    Allow,
    /// The statement denies, whatever others allow.
    Deny,
}

/// The actions or resources that a statement covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Patterns {
    /// Everything that at least one pattern matches.
    Of(Vec<String>),
    /// Everything that no pattern matches.
    Not(Vec<String>),
}

/// The elements of a statement in the JSON of a policy. Other elements are errors, because to ignore one could allow too
/// much.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, expecting = "a statement")]
struct Elements {
    #[serde(default, rename = "Sid")]
    _sid: Option<String>,
    effect: Effect,
    action: Option<OneOrMany<String>>,
    not_action: Option<OneOrMany<String>>,
    resource: Option<OneOrMany<String>>,
    not_resource: Option<OneOrMany<String>>,
}

/// A list in the JSON of a policy. A list of one element may be written without brackets.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected one valid value or a list of them")]
pub(crate) enum OneOrMany<T> {
    /// A list.
    Many(Vec<T>),
    /// An element without brackets.
    One(T),
}

impl<T> From<OneOrMany<T>> for Vec<T> {
    fn from(value: OneOrMany<T>) -> Self {
        match value {
            OneOrMany::Many(items) => items,
            OneOrMany::One(item) => vec![item],
        }
    }
}

impl TryFrom<Elements> for Statement {
    type Error = String;

    fn try_from(elements: Elements) -> Result<Self, String> {
        let Elements { effect, action, not_action, resource, not_resource, .. } = elements;
        let patterns = |of: Option<OneOrMany<_>>, not: Option<OneOrMany<_>>, key| match (of, not) {
            (Some(patterns), None) => Ok(Patterns::Of(patterns.into())),
            (None, Some(patterns)) => Ok(Patterns::Not(patterns.into())),
            _ => Err(format!("expected either `{key}` or `Not{key}`")),
        };
        let (actions, resources) =
            (patterns(action, not_action, "Action")?, patterns(resource, not_resource, "Resource")?);
        Ok(Self { effect, actions, resources })
    }
}

impl Patterns {
    fn contain(&self, matches: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Of(patterns) => patterns.iter().any(|pattern| matches(pattern)),
            Self::Not(patterns) => !patterns.iter().any(|pattern| matches(pattern)),
        }
    }
}

/// Returns the effect of statements on an action and a resource, if a statement covers these.
#[must_use]
pub fn decide(statements: &[Statement], action: &str, resource: &str) -> Option<Effect> {
    let action = action.to_ascii_lowercase();
    let applies = |statement: &&Statement| {
        statement.actions.contain(|pattern| matches(&pattern.to_ascii_lowercase(), &action))
            && statement.resources.contain(|pattern| matches(pattern, resource))
    };
    let mut effects = statements.iter().filter(applies).map(|statement| statement.effect);
    let first = effects.next()?;
    Some(if effects.any(|effect| effect == Effect::Deny) { Effect::Deny } else { first })
}

/// Tells whether a pattern matches a text: `*` is any text, also with `/`, and `?` any one character.
///
/// Each call of a function asks this of every statement, so the text before the first wildcard decides most cases.
fn matches(pattern: &str, text: &str) -> bool {
    let Some(at) = pattern.find(['*', '?']) else { return pattern == text };
    let (literal, rest) = pattern.split_at(at);
    text.strip_prefix(literal).is_some_and(|text| rest == "*" || WildMatch::new(rest).matches(text))
}

/// A function, as the services that it calls see it.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The function's key in the serverless.yml.
    pub function: String,
    /// The function's deployed name, which is also the name of its role's session.
    pub session: String,
    /// The function's role. Without one it may do everything.
    pub role: Option<Arc<Role>>,
}

/// The functions by their access key ids.
#[derive(Debug, Clone, Default)]
pub struct Callers(pub HashMap<String, Caller>);

/// A call that a role does not allow. Its text is AWS's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "User: arn:aws:sts::{ACCOUNT_ID}:assumed-role/{role}/{session} is not authorized to perform: {action} on resource: \
     {resource} {}",
    match effect {
        Some(_) => "with an explicit deny in an identity-based policy".to_owned(),
        None => format!("because no identity-based policy allows the {action} action"),
    }
)]
pub struct Denial {
    role: String,
    session: String,
    action: String,
    resource: String,
    effect: Option<Effect>,
}

impl Callers {
    /// Refuses a call that the caller's role does not allow, and prints a line about it. An access key that belongs to
    /// no function is a developer's, who may do everything.
    pub(crate) fn check(&self, access_key_id: Option<&str>, action: &str, resource: &str) -> Result<(), Denial> {
        let Some(caller) = access_key_id.and_then(|id| self.0.get(id)) else { return Ok(()) };
        let Some(role) = &caller.role else { return Ok(()) };
        let effect = decide(&role.statements, action, resource);
        if effect == Some(Effect::Allow) {
            return Ok(());
        }
        let verb = if effect.is_some() { "denies" } else { "does not allow" };
        let (function, role_name) = (&caller.function, &role.name);
        terminal::line("iam", &format!("{function}: the role {role_name} {verb} {action} on {resource}"));
        Err(Denial {
            role: role.name.clone(),
            session: caller.session.clone(),
            action: action.to_owned(),
            resource: resource.to_owned(),
            effect,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(effect: Effect, actions: &[&str], resources: &[&str]) -> Statement {
        let owned = |patterns: &[&str]| Patterns::Of(patterns.iter().map(|&pattern| pattern.to_owned()).collect());
        Statement { effect, actions: owned(actions), resources: owned(resources) }
    }

    fn callers(statements: Vec<Statement>) -> Callers {
        let role = Arc::new(Role { name: "chat-dev-Role".to_owned(), statements });
        let caller =
            Caller { function: "connect".to_owned(), session: "chat-dev-connect".to_owned(), role: Some(role) };
        Callers(HashMap::from([("AK".to_owned(), caller)]))
    }

    const TABLE: &str = "arn:aws:dynamodb:us-east-1:123456789012:table/birds";

    #[test]
    fn a_star_is_any_text_and_a_question_mark_one_character() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "ac", true),
            ("a*b*c", "axbxbxc", true),
            ("a*c", "acb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("**", "x", true),
            ("abc", "abcd", false),
            ("abcd", "abc", false),
            ("", "", true),
            ("a?c", "ačc", true),
            ("arn:*:b", "arn:a/a:b", true),
            ("arn:*", "arn:", true),
            ("arn:*", "arn", false),
            ("č?", "čč", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        // This has to be quick, so that no policy can block the stack.
        assert!(!matches(&format!("{}b", "*a".repeat(1000)), &"a".repeat(10_000)));
    }

    #[test]
    fn a_call_that_no_statement_allows_is_refused_in_awss_words() {
        let callers = callers(vec![statement(Effect::Allow, &["dynamodb:Get*"], &[TABLE])]);
        assert_eq!(callers.check(Some("AK"), "dynamodb:GetItem", TABLE), Ok(()));
        let denial = callers.check(Some("AK"), "dynamodb:PutItem", TABLE).unwrap_err().to_string();
        let expected = "User: arn:aws:sts::123456789012:assumed-role/chat-dev-Role/chat-dev-connect is not authorized \
                        to perform: dynamodb:PutItem on resource: \
                        arn:aws:dynamodb:us-east-1:123456789012:table/birds because no identity-based policy allows \
                        the dynamodb:PutItem action";
        assert_eq!(denial, expected);
        assert!(callers.check(Some("AK"), "dynamodb:GetItem", &format!("{TABLE}/index/x")).is_err());
    }

    #[test]
    fn a_deny_wins_in_any_order() {
        let allow = || statement(Effect::Allow, &["*"], &["*"]);
        let deny = || statement(Effect::Deny, &["dynamodb:DeleteItem"], &["*"]);
        for statements in [vec![allow(), deny()], vec![deny(), allow()]] {
            let callers = callers(statements);
            let denial = callers.check(Some("AK"), "dynamodb:DeleteItem", TABLE).unwrap_err().to_string();
            assert!(denial.ends_with("with an explicit deny in an identity-based policy"), "{denial}");
            assert_eq!(callers.check(Some("AK"), "dynamodb:PutItem", TABLE), Ok(()));
        }
    }

    #[test]
    fn actions_ignore_case_and_resources_do_not() {
        let callers = callers(vec![statement(Effect::Allow, &["DynamoDB:getitem"], &[TABLE])]);
        assert_eq!(callers.check(Some("AK"), "dynamodb:GetItem", TABLE), Ok(()));
        assert!(callers.check(Some("AK"), "dynamodb:GetItem", &TABLE.replace("birds", "Birds")).is_err());
    }

    #[test]
    fn not_action_and_not_resource_match_everything_else() {
        let not = Statement {
            effect: Effect::Allow,
            actions: Patterns::Not(vec!["dynamodb:Delete*".to_owned()]),
            resources: Patterns::Not(vec!["*secrets".to_owned()]),
        };
        let callers = callers(vec![not]);
        assert_eq!(callers.check(Some("AK"), "dynamodb:PutItem", TABLE), Ok(()));
        assert!(callers.check(Some("AK"), "dynamodb:DeleteItem", TABLE).is_err());
        assert!(callers.check(Some("AK"), "dynamodb:PutItem", "arn:secrets").is_err());
    }

    #[test]
    fn callers_that_are_no_function_or_have_no_role_may_do_everything() {
        let mut callers = callers(Vec::new());
        assert_eq!(callers.check(Some("developer"), "dynamodb:PutItem", TABLE), Ok(()));
        assert_eq!(callers.check(None, "dynamodb:PutItem", TABLE), Ok(()));
        callers.0.get_mut("AK").unwrap().role = None;
        assert_eq!(callers.check(Some("AK"), "dynamodb:PutItem", TABLE), Ok(()));
    }
}
