//! Options of every client command.

use clap::Args;

// No doc comment: it would take the place of the help text of the command that has these options.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Options {
    /// Print the answer as the server's API gives it, and nothing else
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing that is not the result
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Answer every question with yes
    #[arg(long, short, global = true)]
    pub(crate) yes: bool,
    /// Where the server is [env: PHALA_CLOUD_API_PREFIX] [default: what `casemate login` stored]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) api_url: Option<String>,
    /// API key; in the variable, other users of this machine cannot see it [env: PHALA_CLOUD_API_KEY]
    #[arg(long, global = true, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
}
