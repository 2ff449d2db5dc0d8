//! A local stack for a Rust WebSocket service: API Gateway, Lambda's Runtime API and DynamoDB in one process.
//!
//! It reads a serverless.yml, starts the service's real function binaries as child processes, and imitates AWS for them
//! and for their clients. It has no knowledge of any particular service.

pub mod access;
pub mod binaries;
pub mod check;
mod duration;
mod dynamodb_proxy;
pub mod faults;
pub mod gateway;
pub mod iam;
pub mod inspector;
pub mod lambda;
mod parameters;
mod schedule;
pub mod service;
mod signature;
pub mod stack;
pub mod stream;
pub mod table;
pub mod terminal;
pub mod tls;
mod trace;
pub mod web;
