//! Translates between the items and frames of the real functions and the model's types.

use serde_json::{Value, json};

use super::{BEGIN, Subject};
use crate::frame::{Frame, Invocation, Queried, Range};
use crate::table::{Author, Binding, Connection, Content, Entry, Head, Ms, Number, Position, Socket, Span, What};

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A head is kept so much longer than its last message.
const HEAD_KEPT: Ms = 30 * 24 * 3_600_000;

/// The name of an epoch, which is the time when it began in base 36.
fn epoch(at: Ms) -> String {
    let mut left = usize::try_from(BEGIN + at).unwrap_or(0);
    let mut digits = [b'0'; 8];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[left % 36];
        left /= 36;
    }
    digits.iter().copied().map(char::from).collect()
}

fn epoch_of(name: &str) -> Option<Ms> {
    Some(Ms::from_str_radix(name, 36).ok()? - BEGIN)
}

pub fn stamp(position: Position) -> Value {
    json!({"epoch": epoch(position.epoch), "seq": position.seq})
}

fn position_of(stamp: &Value) -> Option<Position> {
    Some(Position { epoch: epoch_of(stamp["epoch"].as_str()?)?, seq: stamp["seq"].as_i64()? })
}

pub fn sort_key(position: Position) -> String {
    format!("{}/{:012}", epoch(position.epoch), position.seq)
}

fn position_of_key(key: &str) -> Option<Position> {
    let (name, seq) = key.split_once('/')?;
    Some(Position { epoch: epoch_of(name)?, seq: seq.parse().ok()? })
}

pub fn connection_id(socket: Socket) -> String {
    format!("c{socket}=")
}

pub fn socket_of(connection_id: &str) -> Option<Socket> {
    connection_id.strip_prefix('c')?.strip_suffix('=')?.parse().ok()
}

pub fn json_of(content: Content) -> Value {
    json!(format!("text {}", content.0))
}

fn content_of(value: &Value) -> Option<Content> {
    value.as_str()?.strip_prefix("text ")?.parse().ok().map(Content)
}

// ---- Items ----

pub fn text<'a>(item: &'a Value, name: &str) -> Option<&'a str> {
    item[name]["S"].as_str()
}

fn number(item: &Value, name: &str) -> Option<i64> {
    item[name]["N"].as_str()?.parse().ok()
}

/// An attribute in epoch milliseconds.
fn ms(item: &Value, name: &str) -> Option<Ms> {
    Some(number(item, name)? - BEGIN)
}

/// An attribute in epoch seconds.
fn s(item: &Value, name: &str) -> Option<Ms> {
    Some(number(item, name)? * 1000 - BEGIN)
}

pub fn head(item: &Value) -> Option<Head> {
    let ttl = s(item, "ttl")?;
    let span = Span { at: ms(item, "at")?, until: ttl - HEAD_KEPT };
    Some(Head { epoch: epoch_of(text(item, "epoch")?)?, last: number(item, "last")?, span, ttl })
}

fn number_of(item: &Value, position: Position, until: Ms) -> Option<Number> {
    let before = ms(item, "prev").zip(s(item, "prevTtl")).map(|(at, until)| Span { at, until });
    Some(Number { position, span: Span { at: ms(item, "at")?, until }, before })
}

/// `part_of` says which message of its frame a content is.
pub fn entry(item: &Value, part_of: impl Fn(Content) -> u32) -> Option<Entry> {
    let ttl = s(item, "ttl")?;
    let number = number_of(item, position_of_key(text(item, "s")?)?, ttl)?;
    if item.get("hole").is_some() {
        return Some(Entry { number, what: What::Hole, ttl });
    }
    let content = content_of(&serde_json::from_str(text(item, "json")?).ok()?)?;
    let author = match text(item, "cid") {
        Some(id) => author(id.split_once('\n')?.1)?.part(part_of(content)),
        None => Author::Invocation(text(item, "w")?.strip_prefix("invocation-")?.parse().ok()?),
    };
    Some(Entry { number, what: What::Message { author, content }, ttl })
}

