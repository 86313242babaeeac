//! A simulated node as a process of its own: it survives whatever happens to the server.

use std::path::PathBuf;
use std::sync::Arc;

use casemate_server::app::LocalKeys;
use casemate_server::clock::Clock;
use casemate_server::driver::remote;
use casemate_server::driver::sim::{Sim, SimConfig};
use casemate_server::error::Source;
use clap::Args;

/// Options of `casemate sim`.
#[derive(Args)]
pub(crate) struct Simulate {
    /// Socket to listen on, as unix:PATH
    #[arg(long, value_name = "unix:PATH")]
    listen: String,
    /// Where the node keeps its machines; without it they are gone when it ends
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// What the node's timing follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Root key of the cloud, so that guests can open their environment
    #[arg(long, value_name = "FILE")]
    kms: Option<PathBuf>,
    /// Milliseconds that a boot takes
    #[arg(long, default_value_t = 1500)]
    boot_ms: u64,
    /// Milliseconds that a guest takes to go down
    #[arg(long, default_value_t = 500)]
    stop_ms: u64,
}

impl Simulate {
    /// Serves until it is killed.
    pub(crate) async fn run(self) -> Result<(), Source> {
        let path = self.listen.strip_prefix("unix:").ok_or("--listen should be unix:PATH")?;
        let clock = Clock::system();
        let keys = match &self.kms {
            None => None,
            Some(file) => {
                let kms = crate::cloud::root_keys(file, &clock)?;
                Some(Arc::new(LocalKeys(kms)) as Arc<dyn casemate_server::driver::GuestKeys>)
            }
        };
        let config =
            SimConfig { seed: self.seed, boot_ms: self.boot_ms, stop_ms: self.stop_ms, ..SimConfig::node(1) };
        let sim = Sim::new(config, clock, keys, self.state)?;
        let _ = std::fs::remove_file(path);
        let listener = tokio::net::UnixListener::bind(path)?;
        Ok(remote::serve(sim, listener).await?)
    }
}
