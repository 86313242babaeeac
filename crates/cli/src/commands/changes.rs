//! What can be said about a CVM, whether it is made or changed.

use std::path::PathBuf;

use casemate_sdk::Patch;
use casemate_sdk::env::EnvVar;
use casemate_sdk::types::compose::{ComposeDoc, Flag};
use casemate_sdk::types::patch::{GpuPatch, OnFailure};
use clap::Args;

use super::approvals::Typed;
use super::outcome::Approving;
use super::signing::Signing;
use crate::context::Context;
use crate::error::Result;
use crate::value::{Disk, EnvArg, Gpus, Input, Memory, read_env, read_file};

/// What an app consists of.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "App")]
pub(crate) struct App {
    /// docker-compose file, or - for standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) compose: Option<Input>,
    /// Environment variable, or a file with some; can be repeated. All of them together replace the whole environment.
    /// They are sealed here, so that the server cannot read them, and anew each time: giving them is always a change, and
    /// restarts a CVM even if all values are the old ones
    #[arg(long, short, value_name = "KEY=VALUE|FILE")]
    pub(crate) env: Vec<EnvArg>,
    /// Script that runs before the containers start; an empty file removes it
    #[arg(long, value_name = "FILE")]
    pub(crate) pre_launch_script: Option<PathBuf>,
    /// File with text that the guest gets besides the app, not measured
    #[arg(long, value_name = "FILE")]
    pub(crate) user_config: Option<PathBuf>,
}

/// What a machine consists of.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Machine")]
pub(crate) struct Machine {
    /// Named size, such as tdx.small
    #[arg(long, value_name = "NAME")]
    pub(crate) instance_type: Option<String>,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    pub(crate) vcpu: Option<u32>,
    /// Memory, such as 2G; without a unit in MB
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Memory>,
    /// Disk, such as 20G; without a unit in GB. It can only grow
    #[arg(long, visible_alias = "disk", value_name = "SIZE")]
    pub(crate) disk_size: Option<Disk>,
    /// GPUs by number, of one product if it is named; 0 for none
    #[arg(long, value_name = "N[:PRODUCT]")]
    pub(crate) gpus: Option<Gpus>,
    /// OS image, by name or slug
    #[arg(long, value_name = "NAME")]
    pub(crate) image: Option<String>,
}

/// Who may see what.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Visibility")]
pub(crate) struct Visibility {
    /// Show it in the public directory
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub(crate) listed: Option<bool>,
    /// Anyone may read the containers' logs
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub(crate) public_logs: Option<bool>,
    /// Anyone may read system information
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub(crate) public_sysinfo: Option<bool>,
    /// Anyone may read the measurements
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub(crate) public_tcbinfo: Option<bool>,
}

/// How the machine is stopped.
#[derive(Args, Clone, Debug)]
pub(crate) struct Stopping {
    /// How long the guest may take to shut down, 10 to 1200; 60 unless given
    #[arg(long, value_name = "SECONDS")]
    pub(crate) shutdown_timeout: Option<u32>,
    /// Switch the machine off if it has not shut down by then
    #[arg(long)]
    pub(crate) allow_force_stop: bool,
}

/// How an update is done.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Update")]
pub(crate) struct How {
    #[command(flatten)]
    pub(crate) stopping: Stopping,
    /// What happens if the update fails: put-back starts the old configuration again, hold leaves the machine as it is
    #[arg(long, value_name = "put-back|hold", value_parser = on_failure)]
    pub(crate) on_failure: Option<OnFailure>,
    /// Restart even if nothing changes
    #[arg(long)]
    pub(crate) force_restart: bool,
    /// Do not apply it: have the server keep it until somebody commits it with a one-time token
    #[arg(long, conflicts_with = "private_key_file")]
    pub(crate) prepare_only: bool,
    /// If a contract has to allow it first: have the server watch the contract, and apply it once it is allowed
    #[arg(long, conflicts_with_all = ["private_key_file", "prepare_only"])]
    pub(crate) auto_commit: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

fn on_failure(text: &str) -> Result<OnFailure, &'static str> {
    text.replace('-', "_").parse().map_err(|_| "should be put-back or hold")
}

/// The texts behind the options, read.
#[derive(Debug, PartialEq)]
pub(crate) struct Texts {
    pub(crate) compose: Option<String>,
    /// The whole environment, if it is replaced.
    pub(crate) env: Option<Vec<EnvVar>>,
    pub(crate) pre_launch_script: Option<String>,
    pub(crate) user_config: Option<String>,
}

impl App {
    /// One of them is standard input.
    pub(crate) fn reads_stdin(&self) -> bool {
        matches!(self.compose, Some(Input::Stdin))
    }

