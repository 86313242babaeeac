//! `casemate-guest-image PACKAGES AGENT OUT`: makes all OS images and example images below OUT, and says their hashes.
//!
//! PACKAGES is a folder with Debian's packages unpacked, AGENT the static program that becomes process 1.

use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_guest_image::os::{self, Recipe};
use casemate_guest_image::{Result, web};

/// Name, version, and whether it has a shell.
const IMAGES: [(&str, &str, bool); 3] =
    [("casemate", "0.1.0", false), ("casemate-dev", "0.1.0", true), ("casemate", "0.2.0", false)];

fn main() -> std::process::ExitCode {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let result = match &paths[..] {
        [packages, agent, out] => build(packages, agent, out),
        _ => Err("usage: casemate-guest-image PACKAGES AGENT OUT".to_owned()),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn build(packages: &Path, agent: &Path, out: &Path) -> Result<()> {
    let busybox = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| packages.join(path))
        .into_iter()
        .find(|path| path.exists());
    let busybox = busybox.ok_or("no package brought bin/busybox")?;
    let list = Command::new(&busybox)
        .arg("--list")
        .output()
        .map_err(|error| format!("cannot run {}: {error}", busybox.display()))?;
    let applets: Vec<String> = String::from_utf8_lossy(&list.stdout).lines().map(str::to_owned).collect();
    for (name, version, is_dev) in IMAGES {
        let recipe = Recipe {
            packages: packages.to_owned(),
            agent: agent.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
            is_dev,
            applets: applets.clone(),
        };
        println!("{name}-{version} {}", os::build(&recipe, &out.join("images"))?);
    }
    let busybox =
        std::fs::read(&busybox).map_err(|error| format!("cannot read {}: {error}", busybox.display()))?;
    for version in ["1", "2"] {
        let folder = out.join(format!("oci/web-{version}"));
        let _ = std::fs::remove_dir_all(&folder);
        println!("web:{version} {}", web::build(&busybox, &applets, version, &folder)?);
    }
    Ok(())
}
