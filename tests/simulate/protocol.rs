//! The protocol of reliable topics: what the functions do, call by call. A function may be killed between any two calls.
//!
//! A number is taken from the head, bound to the frame's `id`, and written once. A reader that misses a number either knows
//! that it was never written, and puts a tombstone there, or says that it may have expired.

use crate::calls::{
    Acknowledge, AddTopic, Close, DeleteConnection, DeleteSubscription, MakeHead, MarkGone, Post, PutBinding,
    PutConnection, PutEntry, PutRange, PutSubscription, QueryLog, QuerySubscribers, ReadBinding, ReadConnection,
    ReadHead, Rebind, TakeNumber,
};
use crate::frame::{Frame, Invocation, Publication, Record};
use crate::invariants::Answered;
use crate::lambda::{Failed, Lambda};
use crate::settings::{Bug, Settings};
use crate::table::{
    Author, Binding, Connection, Content, Entry, Head, Ms, Number, Position, Rebound, Socket, Span, What,
};

/// How many subscribers a page has.
const SUBSCRIBERS: usize = 2;

/// How many entries of the log a page has.
const ENTRIES: usize = 4;

/// How many entries a history frame has.
const HISTORY: usize = 3;

/// How many receivers a function serves before it hands over the rest.
const EARLY: usize = 2;

/// How often a post is tried that times out.
const POSTS: usize = 2;

/// What to do with one event.
pub async fn invoke(lambda: Lambda, invocation: Invocation) -> Result<(), Failed> {
    match invocation {
        Invocation::Connect(socket) => connect(&lambda, socket).await,
        Invocation::Disconnect(socket) => forget(&lambda, socket).await,
        Invocation::Subscribe { socket, request, after, .. } => subscribe(&lambda, socket, request, after).await,
        Invocation::History { socket, request, after } => answer(&lambda, socket, request, Some(after), false).await,
        Invocation::Ping { socket, request, position } => ping(&lambda, socket, request, position).await,
        Invocation::Publish(publication) => publish(&lambda, publication).await,
        Invocation::Record { record: Record::Event { id, content }, .. } => {
            let (user, author) = (u32::MAX, Some(Author::Event(id)));
            publish(&lambda, Publication { user, author, content, count: 1, again: false }).await
        }
        Invocation::Record { record: Record::Range { position, content, after }, .. } => {
            fan_out(&lambda, position, content, Some(after)).await
        }
        Invocation::Audit => audit(&lambda).await,
        Invocation::Unsubscribe { .. }
        | Invocation::Query { .. }
        | Invocation::Record { record: Record::Broadcast { .. }, .. } => {
            unreachable!("clients and backends of the model do not ask for this")
        }
    }
}

// ---- Publishing ----

async fn publish(lambda: &Lambda, publication: Publication) -> Result<(), Failed> {
    if let Some(author) = publication.author
        && lambda.has(Bug::AckBeforeAppend)
    {
        lambda.call(Acknowledge { author, position: Position { epoch: 0, seq: 0 } }).await?;
    }
    let stored = append(lambda, publication).await?;
    fan_out(lambda, stored.position, stored.content, None).await?;
    if let Some(author @ Author::Frame { .. }) = publication.author {
        lambda.call(Acknowledge { author, position: stored.position }).await?;
    }
    Ok(())
}

/// A message in the log.
struct Stored {
    position: Position,
    content: Content,
}

/// Steps 1 and 2: takes a number and binds the id to it, unless it is bound already.
async fn append(lambda: &Lambda, publication: Publication) -> Result<Stored, Failed> {
    let content = publication.content;
    let Some(author) = publication.author else {
        let author = Author::Invocation(lambda.id());
        let number = take_number(lambda).await?;
        return write(lambda, author, content, Numbers { number, mine: true, spare: None }).await;
    };
    if publication.again
        && !lambda.has(Bug::NoBinding)
        && let Some(binding) = lambda.call(ReadBinding(author)).await?
        && binding.ttl > lambda.now()
    {
        return write(lambda, author, content, Numbers { number: binding.number, mine: false, spare: None }).await;
    }
    let number = take_number(lambda).await?;
    let numbers = bind(lambda, author, number).await?;
    write(lambda, author, content, numbers).await
}

