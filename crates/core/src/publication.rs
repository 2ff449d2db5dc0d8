//! A publication: its receivers, its content, where it starts, and what became of it.

use serde_json::value::RawValue;

use crate::connection::{ConnectionId, UserId};
use crate::frame;
use crate::history::Stamp;
use crate::topic::{Subscriber, Topic};

/// A message on its way to everybody who listens.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Who receives it.
    pub audience: Audience,
    /// What they receive.
    pub content: Content,
    /// Where the last message is kept, on a topic with history. Only subscribers that asked for positions hear of it.
    pub kept: Option<Kept>,
    /// The id of the event, or of the client's request, that asked for it. Logs and continuations carry it.
    pub id: String,
    /// Where reading the receivers starts.
    pub position: Position,
    /// The last receiver. Without it, everybody behind the position is served.
    pub until: Option<ConnectionId>,
    /// Receivers that an earlier publish could not serve. This is their last chance.
    pub again: Vec<Subscriber>,
    /// The item that the stream brought, if this is a continuation. It notes how far the publish has come.
    pub item: Option<RangeItem>,
}

/// The item of a continuation in the events table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeItem {
    /// Its partition key.
    pub name: String,
    /// Whether it was put without an end. Then a range is split off, and the rest gets an item of its own.
    pub is_open: bool,
}

/// A place in the list of an audience's receivers. DynamoDB keeps them in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// Before the first receiver.
    Start,
    /// Behind this one.
    After(ConnectionId),
    /// Behind the last receiver.
    End,
}

/// Who receives a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// The subscribers of a topic; for a user's address, that user's connections.
    Topic(Topic),
    /// Those subscribers of a topic that asked for changes of its members.
    Presence(Topic),
    /// Every connection, as one of [`SEGMENTS`] parts of a parallel scan.
    Everybody {
        /// From 0.
        segment: u8,
    },
}

/// How many parts the connections table is scanned in at once.
pub const SEGMENTS: u8 = 4;

/// What receivers get.
#[derive(Debug, Clone)]
pub enum Content {
    /// Frames of type `data` in their order, with each subscriber's own id.
    Data(Vec<Box<RawValue>>),
    /// Frames that are the same for everybody.
    Frames(Vec<Box<RawValue>>),
    /// A direct message.
    DirectMessage {
        /// The sender.
        sender: UserId,
        /// Any JSON.
        body: Box<RawValue>,
    },
}

/// A message that is kept. If there are several, it is the last one, and the others have the numbers before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where it is.
    pub stamp: Stamp,
    /// The user that published it.
    pub sender: Option<UserId>,
}

impl Publication {
    /// A publication that has not served anybody yet.
    #[must_use]
    pub fn new(audience: Audience, content: Content, id: &str) -> Self {
        let (id, again) = (id.to_owned(), Vec::new());
        Self { audience, content, kept: None, id, position: Position::Start, until: None, again, item: None }
    }

    /// Whether an earlier publish began this one.
    #[must_use]
    pub fn is_continuation(&self) -> bool {
        self.item.is_some() || self.position != Position::Start
    }

    /// The name of its topic, which is reserved when everybody is meant.
    #[must_use]
    pub fn topic(&self) -> &str {
        match &self.audience {
            Audience::Topic(topic) | Audience::Presence(topic) => topic.as_str(),
            Audience::Everybody { .. } => Topic::INITIAL_CONNECTION,
        }
    }

    /// The frames for one receiver. Their `id` is the receiver's subscription, or `INITIAL_CONNECTION` for everybody.
    #[must_use]
    pub fn frames(&self, to: &Subscriber) -> Vec<Vec<u8>> {
        let kept = self.kept.as_ref().filter(|_| to.positions);
        let data = match &self.content {
            Content::Data(data) => data,
            Content::Frames(frames) => return frames.iter().map(|frame| frame.get().as_bytes().to_vec()).collect(),
            Content::DirectMessage { sender, body } => {
                return vec![match kept {
                    Some(kept) => frame::kept_direct_message(sender, body, &kept.stamp),
                    None => frame::direct_message(sender, body),
                }];
            }
        };
        let id = match self.audience {
            Audience::Topic(_) | Audience::Presence(_) => to.subscription_id.as_deref(),
            Audience::Everybody { .. } => Some(Topic::INITIAL_CONNECTION),
        };
        let Some(Kept { stamp, sender }) = kept else {
            let topic = to.pattern.as_ref().map(|_| self.topic());
            if to.batches {
                return frame::batches(id, data, topic);
            }
            return data.iter().map(|data| frame::data(id, data, topic)).collect();
        };
        let numbers = (0..=stamp.seq).rev().take(data.len());
        let frame = |(data, seq)| {
            let stamp = Stamp { epoch: stamp.epoch.clone(), seq };
            frame::kept_data(id, data, self.topic(), &stamp, sender.as_ref())
        };
        let mut frames: Vec<_> = data.iter().map(|data| &**data).rev().zip(numbers).map(frame).collect();
        frames.reverse();
        frames
    }
}

