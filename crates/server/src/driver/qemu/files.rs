//! Files that are whole or not there, also after the power went.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Result, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Replaces the file `name` of `folder`, readable by the owner alone.
pub(super) fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let half = folder.join(format!("{name}.new"));
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    put(&half, &folder.join(name))
}

/// Moves a finished file into its place.
pub(super) fn put(half: &Path, whole: &Path) -> Result<()> {
    std::fs::rename(half, whole)?;
    match whole.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Makes a folder for the owner alone, with those above it.
pub(super) fn make_private(folder: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}
