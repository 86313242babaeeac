//! The nodes of a cloud on this machine, as `--nodes` names them.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use casemate_server::app::{LocalKeys, NewNode};
use casemate_server::clock::Clock;
use casemate_server::driver::qemu::{Accel, Qemu, QemuConfig};
use casemate_server::driver::remote::RemoteSim;
use casemate_server::driver::sim::{Sim, SimConfig};
use casemate_server::error::Source;

/// Which nodes a cloud has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Nodes {
    /// Real machines if this host can run them, else simulated ones.
    Auto,
    /// So many simulated ones, inside this process.
    Sim(u32),
    /// A simulated one in a process of its own, behind this socket.
    Remote(PathBuf),
    /// One that runs real machines on this host.
    Qemu(QemuOptions),
}

/// What `--nodes qemu,KEY=VALUE,…` decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct QemuOptions {
    accel: Accel,
    program: Option<PathBuf>,
    os_images: Option<PathBuf>,
    image_keep: Option<Duration>,
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
                Some(("image-keep", value)) => {
                    let days: u64 = value.parse().ok().filter(|days| *days <= 3650).ok_or_else(|| {
                        format!("image-keep: `{value}` should be a number of days, at most 3650")
                    })?;
                    options.image_keep = Some(Duration::from_hours(24 * days));
                }
                _ => {
                    return Err(format!(
                        "`{option}` should be accel=auto, accel=kvm, accel=tcg, image-keep=DAYS, os-images=DIR or program=PATH"
                    ));
                }
            }
        }
        Ok(options)
    }
}

impl QemuOptions {
    fn config(&self, data: &Path) -> QemuConfig {
        let usual = QemuConfig::in_data(data);
        QemuConfig {
            accel: self.accel,
            program: self.program.clone().unwrap_or(usual.program),
            os_images: self.os_images.clone().map_or(usual.os_images, |folder| vec![folder]),
            image_keep: self.image_keep.unwrap_or(usual.image_keep),
            ..usual
        }
    }
}

impl FromStr for Nodes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Some(path) = text.strip_prefix("sim=unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Remote(path.into()));
        }
        match text.strip_prefix("sim:").map(str::parse) {
            Some(Ok(count @ 1..=100)) => Ok(Self::Sim(count)),
            _ => match text.strip_prefix("qemu") {
                Some(options) if options.is_empty() || options.starts_with(',') => {
                    options.parse().map(Self::Qemu)
                }
                _ => Err("should be auto, qemu, sim:N with N from 1 to 100, or sim=unix:PATH".into()),
            },
        }
    }
}

/// What the machines of the nodes are.
pub(crate) struct Machines {
    /// The node that runs real ones.
    pub(crate) qemu: Option<Qemu>,
    /// What they are, for people.
    pub(crate) told: String,
}

fn simulated(nodes: Vec<NewNode>) -> (Vec<NewNode>, Machines) {
    (nodes, Machines { qemu: None, told: "are simulated".into() })
}

impl Nodes {
    /// Opens them, with everything that is theirs in `data`. Simulated guests, and those on this host, get their secrets from
    /// `keys`.
    pub(crate) fn open(
        &self,
        data: &Path,
        clock: &Clock,
        keys: &Arc<LocalKeys>,
    ) -> Result<(Vec<NewNode>, Machines), Source> {
        match self {
            Self::Auto => {
                let options = QemuOptions::default();
                match options.config(data).missing() {
                    None => Self::Qemu(options).open(data, clock, keys),
                    Some(missing) => {
                        let (nodes, machines) = Self::Sim(2).open(data, clock, keys)?;
                        Ok((nodes, Machines { told: format!("are simulated: {missing}"), ..machines }))
                    }
                }
            }
            Self::Remote(path) => {
                let node = RemoteSim::connect(path);
                let address = format!("sim=unix:{}", path.display());
                let driver = Arc::new(node.clone());
                Ok(simulated(vec![NewNode { address, driver, faults: Some(Arc::new(node)) }]))
            }
            Self::Qemu(options) => {
                let config = options.config(data);
                let address = config.name.clone();
                let keys: Arc<LocalKeys> = Arc::clone(keys);
                let qemu = Qemu::open(config, clock.clone(), Some(keys))?;
                let nodes = vec![NewNode { address, driver: Arc::new(qemu.clone()), faults: None }];
                Ok((
                    nodes,
                    Machines { qemu: Some(qemu), told: "are real machines on this host, by QEMU".into() },
                ))
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
                let nodes: Result<_, Source> = SimConfig::nodes(*count).into_iter().map(open).collect();
                Ok(simulated(nodes?))
            }
        }
    }
}

