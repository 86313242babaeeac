//! An operating system image: a folder with a kernel, an initramfs, the kernel's command line, metadata, and a list of
//! digests. SHA-256 of that list is the image's hash.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cpio::Tree;
use crate::{Result, elf, make_folder, modules, read, sha256, write};

/// Modules that the agent's work needs, beside what they depend on.
const MODULES: [&str; 10] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "qemu_fw_cfg",
    "button",
    "evdev",
    "overlay",
    "squashfs",
    "veth",
];

/// What the kernel is told: little to say, nothing to wait for, and off (which a restart is, without one) if it panics. It does not
/// test its timer: on a host with much to do, an emulated one is late for that, and the kernel gives up.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1 audit=0 apparmor=0 cryptomgr.notests no_timer_check random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux i8042.nokbd";

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// A folder into which Debian's packages were unpacked: the kernel, crun with its libraries, busybox.
    pub packages: PathBuf,
    /// The agent, a static program.
    pub agent: PathBuf,
    /// `casemate` or `casemate-dev`.
    pub name: String,
    /// Three numbers.
    pub version: String,
    /// With a shell on the serial console.
    pub is_dev: bool,
    /// Names that busybox answers to.
    pub applets: Vec<String>,
}

/// Makes the folder `NAME-VERSION` below `out`. Returns the image's hash.
///
/// # Errors
/// A part that is missing, or a folder that cannot be written.
pub fn build(recipe: &Recipe, out: &Path) -> Result<String> {
    let kernel = kernel(&recipe.packages)?;
    let initramfs = initramfs(recipe, &kernel.1)?;
    let folder = out.join(format!("{}-{}", recipe.name, recipe.version));
    let files: [(&str, Vec<u8>); 3] = [
        ("bzImage", read(&kernel.0)?),
        ("cmdline", COMMAND_LINE.as_bytes().to_vec()),
        ("initramfs.cpio", initramfs),
    ];
    let list: String = files.iter().map(|(name, content)| format!("{}  {name}\n", sha256(content))).collect();
    let hash = sha256(list.as_bytes());
    let metadata = json!({
        "name": format!("{}-{}", recipe.name, recipe.version),
        "version": recipe.version,
        "is_dev": recipe.is_dev,
        "kernel": "bzImage",
        "initrd": "initramfs.cpio",
        "cmdline": COMMAND_LINE,
        "os_image_hash": hash,
    });
    // Written beside it and renamed, so that whoever looks sees a whole image or none.
    let fresh = out.join(format!(".{}-{}.new", recipe.name, recipe.version));
    let _ = fs::remove_dir_all(&fresh);
    make_folder(&fresh)?;
    for (name, content) in &files {
        write(&fresh.join(name), content)?;
    }
    write(&fresh.join("sha256sum.txt"), list.as_bytes())?;
    let metadata = serde_json::to_string_pretty(&metadata).map_err(|error| error.to_string())?;
    write(&fresh.join("metadata.json"), format!("{metadata}\n").as_bytes())?;
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&fresh, &folder).map_err(|error| format!("cannot rename to {}: {error}", folder.display()))?;
    Ok(hash)
}

/// The kernel and the folder with its modules: the only ones that the packages brought.
fn kernel(packages: &Path) -> Result<(PathBuf, PathBuf)> {
    let boot = packages.join("boot");
    let mut kernels: Vec<String> = fs::read_dir(&boot)
        .map_err(|error| format!("cannot read {}: {error}", boot.display()))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
        .collect();
    match (kernels.pop(), kernels.is_empty()) {
        (Some(version), true) => {
            let modules =
                ["lib/modules", "usr/lib/modules"].map(|folder| packages.join(folder).join(&version));
            let modules =
                modules.into_iter().find(|folder| folder.exists()).ok_or("the kernel has no modules")?;
            Ok((boot.join(format!("vmlinuz-{version}")), modules))
        }
        (None, _) => Err(format!("{} has no kernel", boot.display())),
        (Some(_), false) => Err(format!("{} has more than one kernel", boot.display())),
    }
}

