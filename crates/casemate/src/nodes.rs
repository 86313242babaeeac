//! The nodes of a cloud on this machine, as `--nodes` names them.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use casemate_server::app::{LocalKeys, NewNode};
use casemate_server::clock::Clock;
use casemate_server::driver::qemu::{Accel, Qemu, QemuConfig};
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
    /// One that runs real machines on this host.
    Qemu(QemuOptions),
}

/// What `--nodes qemu,KEY=VALUE,…` decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct QemuOptions {
    accel: Accel,
    program: Option<PathBuf>,
    os_images: Option<PathBuf>,
}

impl FromStr for QemuOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for option in text.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("accel", value)) => options.accel = value.parse()?,
                Some(("program", value)) => options.program = Some(value.into()),
                Some(("os-images", value)) => options.os_images = Some(value.into()),
                _ => {
                    return Err(format!(
                        "`{option}` should be accel=auto, accel=kvm, accel=tcg, os-images=DIR or program=PATH"
                    ));
                }
            }
        }
        Ok(options)
    }
}

impl FromStr for Nodes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("sim=unix:") {
            return Ok(Self::Remote(path.into()));
        }
        match text.strip_prefix("sim:").map(str::parse) {
            Some(Ok(count @ 1..=100)) => Ok(Self::Sim(count)),
            _ => match text.strip_prefix("qemu") {
                Some(options) if options.is_empty() || options.starts_with(',') => {
                    options.parse().map(Self::Qemu)
                }
                _ => Err("should be sim:N with N from 1 to 100, sim=unix:PATH, or qemu".into()),
            },
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
            Self::Qemu(options) => {
                let usual = QemuConfig::in_data(data);
                let config = QemuConfig {
                    accel: options.accel,
                    program: options.program.clone().unwrap_or(usual.program),
                    os_images: options.os_images.clone().map_or(usual.os_images, |folder| vec![folder]),
                    ..usual
                };
                let address = config.name.clone();
                let keys: Arc<LocalKeys> = Arc::clone(keys);
                let qemu = Qemu::open(config, clock.clone(), Some(keys))?;
                Ok(vec![NewNode { address, driver: Arc::new(qemu), faults: None }])
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

/// Brings container images into the data folder of a server.
#[cfg(feature = "client")]
pub(crate) fn import_images(from: casemate_cli::ImagesFrom) -> Result<Vec<(String, String)>, String> {
    use casemate_server::driver::images::{ImageStore, Reference};

    let name = from.name.map(|name| name.parse::<Reference>()).transpose()?;
    let folder = QemuConfig::in_data(&from.data).images;
    let store = ImageStore::open(folder.clone()).map_err(|error| format!("{}: {error}", folder.display()))?;
    let images = store.import(&from.path, name.as_ref()).map_err(|error| error.to_string())?;
    Ok(images.into_iter().map(|(name, digest)| (name.to_string(), digest)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named() {
        let nodes = |text: &str| text.parse::<Nodes>();
        assert!(matches!(nodes("sim:2"), Ok(Nodes::Sim(2))));
        assert!(matches!(nodes("sim=unix:/a,b"), Ok(Nodes::Remote(_))));
        let Ok(Nodes::Qemu(options)) = nodes("qemu,accel=tcg,os-images=a/b") else { panic!("it is one") };
        assert_eq!((options.accel, options.os_images), (Accel::Tcg, Some("a/b".into())));
        assert!(matches!(nodes("qemu"), Ok(Nodes::Qemu(options)) if options == QemuOptions::default()));
        for text in ["", "sim:0", "sim:101", "qemu:1", "qemus", "qemu,accel=xen", "qemu,other=1"] {
            assert!(nodes(text).is_err(), "{text}");
        }
    }
}
