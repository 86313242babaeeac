//! What the process was started with. The environment is read here and nowhere else.

use std::io::IsTerminal;
use std::path::PathBuf;

use zeroize::Zeroizing;

/// The variable with a private key to sign with.
pub(crate) const PRIVATE_KEY_VAR: &str = "PRIVATE_KEY";

/// The variable with the RPC address of a node.
pub(crate) const RPC_URL_VAR: &str = "ETH_RPC_URL";

/// The parts of the environment that matter to a command.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// `PHALA_CLOUD_API_PREFIX`.
    pub(crate) api_url: Option<String>,
    /// `PHALA_CLOUD_API_KEY`.
    pub(crate) api_key: Option<String>,
    /// `ETH_RPC_URL`.
    pub(crate) rpc_url: Option<String>,
    /// `PRIVATE_KEY` is looked at; in tests it is not.
    pub(crate) has_variables: bool,
    /// Where settings of a user are kept: `$XDG_CONFIG_HOME` or `~/.config`.
    pub(crate) config_home: Option<PathBuf>,
    /// The folder that the command runs in.
    pub(crate) folder: PathBuf,
    /// Colour and moving lines are welcome on standard error.
    pub(crate) lively: bool,
    /// Somebody reads standard output as it comes.
    pub(crate) stdout_is_terminal: bool,
    /// Somebody can be asked.
    pub(crate) can_ask: bool,
}

impl Environment {
    /// Looks around. A variable that is empty counts as unset.
    pub(crate) fn read() -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
        let var = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let home = || var("HOME").map(|home| PathBuf::from(home).join(".config"));
        let stderr = std::io::stderr().is_terminal();
        let plain = var("NO_COLOR").is_some() || var("TERM").is_some_and(|term| term == "dumb");
        Self {
            api_url: var(casemate_sdk::BASE_URL_VAR),
            api_key: var(casemate_sdk::API_KEY_VAR),
            rpc_url: var(RPC_URL_VAR),
            has_variables: true,
            // The specification of these folders says that a relative one is to be ignored.
            config_home: var("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
                .or_else(home),
            folder: std::env::current_dir().unwrap_or_default(),
            lively: stderr && !plain,
            stdout_is_terminal: std::io::stdout().is_terminal(),
            can_ask: stderr && std::io::stdin().is_terminal(),
        }
    }

    /// `PRIVATE_KEY`, read when it is needed and not kept.
    pub(crate) fn private_key(&self) -> Option<Zeroizing<String>> {
        #[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
        let key = self.has_variables.then(|| std::env::var(PRIVATE_KEY_VAR).ok()).flatten();
        key.map(Zeroizing::new).filter(|text| !text.trim().is_empty())
    }
}
