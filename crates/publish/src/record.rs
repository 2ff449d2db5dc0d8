//! What a record of the events table's stream says, as a publication.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_dynamo::{AttributeValue, Item};
use serde_json::value::RawValue;
use switchboard_core::ClientError;
use switchboard_core::connection::UserId;
use switchboard_core::event::attribute;
use switchboard_core::frame::{MAX_BODY_NESTING, MAX_MESSAGE_NESTING, MAX_PAYLOAD_BYTES, nests_deeper};
use switchboard_core::publication::{Audience, Content, Publication, SEGMENTS};
use switchboard_core::topic::Topic;

/// Why an event can never be published, however often it is tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Poison {
    /// An attribute is absent.
    #[error("the attribute `{0}` is missing")]
    Missing(&'static str),
    /// An attribute has a type that it cannot have.
    #[error("the attribute `{0}` must be {1}")]
    Invalid(&'static str, &'static str),
    /// The topic or the sender is no name.
    #[error(transparent)]
    Name(#[from] ClientError),
    /// The payload does not fit a frame.
    #[error("the payload is {size_bytes} bytes of JSON, and a frame takes at most {MAX_PAYLOAD_BYTES}")]
    TooLarge {
        /// As JSON.
        size_bytes: usize,
    },
    /// The payload nests so deeply that receivers may not be able to read its frame.
    #[error("the payload nests deeper than {max_levels} levels")]
    TooDeep {
        /// What its frame takes.
        max_levels: usize,
    },
}

/// The end of all connections of a user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Disconnect {
    /// The user's address.
    pub(crate) address: Topic,
    /// What the clients hear.
    pub(crate) reason: String,
}

/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// What a client hears without a reason.
const NO_REASON: &str = "a backend has ended this connection";

/// The connections that an event asks to end, if it does.
pub(crate) fn disconnect(item: &Item) -> Result<Option<Disconnect>, Poison> {
    match item.get(attribute::DISCONNECT) {
        None => return Ok(None),
        Some(AttributeValue::Bool(true)) => {}
        Some(_) => return Err(Poison::Invalid(attribute::DISCONNECT, "true")),
    }
    let topic = string(item, attribute::TOPIC)?.ok_or(Poison::Missing(attribute::TOPIC))?;
    if topic == Topic::INITIAL_CONNECTION {
        return Err(Poison::Invalid(attribute::TOPIC, "the address of a user where there is `disconnect`"));
    }
    let address = Topic::of_event(topic)?;
    if !address.is_address() {
        return Err(Poison::Invalid(attribute::TOPIC, "the address of a user where there is `disconnect`"));
    }
    if [attribute::DATA, attribute::BODY, attribute::JSON].iter().any(|name| item.contains_key(*name)) {
        return Err(Poison::Invalid(attribute::DISCONNECT, "absent where there is a payload"));
    }
    let reason = string(item, attribute::REASON)?.unwrap_or(NO_REASON);
    if !(1..=MAX_REASON_BYTES).contains(&reason.len()) {
        return Err(Poison::Invalid(attribute::REASON, "a string of 1 to 1024 bytes"));
    }
    Ok(Some(Disconnect { address, reason: reason.to_owned() }))
}

/// The publications that an event asks for: one, or one for each segment where everybody is meant.
pub(crate) fn publications(item: &Item, id: &str) -> Result<Vec<Publication>, Poison> {
    let topic = string(item, attribute::TOPIC)?.ok_or(Poison::Missing(attribute::TOPIC))?;
    let audiences: Vec<_> = if topic == Topic::INITIAL_CONNECTION {
        (0..SEGMENTS).map(|segment| Audience::Everybody { segment }).collect()
    } else {
        vec![Audience::Topic(Topic::of_event(topic)?)]
    };
    let content = content(item, topic.starts_with('@'))?;
    Ok(audiences.into_iter().map(|audience| Publication::new(audience, content.clone(), id)).collect())
}

