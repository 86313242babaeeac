//! Ports that containers publish: the machine listens, and carries what comes to the container.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use casemate_types::compose::Port;

use crate::{Doing, Result, say};

/// Connections at once, of one port. Each takes two threads.
const MAX_CONNECTIONS: usize = 256;

/// Listens on the published port and carries what comes to the container's.
pub(crate) fn start(port: Port, container: Ipv4Addr) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port.published))
        .doing(format_args!("cannot listen on port {}", port.published))?;
    let open = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let open = open.clone();
            thread::spawn(move || {
                // A container that does not listen ends the connection, as it would without us.
                let _ = carry(&client, (container, port.target));
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
        say!("port {} is no longer forwarded", port.published);
    });
    Ok(())
}

fn carry(client: &TcpStream, target: (Ipv4Addr, u16)) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    let one_way = |mut from: &TcpStream, mut to: &TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|threads| {
        threads.spawn(|| one_way(client, &server));
        one_way(&server, client);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_port_is_carried_both_ways() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap().port();
        // A port that was free a moment ago.
        let published = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        start(Port { published, target }, Ipv4Addr::LOCALHOST).unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", published)).unwrap();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (mut inside, _) = server.accept().unwrap();
        let mut text = String::new();
        inside.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
        inside.write_all(b"answer").unwrap();
        drop(inside);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "answer");
    }
}
