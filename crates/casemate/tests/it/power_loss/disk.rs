//! A disk that may lose its power: it keeps what was flushed, and of the rest whatever it likes.

use std::collections::BTreeMap;
use std::path::Path;

use rand::RngExt;
use rand::rngs::StdRng;

use super::recording::Happened;

/// What a disk writes as a whole, in bytes. A part of a sector never arrives alone.
const SECTOR: usize = 512;

/// Files, their names, and what has not been flushed of both.
#[derive(Default)]
pub(super) struct Disk {
    files: Vec<Content>,
    /// Names as the program sees them, and as they were when they were last flushed.
    names: Names,
    flushed_names: Names,
    pending_names: Vec<Naming>,
}

type Names = BTreeMap<String, usize>;

#[derive(Default)]
struct Content {
    flushed: Vec<u8>,
    pending: Vec<Pending>,
}

enum Naming {
    Create(String, usize),
    Remove(String),
    Rename(String, String),
    Link(String, String),
}

enum Pending {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

/// How much arrives of what was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Luck {
    Nothing,
    Everything,
    /// Each write or not.
    SomeWrites,
    /// All up to some moment, the last one torn.
    AllUntil,
    /// Each sector or not.
    SomeSectors,
}

impl Luck {
    pub(super) const ALL: [Self; 5] =
        [Self::Nothing, Self::Everything, Self::SomeWrites, Self::AllUntil, Self::SomeSectors];
}

impl Disk {
    /// The program does something.
    pub(super) fn happens(&mut self, what: &Happened) {
        match what {
            Happened::Write { file, offset, data } => {
                self.content(file).pending.push(Pending::Write { offset: *offset, data: data.clone() });
            }
            Happened::Length { file, length } => self.content(file).pending.push(Pending::Length(*length)),
            Happened::Flush { file } => self.content(file).flush(),
            Happened::Create { file } => {
                self.files.push(Content::default());
                self.name(Naming::Create(file.clone(), self.files.len() - 1));
            }
            Happened::Remove { file } => self.name(Naming::Remove(file.clone())),
            Happened::Rename { from, to } => self.name(Naming::Rename(from.clone(), to.clone())),
            Happened::Link { from, to } => self.name(Naming::Link(from.clone(), to.clone())),
            Happened::FlushNames => {
                for naming in self.pending_names.drain(..) {
                    naming.arrive(&mut self.flushed_names);
                }
            }
            Happened::Answered(_) => {}
        }
    }

    /// The power goes. What is on the disk then is written to `folder`.
    pub(super) fn lose_power(&self, luck: Luck, rng: &mut StdRng, folder: &Path) {
        // Names reach the disk in their order: the file systems that matter keep a journal of them.
        let mut names = self.flushed_names.clone();
        let arrived = match luck {
            Luck::Nothing => 0,
            Luck::Everything => self.pending_names.len(),
            Luck::SomeWrites | Luck::AllUntil | Luck::SomeSectors => {
                rng.random_range(0..=self.pending_names.len())
            }
        };
        for naming in &self.pending_names[..arrived] {
            naming.arrive(&mut names);
        }
        for (name, file) in names {
            let bytes = self.files[file].after_power_loss(luck, rng);
            std::fs::write(folder.join(name), bytes).expect("the folder is ours");
        }
    }

    fn name(&mut self, naming: Naming) {
        naming.arrive(&mut self.names);
        self.pending_names.push(naming);
    }

    fn content(&mut self, file: &str) -> &mut Content {
        let number = self.names.get(file).unwrap_or_else(|| panic!("{file} was never created"));
        &mut self.files[*number]
    }
}

impl Naming {
    fn arrive(&self, names: &mut Names) {
        match self {
            Self::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Rename(from, to) => {
                let file = names.remove(from).expect("it has this name");
                names.insert(to.clone(), file);
            }
            Self::Link(from, to) => {
                let file = *names.get(from).expect("it has this name");
                names.insert(to.clone(), file);
            }
        }
    }
}

impl Content {
    fn flush(&mut self) {
        for pending in self.pending.drain(..) {
            pending.arrive(&mut self.flushed);
        }
    }

    fn after_power_loss(&self, luck: Luck, rng: &mut StdRng) -> Vec<u8> {
        let mut bytes = self.flushed.clone();
        let until = match luck {
            Luck::AllUntil => rng.random_range(0..=self.pending.len()),
            Luck::Nothing => 0,
            Luck::Everything | Luck::SomeWrites | Luck::SomeSectors => self.pending.len(),
        };
        for (index, pending) in self.pending[..until].iter().enumerate() {
            let last = index + 1 == until;
            match luck {
                Luck::Nothing | Luck::Everything => pending.arrive(&mut bytes),
                Luck::AllUntil if last => pending.arrive_torn(&mut bytes, rng, None),
                Luck::AllUntil => pending.arrive(&mut bytes),
                Luck::SomeWrites if rng.random_bool(0.5) => pending.arrive(&mut bytes),
                Luck::SomeWrites => {}
                Luck::SomeSectors => pending.arrive_torn(&mut bytes, rng, Some(0.5)),
            }
        }
        bytes
    }
}

impl Pending {
    fn arrive(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => put(bytes, *offset, data),
            Self::Length(length) => bytes.resize(*length, 0),
        }
    }

    /// Each sector with this chance, or the first few.
    fn arrive_torn(&self, bytes: &mut Vec<u8>, rng: &mut StdRng, chance: Option<f64>) {
        let Self::Write { offset, data } = self else { return self.arrive(bytes) };
        let mut at = 0;
        while at < data.len() {
            let end = data.len().min(at + SECTOR - (offset + at) % SECTOR);
            match chance {
                Some(chance) if rng.random_bool(chance) => put(bytes, offset + at, &data[at..end]),
                Some(_) => {}
                None if rng.random_bool(0.1) => return,
                None => put(bytes, offset + at, &data[at..end]),
            }
            at = end;
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}
