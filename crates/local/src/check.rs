//! `--check`: says what a service would run here, what is ignored and what is refused, and starts nothing.

use std::path::PathBuf;

use crate::binaries;
use crate::service::{Function, Reading, Service};

/// Describes a service, line by line.
#[must_use]
pub fn describe(reading: &Reading, folders: &[PathBuf]) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(service) = &reading.service {
        let Service { name, region, api, functions, idle_functions, tables, .. } = service;
        lines.push(format!("{name}, stage {}, region {region}", api.stage));
        let functions = functions.iter().map(|(key, function)| {
            let binary = match binaries::find(key, function, folders) {
                Some(path) => path.display().to_string(),
                None => "no binary yet".to_owned(),
            };
            format!("{key}: {}: {binary}", invoked_by(service, key, function).join(", "))
        });
        section(&mut lines, "runs", functions.collect());
        let tables = tables.iter().filter_map(|table| table.create_table["TableName"].as_str());
        section(&mut lines, "tables", tables.map(str::to_owned).collect());
        section(&mut lines, "does not run, because nothing invokes it here", idle_functions.iter().cloned().collect());
    }
    section(&mut lines, "ignored", reading.ignored.iter().map(ToString::to_string).collect());
    let refused = reading.refused.iter().map(|error| error.describe());
    section(&mut lines, "refused", refused.collect());
    lines
}

/// Returns what invokes a function.
fn invoked_by(service: &Service, key: &str, function: &Function) -> Vec<String> {
    let routes = service.api.routes.iter().filter(|(_, target)| *target == key).map(|(route, _)| route.clone());
    let authorizer = service.api.authorizer.iter().filter(|authorizer| authorizer.function == key);
    let streams = function.streams.iter().map(|mapping| format!("the stream of {}", mapping.table));
    let schedules = function.schedules.iter().map(|rate| format!("every {}", humantime::format_duration(*rate)));
    routes.chain(authorizer.map(|_| "the authorizer".to_owned())).chain(streams).chain(schedules).collect()
}

fn section(lines: &mut Vec<String>, title: &str, items: Vec<String>) {
    if !items.is_empty() {
        lines.push(format!("{title}:"));
        lines.extend(items.into_iter().map(|item| format!("  {item}")));
    }
}