    /// Reads the files.
    pub(crate) fn read(&self) -> Result<Texts> {
        let file = |path: &Option<PathBuf>| path.as_deref().map(read_file).transpose();
        Ok(Texts {
            compose: self.compose.as_ref().map(Input::read).transpose()?,
            env: if self.env.is_empty() { None } else { Some(read_env(&self.env)?) },
            pre_launch_script: file(&self.pre_launch_script)?,
            user_config: file(&self.user_config)?,
        })
    }
}

impl Texts {
    /// Anything was given.
    pub(crate) fn is_some(&self) -> bool {
        let Self { compose, env, pre_launch_script, user_config } = self;
        compose.is_some() || env.is_some() || pre_launch_script.is_some() || user_config.is_some()
    }

    /// Says why an environment is part of every plan.
    pub(crate) fn note_on_env(&self, cx: &Context) {
        if self.env.is_some() {
            cx.out.note(
                "The environment is sealed anew each time, so it counts as changed even if all values are the old ones.",
            );
        }
    }

    /// The names of the variables of the new environment.
    pub(crate) fn env_names(&self) -> Option<Vec<String>> {
        self.env.as_ref().map(|vars| vars.iter().map(|var| var.key.clone()).collect())
    }

    /// Puts everything but the environment into a patch.
    pub(crate) fn patch(&self, mut patch: Patch) -> Patch {
        if let Some(text) = &self.compose {
            patch = patch.compose(text);
        }
        if let Some(text) = &self.pre_launch_script {
            patch = patch.pre_launch_script(text);
        }
        if let Some(text) = &self.user_config {
            patch = patch.user_config(text);
        }
        patch
    }
}

impl Machine {
    /// Anything was given.
    pub(crate) fn is_some(&self) -> bool {
        let Self { instance_type, vcpu, memory, disk_size, gpus, image } = self;
        instance_type.is_some()
            || vcpu.is_some()
            || memory.is_some()
            || disk_size.is_some()
            || gpus.is_some()
            || image.is_some()
    }

    pub(crate) fn patch(&self, mut patch: Patch) -> Patch {
        if let Some(name) = &self.instance_type {
            patch = patch.instance_type(name);
        }
        if let Some(vcpu) = self.vcpu {
            patch = patch.vcpu(vcpu);
        }
        if let Some(Memory(mb)) = self.memory {
            patch = patch.memory_mb(mb);
        }
        if let Some(Disk(gb)) = self.disk_size {
            patch = patch.disk_gb(gb);
        }
        if let Some(gpus) = &self.gpus {
            patch = patch.gpus(gpus.wire());
        }
        if let Some(image) = &self.image {
            patch = patch.os_image(image);
        }
        patch
    }
}

impl Gpus {
    pub(crate) fn wire(&self) -> GpuPatch {
        GpuPatch::Count { count: self.count, product_name: self.product.clone() }
    }
}

impl Visibility {
    /// Anything was given.
    pub(crate) fn is_some(&self) -> bool {
        let Self { listed, public_logs, public_sysinfo, public_tcbinfo } = self;
        [listed, public_logs, public_sysinfo, public_tcbinfo].into_iter().any(Option::is_some)
    }

    pub(crate) fn patch(&self, mut patch: Patch) -> Patch {
        if let Some(listed) = self.listed {
            patch = patch.listed(listed);
        }
        if let Some(public) = self.public_logs {
            patch = patch.public_logs(public);
        }
        if let Some(public) = self.public_sysinfo {
            patch = patch.public_sysinfo(public);
        }
        if let Some(public) = self.public_tcbinfo {
            patch = patch.public_tcbinfo(public);
        }
        patch
    }

    /// Writes the flags that are part of the document into it.
    pub(crate) fn document(&self, doc: &mut ComposeDoc) {
        for (flag, value) in [
            (Flag::PublicLogs, self.public_logs),
            (Flag::PublicSysinfo, self.public_sysinfo),
            (Flag::PublicTcbinfo, self.public_tcbinfo),
        ] {
            if let Some(value) = value {
                doc.set_flag(flag, value);
            }
        }
    }
}

impl How {
    /// What follows if a contract has to allow it first.
    pub(crate) fn approving<'a>(&self, signing: &'a Signing, typed: &'a Patch) -> Approving<'a> {
        match (self.prepare_only, self.auto_commit) {
            (true, _) => Approving::ByOthers,
            (false, true) => Approving::ByServer,
            (false, false) => Approving::Here(signing, Typed::Change(typed)),
        }
    }

    pub(crate) fn patch(&self, mut patch: Patch) -> Patch {
        if let Some(seconds) = self.stopping.shutdown_timeout {
            patch = patch.shutdown_timeout_secs(seconds);
        }
        if self.stopping.allow_force_stop {
            patch = patch.allow_force_stop(true);
        }
        if let Some(on_failure) = self.on_failure {
            patch = patch.on_failure(on_failure);
        }
        if self.force_restart {
            patch = patch.force_restart();
        }
        if self.prepare_only {
            patch = patch.prepare_only();
        }
        if self.auto_commit {
            patch = patch.auto_commit();
        }
        patch
    }
}
