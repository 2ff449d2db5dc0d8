//! Fan-out: posts one publication to its receivers, and leaves what it cannot finish to a continuation.
//!
//! What happens to one receiver is an outcome and not an error, and it changes nothing for the others. A receiver that
//! refuses its frame or does not read is tried a bounded number of times; then the continuation names it, and it gets
//! one more chance there. A publish ends early when its time is over, when a page of receivers cannot be read, when the
//! gateway refuses everybody, or when too many receivers need another try. It then finishes the posts under way and
//! writes down the rest. Nobody who was served is served again by the continuation.
//!
//! A large publish ends early on purpose: after its first receivers it hands over to the function `fan-out`. There, each
//! continuation serves a range of receivers, and the rest behind it is a continuation of its own, which another execution
//! environment serves at the same time. `fan-out` takes turns at the shared pace, and it notes in the item how far it has
//! come: if it is killed, few receivers hear the message twice.
//!
//! A post that hung may have arrived, so a frame can reach a client twice.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use lambda_runtime::tracing::{error, info, warn};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use crate::Error;
use crate::clock::now_ms;
use crate::connection::{ConnectionId, UserId};
use crate::deadline::Deadline;
use crate::event::EventStore;
use crate::gateway::{Gateway, Known, MAX_POSTS_AT_ONCE, Post};
use crate::log::DETAIL;
use crate::metrics::Metrics;
use crate::pace::{CHUNK, Pace};
use crate::publication::{Audience, Fanout, Position, Publication, RangeItem};
use crate::receivers::Receivers;
use crate::store::{Closed, ConnectionStore, Gone};
use crate::topic::{Subscriber, Topic};

/// Rows are written before the socket opens, and `$connect` has at most 29 s to return (Amazon API Gateway quotas,
/// WebSocket APIs). Until then 410 may mean "not yet".
const SETTLING_MS: i64 = 30_000;

/// How long a post to a connection that may still be opening is repeated.
const SETTLING_PATIENCE: Duration = Duration::from_secs(1);

/// How long a post waits after the first 410 of a connection, before it is tried once more: a false 410 may be of a moment.
const SUSPECT_PAUSE: Duration = Duration::from_millis(200);

/// A continuation names this many receivers, and those whose posts were under way. DynamoDB takes items of 400 KB.
const MAX_AGAIN: usize = 100;

/// So many receivers that are refused, and none that is not, are the gateway's refusal of everybody.
const EVERYBODY: usize = 16;

/// How many receivers may be under way for each post that runs: those that wait for their next attempt hold up nobody.
const WAITING_PER_POST: usize = 8;

/// A publish that no continuation began hands over after so many receivers, or after this time. Its function is small, and
/// its sender waits for the ack.
const FIRST_RECEIVERS: usize = 500;
const FIRST_TIME: Duration = Duration::from_secs(1);

/// How many receivers a continuation serves when there are more. At the account's rate that takes half a second alone, and
/// a few seconds beside others.
const RANGE: usize = 5000;

/// A continuation notes how far it has come after so many receivers. One that comes again repeats at most these, and those
/// that may be under way.
const CHECKPOINT: usize = 500;

/// Posts publications. There is one for the life of an execution environment.
#[derive(Debug)]
pub struct Publisher {
    store: ConnectionStore,
    events: EventStore,
    pace: Pace,
    metrics: Metrics,
}

/// What became of one receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Delivered,
    Stale,
    Suspect,
    Pending,
    Dropped,
    Failed,
    /// The gateway refused or denied the frame.
    Refused,
    /// The receiver did not read, or the time was over first.
    Unserved,
}

/// How a publish stands while it runs.
#[derive(Debug)]
struct Progress {
    fanout: Fanout,
    /// How far the receivers were read.
    position: Position,
    /// The receivers that need another try.
    again: Vec<Subscriber>,
    /// How many posts the gateway refused or denied.
    refused: usize,
    /// Whether it denied one.
    denied: bool,
    /// Why no more receivers are read, if that was before the last one.
    stopped: Option<Stop>,
    /// How many receivers were read.
    read: usize,
    /// How many of them the item of the continuation knows to be settled.
    noted: usize,
    /// The receivers under way by their numbers, and what was read before them. Receivers of an earlier publish have no such
    /// place.
    under_way: BTreeMap<usize, (Option<Position>, Subscriber)>,
}