async fn take_number(lambda: &Lambda) -> Result<Number, Failed> {
    loop {
        let now = lambda.now();
        let span = Span { at: now, until: now + lambda.kept };
        if let Some(number) = lambda.call(TakeNumber { span, ttl: head_ttl(lambda, span) }).await? {
            return Ok(number);
        }
        make_head(lambda).await?;
    }
}

/// Makes a head, and with it an epoch, unless another function was faster.
async fn make_head(lambda: &Lambda) -> Result<(), Failed> {
    let now = lambda.now();
    let epoch = if lambda.has(Bug::HeadForgottenEpochReused) { 1 } else { now };
    let span = Span { at: now, until: now + lambda.kept };
    lambda.call(MakeHead(Head { epoch, last: 0, span, ttl: head_ttl(lambda, span) })).await?;
    Ok(())
}

fn head_ttl(lambda: &Lambda, span: Span) -> Ms {
    if lambda.has(Bug::HeadForgottenEpochReused) {
        return span.at + (span.until - span.at) / 2;
    }
    span.until + lambda.settings.head_extra
}

/// A binding ends so early that a repetition which has read it still finds the message.
fn binding(lambda: &Lambda, mut number: Number) -> Binding {
    if lambda.has(Bug::BindingWithoutBefore) {
        number.before = None;
    }
    Binding { number, ttl: number.span.until - lambda.settings.binding_gap }
}

/// What an invocation knows of its message's number.
struct Numbers {
    /// The number that the id is bound to.
    number: Number,
    /// This invocation has taken it.
    mine: bool,
    /// A number that it has taken in vain, so far.
    spare: Option<Number>,
}

/// Binds the author's id to the number, unless it is bound already.
async fn bind(lambda: &Lambda, author: Author, number: Number) -> Result<Numbers, Failed> {
    let call = PutBinding { author, binding: binding(lambda, number), now: lambda.now() };
    Ok(match lambda.call(call).await? {
        Some(found) if found.number.position != number.position => {
            Numbers { number: found.number, mine: false, spare: Some(number) }
        }
        _ => Numbers { number, mine: true, spare: None },
    })
}

fn entry(lambda: &Lambda, number: Number, what: What) -> Entry {
    let mut ttl = number.span.until;
    if lambda.has(Bug::AtIsTheWrite) {
        ttl = lambda.now() + lambda.kept;
    } else if lambda.has(Bug::FreshByTtl) {
        ttl = number.before.map_or(ttl, |before| ttl.max(before.until));
    }
    Entry { number, what, ttl }
}

/// Step 3: writes the message under its number.
///
/// Only the invocation that took a number writes a message under it. So a number is settled once it is older than an
/// invocation can be. A repetition closes the number that it finds, and takes a new one if nothing was there. An invocation
/// whose number was closed takes a new one, too.
async fn write(lambda: &Lambda, author: Author, content: Content, mut numbers: Numbers) -> Result<Stored, Failed> {
    let stored = loop {
        let mine = numbers.mine || lambda.has(Bug::RepetitionWritesOldNumber);
        let what = if mine { What::Message { author, content } } else { What::Hole };
        let position = numbers.number.position;
        match lambda.call(PutEntry(entry(lambda, numbers.number, what))).await? {
            None if mine => break Stored { position, content },
            Some(Entry { what: What::Message { author: found, content: stored }, .. }) if found == author => {
                // What is stored counts: a client may use an id again for something else.
                let content = if lambda.has(Bug::SentContent) { content } else { stored };
                break Stored { position, content };
            }
            _ => {}
        }
        let next = match numbers.spare.take() {
            Some(spare) => spare,
            None => take_number(lambda).await?,
        };
        if matches!(author, Author::Invocation(_)) || lambda.has(Bug::NoBinding) {
            numbers.number = next;
            continue;
        }
        let rebind = Rebind { author, old: position, binding: binding(lambda, next) };
        numbers = match lambda.call(rebind).await? {
            Rebound::Changed(found) if found.number.position != next.position => {
                Numbers { number: found.number, mine: false, spare: Some(next) }
            }
            Rebound::Done | Rebound::Changed(_) => Numbers { number: next, mine: true, spare: None },
            Rebound::Gone => bind(lambda, author, next).await?,
        };
    };
    if let Some(spare) = numbers.spare {
        lambda.call(PutEntry(entry(lambda, spare, What::Hole))).await?;
    }
    Ok(stored)
}