fn content(item: &Item, is_address: bool) -> Result<Content, Poison> {
    let name = if is_address { attribute::BODY } else { attribute::DATA };
    let payload = match (string(item, attribute::JSON)?, item.get(name)) {
        (Some(text), _) => text.to_owned(),
        (None, Some(value)) => {
            let mut text = String::new();
            write_json(value, &mut text);
            text
        }
        (None, None) => return Err(Poison::Missing(name)),
    };
    let max_levels = if is_address { MAX_BODY_NESTING } else { MAX_MESSAGE_NESTING };
    let payload = checked(payload, max_levels)?;
    if !is_address {
        let further = further(item)?.into_iter().map(|text| checked(text.to_owned(), max_levels));
        return Ok(Content::Data(std::iter::once(Ok(payload)).chain(further).collect::<Result<_, _>>()?));
    }
    let sender = string(item, attribute::SENDER_ID)?.ok_or(Poison::Missing(attribute::SENDER_ID))?;
    Ok(Content::DirectMessage { sender: UserId::parse(attribute::SENDER_ID, sender)?, body: payload })
}

/// A payload that a frame can carry.
fn checked(payload: String, max_levels: usize) -> Result<Box<RawValue>, Poison> {
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(Poison::TooLarge { size_bytes: payload.len() });
    }
    let payload = RawValue::from_string(payload).map_err(|_| Poison::Invalid(attribute::JSON, "JSON text"))?;
    if nests_deeper(payload.get(), max_levels) { Err(Poison::TooDeep { max_levels }) } else { Ok(payload) }
}

/// The messages behind the first one.
fn further(item: &Item) -> Result<Vec<&str>, Poison> {
    let wrong = Poison::Invalid(attribute::FURTHER, "a list of strings");
    match item.get(attribute::FURTHER) {
        None => Ok(Vec::new()),
        Some(AttributeValue::L(texts)) => texts
            .iter()
            .map(|value| match value {
                AttributeValue::S(text) => Ok(text.as_str()),
                _ => Err(wrong.clone()),
            })
            .collect(),
        Some(_) => Err(wrong),
    }
}

fn string<'a>(item: &'a Item, name: &'static str) -> Result<Option<&'a str>, Poison> {
    match item.get(name) {
        None => Ok(None),
        Some(AttributeValue::S(text)) => Ok(Some(text)),
        Some(_) => Err(Poison::Invalid(name, "a string")),
    }
}

/// The JSON that a DynamoDB value stands for. Numbers keep all their digits; binary becomes Base64, as on DynamoDB's
/// own wire; sets become arrays.
fn write_json(value: &AttributeValue, json: &mut String) {
    match value {
        AttributeValue::Null(_) => json.push_str("null"),
        AttributeValue::Bool(value) => json.push_str(if *value { "true" } else { "false" }),
        AttributeValue::N(digits) => json.push_str(digits),
        AttributeValue::S(text) => write_string(text, json),
        AttributeValue::B(bytes) => write_string(&STANDARD.encode(bytes), json),
        AttributeValue::L(values) => write_all(json, "[]", values, write_json),
        AttributeValue::Ss(texts) => write_all(json, "[]", texts, |text, json| write_string(text, json)),
        AttributeValue::Ns(numbers) => write_all(json, "[]", numbers, |digits, json| json.push_str(digits)),
        AttributeValue::Bs(blobs) => {
            write_all(json, "[]", blobs, |bytes, json| write_string(&STANDARD.encode(bytes), json));
        }
        AttributeValue::M(members) => write_all(json, "{}", members, |(name, value), json| {
            write_string(name, json);
            json.push(':');
            write_json(value, json);
        }),
    }
}

fn write_all<T>(
    json: &mut String,
    brackets: &str,
    values: impl IntoIterator<Item = T>,
    write: impl Fn(T, &mut String),
) {
    let (open, close) = brackets.split_at(1);
    json.push_str(open);
    for (count, value) in values.into_iter().enumerate() {
        if count > 0 {
            json.push(',');
        }
        write(value, json);
    }
    json.push_str(close);
}

