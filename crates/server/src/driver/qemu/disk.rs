//! The disk that is a machine's own: a raw file with an ext4 file system. It takes as much room as was written to it, grows
//! while the machine is off, never shrinks, and survives updates.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use super::command::DATA;
use super::files;
use crate::driver::PROGRAMS;

/// Makes a file system.
const MAKE: &str = "mke2fs";
/// Looks a file system over.
const CHECK: &str = "e2fsck";
/// Makes it larger.
const GROW: &str = "resize2fs";
/// The programs that do something to disks.
pub(super) const TOOLS: [&str; 3] = [MAKE, CHECK, GROW];

/// What there is to say when a disk that was there is not.
pub(super) const GONE: &str = "its data disk is gone";

/// Is the disk of the machine in `folder` there?
pub(super) fn is_there(folder: &Path) -> bool {
    files::is_there(&folder.join(DATA))
}

/// Makes the disk of the machine in `folder` at least `gb` large, of which `has` are known to be there.
///
/// # Errors
/// What is in the way; the disk is as it was, or larger.
pub(super) async fn ensure(folder: &Path, has: u32, gb: u32) -> Result<(), String> {
    let whole = folder.join(DATA);
    let bytes = u64::from(gb) << 30;
    let failed = |error: std::io::Error| format!("the data disk: {error}");
    if !is_there(folder) {
        // It has data that nobody could bring back.
        if has > 0 {
            return Err(GONE.to_owned());
        }
        let half = folder.join(format!("{DATA}.new"));
        let made = async {
            files::create(&half).and_then(|file| file.set_len(bytes)).map_err(failed)?;
            let options = "lazy_itable_init=1,lazy_journal_init=1";
            run(folder, MAKE, &["-q", "-F", "-t", "ext4", "-E", options, &format!("{DATA}.new")], 0).await?;
            File::open(&half)
                .and_then(|file| file.sync_all())
                .and_then(|()| files::put(&half, &whole))
                .map_err(failed)
        };
        return made.await.inspect_err(|_| drop(std::fs::remove_file(&half)));
    }
    if gb <= has {
        return Ok(());
    }
    let file = files::change(&whole).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() < bytes {
        file.set_len(bytes).map_err(failed)?;
    }
    // 1 and 2 mean that it was repaired.
    run(folder, CHECK, &["-f", "-p", DATA], 2).await?;
    run(folder, GROW, &[DATA], 0).await?;
    file.sync_all().map_err(failed)
}

/// Runs a program of e2fsprogs in the folder. Exit codes up to `good` are.
async fn run(folder: &Path, program: &str, arguments: &[&str], good: i32) -> Result<(), String> {
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("PATH", PROGRAMS)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("there is no program {program}; install e2fsprogs"),
        _ => format!("{program}: {error}"),
    })?;
    if output.status.code().is_some_and(|code| code <= good) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = if said.trim().is_empty() { String::from_utf8_lossy(&output.stdout) } else { said };
    Err(format!("{program} ended with {}: {}", output.status, said.trim().lines().last().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_is_made_sparse_and_grows_and_does_not_shrink() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let meta = || std::fs::metadata(folder.path().join(DATA)).unwrap();
        ensure(folder.path(), 0, 2).await.unwrap();
        assert_eq!(meta().len(), 2 << 30);
        assert!(meta().blocks() * 512 < 100 << 20, "{} blocks", meta().blocks());
        let inode = meta().ino();
        ensure(folder.path(), 2, 3).await.unwrap();
        assert_eq!((meta().len(), meta().ino()), (3 << 30, inode));
        ensure(folder.path(), 3, 1).await.unwrap();
        assert_eq!(meta().len(), 3 << 30);
        run(folder.path(), CHECK, &["-f", "-n", DATA], 0).await.unwrap();
        std::fs::remove_file(folder.path().join(DATA)).unwrap();
        assert_eq!(ensure(folder.path(), 3, 3).await.unwrap_err(), GONE);
        assert!(!is_there(folder.path()), "nobody takes an empty one for it");
    }
}
