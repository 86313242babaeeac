//! Options of every client command, behind it or in front of it.

use clap::Args;

/// The same options in front of the command: `casemate --json cvms list`.
#[derive(Args, Clone, Debug, Default)]
#[command(mut_args = |arg| arg.global(false).help_heading("Options of commands that talk to a server"))]
pub struct Early {
    #[command(flatten)]
    options: Options,
}

impl Early {
    /// The first option that was given.
    pub fn given(&self) -> Option<&'static str> {
        let Options { json, quiet, yes, api_url, api_key } = &self.options;
        [
            (*json, "--json"),
            (*quiet, "--quiet"),
            (*yes, "--yes"),
            (api_url.is_some(), "--api-url"),
            (api_key.is_some(), "--api-key"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }
}

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

impl Options {
    /// With those in front of the command; one behind it wins.
    pub(crate) fn or(self, Early { options: early }: Early) -> Self {
        Self {
            json: self.json || early.json,
            quiet: self.quiet || early.quiet,
            yes: self.yes || early.yes,
            api_url: self.api_url.or(early.api_url),
            api_key: self.api_key.or(early.api_key),
        }
    }
}
