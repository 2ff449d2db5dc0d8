//! Reads a serverless.yml, as far as a local stack needs it.
//!
//! Reading has three steps. Files are included and variables resolved (`variables.rs`). On the way, keys without a
//! meaning on a laptop are dropped and unsupported keys refused (`keys.rs`). The rest is read strictly (`read.rs`). Each
//! step reports its problems and goes on (`findings.rs`), so that one start tells all of them with their places.
//!
//! | part of the file | modules |
//! |---|---|
//! | variables | `variables`, `dotenv` |
//! | templates of SAM | `sam` |
//! | functions and their events | `functions`, `routes`, `streams` |
//! | templates of CloudFormation | `template`, `tables`, `roles`, `websocket`, `api_keys`, `declared` |
//! | names and intrinsic functions of CloudFormation | `generated`, `resources`, `kinds`, `intrinsics` |
//! | places and errors | `key_path`, `error`, `findings` |

mod api_keys;
mod declared;
mod definition;
mod dotenv;
mod error;
mod findings;
mod functions;
mod generated;
mod intrinsics;
mod key_path;
mod keys;
mod kinds;
mod read;
mod resources;
mod roles;
mod routes;
mod sam;
mod schema;
mod shapes;
mod streams;
mod tables;
mod template;
#[cfg(test)]
mod testing;
mod variables;
mod websocket;
mod yaml;

pub use self::definition::{Function, LogFormat, Service, Settings, StartingPosition, StreamMapping, Table};
pub use self::error::{Ignored, Location, ServiceError, ServiceErrors};
pub use self::read::Reading;
