//! Logs of CVMs. They are read from addresses that the server gives, and that need no key.

use std::fmt::Display;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use reqwest::Url;

use crate::call::{shown, transport};
use crate::cvm::Cvm;
use crate::error::{Error, Failure, Result};

/// Which log of a CVM.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogSource {
    /// The serial console: how it boots.
    Serial,
    /// What the machine's program wrote.
    Stdout,
    /// What the machine's program complained about.
    Stderr,
    /// A container, by name.
    Container(String),
    /// The first container that has a log.
    AnyContainer,
}

/// Logs of a CVM: [`Cvm::logs`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use casemate_sdk::LogSource;
///
/// print!("{}", client.cvm("web-1").logs(LogSource::Serial).tail(50).send().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send` or `stream`"]
pub struct Logs {
    cvm: Cvm,
    source: LogSource,
    query: Vec<(&'static str, String)>,
}

impl Logs {
    pub(crate) fn new(cvm: Cvm, source: LogSource) -> Self {
        Self { cvm, source, query: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.query.push((name, value.to_string()));
        self
    }

    /// Only the last so many lines.
    pub fn tail(self, lines: u32) -> Self {
        self.with("tail", lines).with("lines", lines)
    }

    /// Only from then on: a time as RFC 3339, or how long ago, such as `42m`.
    pub fn since(self, since: impl Display) -> Self {
        self.with("since", since)
    }

    /// Only until then: a time as RFC 3339, or how long ago.
    pub fn until(self, until: impl Display) -> Self {
        self.with("until", until)
    }

    /// With the time of each line.
    pub fn timestamps(self) -> Self {
        self.with("timestamps", "")
    }

    /// With colours, if the program wrote any.
    pub fn ansi(self) -> Self {
        self.with("ansi", "")
    }

    /// What is in the log now.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the CVM, the container or its log is not there, and what every request can fail with.
    pub async fn send(self) -> Result<String> {
        let mut text = Vec::new();
        let mut chunks = self.open().await?;
        while let Some(chunk) = chunks.try_next().await? {
            text.extend_from_slice(&chunk);
        }
        Ok(String::from_utf8(text)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// What is in the log now and whatever is added to it, in pieces that may end within a line. Ends when the server ends it.
    /// The errors of the stream are those of [`send`](Self::send); after one, it ends.
    pub fn follow(self) -> BoxStream<'static, Result<Bytes>> {
        let opened = async { self.with("follow", "").open().await };
        stream::once(opened).try_flatten().boxed()
    }

    async fn open(self) -> Result<BoxStream<'static, Result<Bytes>>> {
        let url = self.url().await?;
        let request = reqwest::Request::new(reqwest::Method::GET, url.clone());
        let sent = self.cvm.client().transport(&url)?.execute(request).await;
        let response = sent.map_err(|error| transport(shown(&url), error))?;
        let status = response.status();
        if !status.is_success() {
            let headers = response.headers().clone();
            let body = response.bytes().await.unwrap_or_default();
            return Err(Error::from_failure(Failure::read(status, &headers, &body)));
        }
        Ok(response.bytes_stream().map_err(move |error| transport(shown(&url), error)).boxed())
    }

    async fn url(&self) -> Result<Url> {
        let (address, plain) = match &self.source {
            LogSource::Serial => (self.cvm.get().await?.logs.serial, false),
            LogSource::Stdout => (self.cvm.get().await?.logs.stdout, false),
            LogSource::Stderr => (self.cvm.get().await?.logs.stderr, false),
            LogSource::Container(name) => (self.container(Some(name)).await?, true),
            LogSource::AnyContainer => (self.container(None).await?, true),
        };
        let address = address.ok_or_else(|| Error::missing("the CVM has no such log"))?;
        let mut url: Url = Url::parse(&address).map_err(|error| Error::Decode {
            url: self.cvm.client().base_url().to_owned(),
            source: error.into(),
        })?;
        {
            let mut query = url.query_pairs_mut();
            if plain {
                query.append_key_only("text").append_key_only("bare");
            }
            for (name, value) in &self.query {
                if value.is_empty() {
                    query.append_key_only(name)
                } else {
                    query.append_pair(name, value)
                };
            }
        }
        Ok(url)
    }

    async fn container(&self, name: Option<&str>) -> Result<Option<String>> {
        let containers = self.cvm.composition().await?.containers.unwrap_or_default();
        let Some(name) = name else { return Ok(containers.into_iter().find_map(|one| one.log_endpoint)) };
        let found = containers.into_iter().find(|one| one.names.iter().any(|known| is_called(known, name)));
        let found = found.ok_or_else(|| Error::missing(format!("the CVM has no container `{name}`")))?;
        Ok(found.log_endpoint)
    }
}

/// Containers are called `/<service>-<number>`; the service alone will do.
fn is_called(known: &str, name: &str) -> bool {
    let known = known.strip_prefix('/').unwrap_or(known);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    known == name.strip_prefix('/').unwrap_or(name)
        || known.rsplit_once('-').is_some_and(|(service, number)| service == name && is_number(number))
}