impl Progress {
    fn at(position: Position) -> Self {
        let (fanout, again, under_way) = (Fanout::default(), Vec::new(), BTreeMap::new());
        Self { fanout, position, again, refused: 0, denied: false, stopped: None, read: 0, noted: 0, under_way }
    }

    /// Notes what came of reading one more receiver.
    fn read(&mut self, next: Result<Option<Subscriber>, Stop>) -> Option<(usize, Subscriber)> {
        match next {
            Ok(Some(receiver)) => {
                let position = Position::After(receiver.connection_id.clone());
                let before = std::mem::replace(&mut self.position, position);
                return Some((self.take_up(Some(before), receiver.clone()), receiver));
            }
            Ok(None) => self.position = Position::End,
            Err(reason) => self.stopped = Some(reason),
        }
        None
    }

    /// Gives a number to a receiver whose post is about to run.
    fn take_up(&mut self, before: Option<Position>, receiver: Subscriber) -> usize {
        let number = self.read;
        self.read += 1;
        self.under_way.insert(number, (before, receiver));
        number
    }

    /// How many receivers would be posted to again.
    fn unknown(&self) -> usize {
        self.read - self.noted
    }

    /// How far the receivers are settled: a number, the position, and the receivers before it that are not. Those that have
    /// been under way for long are among them, so that a receiver that hangs does not hold the position back.
    fn checkpoint(&self) -> (usize, Position, Vec<Subscriber>) {
        let recent = self.read.saturating_sub(MAX_POSTS_AT_ONCE);
        let mut again = self.again.clone();
        for (number, (before, receiver)) in &self.under_way {
            match before {
                Some(before) if *number >= recent => return (*number, before.clone(), again),
                _ => again.push(receiver.clone()),
            }
        }
        (self.read, self.position.clone(), again)
    }

    fn settle(&mut self, number: usize, receiver: Subscriber, is_last_chance: bool, outcome: Outcome, denied: bool) {
        self.under_way.remove(&number);
        self.denied |= denied;
        let fanout = &mut self.fanout;
        match outcome {
            Outcome::Delivered => fanout.delivered += 1,
            Outcome::Stale => fanout.stale += 1,
            Outcome::Suspect => fanout.suspect += 1,
            Outcome::Pending => fanout.pending += 1,
            Outcome::Dropped => fanout.dropped += 1,
            Outcome::Failed => fanout.failed += 1,
            Outcome::Refused => {
                self.refused += 1;
                if is_last_chance {
                    warn!(connection.id = %receiver.connection_id, "a receiver is given up: its last chance failed");
                    fanout.failed += 1;
                } else {
                    self.again.push(receiver);
                }
            }
            Outcome::Unserved => self.again.push(receiver),
        }
    }

    fn nobody_is_reached(&self) -> bool {
        let Fanout { delivered, stale, suspect, pending, .. } = self.fanout;
        delivered + stale + suspect + pending == 0
    }

    /// When this many posts were refused and none was answered, the gateway is the reason, not a receiver.
    fn everybody_is_refused(&self) -> bool {
        self.nobody_is_reached() && self.refused >= EVERYBODY
    }

    fn reason_to_stop(&self, deadline: Deadline) -> Option<Stop> {
        if deadline.passed() {
            Some(Stop::Time)
        } else if self.everybody_is_refused() {
            Some(Stop::Refused)
        } else {
            (self.again.len() >= MAX_AGAIN).then_some(Stop::Again)
        }
    }
}

/// The progress of a publish. It is never locked across an `await`: only the publish's own task needs it.
fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a publish stops reading receivers before the last one.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("the time is over")]
    Time,
    #[error(transparent)]
    Page(Error),
    #[error("{MAX_AGAIN} receivers have to be tried again")]
    Again,
    #[error("the gateway refuses everybody")]
    Refused,
    #[error("there are many receivers")]
    HandOver,
}

