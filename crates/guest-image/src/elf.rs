//! Which shared libraries a program needs: the few tables of a 64-bit ELF file that say so.

use std::collections::BTreeMap;
use std::path::Path;

use crate::{Result, read};

/// Where Debian keeps libraries, below a root with its packages.
const FOLDERS: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// Names of libraries, and of the loader, that a program asks for itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Names as the loader looks for them, such as `libc.so.6`.
    pub libraries: Vec<String>,
    /// Path of the loader; a program without is static, a library has none.
    pub loader: Option<String>,
}

/// Reads the needs of one file.
///
/// # Errors
/// It is not a 64-bit little-endian ELF file, or its tables lead out of it.
pub fn needs(file: &[u8]) -> Result<Needs> {
    parse(file).ok_or_else(|| "not a 64-bit ELF file that is whole".to_owned())
}

fn parse(file: &[u8]) -> Option<Needs> {
    const LOAD: u64 = 1;
    const DYNAMIC: u64 = 2;
    const INTERPRETER: u64 = 3;
    const NEEDED: u64 = 1;
    const STRINGS: u64 = 5;
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let number = |at: u64, bytes: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(file.get(at..at.checked_add(bytes)?)?);
        Some(u64::from_le_bytes(number))
    };
    let text = |at: u64| -> Option<String> {
        let rest = file.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        String::from_utf8(rest[..end].to_vec()).ok()
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    // Kind, offset in the file, address, size in the file.
    let parts = (0..count)
        .map(|index| {
            let at = table.checked_add(index.checked_mul(size)?)?;
            Some((
                number(at, 4)?,
                number(at.checked_add(8)?, 8)?,
                number(at.checked_add(16)?, 8)?,
                number(at.checked_add(32)?, 8)?,
            ))
        })
        .collect::<Option<Vec<_>>>()?;
    let part = |kind: u64| parts.iter().find(|part| part.0 == kind);
    let mut needs = Needs { libraries: Vec::new(), loader: None };
    if let Some((_, offset, _, _)) = part(INTERPRETER) {
        needs.loader = Some(text(*offset)?);
    }
    let Some((_, offset, _, size)) = part(DYNAMIC) else { return Some(needs) };
    let entries = (0..size / 16)
        .map(|index| {
            let at = offset.checked_add(index * 16)?;
            Some((number(at, 8)?, number(at.checked_add(8)?, 8)?))
        })
        .collect::<Option<Vec<_>>>()?;
    let strings = entries.iter().find(|entry| entry.0 == STRINGS)?.1;
    let (_, offset, address, _) =
        parts.iter().find(|part| part.0 == LOAD && part.2 <= strings && strings - part.2 < part.3)?;
    let strings = strings - address + offset;
    for (kind, value) in entries {
        if kind == NEEDED {
            needs.libraries.push(text(strings.checked_add(value)?)?);
        }
    }
    Some(needs)
}

/// Everything that a program needs to run, by path: loader and libraries, and what those need in turn.
///
/// # Errors
/// A library that no package brought.
pub fn closure(program: &Path, root: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut files = vec![read(program)?];
    while let Some(file) = files.pop() {
        let needs = needs(&file)?;
        let loader = needs.loader.map(|path| path.trim_start_matches('/').to_owned());
        if let Some(path) = loader.filter(|path| !found.contains_key(path)) {
            found.insert(path.clone(), read(&root.join(&path)).or_else(|_| library(&path, root))?);
        }
        for name in needs.libraries {
            let path = format!("{}/{name}", FOLDERS[0]);
            // The loader is a library too, and its own folder is not among theirs.
            if found.contains_key(&path) || found.keys().any(|there| there.ends_with(&format!("/{name}"))) {
                continue;
            }
            let content = library(&name, root)?;
            files.push(content.clone());
            found.insert(path, content);
        }
    }
    Ok(found)
}

fn library(name: &str, root: &Path) -> Result<Vec<u8>> {
    let name = name.rsplit('/').next().unwrap_or(name);
    let places = FOLDERS.map(|folder| root.join(folder).join(name));
    match places.iter().find(|path| path.exists()) {
        Some(path) => read(path),
        None => Err(format!("no package below {} brought the library {name}", root.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_says_what_it_needs() {
        // A test's own program is a real one.
        let program = std::fs::read("/proc/self/exe").unwrap();
        let needs = needs(&program).unwrap();
        assert!(needs.libraries.iter().any(|name| name.starts_with("libc.so")), "{needs:?}");
        assert!(needs.loader.is_some_and(|loader| loader.starts_with("/lib")));
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        for length in [0, 5, 40, 64, 300] {
            assert!(needs(&program[..length]).is_err());
        }
        assert!(needs(b"#!/bin/sh\n").is_err());
    }
}
