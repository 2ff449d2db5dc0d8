//! The environment variables of a function's process, as Lambda
//! [defines](https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html) them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use super::FunctionSettings;
use crate::inspector::Seat;

/// Returns the whole environment of a process. It inherits nothing from the developer's shell.
pub(super) fn variables(
    settings: &FunctionSettings,
    folder: &Path,
    runtime_api: SocketAddr,
    seat: &Seat,
) -> BTreeMap<String, String> {
    let FunctionSettings { name, handler, memory_size_mb, region, .. } = settings;
    let credentials = settings.credentials.clone();
    let log_stream = format!("{}/[$LATEST]{:032x}", jiff::Timestamp::now().strftime("%Y/%m/%d"), fastrand::u128(..));
    let unreserved = [("LANG", "en_US.UTF-8"), ("PATH", "/usr/local/bin:/usr/bin/:/bin:/opt/bin"), ("TZ", ":UTC")];
    let reserved = [
        ("_HANDLER", handler.clone()),
        ("AWS_REGION", region.clone()),
        ("AWS_DEFAULT_REGION", region.clone()),
        ("AWS_LAMBDA_FUNCTION_NAME", name.clone()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory_size_mb.to_string()),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".to_owned()),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".to_owned()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
        ("AWS_LAMBDA_LOG_STREAM_NAME", log_stream),
        ("AWS_ACCESS_KEY_ID", credentials.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key),
        ("AWS_SESSION_TOKEN", seat.session_token(&credentials.session_token)),
        ("AWS_LAMBDA_RUNTIME_API", runtime_api.to_string()),
        ("LAMBDA_TASK_ROOT", folder.display().to_string()),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime".to_owned()),
    ];
    let mut variables: BTreeMap<_, _> =
        unreserved.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    variables.extend(settings.environment.clone());
    variables.extend(settings.endpoints.clone());
    variables.extend(reserved.into_iter().map(|(name, value)| (name.to_owned(), value)));
    variables
}