/// What became of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replied {
    /// The gateway took it, or it failed in a way that says nothing about the sender.
    Read,
    /// The sender did not read in time.
    Unread,
    /// The gateway calls the sender's connection gone.
    Gone,
}

impl Publisher {
    /// A publisher that removes stale connections from `store` and leaves continuations in `events`.
    #[must_use]
    pub fn new(store: ConnectionStore, events: EventStore, pace: Pace, metrics: Metrics) -> Self {
        Self { store, events, pace, metrics }
    }

    /// Goes on with a continuation that the stream brought: from where it has come to, if it was begun before.
    ///
    /// # Errors
    ///
    /// As [`Publisher::publish`], and when the item cannot be read.
    pub async fn go_on(
        &self,
        gateway: &Gateway,
        publication: Publication,
        deadline: Deadline,
    ) -> Result<Fanout, Error> {
        let publication = match &publication.item {
            // Somebody may have deleted it. The stream has all that it takes.
            Some(item) => self.events.stored(item).await?.unwrap_or(publication),
            None => publication,
        };
        let receivers = self.store.receivers(&publication.audience, &publication.position);
        let receivers = receivers.until(publication.until.clone());
        self.publish(gateway, publication, receivers, deadline).await
    }

    /// Posts a publication to the receivers that it has not served yet.
    ///
    /// # Errors
    ///
    /// When nothing was done: no receiver was read before the deadline, or reading the first page failed. When the
    /// continuation could not be written. And [`Error::Undelivered`] when the gateway took nothing: it denied the posts,
    /// or it refused all posts of a continuation, which has no other place to wait.
    pub async fn publish(
        &self,
        gateway: &Gateway,
        mut publication: Publication,
        mut receivers: Receivers,
        deadline: Deadline,
    ) -> Result<Fanout, Error> {
        let start = Instant::now();
        self.split(&mut publication, &mut receivers, deadline).await?;
        let continued = self.hand_over_at_once(&mut publication, &mut receivers, deadline).await?;
        let progress = Mutex::new(Progress::at(publication.position.clone()));
        lock(&progress).fanout.continued = continued;
        let (due, noted) = (Notify::new(), Notify::new());
        let again = publication.again.clone().into_iter();
        let source = stream::unfold((again, receivers), async |(mut again, mut receivers)| {
            // A receiver is taken up when its post can run, so that the deadline meets few that are under way.
            let slot = gateway.slot(deadline).await;
            if let Some(receiver) = again.next() {
                let number = lock(&progress).take_up(None, receiver.clone());
                return Some(((number, receiver, true, slot), (again, receivers)));
            }
            if publication.item.is_some() && publication.position != Position::End {
                self.wait(gateway, &progress, &due, &noted, deadline).await;
            }
            let reason = lock(&progress).reason_to_stop(deadline);
            let mut next = match reason {
                Some(reason) => Err(reason),
                None => match tokio::time::timeout(deadline.left(), receivers.next()).await {
                    Ok(next) => next.map_err(Stop::Page),
                    Err(_) => Err(Stop::Time),
                },
            };
            let read = lock(&progress).read;
            let is_enough = read >= FIRST_RECEIVERS || read > 0 && start.elapsed() >= FIRST_TIME;
            if !publication.is_continuation() && is_enough && matches!(next, Ok(Some(_))) {
                next = Err(Stop::HandOver);
                self.hand_over(&publication, &progress).await;
            }
            let mut progress = lock(&progress);
            progress.fanout.unreadable = receivers.unreadable;
            progress.read(next).map(|(number, receiver)| ((number, receiver, false, slot), (again, receivers)))
        });
        let posting = async {
            // Without the box the compiler does not see that this is `Send`.
            let posts = source.boxed().map(async |(number, receiver, is_last_chance, slot)| {
                let deliver = self.deliver(gateway, &publication, &receiver, slot, is_last_chance, deadline);
                let (outcome, denied) = deliver.await;
                lock(&progress).settle(number, receiver, is_last_chance, outcome, denied);
            });
            posts.buffer_unordered(gateway.posts_at_once * WAITING_PER_POST).for_each(|()| ready(())).await;
        };
        self.note_while(posting, publication.item.as_ref(), &progress, &due, &noted).await;
        self.finish(publication, progress.into_inner().unwrap_or_else(PoisonError::into_inner)).await
    }

