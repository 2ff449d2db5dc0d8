//! Frames without a route of their own: subscribe, unsubscribe, message, history, presence, topics, ping.

use aws_lambda_events::apigw::{ApiGatewayProxyResponse, ApiGatewayWebsocketProxyRequest};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use lambda_runtime::LambdaEvent;
use serde_json::value::RawValue;
use switchboard_core::backend::Backend;
use switchboard_core::clock::now_s;
use switchboard_core::connection::Connection;
use switchboard_core::frame::{self, Frame, Request, TopicAck, Wanted};
use switchboard_core::function::{Caller, Served, message};
use switchboard_core::history::{From, Range, Resumed, Stamp};
use switchboard_core::publication::{Audience, Content, Kept, Publication};
use switchboard_core::rights::{Act, Grants, Who};
use switchboard_core::rules::Rules;
use switchboard_core::store::Subscription;
use switchboard_core::topic::{Name, Topic};
use switchboard_core::{ClientError, Error, Failure};

/// The number of topics whose history is posted to one client at the same time.
const POSTED_AT_ONCE: usize = 8;

/// Reads the frame and does what it asks for.
///
/// # Errors
///
/// A fault, which fails the invocation.
pub async fn handle(
    backend: &Backend,
    event: LambdaEvent<ApiGatewayWebsocketProxyRequest>,
) -> Result<ApiGatewayProxyResponse, Error> {
    message(backend, event, async |caller, frame| {
        let request = frame.request()?;
        let acts = request.acts();
        match request {
            Request::Subscribe { topics, is_list } => {
                // Without the box, the futures inside each other are more than the compiler takes.
                Box::pin(subscribe(backend, caller, frame.id()?, topics, &acts, is_list)).await
            }
            Request::Unsubscribe { topic } => {
                backend.store.unsubscribe(&topic, &caller.connection_id, caller.deadline).await?;
                Ok(Served::Done)
            }
            Request::Message { topic, messages } => publish(backend, caller, frame, topic, &messages).await,
            Request::History { topic, range, limit } => {
                history(backend, caller, frame, &topic, &acts, &range, limit).await
            }
            Request::Presence { topic, data } => presence(backend, caller, frame, &topic, data.as_deref(), &acts).await,
            Request::Topics => topics(backend, caller, frame).await,
            Request::Ping { positions, is_quiet } => ping(backend, caller, &positions, &acts, is_quiet).await,
        }
    })
    .await
}

/// Reads the connection's row if somebody has to be asked for: by a rule, by `@me`, or by the caller. Grants are read
/// strongly consistent, so the ack of an `auth` frame says that they count.
async fn connection(
    backend: &Backend,
    caller: &Caller,
    acts: &[(Act, Name)],
    is_needed: bool,
) -> Result<Option<Connection>, Failure> {
    let who = |(act, name): &(Act, Name)| match name {
        Name::Own => Who::Identified,
        Name::Topic(topic) => backend.config.topic_rules.who(*act, topic),
    };
    // No client may do what only backends may.
    let who = acts.iter().map(who).filter(|who| *who != Who::Backend).max().unwrap_or_default();
    if who == Who::Anyone && !is_needed {
        return Ok(None);
    }
    let connection = backend.store.get(&caller.connection_id, who.freshness()).await?;
    Ok(Some(connection.ok_or_else(ClientError::unregistered)?))
}

/// The same for a frame that only an open connection can send. A connection without a record receives nothing, so its client
/// has to hear that.
async fn open_connection(
    backend: &Backend,
    caller: &Caller,
    acts: &[(Act, Name)],
    is_needed: bool,
) -> Result<Option<Connection>, Failure> {
    let connection = connection(backend, caller, acts, is_needed).await?;
    match connection {
        Some(connection) if !connection.is_open => Err(ClientError::unregistered().into()),
        connection => Ok(connection),
    }
}

/// The topic that a client means, if the client has the right to it. Rights that need the connection's row are missing
/// without it.
fn allowed(rules: &Rules, act: Act, name: &Name, connection: Option<&Connection>) -> Result<Topic, ClientError> {
    let user = connection.and_then(|connection| connection.user_id.as_ref());
    let none = Grants::default();
    let grants = connection.map_or(&none, |connection| &connection.grants);
    rules.allow(act, name, user, grants)
}

/// What a subscriber hears of one topic: its position, and whether it missed nothing, as far as both are known.
type Subscribed = Option<(Stamp, Option<bool>)>;