/// Step 4: posts to the subscribers behind `after`, and hands over the rest early.
async fn fan_out(
    lambda: &Lambda,
    position: Position,
    content: Content,
    mut after: Option<Socket>,
) -> Result<(), Failed> {
    let mut served = 0;
    let from = after;
    loop {
        let page = lambda.call(QuerySubscribers { after, limit: SUBSCRIBERS }).await?;
        for (socket, ttl) in page.items {
            if ttl > lambda.now() {
                deliver(lambda, socket, Frame::Data { position, content }).await;
                served += 1;
            }
            after = Some(socket);
        }
        match after {
            Some(after) if page.more && served >= EARLY => {
                let after = from.filter(|_| lambda.has(Bug::RangeWithoutProgress)).unwrap_or(after);
                return lambda.call(PutRange { position, content, after }).await;
            }
            _ if page.more => {}
            _ => return Ok(()),
        }
    }
}

/// Posts to one receiver. What happens to it is nobody else's business.
async fn deliver(lambda: &Lambda, socket: Socket, frame: Frame) {
    for _ in 0..POSTS {
        match lambda.call(Post { socket, frame: frame.clone() }).await {
            Ok(true) => return,
            Ok(false) => {
                // Cleaning up may fail, too; the next 410 does it again.
                let _ = gone(lambda, socket).await;
                return;
            }
            Err(_) => {}
        }
    }
}

/// 410: the first one is noted, a second one some time later has the connection forgotten.
async fn gone(lambda: &Lambda, socket: Socket) -> Result<(), Failed> {
    let now = lambda.now();
    let (soon, too_old) = lambda.settings.second_gone;
    match lambda.call(MarkGone { socket, now, too_old }).await? {
        Some(row) => {
            let since = now - row.gone_at.unwrap_or(now);
            if now - row.connected_at < lambda.settings.young || since < soon {
                return Ok(());
            }
            forget(lambda, socket).await?;
        }
        None => lambda.call(DeleteSubscription(socket)).await?,
    }
    // If it lives after all, its client connects again.
    if !lambda.has(Bug::NoDelete) {
        lambda.call(Close(socket)).await?;
    }
    Ok(())
}

// ---- Connections ----

async fn connect(lambda: &Lambda, socket: Socket) -> Result<(), Failed> {
    let now = lambda.now();
    let row = Connection { connected_at: now, subscribed: false, gone_at: None, ttl: rows_ttl(lambda, now) };
    lambda.call(PutConnection { socket, row }).await
}

fn rows_ttl(lambda: &Lambda, connected_at: Ms) -> Ms {
    connected_at + lambda.settings.cut + lambda.settings.rows_extra
}

/// Removes a connection's rows. The deleted row names its topics.
async fn forget(lambda: &Lambda, socket: Socket) -> Result<(), Failed> {
    if lambda.call(DeleteConnection(socket)).await?.is_some_and(|row| row.subscribed) {
        lambda.call(DeleteSubscription(socket)).await?;
    }
    Ok(())
}

/// The set is written before the row, so that a later `$disconnect` finds the topic. A look at the connection tells whether
/// an earlier one did not.
async fn subscribe(lambda: &Lambda, socket: Socket, request: u32, after: Option<Position>) -> Result<(), Failed> {
    if !lambda.call(AddTopic(socket)).await? {
        return unidentified(lambda, socket).await;
    }
    lambda.call(PutSubscription { socket, ttl: rows_ttl(lambda, lambda.now()) }).await?;
    if !lambda.has(Bug::NoVerify) && lambda.call(ReadConnection { socket, strong: true }).await?.is_none() {
        lambda.call(DeleteSubscription(socket)).await?;
        return unidentified(lambda, socket).await;
    }
    // The rows stand before history is read, so nothing falls between history and live frames.
    answer(lambda, socket, request, after, true).await
}

async fn unidentified(lambda: &Lambda, socket: Socket) -> Result<(), Failed> {
    reply(lambda, socket, Frame::Unidentified).await?;
    lambda.call(Close(socket)).await?;
    Ok(())
}

/// A reply is for one connection; without it there is nothing left to do.
async fn reply(lambda: &Lambda, socket: Socket, frame: Frame) -> Result<(), Failed> {
    if lambda.call(Post { socket, frame }).await? { Ok(()) } else { Err(Failed::NobodyThere) }
}

