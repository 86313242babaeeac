//! Container images, out of the tar archive on the images' disk.
//!
//! Nothing on that disk is trusted: a manifest is used if it hashes to the digest that the boot configuration names, and
//! what the manifest names if it hashes to the digest there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{Doing, Result, unpack};

/// Manifests and configurations are small; whatever is larger is none.
const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;

/// The archive: where each blob lies.
pub(crate) struct Images {
    archive: File,
    blobs: HashMap<String, Blob>,
}

#[derive(Clone, Copy)]
struct Blob {
    offset: u64,
    size: u64,
}

/// What an image says about its process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Process {
    #[serde(rename = "Env", deserialize_with = "or_nothing")]
    pub(crate) env: Vec<String>,
    #[serde(rename = "Entrypoint", deserialize_with = "or_nothing")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(rename = "Cmd", deserialize_with = "or_nothing")]
    pub(crate) cmd: Vec<String>,
    #[serde(rename = "User", deserialize_with = "or_nothing")]
    pub(crate) user: String,
    #[serde(rename = "WorkingDir", deserialize_with = "or_nothing")]
    pub(crate) working_dir: String,
    #[serde(rename = "StopSignal", deserialize_with = "or_nothing")]
    pub(crate) stop_signal: String,
}

/// `null` is the same as absent.
fn or_nothing<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(rename = "mediaType", default)]
    media_type: String,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Option<Process>,
}

impl Images {
    /// Looks through the archive once.
    pub(crate) fn open(device: &Path) -> Result<Self> {
        let archive =
            File::open(device).doing(format_args!("cannot open the images' disk {}", device.display()))?;
        Self::index(archive).doing("cannot read the images' disk")
    }

    fn index(archive: File) -> io::Result<Self> {
        let mut blobs = HashMap::new();
        let mut entries = tar::Archive::new(&archive);
        for entry in entries.entries_with_seek()? {
            let entry = entry?;
            let path = entry.path_bytes();
            if let Some(hex) = std::str::from_utf8(&path)
                .ok()
                .and_then(|path| path.trim_start_matches("./").strip_prefix("blobs/sha256/"))
            {
                let blob = Blob { offset: entry.raw_file_position(), size: entry.size() };
                blobs.insert(format!("sha256:{hex}"), blob);
            }
        }
        Ok(Self { archive, blobs })
    }

    /// Makes the image's root below an empty folder.
    ///
    /// # Errors
    /// Names the digest of whatever is missing, broken, or not what it should be.
    pub(crate) fn unpack(&self, digest: &str, root: &Path) -> Result<Process> {
        let manifest: Manifest = self.document(digest)?;
        let configuration: Configuration = self.document(&manifest.config.digest)?;
        for layer in &manifest.layers {
            self.layer(layer, root)?;
        }
        Ok(configuration.config.unwrap_or_default())
    }

    fn blob(&self, digest: &str) -> Result<io::Take<&File>> {
        let blob = self.blobs.get(digest).ok_or_else(|| format!("{digest} is not on the images' disk"))?;
        let mut archive = &self.archive;
        archive.seek(SeekFrom::Start(blob.offset)).doing(format_args!("cannot read {digest}"))?;
        Ok(archive.take(blob.size))
    }

    fn document<T: serde::de::DeserializeOwned>(&self, digest: &str) -> Result<T> {
        let blob = self.blob(digest)?;
        if blob.limit() > MAX_DOCUMENT {
            return Err(format!(
                "{digest} is larger than {MAX_DOCUMENT} bytes, which no manifest or configuration is"
            ));
        }
        let mut text = Vec::new();
        let mut hashed = Hashed::new(blob);
        hashed.read_to_end(&mut text).doing(format_args!("cannot read {digest}"))?;
        hashed.check(digest)?;
        serde_json::from_slice(&text).doing(format_args!("{digest} is not what it should be"))
    }

    fn layer(&self, layer: &Descriptor, root: &Path) -> Result<()> {
        let digest = &layer.digest;
        let mut hashed = Hashed::new(io::BufReader::with_capacity(128 * 1024, self.blob(digest)?));
        let kind = layer.media_type.as_str();
        let unpacked = if kind.ends_with("gzip") {
            unpack::layer(&mut MultiGzDecoder::new(&mut hashed), root)
        } else if kind.ends_with("zstd") {
            StreamingDecoder::new(&mut hashed)
                .map_err(io::Error::other)
                .and_then(|mut decoder| unpack::layer(&mut decoder, root))
        } else if kind.ends_with("tar") {
            unpack::layer(&mut hashed, root)
        } else {
            return Err(format!("layer {digest} is of a kind that is not supported: `{kind}`"));
        };
        // A layer that was changed is told by its digest, whatever else may be wrong with it.
        io::copy(&mut hashed, &mut io::sink()).doing(format_args!("cannot read layer {digest}"))?;
        hashed.check(digest)?;
        unpacked.doing(format_args!("cannot unpack layer {digest}"))
    }
}

