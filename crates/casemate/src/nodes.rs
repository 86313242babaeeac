//! The nodes of a cloud on this machine, as `--nodes` names them.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use casemate_server::app::{LocalKeys, NewNode};
use casemate_server::clock::Clock;
use casemate_server::driver::remote::RemoteSim;
use casemate_server::driver::sim::{Sim, SimConfig};
use casemate_server::error::Source;

/// Which nodes a cloud has.
#[derive(Clone, Debug)]
pub(crate) enum Nodes {
    /// So many simulated ones, inside this process.
    Sim(u32),
    /// A simulated one in a process of its own, behind this socket.
    Remote(std::path::PathBuf),
}

impl FromStr for Nodes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("sim=unix:") {
            return Ok(Self::Remote(path.into()));
        }
        match text.strip_prefix("sim:").map(str::parse) {
            Some(Ok(count @ 1..=100)) => Ok(Self::Sim(count)),
            _ => Err("should be sim:N with N from 1 to 100, or sim=unix:PATH".into()),
        }
    }
}

impl Nodes {
    /// The nodes, with their state under `data`.
    pub(crate) fn open(
        &self,
        data: &Path,
        clock: &Clock,
        keys: &Arc<LocalKeys>,
    ) -> Result<Vec<NewNode>, Source> {
        match self {
            Self::Remote(path) => {
                let node = RemoteSim::connect(path);
                let address = format!("sim=unix:{}", path.display());
                Ok(vec![NewNode { address, driver: Arc::new(node.clone()), faults: Some(Arc::new(node)) }])
            }
            Self::Sim(count) => {
                let folder = data.join("nodes");
                std::fs::create_dir_all(&folder)?;
                let open = |config: SimConfig| {
                    let address = format!("sim:{}", config.facts.name);
                    let state = folder.join(format!("{}.json", config.facts.name));
                    let keys: Arc<LocalKeys> = Arc::clone(keys);
                    let sim = Sim::new(config, clock.clone(), Some(keys), Some(state))?;
                    Ok(NewNode { address, driver: Arc::new(sim.clone()), faults: Some(Arc::new(sim)) })
                };
                SimConfig::nodes(*count).into_iter().map(open).collect()
            }
        }
    }
}
