//! Finds members whose connection ended without a `$disconnect`. API Gateway sends that on a best effort basis.
//!
//! A look at all old rows is one `Scan`, page by page. It asks the gateway about each connection once, at a pace that leaves the
//! account's rate to the posts: beside large fan-outs it takes its turns at their lease. What does not fit one invocation is left to the next one.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use lambda_runtime::tracing::info;
use switchboard_core::Failure;
use switchboard_core::backend::Backend;
use switchboard_core::clock::now_ms;
use switchboard_core::connection::ConnectionId;
use switchboard_core::deadline::Deadline;
use switchboard_core::gateway::Gateway;
use switchboard_core::store::OldMember;
use switchboard_core::topic::Topic;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// Rows that are younger than this are left alone. API Gateway itself closes a connection that is dead after 10 minutes.
const OLD_MS: i64 = 10 * 60 * 1000;

/// How long one question waits for the one before it: 50 a second.
const PACE: Duration = Duration::from_millis(20);

/// How many questions the lease is asked for at once: those of a second.
const LEASED: u32 = 50;

/// How many questions may be under way. A gateway that answers slowly is asked more slowly.
const QUESTIONS_AT_ONCE: usize = 16;

/// How many rows a page has. The next look begins behind a whole page.
const PAGE: i32 = 1000;

/// The time between the first 410 and the question that confirms it.
const CONFIRMED_AFTER: Duration = Duration::from_millis(5_500);

/// With less time than this, no further page is read. It is enough to finish a page and to confirm.
const RESERVE: Duration = Duration::from_secs(40);

/// Looks at old rows of members from where the last look has stopped.
///
/// # Errors
///
/// When DynamoDB fails. The next look begins where this one did.
pub(crate) async fn sweep(backend: &Backend, gateway: &Gateway, deadline: Deadline) -> Result<(), Failure> {
    if !backend.config.topic_rules.have_presence() {
        return Ok(());
    }
    let mut start = backend.presence.cursor(deadline).await?;
    let mut seen: BTreeSet<ConnectionId> = BTreeSet::new();
    let mut doubtful: Vec<(ConnectionId, Topic)> = Vec::new();
    let mut last_doubt = Instant::now();
    loop {
        let (old, next) = backend.store.old_members(now_ms() - OLD_MS, PAGE, start).await?;
        let (expired, old): (Vec<_>, Vec<_>) = old.into_iter().partition(|member| member.has_expired);
        for member in &expired {
            backend.store.expire(member).await?;
        }
        let new = old.into_iter().filter(|member| seen.insert(member.connection_id.clone()));
        let new = new.map(|OldMember { connection_id, topic, .. }| (connection_id, topic)).collect();
        let asked = ask(backend, gateway, new, deadline).await;
        if !asked.is_empty() {
            last_doubt = Instant::now();
        }
        doubtful.extend(asked);
        start = next;
        if start.is_none() || deadline.left() < RESERVE {
            break;
        }
    }
    let suspects = doubtful.len();
    let mut open = 0;
    if !doubtful.is_empty() {
        sleep_until(last_doubt + CONFIRMED_AFTER).await;
        open = ask(backend, gateway, doubtful, deadline).await.len();
    }
    backend.presence.stop_at(start.as_ref()).await?;
    info!(
        outcome = "ok",
        verified = seen.len(),
        suspects,
        open,
        is_complete = start.is_none(),
        "old members were verified"
    );
    Ok(())
}

/// Asks about connections, and returns those that may be gone.
async fn ask(
    backend: &Backend,
    gateway: &Gateway,
    connections: Vec<(ConnectionId, Topic)>,
    deadline: Deadline,
) -> Vec<(ConnectionId, Topic)> {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let paced = stream::unfold((connections.into_iter(), pace), async |(mut connections, mut pace)| {
        let next = connections.next()?;
        pace.tick().await;
        backend.pace.turn(gateway, LEASED, deadline).await;
        Some((next, (connections, pace)))
    });
    // Without the box the compiler does not see that this is `Send`.
    let asked = paced.boxed().map(async |(id, topic)| {
        let is_doubtful = backend.publisher.verify(gateway, &id, &topic, deadline).await;
        is_doubtful.then_some((id, topic))
    });
    let asked: Vec<_> = asked.buffer_unordered(QUESTIONS_AT_ONCE).collect().await;
    asked.into_iter().flatten().collect()
}
