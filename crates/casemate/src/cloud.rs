//! `dev` and `serve`: a cloud in this process.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use casemate_kms::RootKeys;
use casemate_server::app::LocalKeys;
use casemate_server::auth;
use casemate_server::clock::Clock;
use casemate_server::config::{Config, Settings};
use casemate_server::driver::qemu::Qemu;
use casemate_server::error::Source;
use casemate_server::serve::{self, Server, Start};
use casemate_server::store::Durability;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::dev_chain::ChainOptions;
use crate::keys;
use crate::nodes::{Machines, Nodes};

/// Where `dev` and `serve` listen unless they are told.
const DEFAULT_LISTEN: &str = "127.0.0.1:8440";

/// How long machines may take to shut down when `dev` ends.
const MACHINES_STOP: Duration = Duration::from_secs(10);

/// Options of `casemate dev`.
#[derive(Args)]
pub(crate) struct Dev {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = DEFAULT_LISTEN, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where everything is kept; started again on it, it is the same cloud with the same key
    #[arg(long, default_value = ".casemate", value_name = "DIR")]
    data: PathBuf,
    /// Where CVMs run: qemu for real machines on this host (qemu,accel=tcg for emulated ones, qemu,os-images=DIR for OS
    /// images from there), sim:N for so many simulated nodes, auto for real machines where QEMU and an OS image are found
    #[arg(long, default_value = "auto", value_name = "NODES")]
    nodes: Nodes,
    /// Leave real machines running when the cloud stops; it finds them again. Otherwise they are shut down, and started with it
    #[arg(long)]
    leave_running: bool,
    #[command(flatten)]
    chain: ChainOptions,
    /// Deploy an example app and update it once
    #[arg(long)]
    demo: bool,
}

