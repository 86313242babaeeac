//! A container as crun takes it: a root and a `config.json`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_rootfs::Process;
use casemate_types::compose::ServiceSpec;
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use crate::disk::DATA;
use crate::image::Image;
use crate::{Doing, Result, inside, network, scratch};

/// Configurations, in memory only: they have the opened environment.
pub(crate) const BUNDLES: &str = "/run/bundles";

/// The free text for the app; there only if there is one.
pub(crate) const USER_CONFIG: &str = "/run/user_config";
/// Where containers find it, as under dstack.
const USER_CONFIG_INSIDE: &str = "/dstack/user_config";
const VOLUMES: &str = "volumes";

/// A container that is ready to run.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    pub(crate) folder: PathBuf,
    pub(crate) stop_signal: String,
}

/// What a process may do that runs as root; others may do nothing beyond their user's rights. No `CAP_SYS_CHROOT`: the root is
/// a file system of the kernel's own that cannot be changed for another, and a second `chroot` would lead back to it.
const CAPABILITIES: [&str; 13] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
];

/// Makes a service's container out of its image; what it changes in there goes below `services`, in a folder that is new.
/// Variables are in their places by now.
pub(crate) fn make(service: &ServiceSpec, image: &Image, services: &Path) -> Result<Bundle> {
    let (name, lower, image) = (&service.name, &image.root, &image.process);
    let own = services.join(name);
    let (root, upper, work) = (own.join("root"), own.join("upper"), own.join("work"));
    for folder in [&own, &root, &upper, &work] {
        fs::create_dir(folder).doing(format_args!("cannot make {}", folder.display()))?;
    }
    // Nothing that an attribute of a file says is followed to another place.
    let layers = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=nofollow,metacopy=off,index=off",
        lower.display(),
        upper.display(),
        work.display()
    );
    let layers = std::ffi::CString::new(layers).doing("a path with a zero byte")?;
    mount("overlay", &root, "overlay", MountFlags::empty(), layers.as_c_str())
        .doing(format_args!("cannot mount the root of `{name}`"))?;

    let user = User::find(service.user.as_deref().unwrap_or(&image.user), &|path| {
        inside::text(&root, path).doing(format_args!("cannot read {path} of the image"))
    })
    .map_err(|reason| format!("service `{name}`: {reason}"))?;
    let args = args(service, image).map_err(|reason| format!("service `{name}`: {reason}"))?;
    let cwd = [service.working_dir.as_deref(), Some(image.working_dir.as_str())]
        .into_iter()
        .flatten()
        .find(|cwd| !cwd.is_empty())
        .unwrap_or("/");
    inside::make_folder(&root, Path::new(cwd))
        .doing(format_args!("service `{name}`: cannot make its folder {cwd}"))?;
    let mut volumes = Vec::new();
    for volume in &service.volumes {
        let source = make_volume(&volume.volume, &root, &volume.target)
            .doing(format_args!("cannot make volume `{}`", volume.volume))?;
        let options: &[&str] =
            if volume.read_only { &["rbind", "rprivate", "ro"] } else { &["rbind", "rprivate"] };
        volumes.push(
            json!({"destination": volume.target, "type": "bind", "source": source, "options": options}),
        );
    }
    let config = config(name, &args, &env(service, image, name), &user, cwd, &root, volumes);
    let folder = Path::new(BUNDLES).join(name);
    fs::create_dir_all(&folder).doing(format_args!("cannot make {}", folder.display()))?;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(folder.join("config.json"))
        .and_then(|mut file| file.write_all(config.to_string().as_bytes()))
        .doing(format_args!("cannot write the configuration of `{name}`"))?;
    Ok(Bundle { folder, stop_signal: image.stop_signal.clone() })
}