/// Subscribes to the topics of a frame. A mistake that concerns one topic alone leaves the others as they are. The rows come
/// first and then the history, so that nothing falls between what is read and what arrives live.
async fn subscribe(
    backend: &Backend,
    caller: &Caller,
    id: Option<String>,
    topics: Vec<Wanted>,
    acts: &[(Act, Name)],
    is_list: bool,
) -> Result<Served, Failure> {
    check_ends(&topics, is_list)?;
    // Only who has a user can say something about that.
    let is_needed = topics.iter().any(|wanted| wanted.data.is_some());
    let mut connection = open_connection(backend, caller, acts, is_needed).await?;
    let mut found: Vec<_> = topics.iter().map(|wanted| find(backend, wanted, connection.as_ref())).collect();

    // A frame without an `id` gets its subscriptions named after its request, which is unique as well.
    let rules = &backend.config.topic_rules;
    let row_id = id.clone().unwrap_or_else(|| caller.request_id.clone());
    let row = |(wanted, topic): (&Wanted, &Topic)| Subscription {
        topic: topic.clone(),
        id: (!topic.is_address()).then(|| row_id.clone()),
        ttl_s: wanted.ttl_s,
        positions: wanted.positions,
        batches: wanted.batches,
        presence: wanted.presence,
        member: rules.has_presence(topic) && !rules.is_pattern(topic),
        data: wanted.data.clone(),
    };
    let both = topics.iter().zip(&found).filter_map(|(wanted, topic)| Some((wanted, topic.as_ref().ok()?)));
    // The connection listens to its own address already, so only positions change anything.
    let rows: Vec<_> = both.filter(|(wanted, _)| wanted.name != Name::Own || wanted.positions).map(row).collect();
    if !rows.is_empty() {
        let (id, deadline) = (&caller.connection_id, caller.deadline);
        let grants = backend.store.subscribe(id, caller.connected_at_ms, &rows, deadline).await?;
        if let Some(connection) = &mut connection {
            // An `auth` frame may have taken a right away after it was checked and before the rows were written.
            connection.grants = grants;
            let now = |wanted| find(backend, wanted, Some(connection));
            let lost = topics.iter().zip(&mut found).filter(|(wanted, topic)| topic.is_ok() && now(wanted).is_err());
            let lost = lost.map(|(wanted, topic)| std::mem::replace(topic, now(wanted)));
            let lost: Vec<_> = lost.filter_map(Result::ok).collect();
            backend.store.forget(id, lost.iter().map(Topic::as_str), deadline).await?;
        }
    }

    let caught_up = catch_up(backend, caller, id.as_deref(), &topics, &found).await?;
    let mut results = found.into_iter().zip(caught_up).map(|(topic, caught_up)| topic.and(caught_up));
    if is_list {
        let acks = topics.iter().zip(results).map(|(wanted, result)| TopicAck::new(&wanted.name, result));
        return Ok(Served::Topics(acks.collect()));
    }
    match results.next().unwrap_or(Ok(None))? {
        Some((stamp, recovered)) => Ok(Served::Subscribed { stamp, recovered }),
        None => Ok(Served::Done),
    }
}

/// Checks that no subscription ends before it begins.
fn check_ends(topics: &[Wanted], is_list: bool) -> Result<(), ClientError> {
    let now_s = now_s();
    let Some(index) = topics.iter().position(|wanted| wanted.ttl_s.is_some_and(|ttl_s| ttl_s <= now_s)) else {
        return Ok(());
    };
    let mistake = ClientError::InvalidField { field: "ttl", expected: "an epoch second in the future".to_owned() };
    Err(if is_list { ClientError::Entry { index, mistake: Box::new(mistake) } } else { mistake })
}

/// The topic that a client wants to listen to, unless it has no right to, or asks for something that the topic does not have.
fn find(backend: &Backend, wanted: &Wanted, connection: Option<&Connection>) -> Result<Topic, ClientError> {
    let topic = allowed(&backend.config.topic_rules, Act::Subscribe, &wanted.name, connection)?;
    if wanted.presence || wanted.data.is_some() {
        check_presence(backend, &topic, &wanted.name)?;
    }
    if wanted.data.is_some() {
        check_says(backend, &wanted.name, connection)?;
    }
    if wanted.from.is_some() && backend.config.topic_rules.is_pattern(&topic) {
        let expected = "absent with a pattern, because a position is of one topic".to_owned();
        return Err(ClientError::InvalidField { field: "after` or `last", expected });
    }
    if wanted.from.is_some() && backend.history.of(&topic).is_none() {
        return Err(ClientError::NoHistory { topic: wanted.name.as_str().to_owned() });
    }
    Ok(topic)
}

