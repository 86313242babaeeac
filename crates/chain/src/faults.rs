//! A node that misbehaves on demand: stands between a client and a real one.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::config::RpcUrl;

/// How the node behaves.
#[derive(Clone)]
pub enum Fault {
    /// As the real one does.
    None,
    /// Every connection is closed at once.
    Down,
    /// It takes the request and never answers.
    Hang,
    /// It never answers a request with a call for which this is true of method and parameters.
    HangOn(Which),
    /// One byte of a good answer every 100 ms.
    Drip,
    /// An answer that does not end.
    Huge,
    /// This instead of an answer.
    Garbage(&'static str),
    /// This HTTP status.
    Status(u16),
    /// The real answer, changed: gets method, parameters, and the reply object of each call.
    Lie(Lie),
}

/// Changes the reply to one call.
pub type Lie = Arc<dyn Fn(&str, &Value, &mut Value) + Send + Sync>;

/// Chooses calls.
pub type Which = Arc<dyn Fn(&str, &Value) -> bool + Send + Sync>;

/// The node. Ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: RpcUrl,
    http: reqwest::Client,
    fault: Mutex<Fault>,
    requests: AtomicUsize,
    /// Bytes of endless answers that were sent.
    sent: AtomicUsize,
}

impl Proxy {
    /// Stands before this node, and behaves.
    pub async fn start(target: RpcUrl) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let http = reqwest::Client::builder().tls_certs_only([]).build().map_err(std::io::Error::other)?;
        let (fault, requests, sent) = (Mutex::new(Fault::None), AtomicUsize::new(0), AtomicUsize::new(0));
        let shared = Arc::new(Shared { target, http, fault, requests, sent });
        let serving = shared.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                // Ends with an error when the client has gone, which is its right.
                tokio::spawn(async move { serve(stream, &shared).await });
            }
        });
        Ok(Self { address, shared, accepting })
    }

    /// Where it listens, with a path like those that hold a key.
    pub fn url(&self) -> RpcUrl {
        format!("http://{}/v2/{}", self.address, Self::KEY).parse().expect("a URL")
    }

    /// The key in [`Proxy::url`], which nobody may ever see.
    pub const KEY: &str = "secret0123456789";

    /// From now on it behaves like this.
    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().expect("nothing panics while holding it") = fault;
    }

    /// From now on it changes what the real node says.
    pub fn lie(&self, lie: impl Fn(&str, &Value, &mut Value) + Send + Sync + 'static) {
        self.set(Fault::Lie(Arc::new(lie)));
    }

    /// From now on it does not answer requests with such calls.
    pub fn hang_on(&self, which: impl Fn(&str, &Value) -> bool + Send + Sync + 'static) {
        self.set(Fault::HangOn(Arc::new(which)));
    }

    /// How many requests have come.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How many bytes of endless answers clients have taken.
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let fault = || shared.fault.lock().expect("nothing panics while holding it").clone();
    if matches!(fault(), Fault::Down) {
        return Ok(());
    }
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut line = String::new();
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().map_err(std::io::Error::other)?;
                }
                Some(_) => {}
                None if line.trim_end().is_empty() => break,
                None => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let answer = match fault() {
            Fault::Down => return Ok(()),
            Fault::Hang => return std::future::pending().await,
            Fault::HangOn(which) if has(&body, &which)? => return std::future::pending().await,
            Fault::Huge => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[").await?;
                let block = [b' '; 1 << 16];
                loop {
                    stream.write_all(&block).await?;
                    shared.sent.fetch_add(block.len(), Ordering::Relaxed);
                }
            }
            Fault::Garbage(text) => text.into(),
            Fault::Status(status) => {
                let head = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                continue;
            }
            Fault::Drip | Fault::None | Fault::HangOn(_) => forward(shared, &body).await?,
            Fault::Lie(lie) => changed(&body, &forward(shared, &body).await?, &lie)?,
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all(head.as_bytes()).await?;
        if matches!(fault(), Fault::Drip) {
            for byte in answer {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        } else {
            stream.write_all(&answer).await?;
        }
    }
}

async fn forward(shared: &Shared, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let request = shared.http.post(shared.target.secret().clone()).header("content-type", "application/json");
    let answer = request.body(body.to_vec()).send().await.map_err(std::io::Error::other)?;
    Ok(answer.bytes().await.map_err(std::io::Error::other)?.to_vec())
}

fn has(body: &[u8], which: &Which) -> std::io::Result<bool> {
    let calls: Vec<Value> = serde_json::from_slice(body)?;
    Ok(calls.iter().any(|call| which(call["method"].as_str().unwrap_or_default(), &call["params"])))
}

fn changed(body: &[u8], answer: &[u8], lie: &Lie) -> std::io::Result<Vec<u8>> {
    let calls: Vec<Value> = serde_json::from_slice(body)?;
    let mut replies: Vec<Value> = serde_json::from_slice(answer)?;
    for reply in &mut replies {
        if let Some(call) = calls.iter().find(|call| call["id"] == reply["id"]) {
            lie(call["method"].as_str().unwrap_or_default(), &call["params"], reply);
        }
    }
    Ok(serde_json::to_vec(&replies)?)
}