/// The `id` of a sender's frame. All senders of an inbox are one user, so it names the sender, too.
pub fn frame_id(user: u32, id: u32) -> String {
    format!("m{user}.{id}")
}

/// The author behind an id: `m1.7` of a frame, or `event1`.
fn author(id: &str) -> Option<Author> {
    if let Some(event) = id.strip_prefix("event") {
        return Some(Author::Event(event.parse().ok()?));
    }
    let (user, id) = id.strip_prefix('m')?.split_once('.')?;
    Some(Author::Frame { user: user.parse().ok()?, id: id.parse().ok()? })
}

pub fn binding(item: &Value) -> Option<(Author, Binding)> {
    let author = author(text(item, "s")?)?;
    let position = Position { epoch: epoch_of(text(item, "epoch")?)?, seq: number(item, "seq")? };
    let ttl = s(item, "ttl")?;
    Some((author, Binding { number: number_of(item, position, ttl)?, ttl }))
}

/// A row of the connections table; a connection that has ended has none.
pub fn connection(item: &Value, topic: &str) -> Option<Connection> {
    if item.get("closedAt").is_some() {
        return None;
    }
    let topics = item["topics"]["SS"].as_array();
    let subscribed = topics.is_some_and(|topics| topics.iter().any(|name| name == topic));
    Some(Connection {
        connected_at: ms(item, "connectedAt")?,
        subscribed,
        gone_at: ms(item, "goneAt"),
        ttl: ttl(item)?,
    })
}

/// The broadcast that a continuation belongs to.
pub fn broadcast(item: &Value) -> Option<usize> {
    if text(item, "originTopic")? != "INITIAL_CONNECTION" {
        return None;
    }
    text(item, "originId")?.strip_prefix("broadcast")?.parse().ok()
}

/// The message of a continuation, and where it is kept; both are only for the trace.
pub fn continuation(item: &Value) -> (Position, Content) {
    let epoch = text(item, "epoch").and_then(epoch_of).unwrap_or(0);
    let content = text(item, "json").and_then(|json| content_of(&serde_json::from_str(json).ok()?));
    (Position { epoch, seq: number(item, "seq").unwrap_or(0) }, content.unwrap_or(Content(0)))
}

pub fn ttl(item: &Value) -> Option<Ms> {
    s(item, "ttl")
}

// ---- Frames ----

/// What a frame means to the client that gets it.
pub fn frame(frame: &Value, asked: &Invocation, subject: Subject) -> Frame {
    read(frame, asked, subject).unwrap_or_else(|| Frame::Other { text: frame.to_string() })
}

