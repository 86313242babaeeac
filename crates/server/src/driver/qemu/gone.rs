//! The machines that were removed, and the generation that removed them: a late call must not bring one back. A file with a line
//! for each, written at the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Result, Write};
use std::path::{Path, PathBuf};

use casemate_types::ids::VmUuid;

use super::files;

/// Name of the file.
const FILE: &str = "gone.log";

/// The removed machines of a node.
pub(super) struct Gone {
    path: PathBuf,
    file: File,
    generations: BTreeMap<VmUuid, u64>,
    /// Does the last line have no end?
    torn: bool,
}

impl Gone {
    /// Those of the node in this folder. A line that was only half written belongs to a removal that nobody was told of.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let file = files::append(&path)?;
        let mut text = Vec::new();
        files::read(&path)?.read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let mut generations = BTreeMap::new();
        for line in text.lines() {
            let read = |(vm, generation): (&str, &str)| Some((vm.parse().ok()?, generation.parse().ok()?));
            if let Some((vm, generation)) =
                line.strip_suffix('.').and_then(|line| read(line.split_once(' ')?))
            {
                generations.insert(VmUuid(vm), generation);
            }
        }
        let torn = !text.is_empty() && !text.ends_with('\n');
        Ok(Self { path, file, generations, torn })
    }

    /// The generation that removed this machine last.
    pub(super) fn get(&self, vm: VmUuid) -> Option<u64> {
        self.generations.get(&vm).copied()
    }

    /// This machine is removed from now on, also after the power went.
    pub(super) fn add(&mut self, vm: VmUuid, generation: u64) -> Result<()> {
        files::gate(&self.path)?;
        let begin = if self.torn { "\n" } else { "" };
        // Until it is known to be whole.
        self.torn = true;
        self.file.write_all(format!("{begin}{} {generation}.\n", vm.0).as_bytes())?;
        self.file.sync_all()?;
        self.torn = false;
        self.generations.insert(vm, generation);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_written_line_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (VmUuid(uuid::Uuid::from_u128(1)), VmUuid(uuid::Uuid::from_u128(2)));
        Gone::open(folder.path()).unwrap().add(one, 12).unwrap();
        let mut file = files::append(&folder.path().join(FILE)).unwrap();
        file.write_all(&[b"\xff\xfe\n", format!("{} 1", two.0).as_bytes()].concat()).unwrap();
        let mut gone = Gone::open(folder.path()).unwrap();
        assert_eq!((gone.get(one), gone.get(two)), (Some(12), None));
        gone.add(two, 3).unwrap();
        let gone = Gone::open(folder.path()).unwrap();
        assert_eq!((gone.get(one), gone.get(two)), (Some(12), Some(3)));
    }
}
