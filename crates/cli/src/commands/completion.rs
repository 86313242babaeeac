//! `casemate completion`.

use clap::Args;
use clap_complete::Shell;

use crate::context::Context;
use crate::error::Result;

/// Print a script that completes commands in a shell
#[derive(Args)]
#[command(after_help = "Examples:
  casemate completion bash > ~/.local/share/bash-completion/completions/casemate
  casemate completion zsh > ~/.zfunc/_casemate
  casemate completion fish > ~/.config/fish/completions/casemate.fish")]
pub struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    pub(crate) fn run(self, cx: &Context) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut (cx.program.commands)(), "casemate", &mut script);
        cx.out.bytes(&script)
    }
}
