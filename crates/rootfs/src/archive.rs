//! The entries of a tar stream, with the place at which the content of each lies.
//!
//! Written anew rather than taken from the `tar` crate, of which only the header is used: what is read belongs to strangers, so
//! nothing of it may be kept in memory without a limit, and whatever two readers could understand differently is refused.

use std::io::{self, Read};
use std::ops::Range;

use tar::{EntryType, Header, PaxExtensions};

use crate::{Error, MAX_NAME, MAX_PATH, Result, show, wrong};

const BLOCK: usize = 512;
// Where a header has its numbers.
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
/// Bytes of what extends a header.
const MAX_EXTENSION: u64 = 1024 * 1024;
/// Bytes that are read at once.
const BUFFER: usize = 128 * 1024;

/// An entry of an archive.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryType,
    /// The names from the root on: none is empty, `.` or `..`.
    pub(crate) path: Vec<Vec<u8>>,
    /// What a link leads to, as it was written.
    pub(crate) link: Vec<u8>,
    /// Rights, 12 bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970, at most what a disk has room for.
    pub(crate) mtime: u32,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Where its content begins, in the stream.
    pub(crate) at: u64,
    /// Bytes of its content.
    pub(crate) size: u64,
}

/// A tar stream.
pub(crate) struct Archive<R> {
    from: R,
    /// Bytes read so far.
    at: u64,
    /// Bytes of the last entry that were not read yet.
    rest: u64,
    buffer: Vec<u8>,
}

