//! The whole stack: DynamoDB, the functions, and the two parts that invoke functions: the gateway and event source
//! mappings.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::access::{self, Access};
use crate::binaries;
use crate::dynamodb_proxy::DynamodbProxy;
use crate::faults::{self, Faults};
use crate::gateway::{self, Gateway, Integration};
use crate::iam::{Caller, Callers};
use crate::inspector::{self, Inspector};
use crate::lambda::{self, Function, OrphanGuard};
use crate::parameters::Parameters;
use crate::schedule;
use crate::service::{self, LogFormat, Service};
use crate::stream::{Mappings, StreamError};
use crate::table::{TableError, Tables};
use crate::tls::Authority;
use crate::web::{self, Web};

/// The time-outs of a function that somebody debugs, and those of the gateway then.
const DEBUG_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The settings of a stack that are not in the serverless.yml.
#[derive(Debug)]
pub struct Settings {
    /// The gateway's port; 0 chooses a free one.
    pub port: u16,
    /// DynamoDB's port; 0 chooses a free one.
    pub dynamodb_port: u16,
    /// The folder in which DynamoDB keeps its tables. Without it they are in memory.
    pub data_dir: Option<PathBuf>,
    /// The folders in which the functions' binaries may be.
    pub binaries: Vec<PathBuf>,
    /// The most execution environments of one function at a time.
    pub max_environments: usize,
    /// How many shards the stream of each table is taken to have.
    pub shards: usize,
    /// The file of each parameter of SSM.
    pub parameters: BTreeMap<String, PathBuf>,
    /// The settings of the web port.
    pub web: web::Settings,
    /// The settings of access.
    pub access: access::Settings,
    /// The settings of Lambda.
    pub lambda: lambda::Settings,
    /// The settings of the gateway.
    pub gateway: gateway::Settings,
    /// The settings of faults.
    pub faults: faults::Settings,
    /// Variables for every function. They override all others except Lambda's own.
    pub environment: BTreeMap<String, String>,
}

