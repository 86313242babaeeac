//! The one program: the cloud (`dev`, `serve`, with their helpers) and the commands that talk to one.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[cfg(feature = "server")]
mod cloud;
#[cfg(all(feature = "server", feature = "client"))]
mod demo;
#[cfg(feature = "server")]
mod dev_chain;
#[cfg(feature = "server")]
mod keys;
#[cfg(feature = "server")]
mod nodes;
#[cfg(feature = "server")]
mod sim;

/// A server asks for and gives back some forty pieces of memory in each request; this one is quicker about it than the system's.
#[cfg(feature = "server")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A cloud for confidential virtual machines, and the commands to use one.
#[derive(Parser)]
#[command(name = "casemate", version, propagate_version = true, max_term_width = 100)]
#[cfg_attr(feature = "server", command(after_help = START))]
struct Arguments {
    #[cfg(feature = "client")]
    #[command(flatten)]
    early: casemate_cli::Early,
    #[command(subcommand)]
    command: Command,
}

/// Where to begin.
#[cfg(feature = "server")]
const START: &str = "To begin:
  casemate dev --demo      a whole cloud on this machine, with an example app
  casemate deploy          in another terminal, in a folder with a compose file
  casemate cvms list";

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "server")]
    #[command(flatten)]
    Server(ServerCommand),
    #[cfg(feature = "client")]
    #[command(flatten)]
    Client(casemate_cli::Command),
}

#[cfg(feature = "server")]
#[derive(Subcommand)]
enum ServerCommand {
    /// Start a whole cloud on this machine, with no set-up
    Dev(cloud::Dev),
    /// Start the production server
    Serve(cloud::Serve),
    /// Make an API key offline, in a data folder: `keys create --data` under its older name
    #[command(hide = true)]
    Setup(keys::Setup),
    /// Bring the store of a data folder up to date
    Migrate(cloud::Migrate),
    /// Print the OpenAPI document
    Openapi,
    /// Run a simulated node as a process of its own
    #[command(hide = true)]
    Sim(sim::Simulate),
}

/// What the client commands can ask of the rest.
#[cfg(feature = "client")]
const PROGRAM: casemate_cli::Program = casemate_cli::Program {
    commands: <Arguments as clap::CommandFactory>::command,
    #[cfg(feature = "server")]
    key_in_folder: Some(keys::in_folder),
    #[cfg(not(feature = "server"))]
    key_in_folder: None,
    #[cfg(feature = "server")]
    container_images: Some(nodes::container_images::HERE),
    #[cfg(not(feature = "server"))]
    container_images: None,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        #[cfg(feature = "server")]
        Command::Server(command) => {
            #[cfg(feature = "client")]
            if let Some(option) = arguments.early.given() {
                eprintln!("error: {option} is an option of commands that talk to a server");
                return ExitCode::from(2);
            }
            run_server(command)
        }
        #[cfg(feature = "client")]
        Command::Client(command) => casemate_cli::run(command, arguments.early, PROGRAM),
    }
}

#[cfg(feature = "server")]
fn run_server(command: ServerCommand) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(async {
            match command {
                ServerCommand::Dev(dev) => dev.run().await,
                ServerCommand::Serve(serve) => serve.run().await,
                ServerCommand::Setup(setup) => setup.run().await,
                ServerCommand::Migrate(migrate) => migrate.run(),
                ServerCommand::Openapi => cloud::print_openapi(),
                ServerCommand::Sim(simulate) => simulate.run().await,
            }
        });
        // Watchers still connected do not keep the program from ending.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
