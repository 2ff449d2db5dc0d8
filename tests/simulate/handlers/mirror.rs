//! The embedded DynamoDB of one run. After each write the items that it touched are read back, and the model's table, which
//! the invariants look at, learns of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use dynoxide::{Database, DynoxideError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{CONNECTIONS, EVENTS, MESSAGES, Subject, TOPICS, items};
use crate::frame::Record;
use crate::settings::Bug;
use crate::table::{Author, Content, Key, Ms, Number, Position, Socket, Span};
use crate::world::World;

/// The tables and their keys, as in infra/tables.yml.
const TABLES: [(&str, &str, Option<&str>); 4] = [
    (CONNECTIONS, "connectionId", None),
    (TOPICS, "topic", Some("connectionId")),
    (EVENTS, "topic", Some("id")),
    (MESSAGES, "p", Some("s")),
];

pub struct Engine {
    pub subject: Subject,
    database: Database,
    /// The stream records by their number.
    images: RefCell<Vec<Value>>,
    /// The head as it was written last, and as it was before.
    head: RefCell<Option<Value>>,
    old_head: RefCell<Option<Value>>,
    /// The last row of each connection, which may be gone.
    rows: RefCell<BTreeMap<Socket, Value>>,
}

/// A database with empty tables.
pub fn new_database() -> Database {
    let database = Database::memory().expect("a database in memory always opens");
    for (name, hash, range) in TABLES {
        let keys: Vec<_> = std::iter::once((hash, "HASH")).chain(range.map(|range| (range, "RANGE"))).collect();
        let attributes: Vec<_> =
            keys.iter().map(|(name, _)| json!({"AttributeName": name, "AttributeType": "S"})).collect();
        let schema: Vec<_> = keys.iter().map(|(name, kind)| json!({"AttributeName": name, "KeyType": kind})).collect();
        let table = json!({"TableName": name, "BillingMode": "PAY_PER_REQUEST", "AttributeDefinitions": attributes,
                "KeySchema": schema});
        call(&table, |request| database.create_table(request)).expect("the table is right");
    }
    database
}

impl Engine {
    pub fn new(subject: Subject) -> Self {
        Self {
            subject,
            database: new_database(),
            images: RefCell::default(),
            head: RefCell::default(),
            old_head: RefCell::default(),
            rows: RefCell::default(),
        }
    }

    pub fn image(&self, index: usize) -> Value {
        self.images.borrow()[index].clone()
    }

    /// A backend puts an event.
    pub fn event(&self, id: u32, content: Content) {
        let mut image = json!({"topic": {"S": self.subject.topic()}, "id": {"S": format!("event{id}")},
            "json": {"S": items::json_of(content).to_string()}});
        if self.subject == Subject::Inbox {
            image["senderId"] = json!({"S": "backend"});
        }
        self.images.borrow_mut().push(image);
    }

    /// A backend puts an event for everybody.
    pub fn broadcast(&self, id: usize, content: Content) {
        self.images
            .borrow_mut()
            .push(json!({"topic": {"S": "INITIAL_CONNECTION"}, "id": {"S": format!("broadcast{id}")},
            "json": {"S": items::json_of(content).to_string()}}));
    }

    /// The rows of connections, each with its topic or none, unless they have expired.
    pub fn rows(&self, now: Ms) -> BTreeSet<(Socket, Option<String>)> {
        let scan = |table: &str| {
            let request = json!({"TableName": table, "ConsistentRead": true});
            let mut answer = call(&request, |request| self.database.scan(request)).expect("a table can be read");
            answer["Items"].as_array_mut().map(std::mem::take).unwrap_or_default()
        };
        let rows = scan(CONNECTIONS).into_iter().chain(scan(TOPICS));
        let live = rows.filter(|row| row.get("closedAt").is_none() && items::ttl(row).is_some_and(|ttl| ttl > now));
        live.filter_map(|row| {
            let socket = items::text(&row, "connectionId").and_then(items::socket_of)?;
            Some((socket, items::text(&row, "topic").map(str::to_owned)))
        })
        .collect()
    }

