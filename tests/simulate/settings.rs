//! The settings of a run: numbers, times, rates of faults, and perhaps a planted bug.

use std::str::FromStr;

use crate::table::Ms;

/// A rule of the protocol that is broken on purpose, to see that the invariants notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    NoBinding,
    MissingMeansHole,
    HeadForgottenEpochReused,
    LateWriterOverwritesTombstone,
    AckBeforeAppend,
    EmptyTopicHasNoPosition,
    KeptTimeOfTheReader,
    AtIsTheWrite,
    FreshByTtl,
    SentContent,
    RepetitionWritesOldNumber,
    LostTooSoon,
    HoleBeforeTombstone,
    PingsWithoutPositions,
    BehindIfDifferent,
    NoDelete,
    NoVerify,
    RangeWithoutProgress,
    BindingWithoutBefore,
    WrittenButDropped,
    SameEpochAgain,
    ClockOff,
    KeptSubscription,
    LostRow,
    KeptRow,
    HalfFrame,
    ForgottenReceiver,
    HiddenMessage,
}

/// Each bug: its name, and what it does.
pub const BUGS: [(Bug, &str, &str); 19] = [
    (Bug::NoBinding, "no-binding", "an id is bound to each number that is taken for it"),
    (Bug::MissingMeansHole, "missing-means-hole", "a missing number never counts as expired"),
    (
        Bug::HeadForgottenEpochReused,
        "head-forgotten-epoch-reused",
        "the head expires before the messages, and the next one has its epoch",
    ),
    (
        Bug::LateWriterOverwritesTombstone,
        "late-writer-overwrites-tombstone",
        "a message is written although a tombstone is there",
    ),
    (Bug::AckBeforeAppend, "ack-before-append", "the sender is told before the message is written"),
    (
        Bug::EmptyTopicHasNoPosition,
        "empty-topic-has-no-position",
        "who subscribes to a topic without a head is told no position",
    ),
    (
        Bug::KeptTimeOfTheReader,
        "kept-time-of-the-reader",
        "a missing number is judged by the kept time that the reader is configured with",
    ),
    (
        Bug::AtIsTheWrite,
        "at-is-the-write",
        "`at` and `ttl` of an item count from its write, not from when its number was taken",
    ),
    (Bug::FreshByTtl, "fresh-by-ttl", "while an item has not expired, nothing behind it counts as expired"),
    (Bug::SentContent, "sent-content", "a repetition posts what it was sent, not what is stored"),
    (
        Bug::RepetitionWritesOldNumber,
        "repetition-writes-old-number",
        "a repetition writes its message under the number that its id was bound to",
    ),
    (Bug::LostTooSoon, "lost-too-soon", "a client is sent past numbers that may still be written"),
    (Bug::HoleBeforeTombstone, "hole-before-tombstone", "a reader reports a hole without writing its tombstone"),
    (Bug::PingsWithoutPositions, "pings-without-positions", "a ping does not say where the client is"),
    (Bug::BehindIfDifferent, "behind-if-different", "a pong names every head that is not where the client is"),
    (Bug::NoDelete, "no-delete", "a connection that is forgotten is not closed, and pings do not look for its row"),
    (Bug::NoVerify, "no-verify", "a subscription does not look whether the connection has ended meanwhile"),
    (Bug::RangeWithoutProgress, "range-without-progress", "what a range hands over begins where the range began"),
    (
        Bug::BindingWithoutBefore,
        "binding-without-before",
        "a binding does not say when the number before its own was taken (breaks nothing)",
    ),
];

/// The bugs of runs with the real handlers. They are in what surrounds the handlers.
pub const HANDLER_BUGS: [(Bug, &str, &str); 9] = [
    (Bug::WrittenButDropped, "written-but-dropped", "the table answers that a message is written, and drops it"),
    (Bug::SameEpochAgain, "same-epoch-again", "a topic whose head has expired gets the same epoch again"),
    (Bug::ClockOff, "clock-off", "the clocks of functions are off by as long as messages are kept"),
    (Bug::KeptSubscription, "kept-subscription", "the table answers that one row is deleted, and keeps it"),
    (Bug::LostRow, "lost-row", "a batch drops the row of a user's address"),
    (Bug::KeptRow, "kept-row", "a batch that deletes rows keeps the first one"),
    (Bug::HalfFrame, "half-frame", "a transaction drops its last write"),
    (Bug::ForgottenReceiver, "forgotten-receiver", "a page of a scan lacks its last item"),
    (Bug::HiddenMessage, "hidden-message", "what is read backwards lacks its second item"),
];

impl Bug {
    /// It needs the real handlers.
    pub fn is_of_handlers(self) -> bool {
        HANDLER_BUGS.iter().any(|(bug, ..)| *bug == self)
    }

