//! One machine under QEMU, with everything that a driver gives it, for as long as a test needs it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use casemate_rootfs::disk::{self, Parts};
use casemate_rootfs::{Tree, digest_of};
use casemate_types::guest::{
    AGENT_PORT, Answer, Ask, BOOT_CONFIG, BootConfig, DATA_DISK, ImageRef, Phase, Question, Reply, Report,
    image_serial,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A boot takes about 4 s alone; machines of other tests run beside it.
const PATIENCE: Duration = Duration::from_secs(120);

/// What `make guest` made.
pub(crate) fn made() -> PathBuf {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.casemate-guest");
    assert!(made.join("images").is_dir(), "there is no OS image: run `make guest`");
    made
}

/// The image `web:VERSION`.
pub(crate) fn web(version: &str) -> ImageRef {
    Image::web(version).named
}

/// A container image.
pub(crate) struct Image {
    pub(crate) named: ImageRef,
    manifest: Vec<u8>,
    config: Vec<u8>,
    /// Tar streams.
    layers: Vec<Vec<u8>>,
}

impl Image {
    /// One that `make guest` made.
    pub(crate) fn web(version: &str) -> Self {
        let layout = made().join(format!("oci/web-{version}"));
        let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).expect("JSON");
        let blob = |descriptor: &serde_json::Value| {
            let digest = descriptor["digest"].as_str().expect("a digest");
            fs::read(layout.join("blobs").join(digest.replace(':', "/"))).expect("a blob")
        };
        let index = json(&fs::read(layout.join("index.json")).expect("an OCI layout"));
        let named = &index["manifests"][0];
        let manifest = blob(named);
        let parts = json(&manifest);
        let unpacked = |layer: &serde_json::Value| match layer["mediaType"].as_str() {
            Some(kind) if kind.ends_with("gzip") => {
                let mut tar = Vec::new();
                flate2::read::GzDecoder::new(&blob(layer)[..]).read_to_end(&mut tar).expect("gzip");
                tar
            }
            _ => blob(layer),
        };
        let digest = named["digest"].as_str().expect("a digest").to_owned();
        Self {
            named: ImageRef { reference: format!("web:{version}"), digest },
            config: blob(&parts["config"]),
            layers: parts["layers"].as_array().expect("layers").iter().map(unpacked).collect(),
            manifest,
        }
    }

    /// This image with more layers, under another name.
    pub(crate) fn with(mut self, reference: &str, layers: Vec<Vec<u8>>) -> Self {
        self.layers.extend(layers);
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest_of(layer)).collect();
        let config =
            json!({"config": {"Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        self.config = config.to_string().into_bytes();
        let layers: Vec<_> = diff_ids.iter().map(|digest| json!({"digest": digest})).collect();
        let manifest = json!({"config": {"digest": digest_of(&self.config)}, "layers": layers});
        self.manifest = manifest.to_string().into_bytes();
        self.named = ImageRef { reference: reference.to_owned(), digest: digest_of(&self.manifest) };
        self
    }

    /// This image, under the name of another.
    pub(crate) fn in_place_of(self, other: &Self) -> Self {
        Self { named: other.named.clone(), ..self }
    }

    /// What is on its disk, as an archive.
    fn disk(&self) -> Vec<u8> {
        let mut tree = Tree::default();
        let layer = |layer: &Vec<u8>| {
            tree.apply(&layer[..]).expect("a layer");
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(layer).expect("written");
            (file, layer.len() as u64)
        };
        let layers: Vec<(File, u64)> = self.layers.iter().map(layer).collect();
        let parts = Parts { manifest: &self.manifest, config: &self.config, layers: &layers, tree: &tree };
        let mut tar = Vec::new();
        disk::write(&parts, &mut tar).expect("an archive");
        tar
    }
}

/// A boot configuration for this docker-compose file.
pub(crate) fn config(boot: u64, yaml: &str, allowed_envs: &[&str]) -> BootConfig {
    let compose = json!({"docker_compose_file": yaml, "allowed_envs": allowed_envs}).to_string();
    config_of(boot, &compose)
}

pub(crate) fn config_of(boot: u64, compose: &str) -> BootConfig {
    serde_json::from_value(json!({
        "vm": "0198c1d2-0000-7000-8000-000000000001",
        "boot": boot,
        "name": "web-1",
        "app_id": "aa".repeat(20),
        "instance_id": "bb".repeat(20),
        "compose_hash": hex::encode(Sha256::digest(compose)),
        "compose": compose,
        "sealed_env": null,
        "user_config": null,
        "os_image_hash": "cc".repeat(32),
        "images": [web("1"), web("2")],
    }))
    .expect("a boot configuration")
}

#[expect(clippy::disallowed_methods, reason = "real machines take real time")]
fn now() -> Instant {
    Instant::now()
}

/// Is it a time of this minute?
#[expect(clippy::disallowed_methods, reason = "a real machine has a real clock")]
pub(crate) fn is_recent(at: Timestamp) -> bool {
    at.duration_until(Timestamp::now()).abs() < SignedDuration::from_secs(60)
}

/// Looks again and again until there is something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        #[expect(clippy::disallowed_methods, reason = "a real machine is looked at every now and then")]
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The disks of a machine, which outlive its boots.
pub(crate) struct Disks {
    folder: TempDir,
}

impl Disks {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = File::create(folder.path().join("data")).expect("a disk");
        data.set_len(256 * 1024 * 1024).expect("a disk");
        let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(folder.path().join("data")).status();
        assert!(made.expect("mke2fs, of e2fsprogs").success());
        let disks = Self { folder };
        for version in ["1", "2"] {
            disks.add(&Image::web(version), |tar| tar);
        }
        disks
    }

    /// Adds the disk of an image, or replaces it; what is on it is as `change` makes it of the archive that the disk is made of.
    pub(crate) fn add(&self, image: &Image, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        self.remove(image);
        let options =
            "-quiet -no-progress -exit-on-error -mkfs-time 0 -root-mode 0755 -root-uid 0 -root-gid 0";
        let mut program = Command::new("sqfstar")
            .args(options.split(' '))
            .arg(self.image(image))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("sqfstar, of squashfs-tools: `scripts/tools qemu` installs it");
        let tar = change(image.disk());
        program.stdin.take().expect("it is piped").write_all(&tar).expect("it is read");
        assert!(program.wait().expect("a child").success());
    }

    /// What the machine has written to its serial console, over all boots.
    pub(crate) fn serial(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("serial")).unwrap_or_default()).into_owned()
    }

    /// Replaces the disk of an image.
    pub(crate) fn write(&self, image: &Image, bytes: &[u8]) {
        fs::write(self.image(image), bytes).expect("a disk");
    }

    /// Takes the disk of an image away.
    pub(crate) fn remove(&self, image: &Image) {
        let _ = fs::remove_file(self.image(image));
    }

    fn image(&self, image: &Image) -> PathBuf {
        self.folder.path().join(format!("image-{}", image_serial(&image.named.digest)))
    }

    /// The files with images.
    fn images(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder.path()).expect("a folder").flatten();
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        names.filter(|name| name.starts_with("image-")).collect()
    }

    /// Starts a machine with these disks; `ports` of it are reached from here.
    pub(crate) fn boot(&self, config: &BootConfig, ports: &[u16]) -> Vm<'_> {
        self.boot_image("casemate-0.1.0", config, ports)
    }

    pub(crate) fn boot_image(&self, image: &str, config: &BootConfig, ports: &[u16]) -> Vm<'_> {
        let path = |name: &str| self.folder.path().join(name);
        let (agent, monitor) = (path("agent"), path("monitor"));
        for socket in [&agent, &monitor] {
            let _ = fs::remove_file(socket);
        }
        fs::write(path("boot.json"), serde_json::to_vec(config).expect("JSON")).expect("a file");
        let image = made().join("images").join(image);
        let metadata = fs::read(image.join("metadata.json")).expect("metadata");
        let metadata: serde_json::Value = serde_json::from_slice(&metadata).expect("JSON");
        let mut network = "user,id=n0,restrict=on".to_owned();
        let ports: Vec<(u16, u16)> = ports.iter().map(|port| (*port, free_port())).collect();
        for (guest, host) in &ports {
            network.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
        }
        let show = |path: &Path| path.display().to_string();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-accel",
            "tcg",
            "-cpu",
            "max,-cx16",
            "-M",
            "q35",
            "-m",
            "256",
            "-nodefaults",
            "-no-user-config",
        ])
        .args(["-display", "none", "-no-reboot", "-kernel"])
        .arg(image.join("bzImage"))
        .arg("-initrd")
        .arg(image.join("initramfs.cpio"))
        .args(["-append", metadata["cmdline"].as_str().expect("a command line")])
        .args(["-chardev", &format!("file,id=serial,path={},append=on", show(&path("serial")))])
        .args(["-serial", "chardev:serial"])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", show(&monitor))])
        .args(["-fw_cfg", &format!("name={BOOT_CONFIG},file={}", show(&path("boot.json")))])
        .args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", show(&agent))])
        .args(["-device", "virtio-serial-pci"])
        .args(["-device", &format!("virtserialport,chardev=agent,name={AGENT_PORT}")])
        .args(["-drive", &format!("file={},if=none,id=data,format=raw", show(&path("data")))])
        .args(["-device", &format!("virtio-blk-pci,drive=data,serial={DATA_DISK}")])
        .args(self.images().iter().flat_map(|file| {
            let serial = file.trim_start_matches("image-");
            let drive = format!("file={},if=none,id={file},format=raw,readonly=on", show(&path(file)));
            let device = format!("virtio-blk-pci,drive={file},serial={serial},disable-legacy=on");
            ["-drive".to_owned(), drive, "-device".to_owned(), device]
        }))
        .args(["-netdev", &network, "-device", "virtio-net-pci,netdev=n0,romfile="])
        .stdin(Stdio::null());
        let child = qemu.spawn().expect("qemu-system-x86_64: `scripts/tools qemu` installs it");
        let mut vm = Vm { disks: self, child, agent: None, asked: 0, ports, began: now() };
        vm.agent = Some(wait_for("the agent's socket", || UnixStream::connect(&agent).ok()));
        vm
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// A machine that runs. It ends with the test.
pub(crate) struct Vm<'a> {
    disks: &'a Disks,
    child: Child,
    agent: Option<UnixStream>,
    asked: u64,
    ports: Vec<(u16, u16)>,
    began: Instant,
}

