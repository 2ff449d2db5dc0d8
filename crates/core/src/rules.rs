//! Topic rules give topics abilities besides delivery, and say who may use them. The variable `TOPIC_RULES` lists them as JSON:
//!
//! ```json
//! [{"topic": "room.*", "history": {"hours": 24}, "wildcard": true, "presence": true, "subscribe": "granted", "publish": "granted", "maxBytes": 4096},
//!  {"topic": "alerts.*", "subscribe": "identified", "publish": "backend"},
//!  {"topic": "ticks.*", "batchMs": 250},
//!  {"topic": "@*", "history": {"hours": 72}}]
//! ```
//!
//! The first rule that matches a topic applies. A topic without a rule has none of these abilities,
//! and everybody may use it. Once there are rules, a name with a `*` in it is a [pattern](Rules::patterns_of) and no topic.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::ClientError;
use crate::connection::UserId;
use crate::frame::{MAX_KEPT_BYTES, MAX_PAYLOAD_BYTES};
use crate::rights::{Act, Grants, Pattern, Who};
use crate::topic::{Name, Topic};

/// The shortest time that messages are kept. Readers of the history rely on it, whatever the rules are now.
pub(crate) const MIN_HOURS: u32 = 1;

/// The longest time that messages are kept: a year.
const MAX_HOURS: u32 = 366 * 24;

/// How many segments a pattern may have in front of its `*`. It bounds what a publish reads.
pub const MAX_LEVELS: usize = 8;

/// The highest limit of the receivers of one publish. So many are read before the first post, and they take 15 MB of memory.
const MAX_RECEIVERS: u32 = 100_000;

/// The bounds of `batchMs`. A stream is polled four times a second (AWS Lambda Developer Guide, DynamoDB event source mappings). The
/// upper bound is ours: nobody waits longer for a message of a conversation.
const BATCH_MS: std::ops::RangeInclusive<u32> = 250..=10_000;

/// Checks a limit of the receivers of one publish.
///
/// # Errors
///
/// The problem, as the end of a sentence.
pub(crate) fn check_max_receivers(receivers: u32) -> Result<(), String> {
    let problem = || format!("must be a whole number up to {MAX_RECEIVERS}, and zero means no limit");
    (receivers <= MAX_RECEIVERS).then_some(()).ok_or_else(problem)
}

