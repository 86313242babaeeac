//! A disk whose flush takes 2 ms.
//!
//! A virtual disk often flushes in 80 µs, a data-centre SSD without a protected cache in 0.5 to 2 ms. What a commit costs, and
//! what sharing it is worth, shows only with a flush that is one. So the server is started with a small library in front of the C
//! library (`flush.c`) whose `fsync` and `fdatasync` sleep instead: the same 2 ms every time, whatever the disk does.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// How long a flush takes, in milliseconds.
pub(crate) const FLUSH_MS: u64 = 2;

/// Builds the library with the C compiler of this machine. None if there is no compiler.
pub(crate) fn library(folder: &Path) -> Result<Option<PathBuf>> {
    let source = folder.join("flush.c");
    let library = folder.join("flush.so");
    std::fs::write(&source, include_str!("flush.c"))?;
    let rest = format!("-DFLUSH_MS={FLUSH_MS}");
    let compile =
        Command::new("cc").args(["-O2", "-shared", "-fPIC", &rest, "-o"]).arg(&library).arg(&source).status();
    match compile {
        Ok(status) if status.success() => Ok(Some(library)),
        Ok(status) => Err(format!("cc could not build flush.c: {status}").into()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives `command` the slow disk.
pub(crate) fn slow(command: &mut Command, library: &Path) {
    command.env("LD_PRELOAD", library);
}