fn write_string(text: &str, json: &mut String) {
    json.push_str(&serde_json::Value::from(text).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(json: serde_json::Value) -> Item {
        serde_json::from_value(json).unwrap()
    }

    fn published(json: serde_json::Value) -> Result<String, Poison> {
        let publication = publications(&item(json), "1")?.remove(0);
        let text = match &publication.content {
            Content::Data(data) | Content::Frames(data) => data[0].get().to_owned(),
            Content::DirectMessage { sender, body } => format!("{sender}: {}", body.get()),
        };
        Ok(format!("{} {text}", publication.topic()))
    }

    #[test]
    fn every_dynamodb_type_becomes_its_json() {
        for (value, json) in [
            (serde_json::json!({"S": "a\"b\n"}), r#""a\"b\n""#),
            (serde_json::json!({"N": "123456789012345678901234567890.5"}), "123456789012345678901234567890.5"),
            (serde_json::json!({"BOOL": true}), "true"),
            (serde_json::json!({"NULL": true}), "null"),
            (serde_json::json!({"B": "aGk="}), r#""aGk=""#),
            (serde_json::json!({"L": [{"N": "1"}, {"S": "x"}, {"L": []}]}), r#"[1,"x",[]]"#),
            (serde_json::json!({"M": {"a": {"M": {}}}}), r#"{"a":{}}"#),
            (serde_json::json!({"SS": ["a", "b"]}), r#"["a","b"]"#),
            (serde_json::json!({"NS": ["1", "2.5"]}), "[1,2.5]"),
            (serde_json::json!({"BS": ["aGk="]}), r#"["aGk="]"#),
        ] {
            let event = serde_json::json!({"topic": {"S": "t"}, "id": {"S": "1"}, "data": value});
            assert_eq!(published(event).unwrap(), format!("t {json}"));
        }
    }

    #[test]
    fn json_text_is_passed_on_as_it_is() {
        for json in ["{ \"a\": 1.0 }", "1e400", r#"{"\ud83d":"\udc00"}"#, "null"] {
            let event = serde_json::json!({"topic": {"S": "t"}, "json": {"S": json}});
            assert_eq!(published(event).unwrap(), format!("t {json}"));
        }
    }

    #[test]
    fn several_messages_are_one_event() {
        let event = |further| serde_json::json!({"topic": {"S": "t"}, "json": {"S": "1"}, "further": further});
        let publication = publications(&item(event(serde_json::json!({"L": [{"S": "[2]"}, {"S": "3"}]}))), "1");
        let Content::Data(data) = publication.unwrap().remove(0).content else { panic!("not data") };
        assert_eq!(data.iter().map(|data| data.get()).collect::<Vec<_>>(), ["1", "[2]", "3"]);
        for wrong in [serde_json::json!({"S": "2"}), serde_json::json!({"L": [{"N": "2"}]})] {
            assert!(published(event(wrong)).unwrap_err().to_string().contains("`further` must be a list of strings"));
        }
        let no_json = serde_json::json!({"L": [{"S": "{"}]});
        assert!(published(event(no_json)).unwrap_err().to_string().contains("JSON text"));
    }

    #[test]
    fn an_address_takes_a_direct_message() {
        let event = serde_json::json!({"topic": {"S": "@2"}, "senderId": {"S": "1"}, "body": {"M": {"n": {"N": "1"}}}});
        assert_eq!(published(event).unwrap(), "@2 1: {\"n\":1}");
    }

    #[test]
    fn everybody_is_served_in_segments() {
        let all = serde_json::json!({"topic": {"S": "INITIAL_CONNECTION"}, "data": {"N": "1"}});
        let segments = publications(&item(all), "1").unwrap().into_iter().map(|publication| publication.audience);
        assert!(segments.eq((0..SEGMENTS).map(|segment| Audience::Everybody { segment })));
    }

    #[test]
    fn payloads_nest_as_deep_as_those_of_frames() {
        let text = |levels| serde_json::json!({"S": format!("{}{}", "[".repeat(levels), "]".repeat(levels))});
        let list = |levels| (0..levels).fold(serde_json::json!({"N": "1"}), |item, _| serde_json::json!({"L": [item]}));
        for (topic, attribute, max_levels) in [
            ("t", "data", 125),
            ("t", "json", 125),
            ("INITIAL_CONNECTION", "json", 125),
            ("@2", "body", 126),
            ("@2", "json", 126),
        ] {
            let event = |levels| {
                let payload = if attribute == "json" { text(levels) } else { list(levels) };
                serde_json::json!({"topic": {"S": topic}, "senderId": {"S": "1"}, attribute: payload})
            };
            published(event(max_levels)).unwrap();
            let poison = published(event(max_levels + 1)).unwrap_err();
            assert_eq!(poison.to_string(), format!("the payload nests deeper than {max_levels} levels"));
        }
    }

    #[test]
    fn an_address_and_true_end_a_users_connections() {
        let read = |event: serde_json::Value| disconnect(&item(event)).map_err(|poison| poison.to_string());
        let end = |fields: serde_json::Value| {
            let mut event = serde_json::json!({"topic": {"S": "@2"}, "id": {"S": "1"}, "disconnect": {"BOOL": true}});
            event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            read(event)
        };
        let address = Topic::of_event("@2").unwrap();
        for (fields, reason) in [
            (serde_json::json!({}), NO_REASON),
            (serde_json::json!({"reason": {"S": "you left"}}), "you left"),
            (serde_json::json!({"senderId": {"S": "1"}, "ttl": {"N": "1"}}), NO_REASON),
        ] {
            let reason = reason.to_owned();
            assert_eq!(end(fields), Ok(Some(Disconnect { address: address.clone(), reason })));
        }
        for (fields, names) in [
            (serde_json::json!({"disconnect": {"BOOL": false}}), "`disconnect` must be true"),
            (serde_json::json!({"disconnect": {"S": "true"}}), "`disconnect` must be true"),
            (serde_json::json!({"topic": {"S": "general"}}), "`topic` must be the address of a user"),
            (serde_json::json!({"topic": {"S": "INITIAL_CONNECTION"}}), "`topic` must be the address of a user"),
            (serde_json::json!({"topic": {"S": "@"}}), "`topic`"),
            (serde_json::json!({"reason": {"N": "1"}}), "`reason` must be a string"),
            (serde_json::json!({"reason": {"S": ""}}), "`reason` must be a string of 1 to 1024 bytes"),
            (serde_json::json!({"reason": {"S": "x".repeat(1025)}}), "`reason` must be a string of 1 to 1024 bytes"),
            (serde_json::json!({"body": {"S": "bye"}}), "`disconnect` must be absent where there is a payload"),
        ] {
            let poison = end(fields).unwrap_err();
            assert!(poison.contains(names), "{poison}");
        }
        assert_eq!(read(serde_json::json!({"topic": {"S": "@2"}, "body": {"S": "x"}})), Ok(None));
    }

    #[test]
    fn poison_says_what_is_wrong() {
        for (event, names) in [
            (serde_json::json!({"id": {"S": "1"}, "data": {"S": "x"}}), "`topic`"),
            (serde_json::json!({"topic": {"N": "1"}, "data": {"S": "x"}}), "`topic`"),
            (serde_json::json!({"topic": {"S": "t"}}), "`data`"),
            (serde_json::json!({"topic": {"S": "@"}, "senderId": {"S": "1"}, "body": {"S": "x"}}), "`topic`"),
            (serde_json::json!({"topic": {"S": "@2"}, "data": {"S": "x"}}), "`body`"),
            (serde_json::json!({"topic": {"S": "@2"}, "body": {"S": "x"}}), "`senderId`"),
            (serde_json::json!({"topic": {"S": "@2"}, "body": {"S": "x"}, "senderId": {"N": "1"}}), "`senderId`"),
            (serde_json::json!({"topic": {"S": "t"}, "json": {"S": "{"}}), "`json`"),
            (serde_json::json!({"topic": {"S": "t"}, "data": {"S": "x".repeat(300 * 1024)}}), "307202 bytes"),
        ] {
            let poison = published(event).unwrap_err();
            assert!(poison.to_string().contains(names), "{poison}");
        }
    }
}
