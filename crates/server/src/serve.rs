//! A whole server: store, workers, reconciliation and the listener, from start to a clean stop.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use casemate_kms::RootKeys;
use futures_util::StreamExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::app::{App, Chains, NewNode};
use crate::clock::Clock;
use crate::config::{Config, TlsFiles};
use crate::error::Source;
use crate::http;
use crate::http::origin::{Origin, Scheme};
use crate::store::{Durability, Store, WriterMode};
use crate::tls::{self, Connection};
use crate::workflow::worker::{NoProbe, Probe};
use crate::workflow::{allowance, auto_commit, reconcile, sweep, worker};

/// How long clients get to hear, with an answer, that their connection ends. Closing one at once would cut off a request that
/// its client has just sent, and the client could not know whether it counts.
const LAST_ANSWERS: Duration = Duration::from_millis(250);

/// How long requests in flight get to finish after that. What takes longer waits for a chain or for the rest of its own body: it
/// has changed nothing yet, and may be sent again.
const LAST_REQUESTS: Duration = Duration::from_secs(4);

/// The store's file in the data folder.
const STORE: &str = "casemate.db";

/// A running server.
pub struct Server {
    /// What it is made of.
    pub app: App,
    /// Where it listens.
    pub address: SocketAddr,
    closing: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
    tls: Option<Tls>,
    _lock: std::fs::File,
}

/// Where certificate and key are, and what new connections are met with.
type Tls = (TlsFiles, watch::Sender<Arc<ServerConfig>>);

/// What a server needs to start.
pub struct Start {
    /// Data folder.
    pub data: PathBuf,
    /// Proof that no other process has the folder, from [`lock`].
    pub lock: std::fs::File,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where CVMs can run.
    pub nodes: Vec<NewNode>,
    /// The key service.
    pub kms: Arc<RootKeys>,
    /// Time and chance.
    pub clock: Clock,
    /// What the operator decided. `public_url` is replaced by the address where it is empty.
    pub config: Config,
    /// What a commit promises: [`Durability::Full`].
    pub durability: Durability,
}

/// Opens the data folder for this process alone. The lock is held as long as the file is.
///
/// # Errors
/// The folder cannot be made, or another process has it.
pub fn lock(data: &Path) -> Result<std::fs::File, Source> {
    let denied = |error| format!("cannot use the data folder {}: {error}", data.display());
    make_private(data).map_err(denied)?;
    let file = std::fs::File::create(data.join("lock")).map_err(denied)?;
    match fs4::FileExt::try_lock(&file) {
        Ok(()) => Ok(file),
        Err(_) => Err(format!("{} is in use by another casemate", data.display()).into()),
    }
}

fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // It may have been there before, open to others.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

/// Is there a store in this folder?
pub fn has_store(data: &Path) -> bool {
    data.join(STORE).is_file()
}

/// The store inside a data folder.
///
/// # Errors
/// The file cannot be opened or is newer than this program.
pub fn open_store(data: &Path) -> Result<Store, Source> {
    open_store_with(data, Durability::Full)
}

fn open_store_with(data: &Path, durability: Durability) -> Result<Store, Source> {
    Ok(Store::open(&data.join(STORE), durability, WriterMode::Grouped)?)
}

/// Lets clients in until the server is closing. Whoever has connected by then is still let in, everybody else is refused.
struct Door {
    listener: Option<TcpListener>,
    /// Connected when the door was closed, and not let in yet.
    waiting: VecDeque<(TcpStream, SocketAddr)>,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    closing: CancellationToken,
}

impl Door {
    fn greet(&self, stream: TcpStream) -> Connection {
        Connection::new(stream, self.tls.as_ref().map(|tls| Arc::clone(&tls.borrow())))
    }

    /// Closing a listener cuts off whoever stands in its queue. So the queue is emptied first, however long ago the runtime
    /// last heard of it.
    fn shut(&mut self) {
        let Some(listener) = self.listener.take().and_then(|listener| listener.into_std().ok()) else {
            return;
        };
        while let Ok((client, address)) = listener.accept() {
            let client = client.set_nonblocking(true).and_then(|()| TcpStream::from_std(client));
            self.waiting.extend(client.ok().map(|client| (client, address)));
        }
    }
}

impl Listener for Door {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        if let Some(listener) = &mut self.listener {
            tokio::select! {
                (stream, client) = Listener::accept(listener) => return (self.greet(stream), client),
                () = self.closing.cancelled() => self.shut(),
            }
        }
        match self.waiting.pop_front() {
            Some((stream, client)) => (self.greet(stream), client),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.as_ref().ok_or(std::io::ErrorKind::NotConnected)?.local_addr()
    }
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> String {
    let what = format!("cannot listen on {address}: {error}");
    match error.kind() {
        ErrorKind::AddrInUse => {
            format!(
                "{what}\n\nhint: another program listens there; --listen takes another address, port 0 a free one"
            )
        }
        _ => what,
    }
}

/// The last answer on its connection.
fn close(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// An answer without a length is a stream. It ends, whole as far as it goes, when the server closes: who follows one comes back.
fn end_with(closing: &CancellationToken, response: Response) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let closing = closing.clone().cancelled_owned();
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(closing)))
}