fn read(frame: &Value, asked: &Invocation, subject: Subject) -> Option<Frame> {
    let id = frame["id"].as_str();
    let request = || id?.strip_prefix('r')?.parse().ok();
    if frame.get("body").is_some() {
        return Some(Frame::Data { position: position_of(frame)?, content: content_of(&frame["body"])? });
    }
    match frame["type"].as_str()? {
        "data" if id == Some("INITIAL_CONNECTION") => {
            Some(Frame::Broadcast { content: content_of(&frame["payload"]["data"])? })
        }
        "data" => {
            let position = position_of(frame)?;
            Some(Frame::Data { position, content: content_of(&frame["payload"]["data"])? })
        }
        "history" if frame["topic"] == subject.name() => {
            let epoch = epoch_of(frame["epoch"].as_str()?)?;
            let entries: Option<Vec<_>> = frame["messages"]
                .as_array()?
                .iter()
                .map(|entry| {
                    let position = Position { epoch, seq: entry["seq"].as_i64()? };
                    let content = if entry["hole"] == true { None } else { Some(content_of(&entry["data"])?) };
                    Some((position, content))
                })
                .collect();
            let entries = entries?;
            match *asked {
                Invocation::History { after, .. } => {
                    let recovered = frame["recovered"].as_bool()?;
                    let end = position_of(frame)?;
                    // Behind the last missing number, the client goes on.
                    let known = |position: Position| entries.iter().any(|(it, _)| *it == position);
                    let mut start = end;
                    while known(start) {
                        start.seq -= 1;
                    }
                    let start = if recovered { after } else { start };
                    Some(Frame::Page { request: request()?, recovered, start, end, entries })
                }
                Invocation::Subscribe { .. } => Some(Frame::History { entries }),
                Invocation::Query { range, .. } => {
                    let reached = match range {
                        Range::After(_) => Some((position_of(frame)?, frame["recovered"].as_bool()?)),
                        Range::Before(_) | Range::Newest => None,
                    };
                    let more = frame["more"] == true;
                    Some(Frame::Queried(Queried { request: request()?, epoch, entries, more, reached }))
                }
                _ => None,
            }
        }
        "ack" if matches!(asked, Invocation::Unsubscribe { .. }) => Some(Frame::Unsubscribed { request: request()? }),
        "ack" => {
            let topics = frame["topics"].as_array().into_iter().flatten();
            let entry = topics.into_iter().find(|entry| entry["topic"] == subject.name()).unwrap_or(frame);
            let position = position_of(entry)?;
            match *asked {
                Invocation::Subscribe { after, .. } => {
                    let recovered = entry["recovered"].as_bool();
                    let start = after.filter(|_| recovered == Some(true)).unwrap_or(position);
                    let recovered = recovered.unwrap_or(true);
                    Some(Frame::Answer { request: request()?, recovered, start, end: position })
                }
                Invocation::Publish(_) => Some(Frame::Acknowledged { author: author(id?)?, position }),
                _ => None,
            }
        }
        "pong" => {
            let behind = position_of(&frame["behind"][subject.name()]);
            Some(Frame::Pong { request: request()?, behind })
        }
        "error" if frame["code"] == "unidentified" => Some(Frame::Unidentified),
        _ => None,
    }
}

// ---- Lines of a trace ----

/// Members of requests that are the same every time.
const UNTOLD: [&str; 4] =
    ["ConditionExpression", "ReturnValuesOnConditionCheckFailure", "UpdateExpression", "ExpressionAttributeNames"];

/// A value of DynamoDB's JSON without its types, with positions and times as the model writes them.
pub fn plain(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, "", value);
    text
}

fn write(text: &mut String, name: &str, value: &Value) {
    match value {
        Value::Object(map)
            if map.len() == 1
                && map.keys().all(|key| matches!(key.as_str(), "S" | "N" | "BOOL" | "SS" | "L" | "M")) =>
        {
            map.values().for_each(|value| write(text, name, value));
        }
        Value::Object(map) => {
            // The order of attributes differs from run to run.
            let mut members: Vec<_> = map.iter().filter(|(key, _)| !UNTOLD.contains(&key.as_str())).collect();
            members.sort_by_key(|(key, _)| *key);
            text.push('{');
            for (index, (key, value)) in members.into_iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                text.push_str(key);
                text.push_str(": ");
                write(text, key, value);
            }
            text.push('}');
        }
        Value::Array(values) => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                write(text, name, value);
            }
            text.push(']');
        }
        Value::String(string) => match (name.trim_start_matches(':'), position_of_key(string), string.parse::<i64>()) {
            (_, Some(position), _) => text.push_str(&position.to_string()),
            ("at" | "prev" | "connectedAt" | "goneAt" | "closedAt" | "forgiven", _, Ok(at)) => {
                text.push_str(&format!("{} ms", at - BEGIN));
            }
            ("ttl" | "prevTtl" | "soon", _, Ok(at)) => text.push_str(&format!("{} s", at - BEGIN / 1000)),
            ("now", _, Ok(at)) if at > BEGIN / 2 => text.push_str(&format!("{} ms", at - BEGIN)),
            ("now", _, Ok(at)) => text.push_str(&format!("{} s", at - BEGIN / 1000)),
            ("epoch" | "fresh", _, _) => match epoch_of(string) {
                Some(at) => text.push_str(&format!("e{at}")),
                None => text.push_str(string),
            },
            // A key of two parts has a line break in it.
            _ => text.push_str(&string.replace('\n', " ")),
        },
        other => text.push_str(&other.to_string()),
    }
}
