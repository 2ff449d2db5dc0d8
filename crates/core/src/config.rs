//! The only reader of environment variables, and what every function is configured with.

use std::time::Duration;

use crate::Error;
use crate::gateway::Endpoint;
use crate::rules::{self, Rules};

/// What every function is configured with, read once per execution environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `CONNECTIONS_TABLE`, required: the name of the table of open connections.
    pub connections_table: String,
    /// `TOPICS_TABLE`, required: the name of the table of subscriptions.
    pub topics_table: String,
    /// `EVENTS_TABLE`, required: the name of the table whose stream publishes.
    pub events_table: String,
    /// `TOPIC_RULES`: what topics can do besides delivering. Without it none can do anything more.
    pub topic_rules: Rules,
    /// `MESSAGES_TABLE`, required when a rule has `history`: the name of the table of messages that are kept.
    pub messages_table: String,
    /// The URL in front of `/@connections`: `PUBLISH_ENDPOINT`, else one of the SDK's own variables,
    /// `AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI` and `AWS_ENDPOINT_URL`. Without any of them posts go to the domain
    /// and stage of the event, which is right unless a custom domain maps a key other than the stage.
    pub publish_endpoint: Option<Endpoint>,
    /// `CONNECTION_TTL_S`, seconds, default 7200: how long a connection's rows count, from its `$connect`. The
    /// gateway closes every connection after two hours (Amazon API Gateway quotas, WebSocket APIs).
    pub connection_ttl: Duration,
    /// `MAX_FRAMES_PER_SECOND`, default 50: how many frames one connection may send. Zero means no limit. See [`crate::limits`].
    pub max_frames_per_second: u32,
    /// `MAX_CONNECTIONS_PER_USER`, default 100: a user who has so many gets no further one. Zero means no limit.
    pub max_connections_per_user: u32,
    /// `MAX_RECEIVERS_PER_PUBLISH`, default 10,000: how many receivers a message of a client may have on a topic without
    /// history, unless a rule says otherwise. Zero means no limit.
    pub max_receivers_per_publish: u32,
    /// `REQUEST_RATE`, default 10,000: how many requests a second API Gateway allows the account in this Region. Large fan-outs
    /// share nine tenths of it.
    pub request_rate: u32,
    /// `REQUEST_BURST`, default 5,000: how many it allows at once.
    pub request_burst: u32,
    /// `METRICS_NAMESPACE`: CloudWatch's namespace of the functions' own metrics; without it none are written.
    pub metrics_namespace: Option<String>,
    /// `LOG_ONE_IN`, default 100: one in so many events that go well writes its details into the log. Zero means none. See
    /// [`crate::log`].
    pub log_one_in: u32,
}

/// Reads a variable of the environment. An empty one counts as not set, because serverless.yml cannot leave a variable out.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Reads a variable that is a whole number of at least `least` (0 or 1), or takes the default and notes the problem. A name that ends in `_S`
/// has seconds.
pub fn whole_number(
    variable: impl Fn(&str) -> Option<String>,
    name: &str,
    least: u32,
    default: u32,
    problems: &mut Vec<String>,
) -> u32 {
    let Some(text) = variable(name) else { return default };
    text.parse().ok().filter(|number| *number >= least).unwrap_or_else(|| {
        let unit = if name.rsplit('_').next() == Some("S") { " of seconds" } else { "" };
        let bound = if least > 0 { " above 0" } else { "" };
        problems.push(format!("{name} is not a whole number{unit}{bound}"));
        default
    })
}

/// Ours. A person's client sends a few frames a second, and a shared cursor or a game 20 to 30.
const DEFAULT_FRAMES_PER_SECOND: u32 = 50;

/// Ours. A person has a few devices, each with a few tabs.
const DEFAULT_CONNECTIONS_PER_USER: u32 = 100;

/// Ours. Posting to so many connections costs one cent ($1 for a million), and a conversation has fewer members.
const DEFAULT_RECEIVERS_PER_PUBLISH: u32 = 10_000;

/// An account's requests in most Regions, for all APIs of API Gateway together (Amazon API Gateway quotas).
const DEFAULT_REQUEST_RATE: u32 = 10_000;
const DEFAULT_REQUEST_BURST: u32 = 5_000;

