//! `switchboard-local`: runs a serverless.yml on this machine.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::BTreeMap;
use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches, Parser};
use switchboard_local::access;
use switchboard_local::binaries;
use switchboard_local::check;
use switchboard_local::faults;
use switchboard_local::gateway::{self, KeySource};
use switchboard_local::lambda;
use switchboard_local::service::{self, Reading, Service, ServiceErrors};
use switchboard_local::stack::{self, Stack};
use switchboard_local::terminal::{self, LogFormat};
use switchboard_local::web;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// mimalloc: a message takes a tenth less CPU time here than with glibc's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The headings of the flags that only `--help-all` shows.
const RARE: [&str; 4] = ["Lambda", "Limits of API Gateway", "Where the behaviour of API Gateway is unknown", "Faults"];

/// Runs the Rust WebSocket service of a serverless.yml on this machine.
///
/// API Gateway, Lambda and DynamoDB are in one process, and the service's real function binaries are behind it.
#[derive(Debug, Parser)]
#[command(name = "switchboard-local", disable_help_flag = true, next_help_heading = "Service")]
struct Arguments {
    /// The service to run [default: serverless.yml, .yaml or .json, template.yaml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say what would run and what is refused, and start nothing.
    ///
    /// It says what is ignored, too. With a refusal the exit code is 1.
    #[arg(long)]
    check: bool,
    /// The stage. It overrides the one that the service names.
    #[arg(long)]
    stage: Option<String>,
    /// The region. It overrides the one that the service names.
    #[arg(long)]
    region: Option<String>,
    /// A value of `${param:NAME}`; may be repeated.
    ///
    /// It overrides the service's.
    #[arg(long, value_name = "NAME=VALUE", value_parser = value)]
    param: Vec<(String, String)>,
    /// A parameter of SSM with the content of a file; may be repeated.
    ///
    /// Functions read the content of the file at that moment. It is a SecureString.
    #[arg(long, value_name = "NAME=FILE", value_parser = parameter)]
    parameter: Vec<(String, PathBuf)>,
    /// Keep the tables in this folder, not in memory.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How many shards the stream of each table has.
    #[arg(long, default_value = "1", value_name = "N", help_heading = RARE[0])]
    shards: NonZeroUsize,

    /// The gateway's port; 0 chooses a free one.
    ///
    /// Clients and calls of @connections use it.
    #[arg(long, default_value_t = 3001, help_heading = "Ports")]
    port: u16,
    /// DynamoDB's port; 0 chooses a free one.
    #[arg(long, default_value_t = 8000, value_name = "PORT", help_heading = "Ports")]
    dynamodb_port: u16,
    #[command(flatten)]
    access: access::Settings,
    #[command(flatten)]
    web: web::Settings,

    /// The folder of the functions' binaries [default: that of cargo].
    ///
    /// Each is named like its `handler`, or in a folder of that name. The default is `target/debug`, `target/lambda` and
    /// `target/release` of the service, and the folder of this program.
    #[arg(long, value_name = "DIR", help_heading = "Functions")]
    binaries: Option<PathBuf>,
    /// A variable for every function; may be repeated.
    ///
    /// It overrides the service's. Without `=VALUE` the value comes from this program's own environment. Use that for
    /// secrets: every user of this machine can see arguments.
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = variable, help_heading = "Functions")]
    env: Vec<(String, String)>,
    /// Check no permissions: every function may do everything.
    #[arg(long, help_heading = "Functions")]
    no_iam: bool,
    /// The most execution environments of one function at a time. Further events wait.
    #[arg(long, default_value_t = 16, value_name = "N", help_heading = RARE[0])]
    max_environments: usize,
    #[command(flatten)]
    lambda: lambda::Settings,

    /// How the terminal shows what functions log.
    ///
    /// `pretty` is in columns for people, without metrics, and `json` is as they wrote it.
    #[arg(long, value_enum, default_value_t = LogFormat::Pretty, value_name = "FORMAT", help_heading = "Terminal")]
    log_format: LogFormat,
    /// A query to add to the address that is printed, such as `userId=1`.
    #[arg(long, value_name = "QUERY", help_heading = "Terminal")]
    query: Option<String>,
    /// Print this help.
    #[arg(long, short, action = ArgAction::HelpShort, help_heading = "Terminal")]
    help: Option<bool>,
    /// Print every flag: also limits, faults, and behaviour of AWS that is unknown.
    #[arg(long, help_heading = "Terminal")]
    help_all: bool,

    #[command(flatten)]
    gateway: gateway::Settings,
    #[command(flatten)]
    faults: faults::Settings,
}