/// The rules in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    topics: Pattern,
    kept: Option<Duration>,
    subscribe: Who,
    publish: Who,
    max_bytes: Option<usize>,
    wildcard: bool,
    presence: bool,
    max_receivers: Option<u32>,
    is_batched: bool,
}

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    topic: String,
    history: Option<WrittenHistory>,
    subscribe: Option<Value>,
    publish: Option<Value>,
    max_bytes: Option<usize>,
    #[serde(default)]
    wildcard: bool,
    #[serde(default)]
    presence: bool,
    max_receivers: Option<u32>,
    batch_ms: Option<u32>,
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
        let mut rules: Vec<(usize, Rule)> = Vec::new();
        let mut problems = Vec::new();
        for (written, number) in written.iter().zip(1..) {
            match Rule::parse(written.get()) {
                Ok(rule) => match rules.iter().find(|(_, earlier)| earlier.topics.contains(&rule.topics)) {
                    // A right or a bound that never applies is worse than none, because somebody relies on it.
                    Some((earlier, _)) => problems.push(format!(
                        "rule {number}: it never applies, because rule {earlier} is for all of its topics and comes first"
                    )),
                    None => rules.push((number, rule)),
                },
                Err(problem) => problems.push(format!("rule {number}: {problem}")),
            }
        }
        if problems.is_empty() {
            return Ok(Self(rules.into_iter().map(|(_, rule)| rule).collect()));
        }
        Err(format!("has wrong rules: {}", problems.join("; ")))
    }

    fn of(&self, topic: &Topic) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.topics.contains_topic(topic))
    }

    /// Whether a name is a pattern: once there are rules, `*` is reserved. Names of users may have one.
    #[must_use]
    pub fn is_pattern(&self, topic: &Topic) -> bool {
        !self.0.is_empty() && !topic.is_address() && topic.as_str().contains('*')
    }

    /// Returns the patterns that contain a topic and that clients may subscribe to, from the most to the least specific. A
    /// publish on the topic reads the subscribers of each of them. `room.eu.7` is contained in `room.eu.*`, `room.*` and `*`.
    #[must_use]
    pub fn patterns_of(&self, topic: &Topic) -> Vec<Topic> {
        if topic.is_address() || !self.0.iter().any(|rule| rule.wildcard) {
            return Vec::new();
        }
        let name = topic.as_str();
        let ends = name.match_indices('.').map(|(dot, _)| dot + 1);
        let prefixes = std::iter::once(0).chain(ends).take(MAX_LEVELS + 1).map(|end| &name[..end]);
        let prefixes = prefixes.filter(|prefix| is_prefix(prefix));
        let allowed = prefixes.filter(|prefix| self.allow_pattern(&Pattern::Prefix((*prefix).to_owned())));
        let mut patterns: Vec<_> = allowed.map(Topic::below).collect();
        patterns.reverse();
        patterns
    }

    /// Whether clients may subscribe to a pattern, if they have the right: the rule of all its topics says so.
    fn allow_pattern(&self, pattern: &Pattern) -> bool {
        self.0.iter().find(|rule| rule.topics.contains(pattern)).is_some_and(|rule| rule.wildcard)
    }

    /// Checks that a client may listen to a pattern. A rule may be for some of its topics alone, and an earlier rule applies
    /// first. So each rule that has topics in common with the pattern must allow the connection to listen to all of those.
    fn check_pattern(&self, topic: &Topic, user: Option<&UserId>, grants: &Grants) -> Result<(), ClientError> {
        let wrong = |problem| ClientError::Pattern { topic: topic.as_str().to_owned(), problem };
        let prefix = topic.as_str().strip_suffix('*').filter(|prefix| is_prefix(prefix));
        let prefix = prefix.ok_or_else(|| {
            wrong("the `*` must be its last segment, behind at most 8 segments that are not empty and have none")
        })?;
        let pattern = Pattern::Prefix(prefix.to_owned());
        if !self.allow_pattern(&pattern) {
            return Err(wrong("no rule allows it"));
        }
        for rule in &self.0 {
            if rule.topics.contains(&pattern) {
                return rule.subscribe.check_all(Act::Subscribe, topic, &pattern, user, grants);
            }
            if pattern.contains(&rule.topics) {
                rule.subscribe.check_all(Act::Subscribe, topic, &rule.topics, user, grants)?;
            }
        }
        Ok(())
    }

    /// Checks that a name is one topic.
    ///
    /// # Errors
    ///
    /// [`ClientError::Pattern`].
    pub fn check_one(&self, topic: &Topic) -> Result<(), ClientError> {
        if !self.is_pattern(topic) {
            return Ok(());
        }
        let problem = "only a subscribe or an unsubscribe may have one";
        Err(ClientError::Pattern { topic: topic.as_str().to_owned(), problem })
    }

    /// Returns the time that messages of this topic are kept. `None` means that they are not kept.
    #[must_use]
    pub fn kept(&self, topic: &Topic) -> Option<Duration> {
        self.of(topic).filter(|_| !self.is_pattern(topic))?.kept
    }

    /// Whether messages of a topic wait for others, and go out together: through the events table and its stream.
    #[must_use]
    pub fn is_batched(&self, topic: &Topic) -> bool {
        self.of(topic).is_some_and(|rule| rule.is_batched) && !self.is_pattern(topic)
    }

    /// Whether subscribers learn who is in a topic. For a pattern this asks about any of its topics.
    #[must_use]
    pub fn has_presence(&self, topic: &Topic) -> bool {
        if !self.is_pattern(topic) {
            return self.of(topic).is_some_and(|rule| rule.presence);
        }
        let pattern = Pattern::of(topic);
        let is_common = |rule: &&Rule| rule.topics.contains(&pattern) || pattern.contains(&rule.topics);
        self.0.iter().filter(is_common).any(|rule| rule.presence)
    }

    /// Whether any topic has presence.
    #[must_use]
    pub fn have_presence(&self) -> bool {
        self.0.iter().any(|rule| rule.presence)
    }

    /// Whether the table of messages is needed: for history, or for what was told of members.
    #[must_use]
    pub fn remember_anything(&self) -> bool {
        self.keep_anything() || self.have_presence()
    }

    /// Whether any topic has history.
    #[must_use]
    pub fn keep_anything(&self) -> bool {
        self.0.iter().any(|rule| rule.kept.is_some())
    }

    /// Returns who may do something with a topic, or with all topics of a pattern. A function that asks for more than anyone
    /// has to read the connection's row.
    #[must_use]
    pub fn who(&self, act: Act, topic: &Topic) -> Who {
        let who = |rule: &Rule| match act {
            Act::Subscribe | Act::Read => rule.subscribe,
            Act::Publish => rule.publish,
        };
        if !self.is_pattern(topic) {
            return self.of(topic).map_or(Who::Anyone, who);
        }
        let pattern = Pattern::of(topic);
        let common = self.0.iter().filter(|rule| rule.topics.contains(&pattern) || pattern.contains(&rule.topics));
        common.map(who).max().unwrap_or_default()
    }

    /// Returns the topic that a client means by a name, if its connection has the right. No handler decides that by itself.
    ///
    /// # Errors
    ///
    /// [`ClientError::MissingRight`], [`ClientError::Pattern`], and [`ClientError::Unidentified`] for `@me` of a connection
    /// without a user.
    pub fn allow(&self, act: Act, name: &Name, user: Option<&UserId>, grants: &Grants) -> Result<Topic, ClientError> {
        let topic = name.of(user)?;
        if act == Act::Subscribe && self.is_pattern(&topic) {
            self.check_pattern(&topic, user, grants)?;
        } else {
            self.check_one(&topic)?;
            self.who(act, &topic).check(act, &topic, user, grants)?;
        }
        Ok(topic)
    }

    /// Returns how many receivers a publish of a client may have, if the rule of its topic says so. Zero means no limit.
    #[must_use]
    pub fn max_receivers(&self, topic: &Topic) -> Option<u32> {
        self.of(topic)?.max_receivers
    }

    /// Checks that the messages of a client are as small as the rule of their topic wants them.
    ///
    /// # Errors
    ///
    /// [`ClientError::InvalidField`].
    pub fn check_size(&self, topic: &Topic, field: &'static str, payloads: &[&RawValue]) -> Result<(), ClientError> {
        match self.of(topic).and_then(|rule| rule.max_bytes) {
            Some(most) if payloads.iter().any(|payload| payload.get().len() > most) => {
                let expected = format!("at most {most} bytes of JSON, because a rule says so");
                Err(ClientError::InvalidField { field, expected })
            }
            _ => Ok(()),
        }
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Self, String> {
        // The reader of JSON would take an array for the fields in their order.
        if !text.starts_with('{') {
            return Err("a rule must be a JSON object".to_owned());
        }
        let Written { topic, history, subscribe, publish, max_bytes, max_receivers, wildcard, presence, batch_ms } =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let kept = match history {
            None => None,
            Some(WrittenHistory { hours }) if (MIN_HOURS..=MAX_HOURS).contains(&hours) => {
                Some(Duration::from_secs(u64::from(hours) * 3600))
            }
            Some(_) => return Err(format!("`hours` must be a whole number from {MIN_HOURS} to {MAX_HOURS}")),
        };
        let who = |value: Option<Value>| value.map_or(Ok(Who::Anyone), serde_json::from_value);
        let publish = who(publish).map_err(|_| "`publish` must be `anyone`, `identified`, `granted` or `backend`")?;
        let is_subscribe_set = subscribe.is_some();
        let subscribe = who(subscribe).ok().filter(|who| *who != Who::Backend);
        let subscribe = subscribe.ok_or("`subscribe` must be `anyone`, `identified` or `granted`")?;
        if topic.starts_with('@') && is_subscribe_set {
            return Err("`subscribe` must be absent: only its own user listens to an address".to_owned());
        }
        let most = if kept.is_some() { MAX_KEPT_BYTES } else { MAX_PAYLOAD_BYTES };
        if max_bytes.is_some_and(|bytes| !(1..=most).contains(&bytes)) {
            let history = if kept.is_some() { " where there is `history`" } else { "" };
            return Err(format!("`maxBytes` must be a whole number from 1 to {most}{history}"));
        }
        if max_bytes.is_some() && publish == Who::Backend {
            return Err(
                "`maxBytes` bounds what clients send, and with `publish` as `backend` they send nothing".to_owned()
            );
        }
        if let Some(receivers) = max_receivers {
            check_max_receivers(receivers).map_err(|problem| format!("`maxReceivers` {problem}"))?;
            let reason = if kept.is_some() {
                Some("with `history` there is no such limit, because a message is kept before its receivers are known")
            } else if topic.starts_with('@') {
                Some("MAX_CONNECTIONS_PER_USER bounds the receivers of an address")
            } else {
                (publish == Who::Backend).then_some("with `publish` as `backend` clients send nothing")
            };
            if let Some(reason) = reason {
                return Err(format!("`maxReceivers` must be absent: {reason}"));
            }
        }
        if let Some(batch_ms) = batch_ms {
            if !BATCH_MS.contains(&batch_ms) {
                return Err(format!(
                    "`batchMs` must be a whole number from {} to {}",
                    BATCH_MS.start(),
                    BATCH_MS.end()
                ));
            }
            let reason = if kept.is_some() {
                Some(
                    "with `history` each message is kept under its number and acknowledged with it, before it is posted",
                )
            } else if topic.starts_with('@') {
                Some("a direct message does not wait for others")
            } else {
                max_receivers.map(|_| "with `maxReceivers` the receivers must be known before the ack")
            };
            if let Some(reason) = reason {
                return Err(format!("`batchMs` must be absent: {reason}"));
            }
        }
        let is_batched = batch_ms.is_some();
        let topics = Pattern::parse("topic", &topic)?;
        if wildcard && (topic.starts_with('@') || !matches!(topics, Pattern::Prefix(_))) {
            return Err("`wildcard` needs a `topic` that ends in `*` and is for no addresses".to_owned());
        }
        if presence && topic.starts_with('@') {
            return Err("`presence` is for no addresses".to_owned());
        }
        Ok(Self { topics, kept, subscribe, publish, max_bytes, max_receivers, is_batched, wildcard, presence })
    }
}

