//! The machine's network, and one for each container.
//!
//! A container has a network of its own, joined to the machine's by a pair of interfaces and one route, so two services may
//! listen on the same port. Services reach each other by name, on addresses of [`CONTAINERS`]. The kernel is told over
//! netlink, a few fixed messages long.

use std::ffi::CString;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread;

use casemate_types::compose::ServiceSpec;
use rustix::mount::mount_bind;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use rustix::thread::UnshareFlags;

use crate::{Doing, Result};

/// The machine's address behind QEMU's user network, and the way out of it.
const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The machine, as containers see it; they follow.
const CONTAINERS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

const NAMESPACES: &str = "/run/netns";
/// The file with everybody's name.
pub(crate) const HOSTS: &str = "/run/hosts";

/// The address of a service's container, by the service's place in the file.
pub(crate) fn address(at: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(CONTAINERS.to_bits() + 1 + u32::try_from(at).unwrap_or(u32::MAX >> 16))
}

/// Where a service's network is found.
pub(crate) fn namespace(service: &str) -> PathBuf {
    PathBuf::from(NAMESPACES).join(service)
}

/// Sets up the machine's own interfaces.
pub(crate) fn machine() -> Result<()> {
    let route = Netlink::open()?;
    route.up(route.index("lo")?)?;
    // A machine without a network card is none the worse for it.
    if fs::exists("/sys/class/net/eth0").unwrap_or(false) {
        let card = route.index("eth0")?;
        route.add_address(card, MACHINE, 24)?;
        route.up(card)?;
        route.add_route(None, Some(GATEWAY), card)?;
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").doing("cannot forward between containers")
}

/// Sets up the network of every container.
pub(crate) fn containers(services: &[ServiceSpec]) -> Result<()> {
    fs::create_dir_all(NAMESPACES).doing("cannot make the folder of networks")?;
    let names = services.iter().enumerate().map(|(at, service)| {
        let names: Vec<_> = service.names().collect();
        format!("{} {}\n", address(at), names.join(" "))
    });
    let names = format!("127.0.0.1 localhost\n::1 localhost\n{}", names.collect::<String>());
    fs::write(HOSTS, names).doing("cannot write the services' names")?;
    for (at, service) in services.iter().enumerate() {
        // Leaving the machine's network is a thread's own affair; what it makes stays behind it.
        let (name, address, pair) = (service.name.clone(), address(at), format!("veth{at}"));
        thread::spawn(move || container(&name, address, &pair))
            .join()
            .unwrap_or_else(|_| Err("its thread panicked".to_owned()))
            .map_err(|reason| format!("service `{}`: cannot set up its network: {reason}", service.name))?;
    }
    Ok(())
}

/// Makes a network, in a thread that ends with it.
fn container(name: &str, address: Ipv4Addr, pair: &str) -> Result<()> {
    // A socket stays in the network it was opened in.
    let outside = Netlink::open()?;
    leave_network().doing("cannot make a network")?;
    let inside = Netlink::open()?;
    let own = "/proc/thread-self/ns/net";
    let handle = File::open(own).doing("cannot open the new network")?;
    let kept = namespace(name);
    File::create(&kept).and_then(|_| Ok(mount_bind(own, &kept)?)).doing("cannot keep the new network")?;

    outside.add_pair(pair, "eth0", &handle)?;
    let here = outside.index(pair)?;
    outside.add_address(here, CONTAINERS, 32)?;
    outside.up(here)?;
    outside.add_route(Some(address), None, here)?;

    inside.up(inside.index("lo")?)?;
    let there = inside.index("eth0")?;
    inside.add_address(there, address, 32)?;
    inside.up(there)?;
    inside.add_route(Some(CONTAINERS), None, there)?;
    inside.add_route(None, Some(CONTAINERS), there)
}

#[expect(deprecated, reason = "only `UnshareFlags::FILES` is what it is deprecated for")]
fn leave_network() -> rustix::io::Result<()> {
    rustix::thread::unshare(UnshareFlags::NEWNET)
}

/// The kernel's ear for networks.
struct Netlink(OwnedFd);

/// Kinds of messages and attributes, as `linux/rtnetlink.h`, `linux/if_link.h` and `linux/veth.h` number them.
mod kind {
    pub(super) const NEWLINK: u16 = 16;
    pub(super) const GETLINK: u16 = 18;
    pub(super) const NEWADDR: u16 = 20;
    pub(super) const NEWROUTE: u16 = 24;
    pub(super) const ERROR: u16 = 2;
    pub(super) const REQUEST: u16 = 1;
    pub(super) const ACK: u16 = 4;
    pub(super) const EXCLUSIVE: u16 = 0x200;
    pub(super) const CREATE: u16 = 0x400;
    pub(super) const IFLA_IFNAME: u16 = 3;
    pub(super) const IFLA_LINKINFO: u16 = 18;
    pub(super) const IFLA_NET_NS_FD: u16 = 28;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const VETH_PEER: u16 = 1;
    pub(super) const IFA_ADDRESS: u16 = 1;
    pub(super) const IFA_LOCAL: u16 = 2;
    pub(super) const RTA_DST: u16 = 1;
    pub(super) const RTA_OIF: u16 = 4;
    pub(super) const RTA_GATEWAY: u16 = 5;
    pub(super) const AF_INET: u8 = 2;
    pub(super) const IFF_UP: u32 = 1;
    pub(super) const TABLE_MAIN: u8 = 254;
    pub(super) const PROTOCOL_BOOT: u8 = 3;
    pub(super) const SCOPE_LINK: u8 = 253;
    pub(super) const UNICAST: u8 = 1;
}

impl Netlink {
    fn open() -> Result<Self> {
        // Without a protocol it is the one for routes.
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map(Self)
            .doing("cannot open netlink")
    }

    fn index(&self, name: &str) -> Result<u32> {
        let body = [link(0, 0), attribute(kind::IFLA_IFNAME, &text(name))].concat();
        let answer =
            self.ask(kind::GETLINK, kind::REQUEST, &body).doing(format_args!("cannot find {name}"))?;
        answer
            .get(20..24)
            .and_then(|index| index.try_into().ok())
            .map(u32::from_ne_bytes)
            .ok_or_else(|| format!("no number for {name}"))
    }

    fn up(&self, index: u32) -> Result<()> {
        self.tell(kind::NEWLINK, 0, &link(index, kind::IFF_UP), "bring an interface up")
    }

    /// Two interfaces that are each other's end; the second is in another network.
    fn add_pair(&self, name: &str, peer: &str, network: &File) -> Result<()> {
        let network = network.as_raw_fd().cast_unsigned();
        let peer = [
            link(0, 0),
            attribute(kind::IFLA_IFNAME, &text(peer)),
            attribute(kind::IFLA_NET_NS_FD, &network.to_ne_bytes()),
        ]
        .concat();
        let data = attribute(kind::INFO_DATA, &attribute(kind::VETH_PEER, &peer));
        let info = [attribute(kind::INFO_KIND, b"veth"), data].concat();
        let body =
            [link(0, 0), attribute(kind::IFLA_IFNAME, &text(name)), attribute(kind::IFLA_LINKINFO, &info)]
                .concat();
        self.tell(kind::NEWLINK, kind::CREATE | kind::EXCLUSIVE, &body, "add a pair of interfaces")
    }

    fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<()> {
        let mut body = vec![kind::AF_INET, prefix, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend(attribute(kind::IFA_LOCAL, &address.octets()));
        body.extend(attribute(kind::IFA_ADDRESS, &address.octets()));
        self.tell(kind::NEWADDR, kind::CREATE | kind::EXCLUSIVE, &body, "add an address")
    }

    /// The way to one address, or to all that have no other.
    fn add_route(&self, to: Option<Ipv4Addr>, via: Option<Ipv4Addr>, index: u32) -> Result<()> {
        let scope = if via.is_some() { 0 } else { kind::SCOPE_LINK };
        let length = if to.is_some() { 32 } else { 0 };
        let mut body = vec![
            kind::AF_INET,
            length,
            0,
            0,
            kind::TABLE_MAIN,
            kind::PROTOCOL_BOOT,
            scope,
            kind::UNICAST,
            0,
            0,
            0,
            0,
        ];
        for (name, address) in [(kind::RTA_DST, to), (kind::RTA_GATEWAY, via)] {
            body.extend(address.map(|address| attribute(name, &address.octets())).unwrap_or_default());
        }
        body.extend(attribute(kind::RTA_OIF, &index.to_ne_bytes()));
        self.tell(kind::NEWROUTE, kind::CREATE | kind::EXCLUSIVE, &body, "add a route")
    }

    fn tell(&self, kind: u16, flags: u16, body: &[u8], what: &str) -> Result<()> {
        self.ask(kind, kind::REQUEST | kind::ACK | flags, body).map(drop).doing(format_args!("cannot {what}"))
    }

    /// Sends a message. Returns the answer, which is the acknowledgement if that was asked for.
    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> rustix::io::Result<Vec<u8>> {
        send(&self.0, &message(kind, flags, body), SendFlags::empty())?;
        let mut answer = vec![0; 16 * 1024];
        let (_, length) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        answer.truncate(length);
        let number = |at: usize| {
            answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes)
        };
        let is_error = answer.get(4..6).is_some_and(|found| found == kind::ERROR.to_ne_bytes());
        match number(16) {
            code if is_error && code != 0 => Err(rustix::io::Errno::from_raw_os_error(-code)),
            _ => Ok(answer),
        }
    }
}

/// Length, kind, flags, number, port; then the body.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// What every message about an interface begins with: which one, and flags to set.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut link = vec![0; 4];
    link.extend(index.to_ne_bytes());
    link.extend(flags.to_ne_bytes());
    link.extend(flags.to_ne_bytes());
    link
}

/// Length, kind, content, and zeros up to a multiple of four.
fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut attribute = (4 + content.len() as u16).to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(content);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn text(name: &str) -> Vec<u8> {
    CString::new(name).map(CString::into_bytes_with_nul).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_has_an_address() {
        assert_eq!(address(0), Ipv4Addr::new(10, 88, 0, 2));
        assert_eq!(address(300), Ipv4Addr::new(10, 88, 1, 46));
    }

    #[test]
    fn messages_have_the_kernels_form() {
        assert_eq!(attribute(3, b"ab\0"), [7, 0, 3, 0, b'a', b'b', 0, 0]);
        let message = message(16, 5, &link(2, 1));
        assert_eq!((message.len(), message[0], message[4], message[6]), (32, 32, 16, 5));
        assert_eq!(&message[20..32], [2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn the_kernel_knows_its_loopback() {
        assert_eq!(Netlink::open().unwrap().index("lo").unwrap(), 1);
        assert!(Netlink::open().unwrap().index("none").is_err());
    }
}
