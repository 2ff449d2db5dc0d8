//! A local API Gateway: one WebSocket API and its management API.
//!
//! One listener serves both, as one host does on AWS. Clients use `ws://{host}/{stage}`, and callers use
//! `http://{host}/{stage}/@connections/{connectionId}`. Custom domains are further paths of the same listener.
//!
//! The gateway implements "Working with WebSocket APIs" with Lambda proxy integrations, one-way and two-way routes,
//! request models, Lambda authorizers, signed handshakes and API keys. It does not speak TLS.

mod api_key;
mod authorizer;
mod connection;
mod definition;
mod deflate;
mod event;
mod handshake;
mod head;
mod id;
mod inspection;
mod integration;
mod json;
mod management;
mod message;
mod model;
mod order;
mod paths;
mod refusal;
mod route;
mod server;
pub mod settings;
mod socket;
mod state;
mod throttle;
mod upgrade;

pub use self::api_key::{ApiKey, ApiKeys, KeySource};
pub use self::definition::{Authorizer, Definition};
pub use self::integration::{Functions, Integration};
pub use self::model::{Model, RequestModels};
pub use self::paths::Paths;
pub use self::settings::Settings;
pub use self::state::Gateway;
