//! AWS as the SDK sees it: DynamoDB and the gateway's `@connections`, with lost requests and answers, throttling, faults of
//! servers, and the kill of the caller before or after each call.

use std::future::pending;
use std::hash::Hash;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{AsyncSleep, Credentials, SharedAsyncSleep, SharedCredentialsProvider, Sleep};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::sleep_until;

use super::{RUNNING, Run, items, mirror};
use crate::frame::Frame;
use crate::settings::Settings;
use crate::table::{Ms, Socket};
use crate::world::{Event, World};

/// The SDK's configuration. A region of its own gives each run its own budget of retries.
pub fn sdk(seed: u64) -> SdkConfig {
    let connector = SharedHttpConnector::new(Wire);
    let credentials = Credentials::new("simulated", "simulated", None, None, "simulated");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(format!("seed-{seed}")))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .sleep_impl(SharedAsyncSleep::new(VirtualSleep))
        .retry_config(RetryConfig::standard())
        .build()
}

#[derive(Debug)]
struct VirtualSleep;

impl AsyncSleep for VirtualSleep {
    fn sleep(&self, duration: std::time::Duration) -> Sleep {
        Sleep::new(tokio::time::sleep(duration))
    }
}

/// A request, read.
#[derive(Debug, Clone)]
struct Call {
    /// DynamoDB's operation, or the method of a call of `@connections`.
    operation: String,
    connection_id: String,
    body: Value,
}

#[derive(Debug)]
struct Wire;

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").and_then(|target| target.rsplit('.').next());
        let call = Call {
            operation: target.unwrap_or(request.method()).to_owned(),
            connection_id: request.uri().rsplit('/').next().unwrap_or_default().replace("%3D", "="),
            body: serde_json::from_slice(request.body().bytes().unwrap_or_default()).unwrap_or_default(),
        };
        let run = Run::current();
        let (process, _) = RUNNING.get().expect("only functions call AWS");
        let Some((answer, back)) = run.act(|world| send(world, process, call)) else {
            return HttpConnectorFuture::new(pending());
        };
        HttpConnectorFuture::new(async move {
            // Nobody answers a request that is lost.
            let Ok((status, body, at)) = answer.await else { return pending().await };
            let arrives = Run::current().at(at + back);
            sleep_until(arrives).await;
            if Run::current().act(|world| world.dies_now(process)) {
                return pending().await;
            }
            Ok(HttpResponse::new(status.try_into().expect("it is a status"), SdkBody::from(body.to_string())))
        })
    }
}

type Answer = (u16, Value, Ms);

/// Sends a request on its way, and returns its answer with the time that the answer will need. Nothing: the caller is dead.
fn send(world: &mut World, process: usize, call: Call) -> Option<(oneshot::Receiver<Answer>, Ms)> {
    if world.dies_now(process) {
        return None;
    }
    let (sender, receiver) = oneshot::channel();
    let (there, stalls_there) = world.travel_time();
    let (back, stalls_back) = world.travel_time();
    let fate = Fate::draw(world);
    let at = if fate == Fate::Late { world.now + world.late_by() } else { world.now + there };
    world.ledger.counts.calls += 1;
    if let Some((socket, frame)) = call.post(world, process) {
        world.judge_post(process, socket, &frame);
    }
    let has_fault = fate != Fate::Served || stalls_there || stalls_back;
    world.note_call(process, &mirror::connections(&call.operation, &call.body), has_fault, call.writes());
    if fate == Fate::LostRequest {
        let line = format!("{call} -> is lost on its way");
        world.tell_process(process, || line);
        drop(sender);
        return Some((receiver, back));
    }
    world.plan(
        at,
        Event::Late(Box::new(move |world| {
            let (status, body) = match fate {
                Fate::Throttled => call.throttled(),
                Fate::Refused => (500, json!({"__type": "com.amazonaws.dynamodb.v20120810#InternalServerError"})),
                _ => world.act_for(process, |world| call.serve(world, process)),
            };
            let fault = match fate {
                Fate::Late => ", but late, and nobody hears it",
                Fate::LostResponse => ", but nobody hears it",
                _ => "",
            };
            let line = format!("{call} -> {}{fault}", outcome(status, &body));
            (world.now, process, &line).hash(world.trail());
            world.tell_process(process, || line);
            if matches!(fate, Fate::Served | Fate::Throttled | Fate::Refused) {
                // The caller may be dead by now.
                drop(sender.send((status, body, world.now)));
            }
        })),
    );
    Some((receiver, back))
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Served,
    LostRequest,
    LostResponse,
    /// It takes effect after its caller has given up.
    Late,
    Throttled,
    /// Status 500, and nothing happens.
    Refused,
}