fn check_presence(backend: &Backend, topic: &Topic, name: &Name) -> Result<(), ClientError> {
    match backend.config.topic_rules.has_presence(topic) {
        true => Ok(()),
        false => Err(ClientError::NoPresence { topic: name.as_str().to_owned() }),
    }
}

/// Checks that a connection may say something about its user in a topic. Others read it, so it needs the right to publish.
fn check_says(backend: &Backend, name: &Name, connection: Option<&Connection>) -> Result<(), ClientError> {
    allowed(&backend.config.topic_rules, Act::Publish, name, connection)?;
    match connection.and_then(|connection| connection.user_id.as_ref()) {
        Some(_) => Ok(()),
        None => Err(ClientError::Unidentified { reason: "this connection has no user, so it is no member of a topic" }),
    }
}

/// Sends a subscriber what it missed, and returns its positions. A topic that could not be read, or whose frames the
/// gateway did not take, is busy.
async fn catch_up(
    backend: &Backend,
    caller: &Caller,
    id: Option<&str>,
    topics: &[Wanted],
    found: &[Result<Topic, ClientError>],
) -> Result<Vec<Result<Subscribed, ClientError>>, Failure> {
    let logs = found.iter().map(|topic| backend.history.of(topic.as_ref().ok()?));
    let logs: Vec<_> = logs.zip(topics).map(|(log, wanted)| log.filter(|_| wanted.positions)).collect();
    // A client that asks only for positions gets the topic's position.
    let from = |wanted: &Wanted| wanted.from.clone().unwrap_or(From::Newest(0));
    let asked: Vec<_> =
        logs.iter().zip(topics).filter_map(|(log, wanted)| Some((log.clone()?, from(wanted)))).collect();
    let mut resumed = backend.history.resume(&asked, caller.deadline).await?.into_iter();
    let posts = logs.iter().zip(topics).map(|(log, wanted)| {
        // Topics without a log were not asked for.
        let resumed = log.as_ref().map(|_| resumed.next().flatten());
        async move {
            let Some(resumed) = resumed else { return Ok(Ok(None)) };
            let Some(Resumed { stamp, entries, recovered }) = resumed else { return Ok(Err(ClientError::Busy)) };
            let frames = frame::histories(id, &wanted.name, &stamp.epoch, &entries);
            let sent = backend.publisher.send_all(&caller.gateway, &caller.connection_id, frames, caller.deadline);
            Ok(if sent.await? { Ok(Some((stamp, recovered))) } else { Err(ClientError::Busy) })
        }
    });
    let posts: Vec<_> = posts.collect();
    stream::iter(posts).buffered(POSTED_AT_ONCE).try_collect().await
}

/// One frame answers, and it says whether there is more. The client asks again from the last position that it got.
async fn history(
    backend: &Backend,
    caller: &Caller,
    frame: &Frame<'_>,
    name: &Name,
    acts: &[(Act, Name)],
    range: &Range,
    limit: usize,
) -> Result<Served, Failure> {
    let connection = open_connection(backend, caller, acts, false).await?;
    let topic = allowed(&backend.config.topic_rules, Act::Read, name, connection.as_ref())?;
    let no_history = || ClientError::NoHistory { topic: name.as_str().to_owned() };
    let log = backend.history.of(&topic).ok_or_else(no_history)?;
    let page = log.page(range, limit, caller.deadline).await?;
    let answer = frame::page(frame.id()?.as_deref(), name, page);
    backend.publisher.reply(&caller.gateway, &caller.connection_id, answer, caller.deadline).await?;
    Ok(Served::Answered)
}