    /// It breaks nothing: it only makes `recovered` false more often.
    pub fn is_harmless(self) -> bool {
        self == Self::BindingWithoutBefore
    }
}

impl FromStr for Bug {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = BUGS.iter().chain(&HANDLER_BUGS).find(|(_, known, _)| *known == name);
        found.map(|(bug, _, _)| *bug).ok_or_else(|| format!("there is no bug {name}"))
    }
}

/// Times are in milliseconds, rates between 0 and 1.
#[derive(Debug, Clone)]
pub struct Settings {
    pub bug: Option<Bug>,
    /// The functions' real handlers run, and not the model's protocol.
    pub handlers: bool,

    pub senders: u32,
    pub clients: usize,
    /// How many messages each sender sends.
    pub messages: u32,
    /// How many events the backend puts.
    pub events: u32,
    /// How many events it puts for everybody.
    pub broadcasts: u32,
    /// How many messages a frame with several has at most.
    pub parts: u32,

    /// A call takes effect after this time, and its caller knows after this time again.
    pub call: (Ms, Ms),
    /// The same for a call that stalls.
    pub stall: (Ms, Ms),
    /// How long messages are kept.
    pub kept: Ms,
    /// The kept time before or after an operator changed it.
    pub other_kept: Ms,
    /// The head lives so much longer than its last message.
    pub head_extra: Ms,
    /// A binding ends so much earlier than its message.
    pub binding_gap: Ms,
    /// A missing number that was taken so recently may still be written.
    pub flight: Ms,
    /// What may have expired so soon counts as expired.
    pub margin: Ms,
    /// A number is settled once a later number is so old. This covers a function's time-out, its last call, which may take
    /// effect late, and the call that took the later number, which may have been late as well.
    pub settled: Ms,
    /// How far a function's clock may be off.
    pub skew: Ms,
    /// The time-out of functions.
    pub life: Ms,
    /// How long a client holds frames behind a gap before it asks.
    pub hold: Ms,
    /// The interval of a client's pings.
    pub ping: Ms,
    /// How long a client waits for an answer.
    pub patience: Ms,
    /// How long the gateway lets a connection live.
    pub cut: Ms,
    /// A connection's rows live so much longer.
    pub rows_extra: Ms,
    /// A connection is not forgotten before this age.
    pub young: Ms,
    /// When after the first 410 a second one counts.
    pub second_gone: (Ms, Ms),
    /// How far behind an eventually consistent read may be.
    pub stale: Ms,
    /// Between two messages of a sender, and between two events.
    pub gap: (Ms, Ms),
    /// How long a client stays connected.
    pub online: (Ms, Ms),
    /// How long a client stays away.
    pub offline: (Ms, Ms),
    /// How long a client does nothing but listen, before it queries the history or unsubscribes.
    pub whim: (Ms, Ms),
    /// How long a client does not listen after an unsubscribe.
    pub deaf: (Ms, Ms),

    /// A function dies at a call.
    pub kill: f64,
    /// A call stalls.
    pub stalls: f64,
    /// A call does nothing, and times out.
    pub lost_request: f64,
    /// A call takes effect, and times out.
    pub lost_response: f64,
    /// A call times out, and takes effect later.
    pub late: f64,
    /// A call is put off, or refused with status 500, and does nothing; only for real handlers.
    pub throttled: f64,
    pub refused: f64,
    /// A post to a live connection is answered with 410.
    pub false_gone: f64,
    /// A post is accepted and never arrives.
    pub lost_post: f64,
    /// A stream record that was served comes again.
    pub duplicate_record: f64,
    /// `$disconnect` is never invoked.
    pub lost_disconnect: f64,
    /// A client goes away and the gateway does not notice.
    pub half_open: f64,
    /// An answered frame is sent again, or one that is under way.
    pub needless_repetition: f64,
    /// A sender repeats a frame so late that its binding may be gone.
    pub stubborn: f64,
    /// A repetition has another content.
    pub reused_id: f64,
    /// A frame has no `id`.
    pub without_id: f64,
    /// A frame has several messages.
    pub several: f64,
    /// A client unsubscribes when it does not query the history.
    pub unsubscribes: f64,
    /// A client that connects has forgotten its position.
    pub forgets: f64,
    /// A client without a position asks for the newest messages.
    pub wants_newest: f64,
    /// Everybody is silent for longer than messages are kept, or for longer than the head lives.
    pub quiet: f64,
    pub very_quiet: f64,
    /// An operator changes the kept time in a run.
    pub kept_changes: f64,
}

