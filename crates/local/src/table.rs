//! The service's tables, in an embedded DynamoDB.
//!
//! The engine is dynoxide, in memory or in a file that survives a restart. Functions reach it over HTTP, like DynamoDB.
//! Items past their time to live are deleted every `SWEEP_INTERVAL`; DynamoDB takes [up to a few
//! days](https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/TTL.html).
//!
//! The engine keeps stream records for ever and searches all of them at every write. So this module changes the
//! engine's file without its API: it adds an index and deletes the records that DynamoDB would have trimmed. For this
//! reason the engine's version is pinned.

use std::convert::Infallible;
use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dynoxide::actions::create_table::CreateTableRequest;
use dynoxide::actions::describe_table::DescribeTableRequest;
use dynoxide::actions::update_time_to_live::{TimeToLiveSpecification, UpdateTimeToLiveRequest};
use dynoxide::storage::Storage;
use dynoxide::{Database, DynoxideError};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::MissedTickBehavior;

use crate::service::Table;
use crate::terminal;

/// The time between two deletions of expired items.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The name of the database in the data directory.
const DATABASE_FILE: &str = "dynamodb.sqlite";

/// The name of the file that the stack locks while it uses the data directory. The file stays there.
const LOCK_FILE: &str = "lock";

/// The index for the engine's queries of a stream's last record, and of the records after a given one. With 24,000
/// stream records in a table, a debug build does 13,000 writes/s instead of 170.
const INDEX_STREAM_RECORDS: &str = "CREATE INDEX IF NOT EXISTS switchboard_stream_records \
                                    ON _stream_records (table_name, CAST(sequence_number AS INTEGER))";

/// The statement that deletes old records. "Stream records have a lifetime of 24 hours", from "Change data capture for
/// DynamoDB Streams".
const TRIM_STREAM_RECORDS: &str =
    "DELETE FROM _stream_records WHERE created_at < CAST(strftime('%s', 'now', '-24 hours') AS INTEGER)";

/// The members of `CreateTable` that an existing table must share with the service's definition.
const MUST_MATCH: [&str; 3] = ["KeySchema", "AttributeDefinitions", "StreamSpecification"];

