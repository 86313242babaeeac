//! An image as the disk that machines mount: a squashfs in `roots/`, made once of the image's blobs. The crate
//! `casemate-rootfs` says what is on it.
//!
//! It may be made again at any time, so one that is gone or damaged is, and one whose image is no longer in the store may be
//! removed. A machine has a name of its own for the file (a hard link), and keeps it whatever becomes of the store.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use casemate_rootfs::disk::{self, Parts};
use casemate_rootfs::{Descriptor, Hashed, Image, Tree};
use casemate_types::guest::ImageRef;
use flate2::read::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use tempfile::TempPath;

use super::gc::SPARE;
use super::manifest::MAX_DOCUMENT;
use super::store::{damaged, digest_of, make_folder};
use super::{Error, ImageStore, Result};
use crate::driver::PROGRAMS;

/// The program that makes a squashfs of a tar archive, in Debian's package squashfs-tools (4.5 or newer).
pub const UNPACKER: &str = "sqfstar";
/// What it is told: nothing that depends on the time or on who runs it, and to be modest.
const OPTIONS: &str = "-quiet -no-progress -exit-on-error -no-xattrs -mkfs-time 0 -root-time 0 -root-mode 0755 -root-uid 0 -root-gid 0 \
                       -processors 1 -mem 128M -comp lz4";
/// What follows a squashfs: a block with this and the digest of everything before it.
const MARK: &[u8] = b"casemate root\n";
const BLOCK: u64 = 512;

impl ImageStore {
    /// The disk of an image that is in the store, under a name that is the caller's for as long as it wants. Nobody may change
    /// the file, since others have it as well.
    ///
    /// # Errors
    /// `Refused` if a blob is gone or damaged, or is nothing that can be unpacked, or there is no room for it: names the image.
    /// `Later` if the store cannot be used.
    pub async fn disk(&self, image: &ImageRef) -> Result<TempPath> {
        let turn = {
            let mut turns = self.pulls.lock().expect("nothing panics while holding it");
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(image.digest.clone()).or_default())
        };
        let turn = turn.lock_owned().await;
        if !is_whole(&self.root(&image.digest)).await {
            // Whoever no longer waits leaves the work as it is: it ends by itself, and the turns with it.
            let alone = Arc::clone(&self.unpacking).lock_owned().await;
            let (store, image) = (self.clone(), image.clone());
            let made = tokio::task::spawn_blocking(move || {
                let _turns = (turn, alone);
                store.make(&image)
            });
            made.await.map_err(|error| Error::Later(error.to_string()))??;
        }
        self.link(image)
    }

    /// Where the disk of an image lies or would lie.
    fn root(&self, digest: &str) -> PathBuf {
        self.folder.join("roots").join(format!("{}.squashfs", digest.replacen(':', "-", 1)))
    }

    #[cfg(test)]
    pub(super) fn linked(&self, image: &ImageRef) -> Result<TempPath> {
        if !is_sealed(&self.root(&image.digest)) {
            self.make(image)?;
        }
        self.link(image)
    }

    fn link(&self, image: &ImageRef) -> Result<TempPath> {
        let root = self.root(&image.digest);
        let link = |place: &Path| std::fs::hard_link(&root, place);
        let linked = tempfile::Builder::new().make_in(self.folder.join("tmp"), link)?;
        Ok(linked.into_temp_path())
    }

    /// Makes the disk of an image.
    fn make(&self, image: &ImageRef) -> Result<()> {
        loop {
            let mut room = Room::of(self)?;
            match self.make_in(image, &mut room) {
                // Where images that nobody uses leave room for twice as much, it is tried again.
                Err(Unpacked::TooLarge)
                    if self
                        .make_room(room.all.saturating_mul(4), &format!("image `{}`", image.reference))
                        .is_ok() => {}
                made => {
                    return made.map_err(|error| match error {
                        Unpacked::Store(error) => error,
                        Unpacked::Image(why) => Error::Refused(format!("image `{}`: {why}", image.reference)),
                        Unpacked::TooLarge => Error::Refused(format!(
                            "image `{}`: unpacked it has more than the {} bytes that this node has room for",
                            image.reference, room.all
                        )),
                    });
                }
            }
        }
    }

    fn make_in(&self, image: &ImageRef, room: &mut Room) -> std::result::Result<(), Unpacked> {
        let manifest = self.checked(&image.digest)?;
        let config = self.document(&image.digest)?.config;
        let config =
            config.ok_or_else(|| Unpacked::Image("its manifest names no configuration".to_owned()))?;
        let config = self.checked(&config.digest)?;
        let (documents, config) = Image::read(&image.digest, &manifest, |_| Ok(config))
            .map_err(|error| Unpacked::Image(error.to_string()))?;
        let (mut tree, mut layers) = (Tree::default(), Vec::new());
        for (layer, diff_id) in documents.layers.iter().zip(&documents.diff_ids) {
            layers.push(self.layer(layer, diff_id, &mut tree, room)?);
        }
        let parts = Parts { manifest: &manifest, config: &config, layers: &layers, tree: &tree };
        let work = tempfile::tempdir_in(self.folder.join("tmp"))?;
        let half = work.path().join("disk");
        squash(&parts, work.path(), &half).map_err(Unpacked::Image)?;
        seal(&half)?;
        let root = self.root(&image.digest);
        let folder = self.folder.join("roots");
        make_folder(&folder)?;
        std::fs::rename(&half, &root)?;
        File::open(folder)?.sync_all()?;
        Ok(())
    }

    /// A document, all of it. One that is damaged goes: it is of no use, and what is not there is brought anew.
    fn checked(&self, digest: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_blob(digest)?.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
        if digest_of(&bytes) == digest { Ok(bytes) } else { Err(self.lost(digest)) }
    }

    fn lost(&self, digest: &str) -> Error {
        std::fs::remove_file(self.path(digest)).ok();
        damaged(digest)
    }

    /// Applies a layer to the tree. Its tar stream, as a file without a name, and its length.
    fn layer(
        &self,
        layer: &Descriptor,
        diff_id: &str,
        tree: &mut Tree,
        room: &mut Room,
    ) -> std::result::Result<(File, u64), Unpacked> {
        let of_layer =
            |why: &dyn std::fmt::Display| Unpacked::Image(format!("layer {}: {why}", layer.digest));
        let file = tempfile::tempfile_in(self.folder.join("tmp"))?;
        let mut blob = Hashed::new(BufReader::with_capacity(128 * 1024, self.open_blob(&layer.digest)?));
        let (outcome, digest, failed) = {
            let from = decoded(&layer.media_type, &mut blob);
            let mut stream = Kept { from, file: &file, room, failed: None };
            let mut hashed = Hashed::new(&mut stream);
            let outcome = tree.apply(&mut hashed);
            let (digest, _) = hashed.finish();
            (outcome, digest, stream.failed)
        };
        match failed {
            Some(error) if error.kind() == ErrorKind::StorageFull => return Err(Unpacked::TooLarge),
            Some(error) => return Err(error.into()),
            None => {}
        }
        // A layer that the disk has damaged is told by its digest, whatever else may be wrong with it.
        io::copy(&mut blob, &mut io::sink())?;
        if blob.finish().0 != layer.digest {
            return Err(Unpacked::Store(self.lost(&layer.digest)));
        }
        let length = outcome.map_err(|error| of_layer(&error))?;
        if digest != diff_id {
            return Err(of_layer(&format_args!(
                "unpacked it hashes to {digest}, and the configuration names {diff_id}"
            )));
        }
        Ok((file, length))
    }
}