impl Settings {
    /// Times so short that expiry, late writers and new epochs meet in every run.
    pub fn short() -> Self {
        Self {
            bug: None,
            handlers: false,
            senders: 2,
            clients: 2,
            messages: 6,
            events: 2,
            broadcasts: 0,
            parts: 1,
            call: (1, 10),
            stall: (60, 280),
            kept: 2_000,
            other_kept: 4_000,
            head_extra: 4_000,
            binding_gap: 660,
            flight: 120,
            margin: 60,
            settled: 930,
            skew: 15,
            life: 300,
            hold: 40,
            ping: 400,
            patience: 400,
            cut: 6_000,
            rows_extra: 300,
            young: 60,
            second_gone: (100, 1_000),
            stale: 50,
            gap: (4, 1_000),
            online: (30, 6_000),
            offline: (10, 4_000),
            whim: (Ms::MAX, Ms::MAX),
            deaf: (1, 1),
            kill: 0.05,
            stalls: 0.03,
            lost_request: 0.01,
            lost_response: 0.02,
            late: 0.01,
            throttled: 0.0,
            refused: 0.0,
            false_gone: 0.02,
            lost_post: 0.02,
            duplicate_record: 0.2,
            lost_disconnect: 0.1,
            half_open: 0.2,
            needless_repetition: 0.1,
            stubborn: 0.05,
            reused_id: 0.05,
            without_id: 0.15,
            several: 0.0,
            unsubscribes: 0.0,
            forgets: 0.0,
            wants_newest: 0.0,
            quiet: 0.12,
            very_quiet: 0.01,
            kept_changes: 0.3,
        }
    }

    /// The same with a bug, and with more of what brings it to light.
    pub fn planted(bug: Bug) -> Self {
        let settings = if bug.is_of_handlers() { Self::handlers() } else { Self::short() };
        let mut settings = Self { bug: Some(bug), ..settings };
        match bug {
            Bug::FreshByTtl => {
                settings.late = 0.1;
                settings.stalls = 0.15;
            }
            Bug::ClockOff => settings.skew = settings.kept,
            Bug::SameEpochAgain => settings.very_quiet = 0.3,
            Bug::RepetitionWritesOldNumber => {
                settings.kept = 4_000;
                settings.stubborn = 0.5;
            }
            _ => {}
        }
        settings
    }

    /// The times of a deployment. Faults are as rare as `rarity` says, where 1 means those of [`Self::short`].
    pub fn real(kept_hours: i64, rarity: f64) -> Self {
        const SECOND: Ms = 1_000;
        const MINUTE: Ms = 60 * SECOND;
        const HOUR: Ms = 60 * MINUTE;
        const DAY: Ms = 24 * HOUR;
        let short = Self::short();
        Self {
            messages: 40,
            events: 10,
            call: (2, 15),
            stall: (SECOND, 28 * SECOND),
            kept: kept_hours * HOUR,
            other_kept: kept_hours * HOUR,
            head_extra: 30 * DAY,
            binding_gap: 2 * 29 * SECOND + MINUTE,
            flight: 10 * SECOND,
            margin: MINUTE,
            settled: 2 * MINUTE,
            skew: SECOND,
            life: 29 * SECOND,
            hold: SECOND,
            ping: 9 * MINUTE,
            patience: 30 * SECOND,
            cut: 2 * HOUR,
            rows_extra: 5 * MINUTE,
            young: 30 * SECOND,
            second_gone: (5 * SECOND, 10 * MINUTE),
            stale: SECOND,
            gap: (SECOND, 8 * HOUR),
            online: (MINUTE, 2 * HOUR),
            offline: (SECOND, 3 * DAY),
            kill: short.kill * rarity,
            stalls: short.stalls * rarity,
            lost_request: short.lost_request * rarity,
            lost_response: short.lost_response * rarity,
            late: short.late * rarity,
            false_gone: short.false_gone * rarity,
            lost_post: short.lost_post * rarity,
            duplicate_record: short.duplicate_record * rarity,
            lost_disconnect: short.lost_disconnect * rarity,
            quiet: 0.03,
            very_quiet: 0.0,
            kept_changes: 0.0,
            ..short
        }
    }

    /// The real handlers at their own times, with many faults.
    pub fn handlers() -> Self {
        const MINUTE: Ms = 60_000;
        const HOUR: Ms = 60 * MINUTE;
        let short = Self::short();
        Self {
            handlers: true,
            messages: 3,
            other_kept: 2 * HOUR,
            kept_changes: short.kept_changes,
            events: 1,
            broadcasts: 1,
            parts: 4,
            ping: 20 * MINUTE,
            patience: 20_000,
            binding_gap: 10 * MINUTE,
            gap: (20, 20 * MINUTE),
            online: (5 * MINUTE, 2 * HOUR),
            offline: (500, 2 * HOUR),
            whim: (100, 40 * MINUTE),
            deaf: (10, 20 * MINUTE),
            half_open: 0.1,
            several: 0.3,
            unsubscribes: 0.3,
            forgets: 0.2,
            wants_newest: 0.5,
            throttled: 0.02,
            refused: 0.01,
            quiet: short.quiet,
            very_quiet: short.very_quiet,
            ..Self::real(1, 1.0)
        }
    }