impl Dev {
    /// Runs until it is told to stop.
    pub(crate) async fn run(self) -> Result<(), Source> {
        log_to_stderr(if self.demo { "warn" } else { "info" });
        if !self.listen.ip().is_loopback() {
            eprintln!(
                "WARNING: {} can be reached from other machines. `casemate dev` is for this one: its key lies in a file.",
                self.listen
            );
        }
        let clock = Clock::system();
        let mut config = Config { dev: true, public_url: String::new(), ..Config::default() };
        let mut chain = self.chain.open(&self.data, &mut config).await?;
        let (server, machines) =
            start(&self.data, self.listen, &self.nodes, clock.clone(), config, Durability::Full).await?;
        let url = server.url();
        let env = self.data.join("dev.env");
        let key = dev_key(&server, &clock, &env).await?;
        let (mut more, mut told) = (String::new(), String::new());
        if let Some(chain) = &mut chain {
            chain.allow_images(&server.app).await?;
            (more, told) = (chain.env(), chain.told(&env, &self.compose_file()));
        }
        write_env(&env, &format!("{url}/api/v1"), &key, &more)?;
        say(format_args!(
            "Casemate {} is running.\n\n  API        {url}/api/v1\n  Reference  {url}/docs\n  Key        in {} (source it, and any \
             client works)\n  CVMs       {}{told}",
            env!("CARGO_PKG_VERSION"),
            env.display(),
            machines.told
        ));
        let demo = async {
            if self.demo {
                demo(&url, &key, &env, machines.qemu.as_ref()).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = demo => {}
            stopped = told_to_stop() => stopped?,
        }
        server.stop().await;
        if let Some(qemu) = machines.qemu.filter(|_| !self.leave_running) {
            qemu.shut_down(MACHINES_STOP).await;
        }
        Ok(())
    }

    /// A compose file to begin with: that of the example, if there is one.
    fn compose_file(&self) -> PathBuf {
        #[cfg(feature = "client")]
        if self.demo {
            return self.data.join(crate::demo::EXAMPLE);
        }
        "docker-compose.yml".into()
    }
}

/// How this program is called from here: by its name if a shell finds it, else by its path.
pub(crate) fn program() -> String {
    const NAME: &str = "casemate";
    let Ok(exe) = std::env::current_exe() else { return NAME.to_owned() };
    let found = std::env::var_os("PATH").is_some_and(|path| {
        let first = std::env::split_paths(&path).map(|folder| folder.join(NAME)).find(|file| file.is_file());
        first.and_then(|file| file.canonicalize().ok()) == exe.canonicalize().ok()
    });
    let here = std::env::current_dir().unwrap_or_default();
    match (found, exe.strip_prefix(&here)) {
        (true, _) => NAME.to_owned(),
        (false, Ok(path)) => PathBuf::from(path).display().to_string(),
        (false, Err(_)) => exe.display().to_string(),
    }
}

#[cfg(feature = "client")]
async fn demo(url: &str, key: &str, env: &Path, qemu: Option<&Qemu>) {
    if let Err(error) = crate::demo::run(url, key, env, qemu).await {
        eprintln!("error: the example did not work: {error}");
    }
}

#[cfg(not(feature = "client"))]
async fn demo(_: &str, _: &str, _: &Path, _: Option<&Qemu>) {
    eprintln!("This build has no client commands, so there is no example.");
}

/// Options of `casemate serve`. Each wins over the settings file and the environment.
#[derive(Args)]
pub(crate) struct Serve {
    /// Settings, as TOML; `CASEMATE_…` variables win over it. TLS (tls.cert, tls.key), trusted_proxies, limits and how long
    /// things are kept are set there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// URL under which clients reach the server, without a path
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Where CVMs run: sim:N, or qemu for real machines on this host
    #[arg(long, value_name = "NODES")]
    nodes: Option<Nodes>,
    /// What a commit promises. Anything but `full` loses accepted changes with the power: it exists so that the power-loss
    /// test can show that it would notice
    #[arg(long, hide = true, default_value = "full")]
    durability: Durability,
}

impl Serve {
    /// Runs until it is told to stop.
    pub(crate) async fn run(self) -> Result<(), Source> {
        log_to_stderr("info");
        let mut settings = Settings::read(self.config.as_deref(), std::env::vars())?;
        settings.public_url = self.public_url.or(settings.public_url);
        let config = settings.config()?;
        let listen = match (self.listen, &settings.listen) {
            (Some(listen), _) => listen,
            (None, Some(text)) => {
                text.parse().map_err(|_| format!("listen is `{text}`; should be ADDR:PORT"))?
            }
            (None, None) => DEFAULT_LISTEN.parse()?,
        };
        let nodes = match (self.nodes, &settings.nodes) {
            (Some(nodes), _) => nodes,
            (None, Some(text)) => text.parse().map_err(|error| format!("nodes is `{text}`; {error}"))?,
            (None, None) => Nodes::Sim(1),
        };
        let data = self.data.or(settings.data).unwrap_or_else(|| "/var/lib/casemate".into());
        if !listen.ip().is_loopback() && config.tls.is_none() && config.trusted_proxies.is_empty() {
            eprintln!(
                "WARNING: {listen} can be reached from other machines, and API keys would cross the network in the clear. Set \
                 tls.cert and tls.key, or name the proxy that speaks TLS in trusted_proxies."
            );
        }
        let (server, _) = start(&data, listen, &nodes, Clock::system(), config, self.durability).await?;
        // From here on, so that one who sees the line may send the signal.
        let mut hangup = signal(SignalKind::hangup())?;
        say(format_args!("Listening on {}", server.url()));
        let reload = async {
            while hangup.recv().await.is_some() {
                server.reload_tls();
            }
        };
        tokio::select! {
            stopped = told_to_stop() => stopped?,
            () = reload => {}
        }
        server.stop().await;
        Ok(())
    }
}

/// Options of `casemate migrate`.
#[derive(Args)]
pub(crate) struct Migrate {
    /// Data folder of the server, which must not be running
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

impl Migrate {
    /// Brings the store up to date.
    pub(crate) fn run(self) -> Result<(), Source> {
        if !serve::has_store(&self.data) {
            return Err(format!("there is no store in {}", self.data.display()).into());
        }
        let _lock = serve::lock(&self.data)?;
        serve::open_store(&self.data)?;
        println!("The store in {} is up to date.", self.data.display());
        Ok(())
    }
}

async fn start(
    data: &Path,
    listen: SocketAddr,
    nodes: &Nodes,
    clock: Clock,
    config: Config,
    durability: Durability,
) -> Result<(Server, Machines), Source> {
    let lock = serve::lock(data)?;
    let kms = root_keys(&data.join("kms.key"), &clock)?;
    let keys = Arc::new(LocalKeys(Arc::clone(&kms)));
    let (nodes, machines) = nodes.open(data, &clock, &keys)?;
    let start = Start { data: data.to_owned(), lock, listen, nodes, kms, clock, config, durability };
    Ok((Server::start(start).await?, machines))
}

/// The root keys in this file, drawn on first use.
pub(crate) fn root_keys(file: &Path, clock: &Clock) -> Result<Arc<RootKeys>, Source> {
    Ok(Arc::new(RootKeys::load_or_create(file, || clock.random())?))
}

/// The key of the development workspace: the one in `env` if it still works, else a new one.
async fn dev_key(server: &Server, clock: &Clock, env: &Path) -> Result<String, Source> {
    let known = std::fs::read_to_string(env).unwrap_or_default();
    let known = known.lines().find_map(|line| line.strip_prefix("export PHALA_CLOUD_API_KEY="));
    if let Some(key) = known.filter(|key| auth::actor(&server.app, key).is_ok()) {
        return Ok(key.to_owned());
    }
    let account = keys::workspace_ensure(&server.app.store, clock, "dev").await?;
    keys::make(&server.app.store, clock, &account, "dev").await
}

/// Appears whole or not at all, readable by the owner alone.
fn write_env(file: &Path, prefix: &str, key: &str, more: &str) -> Result<(), Source> {
    use std::os::unix::fs::OpenOptionsExt;
    let half = file.with_extension("env.new");
    let _ = std::fs::remove_file(&half);
    let mut open = std::fs::OpenOptions::new();
    let mut out = open.write(true).create_new(true).mode(0o600).open(&half)?;
    write!(out, "export PHALA_CLOUD_API_PREFIX={prefix}\nexport PHALA_CLOUD_API_KEY={key}\n{more}")?;
    out.sync_all()?;
    std::fs::rename(half, file)?;
    Ok(())
}

/// A line for people. Nobody reading it any more is no reason to stop.
fn say(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

async fn told_to_stop() -> Result<(), Source> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn log_to_stderr(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CASEMATE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
}

/// The OpenAPI document of this version.
pub(crate) fn print_openapi() -> Result<(), Source> {
    // Whoever closes the pipe has read enough.
    match writeln!(std::io::stdout(), "{}", casemate_server::http::openapi::text()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}