/// The reason why a stack does not start, or why it stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is taken or may not be used.
    #[error("port {port} cannot be used: stop the program that listens there, or choose another port with {flag}")]
    Listen {
        /// The port.
        port: u16,
        /// The flag that changes it.
        flag: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The address of `--host` cannot be used.
    #[error("--host {host} cannot be used: it is not an address of this machine")]
    Host {
        /// The address.
        host: IpAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// `--debug` names no function of the service.
    #[error("--debug {function}: there is no such function; there are {known}")]
    Debug {
        /// The name.
        function: String,
        /// The functions' keys.
        known: String,
    },
    /// The folder of `--web` is missing or is no folder.
    #[error("{}: there is no such folder for --web", path.display())]
    Web {
        /// The folder.
        path: PathBuf,
    },
    /// Functions have no binary.
    #[error(transparent)]
    Binaries(#[from] binaries::Missing),
    /// A binary has disappeared.
    #[error(transparent)]
    Function(#[from] lambda::Error),
    /// DynamoDB does not start.
    #[error(transparent)]
    Tables(#[from] TableError),
    /// The certificate for functions cannot be written.
    #[error("the certificate of the gateway cannot be written into the folder for temporary files")]
    Certificate(#[source] io::Error),
    /// A stream cannot be read.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The gateway's listener failed.
    #[error("the gateway stopped")]
    Gateway(#[source] std::io::Error),
}

/// A stack with its ports, tables and functions. It does not serve yet.
#[derive(Debug)]
pub struct Stack {
    gateway: Arc<Gateway>,
    mappings: Mappings,
    functions: Vec<Arc<Function>>,
    /// The functions with a schedule, and its rate.
    schedules: Vec<(Arc<Function>, Duration)>,
    region: String,
    tables: Tables,
    gateway_listeners: Vec<TcpListener>,
    engine_listener: TcpListener,
    /// DynamoDB's proxy for callers that are not functions.
    dynamodb: (DynamodbProxy, TcpListener),
    /// DynamoDB's proxy for functions.
    functions_dynamodb: (DynamodbProxy, TcpListener),
    /// SSM for functions.
    parameters: (Parameters, TcpListener),
    web: Option<Web>,
    /// The gateway's address for programs of this machine.
    pub gateway_address: SocketAddr,
    /// The address of DynamoDB for callers that are not functions.
    pub dynamodb_address: SocketAddr,
    /// The address of the web port, if there is one.
    pub web_address: Option<SocketAddr>,
    /// The binary of each function.
    pub binaries: Vec<(String, PathBuf)>,
}

impl Stack {
    /// Binds the ports, opens the tables and their streams, and looks for the functions' binaries.
    ///
    /// # Errors
    ///
    /// When one of these steps fails.
    pub async fn new(service: &Service, settings: &Settings) -> Result<Self, Error> {
        let binaries = binaries::find_all(service, &settings.binaries)?;
        if let Some(function) = settings.lambda.debug.iter().find(|debugged| !service.functions.contains_key(*debugged))
        {
            let known: Vec<_> = service.functions.keys().map(String::as_str).collect();
            return Err(Error::Debug { function: function.clone(), known: known.join(", ") });
        }
        let mut gateway_settings = settings.gateway.clone();
        if !settings.lambda.debug.is_empty() {
            gateway_settings.limits.integration_timeout = DEBUG_TIME;
        }
        let (gateway_listeners, gateway_address) = listen_gateway(settings.port, settings.access.host).await?;
        let (dynamodb_listener, dynamodb_address) = listen(settings.dynamodb_port, "--dynamodb-port").await?;
        let (functions_listener, functions_address) = listen(0, "--dynamodb-port").await?;
        let (parameters_listener, parameters_address) = listen(0, "--parameter").await?;
        let (engine_listener, engine_address) = listen_hidden().await?;
        let web_listener = listen_web(&settings.web).await?;
        let tables = Tables::open(settings.data_dir.as_deref(), &service.tables)?;

        let mut endpoints = BTreeMap::from([
            ("AWS_ENDPOINT_URL_DYNAMODB".to_owned(), format!("http://{functions_address}")),
            ("AWS_ENDPOINT_URL_SSM".to_owned(), format!("http://{parameters_address}")),
            (
                "AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI".to_owned(),
                format!("http://{gateway_address}{}", service.api.paths.primary()),
            ),
        ]);
        endpoints.extend(settings.environment.clone());
        let guard = Arc::<OrphanGuard>::default();
        let authority = Arc::new(Authority::new().map_err(Error::Certificate)?);
        guard.remove_at_the_end(authority.folder()).map_err(Error::Certificate)?;
        let trust = authority.variables();
        let surroundings =
            Surroundings { endpoints, trust, gateway_host: format!("localhost:{}", gateway_address.port()) };
        let faults = Arc::new(Faults::new(&settings.faults));
        let inspector = Arc::<Inspector>::default();
        // Functions without a reservation share the rest of the account's concurrency.
        let reserved: usize = service.functions.values().filter_map(|function| function.reserved_concurrency).sum();
        let unreserved = Arc::new(Semaphore::new(settings.lambda.account_concurrency.saturating_sub(reserved)));
        let mut functions = BTreeMap::new();
        for ((key, function), (_, binary)) in service.functions.iter().zip(&binaries) {
            let concurrency = function.reserved_concurrency.map(|reserved| Arc::new(Semaphore::new(reserved)));
            let concurrency = concurrency.unwrap_or_else(|| unreserved.clone());
            let function_settings = lambda::FunctionSettings {
                faults: faults.clone(),
                credentials: lambda::Credentials::of(key),
                guard: guard.clone(),
                inspector: inspector.clone(),
                binary: binary.clone(),
                ..function_settings(key, function, service, settings, &surroundings, concurrency)
            };
            functions.insert(key.as_str(), Arc::new(Function::new(function_settings)?));
        }
        let integrations = functions.iter().map(|(&key, function)| {
            let integration: Arc<dyn Integration> = function.clone();
            (key.to_owned(), integration)
        });
        let callers = callers(service);
        let developers = lambda::Credentials::default();
        let of_functions = service.functions.keys().map(|key| lambda::Credentials::of(key));
        let credentials: Vec<_> = of_functions.chain([developers]).collect();
        let gateway_functions = gateway::Functions {
            integrations: integrations.collect(),
            credentials: credentials.clone(),
            callers: callers.clone(),
        };
        let access = Arc::new(Access::new("dynamodb", settings.access.clone(), None));
        let parameters = Parameters::new(
            settings.parameters.clone(),
            &service.region,
            callers.clone(),
            credentials,
            Access::new("ssm", settings.access.clone(), None),
        );
        let proxy = |callers, faults| {
            let (access, inspector) = (access.clone(), inspector.clone());
            DynamodbProxy::new(engine_address, &service.region, callers, faults, access, inspector)
        };
        let functions_dynamodb = proxy(callers, faults.clone());
        let dynamodb = proxy(Callers::default(), Arc::default());
        let api = service.api.clone();
        let gateway = Gateway::new(api, gateway_functions, gateway_settings, settings.access.clone(), faults.clone());
        let gateway = Arc::new(gateway.inspected_by(inspector.clone()).certified_by(authority));
        let mappings = Mappings::open(
            service,
            &functions,
            &tables,
            settings.data_dir.as_deref(),
            &faults,
            &inspector,
            settings.shards,
        )?;
        let parts = inspector::Parts {
            service: service.name.clone(),
            stage: service.api.stage.clone(),
            inspector,
            gateway: gateway.clone(),
            functions: functions.iter().map(|(&key, function)| (key.to_owned(), function.clone())).collect(),
            database: tables.database(),
            tables: table_names(service),
        };
        let web = web_listener
            .map(|(listener, address)| Web::new(listener, address, &settings.web, settings.access.clone(), parts));
        let schedules = service.functions.iter().flat_map(|(key, function)| {
            let schedule = |rate: &Duration| (functions[key.as_str()].clone(), *rate);
            function.schedules.iter().map(schedule).collect::<Vec<_>>()
        });
        let schedules = schedules.collect();
        let functions = functions.into_values().collect();
        Ok(Self {
            schedules,
            region: service.region.clone(),
            gateway,
            mappings,
            functions,
            tables,
            gateway_listeners,
            engine_listener,
            dynamodb: (dynamodb, dynamodb_listener),
            functions_dynamodb: (functions_dynamodb, functions_listener),
            parameters: (parameters, parameters_listener),
            web_address: web.as_ref().map(|web| web.address),
            web,
            gateway_address,
            dynamodb_address,
            binaries,
        })
    }

    /// Serves until `shutdown` resolves. Then it closes the connections, waits for the batches in flight, ends the
    /// functions and stops DynamoDB. The order matters: each part still needs the next one.
    ///
    /// # Errors
    ///
    /// When a server fails.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let (stop, stopped) = oneshot::channel::<()>();
        let engine = tokio::spawn(self.tables.serve(self.engine_listener, async { drop(stopped.await) }));
        let proxies =
            [self.dynamodb, self.functions_dynamodb].map(|(proxy, listener)| tokio::spawn(proxy.serve(listener)));
        let (parameters, parameters_listener) = self.parameters;
        let parameters = tokio::spawn(parameters.serve(parameters_listener));
        let web = self.web.map(|web| tokio::spawn(web.serve()));
        let mappings = self.mappings.start();
        let schedules = self.schedules.into_iter();
        let schedules: Vec<_> =
            schedules.map(|(function, rate)| schedule::start(function, rate, self.region.clone())).collect();
        let served = self.gateway.serve(self.gateway_listeners, shutdown).await;
        schedules.iter().for_each(JoinHandle::abort);
        mappings.shutdown().await;
        for function in &self.functions {
            function.shutdown().await;
        }
        proxies.iter().chain([&parameters]).chain(&web).for_each(JoinHandle::abort);
        drop(stop);
        if let Ok(result) = engine.await {
            result?;
        }
        served.map_err(Error::Gateway)
    }
}

/// Returns the functions by the access key ids with which they sign.
fn callers(service: &Service) -> Callers {
    let caller = |(key, function): (&String, &service::Function)| {
        let caller = Caller { function: key.clone(), session: function.name.clone(), role: function.role.clone() };
        (lambda::Credentials::of(key).access_key_id, caller)
    };
    Callers(service.functions.iter().map(caller).collect())
}

async fn listen(port: u16, flag: &'static str) -> Result<(TcpListener, SocketAddr), Error> {
    bind(Ipv4Addr::LOCALHOST, port).await.map_err(|source| Error::Listen { port, flag, source })
}

/// Binds the gateway's port at both addresses of `localhost`, because clients try either one first, and at `host`.
async fn listen_gateway(port: u16, host: Option<IpAddr>) -> Result<(Vec<TcpListener>, SocketAddr), Error> {
    const IPV6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let addresses = gateway_addresses(host);
    'port: loop {
        let mut listeners = Vec::new();
        let mut chosen = port;
        for &address in &addresses {
            match bind(address, chosen).await {
                Ok((listener, bound)) => {
                    chosen = bound.port();
                    listeners.push(listener);
                }
                // The port is free at one address, and another program has it at this one.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && port == 0 => continue 'port,
                Err(source) if Some(address) == host && source.kind() == io::ErrorKind::AddrNotAvailable => {
                    return Err(Error::Host { host: address, source });
                }
                // Not every machine has IPv6.
                Err(error) if address == IPV6 && error.kind() != io::ErrorKind::AddrInUse => {}
                Err(source) => return Err(Error::Listen { port, flag: "--port", source }),
            }
        }
        return Ok((listeners, SocketAddr::from((Ipv4Addr::LOCALHOST, chosen))));
    }
}

fn gateway_addresses(host: Option<IpAddr>) -> Vec<IpAddr> {
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    match host {
        // Such an address includes those of IPv4.
        Some(host @ IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => vec![host],
        Some(host @ IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => vec![host, loopback[1]],
        _ => loopback.into_iter().chain(host.filter(|host| !loopback.contains(host))).collect(),
    }
}

fn table_names(service: &Service) -> Vec<String> {
    service.tables.iter().filter_map(|table| table.create_table["TableName"].as_str().map(str::to_owned)).collect()
}

/// Binds the web port, if the settings ask for it.
async fn listen_web(settings: &web::Settings) -> Result<Option<(TcpListener, SocketAddr)>, Error> {
    if let Some(path) = settings.web.as_ref().filter(|folder| !folder.is_dir()) {
        return Err(Error::Web { path: path.clone() });
    }
    match settings.port() {
        Some(port) => listen(port, "--web-port").await.map(Some),
        None => Ok(None),
    }
}

/// Listens at an address that a web page does not find, because the engine's own server does not check callers: one of
/// the 16 million addresses of this machine. If there is only one, as on macOS, only the port is hard to find.
async fn listen_hidden() -> Result<(TcpListener, SocketAddr), Error> {
    let address = Ipv4Addr::from_bits(0x7f00_0000 | fastrand::u32(1..0x00ff_ffff));
    match bind(address, 0).await {
        Ok(bound) => Ok(bound),
        Err(_) => listen(0, "--dynamodb-port").await,
    }
}

async fn bind(address: impl Into<IpAddr>, port: u16) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((address.into(), port)).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// What every function finds in its environment.
struct Surroundings {
    /// The endpoints of the stack's parts. They override the variables of the service.
    endpoints: BTreeMap<String, String>,
    /// The files of trusted certificates. The variables of the service override them.
    trust: BTreeMap<String, String>,
    /// The gateway's host and port.
    gateway_host: String,
}

fn function_settings(
    key: &str,
    function: &service::Function,
    service: &Service,
    settings: &Settings,
    Surroundings { endpoints, trust, gateway_host }: &Surroundings,
    concurrency: Arc<Semaphore>,
) -> lambda::FunctionSettings {
    let is_debugged = settings.lambda.debugs(key);
    let mut shared = settings.lambda.clone();
    if is_debugged {
        (shared.no_freeze, shared.init_timeout) = (true, DEBUG_TIME);
    }
    let mut environment = trust.clone();
    // Here the API's host is a port of this machine, with TLS or without.
    let host = format!("{}.execute-api.{}.amazonaws.com", service.api.api_id, service.region);
    let values = function.environment.iter();
    environment.extend(values.map(|(name, value)| (name.clone(), value.replace(&host, gateway_host))));
    // Lambda sets these from a function's logging configuration.
    if function.log_format == LogFormat::Json {
        environment.insert("AWS_LAMBDA_LOG_FORMAT".to_owned(), "JSON".to_owned());
    }
    environment.extend(function.log_level.clone().map(|level| ("AWS_LAMBDA_LOG_LEVEL".to_owned(), level)));
    lambda::FunctionSettings {
        key: key.to_owned(),
        name: function.name.clone(),
        handler: function.handler.clone(),
        binary: PathBuf::new(),
        memory_size_mb: function.memory_size_mb,
        timeout: if is_debugged { DEBUG_TIME } else { function.timeout },
        region: service.region.clone(),
        environment,
        endpoints: endpoints.clone(),
        max_environments: if is_debugged { 1 } else { settings.max_environments },
        concurrency,
        faults: Arc::default(),
        credentials: lambda::Credentials::default(),
        shared,
        guard: Arc::default(),
        inspector: Arc::default(),
        hint: Arc::default(),
    }
}