    /// Nothing goes wrong.
    pub fn without_faults(mut self) -> Self {
        let rates: [&mut f64; 17] = [
            &mut self.throttled,
            &mut self.refused,
            &mut self.kill,
            &mut self.stalls,
            &mut self.lost_request,
            &mut self.lost_response,
            &mut self.late,
            &mut self.false_gone,
            &mut self.lost_post,
            &mut self.duplicate_record,
            &mut self.lost_disconnect,
            &mut self.half_open,
            &mut self.needless_repetition,
            &mut self.stubborn,
            &mut self.reused_id,
            &mut self.very_quiet,
            &mut self.kept_changes,
        ];
        for rate in rates {
            *rate = 0.0;
        }
        self
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// No kept time may be shorter than this.
    pub fn shortest(&self) -> Ms {
        self.kept.min(self.other_kept)
    }

    /// A sender repeats a frame for so long, and a stream a record. It must end before the binding does, or a repetition
    /// would be a message of its own.
    pub fn repeats(&self) -> Ms {
        self.shortest() - self.binding_gap - self.life - self.margin
    }

    /// Changes a number by its name: `kill=0.1`.
    pub fn set(&mut self, assignment: &str) -> Result<(), String> {
        let (name, value) = assignment.split_once('=').ok_or_else(|| format!("{assignment} is not name=value"))?;
        if let Some((_, rate)) = self.rates().into_iter().find(|(known, _)| *known == name) {
            *rate = parse(value)?;
        } else if let Some((_, time)) = self.times().into_iter().find(|(known, _)| *known == name) {
            *time = parse(value)?;
        } else {
            match name {
                "senders" => self.senders = parse(value)?,
                "clients" => self.clients = parse(value)?,
                "messages" => self.messages = parse(value)?,
                "events" => self.events = parse(value)?,
                "broadcasts" => self.broadcasts = parse(value)?,
                "parts" => self.parts = parse(value)?,
                _ => return Err(format!("there is no number {name}")),
            }
        }
        Ok(())
    }

    fn rates(&mut self) -> [(&'static str, &mut f64); 23] {
        [
            ("throttled", &mut self.throttled),
            ("refused", &mut self.refused),
            ("kill", &mut self.kill),
            ("stalls", &mut self.stalls),
            ("lost-request", &mut self.lost_request),
            ("lost-response", &mut self.lost_response),
            ("late", &mut self.late),
            ("false-gone", &mut self.false_gone),
            ("lost-post", &mut self.lost_post),
            ("duplicate-record", &mut self.duplicate_record),
            ("lost-disconnect", &mut self.lost_disconnect),
            ("half-open", &mut self.half_open),
            ("needless-repetition", &mut self.needless_repetition),
            ("stubborn", &mut self.stubborn),
            ("reused-id", &mut self.reused_id),
            ("without-id", &mut self.without_id),
            ("several", &mut self.several),
            ("unsubscribes", &mut self.unsubscribes),
            ("forgets", &mut self.forgets),
            ("wants-newest", &mut self.wants_newest),
            ("quiet", &mut self.quiet),
            ("very-quiet", &mut self.very_quiet),
            ("kept-changes", &mut self.kept_changes),
        ]
    }

    fn times(&mut self) -> [(&'static str, &mut Ms); 14] {
        [
            ("kept", &mut self.kept),
            ("other-kept", &mut self.other_kept),
            ("head-extra", &mut self.head_extra),
            ("binding-gap", &mut self.binding_gap),
            ("flight", &mut self.flight),
            ("margin", &mut self.margin),
            ("settled", &mut self.settled),
            ("skew", &mut self.skew),
            ("life", &mut self.life),
            ("hold", &mut self.hold),
            ("ping", &mut self.ping),
            ("patience", &mut self.patience),
            ("cut", &mut self.cut),
            ("stale", &mut self.stale),
        ]
    }

    /// The names that [`Self::set`] takes.
    pub fn names(&self) -> String {
        let mut settings = self.clone();
        let rates: Vec<_> = settings.rates().into_iter().map(|(name, rate)| format!("{name}={rate}")).collect();
        let times: Vec<_> = settings.times().into_iter().map(|(name, time)| format!("{name}={time}")).collect();
        let Self { senders, clients, messages, events, broadcasts, parts, .. } = self;
        format!(
            "senders={senders} clients={clients} messages={messages} events={events} broadcasts={broadcasts} \
             parts={parts}\n{}\n{}",
            times.join(" "),
            rates.join(" ")
        )
    }
}

fn parse<T: FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{value} is not a number of this kind"))
}
