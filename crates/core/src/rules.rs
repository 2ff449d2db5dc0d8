//! Topic rules give topics abilities besides delivery. The variable `TOPIC_RULES` lists them as JSON:
//!
//! ```json
//! [{"topic": "room.*", "history": {"hours": 24}}, {"topic": "@*", "history": {"hours": 72}}]
//! ```
//!
//! The first rule that matches a topic applies. A topic without a rule has none of these abilities.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::topic::Topic;

/// The shortest time that messages are kept. Readers of the history rely on it, whatever the rules are now.
pub(crate) const MIN_HOURS: u32 = 1;

/// The longest time that messages are kept: a year.
const MAX_HOURS: u32 = 366 * 24;

/// The rules in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    topics: Topics,
    kept: Option<Duration>,
}

/// The topics that a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Topics {
    Exact(String),
    /// All names that begin with this.
    Prefix(String),
}

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    topic: String,
    history: Option<WrittenHistory>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHistory {
    hours: u32,
}

impl Rules {
    /// Reads the JSON text of all rules.
    ///
    /// # Errors
    ///
    /// Returns the problem of each wrong rule, as the end of a sentence that begins with the variable's name. Rules count
    /// from 1.
    pub fn parse(text: &str) -> Result<Self, String> {
        let written: Vec<&RawValue> =
            serde_json::from_str(text).map_err(|error| format!("must be a JSON array of rules: {error}"))?;
        let rules = written
            .iter()
            .zip(1..)
            .map(|(rule, number)| Rule::parse(rule.get()).map_err(|problem| format!("rule {number}: {problem}")));
        let (rules, problems): (Vec<_>, Vec<_>) = rules.partition(Result::is_ok);
        if problems.is_empty() {
            return Ok(Self(rules.into_iter().flatten().collect()));
        }
        let problems: Vec<_> = problems.into_iter().filter_map(Result::err).collect();
        Err(format!("has wrong rules: {}", problems.join("; ")))
    }

    /// Returns the time that messages of this topic are kept. `None` means that they are not kept.
    #[must_use]
    pub fn kept(&self, topic: &Topic) -> Option<Duration> {
        self.0.iter().find(|rule| rule.topics.contain(topic.as_str()))?.kept
    }

    /// Whether any topic has history.
    #[must_use]
    pub fn keep_anything(&self) -> bool {
        self.0.iter().any(|rule| rule.kept.is_some())
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Self, String> {
        // The reader of JSON would take an array for the fields in their order.
        if !text.starts_with('{') {
            return Err("a rule must be a JSON object".to_owned());
        }
        let written: Written = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let kept = match written.history {
            None => None,
            Some(WrittenHistory { hours }) if (MIN_HOURS..=MAX_HOURS).contains(&hours) => {
                Some(Duration::from_secs(u64::from(hours) * 3600))
            }
            Some(_) => return Err(format!("`hours` must be a whole number from {MIN_HOURS} to {MAX_HOURS}")),
        };
        Ok(Self { topics: Topics::parse(&written.topic)?, kept })
    }
}

impl Topics {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if name.contains('*') {
            return Err("`topic` may have a `*` only at its end".to_owned());
        }
        // An empty prefix matches everything, and `@` is that of all addresses.
        if !(is_prefix && ["", "@"].contains(&name)) {
            Topic::of_event(name).map_err(|error| error.to_string())?;
        }
        Ok(if is_prefix { Self::Prefix(name.to_owned()) } else { Self::Exact(name.to_owned()) })
    }

    /// The rule `*` is for all topics that clients choose. Users' addresses need a rule that begins with `@`.
    fn contain(&self, topic: &str) -> bool {
        match self {
            Self::Exact(name) => name == topic,
            Self::Prefix(prefix) => topic.starts_with(prefix) && topic.starts_with('@') == prefix.starts_with('@'),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(rules: &Rules, topic: &str) -> Option<u64> {
        rules.kept(&Topic::of_event(topic).unwrap()).map(|kept| kept.as_secs() / 3600)
    }

    #[test]
    fn the_first_rule_that_matches_applies() {
        let rules = r#"[
            {"topic": "room.quiet"},
            {"topic": "room.*", "history": {"hours": 24}},
            {"topic": "room.7", "history": {"hours": 1}},
            {"topic": "@7", "history": {"hours": 2}},
            {"topic": "@*", "history": {"hours": 72}},
            {"topic": "log", "history": {"hours": 8784}}
        ]"#;
        let rules = Rules::parse(rules).unwrap();
        for (topic, expected) in [
            ("room.7", Some(24)),
            ("room.", Some(24)),
            ("room", None),
            ("room.quiet", None),
            ("@7", Some(2)),
            ("@77", Some(72)),
            ("log", Some(8784)),
            ("logs", None),
        ] {
            assert_eq!(hours(&rules, topic), expected, "{topic}");
        }
        assert!(rules.keep_anything());
        let all = Rules::parse(r#"[{"topic": "*", "history": {"hours": 1}}]"#).unwrap();
        assert_eq!((hours(&all, "t"), hours(&all, "@1")), (Some(1), None));
        assert!(!Rules::parse(r#"[{"topic":"t"}]"#).unwrap().keep_anything());
    }

    #[test]
    fn a_wrong_rule_is_named_by_its_number() {
        for (rule, names) in [
            (r#"{"history": {"hours": 1}}"#, "`topic`"),
            (r#"{"topic": 7}"#, "a string"),
            (r#"{"topic": "t", "histroy": {"hours": 1}}"#, "`histroy`"),
            (r#"{"topic": "t", "history": {"hours": 1, "days": 1}}"#, "`days`"),
            (r#"{"topic": "t", "history": {}}"#, "`hours`"),
            (r#"{"topic": "t", "history": {"hours": 0}}"#, "1 to 8784"),
            (r#"{"topic": "t", "history": {"hours": 8785}}"#, "1 to 8784"),
            (r#"{"topic": "t", "history": {"hours": 1.5}}"#, "1.5"),
            (r#"{"topic": "t", "history": {"hours": -1}}"#, "-1"),
            (r#"{"topic": "a*b"}"#, "only at its end"),
            (r#"{"topic": "a**"}"#, "only at its end"),
            (r#"{"topic": ""}"#, "`topic`"),
            (r#"{"topic": "INITIAL_CONNECTION"}"#, "reserved"),
            ("7", "a JSON object"),
            (r#"["t"]"#, "a JSON object"),
        ] {
            let problem = Rules::parse(&format!(r#"[{{"topic":"t"}},{rule}]"#)).unwrap_err();
            assert!(problem.contains("rule 2: ") && problem.contains(names), "{rule}: {problem}");
            assert!(!problem.contains("rule 1"), "{problem}");
        }
        let problem = Rules::parse(r#"[{"topic":"a*b"},{"topic":"t"},{}]"#).unwrap_err();
        assert!(problem.contains("rule 1: ") && problem.contains("rule 3: "), "{problem}");
        for wrong in ["", "{}", "yes", "[", r#"[{"topic":"t"}] more"#] {
            assert!(Rules::parse(wrong).unwrap_err().starts_with("must be a JSON array of rules"), "{wrong}");
        }
    }
}
