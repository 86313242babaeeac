//! Commands: ours, and the same of the `phala` command from npm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Result;
use crate::report::median;

/// How often our command runs for each run of theirs: a few milliseconds are hard to measure one by one.
const OURS: usize = 40;

/// The two programs, and where they act.
pub(crate) struct Commands {
    casemate: PathBuf,
    phala: PathBuf,
    home: PathBuf,
    /// Base URL and key, for commands that ask a server.
    pub(crate) api: Option<(String, String)>,
}

/// What one run of a command took.
pub(crate) struct Used {
    pub(crate) wall_ms: f64,
    pub(crate) cpu_ms: f64,
}

/// Where `npm ci --prefix tests/js` puts the `phala` command.
pub(crate) fn phala() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/js/node_modules/.bin/phala")
}

impl Commands {
    /// Both programs, with a home folder of their own.
    pub(crate) fn new(casemate: PathBuf, phala: PathBuf, folder: &Path) -> Self {
        Self { casemate, phala, home: folder.join("home"), api: None }
    }

    /// Runs both in turn.
    pub(crate) fn rounds(&self, arguments: &[&str], rounds: usize) -> Result<Vec<(Used, Used)>> {
        if !self.phala.exists() {
            return Err("the phala command is not there; `scripts/tools node` installs it".into());
        }
        fs::create_dir_all(&self.home)?;
        // The first run fills caches of the operating system.
        self.several(&self.casemate, arguments, 1)?;
        self.several(&self.phala, arguments, 1)?;
        (0..rounds)
            .map(|_| {
                Ok((self.several(&self.casemate, arguments, OURS)?, self.several(&self.phala, arguments, 1)?))
            })
            .collect()
    }

    fn several(&self, program: &Path, arguments: &[&str], count: usize) -> Result<Used> {
        let before = children_ms()?;
        let mut walls = Vec::new();
        for _ in 0..count {
            let mut command = Command::new(program);
            command.args(arguments).env("HOME", &self.home).env("PHALA_DISABLE_UPDATE_CHECK", "1");
            if let Some((prefix, key)) = &self.api {
                command.env("PHALA_CLOUD_API_PREFIX", prefix).env("PHALA_CLOUD_API_KEY", key);
            }
            let begun = Instant::now();
            let output = command.stdin(Stdio::null()).output()?;
            walls.push(begun.elapsed().as_secs_f64() * 1e3);
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(format!("{} failed: {}", program.display(), said.trim()).into());
            }
        }
        Ok(Used { wall_ms: median(&walls), cpu_ms: (children_ms()? - before) / count as f64 })
    }
}

/// Processor time of all children that have ended, in milliseconds. The kernel tells it in steps of 10.
fn children_ms() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name in the second field may hold anything.
    let fields = stat.rsplit_once(')').ok_or("no fields in /proc/self/stat")?.1;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |field: usize| -> Result<f64> { Ok(fields.get(field).ok_or("no such field")?.parse()?) };
    Ok((ticks(13)? + ticks(14)?) * 10.0)
}
