//! Lambda: functions, their execution environments, and the Runtime API between the two.

use bytes::Bytes;

/// A function and its execution environments.
#[derive(Debug)]
pub struct Function {}

/// Why an invocation has no response.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error_type}: {error_message}")]
pub struct FunctionError {
    /// What the function reported, or `Runtime.ExitError`, `Sandbox.Timedout`, …
    pub error_type: String,
    /// For the log; never shown to a client.
    pub error_message: String,
}

impl Function {
    /// Invokes the function synchronously with `event` and returns its response.
    ///
    /// # Errors
    ///
    /// When the function reported an error, crashed, ran out of time or could not be started.
    pub async fn invoke(&self, event: Bytes) -> Result<Bytes, FunctionError> {
        Ok(event)
    }
}
