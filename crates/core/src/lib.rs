//! What the Switchboard functions share.
//!
//! A function's `main.rs` wires, its `handler.rs` decides, and everything that two of them need is here. The modules
//! in the order in which a message meets them:
//!
//! * [`backend`]: the clients and stores of an execution environment;
//! * [`function`]: the Lambda glue, from the gateway's event to its proxy response;
//! * [`batch`]: the same for a batch of stream records;
//! * [`frame`]: what clients send and receive, as JSON;
//! * [`connection`] and [`topic`]: the names and records that everything else is about;
//! * [`store`] and [`receivers`]: the tables of connections and of subscriptions;
//! * [`publication`]: what goes to whom;
//! * [`publisher`]: fan-out, and what becomes of each receiver;
//! * [`gateway`]: the `@connections` API;
//! * [`rules`] and [`rights`]: what topics can do, and who may do what with them;
//! * [`history`]: the table where topics keep their messages;
//! * [`presence`]: who is in a topic, and what its subscribers were told of that;
//! * [`limits`]: how fast one connection may send;
//! * [`event`]: the table through which backends publish, and unfinished publishes go on;
//! * [`log`]: the lines of a function. An event that goes well writes none;
//! * [`metrics`]: numbers for CloudWatch;
//! * [`error`]: mistakes of clients and faults of ours, kept apart;
//! * [`config`], [`deadline`] and [`clock`]: what an execution environment and an invocation are given.

pub mod backend;
pub mod batch;
pub mod clock;
pub mod config;
pub mod connection;
pub mod deadline;
pub mod error;
pub mod event;
pub mod frame;
pub mod function;
pub mod gateway;
pub mod history;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod pace;
pub mod presence;
pub mod publication;
pub mod publisher;
pub mod receivers;
pub mod rights;
pub mod rules;
#[cfg(test)]
mod scripted;
pub mod store;
pub mod topic;

pub use error::{ClientError, Error, Failure};