    /// Leaves the receivers behind the first ones to another continuation, if there are many. The others begin while this
    /// one posts.
    async fn split(
        &self,
        publication: &mut Publication,
        receivers: &mut Receivers,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let Some(item) = publication.item.clone().filter(|item| item.is_open) else { return Ok(()) };
        let until = match &publication.until {
            Some(until) => Some(until.clone()),
            None if receivers.exceed_count(RANGE, deadline).await? => receivers.cut(RANGE),
            None => None,
        };
        if let Some(until) = &until {
            self.events.split(&item, until, publication.clone()).await?;
        }
        publication.until = until;
        Ok(())
    }

    /// Leaves all but the first receivers to a continuation before the first post, if the first page has many. Both then go on
    /// at the same time. If that fails, the publish begins without it.
    async fn hand_over_at_once(
        &self,
        publication: &mut Publication,
        receivers: &mut Receivers,
        deadline: Deadline,
    ) -> Result<bool, Error> {
        if publication.is_continuation() || deadline.passed() {
            return Ok(false);
        }
        if let Ok(page) = tokio::time::timeout(deadline.left(), receivers.fetch()).await {
            page?;
        }
        let Some(last) = receivers.last_of(FIRST_RECEIVERS) else { return Ok(false) };
        if !self.leave(publication, Position::After(last.clone())).await {
            return Ok(false);
        }
        receivers.cut(FIRST_RECEIVERS);
        publication.until = Some(last);
        Ok(true)
    }

    /// Leaves the receivers that were not read to a continuation, without waiting for the posts under way. If that fails,
    /// the end of the publish does it.
    async fn hand_over(&self, publication: &Publication, progress: &Mutex<Progress>) {
        let position = lock(progress).position.clone();
        if self.leave(publication, position).await {
            let mut progress = lock(progress);
            progress.position = Position::End;
            progress.fanout.continued = true;
        }
    }

    async fn leave(&self, publication: &Publication, position: Position) -> bool {
        let (topic, id) = (publication.topic(), &publication.id);
        let rest = Publication { position, again: Vec::new(), ..publication.clone() };
        match self.events.put_continuation(rest).await {
            Ok(()) => info!(topic.name = topic, event.id = id, "a continuation goes on"),
            Err(error) => {
                warn!(topic.name = topic, event.id = id, %error, "a publish could not be handed over");
                return false;
            }
        }
        true
    }

    /// Waits for the shared pace, and for the item of the continuation if it knows too little.
    async fn wait(
        &self,
        gateway: &Gateway,
        progress: &Mutex<Progress>,
        due: &Notify,
        noted: &Notify,
        deadline: Deadline,
    ) {
        if lock(progress).unknown() >= CHECKPOINT {
            due.notify_one();
        }
        while lock(progress).unknown() >= CHECKPOINT + MAX_POSTS_AT_ONCE {
            noted.notified().await;
        }
        self.pace.turn(gateway, CHUNK, deadline).await;
    }

    /// Notes how far a continuation has come, as often as that is due, until the posting ends.
    async fn note_while(
        &self,
        posting: impl Future<Output = ()>,
        item: Option<&RangeItem>,
        progress: &Mutex<Progress>,
        due: &Notify,
        noted: &Notify,
    ) {
        let Some(item) = item else { return posting.await };
        let has_ended = AtomicBool::new(false);
        let posting = async {
            posting.await;
            has_ended.store(true, Ordering::Relaxed);
            due.notify_one();
        };
        let noting = async {
            loop {
                due.notified().await;
                if has_ended.load(Ordering::Relaxed) {
                    return;
                }
                if lock(progress).unknown() < CHECKPOINT {
                    continue;
                }
                let (number, position, again) = lock(progress).checkpoint();
                if let Err(error) = self.events.checkpoint(item, &position, again).await {
                    warn!(%error, "a checkpoint failed: if this continuation comes again, more receivers hear it twice");
                }
                lock(progress).noted = number;
                noted.notify_one();
            }
        };
        future::join(posting, noting).await;
    }

