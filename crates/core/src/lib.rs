//! What the Switchboard functions share.
//!
//! A function's `main.rs` wires, its `handler.rs` decides, and everything that two of them need is here. The modules
//! in the order in which a message meets them:
//!
//! * [`function`]: the Lambda glue, from the gateway's event to its proxy response;
//! * [`frame`]: what clients send and receive, as JSON;
//! * [`connection`] and [`topic`]: the names and records that everything else is about;
//! * [`store`]: the tables of connections and of subscriptions;
//! * [`publication`]: what goes to whom;
//! * [`publisher`]: posting frames to connections;
//! * [`event`]: the table through which backends publish, and unfinished publishes go on;
//! * [`metrics`]: numbers for CloudWatch;
//! * [`error`]: mistakes of clients and faults of ours, kept apart;
//! * [`config`] and [`deadline`]: what an execution environment and an invocation are given.

pub mod config;
pub mod connection;
pub mod deadline;
pub mod error;
pub mod event;
pub mod frame;
pub mod function;
pub mod metrics;
pub mod publication;
pub mod publisher;
pub mod store;
pub mod topic;

pub use error::{ClientError, Error, Failure};

/// A call of the SDK makes many small allocations. With this allocator a post takes a fifth less CPU time than with glibc's
/// (`make bench`), of which Lambda gives a small function little, for 8 MB more of memory, of which it has enough.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
