//! Kernel modules in the order in which they can be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Result, read};

/// Modules with what they depend on in front of them, each with its content. Those that the kernel has built in are left out.
///
/// # Errors
/// A module that is neither there nor built in.
pub fn in_order(kernel: &Path, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut there = BTreeMap::new();
    collect(&kernel.join("kernel"), &mut there)?;
    let builtin = fs::read_to_string(kernel.join("modules.builtin")).unwrap_or_default();
    let builtin: Vec<String> = builtin.lines().map(|line| name_of(Path::new(line))).collect();
    let mut order = Vec::new();
    for name in wanted {
        add(name, &there, &builtin, &mut order)?;
    }
    Ok(order)
}

fn add(
    name: &str,
    there: &BTreeMap<String, PathBuf>,
    builtin: &[String],
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let name = name.replace('-', "_");
    if builtin.contains(&name) || order.iter().any(|(known, _)| *known == name) {
        return Ok(());
    }
    let path = there.get(&name).ok_or_else(|| format!("the kernel has no module {name}"))?;
    let content = read(path)?;
    for needed in depends(&content) {
        add(&needed, there, builtin, order)?;
    }
    order.push((name, content));
    Ok(())
}

/// The names after `depends=`, one of the texts with zero ends that every module has.
fn depends(module: &[u8]) -> Vec<String> {
    let text = module.split(|byte| *byte == 0).find_map(|text| text.strip_prefix(b"depends="));
    let text = String::from_utf8_lossy(text.unwrap_or_default());
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn collect(folder: &Path, there: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.is_dir() {
            collect(&path, there)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            there.insert(name_of(&path), path);
        }
    }
    Ok(())
}

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_comes_first() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("kernel/drivers");
        fs::create_dir_all(&folder).unwrap();
        let module = |name: &str, depends: &str| {
            let content = format!("\x7fELF\0license=GPL\0depends={depends}\0");
            fs::write(folder.join(format!("{name}.ko")), content).unwrap();
        };
        module("net", "virtio-core,ring");
        module("virtio-core", "");
        module("ring", "builtin_one");
        fs::write(root.path().join("modules.builtin"), "kernel/lib/builtin-one.ko\n").unwrap();
        let names = |wanted: &[&str]| {
            in_order(root.path(), wanted)
                .map(|order| order.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["net", "ring", "builtin_one"]).unwrap(), ["virtio_core", "ring", "net"]);
        assert_eq!(names(&["gone"]).unwrap_err(), "the kernel has no module gone");
    }
}