    /// Serves an operation, and returns what DynamoDB answers.
    pub fn serve(&self, operation: &str, request: &Value, world: &mut World) -> (u16, Value) {
        let database = &self.database;
        if let Some(stale) = self.stale(operation, request, world) {
            return (200, stale);
        }
        if world.settings.has(Bug::WrittenButDropped) && is_message(request) && world.drops_write() {
            return (200, json!({}));
        }
        let request = &self.broken(operation, request, world);
        let mut answer = match operation {
            "GetItem" => call(request, |request| database.get_item(request)),
            "PutItem" => call(request, |request| database.put_item(request)),
            "UpdateItem" => call(&self.patched(request, world), |request| database.update_item(request)),
            "DeleteItem" => call(request, |request| database.delete_item(request)),
            "Query" => call(request, |request| database.query(request)),
            "Scan" => call(request, |request| database.scan(request)),
            "BatchGetItem" => call(request, |request| database.batch_get_item(request)),
            "BatchWriteItem" => call(request, |request| database.batch_write_item(request)),
            "TransactWriteItems" => call(request, |request| database.transact_write_items(request)),
            _ => panic!("the functions do not call {operation}"),
        };
        match answer {
            Ok(ref mut answer) => {
                break_answer(operation, request, answer, world);
                for Touched { table, key, item } in touched(operation, request) {
                    let item = item.cloned().or_else(|| self.item(table, &key));
                    self.reflect(table, &key, item.as_ref(), world);
                }
                (200, answer.take())
            }
            Err(error) => {
                let body = serde_json::from_str(&error.to_json()).expect("an error is JSON");
                (error.status_code(), body)
            }
        }
    }

    /// With a planted bug, a request does not do all that it says.
    fn broken(&self, operation: &str, request: &Value, world: &World) -> Value {
        let mut request = request.clone();
        let is_of_topics = request["TableName"] == TOPICS;
        if world.settings.has(Bug::KeptSubscription) && operation == "DeleteItem" && is_of_topics {
            request["Key"]["topic"]["S"] = json!("another topic");
        }
        if world.settings.has(Bug::HalfFrame)
            && let Some(writes) = request.get_mut("TransactItems").and_then(Value::as_array_mut)
        {
            writes.pop();
        }
        let has_lost = |write: &Value| {
            let topic = write["PutRequest"]["Item"]["topic"]["S"].as_str();
            world.settings.has(Bug::LostRow) && topic.is_some_and(|topic| topic.starts_with('@'))
        };
        let keeps = |write: &Value| world.settings.has(Bug::KeptRow) && write.get("DeleteRequest").is_some();
        if let Some(writes) = request.pointer_mut("/RequestItems/topics").and_then(Value::as_array_mut)
            && let Some(write) = writes.iter_mut().find(|write| has_lost(write) || keeps(write))
        {
            for place in ["/PutRequest/Item/topic", "/DeleteRequest/Key/topic"] {
                if let Some(topic) = write.pointer_mut(place) {
                    *topic = json!({"S": "another topic"});
                }
            }
        }
        request
    }

    /// The answer of an eventually consistent read that sees what was there a moment ago.
    fn stale(&self, operation: &str, request: &Value, world: &mut World) -> Option<Value> {
        let heads = &request["RequestItems"][MESSAGES];
        if operation == "BatchGetItem" && heads["ConsistentRead"] != true && world.reads_old_head() {
            let old: Vec<_> = self.old_head.borrow().iter().cloned().collect();
            return Some(json!({"Responses": {MESSAGES: old}, "UnprocessedKeys": {}}));
        }
        if operation == "GetItem" && request["TableName"] == CONNECTIONS && request["ConsistentRead"] != true {
            let socket = items::text(&request["Key"], "connectionId").and_then(items::socket_of)?;
            if world.reads_old_connection(socket).is_some() {
                return Some(json!({"Item": self.rows.borrow().get(&socket)?}));
            }
            return world.reads_before_connect(socket).then(|| json!({}));
        }
        None
    }

    /// With a planted bug, a new head has the epoch of the one before it.
    fn patched(&self, request: &Value, world: &World) -> Value {
        let mut request = request.clone();
        if world.settings.has(Bug::SameEpochAgain)
            && let Some(old) = &*self.head.borrow()
            && let Some(fresh) = request["ExpressionAttributeValues"].get_mut(":fresh")
        {
            *fresh = old["epoch"].clone();
        }
        request
    }