fn initramfs(recipe: &Recipe, kernel_modules: &Path) -> Result<Vec<u8>> {
    let program = |names: &[&str]| {
        let places: Vec<PathBuf> = names.iter().map(|name| recipe.packages.join(name)).collect();
        places
            .iter()
            .find(|path| path.exists())
            .cloned()
            .ok_or_else(|| format!("no package brought {}", names[0]))
    };
    let mut tree = Tree::new();
    for folder in ["data", "dev", "proc", "run", "sys", "tmp", "var", "root"] {
        tree.folder(folder);
    }
    // Before there is a /dev the kernel opens this for the first process.
    tree.character("dev/console", 5, 1);
    tree.program("init", read(&recipe.agent)?);
    tree.program("bin/busybox", read(&program(&["bin/busybox", "usr/bin/busybox"])?)?);
    let crun = program(&["usr/bin/crun"])?;
    tree.program("usr/bin/crun", read(&crun)?);
    for (path, content) in elf::closure(&crun, &recipe.packages)? {
        tree.program(&path, content);
    }
    for applet in &recipe.applets {
        tree.link(&format!("bin/{applet}"), "busybox");
    }
    let mut order = String::new();
    for (name, content) in modules::in_order(kernel_modules, &MODULES)? {
        let path = format!("lib/modules/{name}.ko");
        order.push_str(&format!("/{path}\n"));
        tree.file(&path, content);
    }
    tree.file("lib/modules/order", order);
    tree.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    tree.file("etc/group", "root:x:0:\n");
    tree.file("etc/os-release", os_release(recipe));
    Ok(tree.archive())
}

fn os_release(recipe: &Recipe) -> String {
    let (kind, title) =
        if recipe.is_dev { ("dev", "Casemate guest (development)") } else { ("prod", "Casemate guest") };
    let version = &recipe.version;
    format!(
        "ID=casemate\nNAME=\"Casemate guest\"\nVERSION_ID={version}\nVARIANT_ID={kind}\nPRETTY_NAME=\"{title} {version}\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packages with the least that an image needs.
    fn packages() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let file = |path: &str, content: &[u8]| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        file("boot/vmlinuz-6.1", b"kernel");
        for module in MODULES {
            file(&format!("lib/modules/6.1/kernel/{module}.ko"), b"\0depends=\0");
        }
        file("bin/busybox", b"busybox");
        file("agent", b"agent");
        // A static program: no table at all.
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        file("usr/bin/crun", &elf);
        root
    }

    fn recipe(packages: &Path, version: &str, is_dev: bool) -> Recipe {
        Recipe {
            packages: packages.to_owned(),
            agent: packages.join("agent"),
            name: "casemate".to_owned(),
            version: version.to_owned(),
            is_dev,
            applets: vec!["sh".to_owned(), "busybox".to_owned()],
        }
    }

    #[test]
    fn the_same_parts_give_the_same_hash() {
        let packages = packages();
        let out = tempfile::tempdir().unwrap();
        let build = |version, is_dev| build(&recipe(packages.path(), version, is_dev), out.path()).unwrap();
        let first = build("0.1.0", false);
        let list = fs::read(out.path().join("casemate-0.1.0/sha256sum.txt")).unwrap();
        assert_eq!(sha256(&list), first);
        assert_eq!(build("0.1.0", false), first, "again");
        assert_ne!(build("0.2.0", false), first, "another version");
        assert_ne!(build("0.1.0", true), first, "a shell");
        let metadata = fs::read(out.path().join("casemate-0.2.0/metadata.json")).unwrap();
        let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
        assert_eq!(metadata["version"], "0.2.0");
    }

    #[test]
    fn a_part_that_is_missing_is_named() {
        for (gone, wanted) in [
            ("boot/vmlinuz-6.1", "has no kernel"),
            ("usr/bin/crun", "no package brought usr/bin/crun"),
            ("lib/modules/6.1/kernel/overlay.ko", "the kernel has no module overlay"),
        ] {
            let packages = packages();
            fs::remove_file(packages.path().join(gone)).unwrap();
            let error = build(&recipe(packages.path(), "0.1.0", false), packages.path()).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
