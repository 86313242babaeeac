//! A small HTTP server as a container image: busybox and two scripts, in the OCI image layout.
//!
//! It listens on port 8080 and says on `/` which version it is. `/memory` is what the machine has, in KiB, `/cpus` how many processors,
//! `/disk` the size of the file system under `/data`, in KiB. `/config` is SHA-256 of the user config. `/count` adds a line to a file
//! in `/data`, where a volume may be, and says how many it has; `/data` says it without adding. `/env` are the names of the variables,
//! `/env/NAME` SHA-256 of one's value. `/crash` ends it with code 7, after the answer.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use crate::{Result, make_folder, sha256, write};

/// Writes the layout of `web:VERSION` into a folder. Returns the manifest's digest.
///
/// # Errors
/// The folder cannot be written.
pub fn build(busybox: &[u8], applets: &[String], version: &str, out: &Path) -> Result<String> {
    let blobs = out.join("blobs/sha256");
    make_folder(&blobs)?;
    let blob = |content: &[u8]| -> Result<String> {
        let hash = sha256(content);
        write(&blobs.join(&hash), content)?;
        Ok(format!("sha256:{hash}"))
    };
    let base = base(busybox, applets);
    let server = server(version);
    let packed = gzip(&server);
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin"],
            "Entrypoint": ["/bin/server"],
            "ExposedPorts": {"8080/tcp": {}},
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&base)), format!("sha256:{}", sha256(&server))]},
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob(config.as_bytes())?, "size": config.len()},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blob(&base)?, "size": base.len()},
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": blob(&packed)?, "size": packed.len()},
        ],
    })
    .to_string();
    let digest = blob(manifest.as_bytes())?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": manifest.len(),
            "platform": {"architecture": "amd64", "os": "linux"},
            "annotations": {"org.opencontainers.image.ref.name": format!("web:{version}")},
        }],
    });
    write(&out.join("index.json"), index.to_string().as_bytes())?;
    write(&out.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(digest)
}

/// The layer that all versions share.
fn base(busybox: &[u8], applets: &[String]) -> Vec<u8> {
    let mut layer = Layer::new();
    layer.folder("bin").program("bin/busybox", busybox);
    for applet in applets.iter().filter(|applet| *applet != "busybox") {
        layer.link(&format!("bin/{applet}"), "busybox");
    }
    layer
        .folder("data")
        .folder("etc")
        .file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n");
    layer
        .file("etc/group", b"root:x:0:\nweb:x:1000:\n")
        .folder("proc")
        .folder("sys")
        .folder("dev")
        .folder("tmp");
    layer.finish()
}

fn server(version: &str) -> Vec<u8> {
    let server = format!(
        "#!/bin/sh\n\
         # Ends with what it started when it is asked to, and at once.\n\
         trap 'kill $server; exit 0' TERM INT\n\
         trap 'kill $server; exit 7' USR1\n\
         nc -ll -p 8080 -e /bin/answer &\n\
         server=$!\n\
         echo \"web {version} listens on port 8080\"\n\
         while :; do wait $server; done\n"
    );
    let answer = format!(
        "#!/bin/sh\n\
         # One request on standard input, its answer on standard output.\n\
         read -r method path rest\n\
         while read -r line && [ \"${{#line}}\" -gt 1 ]; do :; done\n\
         echo \"$method $path\" >/proc/1/fd/2\n\
         count() {{ cat /data/count 2>/dev/null | wc -l; }}\n\
         variables() {{ tr '\\0' '\\n' </proc/1/environ; }}\n\
         case $path in\n\
         /) body='web {version}' ;;\n\
         /memory) body=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) ;;\n\
         /cpus) body=$(nproc) ;;\n\
         /disk) body=$(df -k /data | awk 'NR == 2 {{ print $2 }}') ;;\n\
         /config) body=$(sha256sum </dstack/user_config | cut -d' ' -f1) ;;\n\
         /count) echo {version} >>/data/count; body=$(count) ;;\n\
         /data) body=$(count) ;;\n\
         /env) body=$(variables | cut -d= -f1 | sort) ;;\n\
         /env/*) body=$(variables | grep \"^${{path#/env/}}=\" | cut -d= -f2- | tr -d '\\n' | sha256sum | cut -d' ' -f1) ;;\n\
         /crash) (sleep 0.2; kill -USR1 1) </dev/null >/dev/null 2>&1 & body=crash ;;\n\
         *) status='404 Not Found' body='not here' ;;\n\
         esac\n\
         printf 'HTTP/1.1 %s\\r\\nContent-Type: text/plain\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n%s\\n' \"${{status:-200 OK}}\" $((${{#body}} + 1)) \"$body\"\n"
    );
    Layer::new()
        .folder("bin")
        .program("bin/server", server.as_bytes())
        .program("bin/answer", answer.as_bytes())
        .finish()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(content).and_then(|()| packed.finish()).expect("writing to memory does not fail")
}

/// A tar archive whose entries have no time and belong to root.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn folder(&mut self, path: &str) -> &mut Self {
        self.add(&format!("{path}/"), tar::EntryType::Directory, 0o755, &[], "")
    }

    fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.add(path, tar::EntryType::Regular, 0o644, content, "")
    }

    fn program(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.add(path, tar::EntryType::Regular, 0o755, content, "")
    }

    fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.add(path, tar::EntryType::Symlink, 0o777, &[], target)
    }

    fn add(
        &mut self,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        content: &[u8],
        target: &str,
    ) -> &mut Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        let added = if target.is_empty() {
            self.0.append_data(&mut header, path, content)
        } else {
            self.0.append_link(&mut header, path, target)
        };
        added.expect("names are short, and writing to memory does not fail");
        self
    }

    fn finish(&mut self) -> Vec<u8> {
        let layer = std::mem::replace(self, Self::new());
        layer.0.into_inner().expect("writing to memory does not fail")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_layout_is_whole_and_the_same_again() {
        let applets = ["sh".to_owned(), "busybox".to_owned()];
        let folder = tempfile::tempdir().unwrap();
        let layout = |version: &str, name: &str| {
            let out = folder.path().join(name);
            (build(b"busybox", &applets, version, &out).unwrap(), out)
        };
        let (digest, out) = layout("1", "one");
        assert_eq!(layout("1", "again").0, digest);
        assert_ne!(layout("2", "two").0, digest);
        for blob in fs::read_dir(out.join("blobs/sha256")).unwrap().flatten() {
            assert_eq!(sha256(&fs::read(blob.path()).unwrap()), blob.file_name().to_str().unwrap());
        }
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(out.join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], digest);
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "web:1");
    }
}