/// The folder of a volume. A new one begins as what the image has at its place, owner and rights included, so that a user
/// of the image's own finds it usable.
fn make_volume(name: &str, root: &Path, target: &str) -> Result<PathBuf> {
    let volumes = Path::new(DATA).join(VOLUMES);
    let (folder, fresh) = (volumes.join(name), volumes.join(format!(".{name}.new")));
    scratch::folder(&volumes)?;
    if fs::symlink_metadata(&folder).is_ok() {
        scratch::folder(&folder)?;
        return Ok(folder);
    }
    // Filled beside it and renamed, so that a machine that dies in between begins again.
    scratch::remove(&fresh)?;
    fs::create_dir(&fresh).doing("cannot make its folder")?;
    if let Ok(image) = inside::open(root, target.trim_start_matches('/'))
        && image.metadata().is_ok_and(|image| image.is_dir())
    {
        // By handle: the path may have links, which were followed as the container would.
        let from = format!("/proc/{}/fd/{}/.", std::process::id(), image.as_raw_fd());
        let copied = Command::new("/bin/busybox").args(["cp", "-a", &from]).arg(&fresh).status();
        let copied = copied.doing("cannot copy what the image has there")?;
        if !copied.success() {
            return Err("cannot copy what the image has there".to_owned());
        }
    }
    fs::rename(&fresh, &folder).doing("cannot rename its folder")?;
    Ok(folder)
}

/// The process's words. An entrypoint of the file's own leaves the image's command out.
fn args(service: &ServiceSpec, image: &Process) -> Result<Vec<String>> {
    let mut args = match &service.entrypoint {
        Some(entrypoint) => entrypoint.words()?,
        None => image.entrypoint.clone(),
    };
    match &service.command {
        Some(command) => args.extend(command.words()?),
        None if service.entrypoint.is_none() => args.extend(image.cmd.iter().cloned()),
        None => {}
    }
    if args.is_empty() { Err("neither the file nor the image says what to run".to_owned()) } else { Ok(args) }
}

/// The image's variables, then the file's.
fn env(service: &ServiceSpec, image: &Process, hostname: &str) -> Vec<String> {
    let mut env: Vec<(String, String)> = vec![
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOSTNAME".to_owned(), hostname.to_owned()),
    ];
    let of_image = image
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let of_file = service.environment.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
    for (name, value) in of_image.chain(of_file) {
        match env.iter_mut().find(|(there, _)| *there == name) {
            Some((_, there)) => *there = value,
            None => env.push((name, value)),
        }
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Who a process runs as.
#[derive(Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
    more: Vec<u32>,
}

impl User {
    /// Out of `USER` or `USER:GROUP`, each a number or a name of the image's own tables.
    fn find(text: &str, file: &dyn Fn(&str) -> Result<String>) -> Result<Self> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let user = if user.is_empty() { "0" } else { user };
        let passwd = file("etc/passwd")?;
        let groups = file("etc/group")?;
        let entry = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|entry| entry.len() > 3 && (entry[0] == user || entry[2] == user));
        let uid = match (user.parse(), &entry) {
            (Ok(uid), _) => uid,
            (Err(_), Some(entry)) => {
                entry[2].parse().map_err(|_| format!("user `{user}` has no number in the image"))?
            }
            (Err(_), None) => return Err(format!("the image has no user `{user}`")),
        };
        let named = entry.as_ref().map(|entry| entry[0]);
        let listed: Vec<Vec<&str>> = groups
            .lines()
            .map(|line| line.split(':').collect())
            .filter(|entry: &Vec<&str>| entry.len() > 3)
            .collect();
        let gid = match group {
            None => entry.as_ref().and_then(|entry| entry[3].parse().ok()).unwrap_or(0),
            Some(group) => match group.parse() {
                Ok(gid) => gid,
                Err(_) => listed
                    .iter()
                    .find(|entry| entry[0] == group)
                    .and_then(|entry| entry[2].parse().ok())
                    .ok_or_else(|| format!("the image has no group `{group}`"))?,
            },
        };
        let is_member = |entry: &&Vec<&str>| {
            group.is_none() && named.is_some_and(|name| entry[3].split(',').any(|member| member == name))
        };
        let more = listed.iter().filter(is_member).filter_map(|entry| entry[2].parse().ok()).collect();
        Ok(Self { uid, gid, more })
    }
}

