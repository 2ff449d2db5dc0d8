//! The invariants hold whatever happens. The ledger remembers everything that was ever true, which no table does, and
//! compares every step with it.

use std::collections::BTreeMap;
use std::fmt;

use crate::frame::{Queried, Range};
use crate::table::{Author, Content, Entry, Head, Ms, Number, Position, Span, Table, What};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    I1,
    I2,
    I3,
    I4,
    I5,
    I6,
    I7,
    I8,
    I9,
    I10,
    I11,
    I12,
    I14,
    I15,
    I17,
    I18,
}

impl Invariant {
    pub fn claim(self) -> &'static str {
        match self {
            Self::I1 => "an acknowledged message is stored, with its content, until its time is over",
            Self::I2 => "an id has one message or one range of them, and its binding never outlives it",
            Self::I3 => "a number has one content for ever, and a tombstone never becomes a message",
            Self::I4 => {
                "in the end each number is a message, a tombstone, expired, or in a wide gap behind something expired"
            }
            Self::I5 => "an epoch is new, and begins only when there is no head",
            Self::I6 => "a client applies every number in turn, once, unless it is told that it missed some",
            Self::I7 => {
                "`recovered` is true only if everything behind the position was sent or never was, and no page hides a message"
            }
            Self::I8 => "a ping and a moment after the faults end, every client has everything",
            Self::I9 => "no live connection is without its rows for longer than a ping",
            Self::I10 => "a connection that has ended has no rows, unless a fault touched it",
            Self::I11 => "what is published after the ack of an unsubscribe is not posted to that connection",
            Self::I12 => "every range and every event ends",
            Self::I14 => "without faults a publish costs 3 writes with an id and 2 without, and a frame of n 2 + 2n",
            Self::I15 => {
                "what is said to everybody is posted to each connection that is there from before it to its end"
            }
            Self::I17 => "an event has one number, however often the stream repeats it",
            Self::I18 => "positions never go back, and `behind` names only what is ahead",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}: {}", self.claim())
    }
}

#[derive(Debug, Clone)]
pub struct Violation {
    pub invariant: Invariant,
    pub text: String,
}

/// What became of a number.
#[derive(Debug, Clone, Copy)]
struct Fate {
    what: Option<What>,
    span: Span,
    /// When it was really taken.
    taken_at: Ms,
    written_at: Ms,
    acknowledged: bool,
    /// A client went past it as past a hole.
    passed: bool,
}

impl Fate {
    /// Whether a message was there when a reader began, and has not expired.
    fn is_message_since(&self, began: Ms, now: Ms) -> bool {
        matches!(self.what, Some(What::Message { .. })) && self.written_at < began && self.span.until > now
    }
}

/// Counts for the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub calls: u64,
    pub faults: u64,
    pub acknowledged: u64,
    pub applied: u64,
    pub epochs: u64,
    /// Answers to a subscribe frame with a position.
    pub resumes: Answers,
    /// Answers to a client that met a gap or heard that it was behind.
    pub questions: Answers,
    /// The parts that only runs of the handlers have.
    pub handlers: HandlerCounts,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandlerCounts {
    /// Acks of unsubscribe frames.
    pub unsubscribed: u64,
    /// Frames that were overtaken by one that says the opposite, so that the connection was cut.
    pub overtaken: u64,
    /// Acks of frames with several messages.
    pub several: u64,
    /// Answers to clients that wanted the newest messages.
    pub newest: u64,
    /// Answers to queries.
    pub queried: u64,
    /// Posts of what was said to everybody.
    pub broadcast: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    pub all: u64,
    /// `recovered` was false.
    pub lost: u64,
    /// `recovered` was false although no message was missing.
    pub needless: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.faults += other.faults;
        self.acknowledged += other.acknowledged;
        self.applied += other.applied;
        self.epochs += other.epochs;
        self.resumes.add(other.resumes);
        self.questions.add(other.questions);
        let (ours, theirs) = (&mut self.handlers, &other.handlers);
        ours.unsubscribed += theirs.unsubscribed;
        ours.overtaken += theirs.overtaken;
        ours.several += theirs.several;
        ours.newest += theirs.newest;
        ours.queried += theirs.queried;
        ours.broadcast += theirs.broadcast;
    }
}

