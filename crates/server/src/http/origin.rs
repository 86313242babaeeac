//! Who sent a request, as far as that can be believed.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The client's address.
    pub address: IpAddr,
    /// How the client speaks to us, or to the proxy in front of us.
    pub scheme: Scheme,
}

/// Encrypted or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// As a URL begins.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl Origin {
    /// What the connection itself tells.
    pub fn of_connection(peer: IpAddr, scheme: Scheme) -> Self {
        Self { address: peer.to_canonical(), scheme }
    }

    /// What a request on this connection says, if a proxy in `trusted` sent it; headers of anybody else could say anything.
    ///
    /// Each proxy adds the address it was called from at the end of `X-Forwarded-For`, so the client is the last one that is
    /// no trusted proxy itself. `X-Forwarded-Proto` of the last proxy counts.
    #[must_use]
    pub fn forwarded(self, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
        if !is_trusted(&self.address) {
            return self;
        }
        let mut origin = self;
        for hop in words(headers, "x-forwarded-for") {
            // What comes before something that is no address was not written by a proxy we know.
            let Some(address) = address(hop) else { break };
            origin.address = address;
            if !is_trusted(&address) {
                break;
            }
        }
        match words(headers, "x-forwarded-proto").next() {
            Some(proto) if proto.eq_ignore_ascii_case("https") => origin.scheme = Scheme::Https,
            Some(proto) if proto.eq_ignore_ascii_case("http") => origin.scheme = Scheme::Http,
            Some(_) | None => {}
        }
        origin
    }
}

/// The comma-separated words of a header, the last one first.
fn words<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    values.into_iter().rev().flat_map(|value| value.rsplit(',')).map(str::trim)
}

/// An address, as proxies write it: with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let plain = text.trim_start_matches('[').trim_end_matches(']');
    let address = plain.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, headers: &[(&'static str, &str)]) -> (String, &'static str) {
        let trusted = ["127.0.0.1/32", "10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let origin = Origin::of_connection(peer.parse().unwrap(), Scheme::Http).forwarded(&map, &trusted);
        (origin.address.to_string(), origin.scheme.as_str())
    }

    #[test]
    fn a_trusted_proxy_says_who_the_client_is_and_how_it_speaks() {
        let https = ("x-forwarded-proto", "https");
        for (peer, forwarded, client) in [
            ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
            ("::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7"),
            ("127.0.0.1", "203.0.113.7:5123", "203.0.113.7"),
            ("fd00::1", "[2001:db8::7]:5123", "2001:db8::7"),
            ("fd00::1", "2001:db8::7", "2001:db8::7"),
            ("127.0.0.1", "203.0.113.7, 10.1.2.3", "203.0.113.7"),
            // The client wrote the first one itself.
            ("127.0.0.1", "198.51.100.1, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
            ("127.0.0.1", "unknown, 10.1.2.3", "10.1.2.3"),
            ("127.0.0.1", "", "127.0.0.1"),
        ] {
            assert_eq!(
                seen(peer, &[("x-forwarded-for", forwarded), https]),
                (client.into(), "https"),
                "{forwarded}"
            );
        }
        let lines = [("x-forwarded-for", "203.0.113.7"), ("x-forwarded-for", "10.1.2.3")];
        assert_eq!(seen("127.0.0.1", &lines), ("203.0.113.7".into(), "http"));
    }

    #[test]
    fn nobody_else_is_believed() {
        let headers = [("x-forwarded-for", "203.0.113.7"), ("x-forwarded-proto", "https")];
        assert_eq!(seen("192.0.2.1", &headers), ("192.0.2.1".into(), "http"));
    }
}
