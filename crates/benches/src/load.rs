//! The load generator: requests that were written beforehand, over connections that stay open, one at a time on each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Result;

/// A whole request, as bytes.
pub(crate) type Request = Arc<[u8]>;

/// A request with the headers that the official clients send.
pub(crate) fn request(method: &str, path: &str, key: &str, body: &str) -> Request {
    let length = match body {
        "" => String::new(),
        _ => format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()),
    };
    let text = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-api-key: {key}\r\nx-phala-version: 2026-06-23\r\n\
         accept: application/json\r\nuser-agent: casemate-benches\r\n{length}\r\n{body}"
    );
    text.into_bytes().into()
}

/// Open connections to one server.
pub(crate) struct Client {
    idle: Vec<Connection>,
}

/// What a number of requests came to.
pub(crate) struct Outcome {
    /// From the first request to the last answer.
    pub(crate) took: Duration,
    /// Time to the answer of each request, sorted.
    pub(crate) latencies: Vec<Duration>,
    /// Size of the last answer's body.
    pub(crate) bytes: usize,
}

impl Outcome {
    /// Requests a second.
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// The middle latency, in microseconds.
    pub(crate) fn p50_us(&self) -> f64 {
        self.latencies.get(self.latencies.len() / 2).map_or(f64::NAN, |middle| middle.as_secs_f64() * 1e6)
    }
}

impl Client {
    /// Opens `count` connections.
    pub(crate) async fn connect(address: SocketAddr, count: usize) -> Result<Self> {
        let mut idle = Vec::new();
        for _ in 0..count {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            idle.push(Connection { stream, buffer: vec![0; 256 * 1024] });
        }
        Ok(Self { idle })
    }

    /// Sends all `requests`, each on whatever connection is free, and expects each answer to have `status`.
    pub(crate) async fn send(&mut self, requests: &[Request], status: u16) -> Result<Outcome> {
        let requests: Arc<[Request]> = requests.into();
        let next = Arc::new(AtomicUsize::new(0));
        let begun = Instant::now();
        let mut work = JoinSet::new();
        for mut connection in self.idle.drain(..) {
            let (requests, next) = (Arc::clone(&requests), Arc::clone(&next));
            work.spawn(async move {
                let (mut latencies, mut bytes) = (Vec::new(), 0);
                while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let asked = Instant::now();
                    bytes = connection.ask(request, status).await?;
                    latencies.push(asked.elapsed());
                }
                Result::Ok((connection, latencies, bytes))
            });
        }
        let (mut latencies, mut bytes) = (Vec::new(), 0);
        while let Some(done) = work.join_next().await {
            let (connection, of_one, last) = done??;
            self.idle.push(connection);
            latencies.extend(of_one);
            bytes = bytes.max(last);
        }
        let took = begun.elapsed();
        latencies.sort_unstable();
        Ok(Outcome { took, latencies, bytes })
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Sends a request and reads its whole answer. The size of its body.
    async fn ask(&mut self, request: &[u8], status: u16) -> Result<usize> {
        self.stream.write_all(request).await?;
        let mut have = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[have..]).await?;
            if read == 0 {
                return Err("the server closed a connection, or its answer is too big".into());
            }
            have += read;
            let Some((head, body)) = split(&self.buffer[..have]) else { continue };
            let head = std::str::from_utf8(head)?;
            let length = content_length(head).ok_or("an answer has no content-length")?;
            if body.len() < length {
                continue;
            }
            if head.get(9..12) != Some(&status.to_string()) {
                let asked = String::from_utf8_lossy(request);
                let asked = asked.lines().next().unwrap_or_default();
                return Err(format!("{asked}: {head}\n{}", String::from_utf8_lossy(body)).into());
            }
            return Ok(length);
        }
    }
}

fn split(answer: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((&answer[..end], &answer[end + 4..]))
}

fn content_length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}
