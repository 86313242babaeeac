//! `casemate cvms logs`.

use casemate_sdk::wire::Status;
use casemate_sdk::{Error, LogSource};
use clap::{Args, ValueEnum};
use futures_util::StreamExt;

use crate::context::Context;
use crate::error::{AboutExt, Failure, Result};

/// Print the log of a container, or of the machine
#[derive(Args)]
#[command(after_help = "Examples:
  casemate cvms logs web-1                         its first container
  casemate cvms logs web-1 db --follow --tail 20   the container `db`, as it goes on
  casemate cvms logs web-1 --channel serial        how it booted")]
pub(crate) struct Logs {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    /// The container, by name; the first one unless given
    #[arg(value_name = "CONTAINER", conflicts_with = "channel")]
    container: Option<String>,
    /// The machine's own log instead: its serial console, or what its program wrote
    #[arg(long, value_enum)]
    channel: Option<Channel>,
    /// Go on as lines are added
    #[arg(long, short)]
    follow: bool,
    /// Only the last so many lines
    #[arg(long, short = 'n', value_name = "LINES")]
    tail: Option<u32>,
    /// Only from then on: a time such as 2026-03-01T12:00:00Z, or how long ago, such as 42m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// With the time of each line
    #[arg(long, short)]
    timestamps: bool,
}

/// A log of the machine.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Channel {
    /// The serial console
    Serial,
    /// What the machine's program wrote
    Stdout,
    /// What the machine's program complained about
    Stderr,
}

impl Logs {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let source = match (self.channel, self.container) {
            (Some(Channel::Serial), _) => LogSource::Serial,
            (Some(Channel::Stdout), _) => LogSource::Stdout,
            (Some(Channel::Stderr), _) => LogSource::Stderr,
            (None, Some(name)) => LogSource::Container(name),
            (None, None) => LogSource::AnyContainer,
        };
        let is_container = matches!(source, LogSource::Container(_) | LogSource::AnyContainer);
        let mut logs = cx.client()?.cvm(&self.cvm).logs(source);
        if let Some(lines) = self.tail {
            logs = logs.tail(lines);
        }
        if let Some(since) = self.since {
            logs = logs.since(since);
        }
        if let Some(until) = self.until {
            logs = logs.until(until);
        }
        if self.timestamps {
            logs = logs.timestamps();
        }
        if !self.follow {
            return match logs.send().await {
                Ok(text) => cx.out.bytes(text.as_bytes()),
                Err(error) => Err(explained(cx, &self.cvm, is_container, error).await),
            };
        }
        let mut pieces = logs.follow();
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => cx.out.bytes(&piece)?,
                Err(error) => return Err(explained(cx, &self.cvm, is_container, error).await),
            }
        }
        Ok(())
    }
}

/// Why there is no log: a machine that is off has no containers, one that runs has others.
async fn explained(cx: &Context, name: &str, is_container: bool, error: Error) -> Failure {
    if !is_container || !matches!(error, Error::NotFound(_)) {
        return about(error, name);
    }
    let known = async {
        let cvm = cx.client().ok()?.cvm(name);
        Some((cvm.get().await.ok()?.status, cvm.composition().await.ok()?.containers.unwrap_or_default()))
    };
    let Some((status, containers)) = known.await else { return about(error, name) };
    let serial = format!("`casemate cvms logs {name} --channel serial` shows the machine's own log");
    match status {
        Status::Running if containers.is_empty() => {
            Failure::failed(format!("{name} has no containers yet")).hint(serial)
        }
        Status::Running => {
            let names: Vec<_> = containers
                .iter()
                .filter_map(|container| container.names.first())
                .map(|name| name.trim_start_matches('/'))
                .collect();
            Failure::failed(error.to_string()).hint(format!("its containers are {}", names.join(", ")))
        }
        status => Failure::failed(format!("{name} is {status}, so it has no containers with a log"))
            .hint(serial)
            .hint(format!("`casemate cvms start {name}` switches it on")),
    }
}

fn about(error: Error, name: &str) -> Failure {
    Err::<(), _>(error).about_cvm(name).expect_err("it is an error")
}
