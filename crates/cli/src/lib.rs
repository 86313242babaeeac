//! The client commands, over the SDK.
//!
//! | module | does |
//! | --- | --- |
//! | `options`, `value` | what can be typed |
//! | `environment`, `settings`, `profile` | which server, and with which key |
//! | `context` | what every command works with |
//! | `commands` | one file a command, or a group of small ones |
//! | `progress` | follows an operation, step by step |
//! | `output`, `human` | what is said: results to standard output, the rest to standard error |
//! | `error`, `explain` | what failed, and what to do about it |
//!
//! With `--json` a command prints what the API answers, and nothing else. Exit codes are 0 for done, 1 for a request that
//! failed, 2 for a wrong command line.

mod commands;
mod context;
mod environment;
mod error;
mod explain;
mod human;
mod options;
mod output;
mod profile;
mod progress;
mod settings;
mod value;

use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;

use clap::Args;

use crate::context::Context;
use crate::error::Result;
use crate::options::Options;

pub use crate::options::Early;

/// A client command. Only the one that is called is put together: a program that starts in a few milliseconds has no time
/// for the others.
#[derive(clap::Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Deploy an app: makes the CVM of this name, or updates it
    Deploy(Box<Call<commands::deploy::Deploy>>),
    /// List, change and follow CVMs
    Cvms(Call<commands::cvms::Cvms>),
    /// List and follow operations, the work on CVMs
    Ops(Call<commands::ops::Ops>),
    /// List, sign and commit what waits for a yes on chain
    Approvals(Call<commands::approvals::Approvals>),
    /// List apps, the identities that CVMs share
    Apps(Call<commands::apps::Apps>),
    /// List OS images, and import, list and remove container images
    Images(Call<commands::images::Images>),
    /// List nodes, the hosts that CVMs run on
    Nodes(Call<commands::nodes::Nodes>),
    /// List key services and their public keys
    Kms(Call<commands::kms::Kms>),
    /// List, create and revoke API keys
    Keys(Call<commands::keys::Keys>),
    /// Show who changed what, and when; oldest first
    Audit(Call<commands::audit::Audit>),
    /// Remember a server and a key for it
    Login(Call<commands::login::Login>),
    /// Forget the server and its key
    Logout(Call<commands::login::Logout>),
    /// Show whose key is used, and where
    Whoami(Call<commands::whoami::Whoami>),
    /// Look for what keeps commands from working
    Doctor(Call<commands::doctor::Doctor>),
    /// Print a script that completes commands in a shell
    Completion(Call<commands::completion::Completion>),
}

// A command and the options that every command has.
#[derive(Args)]
#[expect(missing_docs, reason = "a doc comment here would take the place of the command's own help text")]
pub struct Call<T: Args> {
    #[command(flatten)]
    what: T,
    #[command(flatten)]
    options: Options,
}

/// What the program around these commands can do.
#[derive(Clone, Copy)]
pub struct Program {
    /// All of its commands, for shell completion.
    pub commands: fn() -> clap::Command,
    /// Makes an API key in the data folder of a server that is not running; `None` in a program without a server.
    pub key_in_folder: Option<KeyInFolder>,
    /// What can be done with the container images in a server's data folder, if the program has a server.
    pub container_images: Option<ContainerImages>,
}

/// Makes a key in a data folder.
pub type KeyInFolder = fn(FolderKey) -> MadeKey;

/// What can be done with the container images in a data folder. The server may be running; what goes wrong is told in words.
#[derive(Clone, Copy)]
pub struct ContainerImages {
    /// Brings images in; their names and digests.
    pub import: fn(ImagesFrom) -> Result<Imported, String>,
    /// Those that have a name.
    pub list: fn(&std::path::Path) -> Result<Vec<LocalImage>, String>,
    /// Takes the name of an image away, and what nothing needs without it.
    pub remove: fn(&std::path::Path, &str) -> Result<Freed, String>,
    /// Removes what nothing needs and nobody has used lately.
    pub collect: fn(&std::path::Path, Collect) -> Result<Freed, String>,
}

