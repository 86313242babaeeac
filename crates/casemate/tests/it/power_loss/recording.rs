//! What the program did to its files, as `record.c` wrote it down, and the answers that clients got in between.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One thing that happened, in the order of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    Write {
        file: String,
        offset: usize,
        data: Vec<u8>,
    },
    /// The file was cut or stretched.
    Length {
        file: String,
        length: usize,
    },
    Flush {
        file: String,
    },
    Create {
        file: String,
    },
    Remove {
        file: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Link {
        from: String,
        to: String,
    },
    /// The names of all files were flushed.
    FlushNames,
    /// A client was told that this is stored.
    Answered(String),
}

/// Kind of the records that [`Witness`] adds. `record.c` uses small numbers.
const ANSWERED: u32 = 100;

/// Builds the recorder in `folder`.
pub(super) fn build(folder: &Path) -> PathBuf {
    let library = folder.join("record.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/power_loss/record.c");
    let compiler = Command::new("cc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .expect("there is a C compiler");
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    library
}

/// Adds to a record what clients are told, in the moment when they hear it.
pub(super) struct Witness(File);

impl Witness {
    pub(super) fn new(record: &Path) -> Self {
        Self(File::options().append(true).open(record).expect("there is a record"))
    }

    /// One append: the kernel puts it between the program's own.
    pub(super) fn answered(&self, what: &str) {
        let mut record = Vec::new();
        record.extend(ANSWERED.to_ne_bytes());
        record.extend(0_u32.to_ne_bytes());
        record.extend(0_u64.to_ne_bytes());
        record.extend((what.len() as u64).to_ne_bytes());
        record.extend(what.as_bytes());
        let written = (&self.0).write(&record).expect("the record can be written");
        assert_eq!(written, record.len());
    }
}

/// Reads a record.
pub(super) fn read(record: &Path) -> Vec<Happened> {
    let bytes = std::fs::read(record).expect("there is a record");
    let mut rest = bytes.as_slice();
    let mut all = Vec::new();
    while !rest.is_empty() {
        all.push(one(&mut rest));
    }
    all
}

fn one(rest: &mut &[u8]) -> Happened {
    let kind = u32::from_ne_bytes(take(rest));
    let name_length = u32::from_ne_bytes(take(rest)) as usize;
    let offset = usize::try_from(u64::from_ne_bytes(take(rest))).expect("fits");
    let length = usize::try_from(u64::from_ne_bytes(take(rest))).expect("fits");
    let file = text(rest, name_length);
    match kind {
        1 => {
            let data = rest.split_off(..length).expect("the record is whole").to_vec();
            Happened::Write { file, offset, data }
        }
        2 => Happened::Length { file, length: offset },
        3 => Happened::Flush { file },
        4 => Happened::Create { file },
        5 => Happened::Remove { file },
        6 => Happened::Rename { from: file, to: text(rest, length) },
        7 => Happened::Link { from: file, to: text(rest, length) },
        8 => Happened::FlushNames,
        ANSWERED => Happened::Answered(text(rest, length)),
        other => panic!("a record of kind {other}"),
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    rest.split_off(..N).expect("the record is whole").try_into().expect("as long as asked for")
}

fn text(rest: &mut &[u8], length: usize) -> String {
    String::from_utf8(rest.split_off(..length).expect("the record is whole").to_vec())
        .expect("names are text")
}