/// Whether a text may stand in front of the `*` of a pattern: a few whole segments, each with a dot behind it, or nothing.
fn is_prefix(text: &str) -> bool {
    let Some(segments) = text.strip_suffix('.') else { return text.is_empty() };
    let is_segment = |segment: &str| !segment.is_empty() && !segment.contains('*');
    segments.split('.').count() <= MAX_LEVELS && segments.split('.').all(is_segment)
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
    fn messages_wait_for_others_where_a_rule_says_so_and_nothing_contradicts_it() {
        let rules = Rules::parse(r#"[{"topic":"ticks.*","batchMs":250,"wildcard":true},{"topic":"other"}]"#).unwrap();
        for (topic, is_batched) in [("ticks.1", true), ("ticks.*", false), ("other", false), ("none", false)] {
            assert_eq!(rules.is_batched(&Topic::parse(topic).unwrap()), is_batched, "{topic}");
        }
        for (rule, problem) in [
            (r#"{"topic":"t","batchMs":249}"#, "`batchMs` must be a whole number from 250 to 10000"),
            (r#"{"topic":"t","batchMs":10001}"#, "`batchMs` must be a whole number from 250 to 10000"),
            (r#"{"topic":"t","batchMs":500,"history":{"hours":1}}"#, "`batchMs` must be absent: with `history`"),
            (r#"{"topic":"t","batchMs":500,"maxReceivers":9}"#, "`batchMs` must be absent: with `maxReceivers`"),
            (r#"{"topic":"@*","batchMs":500}"#, "`batchMs` must be absent: a direct message"),
        ] {
            let error = Rules::parse(&format!("[{rule}]")).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn a_rule_says_who_may_subscribe_and_publish_and_everybody_may_without_one() {
        let rules = r#"[
            {"topic": "room.*", "subscribe": "granted", "publish": "identified"},
            {"topic": "alerts", "publish": "backend"},
            {"topic": "@*", "publish": "granted"}
        ]"#;
        let rules = Rules::parse(rules).unwrap();
        for (topic, subscribe, publish) in [
            ("room.7", Who::Granted, Who::Identified),
            ("alerts", Who::Anyone, Who::Backend),
            ("@7", Who::Anyone, Who::Granted),
            ("other", Who::Anyone, Who::Anyone),
        ] {
            let topic = Topic::of_event(topic).unwrap();
            assert_eq!((rules.who(Act::Subscribe, &topic), rules.who(Act::Publish, &topic)), (subscribe, publish));
        }
    }

    #[test]
    fn a_publish_reads_one_more_list_for_each_level_that_a_rule_allows_and_none_otherwise() {
        let rules = |text| Rules::parse(text).unwrap();
        let room = r#"[{"topic":"room.*","wildcard":true}]"#;
        let narrow = r#"[{"topic":"room.eu.*"},{"topic":"room.*","wildcard":true}]"#;
        let all = r#"[{"topic":"*","wildcard":true}]"#;
        let half = r#"[{"topic":"ro*","wildcard":true}]"#;
        for (text, topic, expected) in [
            (room, "room.7", &["room.*"][..]),
            (room, "room.eu.7", &["room.eu.*", "room.*"]),
            (room, "room.", &["room.*"]),
            (room, "room..7", &["room.*"]),
            (room, "room", &[]),
            (room, "hall.7", &[]),
            (room, "@room.7", &[]),
            (narrow, "room.eu.7", &["room.*"]),
            (narrow, "room.us.7", &["room.us.*", "room.*"]),
            (all, "7", &["*"]),
            (all, "a.b", &["a.*", "*"]),
            (all, "@7", &[]),
            (half, "room.7", &["room.*"]),
            (r#"[{"topic":"room.*"}]"#, "room.7", &[]),
            ("[]", "room.7", &[]),
        ] {
            let found = rules(text).patterns_of(&Topic::of_event(topic).unwrap());
            assert_eq!(found.iter().map(Topic::as_str).collect::<Vec<_>>(), expected, "{text} {topic}");
        }
        let deep = rules(all).patterns_of(&Topic::parse(&"a.".repeat(100)).unwrap());
        assert_eq!(deep.len(), MAX_LEVELS + 1);
    }

    /// Whether a connection with this user and these grants may subscribe to the pattern.
    fn listens(rules: &str, name: &str, user: Option<&str>, granted: &[&str]) -> Result<(), String> {
        let user = user.map(|user| UserId::parse("userId", user).unwrap());
        let grants = Grants::parse(&serde_json::json!({ "subscribe": granted })).unwrap();
        let rules = Rules::parse(rules).unwrap();
        let name = Name::parse(name).unwrap();
        rules.allow(Act::Subscribe, &name, user.as_ref(), &grants).map(drop).map_err(|mistake| mistake.to_string())
    }

    /// The trap of wildcards and rules: the rule of `room.*` lets everybody in, and an earlier one keeps `room.secret` apart.
    #[test]
    fn nobody_hears_room_secret_by_a_subscription_to_room_star() {
        let rules = r#"[
            {"topic": "room.secret", "subscribe": "granted"},
            {"topic": "room.staff.*", "subscribe": "identified"},
            {"topic": "room.*", "wildcard": true},
            {"topic": "*", "subscribe": "granted"}
        ]"#;
        for (name, user, granted, expected) in [
            ("room.*", None, &[][..], false),
            ("room.*", Some("1"), &[], false),
            ("room.*", Some("1"), &["room.7"], false),
            ("room.*", None, &["room.secret"], false),
            ("room.*", Some("1"), &["room.secret"], true),
            ("room.*", Some("1"), &["*"], true),
            ("room.eu.*", None, &[], true),
            ("room.secret", None, &[], false),
            ("room.7", None, &[], true),
        ] {
            assert_eq!(listens(rules, name, user, granted).is_ok(), expected, "{name} {user:?} {granted:?}");
        }
        let asked = Rules::parse(rules).unwrap().who(Act::Subscribe, &Topic::parse("room.*").unwrap());
        assert_eq!(asked, Who::Granted, "the row is read with its latest grants");
        // A grant of some topics does not contain the pattern.
        let granted = r#"[{"topic": "room.*", "wildcard": true, "subscribe": "granted"}]"#;
        for (name, grant, expected) in [
            ("room.*", "room.*", true),
            ("room.*", "room.7", false),
            ("room.*", "room.eu.*", false),
            ("room.eu.*", "room.eu.*", true),
            ("room.eu.*", "room.*", true),
        ] {
            assert_eq!(listens(granted, name, None, &[grant]).is_ok(), expected, "{name} {grant}");
        }
    }

    #[test]
    fn a_pattern_that_no_rule_allows_is_a_mistake_that_names_it() {
        let rules = r#"[{"topic": "quiet.*"}, {"topic": "r*", "wildcard": true}, {"topic": "one"}]"#;
        for (name, expected) in [
            ("room.*", None),
            ("room.eu.*", None),
            ("quiet.*", Some("no rule allows it")),
            ("other.*", Some("no rule allows it")),
            ("*", Some("no rule allows it")),
            ("one*", Some("the `*` must be its last segment")),
            ("room*", Some("the `*` must be its last segment")),
            ("room.*.7", Some("the `*` must be its last segment")),
            ("room.**", Some("the `*` must be its last segment")),
            ("room.*.*", Some("the `*` must be its last segment")),
            ("room..*", Some("the `*` must be its last segment")),
            (".*", Some("the `*` must be its last segment")),
            ("**", Some("the `*` must be its last segment")),
            ("r.1.2.3.4.5.6.7.*", None),
            ("r.1.2.3.4.5.6.7.8.*", Some("the `*` must be its last segment")),
        ] {
            let problem = listens(rules, name, None, &[]).err();
            assert_eq!(problem.is_some(), expected.is_some(), "{name}: {problem:?}");
            let problem = problem.unwrap_or_default();
            assert!(problem.contains(expected.unwrap_or_default()), "{name}: {problem}");
            assert!(expected.is_none() || problem.contains(&format!("`{name}`")), "{name}: {problem}");
            // Without rules it is a name like others.
            assert_eq!(listens("[]", name, None, &[]), Ok(()));
        }
        let rules = Rules::parse(rules).unwrap();
        let pattern = Name::parse("room.*").unwrap();
        for act in [Act::Read, Act::Publish] {
            assert_eq!(rules.allow(act, &pattern, None, &Grants::default()).unwrap_err().code(), "forbidden_topic");
        }
        let user = UserId::parse("userId", "a*").unwrap();
        assert!(rules.check_one(&Topic::address(&user)).is_ok(), "names of users may have a star");
    }

    #[test]
    fn a_pattern_keeps_no_messages_of_its_own() {
        let rules = Rules::parse(r#"[{"topic": "room.*", "wildcard": true, "history": {"hours": 24}}]"#).unwrap();
        assert_eq!((hours(&rules, "room.7"), hours(&rules, "room.*")), (Some(24), None));
    }

    #[test]
    fn a_rule_bounds_each_message_of_a_frame() {
        let rules = Rules::parse(r#"[{"topic": "t", "maxBytes": 4}, {"topic": "@*", "maxBytes": 4}]"#).unwrap();
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let (fits, large) = (raw(r#""ab""#), raw(r#""abc""#));
        for (topic, payloads, expected) in [
            ("t", &[&*fits][..], true),
            ("t", &[&fits, &large], false),
            ("@7", &[&large], false),
            ("u", &[&large], true),
        ] {
            let found = rules.check_size(&Topic::of_event(topic).unwrap(), "messages", payloads);
            let names = "the field `messages` must be at most 4 bytes of JSON";
            assert_eq!(found.is_ok(), expected, "{topic}");
            assert!(found.is_ok() || found.unwrap_err().to_string().starts_with(names), "{topic}");
        }
    }

    #[test]
    fn a_rule_bounds_the_receivers_of_a_publish() {
        let rules =
            Rules::parse(r#"[{"topic": "t", "maxReceivers": 4}, {"topic": "all", "maxReceivers": 0}, {"topic": "*"}]"#);
        let rules = rules.unwrap();
        for (topic, expected) in [("t", Some(4)), ("all", Some(0)), ("u", None)] {
            assert_eq!(rules.max_receivers(&Topic::parse(topic).unwrap()), expected, "{topic}");
        }
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
            (r#"{"topic": "u", "subscribe": "everybody"}"#, "`subscribe` must be `anyone`"),
            (r#"{"topic": "u", "subscribe": "Anyone"}"#, "`subscribe` must be `anyone`"),
            (r#"{"topic": "u", "subscribe": ["granted"]}"#, "`subscribe` must be `anyone`"),
            (r#"{"topic": "u", "publish": true}"#, "`publish` must be `anyone`"),
            (r#"{"topic": "u", "subscribe": "backend"}"#, "`subscribe` must be `anyone`"),
            (r#"{"topic": "@*", "subscribe": "anyone"}"#, "`subscribe` must be absent"),
            (r#"{"topic": "@7", "subscribe": "granted"}"#, "`subscribe` must be absent"),
            (r#"{"topic": "u", "maxBytes": 0}"#, "from 1 to 129024"),
            (r#"{"topic": "u", "maxBytes": 129025}"#, "from 1 to 129024"),
            (
                r#"{"topic": "u", "maxBytes": 32769, "history": {"hours": 1}}"#,
                "from 1 to 32768 where there is `history`",
            ),
            (r#"{"topic": "u", "maxBytes": "1"}"#, "invalid type"),
            (r#"{"topic": "u", "maxBytes": 1, "publish": "backend"}"#, "`maxBytes` bounds what clients send"),
            (r#"{"topic": "u", "wildcard": true}"#, "`wildcard` needs a `topic` that ends in `*`"),
            (r#"{"topic": "@*", "wildcard": true}"#, "is for no addresses"),
            (r#"{"topic": "u.*", "wildcard": "yes"}"#, "invalid type"),
            (r#"{"topic": "@*", "presence": true}"#, "`presence` is for no addresses"),
            (r#"{"topic": "u", "maxReceivers": 100001}"#, "up to 100000"),
            (r#"{"topic": "u", "maxReceivers": -1}"#, "-1"),
            (
                r#"{"topic": "u", "maxReceivers": 1, "history": {"hours": 1}}"#,
                "`maxReceivers` must be absent: with `history`",
            ),
            (
                r#"{"topic": "u", "maxReceivers": 1, "publish": "backend"}"#,
                "`maxReceivers` must be absent: with `publish`",
            ),
            (r#"{"topic": "@*", "maxReceivers": 1}"#, "`maxReceivers` must be absent: MAX_CONNECTIONS_PER_USER"),
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
        for (rules, never) in [
            (
                r#"[{"topic":"room.*"},{"topic":"a"},{"topic":"room.7","subscribe":"granted"}]"#,
                Some("rule 3: it never"),
            ),
            (
                r#"[{"topic":"t"},{"topic":"t"}]"#,
                Some("rule 2: it never applies, because rule 1 is for all of its topics"),
            ),
            (r#"[{"topic":"room.*"},{"topic":"room.eu.*"}]"#, Some("rule 2: it never")),
            (r#"[{"topic":"*"},{"topic":"room.7"}]"#, Some("rule 2: it never")),
            (r#"[{"topic":"@*"},{"topic":"@7"}]"#, Some("rule 2: it never")),
            (r#"[{"topic":"room.7"},{"topic":"room.*"},{"topic":"*"},{"topic":"@*"}]"#, None),
        ] {
            let problem = Rules::parse(rules).err();
            assert_eq!(problem.is_some(), never.is_some(), "{rules}: {problem:?}");
            assert!(problem.unwrap_or_default().contains(never.unwrap_or_default()), "{rules}");
        }
        for wrong in ["", "{}", "yes", "[", r#"[{"topic":"t"}] more"#] {
            assert!(Rules::parse(wrong).unwrap_err().starts_with("must be a JSON array of rules"), "{wrong}");
        }
    }
}