async fn ping(lambda: &Lambda, socket: Socket, request: u32, position: Option<Position>) -> Result<(), Failed> {
    if !lambda.has(Bug::NoDelete) {
        let mut row = lambda.call(ReadConnection { socket, strong: false }).await?;
        if row.is_none() {
            row = lambda.call(ReadConnection { socket, strong: true }).await?;
        }
        if row.is_none() {
            return unidentified(lambda, socket).await;
        }
    }
    let mut behind = None;
    if let Some(position) = position
        && !lambda.has(Bug::PingsWithoutPositions)
    {
        let head = lambda.call(ReadHead { strong: false }).await?;
        // An eventually consistent read may be older than what the client has.
        let ahead = |head: &Position| *head > position || (*head < position && lambda.has(Bug::BehindIfDifferent));
        behind = head.map(|head| head.position()).filter(ahead);
        lambda.model(|world| world.is_behind(socket, position, behind));
    }
    reply(lambda, socket, Frame::Pong { request, behind }).await
}

// ---- Resuming ----

/// What a client gets that was at `after`, or that had no position.
async fn answer(
    lambda: &Lambda,
    socket: Socket,
    request: u32,
    after: Option<Position>,
    resumes: bool,
) -> Result<(), Failed> {
    let head = loop {
        if let Some(head) = lambda.call(ReadHead { strong: true }).await? {
            break head;
        }
        if lambda.has(Bug::EmptyTopicHasNoPosition) && after.is_none() {
            return reply(lambda, socket, Frame::Empty { request }).await;
        }
        // A subscriber needs a position, also before the first message.
        make_head(lambda).await?;
    };
    let Some(after) = after else {
        lambda.model(|world| world.is_given(head.position()));
        let (start, end) = (head.position(), head.position());
        return reply(lambda, socket, Frame::Answer { request, recovered: true, start, end }).await;
    };
    let Read { recovered, start, end, entries } = read(lambda, head, after).await?;
    lambda.model(|world| {
        let answered = Answered { after, recovered, start, end, entries: &entries, resumes };
        world.judge(socket, &answered);
    });
    for entries in entries.chunks(HISTORY) {
        reply(lambda, socket, Frame::History { entries: entries.to_vec() }).await?;
    }
    reply(lambda, socket, Frame::Answer { request, recovered, start, end }).await
}

/// Reads everything, so that everything that can be known is written down.
async fn audit(lambda: &Lambda) -> Result<(), Failed> {
    if let Some(head) = lambda.call(ReadHead { strong: true }).await? {
        read(lambda, head, Position { epoch: head.epoch, seq: 0 }).await?;
    }
    Ok(())
}

/// The log behind a position.
struct Read {
    recovered: bool,
    /// Nothing is missing behind this position …
    start: Position,
    /// … up to this one.
    end: Position,
    entries: Vec<(Position, Option<Content>)>,
}

/// Why a number is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// It may still be written.
    InFlight,
    /// It was never written.
    Hole,
    /// It may have expired.
    Lost,
}

/// Reads the log behind `after`. The head was read before, so a number up to its last that is not in the log now had not
/// been written when the head was read.
async fn read(lambda: &Lambda, head: Head, after: Position) -> Result<Read, Failed> {
    // The item of `after` itself is read, too, because it says how old the numbers behind it can be.
    let known = after.epoch == head.epoch && after.seq <= head.last;
    let from = Position { epoch: head.epoch, seq: if known { after.seq } else { 0 } };
    let mut found = Vec::new();
    let mut query = QueryLog { from, limit: ENTRIES };
    loop {
        let page = lambda.call(query).await?;
        let last = page.items.last().map(|entry| entry.number.position);
        found.extend(page.items);
        match last {
            Some(last) if page.more => query.from = last.next(),
            _ => break,
        }
    }
    // Items expire a little early here, because clocks differ.
    let now = lambda.now() + lambda.settings.margin;
    found.retain(|entry| entry.ttl > now);
    let mut read = Read { recovered: known, start: from, end: from, entries: Vec::new() };
    let mut base = None;
    if found.first().is_some_and(|entry| entry.number.position == from) {
        base = Some(found.remove(0));
    }
    for next in found {
        let gap = Gap { to: before(next.number.position), before: next.number.before, later: next.number.span };
        if !close_gap(lambda, &mut read, base, gap).await? {
            return Ok(read);
        }
        take(&mut read, &next);
        base = Some(next);
    }
    let gap = Gap { to: head.position(), before: Some(head.span), later: head.span };
    close_gap(lambda, &mut read, base, gap).await?;
    Ok(read)
}