impl Answers {
    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.lost += other.lost;
        self.needless += other.needless;
    }
}

/// An answer to a client, with its question.
#[derive(Debug)]
pub struct Answered<'a> {
    pub after: Position,
    pub recovered: bool,
    /// The client goes on behind this position.
    pub start: Position,
    pub end: Position,
    pub entries: &'a [(Position, Option<Content>)],
    /// It resumes, or it asks because of a gap.
    pub resumes: bool,
}

/// The messages that a subscriber with `last` got.
#[derive(Debug, Clone, Copy)]
pub struct Newest<'a> {
    pub count: u32,
    /// It goes on from here.
    pub end: Position,
    pub entries: &'a [(Position, Option<Content>)],
    /// When its function began.
    pub began: Ms,
}

/// A query.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub range: Range,
    pub limit: u32,
    /// When its function began.
    pub began: Ms,
}

#[derive(Debug, Default)]
pub struct Ledger {
    numbers: BTreeMap<Position, Fate>,
    authors: BTreeMap<Author, Position>,
    epochs: Vec<Ms>,
    /// The last position that a client was sent to past something that may have expired.
    sent_to: Option<Position>,
    /// Positions that clients were told to begin at, and when.
    pub given: Vec<(Position, Ms)>,
    pub violation: Option<Violation>,
    pub counts: Counts,
}