    /// Writes the continuation, if one is due, and counts.
    async fn finish(&self, publication: Publication, progress: Progress) -> Result<Fanout, Error> {
        let topic = publication.topic().to_owned();
        let (is_continuation, nobody) = (publication.is_continuation(), progress.nobody_is_reached());
        let everybody_is_refused = progress.everybody_is_refused();
        let Progress { mut fanout, position, mut again, refused, denied, stopped, .. } = progress;
        if let Some(reason) = stopped.as_ref().filter(|reason| !matches!(reason, Stop::HandOver)) {
            warn!(topic.name = topic, %reason, "a publish ends early");
        }
        match stopped {
            // The others are served elsewhere, so the whole publish must not come again.
            _ if fanout.continued => {}
            _ if nobody && denied => return Err(Error::Undelivered { topic, failed: refused }),
            // The stream brings the same continuation back; another one of the same content would come too early.
            _ if is_continuation && everybody_is_refused => return Err(Error::Undelivered { topic, failed: refused }),
            // Without any progress there is nothing to put down that the event or the sender does not have.
            Some(reason) if position == publication.position && fanout.settled() == 0 && again.is_empty() => {
                return Err(match reason {
                    Stop::Page(error) => error,
                    Stop::Time | Stop::Again | Stop::Refused | Stop::HandOver => Error::OutOfTime { topic },
                });
            }
            _ => {}
        }
        if is_continuation && fanout.settled() == 0 && !again.is_empty() {
            // Each continuation settles at least one receiver, so that a chain of them ends.
            let receiver = again.remove(0);
            warn!(connection.id = %receiver.connection_id, "a receiver is given up: a whole invocation was not enough");
            fanout.failed += 1;
        }
        if position != Position::End || !again.is_empty() {
            let (id, count, item) = (publication.id.clone(), again.len(), publication.item.clone());
            self.events.put_continuation(Publication { position, again, ..publication }).await?;
            if let Some(item) = &item
                && let Err(error) = self.events.checkpoint(item, &Position::End, Vec::new()).await
            {
                warn!(%error, "a checkpoint failed: if this continuation comes again, its rest is served twice");
            }
            info!(
                topic.name = topic,
                event.id = id,
                settled = fanout.settled(),
                again = count,
                "a continuation goes on"
            );
            fanout.continued = true;
        }
        self.metrics.published(&fanout);
        info!(target: DETAIL, { topic.name = topic, delivered = fanout.delivered }, "a publish has ended");
        let Fanout { delivered, suspect, pending, dropped, failed, unreadable, .. } = fanout;
        if suspect + dropped + failed + unreadable > 0 {
            warn!(
                topic.name = topic,
                delivered, suspect, pending, dropped, failed, unreadable, "not every receiver has got its frame"
            );
        }
        Ok(fanout)
    }

