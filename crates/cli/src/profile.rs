//! What `casemate login` remembers: a server and a key for it, in a file that only its owner can read.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::error::Failure;

/// A server and a key for it. `Debug` is not there: the key is a secret.
#[derive(Serialize, Deserialize)]
pub(crate) struct Profile {
    /// The base URL.
    pub(crate) api_url: String,
    /// The key.
    pub(crate) api_key: String,
}

/// Where it is kept; `None` for a user without a home.
pub(crate) fn path(environment: &Environment) -> Option<PathBuf> {
    environment.config_home.as_ref().map(|home| home.join("casemate").join("profile.json"))
}

/// What is remembered, if anything is.
pub(crate) fn read(path: &Path) -> Result<Option<Profile>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::usage(format!("cannot read {}: {error}", path.display()))),
    };
    let profile = serde_json::from_str(&text).map_err(|error| {
        Failure::usage(format!("{} is damaged: {error}", path.display()))
            .hint("`casemate login` writes it anew")
    })?;
    Ok(Some(profile))
}

/// Remembers it. The file appears whole or not at all.
pub(crate) fn write(path: &Path, profile: &Profile) -> Result<(), Failure> {
    let failed = |error| Failure::failed(format!("cannot write {}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let half = path.with_extension("json.new");
    let _ = std::fs::remove_file(&half);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&half).map_err(failed)?;
    let text = serde_json::to_string_pretty(profile).expect("two strings always serialise");
    writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(half, path).map_err(failed)
}

/// Forgets it. Whether there was anything.
pub(crate) fn remove(path: &Path) -> Result<bool, Failure> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::failed(format!("cannot remove {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_profile_comes_back_and_is_nobody_elses_business() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("casemate/profile.json");
        assert!(read(&path).unwrap().is_none());
        for key in ["phak_one", "phak_two"] {
            write(&path, &Profile { api_url: "http://h".into(), api_key: key.into() }).unwrap();
            assert_eq!(read(&path).unwrap().unwrap().api_key, key);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }

    #[test]
    fn a_damaged_profile_is_said_to_be_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.json");
        std::fs::write(&path, "{").unwrap();
        assert!(read(&path).is_err());
    }
}