impl Ledger {
    /// Only the first violation counts: what follows it may be its consequence.
    pub fn broken(&mut self, invariant: Invariant, text: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, text });
        }
    }

    pub fn head_made(&mut self, head: &Head) {
        if self.epochs.iter().any(|epoch| *epoch >= head.epoch) {
            self.broken(Invariant::I5, format!("epoch e{} is not newer than the one before it", head.epoch));
        }
        self.epochs.push(head.epoch);
        self.counts.epochs += 1;
    }

    pub fn taken(&mut self, number: &Number, now: Ms) {
        let span = number.span;
        let fate = Fate { what: None, span, taken_at: now, written_at: now, acknowledged: false, passed: false };
        if self.numbers.insert(number.position, fate).is_some() {
            self.broken(Invariant::I5, format!("{} was taken twice", number.position));
        }
    }

    /// `gap`: how much earlier than its message a binding may end, by any clock.
    /// `settled`: how old a number is when it can no longer be written.
    pub fn written(&mut self, entry: &Entry, table: &Table, gap: Ms, settled: Ms, now: Ms) {
        let position = entry.number.position;
        if entry.ttl <= now {
            // The request was so late that every reader takes the item for expired.
            return;
        }
        let Some(fate) = self.numbers.get_mut(&position) else {
            return self.broken(Invariant::I5, format!("{position} was never taken"));
        };
        let (before, passed, taken_at) = (fate.what.replace(entry.what), fate.passed, fate.taken_at);
        fate.written_at = now;
        if let Some(before) = before.filter(|before| *before != What::Hole || entry.what != What::Hole) {
            let before = Entry { what: before, ..*entry };
            self.broken(Invariant::I3, format!("the {before} is written over by a {entry}"));
        }
        let What::Message { author, .. } = entry.what else { return };
        if passed {
            self.broken(Invariant::I6, format!("a client went past {position} as past a hole, and it is a {entry}"));
        }
        if self.sent_to.is_some_and(|sent| sent.epoch == position.epoch && sent >= position) {
            self.broken(Invariant::I6, format!("{entry} is written behind a position that a client was sent to"));
        }
        // A client that begins during a publish may miss its message. It must not miss one that is repeated later.
        let older = |(given, at): &(Position, Ms)| *given >= position && taken_at + settled < *at;
        if self.given.iter().any(|it| it.0.epoch == position.epoch && older(it)) {
            self.broken(Invariant::I6, format!("{entry} is written long before where a client began"));
        }
        if let Some(other) = self.authors.insert(author, position)
            && other != position
            && self.numbers.get(&other).is_some_and(|other| taken_at < other.span.until - gap)
        {
            let invariant = if matches!(author, Author::Event(_)) { Invariant::I17 } else { Invariant::I2 };
            self.broken(invariant, format!("{author} is message {other} and message {position}"));
        }
        if let Some(binding) = table.bindings.get(&author)
            && binding.number.position == position
            && binding.ttl > entry.ttl
        {
            self.broken(Invariant::I2, format!("the binding of {author} lives longer than message {position}"));
        }
    }

    pub fn acknowledged(&mut self, author: Author, position: Position, now: Ms, table: &Table) {
        self.counts.acknowledged += 1;
        let stored = table.log.get(&position).map(|entry| entry.what);
        let ours = matches!(stored, Some(What::Message { author: it, .. }) if it == author);
        let Some(fate) = self.numbers.get_mut(&position) else {
            return self
                .broken(Invariant::I1, format!("{author} was acknowledged as {position}, which was never taken"));
        };
        fate.acknowledged = true;
        if fate.passed {
            let text = format!("{author} is acknowledged as {position}, which a client went past as past a hole");
            return self.broken(Invariant::I6, text);
        }
        if !ours && now < fate.span.until {
            self.broken(Invariant::I1, format!("{author} was acknowledged as {position}, where there is {stored:?}"));
        }
    }

    /// A client that is subscribed since then begins behind this position.
    pub fn begins(&mut self, client: usize, start: Position, since: Ms) {
        let message = |fate: &Fate| matches!(fate.what, Some(What::Message { .. })) && fate.taken_at > since;
        if let Some((position, _)) = self.numbers.range(..=start).find(|(_, fate)| message(fate)) {
            let text = format!("client {client} is subscribed since {since} ms and begins behind {position}");
            self.broken(Invariant::I6, text);
        }
    }

    /// A client was at `last` and applies this next.
    pub fn applied(&mut self, client: usize, last: Position, position: Position, content: Option<Content>) {
        self.counts.applied += 1;
        if position != last.next() {
            self.broken(Invariant::I6, format!("client {client} applied {position} after {last}"));
        }
        let Some(fate) = self.numbers.get_mut(&position) else {
            return self.broken(Invariant::I6, format!("client {client} applied {position}, which was never taken"));
        };
        match (content, fate.what) {
            (None, Some(What::Message { .. })) => {
                self.broken(Invariant::I6, format!("client {client} was told that message {position} is a hole"));
            }
            (None, _) => fate.passed = true,
            (Some(content), Some(What::Message { content: stored, .. })) if content == stored => {}
            (Some(content), stored) => {
                let text = format!("client {client} applied {content} as {position}, where there is {stored:?}");
                self.broken(Invariant::I3, text);
            }
        }
    }

    /// The messages behind `after` that a client at `start` does not get any more.
    fn missing(&self, answered: &Answered<'_>) -> Vec<(Position, Fate)> {
        if answered.start <= answered.after {
            return Vec::new();
        }
        let behind = self.numbers.range(answered.after.next()..=answered.start);
        let messages = behind.filter(|(_, fate)| matches!(fate.what, Some(What::Message { .. })));
        let sent = |position| answered.entries.iter().any(|(it, content)| *it == position && content.is_some());
        messages.filter(|(position, _)| !sent(**position)).map(|(position, fate)| (*position, *fate)).collect()
    }

    /// `healthy_since`: the faults have ended and the client has been connected since then. `grace`: how long it may
    /// take from then on until it has everything.
    pub fn answered(&mut self, client: usize, answered: &Answered<'_>, healthy_since: Option<Ms>, grace: Ms) {
        let missing = self.missing(answered);
        let count = if answered.resumes { &mut self.counts.resumes } else { &mut self.counts.questions };
        count.all += 1;
        if !answered.recovered {
            self.sent_to = self.sent_to.max(Some(answered.start));
            count.lost += 1;
            count.needless += u64::from(missing.is_empty());
            if let Some(since) = healthy_since
                && let Some((position, _)) =
                    missing.iter().find(|(_, fate)| fate.acknowledged && fate.span.until > since + grace)
            {
                let text = format!("client {client} was in order since {since} ms and has missed {position}");
                self.broken(Invariant::I8, text);
            }
            return;
        }
        let mut position = answered.after;
        while position.epoch == answered.end.epoch && position < answered.end {
            position = position.next();
            let message = matches!(self.numbers.get(&position), Some(Fate { what: Some(What::Message { .. }), .. }));
            match answered.entries.iter().find(|(it, _)| *it == position) {
                Some((_, content)) if content.is_some() == message => {}
                sent => {
                    let kind = if message { "a message" } else { "no message" };
                    let text = format!("client {client} recovered from {} to {}", answered.after, answered.end);
                    return self.broken(Invariant::I7, format!("{text}, and {position} is {kind}, sent as {sent:?}"));
                }
            }
        }
        if position != answered.end {
            let text = format!("client {client} recovered from {} to {}", answered.after, answered.end);
            self.broken(Invariant::I7, text);
        }
    }

    /// Judges what a subscriber gets that wanted the newest messages and goes on from `end`. Its function began at `began`.
    pub fn newest(&mut self, client: usize, asked: &Newest<'_>, now: Ms) {
        self.counts.handlers.newest += 1;
        let Newest { count, end, entries, began } = *asked;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let all = if entries.len() < count { end.begin() } else { entries.first().map_or(end, |(first, _)| *first) };
        let kept = self.numbers.range(all..=end).filter(|(_, fate)| fate.is_message_since(began, now));
        let missing = kept.map(|(position, _)| *position).find(|it| !entries.iter().any(|(sent, _)| sent == it));
        let is_rising = entries.is_sorted_by(|(one, _), (two, _)| one < two);
        let text = if let Some(position) = missing {
            format!("did not get {position}")
        } else if entries.len() > count || !is_rising {
            format!("got {} entries out of order or too many", entries.len())
        } else if let Some((position, _)) = entries
            .iter()
            .find(|(position, content)| content.is_none() || *position > end || self.content(*position) != *content)
        {
            format!("got {position} wrong")
        } else {
            return;
        };
        self.broken(Invariant::I7, format!("client {client} wanted the newest {count} and {text}"));
    }

    fn content(&self, position: Position) -> Option<Content> {
        match self.numbers.get(&position)?.what {
            Some(What::Message { content, .. }) => Some(content),
            _ => None,
        }
    }

    /// Judges a page of history.
    pub fn queried(&mut self, client: usize, asked: &Asked, queried: &Queried, now: Ms) {
        self.counts.handlers.queried += 1;
        if let Err(text) = self.page(asked, queried, now) {
            self.broken(Invariant::I7, format!("client {client} queried {} {}: {text}", asked.limit, asked.range));
        }
    }

    fn page(&mut self, asked: &Asked, queried: &Queried, now: Ms) -> Result<(), String> {
        let Asked { range, limit, began } = *asked;
        let Queried { epoch, ref entries, more, reached, .. } = *queried;
        let is_behind = matches!(range, Range::After(_));
        let in_order =
            |(one, _): &(Position, _), (two, _): &(Position, _)| if is_behind { one < two } else { one > two };
        if !entries.is_sorted_by(in_order) {
            return Err("the order is wrong".to_owned());
        }
        let full = usize::try_from(limit).unwrap_or(usize::MAX);
        if entries.len() > full || (more && entries.len() < full) {
            return Err(format!("{} entries, more: {more}", entries.len()));
        }
        for (position, content) in entries {
            if self.content(*position) != *content {
                return Err(format!("{position} is not {content:?}"));
            }
            if let (None, Some(fate)) = (content, self.numbers.get_mut(position)) {
                fate.passed = true;
            }
        }
        let begin = Position { epoch, seq: 0 };
        let end = Position { epoch, seq: i64::MAX };
        let last = entries.last().map(|(position, _)| *position);
        // Everything in this part of the epoch must be in the page.
        let (from, to) = match (range, reached) {
            (Range::After(after), Some((reached, recovered))) => {
                // The position may have been beyond the head, and the head has reached it since. Such a page begins anew.
                let is_anew = !recovered && entries.first().is_some_and(|(first, _)| *first <= after);
                let from = if after.epoch == epoch && after <= reached && !is_anew { after.next() } else { begin };
                if recovered {
                    let expected = (from.seq..=reached.seq).map(|seq| Position { epoch, seq });
                    if after.epoch != epoch || !expected.eq(entries.iter().map(|(position, _)| *position)) {
                        return Err(format!("recovered to {reached} without every number"));
                    }
                } else {
                    self.sent_to = self.sent_to.max(Some(reached));
                }
                let next = self.numbers.get(&reached.next());
                if !more && next.is_some_and(|next| next.is_message_since(began, now)) {
                    return Err(format!("it ends at {reached}, and there is more"));
                }
                (from, reached)
            }
            (Range::After(_), None) => return Err("it does not say where it ends".to_owned()),
            (Range::Before(before), _) if before.epoch == epoch => {
                (last.filter(|_| more).unwrap_or(begin), Position { seq: before.seq - 1, ..before })
            }
            (Range::Before(_) | Range::Newest, _) => (last.filter(|_| more).unwrap_or(begin), end),
        };
        if entries.iter().any(|(position, _)| *position < from || *position > to) {
            return Err(format!("something is not between {from} and {to}"));
        }
        if from > to {
            return Ok(());
        }
        let kept = self.numbers.range(from..=to).filter(|(_, fate)| fate.is_message_since(began, now));
        let sent = |position: &Position| entries.iter().any(|(it, _)| it == position);
        match kept.map(|(position, _)| position).find(|position| !sent(position)) {
            Some(hidden) => Err(format!("{hidden} is hidden")),
            None => Ok(()),
        }
    }

    /// All messages of a frame are there or none, under numbers that follow each other. `shape` says which message of how
    /// many a content is.
    pub fn check_frames(&mut self, shape: impl Fn(Content) -> (u32, u32)) {
        let mut broken = None;
        for (position, fate) in &self.numbers {
            let Some(What::Message { author, content }) = fate.what else { continue };
            let (part, count) = shape(content);
            let first = Position { seq: position.seq - i64::from(part), ..*position };
            let is_whole = (0..count).all(|other| {
                let there = Position { seq: first.seq + i64::from(other), ..first };
                let expected = content.0 - part + other;
                self.content(there) == Some(Content(expected))
            });
            if !is_whole {
                broken = Some(format!("{author} at {position} lacks the other messages of its frame"));
            }
        }
        if let Some(text) = broken {
            self.broken(Invariant::I2, text);
        }
    }

    pub fn moved(&mut self, client: usize, from: Position, to: Position) {
        if to < from {
            self.broken(Invariant::I18, format!("client {client} went back from {from} to {to}"));
        }
    }

    pub fn is_behind(&mut self, client: usize, position: Position, behind: Position) {
        if behind <= position {
            self.broken(Invariant::I18, format!("client {client} at {position} is told that it is behind {behind}"));
        }
    }

    /// The state of the log when everything is over, after a reader went through all of it. Of numbers taken after
    /// `fresh_after` nothing can have expired.
    pub fn account(&mut self, table: &Table, now: Ms, fresh_after: Ms) {
        let Some(head) = table.head else { return };
        let current = Position { epoch: head.epoch, seq: 0 };
        let mut texts = Vec::new();
        for (position, fate) in self.numbers.range(current..) {
            let absent = !table.log.contains_key(position);
            if absent && fate.span.until > now && matches!(fate.what, Some(What::Message { .. })) {
                texts.push((Invariant::I1, format!("message {position} is gone before its time")));
            }
            // While the item before it is there and fresh, a reader can tell that nothing was written.
            let base = table.log.get(&Position { seq: position.seq - 1, ..*position });
            let fresh = base.is_some_and(|base| base.number.span.at > fresh_after);
            if absent && fate.what.is_none() && fresh {
                texts.push((Invariant::I4, format!("{position} has neither message nor tombstone")));
            }
        }
        for (invariant, text) in texts {
            self.broken(invariant, text);
        }
    }
}
