//! The embedded key service: one file of root keys, from which every app's keys follow.
//!
//! It derives and signs as `dstack-kms` does, so guests and clients cannot tell the two apart. What it cannot do is prove
//! that nobody read the root keys: whoever runs the server could.
//!
//! Secrets leave this crate only as results of a call, never through `Debug`, an error or a log.

mod file;
mod root;
mod signature;

pub use root::{AppKeys, RootKeys};
pub use signature::{MAX_AGE_S, MAX_AHEAD_S, SignatureError, verify_env_public_key};

use std::path::PathBuf;

use casemate_types::env::EnvError;

/// What can go wrong with keys.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot {doing} the root keys at {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Others than the owner may use the file.
    #[error("the root keys at {} have mode {mode:04o}; only the owner may use them: chmod 600", path.display())]
    LaxMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not one that this crate wrote.
    #[error("the root keys at {} are not readable: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// 32 bytes that are no private key of their curve. Among derived ones, one in four billion is.
    #[error("no usable {curve} key")]
    NoKey {
        /// The curve.
        curve: &'static str,
    },
    /// The environment cannot be opened.
    #[error(transparent)]
    Env(#[from] EnvError),
}

/// What a call gives, or what went wrong.
pub type Result<T> = std::result::Result<T, Error>;