    /// DynamoDB removes an expired item.
    pub fn remove(&self, key: Key) {
        let topic = self.subject.topic();
        let topic_key = |p: String, s: String| json!({"p": {"S": p}, "s": {"S": s}});
        if key == Key::Head {
            self.old_head.borrow_mut().clone_from(&self.head.borrow());
        }
        let (table, key) = match key {
            Key::Head => (MESSAGES, topic_key(format!("h:{topic}"), "-".to_owned())),
            Key::Binding(Author::Frame { user, id }) => {
                let writer = self.subject.user(user);
                (MESSAGES, topic_key(format!("i:{topic}\n@{writer}"), items::frame_id(user, id)))
            }
            Key::Binding(Author::Event(id)) => {
                (MESSAGES, topic_key(format!("i:{topic}\nbackend"), format!("event{id}")))
            }
            Key::Binding(Author::Invocation(_) | Author::Part { .. }) => return,
            Key::Entry(position) => (MESSAGES, topic_key(format!("m:{topic}"), items::sort_key(position))),
            Key::Connection(socket) => (CONNECTIONS, json!({"connectionId": {"S": items::connection_id(socket)}})),
            Key::Subscription(socket) => {
                (TOPICS, json!({"topic": {"S": topic}, "connectionId": {"S": items::connection_id(socket)}}))
            }
        };
        let request = json!({"TableName": table, "Key": key});
        call(&request, |request| self.database.delete_item(request)).expect("an item can be deleted");
    }

    /// The item that is there.
    fn item(&self, table: &str, key: &Value) -> Option<Value> {
        let request = json!({"TableName": table, "Key": key, "ConsistentRead": true});
        let answer = call(&request, |request| self.database.get_item(request)).expect("an item can be read");
        answer.get("Item").cloned()
    }

    /// Tells the model's table what is under a key now.
    fn reflect(&self, table: &str, key: &Value, item: Option<&Value>, world: &mut World) {
        let topic = self.subject.topic();
        let socket = items::text(key, "connectionId").and_then(items::socket_of);
        match (table, socket, item) {
            (CONNECTIONS, Some(socket), _) => match item.and_then(|item| items::connection(item, topic)) {
                Some(row) => {
                    self.rows.borrow_mut().extend(item.map(|item| (socket, item.clone())));
                    world.table.connections.insert(socket, row);
                    world.expires(Key::Connection(socket));
                }
                None => world.removes_connection(socket),
            },
            (TOPICS, Some(socket), _) if items::text(key, "topic") == Some(topic) => match item.and_then(items::ttl) {
                Some(ttl) => world.adds_subscription(socket, ttl),
                None => world.removes_subscription(socket),
            },
            (EVENTS, _, Some(image)) => self.continuation(image, world),
            (MESSAGES, _, Some(item)) => self.reflect_message(item, world),
            _ => {}
        }
    }

    fn continuation(&self, image: &Value, world: &mut World) {
        // A second write of the same item is no insert.
        if self.images.borrow().iter().any(|known| known["topic"] == image["topic"]) {
            return;
        }
        self.images.borrow_mut().push(image.clone());
        let after = items::text(image, "after").and_then(items::socket_of).unwrap_or(0);
        let (position, content) = items::continuation(image);
        let record = Record::Range { position, content, after };
        match items::broadcast(image) {
            Some(id) => world.put_rest_of_broadcast(id, record),
            None => world.put_record(record),
        }
    }

    fn reflect_message(&self, item: &Value, world: &mut World) {
        let partition = items::text(item, "p").unwrap_or_default();
        let (kind, topic) = partition.split_once(':').unwrap_or_default();
        if topic.split('\n').next() != Some(self.subject.topic()) {
            return;
        }
        match kind {
            "h" => {
                let Some(head) = items::head(item) else { return };
                let old = world.table.head;
                if old == Some(head) {
                    return;
                }
                world.table.set_head(Some(head));
                if old.is_none_or(|old| old.epoch != head.epoch) {
                    world.ledger.head_made(&head);
                }
                let last = old.filter(|old| old.epoch == head.epoch).map_or(0, |old| old.last);
                for seq in last + 1..=head.last {
                    let position = Position { epoch: head.epoch, seq };
                    let span = Span { at: world.now, ..head.span };
                    world.ledger.taken(&Number { position, span, before: old.map(|old| old.span) }, world.now);
                }
                world.changed_head();
                *self.old_head.borrow_mut() = self.head.replace(Some(item.clone()));
            }
            "m" => {
                let Some(entry) = items::entry(item, |content| world.part_of(content)) else { return };
                if world.table.log.get(&entry.number.position) != Some(&entry) {
                    world.table.log.insert(entry.number.position, entry);
                    world.written(&entry);
                }
            }
            _ => {
                if let Some((author, binding)) = items::binding(item) {
                    world.table.bindings.insert(author, binding);
                    world.expires(Key::Binding(author));
                }
            }
        }
    }
}