impl Server {
    /// Starts everything and returns when the first request can be answered.
    ///
    /// # Errors
    /// What keeps it from starting, for the operator to read.
    pub async fn start(start: Start) -> Result<Self, Source> {
        Self::start_with(start, Arc::new(NoProbe)).await
    }

    /// As [`Server::start`], with workers that a test can stop.
    ///
    /// # Errors
    /// See there.
    pub async fn start_with(start: Start, probe: Arc<dyn Probe>) -> Result<Self, Source> {
        let tls: Option<Tls> = match &start.config.tls {
            Some(files) => Some((files.clone(), watch::Sender::new(tls::load(files)?))),
            None => None,
        };
        let store = open_store_with(&start.data, start.durability)?;
        store.operation_void_leases().await?;
        let listener =
            TcpListener::bind(start.listen).await.map_err(|error| cannot_listen(start.listen, &error))?;
        let address = listener.local_addr()?;
        let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
        let mut config = start.config;
        if config.public_url.is_empty() {
            config.public_url = format!("{}://{address}", scheme.as_str());
        }
        let trusted: Arc<[_]> = config.trusted_proxies.clone().into();
        let chains = Chains::open(&config, &start.clock);
        let app = App::start_with(store, start.clock, start.kms, start.nodes, config, chains).await?;
        let (closing, stop, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        tasks.spawn(worker::run(app.clone(), probe, stop.clone()));
        tasks.spawn(reconcile::run(app.clone(), stop.clone()));
        tasks.spawn(sweep::run(app.clone(), stop.clone()));
        tasks.spawn(auto_commit::run(app.clone(), stop.clone()));
        tasks.spawn(allowance::run(app.clone(), stop.clone()));
        let service = ServiceExt::<Request>::map_response(http::service(app.clone()), {
            let closing = closing.clone();
            move |response: Response| {
                let response = end_with(&closing, response);
                if closing.is_cancelled() { close(response) } else { response }
            }
        });
        // Each connection has its own copy, which says where its requests come from.
        let connected = tower::service_fn(move |client: IncomingStream<'_, Door>| {
            let (origin, trusted) =
                (Origin::of_connection(client.remote_addr().ip(), scheme), Arc::clone(&trusted));
            let service = ServiceExt::<Request>::map_request(service.clone(), move |mut request: Request| {
                let origin = origin.forwarded(request.headers(), &trusted);
                request.extensions_mut().insert(origin);
                request
            });
            std::future::ready(Ok::<_, Infallible>(service))
        });
        let door = Door {
            listener: Some(listener),
            waiting: VecDeque::new(),
            tls: tls.as_ref().map(|(_, config)| config.subscribe()),
            closing: closing.clone(),
        };
        let stopping = stop.clone();
        tasks.spawn(async move {
            let _ = axum::serve(door, connected).with_graceful_shutdown(stopping.cancelled_owned()).await;
        });
        tasks.close();
        Ok(Self { app, address, closing, stop, tasks, tls, _lock: start.lock })
    }

    /// Where it listens, as a URL without a path.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { Scheme::Https } else { Scheme::Http };
        format!("{}://{}", scheme.as_str(), self.address)
    }

    /// Reads certificate and key again, for connections from now on. If something is wrong with them, that is logged and
    /// those from before go on. Does nothing where there is no TLS.
    pub fn reload_tls(&self) {
        let Some((files, config)) = &self.tls else { return };
        match tls::load(files) {
            Ok(new) => {
                config.send_replace(new);
                tracing::info!("certificate and key were read again");
            }
            Err(why) => tracing::error!("the certificate stays as it was: {why}"),
        }
    }

    /// Stops: no new request, those in flight are answered, work goes on where it is after the next start.
    pub async fn stop(self) {
        self.closing.cancel();
        self.app.clock.sleep(LAST_ANSWERS).await;
        self.stop.cancel();
        // Streams have ended by now; what is left are requests that are being answered.
        let _ = tokio::time::timeout(LAST_REQUESTS, self.tasks.wait()).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// The runtime may not have heard of a connection that the kernel has made.
    #[tokio::test]
    async fn who_stands_at_the_door_when_it_closes_is_let_in() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let closing = CancellationToken::new();
        let mut door =
            Door { listener: Some(listener), waiting: VecDeque::new(), tls: None, closing: closing.clone() };
        let clients: Vec<_> =
            (0..3).map(|_| std::net::TcpStream::connect(address).expect("connected")).collect();
        closing.cancel();
        for _ in &clients {
            door.accept().await;
        }
        let nobody = tokio::select! {
            biased;
            _ = door.accept() => false,
            () = std::future::ready(()) => true,
        };
        assert!(nobody && std::net::TcpStream::connect(address).is_err(), "nobody else is");
    }

    #[tokio::test]
    async fn a_stream_ends_whole_when_the_server_closes() {
        let closing = CancellationToken::new();
        let endless = stream::once(async { Ok::<_, std::io::Error>("first\n") }).chain(stream::pending());
        let response = end_with(&closing, Response::new(Body::from_stream(endless)));
        let read = tokio::spawn(axum::body::to_bytes(response.into_body(), 100));
        closing.cancel();
        let read = read.await.expect("it ends").expect("and is whole");
        assert!(read.is_empty() || read == "first\n");
        let whole = end_with(&closing, Response::new(Body::from("whole")));
        assert_eq!(axum::body::to_bytes(whole.into_body(), 100).await.expect("whole"), "whole");
    }
}