/// Why a layer cannot be unpacked.
enum Unpacked {
    /// The image is not what it should be.
    Image(String),
    /// There is no room for it.
    TooLarge,
    /// The store does not have it, or cannot be used.
    Store(Error),
}

impl From<Error> for Unpacked {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for Unpacked {
    fn from(error: io::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The tar stream of a layer.
fn decoded<'a>(kind: &str, blob: &'a mut impl Read) -> Box<dyn Read + 'a> {
    if kind.ends_with("gzip") {
        Box::new(MultiGzDecoder::new(blob))
    } else if kind.ends_with("zstd") {
        Box::new(Frames { from: blob, decoder: FrameDecoder::new(), is_in_one: false })
    } else if kind.ends_with("tar") {
        Box::new(blob)
    } else {
        Box::new(Broken(format!("it is of a kind that is not supported: `{kind}`")))
    }
}

/// What the frames of a zstd file have, one after the other. Some programs write many, to compress them side by side or to find
/// single files, and frames that are to be skipped between them.
struct Frames<R> {
    from: R,
    decoder: FrameDecoder,
    is_in_one: bool,
}

impl<R: Read> Frames<R> {
    /// Goes to the beginning of the next frame. Is there one?
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            let mut magic = Vec::new();
            (&mut self.from).take(4).read_to_end(&mut magic)?;
            if magic.is_empty() {
                return Ok(false);
            }
            // RFC 8878, section 3.1.2: the lower half of the last byte is anything, and a length follows.
            if !matches!(magic.as_slice(), [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
                self.decoder.init(magic.as_slice().chain(&mut self.from)).map_err(io::Error::other)?;
                return Ok(true);
            }
            let mut length = [0; 4];
            self.from.read_exact(&mut length)?;
            let length = u64::from(u32::from_le_bytes(length));
            if io::copy(&mut (&mut self.from).take(length), &mut io::sink())? < length {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.is_in_one && !self.begin()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.from, one).map_err(io::Error::other)?;
            }
            self.is_in_one = self.decoder.can_collect() > 0;
            if self.is_in_one {
                return self.decoder.read(buffer);
            }
        }
    }
}