/// Runs a request of the engine's own type, which is DynamoDB's JSON.
pub fn call<Q: DeserializeOwned, A: Serialize>(
    request: &Value,
    serve: impl FnOnce(Q) -> Result<A, DynoxideError>,
) -> Result<Value, DynoxideError> {
    let request = Q::deserialize(request).map_err(|error| DynoxideError::ValidationException(error.to_string()))?;
    Ok(serde_json::to_value(serve(request)?).expect("an answer is JSON"))
}

/// With a planted bug, an answer lacks something.
fn break_answer(operation: &str, request: &Value, answer: &mut Value, world: &World) {
    let Some(items) = answer.get_mut("Items").and_then(Value::as_array_mut) else { return };
    if world.settings.has(Bug::ForgottenReceiver) && operation == "Scan" {
        items.pop();
    }
    if world.settings.has(Bug::HiddenMessage) && request["ScanIndexForward"] == false && items.len() > 1 {
        items.remove(1);
    }
}

/// A write of a message, not of a tombstone.
fn is_message(request: &Value) -> bool {
    request["Item"].get("json").is_some() && request["TableName"] == MESSAGES
}

/// What a write touches.
pub struct Touched<'a> {
    pub table: &'a str,
    pub key: Value,
    /// The item that it puts.
    item: Option<&'a Value>,
}

pub fn touched<'a>(operation: &str, request: &'a Value) -> Vec<Touched<'a>> {
    let put = |table: &'a str, item: &'a Value| Touched { table, key: key(table, item), item: Some(item) };
    let keyed = |table: &'a str, key: &Value| Touched { table, key: key.clone(), item: None };
    let table = |request: &'a Value| request["TableName"].as_str().unwrap_or_default();
    match operation {
        "PutItem" => vec![put(table(request), &request["Item"])],
        "UpdateItem" | "DeleteItem" => vec![keyed(table(request), &request["Key"])],
        "BatchWriteItem" => {
            let tables = request["RequestItems"].as_object().into_iter().flatten();
            let writes = tables.flat_map(|(table, writes)| {
                writes.as_array().into_iter().flatten().map(move |write| match write.get("PutRequest") {
                    Some(write) => put(table, &write["Item"]),
                    None => keyed(table, &write["DeleteRequest"]["Key"]),
                })
            });
            let mut writes: Vec<_> = writes.collect();
            // The tables of a request have no order.
            writes.sort_by_cached_key(|touched| (touched.table, touched.key.to_string()));
            writes
        }
        "TransactWriteItems" => {
            let writes = request["TransactItems"].as_array().into_iter().flatten();
            let writes = writes.filter_map(|write| write.as_object()?.iter().next());
            let touched = writes.map(|(kind, write)| match kind.as_str() {
                "Put" => put(table(write), &write["Item"]),
                _ => keyed(table(write), &write["Key"]),
            });
            touched.collect()
        }
        _ => Vec::new(),
    }
}

fn key(table: &str, item: &Value) -> Value {
    let (_, hash, range) = TABLES.iter().find(|(name, ..)| *name == table).expect("the table exists");
    let mut key = json!({*hash: item[*hash]});
    if let Some(range) = range {
        key[*range] = item[*range].clone();
    }
    key
}

/// The connections whose rows a call writes.
pub fn connections(operation: &str, request: &Value) -> Vec<usize> {
    let touched = touched(operation, request).into_iter();
    touched.filter_map(|touched| items::text(&touched.key, "connectionId").and_then(items::socket_of)).collect()
}
