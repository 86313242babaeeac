//! Room for one more record of a machine, taken while there is some. Where the disk is full, a machine can still be stopped,
//! and it is known that it was.
//!
//! The record is written over the reserve, and the two change places: the record of before is the next reserve. So nothing has
//! to be found on the disk, and nobody who writes there beside us can take it away.

use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::files;

/// Name of the file.
const FILE: &str = "reserve";
/// It is no smaller than this, and twice as large as the record is: that has whole configurations in it.
const SIZE: u64 = 256 << 10;

/// Takes the room, if it is not there, for a record that has `length` bytes now.
pub(super) fn keep(folder: &Path, length: usize) {
    let size = SIZE.max(2 * length as u64);
    let room = std::fs::symlink_metadata(folder.join(FILE)).map_or(0, |meta| meta.blocks() * 512);
    if room >= size {
        return;
    }
    // Without one, a full disk is waited for.
    if let Err(error) = files::replace(folder, FILE, &vec![b' '; usize::try_from(size).unwrap_or_default()]) {
        tracing::debug!(%error, folder = %folder.display(), "there is no room for a reserve");
    }
}

/// Replaces the file `name` of the folder without any more room than the reserve has.
///
/// # Errors
/// `StorageFull` if there is no reserve, or it is too small.
pub(super) fn spend(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (reserve, place) = (folder.join(FILE), folder.join(name));
    let mut file = files::change(&reserve).map_err(|error| match error.kind() {
        ErrorKind::NotFound => ErrorKind::StorageFull.into(),
        _ => error,
    })?;
    let meta = file.metadata()?;
    if bytes.len() as u64 > meta.blocks() * 512 {
        return Err(ErrorKind::StorageFull.into());
    }
    // JSON ends where it ends: what the file has more is made blank, and not given back.
    let length = usize::try_from(meta.len()).unwrap_or_default().max(bytes.len());
    let mut text = bytes.to_vec();
    text.resize(length, b' ');
    file.write_all(&text)?;
    file.sync_all()?;
    files::gate(&place)?;
    renameat_with(CWD, &reserve, CWD, &place, RenameFlags::EXCHANGE).map_err(Error::from)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_take_turns_and_need_no_more_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let full = |outcome: Result<()>| outcome.unwrap_err().kind() == ErrorKind::StorageFull;
        assert!(full(spend(path, "a", b"{}")), "there is none");
        files::replace(path, "a", b"{\"a\": 0}").unwrap();
        keep(path, 8);
        let inode = |name: &str| std::fs::metadata(path.join(name)).unwrap().ino();
        let both = [inode("a"), inode(FILE)];
        for round in 1..4 {
            spend(path, "a", format!("{{\"a\": {round}}}").as_bytes()).unwrap();
            let value: serde_json::Value =
                serde_json::from_slice(&std::fs::read(path.join("a")).unwrap()).unwrap();
            assert_eq!(value["a"], round);
            assert_eq!([inode("a"), inode(FILE)], if round % 2 == 1 { [both[1], both[0]] } else { both });
        }
        assert!(full(spend(path, "a", &vec![b' '; 1 << 20])), "it does not grow");
        keep(path, 8);
        assert!(std::fs::metadata(path.join(FILE)).unwrap().blocks() * 512 >= SIZE, "it is whole again");
        // A large record has a large one.
        keep(path, 2 << 20);
        spend(path, "a", &vec![b' '; 4 << 20]).unwrap();
    }
}
