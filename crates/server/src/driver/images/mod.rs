//! Container images of the machines of this host: an OCI image layout, in which a blob is found by its digest and a reference by
//! the list in `index.json`.
//!
//! A blob gets its name only when all of it is there and hashes to that name, so whatever has a name is right unless the disk
//! damages it later; [`ImageStore::disk`] hashes again what goes to a machine.

mod gc;
mod import;
mod manifest;
mod pull;
mod reference;
mod registry;
mod root;
mod store;

pub use self::gc::{Freed, Mode, Shown, Using};
pub use self::pull::Login;
pub use self::reference::Reference;
pub use self::root::UNPACKER;
pub(super) use self::root::is_whole;
pub use self::store::{Held, ImageStore, KEEP, Rules};

/// Why an image is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It never will be, as things are.
    #[error("{0}")]
    Refused(String),
    /// It may be later.
    #[error("{0}")]
    Later(String),
}

/// Outcome of looking for an image.
pub type Result<T> = std::result::Result<T, Error>;

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return Self::Refused(format!(
                "the disk of the store of container images is full: {error}; make room there, or remove images: casemate images gc"
            ));
        }
        Self::Later(format!("the store of container images: {error}"))
    }
}

#[cfg(test)]
mod gc_tests;
#[cfg(test)]
mod pull_tests;
#[cfg(test)]
pub(in crate::driver) mod tests;