/// Nothing can be read of it.
struct Broken(String);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other(self.0.clone()))
    }
}

/// Bytes that an image may have.
struct Room {
    all: u64,
    left: u64,
}

impl Room {
    /// Half of what is there, since its layers and its disk are there at once for a while.
    fn of(store: &ImageStore) -> Result<Self> {
        let all = store.free()?.saturating_sub(SPARE) / 2;
        Ok(Self { all, left: all })
    }
}

/// Writes what is read to a file.
struct Kept<'a> {
    from: Box<dyn Read + 'a>,
    file: &'a File,
    room: &'a mut Room,
    /// Why it does not go on.
    failed: Option<io::Error>,
}

impl Read for Kept<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        let kept = match self.room.left.checked_sub(read as u64) {
            Some(left) => {
                self.room.left = left;
                self.file.write_all(buffer.get(..read).unwrap_or_default())
            }
            None => Err(ErrorKind::StorageFull.into()),
        };
        kept.map(|()| read).map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            io::Error::from(kind)
        })
    }
}

/// Makes a file system of an image.
fn squash(parts: &Parts<'_>, work: &Path, place: &Path) -> std::result::Result<(), String> {
    let failed = |why: &dyn std::fmt::Display| format!("{UNPACKER} does not make a disk of it: {why}");
    let (said, errors) = (work.join("said"), work.join("errors"));
    let output = |path: &Path| File::create(path).map_err(|error| failed(&error));
    let child = Command::new(UNPACKER)
        .args(OPTIONS.split_whitespace())
        .arg(place)
        .current_dir(work)
        .env_clear()
        .env("PATH", PROGRAMS)
        .stdin(Stdio::piped())
        .stdout(output(&said)?)
        .stderr(output(&errors)?)
        .spawn();
    let mut child = Ends(child.map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("there is no program {UNPACKER}; install squashfs-tools"),
        _ => failed(&error),
    })?);
    let stdin = child.0.stdin.take().ok_or_else(|| failed(&"it does not listen"))?;
    let written = disk::write(parts, stdin);
    let status = child.0.wait().map_err(|error| failed(&error))?;
    let words = [errors, said].map(|path| std::fs::read_to_string(path).unwrap_or_default()).join("\n");
    let last = words.lines().map(str::trim).rfind(|line| !line.is_empty());
    match written {
        _ if !status.success() => Err(failed(&last.unwrap_or("it ended without a word"))),
        Err(error) => Err(failed(&error)),
        Ok(()) => Ok(()),
    }
}

/// A process that ends with this.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Adds what tells whether it is whole, and puts it on disk.
fn seal(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).open(path)?;
    let mut mark = [MARK, hash(&file)?.as_bytes()].concat();
    mark.resize(BLOCK as usize, 0);
    file.write_all(&mark)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.sync_all()
}

/// Is a disk there, as it was made? Reads all of it.
pub(in crate::driver) async fn is_whole(path: &Path) -> bool {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || is_sealed(&path)).await.unwrap_or(false)
}

/// One that cannot be read is of no more use than one that is not there.
fn is_sealed(path: &Path) -> bool {
    match has_seal(path) {
        Ok(sealed) => sealed,
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(%error, path = %path.display(), "the disk of an image cannot be read");
            }
            false
        }
    }
}

fn has_seal(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let Some(length) = file.metadata()?.len().checked_sub(BLOCK) else { return Ok(false) };
    let mut mark = Vec::new();
    file.seek(SeekFrom::Start(length))?;
    file.read_to_end(&mut mark)?;
    file.rewind()?;
    let expected = [MARK, hash((&file).take(length))?.as_bytes()].concat();
    Ok(mark.starts_with(&expected))
}

fn hash(from: impl Read) -> io::Result<String> {
    let mut hashed = Hashed::new(from);
    io::copy(&mut hashed, &mut io::sink())?;
    Ok(hashed.finish().0)
}