/// The embedded DynamoDB with the service's tables in it.
pub struct Tables {
    database: Database,
    /// The lock of the data directory. It is held as long as the database may be written.
    _lock: Option<File>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

/// The reason why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The data directory cannot be created or written.
    #[error("{path}: cannot be used as data directory")]
    DataDirectory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Another stack runs on the same data directory.
    #[error("{path}: another local stack is using this data directory")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// There is no room for a temporary file.
    #[error("the embedded DynamoDB needs a temporary file")]
    TemporaryFile(#[source] std::io::Error),
    /// The engine does not start.
    #[error("the embedded DynamoDB cannot be opened")]
    Open(#[source] DynoxideError),
    /// A `CreateTable` body is malformed.
    #[error("DynamoDB would not create the table {logical_id}: {reason}")]
    Definition {
        /// The table's logical id.
        logical_id: String,
        /// DynamoDB's text.
        reason: String,
    },
    /// The data directory has a table of the same name with another definition.
    #[error("{path}: the table {table_name} has another {part} than the service defines; delete the directory")]
    Changed {
        /// The directory.
        path: PathBuf,
        /// The table's name in DynamoDB.
        table_name: String,
        /// The member of `CreateTable` that differs.
        part: &'static str,
    },
    /// The HTTP server failed.
    #[error("the embedded DynamoDB stopped serving: {reason}")]
    Serve {
        /// The server's text.
        reason: String,
    },
}

impl Tables {
    /// Opens the database, in memory or in `data_dir`, and creates the missing tables.
    ///
    /// # Errors
    ///
    /// When the directory cannot be used or is in use, when DynamoDB would not create a table, or when a table exists
    /// that the service now defines differently.
    pub fn open(data_dir: Option<&Path>, tables: &[Table]) -> Result<Self, TableError> {
        let (database, lock) = match data_dir {
            None => (in_memory()?, None),
            Some(path) => {
                let lock = lock(path)?;
                let file = path.join(DATABASE_FILE);
                prepare(&file).map_err(TableError::Open)?;
                (Database::new(&file.to_string_lossy()).map_err(TableError::Open)?, Some(lock))
            }
        };
        for table in tables {
            add(&database, table, data_dir.unwrap_or(Path::new("")))?;
        }
        Ok(Self { database, _lock: lock })
    }

    /// Returns the engine itself, for readers of its streams.
    pub(crate) fn database(&self) -> Database {
        self.database.clone()
    }

    /// Serves DynamoDB's API on `listener` until `shutdown` resolves.
    ///
    /// # Errors
    ///
    /// When the HTTP server fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), TableError> {
        tokio::select! {
            served = dynoxide::server::serve_with_shutdown(listener, self.database.clone(), shutdown) => {
                served.map_err(|reason| TableError::Serve { reason })
            }
            never = sweep_regularly(&self.database) => match never {},
        }
    }
}

/// Opens a database in memory. Only a copy of an indexed file has an index there.
fn in_memory() -> Result<Database, TableError> {
    let folder = tempfile::tempdir().map_err(TableError::TemporaryFile)?;
    let file = folder.path().join(DATABASE_FILE);
    let copied = prepare(&file).and_then(|()| {
        let database = Database::memory()?;
        database.restore_from(&file.to_string_lossy())?;
        Ok(database)
    });
    copied.map_err(TableError::Open)
}

/// Opens or creates a database file, indexes its stream records and deletes the old ones.
fn prepare(file: &Path) -> Result<(), DynoxideError> {
    let storage = Storage::new(&file.to_string_lossy())?;
    storage.conn().execute_batch(INDEX_STREAM_RECORDS)?;
    storage.conn().execute_batch(TRIM_STREAM_RECORDS)?;
    Ok(())
}

/// Creates the data directory if it is missing, and locks it. Its files are for its owner alone: they have the
/// service's rows.
fn lock(path: &Path) -> Result<File, TableError> {
    let unusable = |source| TableError::DataDirectory { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
    let mode = path.metadata().map_err(unusable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let path = path.display();
        let text = format!(
            "{path}: other users of this machine may read this folder (mode {mode:o}); `chmod 700` prevents that"
        );
        terminal::line("dynamodb", &text);
    }
    let file = private_file(&path.join(LOCK_FILE)).map_err(unusable)?;
    // SQLite gives its other files the permissions of this one.
    private_file(&path.join(DATABASE_FILE)).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TableError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

/// Opens a file and makes sure that only its owner may read or write it.
pub(crate) fn private_file(path: &Path) -> io::Result<File> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Creates the table, or checks that the existing one has the same definition. Then enables its time to live.
fn add(database: &Database, table: &Table, data_dir: &Path) -> Result<(), TableError> {
    let invalid = |reason: String| TableError::Definition {
        logical_id: table.logical_id.clone(),
        reason: reason.trim_start_matches("VALIDATION:").to_owned(),
    };
    let request: CreateTableRequest =
        serde_json::from_value(table.create_table.clone()).map_err(|error| invalid(error.to_string()))?;
    let table_name = request.table_name.clone();

    match database.describe_table(DescribeTableRequest { table_name: table_name.clone() }) {
        Err(DynoxideError::ResourceNotFoundException(_)) => {
            database.create_table(request).map_err(|error| invalid(error.to_string()))?;
        }
        Err(error) => return Err(invalid(error.to_string())),
        Ok(description) => {
            let existing = serde_json::to_value(description.table).map_err(|error| invalid(error.to_string()))?;
            let changed = |part: &&&str| sorted(&existing[**part]) != sorted(&table.create_table[**part]);
            if let Some(part) = MUST_MATCH.iter().find(changed) {
                return Err(TableError::Changed { path: data_dir.to_owned(), table_name, part });
            }
        }
    }

    if let Some(attribute) = &table.ttl_attribute {
        let specification = TimeToLiveSpecification { attribute_name: attribute.clone(), enabled: true };
        let request = UpdateTimeToLiveRequest { table_name, time_to_live_specification: specification };
        database.update_time_to_live(request).map_err(|error| invalid(error.to_string()))?;
    }
    Ok(())
}

/// Returns the value with its lists sorted. The order of attribute definitions does not matter, and in a key schema
/// each type occurs once.
fn sorted(value: &Value) -> Value {
    let mut value = value.clone();
    if let Value::Array(items) = &mut value {
        items.sort_by_key(Value::to_string);
    }
    value
}

async fn sweep_regularly(database: &Database) -> Infallible {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let database = database.clone();
        match tokio::task::spawn_blocking(move || database.sweep_ttl()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => terminal::line("dynamodb", &format!("expired items stay: {error}")),
            Err(error) => terminal::line("dynamodb", &format!("expired items stay: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    fn events() -> Table {
        Table {
            logical_id: "EventsTable".to_owned(),
            create_table: json!({
                "TableName": "chat-dev-events",
                "AttributeDefinitions": [
                    {"AttributeName": "topic", "AttributeType": "S"},
                    {"AttributeName": "id", "AttributeType": "S"},
                ],
                "KeySchema": [
                    {"AttributeName": "topic", "KeyType": "HASH"},
                    {"AttributeName": "id", "KeyType": "RANGE"},
                ],
                "BillingMode": "PAY_PER_REQUEST",
                "StreamSpecification": {"StreamEnabled": true, "StreamViewType": "NEW_IMAGE"},
            }),
            ttl_attribute: Some("ttl".to_owned()),
        }
    }

    /// Calls the API like an SDK. Returns status line, headers and body.
    async fn call(address: SocketAddr, operation: &str, body: &Value) -> String {
        let body = body.to_string();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Type: application/x-amz-json-1.0\r\nX-Amz-Target: DynamoDB_20120810.{operation}\r\n\
             X-Amz-Date: 20260101T000000Z\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/dynamodb/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    /// Serves the tables, makes the calls, shuts down, and returns the responses.
    async fn serve_calls(tables: Tables, calls: &[(&str, Value)]) -> Vec<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(tables.serve(listener, async { drop(stopped.await) }));
        let mut responses = Vec::new();
        for (operation, body) in calls {
            responses.push(call(address, operation, body).await);
        }
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
        responses
    }

    #[tokio::test]
    async fn an_item_put_over_http_can_be_read_back() {
        let tables = Tables::open(None, &[events()]).unwrap();
        let item = json!({"topic": {"S": "general"}, "id": {"S": "1"}, "data": {"S": "hello"}});
        let put = json!({"TableName": "chat-dev-events", "Item": item});
        let get = json!({"TableName": "chat-dev-events", "Key": {"topic": {"S": "general"}, "id": {"S": "1"}}});
        let responses = serve_calls(tables, &[("PutItem", put), ("GetItem", get)]).await;
        assert!(responses[0].starts_with("HTTP/1.1 200"), "{}", responses[0]);
        assert!(responses[1].contains(r#""data":{"S":"hello"}"#), "{}", responses[1]);
    }

    #[tokio::test]
    async fn tables_and_items_survive_in_a_data_directory() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        let item = json!({"topic": {"S": "general"}, "id": {"S": "1"}, "data": {"S": "hello"}});
        let put = json!({"TableName": "chat-dev-events", "Item": item});
        serve_calls(Tables::open(Some(&data_dir), &[events()]).unwrap(), &[("PutItem", put)]).await;

        let tables = Tables::open(Some(&data_dir), &[events()]).unwrap();
        let scan = json!({"TableName": "chat-dev-events"});
        let ttl = json!({"TableName": "chat-dev-events"});
        let responses = serve_calls(tables, &[("Scan", scan), ("DescribeTimeToLive", ttl)]).await;
        assert!(responses[0].contains(r#""data":{"S":"hello"}"#), "{}", responses[0]);
        assert!(responses[1].contains(r#""TimeToLiveStatus":"ENABLED""#), "{}", responses[1]);
    }

    #[test]
    fn expired_items_are_swept() {
        let tables = Tables::open(None, &[events()]).unwrap();
        let item = json!({"topic": {"S": "general"}, "id": {"S": "1"}, "ttl": {"N": "1700000000"}});
        let put = serde_json::from_value(json!({"TableName": "chat-dev-events", "Item": item})).unwrap();
        tables.database.put_item(put).unwrap();
        assert_eq!(tables.database.sweep_ttl().unwrap(), 1);
    }

    /// Returns the first column of every row.
    fn query(database: &Database, sql: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("copy.sqlite");
        database.vacuum_into(file.to_str().unwrap()).unwrap();
        let storage = Storage::new(file.to_str().unwrap()).unwrap();
        let mut statement = storage.conn().prepare(sql).unwrap();
        let column = statement.column_count() - 1;
        statement.query_map([], |row| row.get::<_, String>(column)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn the_next_sequence_number_is_found_by_an_index() {
        let directory = tempfile::tempdir().unwrap();
        for data_dir in [None, Some(directory.path())] {
            let tables = Tables::open(data_dir, &[events()]).unwrap();
            // This is the engine's query in `next_stream_sequence_number`.
            let plan = query(
                &tables.database,
                "EXPLAIN QUERY PLAN SELECT COALESCE(MAX(CAST(sequence_number AS INTEGER)), 0) + 1 \
                 FROM _stream_records WHERE table_name = 'chat-dev-events'",
            );
            assert!(plan.iter().any(|step| step.contains("switchboard_stream_records")), "{plan:?}");
        }
    }

    #[test]
    fn stream_records_older_than_24_h_are_trimmed_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(DATABASE_FILE);
        let tables = Tables::open(Some(directory.path()), &[events()]).unwrap();
        for id in ["old", "new"] {
            let item = json!({"topic": {"S": "general"}, "id": {"S": id}});
            let put = json!({"TableName": "chat-dev-events", "Item": item});
            tables.database.put_item(serde_json::from_value(put).unwrap()).unwrap();
        }
        drop(tables);
        let storage = Storage::new(file.to_str().unwrap()).unwrap();
        let age = "UPDATE _stream_records SET created_at = created_at - 24 * 3600 - 1 WHERE keys_json LIKE '%old%'";
        storage.conn().execute_batch(age).unwrap();
        drop(storage);

        let tables = Tables::open(Some(directory.path()), &[events()]).unwrap();
        let keys = query(&tables.database, "SELECT keys_json FROM _stream_records");
        assert!(matches!(&keys[..], [key] if key.contains("new")), "{keys:?}");
        assert_eq!(query(&tables.database, "SELECT CAST(COUNT(*) AS TEXT) FROM \"chat-dev-events\""), ["2"]);
    }

    #[test]
    fn a_table_that_has_changed_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        drop(Tables::open(Some(directory.path()), &[events()]).unwrap());

        let mut other_key = events();
        other_key.create_table["KeySchema"] = json!([{"AttributeName": "topic", "KeyType": "HASH"}]);
        other_key.create_table["AttributeDefinitions"] = json!([{"AttributeName": "topic", "AttributeType": "S"}]);
        let error = Tables::open(Some(directory.path()), &[other_key]).unwrap_err().to_string();
        let expected = "the table chat-dev-events has another KeySchema than the service defines; delete the directory";
        assert_eq!(error, format!("{}: {expected}", directory.path().display()));

        let mut other_stream = events();
        other_stream.create_table["StreamSpecification"]["StreamViewType"] = json!("KEYS_ONLY");
        let error = Tables::open(Some(directory.path()), &[other_stream]).unwrap_err().to_string();
        assert!(error.contains("has another StreamSpecification"), "{error}");
    }

    #[test]
    fn a_table_that_dynamodb_would_not_create_is_named() {
        let mut table = events();
        table.create_table["KeySchema"] = json!([{"AttributeName": "nope", "KeyType": "HASH"}]);
        let error = Tables::open(None, &[table]).unwrap_err().to_string();
        assert!(error.starts_with("DynamoDB would not create the table EventsTable: "), "{error}");
        assert!(!error.contains("VALIDATION:"), "{error}");
    }

    #[test]
    fn a_data_directory_belongs_to_one_stack_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = Tables::open(Some(directory.path()), &[events()]).unwrap();
        let error = Tables::open(Some(directory.path()), &[events()]).unwrap_err().to_string();
        assert!(error.ends_with("another local stack is using this data directory"), "{error}");
        drop(first);
        Tables::open(Some(directory.path()), &[events()]).unwrap();
    }
}
