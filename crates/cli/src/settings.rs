//! Which server a command talks to, and with which key.
//!
//! | | address | key |
//! | --- | --- | --- |
//! | 1 | `--api-url` | `--api-key` |
//! | 2 | `PHALA_CLOUD_API_PREFIX` | `PHALA_CLOUD_API_KEY` |
//! | 3 | what `casemate login` has stored | the key stored with it |
//! | 4 | `./.casemate/dev.env` | the key in it |
//! | 5 | Phala Cloud | none |
//!
//! A stored key belongs to the address it was stored with and is never sent to another one. The file in the current
//! folder is only looked at when nobody has named a key or an address, and only believed if it names this machine: a
//! folder from somewhere else must not redirect anything.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::environment::Environment;
use crate::error::Failure;
use crate::options::Options;
use crate::profile::{self, Profile};

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An option of the command.
    Option(&'static str),
    /// A variable.
    Variable(&'static str),
    /// What `login` stored.
    Profile(PathBuf),
    /// What `dev` wrote in this folder.
    DevEnv(PathBuf),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option(name) | Self::Variable(name) => f.write_str(name),
            Self::Profile(path) | Self::DevEnv(path) => path.display().fmt(f),
            Self::Default => f.write_str("the default"),
        }
    }
}

/// The server and the key for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The base URL, `/api/v1` included.
    pub(crate) url: String,
    /// Who said so.
    pub(crate) url_from: Origin,
    /// The key.
    pub(crate) key: Option<Key>,
    /// There is a stored key, but it is for this other address.
    pub(crate) other: Option<String>,
}

/// An API key. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    /// The key. A secret.
    pub(crate) secret: String,
    /// Who said so.
    pub(crate) from: Origin,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("from", &self.from).finish_non_exhaustive()
    }
}

impl Settings {
    /// Finds them.
    pub(crate) fn find(options: &Options, environment: &Environment) -> Result<Self, Failure> {
        let named = |option: &Option<String>, name, variable: &Option<String>, variable_name| {
            let option =
                option.clone().filter(|text| !text.is_empty()).map(|text| (text, Origin::Option(name)));
            option.or_else(|| variable.clone().map(|text| (text, Origin::Variable(variable_name))))
        };
        let url = named(&options.api_url, "--api-url", &environment.api_url, casemate_sdk::BASE_URL_VAR);
        let key = named(&options.api_key, "--api-key", &environment.api_key, casemate_sdk::API_KEY_VAR);
        let key = key.map(|(secret, from)| Key { secret, from });
        if let (Some((url, url_from)), Some(key)) = (&url, &key) {
            return Ok(Self {
                url: complete(url),
                url_from: url_from.clone(),
                key: Some(key.clone()),
                other: None,
            });
        }
        let stored = match stored(environment)? {
            // A variable with a key is no wish to use what lies around in a folder.
            Some((_, Origin::DevEnv(_))) if key.is_some() => None,
            stored => stored,
        };
        let (url, url_from) = match (url, &stored) {
            (Some((url, from)), _) => (complete(&url), from),
            (None, Some((profile, from))) => (complete(&profile.api_url), from.clone()),
            (None, None) => (casemate_sdk::DEFAULT_BASE_URL.to_owned(), Origin::Default),
        };
        let (stored_key, other) = match stored {
            None => (None, None),
            Some((profile, from)) if complete(&profile.api_url) == url => {
                (Some(Key { secret: profile.api_key, from }), None)
            }
            Some((profile, _)) => (None, Some(profile.api_url)),
        };
        Ok(Self { url, url_from, key: key.or(stored_key), other })
    }
}

impl Settings {
    /// Nobody has named a server or a key, so that there is nothing to ask and nobody to ask it as.
    pub(crate) fn is_nothing(&self) -> bool {
        self.url_from == Origin::Default && self.key.is_none()
    }
}

/// What `login` stored, or else what `dev` wrote here.
fn stored(environment: &Environment) -> Result<Option<(Profile, Origin)>, Failure> {
    if let Some(path) = profile::path(environment)
        && let Some(profile) = profile::read(&path)?
    {
        return Ok(Some((profile, Origin::Profile(path))));
    }
    let path = environment.folder.join(".casemate").join("dev.env");
    Ok(dev_env(&path).map(|profile| (profile, Origin::DevEnv(Path::new(".casemate").join("dev.env")))))
}

/// Reads what `dev` wrote, if it names this machine.
fn dev_env(path: &Path) -> Option<Profile> {
    let text = std::fs::read_to_string(path).ok()?;
    let vars = casemate_types::env::parse_env_file(&text);
    let value = |name| vars.iter().find(|var| var.key == name).map(|var| var.value.clone());
    let api_url = value(casemate_sdk::BASE_URL_VAR)?;
    let api_key = value(casemate_sdk::API_KEY_VAR)?;
    is_here(&api_url).then_some(Profile { api_url, api_key })
}

