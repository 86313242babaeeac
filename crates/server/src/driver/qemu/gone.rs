//! The machines that were removed, and the generation that removed them: a late call must not bring one back. A file with a line
//! for each, written at the end.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use casemate_types::ids::VmUuid;

/// Name of the file.
const FILE: &str = "gone.log";

/// The removed machines of a node.
pub(super) struct Gone {
    file: File,
    generations: BTreeMap<VmUuid, u64>,
}

impl Gone {
    /// Those of the node in this folder. A line that was only half written belongs to a removal that nobody was told of.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let mut generations = BTreeMap::new();
        for line in text.lines() {
            let read = |(vm, generation): (&str, &str)| Some((vm.parse().ok()?, generation.parse().ok()?));
            if let Some((vm, generation)) =
                line.strip_suffix('.').and_then(|line| read(line.split_once(' ')?))
            {
                generations.insert(VmUuid(vm), generation);
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok(Self { file, generations })
    }

    /// The generation that removed this machine last.
    pub(super) fn get(&self, vm: VmUuid) -> Option<u64> {
        self.generations.get(&vm).copied()
    }

    /// This machine is removed from now on, also after the power went.
    pub(super) fn add(&mut self, vm: VmUuid, generation: u64) -> Result<()> {
        self.file.write_all(format!("{} {generation}.\n", vm.0).as_bytes())?;
        self.file.sync_all()?;
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
        let mut file = OpenOptions::new().append(true).open(folder.path().join(FILE)).unwrap();
        file.write_all(format!("{} 1", two.0).as_bytes()).unwrap();
        let mut gone = Gone::open(folder.path()).unwrap();
        assert_eq!((gone.get(one), gone.get(two)), (Some(12), None));
        gone.add(two, 3).unwrap();
        let gone = Gone::open(folder.path()).unwrap();
        assert_eq!((gone.get(one), gone.get(two)), (Some(12), Some(3)));
    }
}