fn config(
    name: &str,
    args: &[String],
    env: &[String],
    user: &User,
    cwd: &str,
    root: &Path,
    volumes: Vec<Value>,
) -> Value {
    let able: &[&str] = if user.uid == 0 { &CAPABILITIES } else { &[] };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}),
        json!({"destination": "/etc/hosts", "type": "bind", "source": network::HOSTS, "options": ["rbind", "rprivate", "ro"]}),
    ];
    if Path::new(USER_CONFIG).exists() {
        mounts.push(json!({"destination": USER_CONFIG_INSIDE, "type": "bind", "source": USER_CONFIG, "options": ["rbind", "rprivate", "ro"]}));
    }
    mounts.extend(volumes);
    json!({
        "ociVersion": "1.0.2",
        "hostname": name,
        "process": {
            "terminal": false,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.more},
            "args": args,
            "env": env,
            "cwd": cwd,
            "oomScoreAdj": 0,
            "capabilities": {"bounding": CAPABILITIES, "effective": able, "permitted": able},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 65536, "hard": 65536}],
        },
        "root": {"path": root, "readonly": false},
        "mounts": mounts,
        "linux": {
            "cgroupsPath": format!("/services/{name}"),
            "namespaces": [{"type": "network", "path": network::namespace(name)}, {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"}],
            // In a network of its own a container may listen wherever it likes, as under docker.
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
            // No disk of the machine: crun adds the harmless devices.
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_types::compose::ComposeDoc;

    fn service(fields: &str) -> ServiceSpec {
        let yaml = format!("services: {{web: {{image: w, {fields}}}}}");
        let document = ComposeDoc::from_value(json!({"docker_compose_file": yaml})).unwrap();
        document.runnable().unwrap().remove(0)
    }

    fn image() -> Process {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Process {
            env: words(&["PATH=/bin", "A=image"]),
            entrypoint: words(&["/init"]),
            cmd: words(&["serve", "all"]),
            ..Process::default()
        }
    }

    #[test]
    fn the_file_replaces_what_the_image_says() {
        for (fields, wanted) in [
            ("", &["/init", "serve", "all"][..]),
            ("command: one two", &["/init", "one", "two"]),
            ("entrypoint: [/other]", &["/other"]),
            ("entrypoint: [/other], command: [x]", &["/other", "x"]),
            ("command: []", &["/init"]),
        ] {
            assert_eq!(args(&service(fields), &image()).unwrap(), wanted, "{fields}");
        }
        assert!(args(&service(""), &Process::default()).is_err());
        let env = env(&service("environment: {A: file, B: more}"), &image(), "web");
        assert_eq!(env, ["PATH=/bin", "HOSTNAME=web", "A=file", "B=more"]);
    }

    #[test]
    fn users_are_numbers_or_names_of_the_image() {
        let file = |path: &str| match path {
            "etc/passwd" => Ok("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n".to_owned()),
            "etc/group" => Ok("root:x:0:\nmore:x:7:app,other\nstaff:x:50:\n".to_owned()),
            _ => Err("there is no more".to_owned()),
        };
        let user = |uid, gid, more: &[u32]| Ok(User { uid, gid, more: more.to_vec() });
        for (text, wanted) in [
            ("", user(0, 0, &[])),
            ("app", user(1000, 1001, &[7])),
            ("1000", user(1000, 1001, &[7])),
            ("1000:5", user(1000, 5, &[])),
            ("app:staff", user(1000, 50, &[])),
            ("4242", user(4242, 0, &[])),
            ("nobody", Err("the image has no user `nobody`".to_owned())),
            ("app:none", Err("the image has no group `none`".to_owned())),
        ] {
            assert_eq!(User::find(text, &file), wanted, "{text}");
        }
        assert_eq!(User::find("5:6", &|_| Ok(String::new())), user(5, 6, &[]));
        let broken = "it is no regular file".to_owned();
        assert_eq!(User::find("5", &|_| Err(broken.clone())), Err(broken));
    }

    #[test]
    fn only_root_gets_capabilities() {
        let config = |uid| {
            let user = User { uid, gid: 0, more: vec![] };
            config("web", &[], &[], &user, "/", Path::new("/r"), vec![])
        };
        assert_eq!(config(1000)["process"]["capabilities"]["effective"], json!([]));
        assert_eq!(config(0)["process"]["capabilities"]["effective"], json!(CAPABILITIES));
    }
}