    /// Posts frames in their order to the connection whose own frame is being served. Returns whether the gateway took all
    /// of them.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`] when the gateway denies this function its posts.
    pub async fn send_all(
        &self,
        gateway: &Gateway,
        id: &ConnectionId,
        frames: Vec<Vec<u8>>,
        deadline: Deadline,
    ) -> Result<bool, Error> {
        for frame in frames {
            match gateway.post(None, id, frame, deadline, Duration::ZERO).await {
                Post::Taken => {}
                Post::Denied => return Err(Error::Reply { connection_id: id.clone() }),
                post => {
                    info!(connection.id = %id, reason = ?post, "a subscriber did not get its history");
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Posts a frame to the connection whose own frame is being served. A sender that cannot take its reply does not make
    /// the work undone, so that is only logged.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`] when the gateway denies this function its posts.
    pub async fn reply(
        &self,
        gateway: &Gateway,
        id: &ConnectionId,
        frame: Vec<u8>,
        deadline: Deadline,
    ) -> Result<Replied, Error> {
        match gateway.post(None, id, frame, deadline.of_reply(), Duration::ZERO).await {
            Post::Taken => Ok(Replied::Read),
            Post::Denied => Err(Error::Reply { connection_id: id.clone() }),
            Post::Gone => {
                info!(connection.id = %id, "the sender has gone before its reply");
                Ok(Replied::Gone)
            }
            post @ (Post::Hung | Post::Refused | Post::Rejected | Post::OutOfTime) => {
                error!(connection.id = %id, reason = ?post, "the sender did not get its reply");
                Ok(if matches!(post, Post::Hung | Post::OutOfTime) { Replied::Unread } else { Replied::Read })
            }
        }
    }

    /// Ends all connections of a user: each gets the last frame, then the gateway closes it, and then its rows go. Returns how many
    /// there were.
    ///
    /// # Errors
    ///
    /// When DynamoDB fails, or when the gateway closes not all of them. The rows of those stay, so this can be repeated.
    pub async fn disconnect(
        &self,
        gateway: &Gateway,
        address: &Topic,
        frame: Vec<u8>,
        deadline: Deadline,
    ) -> Result<usize, Error> {
        let audience = Audience::Topic(address.clone());
        let receivers = self.store.receivers(&audience, &Position::Start);
        let source = stream::try_unfold(receivers, async |mut receivers| {
            let next = receivers.next().await?;
            Ok::<_, Error>(next.map(|receiver| (receiver.connection_id, receivers)))
        });
        let ends = source.map_ok(async |id| {
            // A client that cannot be told is closed all the same.
            gateway.post(None, &id, frame.clone(), deadline, Duration::ZERO).await;
            let is_closed = gateway.delete(&id, deadline).await;
            if is_closed {
                self.store.close(&id, Some(address), deadline).await?;
            }
            Ok(is_closed)
        });
        let ends: Vec<bool> = ends.try_buffer_unordered(gateway.posts_at_once).try_collect().await?;
        match ends.iter().filter(|is_closed| !**is_closed).count() {
            0 => Ok(ends.len()),
            failed => Err(Error::NotEnded { topic: address.to_string(), failed }),
        }
    }

    /// Serves one receiver: its frames in their order, up to the first that it does not get. The second value says whether
    /// the gateway denied the post.
    async fn deliver(
        &self,
        gateway: &Gateway,
        publication: &Publication,
        to: &Subscriber,
        mut slot: Option<OwnedSemaphorePermit>,
        is_last_chance: bool,
        deadline: Deadline,
    ) -> (Outcome, bool) {
        for frame in publication.frames(to) {
            let post = self.post(gateway, publication, to, frame, slot.take(), is_last_chance, deadline);
            let (outcome, denied) = post.await;
            if outcome != Outcome::Delivered {
                return (outcome, denied);
            }
        }
        (Outcome::Delivered, false)
    }

    /// Posts one frame to one receiver.
    #[expect(clippy::too_many_arguments, reason = "each of them decides what a status means")]
    async fn post(
        &self,
        gateway: &Gateway,
        publication: &Publication,
        to: &Subscriber,
        frame: Vec<u8>,
        slot: Option<OwnedSemaphorePermit>,
        is_last_chance: bool,
        deadline: Deadline,
    ) -> (Outcome, bool) {
        let id = &to.connection_id;
        let is_settling = now_ms() - to.connected_at_ms < SETTLING_MS;
        let patience = if is_settling { SETTLING_PATIENCE } else { Duration::ZERO };
        let outcome = match gateway.post(slot, id, frame.clone(), deadline, patience).await {
            Post::Taken => Outcome::Delivered,
            Post::OutOfTime => Outcome::Unserved,
            Post::Rejected => Outcome::Failed,
            Post::Hung if is_last_chance => {
                warn!(connection.id = %id, "a receiver is dropped: it does not read");
                match self.end(gateway, publication, to, deadline).await {
                    true => Outcome::Dropped,
                    false => Outcome::Failed,
                }
            }
            Post::Hung => Outcome::Unserved,
            Post::Refused => Outcome::Refused,
            Post::Denied => return (Outcome::Refused, true),
            Post::Gone if is_settling => {
                warn!(connection.id = %id, topic.name = publication.topic(), "gone, or not open yet: the rows stay");
                Outcome::Pending
            }
            Post::Gone => self.forget(gateway, publication, to, frame, deadline).await,
        };
        (outcome, false)
    }

    /// Draws the conclusion from a 410: the first one marks the connection, and the second one ends it. After the first
    /// one the frame is posted once more, so that a false 410 costs a live client nothing.
    async fn forget(
        &self,
        gateway: &Gateway,
        publication: &Publication,
        to: &Subscriber,
        frame: Vec<u8>,
        deadline: Deadline,
    ) -> Outcome {
        let id = &to.connection_id;
        match self.store.suspect(id).await {
            Ok(Gone::First) => {
                tokio::time::sleep(SUSPECT_PAUSE.min(deadline.left())).await;
                let post = gateway.post(None, id, frame, deadline, Duration::ZERO).await;
                if post == Post::Taken {
                    warn!(connection.id = %id, "the gateway called a live connection gone");
                    return Outcome::Delivered;
                }
                info!(connection.id = %id, "a connection is suspected to be gone: the rows stay until it is confirmed");
                Outcome::Suspect
            }
            Ok(Gone::Suspected) => Outcome::Suspect,
            Ok(Gone::Confirmed | Gone::Unknown) => match self.end(gateway, publication, to, deadline).await {
                true => Outcome::Stale,
                false => Outcome::Suspect,
            },
            Err(error) => {
                warn!(connection.id = %id, %error, "a connection that may be gone could not be marked");
                Outcome::Suspect
            }
        }
    }

    /// Looks whether a connection that has a row of `topic` ended without a `$disconnect`. As with posts, the first 410 only marks
    /// it, and the second one closes it and removes its rows. Returns whether it has to be looked at again in a moment.
    pub async fn verify(&self, gateway: &Gateway, id: &ConnectionId, topic: &Topic, deadline: Deadline) -> bool {
        if gateway.ask(id, deadline).await != Known::Gone {
            return false;
        }
        match self.store.suspect(id).await {
            Ok(Gone::First | Gone::Suspected) => true,
            Ok(Gone::Confirmed | Gone::Unknown) => !self.forget_closed(gateway, id, Some(topic), deadline).await,
            Err(error) => {
                warn!(connection.id = %id, %error, "a connection that may be gone could not be marked");
                false
            }
        }
    }

    /// Ends the connection of a receiver.
    async fn end(&self, gateway: &Gateway, publication: &Publication, to: &Subscriber, deadline: Deadline) -> bool {
        let topic = match &publication.audience {
            Audience::Topic(topic) | Audience::Presence(topic) => Some(to.pattern.as_ref().unwrap_or(topic)),
            Audience::Everybody { .. } => None,
        };
        self.forget_closed(gateway, &to.connection_id, topic, deadline).await
    }

    /// Closes a connection and then removes its rows, in this order: a client that is alive without rows would be deaf
    /// and would not know it. Returns whether the connection is closed.
    async fn forget_closed(
        &self,
        gateway: &Gateway,
        id: &ConnectionId,
        topic: Option<&Topic>,
        deadline: Deadline,
    ) -> bool {
        if !gateway.delete(id, deadline).await {
            return false;
        }
        match self.store.close(id, topic, deadline).await {
            Ok(Closed { user, subscriptions }) => {
                let user = user.as_ref().map(UserId::as_str);
                info!(connection.id = %id, user.id = user, topics = subscriptions, "a stale connection was forgotten");
            }
            Err(error) => warn!(connection.id = %id, %error, "a stale connection could not be forgotten"),
        }
        true
    }
}

#[cfg(test)]
mod tests;
