//! The node of all CVMs, as a process of its own: what it costs is not the server's.
//!
//! Calls take no time, and a guest that is asked to go down takes an hour. So of any number of accepted updates a few hundred are
//! worked on, each waiting for its guest, and the others wait for those: the first updates, which are not measured, fill that up.
//! What is measured is the accept, not the work that follows, and no worker had to be switched off for it.

use std::io::Write;
use std::path::PathBuf;

use casemate_server::clock::Clock;
use casemate_server::cvm::spec::Booking;
use casemate_server::driver::remote;
use casemate_server::driver::sim::{Sim, SimConfig};
use clap::Args;
use tokio::net::UnixListener;

use crate::{Result, fill};

/// Options of the node.
#[derive(Args)]
pub(crate) struct Options {
    /// Folder for the data folders `running` and `open`
    #[arg(long)]
    folder: PathBuf,
    /// Number of CVMs
    #[arg(long)]
    cvms: usize,
    /// Number of open updates in `open`
    #[arg(long)]
    open: usize,
    /// Socket to listen on
    #[arg(long)]
    listen: PathBuf,
}

/// Fills the folders, says `ready`, and serves until it is killed.
pub(crate) async fn run(options: Options) -> Result<()> {
    let mut config = SimConfig { boot_ms: 0, stop_ms: 3_600_000, call_ms: 0, ..SimConfig::node(1) };
    config.facts.capacity = Booking { vcpu: 1_000_000, memory_mb: 1 << 31, disk_gb: 1 << 30, gpus: 0 };
    let sim = Sim::new(config, Clock::system(), None, None)?;
    let (running, open) = (options.folder.join("running"), options.folder.join("open"));
    fill::fill(&running, &sim, options.cvms).await?;
    fill::copy(&running, &open)?;
    fill::open_updates(&open, options.open).await?;
    let listener = UnixListener::bind(&options.listen)?;
    println!("ready");
    std::io::stdout().flush()?;
    remote::serve(sim, listener).await?;
    Ok(())
}
