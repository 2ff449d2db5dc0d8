//! A small part of SSM: it answers `GetParameter` with the content of files.
//!
//! Every parameter is a SecureString. Permissions follow "Actions, resources, and condition keys for AWS Systems Manager"
//! (Service Authorization Reference): a call needs `ssm:GetParameter` on the parameter. The AWS managed key `aws/ssm` needs no
//! permission of its own. Signatures are verified. Not here: other operations, versions, labels, and keys of customers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::access::Access;
use crate::iam::{ACCOUNT_ID, Callers, Denial};
use crate::lambda::Credentials;
use crate::signature::{self, SignatureError};
use crate::terminal;

/// The parameters that functions may read.
#[derive(Debug)]
pub(crate) struct Parameters {
    /// The file of each name.
    files: BTreeMap<String, PathBuf>,
    region: String,
    callers: Callers,
    credentials: Vec<Credentials>,
    access: Access,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetParameter {
    name: String,
    #[serde(default)]
    with_decryption: bool,
}

/// An error's type and its text.
type Refusal = (&'static str, String);

impl Parameters {
    pub(crate) fn new(
        files: BTreeMap<String, PathBuf>,
        region: &str,
        callers: Callers,
        credentials: Vec<Credentials>,
        access: Access,
    ) -> Self {
        Self { files, region: region.to_owned(), callers, credentials, access }
    }

    /// Serves until the future is dropped.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let router = Router::new().fallback(respond).with_state(Arc::new(self));
        // This never returns: axum tries again after a failed accept.
        let _ = axum::serve(listener, router).await;
    }

    async fn answer(&self, request: Request) -> Result<Value, Refusal> {
        let (parts, body) = request.into_parts();
        let target = parts.headers.get("x-amz-target").map(HeaderValue::as_bytes);
        if target != Some(b"AmazonSSM.GetParameter") {
            return Err(("UnknownOperationException", "The local stack serves only GetParameter".to_owned()));
        }
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let forged = |error: SignatureError| (error.error_type(), error.to_string());
        signature::check_call(&parts, &body, "ssm", &self.credentials).map_err(forged)?;
        let call: GetParameter =
            serde_json::from_slice(&body).map_err(|error| ("SerializationException", error.to_string()))?;
        let path = call.name.trim_start_matches('/');
        let resource = format!("arn:aws:ssm:{}:{ACCOUNT_ID}:parameter/{path}", self.region);
        let access_key_id = signature::access_key_id(&parts.headers, parts.uri.query());
        let denied = |denial: Denial| ("AccessDeniedException", denial.to_string());
        self.callers.check(access_key_id.as_deref(), "ssm:GetParameter", &resource).map_err(denied)?;
        let file = self.files.get(&call.name).ok_or(("ParameterNotFound", String::new()))?;
        let value = std::fs::read_to_string(file).map_err(|error| {
            terminal::line("ssm", &format!("{}: {error}", file.display()));
            ("InternalServerError", "The file of the parameter cannot be read".to_owned())
        })?;
        let value = if call.with_decryption { value } else { "encrypted".to_owned() };
        Ok(json!({"Parameter": {
            "ARN": resource,
            "DataType": "text",
            "Name": call.name,
            "Type": "SecureString",
            "Value": value,
            "Version": 1,
        }}))
    }
}

async fn respond(State(parameters): State<Arc<Parameters>>, request: Request) -> Response {
    let answer = match parameters.access.check(request.headers(), request.uri()) {
        Ok(_) => parameters.answer(request).await,
        Err(stranger) => Err(("AccessDeniedException", stranger.to_string())),
    };
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err((kind @ "InternalServerError", text)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, json!({"__type": kind, "message": text}))
        }
        Err((kind, text)) => (StatusCode::BAD_REQUEST, json!({"__type": kind, "message": text})),
    };
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/x-amz-json-1.1"));
    response
}
