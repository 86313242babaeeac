//! A layer's tar stream without the contents that lie in the root anyway.
//!
//! A skeleton is a sequence of records, numbers big-endian: `0`, a length (8 bytes) and so many bytes of the stream; or `1`, the
//! length of a path (4 bytes), the path relative to the root, and a length (8 bytes): here the stream has so many bytes of that file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use crate::{MAX_ENTRIES, MAX_PATH, show};

const BYTES: u8 = 0;
const OF_FILE: u8 = 1;

/// A piece of a layer's stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes that are nowhere else.
    Bytes { at: u64, size: u64 },
    /// The content of a file of the root.
    OfFile(InRoot),
}

/// A file of the root, as a piece of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InRoot {
    pub(crate) path: Vec<u8>,
    /// Where it begins in the layer.
    pub(crate) at: u64,
    /// Bytes, never none.
    pub(crate) size: u64,
}

/// A layer of so many bytes in pieces, with these files left out, which do not overlap.
pub(crate) fn pieces(length: u64, mut files: Vec<InRoot>) -> Vec<Piece> {
    files.sort_by_key(|file| file.at);
    let mut pieces = Vec::new();
    let mut at = 0;
    for file in files {
        if file.at > at {
            pieces.push(Piece::Bytes { at, size: file.at - at });
        }
        at = file.at + file.size;
        pieces.push(Piece::OfFile(file));
    }
    if length > at {
        pieces.push(Piece::Bytes { at, size: length - at });
    }
    pieces
}

impl Piece {
    /// Bytes that it takes in a skeleton.
    pub(crate) fn encoded(&self) -> u64 {
        match self {
            Self::Bytes { size, .. } => 9 + size,
            Self::OfFile(file) => 13 + file.path.len() as u64,
        }
    }

    pub(crate) fn write(&self, layer: &File, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Bytes { at, size } => {
                out.write_all(&[BYTES])?;
                out.write_all(&size.to_be_bytes())?;
                copy(layer, *at, *size, out)
            }
            Self::OfFile(file) => {
                out.write_all(&[OF_FILE])?;
                out.write_all(&u32::try_from(file.path.len()).unwrap_or(u32::MAX).to_be_bytes())?;
                out.write_all(&file.path)?;
                out.write_all(&file.size.to_be_bytes())
            }
        }
    }
}

/// Copies a part of a file.
pub(crate) fn copy(from: &File, mut at: u64, mut size: u64, out: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    while size > 0 {
        let most = buffer.len().min(usize::try_from(size).unwrap_or(usize::MAX));
        let read = from.read_at(&mut buffer[..most], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.write_all(&buffer[..read])?;
        at += read as u64;
        size -= read as u64;
    }
    Ok(())
}

/// A layer's stream, put together again.
pub(crate) struct Rebuilt<S, O> {
    skeleton: S,
    open: O,
    now: Now,
    at: u64,
    /// The files of the root that were read for it.
    pub(crate) files: Vec<InRoot>,
}

enum Now {
    /// Between two records.
    Between,
    /// So many bytes of the skeleton itself.
    Bytes(u64),
    /// So many bytes of a file.
    Of(File, u64),
}

impl<S: Read, O: FnMut(&[u8]) -> io::Result<File>> Rebuilt<S, O> {
    /// Out of a skeleton, and the files that `open` opens by their path below the root.
    pub(crate) fn new(skeleton: S, open: O) -> Self {
        Self { skeleton, open, now: Now::Between, at: 0, files: Vec::new() }
    }

    /// Begins the next record. False at the end.
    fn begin(&mut self) -> io::Result<bool> {
        let mut kind = [0];
        if self.skeleton.read(&mut kind)? == 0 {
            return Ok(false);
        }
        self.now = match kind[0] {
            BYTES => Now::Bytes(self.size()?),
            OF_FILE => {
                let mut length = [0; 4];
                self.skeleton.read_exact(&mut length)?;
                let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                if length > MAX_PATH {
                    return Err(io::Error::other("its skeleton is broken: a path is too long"));
                }
                let mut path = vec![0; length];
                self.skeleton.read_exact(&mut path)?;
                let size = self.size()?;
                if self.files.len() >= MAX_ENTRIES {
                    return Err(io::Error::other("its skeleton is broken: it has too many files"));
                }
                let file = (self.open)(&path)
                    .map_err(|error| io::Error::other(format!("`{}` of the root: {error}", show(&path))))?;
                self.files.push(InRoot { path, at: self.at, size });
                Now::Of(file, size)
            }
            other => {
                return Err(io::Error::other(format!(
                    "its skeleton is broken: there is no record of kind {other}"
                )));
            }
        };
        Ok(true)
    }

    /// The size that a record says.
    fn size(&mut self) -> io::Result<u64> {
        let mut size = [0; 8];
        self.skeleton.read_exact(&mut size)?;
        match u64::from_be_bytes(size) {
            // As many as a host likes of these would be a layer that is as it should be.
            0 => Err(io::Error::other("its skeleton is broken: there is a record of nothing")),
            size => Ok(size),
        }
    }
}

impl<S: Read, O: FnMut(&[u8]) -> io::Result<File>> Read for Rebuilt<S, O> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let (from, left): (&mut dyn Read, &mut u64) = match &mut self.now {
                Now::Bytes(left) if *left > 0 => (&mut self.skeleton, left),
                Now::Of(file, left) if *left > 0 => (file, left),
                _ => {
                    if self.begin()? {
                        continue;
                    }
                    return Ok(0);
                }
            };
            let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            let read = from.read(&mut buffer[..most])?;
            if read == 0 {
                let what = match (&self.now, self.files.last()) {
                    (Now::Of(..), Some(file)) => format!("`{}` of the root is too short", show(&file.path)),
                    _ => "its skeleton is broken: it ends too soon".to_owned(),
                };
                return Err(io::Error::other(what));
            }
            *left -= read as u64;
            self.at += read as u64;
            return Ok(read);
        }
    }
}
