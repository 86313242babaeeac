//! Where the ports that a machine publishes are reached on this host.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

use crate::driver::Port;

/// Ports of the host that stand in for those that are taken. Below those that Linux gives to outgoing connections.
const SPARE: std::ops::Range<u16> = 20_000..30_000;

/// A place for each port of `inside`: the one it has in `before`, else the same number, else a spare one. None that is in
/// `taken`, and none where somebody listens.
///
/// # Errors
/// There is none left.
pub(super) fn place(inside: &[u16], before: &[Port], taken: &BTreeSet<u16>) -> Result<Vec<Port>, String> {
    let mut taken = taken.clone();
    let mut places = Vec::new();
    for &guest in inside {
        let had = before.iter().find(|port| port.guest == guest).map(|port| port.host);
        let same = Some(guest).filter(|port| *port >= 1024);
        let mut candidates = had.into_iter().chain(same).chain(SPARE);
        let host = candidates.find(|port| !taken.contains(port) && is_free(*port));
        let host = host.ok_or_else(|| format!("there is no port left for port {guest} of the machine"))?;
        taken.insert(host);
        places.push(Port { host, guest });
    }
    Ok(places)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_keeps_its_place_and_gives_way_to_others() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let busy = other.local_addr().unwrap().port();
        let spare = |port: &Port| SPARE.contains(&port.host);
        let places = place(&[80, busy], &[], &BTreeSet::new()).unwrap();
        assert!(places.iter().all(spare) && places[0].host != places[1].host, "{places:?}");
        assert_eq!(place(&[busy, 80], &places, &BTreeSet::new()).unwrap(), [places[1], places[0]]);
        let taken = BTreeSet::from([places[0].host]);
        assert_ne!(place(&[80], &places, &taken).unwrap()[0].host, places[0].host);
    }
}
