//! What every command works with.

use std::cell::OnceCell;

use casemate_sdk::Client;

use crate::Program;
use crate::environment::Environment;
use crate::error::{Failure, Result};
use crate::options::Options;
use crate::output::Output;
use crate::settings::Settings;

/// What every command works with. The client is made when it is first asked for.
pub(crate) struct Context {
    pub(crate) out: Output,
    pub(crate) options: Options,
    pub(crate) environment: Environment,
    pub(crate) program: Program,
    settings: OnceCell<Settings>,
    client: OnceCell<Client>,
}

impl Context {
    pub(crate) fn new(options: Options, program: Program) -> Self {
        Self::with(options, Environment::read(), program)
    }

    /// In these surroundings.
    pub(crate) fn with(options: Options, environment: Environment, program: Program) -> Self {
        let out = Output::new(&options, &environment);
        Self { out, options, environment, program, settings: OnceCell::new(), client: OnceCell::new() }
    }

    /// Which server, and with which key.
    pub(crate) fn settings(&self) -> Result<&Settings> {
        if let Some(found) = self.settings.get() {
            return Ok(found);
        }
        let found = Settings::find(&self.options, &self.environment)?;
        Ok(self.settings.get_or_init(|| found))
    }

    /// The client of that server.
    pub(crate) fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let settings = self.settings()?;
        if settings.is_nothing() {
            return Err(Failure::failed("no server is named, and there is no API key")
                .hint(
                    "`casemate dev` runs a cloud here; in its folder commands find it, elsewhere after `source \
                     FOLDER/.casemate/dev.env`",
                )
                .hint(format!(
                    "`casemate login --api-url URL` remembers another server; for Phala Cloud, `casemate login` or {} \
                     is enough",
                    casemate_sdk::API_KEY_VAR
                )));
        }
        let client = client(&settings.url, settings.key.as_ref().map(|key| key.secret.as_str()))?;
        Ok(self.client.get_or_init(|| client))
    }
}

/// A client of this server.
pub(crate) fn client(url: &str, key: Option<&str>) -> Result<Client> {
    let mut builder = Client::builder().base_url(url);
    if let Some(key) = key {
        builder = builder.api_key(key);
    }
    // A URL or key that cannot be used is something the user has typed.
    builder.build().map_err(|error| Failure::usage(error.to_string()))
}
