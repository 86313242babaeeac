//! `make bench`: Casemate beside limit servers of our own, as ratios, in one run.
//!
//! A figure in microseconds says more about the machine than about the program, so nothing here is judged by one. Every goal
//! is a ratio between the product and a yardstick that is measured in the same minute, on the same core, by the same load:
//!
//! * [`limit`]: bare servers that do just the named work. They are as fast as the approach allows, so a ratio is the price of
//!   everything that the product does beside it.
//! * the `phala` command from npm, for the command line.
//!
//! The product is the release build of `casemate serve`, in a process of its own, on a folder that [`fill`] prepared through the
//! store itself. Server and load generator have a core each. [`measure`] takes the rounds, product and yardstick in turn,
//! and [`report`] prints the table. `docs/benchmarks.md` explains every row.

#![expect(clippy::disallowed_methods, reason = "a benchmark asks for the real time")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod cli;
mod fill;
mod flush;
mod limit;
mod load;
mod machines;
mod measure;
mod node;
mod process;
mod report;

/// The limit servers get their memory from where the product does: which one that is, is no work of theirs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Anything that keeps a measurement from being taken.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Outcome of something that measures.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Measure Casemate beside limit servers of its own, as ratios.
#[derive(Parser)]
#[command(name = "casemate-benches", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    measure: measure::Options,
    #[command(subcommand)]
    part: Option<Part>,
}

/// The other processes of a measurement. They are started by it.
#[derive(Subcommand)]
enum Part {
    /// Fill data folders, then be their node
    Node(node::Options),
    /// One indexed row, a key check, 2 KB of JSON
    LimitGet(limit::Options),
    /// Durable accepts, whatever waits in one commit
    LimitAcceptGroup(limit::Options),
    /// Durable accepts, one commit each
    LimitAcceptOne(limit::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.part {
        None => measure::run(&arguments.measure),
        Some(part) => run_part(part).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn run_part(part: Part) -> Result<()> {
    // As many workers as cores: what a server does if nobody says otherwise, and what the product does.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match part {
            Part::Node(options) => node::run(options).await,
            Part::LimitGet(options) => limit::get::run(options).await,
            Part::LimitAcceptGroup(options) => {
                limit::accept::run(options, limit::accept::Commit::Group).await
            }
            Part::LimitAcceptOne(options) => limit::accept::run(options, limit::accept::Commit::Each).await,
        }
    })
}
