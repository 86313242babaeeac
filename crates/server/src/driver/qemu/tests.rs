//! The driver with a hypervisor and a guest that are played by this very program: see `tests/fake.rs`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use super::process::Process;
use super::*;
use crate::cvm::spec::Long;
use crate::driver::contract_tests::{Behaviour, Rig, VM, contract};
use crate::driver::sim::tests::{OpenKeys, machine};
use crate::driver::{DynDriver, images};

/// What the fake takes from here.
mod parts {
    pub(super) use super::super::command::{AGENT, BOOT, QMP, SERIAL};
    pub(super) use crate::clock::Clock;
    pub(super) use crate::cvm::spec::sha256;
}

mod fake;
mod faults;
mod full;
mod roots;
mod sweep;
mod tags;
mod vm_faults;
mod vm_real;

/// A node whose machines are played.
pub(super) struct FakeRig {
    pub(super) qemu: Option<Qemu>,
    pub(super) config: QemuConfig,
    pub(super) clock: Clock,
    folder: tempfile::TempDir,
}

/// A program that stands in for QEMU: this one, told by its environment what to be.
fn program(folder: &Path) -> PathBuf {
    let program = folder.join("fake-qemu");
    let me = std::env::current_exe().unwrap();
    let mark = String::from_utf8_lossy(command::MARK).into_owned();
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'Fake emulator version 0.0.1'; exit; fi\n\
         FAKE_QEMU=\"$*\" exec '{}' --exact driver::qemu::tests::fake::play '{mark}' --ignored --nocapture\n",
        me.display()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    program
}

/// Ports that no other test gets which runs beside this one, as far as can be helped.
pub(super) fn ports() -> std::ops::Range<u16> {
    let process = u16::try_from(std::process::id() % 180).unwrap();
    20_000 + process * 50..30_000
}

pub(super) fn rig() -> FakeRig {
    let folder = tempfile::tempdir().unwrap();
    let os_images = folder.path().join("os");
    os_images::tests::make(&os_images, "dstack-0.5.5", "0.5.5");
    os_images::tests::make(&os_images, "dstack-0.5.4", "0.5.4");
    let config = QemuConfig {
        program: program(folder.path()),
        accel: Accel::Tcg,
        os_images: vec![os_images],
        capacity: Some(Booking { vcpu: 16, memory_mb: 64 * 1024, disk_gb: 1024, gpus: 0 }),
        ports: ports(),
        pace: Pace {
            booting: Duration::from_millis(10),
            up: Duration::from_millis(20),
            silent: Duration::from_millis(1500),
            back_off: Duration::from_millis(50),
            back_off_max: Duration::from_millis(200),
            ..Pace::default()
        },
        ..QemuConfig::in_data(folder.path())
    };
    let clock = Clock::system();
    let mut rig = FakeRig { qemu: None, config, clock, folder };
    rig.open();
    images::tests::fill(rig.qemu().images(), &["web:1", "web:2", "web:3", "web:4", "web:5", "web:6"]);
    rig
}

impl FakeRig {
    pub(super) fn qemu(&self) -> &Qemu {
        self.qemu.as_ref().unwrap()
    }

    pub(super) fn open(&mut self) {
        self.qemu = None;
        let keys = Some(Arc::new(OpenKeys) as Arc<dyn GuestKeys>);
        self.qemu = Some(Qemu::open(self.config.clone(), self.clock.clone(), keys).unwrap());
    }

    pub(super) fn machine_folder(&self) -> PathBuf {
        self.config.folder.canonicalize().unwrap().join(VM.to_string())
    }

    pub(super) fn process(&self) -> Option<Process> {
        Process::in_folder(&self.machine_folder())
    }
}

impl Drop for FakeRig {
    fn drop(&mut self) {
        self.qemu = None;
        // Nothing that was started stays, however the test ended.
        for entry in std::fs::read_dir(&self.config.folder).into_iter().flatten().flatten() {
            if let Some(process) = Process::in_folder(&entry.path()) {
                process.kill().unwrap();
            }
        }
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("the node is left in {}", self.folder.path().display());
        }
    }
}

#[async_trait]
impl Rig for FakeRig {
    fn driver(&self) -> DynDriver {
        Arc::new(self.qemu().clone())
    }

    fn clock(&self) -> Clock {
        self.clock.clone()
    }

    fn machine(&self, revision: u64) -> Machine {
        let mut machine = machine(revision);
        machine.spec.disk_gb = 1;
        machine.spec.memory_mb = 512;
        machine.spec.sealed_env = Some(b"B=2,A=1".as_slice().into());
        machine
    }

    fn bad(&self, mut machine: Machine, behaviour: Behaviour) -> Machine {
        machine.spec.user_config = Some(Long::from(match behaviour {
            Behaviour::Fails => fake::FAILS,
            Behaviour::Hangs => fake::HANGS,
        }));
        machine
    }

    fn crash(&self, _: VmUuid) {
        self.process().expect("it is on").kill().unwrap();
    }

    async fn reopen(&mut self) {
        self.open();
    }
}

contract!(tokio::test, rig());