/// A topic without subscribers is no mistake; the acknowledgement says `"delivered":0`. A topic without history may have too
/// many, and then nobody gets the messages. On a topic with history they are kept before the first post, and the subscribers
/// are read after that. A client that subscribes meanwhile and reads the history misses nothing. On a topic with `batchMs` they are
/// only written down here, and `publish` posts them.
async fn publish(
    backend: &Backend,
    caller: &Caller,
    frame: &Frame<'_>,
    topic: Topic,
    messages: &[&RawValue],
) -> Result<Served, Failure> {
    let rules = &backend.config.topic_rules;
    let field = if messages.len() == 1 { "message" } else { "messages" };
    rules.check_one(&topic)?;
    let (name, log) = (Name::Topic(topic.clone()), backend.history.of(&topic));
    if rules.who(Act::Publish, &topic) == Who::Backend {
        allowed(rules, Act::Publish, &name, None)?;
    }
    rules.check_size(&topic, field, messages)?;
    // The sender is read from the connection's row, never from the frame.
    let connection = connection(backend, caller, &[(Act::Publish, name.clone())], log.is_some()).await?;
    allowed(rules, Act::Publish, &name, connection.as_ref())?;
    if rules.is_batched(&topic) {
        backend.events.put(&topic, &caller.request_id, messages).await?;
        return Ok(Served::Queued);
    }
    let limit = rules.max_receivers(&topic).unwrap_or(backend.config.max_receivers_per_publish);
    let mut kept = None;
    if let (Some(log), Some(connection)) = (log, &connection) {
        let draft = frame.draft(field, messages, connection, &caller.invocation_id)?;
        kept = Some(log.append(&draft, caller.deadline).await?);
    }
    let sender = connection.and_then(|connection| connection.user_id);
    let content = Content::Data(messages.iter().map(|message| (*message).to_owned()).collect());
    let mut publication = Publication::new(Audience::Topic(topic), content, &caller.request_id);
    publication.kept = kept.as_ref().map(|kept| Kept { stamp: kept.stamp.clone(), sender });
    let mut receivers = backend.store.receivers(&publication.audience, &publication.position);
    // A message that is kept is never refused here: subscribers that come back will read it.
    if publication.kept.is_none() && limit > 0 && receivers.exceed(limit, caller.deadline).await? {
        return Err(ClientError::TooManyReceivers { topic: publication.topic().to_owned(), limit }.into());
    }
    let fanout = backend.publisher.publish(&caller.gateway, publication, receivers, caller.deadline).await?;
    Ok(Served::Published { delivered: fanout.delivered, continued: fanout.continued, kept })
}

/// Answers who is in a topic, or changes what the client says about itself there.
async fn presence(
    backend: &Backend,
    caller: &Caller,
    frame: &Frame<'_>,
    name: &Name,
    data: Option<&str>,
    acts: &[(Act, Name)],
) -> Result<Served, Failure> {
    let connection = open_connection(backend, caller, acts, data.is_some()).await?;
    let topic = allowed(&backend.config.topic_rules, Act::Read, name, connection.as_ref())?;
    check_presence(backend, &topic, name)?;
    let Some(data) = data else {
        let members = backend.store.members(&topic, caller.deadline).await?;
        let frames = frame::presence_list(frame.id()?.as_deref(), name, &members);
        backend.publisher.send_all(&caller.gateway, &caller.connection_id, frames, caller.deadline).await?;
        return Ok(Served::Answered);
    };
    check_says(backend, name, connection.as_ref())?;
    if !backend.store.say(&topic, &caller.connection_id, data, caller.deadline).await? {
        return Err(ClientError::NoMember { topic: name.as_str().to_owned() }.into());
    }
    Ok(Served::Done)
}

/// One frame answers with what the connection listens to, so that a client can compare that with what it means to hear.
async fn topics(backend: &Backend, caller: &Caller, frame: &Frame<'_>) -> Result<Served, Failure> {
    let subscriptions = backend.store.subscriptions(&caller.connection_id, caller.deadline).await?;
    let answer = frame::topics(frame.id()?.as_deref(), &subscriptions);
    backend.publisher.reply(&caller.gateway, &caller.connection_id, answer, caller.deadline).await?;
    Ok(Served::Answered)
}

/// A client without a record hears that instead of a pong.
async fn ping(
    backend: &Backend,
    caller: &Caller,
    positions: &[(Name, Stamp)],
    acts: &[(Act, Name)],
    is_quiet: bool,
) -> Result<Served, Failure> {
    let connection = open_connection(backend, caller, acts, true).await?;
    let topic = |name| allowed(&backend.config.topic_rules, Act::Read, name, connection.as_ref());
    let topics = positions.iter().map(|(name, stamp)| Ok((topic(name)?, stamp.clone())));
    let topics: Vec<_> = topics.collect::<Result<_, ClientError>>()?;
    let mut heads = backend.history.behind(&topics).await?;
    let behind = positions.iter().zip(&topics).filter_map(|((name, _), (topic, _))| {
        let stamp = heads.remove(topic.as_str())?;
        Some((name.as_str().to_owned(), stamp))
    });
    Ok(Served::Ping { behind: behind.collect(), is_quiet })
}