impl Arguments {
    /// Returns the command line, whose help has only the flags that are often needed.
    fn short() -> Command {
        let is_rare = |argument: &Arg| argument.get_help_heading().is_some_and(|heading| RARE.contains(&heading));
        Self::command().mut_args(|argument| if is_rare(&argument) { argument.hide(true) } else { argument })
    }
}

/// Returns the variables for `${env:…}` in a serverless.yml.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("expected NAME=VALUE or NAME".to_owned()),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => match environment().remove(text) {
            Some(value) => Ok((text.to_owned(), value)),
            None => Err(format!("the environment has no variable {text}, or its value is not text")),
        },
    }
}

fn value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Returns the file that the framework would read, else the one that SAM would read.
fn default_config() -> PathBuf {
    let names = ["yml", "yaml", "json", "ts", "js"].map(|extension| PathBuf::from(format!("serverless.{extension}")));
    let templates = ["template.yaml", "template.yml"].map(PathBuf::from);
    let [default, ..] = &names;
    names.iter().chain(&templates).find(|name| name.is_file()).unwrap_or(default).clone()
}

/// The value is in a file, because every user of this machine can see arguments.
fn parameter(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("expected NAME=FILE")?;
    let file = PathBuf::from(file);
    if file.is_file() { Ok((name.to_owned(), file)) } else { Err(format!("there is no file {}", file.display())) }
}