fn before(position: Position) -> Position {
    Position { seq: position.seq - 1, ..position }
}

fn take(read: &mut Read, entry: &Entry) {
    let content = match entry.what {
        What::Message { content, .. } => Some(content),
        What::Hole => None,
    };
    read.end = entry.number.position;
    read.entries.push((read.end, content));
}

/// The numbers between what was read so far and what comes next are missing.
#[derive(Debug, Clone, Copy)]
struct Gap {
    /// The last missing number.
    to: Position,
    /// The span of the last missing number, as its successor or the head tells it.
    before: Option<Span>,
    /// The span of its successor.
    later: Span,
}

/// Decides on the missing numbers. It returns false if they may still be written.
async fn close_gap(lambda: &Lambda, read: &mut Read, base: Option<Entry>, gap: Gap) -> Result<bool, Failed> {
    if read.end >= gap.to {
        return Ok(true);
    }
    match judge(lambda, read.end, base, gap) {
        Missing::InFlight => return Ok(false),
        Missing::Lost => {
            read.recovered = false;
            read.start = gap.to;
            read.end = gap.to;
            return Ok(true);
        }
        Missing::Hole => {}
    }
    // In a gap of several numbers only the earliest and the latest possible times are known.
    let earliest = base.map(|base| base.number.span);
    let latest = gap.before.unwrap_or(gap.later);
    let mut known = earliest;
    while read.end < gap.to {
        let position = read.end.next();
        let exact = gap.before.filter(|_| position == gap.to);
        let span = exact.or(earliest).unwrap_or(latest);
        let until = exact.unwrap_or(latest).until;
        let number = Number { position, span, before: known.take() };
        let mut tombstone = Entry { number, what: What::Hole, ttl: until };
        if lambda.has(Bug::AtIsTheWrite) {
            tombstone = entry(lambda, number, What::Hole);
        }
        if lambda.has(Bug::HoleBeforeTombstone) {
            take(read, &tombstone);
            continue;
        }
        // A writer may have been faster after all.
        let written = lambda.call(PutEntry(tombstone)).await?;
        take(read, &written.unwrap_or(tombstone));
    }
    Ok(true)
}

/// Says why the numbers behind `end` are missing.
fn judge(lambda: &Lambda, end: Position, base: Option<Entry>, gap: Gap) -> Missing {
    let age = lambda.now() - gap.before.unwrap_or(gap.later).at;
    if age < lambda.settings.flight {
        return Missing::InFlight;
    }
    if lambda.has(Bug::MissingMeansHole) || was_never_written(lambda, end, base, gap) {
        return Missing::Hole;
    }
    // No tombstone will keep a late writer from these numbers, so nobody is sent past them before they are settled.
    if age < lambda.settings.settled && !lambda.has(Bug::LostTooSoon) {
        return Missing::InFlight;
    }
    Missing::Lost
}

/// Whether none of the numbers behind `end` can have been written and have expired.
fn was_never_written(lambda: &Lambda, end: Position, base: Option<Entry>, gap: Gap) -> bool {
    let Settings { margin, settled, .. } = *lambda.settings;
    let now = lambda.now() + margin;
    let by_reader = lambda.has(Bug::KeptTimeOfTheReader);
    // If one number is missing, its successor knows until when it would be kept.
    if let Some(span) = gap.before
        && end.next() == gap.to
    {
        return now < if by_reader { span.at + lambda.kept } else { span.until };
    }
    // If several are missing, each was taken after the one that is still there, or hardly earlier: a call that was repeated
    // or late brings an old time with it. Nobody knows how long each would be kept, so the shortest kept time counts.
    let Some(base) = base else { return false };
    let kept = if by_reader { lambda.kept } else { lambda.settings.shortest() };
    if lambda.has(Bug::AtIsTheWrite) || lambda.has(Bug::FreshByTtl) {
        return now < base.ttl;
    }
    now < base.number.span.at + kept - settled
}
