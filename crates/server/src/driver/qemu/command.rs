//! The command line of a machine.
//!
//! It is made of numbers, of words that are written here, and of paths that QEMU takes as they are; what a user chose is in
//! files that it names. Where QEMU reads a list with commas, no value can hold one.

use std::path::PathBuf;

use casemate_types::guest::{AGENT_PORT, BOOT_CONFIG, DATA_DISK};
use casemate_types::ids::VmUuid;

use super::config::Accelerator;
use crate::driver::Port;

/// Socket of the control protocol, in the machine's folder.
pub(super) const QMP: &str = "qmp.sock";
/// Socket of the agent.
pub(super) const AGENT: &str = "agent.sock";
/// Serial console.
pub(super) const SERIAL: &str = "serial.log";
/// Boot configuration.
pub(super) const BOOT: &str = "boot.json";
/// Data disk.
pub(super) const DATA: &str = "data.img";
/// A word by which a process is known to be one of ours.
pub(super) const MARK: &[u8] = b"socket,id=qmp,path=qmp.sock,server=on,wait=off";

/// What a command line says.
pub(super) struct Boot {
    pub(super) vm: VmUuid,
    pub(super) accelerator: Accelerator,
    pub(super) vcpu: u32,
    pub(super) memory_mb: u32,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// The kernel's own command line.
    pub(super) kernel_line: String,
    /// The disks with container images.
    pub(super) images: Vec<ImageDisk>,
    pub(super) ports: Vec<Port>,
}

/// A disk with a container image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ImageDisk {
    /// Its serial number.
    pub(super) serial: String,
    /// File in the machine's folder.
    pub(super) file: String,
}

/// The first place on the machine's bus at which images are, eight at each. Those before are for everything else.
const IMAGES_AT: usize = 0x10;

/// The arguments, for a process that works in the machine's folder.
pub(super) fn arguments(boot: &Boot) -> Vec<String> {
    let (accelerator, cpu) = match boot.accelerator {
        // Its emulation of cmpxchg16b crashes newer kernels.
        Accelerator::Tcg => ("tcg", "max,-cx16"),
        Accelerator::Kvm => ("kvm", "host"),
    };
    let mut network = "user,id=net,restrict=on".to_owned();
    for Port { host, guest } in &boot.ports {
        network += &format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
    }
    let text = str::to_owned;
    let pairs: Vec<(&str, String)> = vec![
        ("-name", boot.vm.0.simple().to_string()),
        // A core dump would have what its services keep secret.
        ("-machine", text("q35,dump-guest-core=off")),
        ("-accel", text(accelerator)),
        ("-cpu", text(cpu)),
        ("-smp", boot.vcpu.to_string()),
        ("-m", boot.memory_mb.to_string()),
        ("-display", text("none")),
        ("-sandbox", text("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")),
        ("-kernel", boot.kernel.to_string_lossy().into_owned()),
        ("-initrd", boot.initrd.to_string_lossy().into_owned()),
        ("-append", boot.kernel_line.clone()),
        ("-chardev", format!("file,id=serial,path={SERIAL},append=on")),
        ("-serial", text("chardev:serial")),
        ("-chardev", String::from_utf8_lossy(MARK).into_owned()),
        ("-mon", text("chardev=qmp,mode=control")),
        ("-fw_cfg", format!("name={BOOT_CONFIG},file={BOOT}")),
        ("-device", text("virtio-serial-pci")),
        ("-chardev", format!("socket,id=agent,path={AGENT},server=on,wait=off")),
        ("-device", format!("virtserialport,chardev=agent,name={AGENT_PORT}")),
        ("-drive", format!("if=none,id=data,file={DATA},format=raw,discard=unmap")),
        ("-device", format!("virtio-blk-pci,drive=data,serial={DATA_DISK}")),
        ("-netdev", network),
        // Nothing boots from the network, so no code for that.
        ("-device", text("virtio-net-pci,netdev=net,romfile=")),
        ("-device", text("virtio-rng-pci")),
    ];
    let images = boot.images.iter().enumerate().flat_map(|(number, image)| {
        let ImageDisk { serial, file } = image;
        let (place, function) = (IMAGES_AT + number / 8, number % 8);
        // Where firmware looks for something to boot from and for old drivers' needs, it takes its time with each.
        let device = format!(
            "virtio-blk-pci,drive=image{number},serial={serial},bus=pcie.0,addr={place:#x}.{function},multifunction=on,\
             num-queues=1,disable-legacy=on"
        );
        [("-drive", format!("if=none,id=image{number},file={file},format=raw,readonly=on")), ("-device", device)]
    });
    let switches = ["-nodefaults", "-no-user-config", "-no-reboot"].map(text);
    switches
        .into_iter()
        .chain(pairs.into_iter().chain(images).flat_map(|(option, value)| [option.to_owned(), value]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(number: usize) -> ImageDisk {
        let serial = format!("{number}123456789abcdef0123");
        ImageDisk { file: format!("image-{serial}.squashfs"), serial }
    }

    fn boot() -> Boot {
        Boot {
            vm: VmUuid(uuid::Uuid::from_u128(1)),
            accelerator: Accelerator::Tcg,
            vcpu: 2,
            memory_mb: 512,
            kernel: "/os, here/bzImage".into(),
            initrd: "/os, here/initramfs.cpio".into(),
            kernel_line: "console=ttyS0 panic=-1".into(),
            images: (0..9).map(disk).collect(),
            ports: vec![Port { host: 8080, guest: 80 }, Port { host: 20001, guest: 443 }],
        }
    }

    #[test]
    fn the_command_line_is_the_one_that_was_agreed_on() {
        insta::assert_snapshot!(arguments(&boot()).join("\n"));
    }

    #[test]
    fn kvm_gets_the_hosts_processor() {
        let arguments = arguments(&Boot { accelerator: Accelerator::Kvm, ..boot() });
        let value_of = |option: &str| {
            let at = arguments.iter().position(|word| word == option).unwrap();
            arguments[at + 1].as_str()
        };
        assert_eq!((value_of("-accel"), value_of("-cpu")), ("kvm", "host"));
    }
}