/// Names, and the digests of what they mean now.
pub type Imported = Vec<(String, String)>;

/// What is to be removed.
#[derive(Clone, Copy, Debug)]
pub struct Collect {
    /// Nothing that was used in so many days.
    pub keep_days: u32,
    /// Only say what it would be.
    pub dry_run: bool,
}

/// A container image in a data folder.
#[derive(Debug, serde::Serialize)]
pub struct LocalImage {
    /// Its name.
    pub name: String,
    /// `sha256:…` of what the name means.
    pub digest: String,
    /// How large it is, packed. Images may share parts.
    pub bytes: u64,
}

/// What was removed, or would be.
#[derive(Debug, serde::Serialize)]
pub struct Freed {
    /// How many bytes are free again.
    pub bytes: u64,
    /// The names that mean nothing any more.
    pub names: Vec<String>,
}

/// Container images, and the data folder that they are for.
#[derive(Debug)]
pub struct ImagesFrom {
    /// Data folder of a server, which may be running.
    pub data: std::path::PathBuf,
    /// An OCI image layout, as a folder or a tar archive, or what `docker save` writes.
    pub path: std::path::PathBuf,
    /// What to call the image, if it is one.
    pub name: Option<String>,
}

/// The key, or why there is none, for people.
pub type MadeKey = Pin<Box<dyn Future<Output = Result<String, String>>>>;

/// A key to be made in a data folder.
#[derive(Clone, Debug)]
pub struct FolderKey {
    /// The folder.
    pub data: PathBuf,
    /// The workspace; made if it does not exist.
    pub workspace: String,
    /// What to call the key.
    pub name: String,
}

/// Runs a command to its end, with the options that were given in front of it. It has then said everything.
pub fn run(command: Command, early: Early, program: Program) -> ExitCode {
    let cx = Context::new(command.options().clone().or(early), program);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            output::complain(&format!("error: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        match command.run(&cx).await {
            Ok(()) => 0,
            Err(failure) => {
                let code = failure.code();
                failure.report(&cx).await;
                code
            }
        }
    });
    // A name that is still being looked up does not keep the program from ending.
    runtime.shutdown_background();
    ExitCode::from(code)
}

impl Command {
    fn options(&self) -> &Options {
        match self {
            Self::Deploy(call) => &call.options,
            Self::Cvms(call) => &call.options,
            Self::Ops(call) => &call.options,
            Self::Approvals(call) => &call.options,
            Self::Apps(call) => &call.options,
            Self::Images(call) => &call.options,
            Self::Nodes(call) => &call.options,
            Self::Kms(call) => &call.options,
            Self::Keys(call) => &call.options,
            Self::Audit(call) => &call.options,
            Self::Login(call) => &call.options,
            Self::Logout(call) => &call.options,
            Self::Whoami(call) => &call.options,
            Self::Doctor(call) => &call.options,
            Self::Completion(call) => &call.options,
        }
    }

    async fn run(self, cx: &Context) -> Result<()> {
        match self {
            Self::Deploy(call) => call.what.run(cx).await,
            Self::Cvms(call) => call.what.run(cx).await,
            Self::Ops(call) => call.what.run(cx).await,
            Self::Approvals(call) => call.what.run(cx).await,
            Self::Apps(call) => call.what.run(cx).await,
            Self::Images(call) => call.what.run(cx).await,
            Self::Nodes(call) => call.what.run(cx).await,
            Self::Kms(call) => call.what.run(cx).await,
            Self::Keys(call) => call.what.run(cx).await,
            Self::Audit(call) => call.what.run(cx).await,
            Self::Login(call) => call.what.run(cx).await,
            Self::Logout(call) => call.what.run(cx),
            Self::Whoami(call) => call.what.run(cx).await,
            Self::Doctor(call) => call.what.run(cx).await,
            Self::Completion(call) => call.what.run(cx),
        }
    }
}