/// Hashes what is read through it.
struct Hashed<R> {
    from: R,
    hash: Sha256,
}

impl<R: Read> Hashed<R> {
    fn new(from: R) -> Self {
        Self { from, hash: Sha256::new() }
    }

    fn check(self, digest: &str) -> Result<()> {
        let found = format!("sha256:{}", hex::encode(self.hash.finalize()));
        if found == digest {
            Ok(())
        } else {
            Err(format!("{digest} has another content: it hashes to {found}"))
        }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn digest(blob: &[u8]) -> String {
        format!("sha256:{}", hex::encode(Sha256::digest(blob)))
    }

    fn layer_tar(name: &str, content: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let uid = rustix::process::getuid().as_raw();
        header.set_uid(uid.into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
        tar.into_inner().unwrap()
    }

    /// An archive with these blobs under these digests, followed by zeros like a disk.
    fn disk(blobs: &[(String, Vec<u8>)]) -> Images {
        let mut tar = tar::Builder::new(Vec::new());
        for (digest, blob) in blobs {
            let mut header = tar::Header::new_ustar();
            header.set_size(blob.len() as u64);
            let path = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
            tar.append_data(&mut header, path, &blob[..]).unwrap();
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&tar.into_inner().unwrap()).unwrap();
        file.write_all(&[0; 4096]).unwrap();
        file.rewind().unwrap();
        Images::index(file).unwrap()
    }

    fn image(layers: &[(&str, Vec<u8>)]) -> (String, Vec<(String, Vec<u8>)>) {
        let config = br#"{"config":{"Env":["A=b"],"Cmd":["/run"],"Entrypoint":null}}"#.to_vec();
        let listed: Vec<_> = layers
            .iter()
            .map(|(kind, blob)| serde_json::json!({"mediaType": format!("application/vnd.oci.image.layer.v1.{kind}"), "digest": digest(blob)}))
            .collect();
        let manifest = serde_json::json!({"config": {"digest": digest(&config)}, "layers": listed})
            .to_string()
            .into_bytes();
        let name = digest(&manifest);
        let mut blobs = vec![(name.clone(), manifest), (digest(&config), config)];
        blobs.extend(layers.iter().map(|(_, blob)| (digest(blob), blob.clone())));
        (name, blobs)
    }

    #[test]
    fn layers_of_every_kind_are_unpacked() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&layer_tar("two", "2")).unwrap();
        let zstd = ruzstd::encoding::compress_to_vec(
            &layer_tar("three", "3")[..],
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        let (name, blobs) =
            image(&[("tar", layer_tar("one", "1")), ("tar+gzip", gz.finish().unwrap()), ("tar+zstd", zstd)]);
        let root = tempfile::tempdir().unwrap();
        let process = disk(&blobs).unpack(&name, root.path()).unwrap();
        assert_eq!(
            (process.env, process.cmd, process.entrypoint.len()),
            (vec!["A=b".to_owned()], vec!["/run".to_owned()], 0)
        );
        for (file, content) in [("one", "1"), ("two", "2"), ("three", "3")] {
            assert_eq!(std::fs::read_to_string(root.path().join(file)).unwrap(), content);
        }
    }

    #[test]
    fn what_was_changed_is_refused_by_its_digest() {
        let (name, blobs) = image(&[("tar", layer_tar("one", "1"))]);
        for changed in 0..blobs.len() {
            let mut blobs = blobs.clone();
            let middle = blobs[changed].1.len() / 2;
            blobs[changed].1[middle] ^= 1;
            let root = tempfile::tempdir().unwrap();
            let error = disk(&blobs).unpack(&name, root.path()).unwrap_err();
            assert!(error.starts_with(&format!("{} has another content", blobs[changed].0)), "{error}");
        }
        for missing in 0..blobs.len() {
            let mut rest = blobs.clone();
            let (digest, _) = rest.remove(missing);
            let root = tempfile::tempdir().unwrap();
            let error = disk(&rest).unpack(&name, root.path()).unwrap_err();
            assert_eq!(error, format!("{digest} is not on the images' disk"));
        }
    }
}