/// What became of the receivers of one publish.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fanout {
    /// The gateway took their frame.
    pub delivered: usize,
    /// Gone, and their rows are removed.
    pub stale: usize,
    /// Gone, but not for certain: their rows stay until a second 410.
    pub suspect: usize,
    /// Gone or not open yet: they connected a moment ago, and their rows stay.
    pub pending: usize,
    /// They do not read, so their connections were closed and their rows are removed.
    pub dropped: usize,
    /// Given up.
    pub failed: usize,
    /// Rows that are not understood. Nobody was served for them.
    pub unreadable: usize,
    /// Whether a continuation serves the rest.
    pub continued: bool,
}

impl Fanout {
    /// How many receivers are settled: nobody will serve them again.
    #[must_use]
    pub fn settled(&self) -> usize {
        self.delivered + self.stale + self.suspect + self.pending + self.dropped + self.failed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::to_raw_value;

    use super::*;

    #[test]
    fn a_direct_message_that_is_kept_has_a_position_for_those_that_asked() {
        let user = |name| UserId::parse("userId", name).unwrap();
        let stamp = Stamp { epoch: "p0a11c7z".to_owned(), seq: 7 };
        let content = Content::DirectMessage { sender: user("1"), body: to_raw_value("hello there!").unwrap() };
        let mut publication = Publication::new(Audience::Topic(Topic::address(&user("2"))), content, "request");
        let plain = r#"{"senderId":"1","body":"hello there!"}"#;
        let kept = r#"{"senderId":"1","body":"hello there!","epoch":"p0a11c7z","seq":7}"#;
        for (is_kept, positions, expected) in
            [(false, false, plain), (false, true, plain), (true, false, plain), (true, true, kept)]
        {
            publication.kept = is_kept.then(|| Kept { stamp: stamp.clone(), sender: Some(user("1")) });
            let to = Subscriber {
                connection_id: ConnectionId::new("c=".to_owned()),
                subscription_id: None,
                connected_at_ms: 0,
                positions,
                batches: false,
                pattern: None,
            };
            assert_eq!(String::from_utf8(publication.frames(&to).remove(0)).unwrap(), expected);
        }
    }

    #[test]
    fn a_subscriber_to_a_pattern_reads_which_topic_it_was() {
        let topic = |name| Topic::parse(name).unwrap();
        let content = Content::Data(vec![to_raw_value("hi").unwrap()]);
        let mut publication = Publication::new(Audience::Topic(topic("room.7")), content, "request");
        let stamp = Stamp { epoch: "k3f9xq2a".to_owned(), seq: 42 };
        let plain = r#"{"id":"s","payload":{"data":"hi"},"type":"data"}"#;
        let named = r#"{"id":"s","payload":{"data":"hi"},"type":"data","topic":"room.7"}"#;
        let kept = r#"{"id":"s","payload":{"data":"hi"},"type":"data","topic":"room.7","epoch":"k3f9xq2a","seq":42}"#;
        for (pattern, is_kept, positions, expected) in [
            (None, true, false, plain),
            (Some("room.*"), false, false, named),
            (Some("room.*"), false, true, named),
            (Some("room.*"), true, false, named),
            (Some("room.*"), true, true, kept),
        ] {
            publication.kept = is_kept.then(|| Kept { stamp: stamp.clone(), sender: None });
            let to = Subscriber {
                connection_id: ConnectionId::new("c=".to_owned()),
                subscription_id: Some("s".to_owned()),
                connected_at_ms: 0,
                positions,
                batches: false,
                pattern: pattern.map(topic),
            };
            assert_eq!(String::from_utf8(publication.frames(&to).remove(0)).unwrap(), expected);
        }
    }

    #[test]
    fn each_receiver_gets_the_frame_of_its_audience() {
        let topic = || Audience::Topic(Topic::parse("t").unwrap());
        let sender = UserId::parse("userId", "1").unwrap();
        let to = Subscriber {
            connection_id: ConnectionId::new("c=".to_owned()),
            subscription_id: Some("s".to_owned()),
            connected_at_ms: 0,
            positions: false,
            batches: false,
            pattern: None,
        };
        let payload = || to_raw_value("x").unwrap();
        for (audience, content, expected) in [
            (topic(), Content::Data(vec![payload()]), r#"{"id":"s","payload":{"data":"x"},"type":"data"}"#),
            (
                Audience::Everybody { segment: 1 },
                Content::Data(vec![payload()]),
                r#"{"id":"INITIAL_CONNECTION","payload":{"data":"x"},"type":"data"}"#,
            ),
            (
                Audience::Topic(Topic::address(&sender)),
                Content::DirectMessage { sender: sender.clone(), body: payload() },
                r#"{"senderId":"1","body":"x"}"#,
            ),
        ] {
            let publication = Publication::new(audience, content, "request");
            let frames = publication.frames(&to).into_iter().map(|frame| String::from_utf8(frame).unwrap());
            assert_eq!(frames.collect::<Vec<_>>(), [expected]);
            assert!(!publication.is_continuation());
        }
    }
}