#[tokio::main]
async fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        terminal::error(&format!("switchboard-local: {panic}"));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            backtrace.to_string().lines().for_each(terminal::error);
        }
    }));
    let matches = Arguments::short().get_matches();
    match run(Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())).await {
        Ok(code) => code,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            text.lines().for_each(|line| terminal::error(&format!("switchboard-local: {line}")));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    if arguments.help_all {
        Arguments::command().render_long_help().to_string().lines().for_each(terminal::plain);
        return Ok(ExitCode::SUCCESS);
    }
    let variables: BTreeMap<_, _> = arguments.env.into_iter().collect();
    let service_settings = service::Settings {
        stage: arguments.stage,
        region: arguments.region,
        parameters: arguments.param.into_iter().collect(),
        environment: environment(),
        variables: variables.clone(),
        no_iam: arguments.no_iam,
    };
    let config = arguments.config.unwrap_or_else(default_config);
    let reading = Reading::of(&config, &service_settings);
    let binaries = match arguments.binaries {
        Some(folder) => vec![folder],
        None => binaries::default_folders(&std::env::current_exe()?, &config),
    };
    if arguments.check {
        check::describe(&reading, &binaries).iter().for_each(|line| terminal::plain(line));
        return Ok(if reading.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let service = match reading.service {
        Some(service) if reading.refused.is_empty() => service,
        _ => {
            // An ignored key may be the reason for what is missing.
            reading.ignored.iter().for_each(|part| terminal::line("service", &part.to_string()));
            return Err(ServiceErrors(reading.refused).into());
        }
    };
    terminal::set_up(arguments.log_format, service.functions.keys().map(String::as_str));
    let settings = stack::Settings {
        port: arguments.port,
        dynamodb_port: arguments.dynamodb_port,
        data_dir: arguments.data_dir,
        binaries,
        max_environments: arguments.max_environments,
        shards: arguments.shards.get(),
        parameters: arguments.parameter.into_iter().collect(),
        web: arguments.web,
        access: arguments.access,
        lambda: arguments.lambda,
        gateway: arguments.gateway,
        faults: arguments.faults,
        environment: variables,
    };
    let stack = Stack::new(&service, &settings).await?;
    // A signal counts from here on: who reads that the stack is ready may end it at once.
    let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    announce(&service, &stack, &settings, arguments.query.as_deref());
    for part in reading.ignored {
        terminal::line("service", &part.to_string());
    }
    stack.run(ended(interrupt, terminate)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Resolves at Ctrl-C or at a SIGTERM. A second Ctrl-C ends the process at once.
async fn ended(mut interrupt: Signal, mut terminate: Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tokio::spawn(async move {
        if interrupt.recv().await.is_some() {
            std::process::exit(130);
        }
    });
}

/// Prints the commands to paste.
fn announce(service: &Service, stack: &Stack, settings: &stack::Settings, query: Option<&str>) {
    let Service { name, api, .. } = service;
    let stage = &api.stage;
    let gateway = stack.gateway_address.port();
    let dynamodb = stack.dynamodb_address.port();
    let tables = service.tables.iter().filter_map(|table| table.create_table["TableName"].as_str());
    terminal::plain(&format!("{name}, stage {stage}"));
    for (function, binary) in &stack.binaries {
        terminal::plain(&format!("  {function}: {}", binary.display()));
    }
    terminal::plain("");
    if let Some(address) = stack.web_address {
        let port = address.port();
        if settings.web.web.is_some() {
            terminal::plain(&format!("  http://localhost:{port}"));
        }
        terminal::plain(&format!("  http://localhost:{port}/inspect"));
        terminal::plain("");
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let path = Some(api.paths.primary()).filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
    let key = api.api_keys.as_ref().filter(|keys| keys.source == KeySource::Header);
    let key = key.and_then(|keys| keys.keys.first()).map(|key| format!("-H 'x-api-key: {}' ", key.value));
    terminal::plain(&format!("  wscat {}-c 'ws://localhost:{gateway}{path}{query}'", key.unwrap_or_default()));
    for table in tables {
        let endpoint = format!("http://localhost:{dynamodb}");
        terminal::plain(&format!("  aws dynamodb scan --endpoint-url {endpoint} --table-name {table}"));
    }
    for text in ["", "Ctrl-C stops everything.", ""] {
        terminal::plain(text);
    }
    if let Some(host) = settings.access.host {
        let others = "other machines may connect, send messages, post to connections and close them";
        terminal::line("gateway", &format!("--host {host}: {others}"));
    }
    for excess in service.beyond_quotas(&settings.gateway.limits) {
        terminal::line("service", &excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_fits_on_a_screen_and_names_the_one_with_every_flag() {
        let help = Arguments::short().render_help().to_string();
        assert!(help.lines().count() <= 45, "{help}");
        let long: Vec<_> = help.lines().filter(|line| line.chars().count() > 120).collect();
        assert!(long.is_empty(), "{long:#?}");
        assert!(help.contains("--help-all") && help.contains("--debug ") && !help.contains("--frame-limit"), "{help}");
        let all = Arguments::command().render_long_help().to_string();
        for argument in Arguments::command().get_arguments() {
            let flag = format!("--{}", argument.get_long().unwrap());
            assert!(all.contains(&flag), "{flag}");
            let heading = argument.get_help_heading();
            let is_short = help.split_whitespace().any(|word| word == flag);
            assert_eq!(is_short, !RARE.contains(&heading.unwrap()), "{flag}");
        }
    }

    #[test]
    fn every_flag_is_defined_once() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_flag_is_in_the_readme_with_its_default() {
        let readme = include_str!("../README.md");
        for argument in Arguments::command().get_arguments() {
            let Some(flag) = argument.get_long() else { continue };
            let line = readme.lines().find(|line| line.starts_with(&format!("| `--{flag}")));
            let line = line.unwrap_or_else(|| panic!("no line for --{flag}"));
            let defaults = argument.get_default_values().iter().filter_map(|value| value.to_str());
            for default in defaults.filter(|default| !["", "false"].contains(default)) {
                assert!(line.contains(&format!("`{default}`")), "{line}: not {default}");
            }
        }
    }
}
