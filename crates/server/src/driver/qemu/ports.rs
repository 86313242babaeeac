//! Where the ports that a machine publishes are reached on this host.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;

use crate::driver::Port;

/// A place for each port of `inside`: the one it has in `before`, else the same number, else a spare one. None that is in
/// `taken`, and none where somebody listens.
///
/// # Errors
/// There is none left.
pub(super) fn place(
    inside: &[u16],
    before: &[Port],
    taken: &BTreeSet<u16>,
    spare: &Range<u16>,
) -> Result<Vec<Port>, String> {
    let mut taken = taken.clone();
    let mut places = Vec::new();
    for &guest in inside {
        let had = before.iter().find(|port| port.guest == guest).map(|port| port.host);
        let same = Some(guest).filter(|port| *port >= 1024);
        let mut candidates = had.into_iter().chain(same).chain(spare.clone());
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
        let spare = crate::driver::qemu::tests::ports();
        let place = |inside: &[u16], before: &[Port], taken: &[u16]| {
            super::place(inside, before, &taken.iter().copied().collect(), &spare).unwrap()
        };
        let places = place(&[80, busy], &[], &[]);
        assert!(places.iter().all(|port| spare.contains(&port.host)), "{places:?}");
        assert_ne!(places[0].host, places[1].host);
        assert_eq!(place(&[busy, 80], &places, &[]), [places[1], places[0]]);
        assert_ne!(place(&[80], &places, &[places[0].host])[0].host, places[0].host);
    }
}