impl Fate {
    fn draw(world: &mut World) -> Self {
        let Settings { lost_request, lost_response, late, throttled, refused, .. } = *world.settings;
        let fates = [
            (lost_request, Self::LostRequest),
            (lost_response, Self::LostResponse),
            (late, Self::Late),
            (throttled, Self::Throttled),
            (refused, Self::Refused),
        ];
        fates.into_iter().find(|(rate, _)| world.hit(*rate)).map_or(Self::Served, |(_, fate)| fate)
    }
}

impl Call {
    /// A post's receiver and its frame.
    fn post(&self, world: &World, process: usize) -> Option<(Socket, Frame)> {
        let socket = items::socket_of(&self.connection_id).filter(|_| self.operation == "POST")?;
        let subject = world.engine.as_ref()?.subject;
        Some((socket, items::frame(&self.body, &world.invocation(process), subject)))
    }

    fn serve(&self, world: &mut World, process: usize) -> (u16, Value) {
        match self.operation.as_str() {
            "POST" => {
                let Some((socket, frame)) = self.post(world, process) else { return (400, json!({})) };
                world.judge_frame(process, socket, &frame);
                if world.post(socket, &frame) { (200, json!({})) } else { gone() }
            }
            "DELETE" => match items::socket_of(&self.connection_id) {
                Some(socket) if world.close(socket) => (204, json!({})),
                _ => gone(),
            },
            operation => {
                let engine = world.engine.clone().expect("a run of handlers has an engine");
                engine.serve(operation, &self.body, world)
            }
        }
    }

    /// DynamoDB puts off a batch item by item, and a transaction because of another one.
    fn throttled(&self) -> (u16, Value) {
        let error = |name: &str| format!("com.amazonaws.dynamodb.v20120810#{name}");
        match self.operation.as_str() {
            "POST" | "DELETE" => (429, json!({})),
            "BatchWriteItem" => (200, json!({"UnprocessedItems": self.body["RequestItems"]})),
            "BatchGetItem" => (200, json!({"Responses": {}, "UnprocessedKeys": self.body["RequestItems"]})),
            "TransactWriteItems" => {
                let reasons = json!([{"Code": "TransactionConflict"}, {"Code": "None"}]);
                (400, json!({"__type": error("TransactionCanceledException"), "CancellationReasons": reasons}))
            }
            _ => (400, json!({"__type": error("ProvisionedThroughputExceededException")})),
        }
    }

    /// Write units of the table of messages.
    fn writes(&self) -> u32 {
        let writes = self.body["TransactItems"].as_array().map_or(0, Vec::len);
        let is_write = matches!(self.operation.as_str(), "PutItem" | "UpdateItem");
        let is_write = is_write && self.body["TableName"] == super::MESSAGES;
        // DynamoDB writes each item of a transaction twice.
        u32::from(is_write) + u32::try_from(2 * writes).unwrap_or(u32::MAX)
    }
}

fn gone() -> (u16, Value) {
    (410, json!({}))
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { operation, connection_id, body } = self;
        if matches!(operation.as_str(), "POST" | "DELETE") {
            return write!(f, "{operation} {connection_id} {}", items::plain(body));
        }
        write!(f, "{operation}")?;
        let told = ["TableName", "Key", "Item", "ExpressionAttributeValues", "RequestItems", "TransactItems"];
        told.iter().filter_map(|name| body.get(name)).try_for_each(|value| write!(f, " {}", items::plain(value)))
    }
}

fn outcome(status: u16, body: &Value) -> String {
    if let Some(error) = body["__type"].as_str().and_then(|error| error.rsplit('#').next()) {
        let item = body.get("Item").map_or(String::new(), |item| format!(": there is {}", items::plain(item)));
        return format!("{error}{item}");
    }
    let told = ["Item", "Items", "Attributes", "Responses", "UnprocessedItems"];
    let told: Vec<_> = told.iter().filter_map(|name| body.get(name)).map(items::plain).collect();
    if told.is_empty() { status.to_string() } else { told.join(" ") }
}