/// What can be done with the container images in the data folder of a server.
#[cfg(feature = "client")]
pub(crate) mod container_images {
    use std::path::Path;
    use std::time::Duration;

    use casemate_cli::{Collect, ContainerImages, Freed, ImagesFrom, LocalImage};
    use casemate_server::clock::Clock;
    use casemate_server::driver::images::{self, ImageStore, Mode, Reference};
    use casemate_server::driver::qemu::QemuConfig;

    pub(crate) const HERE: ContainerImages = ContainerImages { import, list, remove, collect };

    /// What is there. Only an import makes it.
    fn open(config: QemuConfig) -> Result<ImageStore, String> {
        if !config.images.is_dir() {
            return Err(format!(
                "there are no container images in {}; --data names the data folder of a server",
                config.images.display()
            ));
        }
        make(config)
    }

    fn make(config: QemuConfig) -> Result<ImageStore, String> {
        let failed = |error| format!("{}: {error}", config.images.display());
        config.image_store(Clock::system()).map_err(failed)
    }

    fn import(from: ImagesFrom) -> Result<Vec<(String, String)>, String> {
        let name = from.name.map(|name| name.parse::<Reference>()).transpose()?;
        let images = make(QemuConfig::in_data(&from.data))?.import(&from.path, name.as_ref());
        let images = images.map_err(|error| error.to_string())?;
        Ok(images.into_iter().map(|(name, digest)| (name.to_string(), digest)).collect())
    }

    fn list(data: &Path) -> Result<Vec<LocalImage>, String> {
        let images = open(QemuConfig::in_data(data))?.shown().map_err(|error| error.to_string())?;
        let local = |images::Shown { name, digest, bytes }| LocalImage { name, digest, bytes };
        Ok(images.into_iter().map(local).collect())
    }

    fn remove(data: &Path, name: &str) -> Result<Freed, String> {
        told(open(QemuConfig::in_data(data))?.remove(&name.parse()?))
    }

    fn collect(data: &Path, what: Collect) -> Result<Freed, String> {
        let image_keep = Duration::from_hours(24 * u64::from(what.keep_days));
        let store = open(QemuConfig { image_keep, ..QemuConfig::in_data(data) })?;
        told(store.collect(if what.dry_run { Mode::DryRun } else { Mode::Do }))
    }

    fn told(freed: images::Result<images::Freed>) -> Result<Freed, String> {
        let images::Freed { bytes, names } = freed.map_err(|error| error.to_string())?;
        Ok(Freed { bytes, names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named() {
        let nodes = |text: &str| text.parse::<Nodes>();
        assert_eq!(nodes("auto"), Ok(Nodes::Auto));
        assert_eq!(nodes("sim:2"), Ok(Nodes::Sim(2)));
        assert_eq!(nodes("sim=unix:/a,b"), Ok(Nodes::Remote("/a,b".into())));
        let options =
            QemuOptions { accel: Accel::Tcg, os_images: Some("a/b".into()), ..QemuOptions::default() };
        assert_eq!(nodes("qemu,accel=tcg,os-images=a/b"), Ok(Nodes::Qemu(options)));
        assert_eq!(nodes("qemu"), Ok(Nodes::Qemu(QemuOptions::default())));
        let kept = QemuOptions { image_keep: Some(Duration::from_hours(48)), ..QemuOptions::default() };
        assert_eq!(nodes("qemu,image-keep=2"), Ok(Nodes::Qemu(kept)));
        for text in [
            "qemu,image-keep=2d",
            "",
            "sim:0",
            "sim:101",
            "qemu:1",
            "qemus",
            "qemu,accel=xen",
            "qemu,other=1",
        ] {
            assert!(nodes(text).is_err(), "{text}");
        }
    }
}