/// Whether an address is on this machine.
fn is_here(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else {
        return false;
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An address without a path is that of a server, whose API is below `/api/v1`.
pub(crate) fn complete(url: &str) -> String {
    let url = url.trim().trim_end_matches('/');
    match url.split_once("://") {
        Some((_, rest)) if !rest.contains('/') => format!("{url}/api/v1"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str =
        "export PHALA_CLOUD_API_PREFIX=http://127.0.0.1:8440/api/v1\nexport PHALA_CLOUD_API_KEY=phak_dev\n";

    struct World {
        _folder: tempfile::TempDir,
        environment: Environment,
        options: Options,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let environment = Environment {
                config_home: Some(folder.path().join("config")),
                folder: folder.path().join("here"),
                ..Environment::default()
            };
            Self { _folder: folder, environment, options: Options::default() }
        }

        fn login(self, url: &str, key: &str) -> Self {
            let path = profile::path(&self.environment).unwrap();
            profile::write(&path, &Profile { api_url: url.into(), api_key: key.into() }).unwrap();
            self
        }

        fn dev(self, text: &str) -> Self {
            let folder = self.environment.folder.join(".casemate");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("dev.env"), text).unwrap();
            self
        }

        /// Address and key, as two words.
        fn found(&self) -> (String, String) {
            let found = Settings::find(&self.options, &self.environment).unwrap();
            (found.url, found.key.map_or_else(|| "none".into(), |key| key.secret))
        }
    }

    fn pair(url: &str, key: &str) -> (String, String) {
        (url.into(), key.into())
    }

    #[test]
    fn an_option_goes_before_a_variable_before_what_is_stored_before_this_folder() {
        let mut world = World::new();
        assert_eq!(world.found(), pair(casemate_sdk::DEFAULT_BASE_URL, "none"));
        world = world.dev(DEV);
        assert_eq!(world.found(), pair("http://127.0.0.1:8440/api/v1", "phak_dev"));
        world = world.login("https://one.example/api/v1", "phak_one");
        assert_eq!(world.found(), pair("https://one.example/api/v1", "phak_one"));
        world.environment.api_key = Some("phak_env".into());
        assert_eq!(world.found(), pair("https://one.example/api/v1", "phak_env"));
        world.environment.api_url = Some("https://two.example/api/v1".into());
        assert_eq!(world.found(), pair("https://two.example/api/v1", "phak_env"));
        world.options.api_url = Some("https://three.example/api/v1".into());
        world.options.api_key = Some("phak_option".into());
        assert_eq!(world.found(), pair("https://three.example/api/v1", "phak_option"));
    }

    #[test]
    fn a_stored_key_stays_with_its_address() {
        let mut world = World::new().login("https://one.example", "phak_one");
        world.options.api_url = Some("https://two.example".into());
        assert_eq!(world.found(), pair("https://two.example/api/v1", "none"));
        let found = Settings::find(&world.options, &world.environment).unwrap();
        assert_eq!(found.other.as_deref(), Some("https://one.example"));
        world.options.api_url = Some("https://one.example/api/v1/".into());
        assert_eq!(world.found(), pair("https://one.example/api/v1", "phak_one"));
    }

    #[test]
    fn a_folder_cannot_redirect_a_key_or_lead_elsewhere() {
        let mut world = World::new().dev(DEV);
        world.environment.api_key = Some("phak_cloud".into());
        assert_eq!(world.found(), pair(casemate_sdk::DEFAULT_BASE_URL, "phak_cloud"));
        for url in [
            "https://evil.example/api/v1",
            "http://127.0.0.1.evil.example/",
            "http://127.0.0.1@evil.example/",
        ] {
            let world = World::new().dev(&DEV.replace("http://127.0.0.1:8440/api/v1", url));
            assert_eq!(world.found(), pair(casemate_sdk::DEFAULT_BASE_URL, "none"), "{url}");
        }
    }

    #[test]
    fn an_address_without_a_path_gets_one() {
        assert_eq!(complete("http://localhost:8440"), "http://localhost:8440/api/v1");
        assert_eq!(complete("http://localhost:8440/"), "http://localhost:8440/api/v1");
        assert_eq!(complete("http://localhost/v1/"), "http://localhost/v1");
    }

    #[test]
    fn this_machine_has_a_few_names() {
        for url in ["http://localhost:1/x", "http://127.0.0.2", "https://[::1]:8440/api/v1"] {
            assert!(is_here(url), "{url}");
        }
        for url in ["http://10.0.0.1", "http://[fe80::1]/", "ftp://localhost", "localhost"] {
            assert!(!is_here(url), "{url}");
        }
    }
}