/// Ours. A million frames then write 4 MB of lines, which cost $0.002, and a busy stage still shows what usually happens.
const DEFAULT_LOG_ONE_IN: u32 = 100;

/// The gateway's limit on a connection's life: 2 hours.
const DEFAULT_CONNECTION_TTL_S: u32 = 2 * 60 * 60;

impl Config {
    /// Reads the process environment.
    ///
    /// # Errors
    ///
    /// [`Error::Config`], naming every variable that is missing or wrong, not only the first.
    pub fn from_env() -> Result<Self, Error> {
        Self::read(variable)
    }

    /// Reads the variables from another place, which tests choose.
    ///
    /// # Errors
    ///
    /// As [`Config::from_env`].
    pub fn read(variable: impl Fn(&str) -> Option<String> + Copy) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let mut required = |name: &str| {
            variable(name).unwrap_or_else(|| {
                problems.push(format!("{name} is not set"));
                String::new()
            })
        };
        let connections_table = required("CONNECTIONS_TABLE");
        let topics_table = required("TOPICS_TABLE");
        let events_table = required("EVENTS_TABLE");
        let topic_rules = variable("TOPIC_RULES").map_or_else(|| Ok(Rules::default()), |text| Rules::parse(&text));
        let topic_rules = topic_rules.unwrap_or_else(|problem| {
            problems.push(format!("TOPIC_RULES {problem}"));
            Rules::default()
        });
        let messages_table = variable("MESSAGES_TABLE").unwrap_or_default();
        if topic_rules.remember_anything() && messages_table.is_empty() {
            problems
                .push("MESSAGES_TABLE is not set, but a rule of TOPIC_RULES has `history` or `presence`".to_owned());
        }
        let mut number = |name, least, default| whole_number(variable, name, least, default, &mut problems);
        let connection_ttl_s = number("CONNECTION_TTL_S", 1, DEFAULT_CONNECTION_TTL_S);
        let max_frames_per_second = number("MAX_FRAMES_PER_SECOND", 0, DEFAULT_FRAMES_PER_SECOND);
        let max_connections_per_user = number("MAX_CONNECTIONS_PER_USER", 0, DEFAULT_CONNECTIONS_PER_USER);
        let log_one_in = number("LOG_ONE_IN", 0, DEFAULT_LOG_ONE_IN);
        let request_rate = number("REQUEST_RATE", 1, DEFAULT_REQUEST_RATE);
        let request_burst = number("REQUEST_BURST", 1, DEFAULT_REQUEST_BURST);
        let receivers = variable("MAX_RECEIVERS_PER_PUBLISH")
            .map(|text| text.parse().map_err(|_| "is not a whole number".to_owned()));
        let receivers = receivers.unwrap_or(Ok(DEFAULT_RECEIVERS_PER_PUBLISH));
        let checked = receivers.and_then(|receivers| rules::check_max_receivers(receivers).map(|()| receivers));
        let max_receivers_per_publish = checked.unwrap_or_else(|problem| {
            problems.push(format!("MAX_RECEIVERS_PER_PUBLISH {problem}"));
            DEFAULT_RECEIVERS_PER_PUBLISH
        });
        let publish_endpoint = ["PUBLISH_ENDPOINT", "AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI", "AWS_ENDPOINT_URL"]
            .into_iter()
            .find_map(|name| variable(name).map(|url| (name, url)))
            .and_then(|(name, url)| {
                Endpoint::parse(&url).map_err(|problem| problems.push(format!("{name} {problem}"))).ok()
            });
        let config = Self {
            connections_table,
            topics_table,
            events_table,
            topic_rules,
            messages_table,
            publish_endpoint,
            connection_ttl: Duration::from_secs(connection_ttl_s.into()),
            max_frames_per_second,
            max_connections_per_user,
            max_receivers_per_publish,
            request_rate,
            request_burst,
            metrics_namespace: variable("METRICS_NAMESPACE"),
            log_one_in,
        };
        if problems.is_empty() { Ok(config) } else { Err(Error::Config { problems: problems.join("; ") }) }
    }
}