/// What entries before an entry say of it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(from: R) -> Self {
        Self { from, at: 0, rest: 0, buffer: vec![0; BUFFER] }
    }

    /// The next entry, without its content.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extended = Extended::default();
        let mut extensions = 0;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return if extensions == 0 { Ok(None) } else { wrong("it ends where an entry should be") };
            };
            let size = number(&header, SIZE, Header::entry_size).map_err(of_header)?;
            let kind = header.entry_type();
            match kind {
                EntryType::XGlobalHeader => {
                    self.rest = padded(size)?;
                    continue;
                }
                EntryType::XHeader => extended.read(&self.extension(size)?)?,
                EntryType::GNULongName => extended.path = Some(text(self.extension(size)?)),
                EntryType::GNULongLink => extended.link = Some(text(self.extension(size)?)),
                _ => return self.entry(&header, kind, extended).map(Some),
            }
            extensions += 1;
            if extensions > 8 {
                return wrong("an entry has more extensions than anybody needs");
            }
        }
    }

    /// Reads what is left. Bytes of the whole stream.
    pub(crate) fn finish(mut self) -> Result<u64> {
        loop {
            match self.from.read(&mut self.buffer) {
                Ok(0) => return Ok(self.at),
                Ok(read) => self.at += read as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn entry(&mut self, header: &Header, kind: EntryType, extended: Extended) -> Result<Entry> {
        let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let of_entry = |why: &str| Error::Wrong(format!("`{}` {why}", show(&path)));
        let number = |field, value: fn(&Header) -> io::Result<u64>| {
            number(header, field, value).map_err(|error| of_entry(&error.to_string()))
        };
        // As other programs do with the oldest kind of entry.
        let kind = match kind {
            EntryType::Regular if header.as_bytes()[156] == 0 && path.ends_with(b"/") => EntryType::Directory,
            EntryType::Continuous => EntryType::Regular,
            other => other,
        };
        let size = match extended.size {
            Some(size) => size,
            None => number(SIZE, Header::entry_size)?,
        };
        if kind != EntryType::Regular && size != 0 {
            return Err(of_entry("has a content, and is no file"));
        }
        let owner = |id: u64| {
            // The highest number means "nobody in particular" to the kernel.
            let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| of_entry("has an owner whose number is too high"))
        };
        let uid = owner(extended.uid.map_or_else(|| number(UID, Header::uid), Ok)?)?;
        let gid = owner(extended.gid.map_or_else(|| number(GID, Header::gid), Ok)?)?;
        // Tools leave empty what a kind has no use for.
        let device = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or_default();
        let device = match kind {
            EntryType::Char | EntryType::Block => {
                (device(header.device_major()), device(header.device_minor()))
            }
            _ => (0, 0),
        };
        if device.0 >= 1 << 12 || device.1 >= 1 << 20 {
            return Err(of_entry("is a device whose number is too high"));
        }
        self.rest = padded(size)?;
        let link = extended.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let link = link.unwrap_or_default();
        if link.len() > MAX_PATH || link.contains(&0) {
            return Err(of_entry("leads to a path that is too long, or is none"));
        }
        let mode = number(MODE, |header| header.mode().map(u64::from))? & 0o7777;
        Ok(Entry {
            kind,
            mode: u16::try_from(mode).unwrap_or_default(),
            mtime: u32::try_from(header.mtime().unwrap_or_default()).unwrap_or(u32::MAX),
            path: names(&path)?,
            link,
            uid,
            gid,
            device,
            at: self.at,
            size,
        })
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().all(|byte| *byte == 0) {
            return match self.block()? {
                Some(second) if second.iter().any(|byte| *byte != 0) => {
                    wrong("something follows half of its end")
                }
                _ => Ok(None),
            };
        }
        let header = Header::from_byte_slice(&block).clone();
        // The sum of all bytes, of which those of the field itself count as spaces.
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let field: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
        if header.cksum().map_err(of_header)? != sum - field + 8 * u32::from(b' ') {
            return wrong("it is no tar archive, or a damaged one: the checksum of a header is wrong");
        }
        Ok(Some(header))
    }

    /// The next block; nothing if the stream ends here.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.from.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return wrong("it ends in the middle of a header"),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.at += BLOCK as u64;
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return wrong("what extends a header is longer than 1 MiB");
        }
        let mut bytes = Vec::new();
        self.from.by_ref().take(size).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return wrong("it ends in the middle of a header");
        }
        self.at += size;
        self.rest = padded(size)? - size;
        Ok(bytes)
    }

    fn skip(&mut self) -> Result<()> {
        while self.rest > 0 {
            let most = self.buffer.len().min(usize::try_from(self.rest).unwrap_or(usize::MAX));
            match self.from.read(&mut self.buffer[..most]) {
                Ok(0) => return wrong("it ends in the middle of a file"),
                Ok(read) => {
                    self.rest -= read as u64;
                    self.at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Extended {
    fn read(&mut self, bytes: &[u8]) -> Result<()> {
        for extension in PaxExtensions::new(bytes) {
            let extension = extension.map_err(of_header)?;
            let (key, value) = (extension.key_bytes(), extension.value_bytes());
            let number = || {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                number.ok_or_else(|| Error::Wrong(format!("`{}` in a header is no number", show(key))))
            };
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                _ if key.starts_with(b"GNU.sparse.") => return wrong("sparse files are not supported"),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A number of a header. A field in which nothing stands means zero.
fn number(
    header: &Header,
    field: Range<usize>,
    value: impl Fn(&Header) -> io::Result<u64>,
) -> io::Result<u64> {
    let is_empty = header.as_bytes()[field].iter().all(|byte| *byte == 0 || *byte == b' ');
    if is_empty { Ok(0) } else { value(header) }
}

/// A text with or without the zero that ends it.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// With what fills the last block.
fn padded(size: u64) -> Result<u64> {
    // A number as high as the kernel's own for sizes is none.
    match size.checked_next_multiple_of(BLOCK as u64) {
        Some(padded) if i64::try_from(padded).is_ok() => Ok(padded),
        _ => wrong("an entry is larger than any file"),
    }
}

fn of_header(error: io::Error) -> Error {
    Error::Wrong(format!("a header is not what it should be: {error}"))
}

/// The names of a path, relative to the root whether it begins with `/` or not.
pub(crate) fn names(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    if path.len() > MAX_PATH {
        return wrong(format!("a path is longer than {MAX_PATH} bytes"));
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return wrong(format!("`{}` leads upwards", show(path))),
            name if name.len() > MAX_NAME || name.contains(&0) => {
                return wrong(format!("`{}` has a name that is too long, or is none", show(path)));
            }
            name => names.push(name.to_vec()),
        }
    }
    Ok(names)
}