impl Vm<'_> {
    /// Asks, and waits for the answer; answers to earlier questions are passed over.
    pub(crate) fn ask(&mut self, ask: Ask) -> Reply {
        self.try_ask(ask, PATIENCE)
            .unwrap_or_else(|error| panic!("no answer: {error}\n{}", self.disks.serial()))
    }

    /// A report, if the agent answers soon.
    pub(crate) fn try_report(&mut self) -> Option<Report> {
        match self.try_ask(Ask::Status, Duration::from_secs(3)) {
            Ok(Reply::Status(report)) => Some(*report),
            _ => None,
        }
    }

    fn try_ask(&mut self, ask: Ask, at_most: Duration) -> io::Result<Reply> {
        self.asked += 1;
        let question = serde_json::to_vec(&Question { id: self.asked, ask })?;
        let agent = self.agent.as_mut().expect("connected when it was started");
        agent.set_read_timeout(Some(at_most))?;
        agent.write_all(&[&(question.len() as u32).to_be_bytes()[..], &question].concat())?;
        loop {
            let mut length = [0; 4];
            agent.read_exact(&mut length)?;
            let mut answer = vec![0; u32::from_be_bytes(length) as usize];
            agent.read_exact(&mut answer)?;
            let answer: Answer = serde_json::from_slice(&answer)?;
            if answer.id == self.asked {
                return Ok(answer.reply);
            }
        }
    }

    /// Connects anew, as a driver does that was away.
    pub(crate) fn reconnect(&mut self) {
        self.agent = None;
        let socket = self.disks.folder.path().join("agent");
        self.agent = Some(wait_for("the agent's socket", || UnixStream::connect(&socket).ok()));
    }

    /// Writes to the agent what no driver would.
    pub(crate) fn write_raw(&mut self, bytes: &[u8]) {
        self.agent.as_mut().expect("connected").write_all(bytes).expect("written");
    }

    pub(crate) fn report(&mut self) -> Report {
        match self.ask(Ask::Status) {
            Reply::Status(report) => *report,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the boot has ended, one way or the other.
    pub(crate) fn settled(&mut self) -> Report {
        wait_for("the boot's end", || {
            let report = self.report();
            (!matches!(report.phase, Phase::Booting(_))).then_some(report)
        })
    }

    pub(crate) fn done(&mut self) -> Report {
        let report = self.settled();
        assert_eq!(report.phase, Phase::Done, "{}", self.disks.serial());
        println!("spawn to done: {} ms", self.began.elapsed().as_millis());
        report
    }

    pub(crate) fn failed(&mut self) -> String {
        match self.settled().phase {
            Phase::Failed(why) => why,
            other => panic!("{other:?}\n{}", self.disks.serial()),
        }
    }

    /// What the machine answers on one of its ports, as soon as it does.
    pub(crate) fn get(&self, port: u16, path: &str) -> String {
        wait_for(path, || {
            let host =
                self.ports.iter().find(|(guest, _)| *guest == port).expect("a port that was asked for").1;
            let mut stream = TcpStream::connect(("127.0.0.1", host)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            head.starts_with("HTTP/1.1 ").then(|| body.trim_end().to_owned())
        })
    }

    /// Waits until the machine is off, which it has to do by itself.
    pub(crate) fn off(mut self) -> Duration {
        let began = now();
        let status = wait_for("the machine's end", || self.child.try_wait().expect("a child"));
        assert!(status.success(), "{status}");
        began.elapsed()
    }

    /// Presses the power button.
    pub(crate) fn press_power(&self) {
        let mut monitor = UnixStream::connect(self.disks.folder.path().join("monitor")).expect("QMP");
        monitor
            .write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"system_powerdown\"}\n")
            .expect("QMP");
        // Until both were answered: a connection that is closed too soon may take its commands with it.
        let mut answers = [0; 1];
        let mut lines = 0;
        while lines < 3 && monitor.read_exact(&mut answers).is_ok() {
            lines += usize::from(answers[0] == b'\n');
        }
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("serial console:\n{}", self.disks.serial());
        }
    }
}