#[cfg(test)]
impl Config {
    /// Tables that are named after their variables, and a gateway that posts may go to.
    pub(crate) fn for_tests() -> Self {
        let tables = ["CONNECTIONS_TABLE", "TOPICS_TABLE", "EVENTS_TABLE", "MESSAGES_TABLE"];
        let rules = r#"[{"topic":"room.*","history":{"hours":24}},{"topic":"@kept*","history":{"hours":72}}]"#;
        Self::read(|name| match name {
            "PUBLISH_ENDPOINT" => Some("https://gateway/dev".to_owned()),
            "TOPIC_RULES" => Some(rules.to_owned()),
            _ => tables.contains(&name).then(|| name.to_owned()),
        })
        .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, Error> {
        Config::read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn every_missing_or_wrong_variable_is_named() {
        let limits = [("MAX_FRAMES_PER_SECOND", "-1"), ("MAX_RECEIVERS_PER_PUBLISH", "100001"), ("LOG_ONE_IN", "few")];
        let error = read(&[&[("TOPICS_TABLE", "t"), ("CONNECTION_TTL_S", "soon")], &limits[..]].concat());
        let text = error.unwrap_err().to_string();
        let limits = limits.map(|(name, _)| name);
        for name in ["CONNECTIONS_TABLE", "EVENTS_TABLE", "CONNECTION_TTL_S"].into_iter().chain(limits) {
            assert!(text.contains(name), "{name} is not in: {text}");
        }
        assert!(!text.contains("TOPICS_TABLE"), "{text}");
    }

    #[test]
    fn wrong_rules_are_named_and_history_needs_its_table() {
        let tables = [("CONNECTIONS_TABLE", "c"), ("TOPICS_TABLE", "t"), ("EVENTS_TABLE", "e")];
        let read = |rules, more: &[(&str, &str)]| read(&[&tables[..], &[("TOPIC_RULES", rules)], more].concat());
        let error = read(r#"[{"topic":"t"},{"topic":"t","hours":1}]"#, &[]).unwrap_err();
        assert_eq!(error.error_type(), "Config.Invalid");
        assert!(error.to_string().contains("TOPIC_RULES has wrong rules: rule 2: "), "{error}");
        let history = r#"[{"topic":"t","history":{"hours":1}}]"#;
        let error = read(history, &[]).unwrap_err();
        assert!(error.to_string().contains("MESSAGES_TABLE is not set"), "{error}");
        assert!(read(history, &[("MESSAGES_TABLE", "m")]).unwrap().topic_rules.keep_anything());
        assert!(read(r#"[{"topic":"t"}]"#, &[]).is_ok());
    }

    #[test]
    fn rows_count_as_long_as_the_gateway_keeps_a_connection() {
        let config = read(&[("CONNECTIONS_TABLE", "c"), ("TOPICS_TABLE", "t"), ("EVENTS_TABLE", "e")]).unwrap();
        assert_eq!(config.connection_ttl, Duration::from_secs(7200));
    }

    #[test]
    fn posts_go_where_the_most_specific_variable_says() {
        let mut variables = vec![("CONNECTIONS_TABLE", "c"), ("TOPICS_TABLE", "t"), ("EVENTS_TABLE", "e")];
        assert_eq!(read(&variables).unwrap().publish_endpoint, None);
        for (name, url) in [
            ("AWS_ENDPOINT_URL", "http://everything"),
            ("AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI", "http://gateway/dev"),
            ("PUBLISH_ENDPOINT", "https://chat.example.com/v1"),
        ] {
            variables.push((name, url));
            assert_eq!(read(&variables).unwrap().publish_endpoint.unwrap().to_string(), url);
        }
    }

    #[test]
    fn an_endpoint_that_cannot_take_posts_is_named() {
        let tables = [("CONNECTIONS_TABLE", "c"), ("TOPICS_TABLE", "t"), ("EVENTS_TABLE", "e")];
        for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI", "PUBLISH_ENDPOINT"] {
            let error = read(&[&tables[..], &[(name, "wss://gateway/dev")]].concat()).unwrap_err();
            let expected = format!("{name} must begin with http:// or https://, not with wss://");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}
