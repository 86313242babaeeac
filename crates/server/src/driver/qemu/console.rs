//! What a machine and its process write: files that go on from boot to boot, with a line at the beginning of each.

use std::io::{Read, Result, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::files;
use crate::driver::LogLine;

/// How long a file may get. What is older is kept once more, and then dropped.
const MAX: u64 = 1024 * 1024;
/// How much of it is read: all of it, unless it grew too fast to be shortened in time.
const SHOWN: u64 = 2 * MAX;
/// What a line begins with that the node wrote.
const MARK: &str = "--- casemate ";
/// What stands on the first line of a file that goes on in the middle of a boot, whose time is that of the boot. It is not shown.
const GOES_ON: &str = "goes on";

/// Writes a line of the node's own.
pub(super) fn mark(folder: &Path, file: &str, now: Timestamp, text: &str) -> Result<()> {
    let mut out = files::append(&folder.join(file))?;
    // The last line may not have its end.
    let fresh = out.metadata()?.len() == 0;
    let begin = if fresh { "" } else { "\n" };
    out.write_all(format!("{begin}{MARK}{now}: {text}\n").as_bytes())
}

/// Keeps a file from growing for ever. Its writer appends, and so goes on at the new end.
pub(super) fn bound(folder: &Path, file: &str) -> Result<()> {
    let path = folder.join(file);
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX) {
        // A machine may have written far more since the last look.
        let kept = tail(&path)?;
        let boot =
            String::from_utf8_lossy(&kept).lines().filter_map(marked).map(|(time, _)| time).next_back();
        // On a full disk the end of it goes, and not the room that it takes.
        let copied = files::create(&older(folder, file)).and_then(|mut out| out.write_all(&kept));
        files::change(&path)?.set_len(0)?;
        if let Some(boot) = boot {
            mark(folder, file, boot, GOES_ON)?;
        }
        return copied;
    }
    Ok(())
}

/// Time and text of a line that the node wrote.
fn marked(line: &str) -> Option<(Timestamp, &str)> {
    let (time, text) = line.strip_prefix(MARK)?.split_once(": ")?;
    Some((time.parse().ok()?, text))
}

/// The last lines of a file, oldest first. Their times are those of the node's own lines, and of the kernel's after them; none
/// is earlier than that of the line before.
pub(super) fn lines(folder: &Path, file: &str, stderr: bool) -> Result<Vec<LogLine>> {
    let mut text = tail(&older(folder, file))?;
    if text.last().is_some_and(|last| *last != b'\n') {
        // A line was being written when the file was put aside; its rest is a line of its own.
        text.push(b'\n');
    }
    text.extend(tail(&folder.join(file))?);
    let text = String::from_utf8_lossy(&text);
    let (mut lines, mut base, mut at) = (Vec::new(), Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
    for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        let text = match marked(line) {
            Some((time, text)) => {
                (base, at) = (time, at.max(time));
                if text == GOES_ON {
                    continue;
                }
                text
            }
            None => {
                if let Some(after) = kernel_time(line) {
                    at = base.checked_add(after).unwrap_or(base).max(at);
                }
                line
            }
        };
        let text = text.chars().filter(|c| !c.is_control() || *c == '\t').collect();
        lines.push(LogLine { at, stderr, text });
    }
    Ok(lines)
}

/// The last words of a file, in one line.
pub(super) fn last_words(folder: &Path, file: &str) -> String {
    let lines = lines(folder, file, true).unwrap_or_default();
    let own = lines.iter().rev().take_while(|line| !line.text.starts_with("boot ")).take(3);
    let mut own: Vec<&str> = own.map(|line| line.text.as_str()).collect();
    own.reverse();
    own.join("; ")
}

fn older(folder: &Path, file: &str) -> std::path::PathBuf {
    folder.join(format!("{file}.1"))
}

fn tail(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut file = match files::read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(text),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(SHOWN)))?;
    file.take(SHOWN).read_to_end(&mut text)?;
    Ok(text)
}

/// `[    1.234567] …`: seconds since the kernel began.
fn kernel_time(line: &str) -> Option<Duration> {
    let seconds = line.strip_prefix('[')?.split_once(']')?.0.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_times_and_files_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, at) = (folder.path(), Timestamp::from_second(1000).unwrap());
        mark(folder, "log", at, "boot 1").unwrap();
        let mut out = files::append(&folder.join("log")).unwrap();
        out.write_all(b"[    1.500000] up\r\n\x1b[0mplain\nhalf").unwrap();
        mark(folder, "log", Timestamp::from_second(2000).unwrap(), "boot 2").unwrap();
        let seen: Vec<_> = lines(folder, "log", false)
            .unwrap()
            .into_iter()
            .map(|line| (line.at.as_millisecond(), line.text))
            .collect();
        let expected = [
            (1_000_000, "boot 1"),
            (1_001_500, "[    1.500000] up"),
            (1_001_500, "[0mplain"),
            (1_001_500, "half"),
            (2_000_000, "boot 2"),
        ];
        assert_eq!(seen, expected.map(|(at, text)| (at, text.to_owned())));
        bound(folder, "log").unwrap();
        assert!(!older(folder, "log").exists());
        out.write_all(&vec![b'x'; MAX as usize]).unwrap();
        bound(folder, "log").unwrap();
        out.write_all(b"[    3.000000] after\n").unwrap();
        assert!(std::fs::metadata(folder.join("log")).unwrap().len() < 100, "it is short again");
        assert!(older(folder, "log").exists());
        let shown = lines(folder, "log", false).unwrap();
        let last = shown.last().unwrap();
        assert_eq!((last.at.as_millisecond(), last.text.as_str()), (2_003_000, "[    3.000000] after"));
        assert!(shown.iter().any(|line| line.text == "boot 1"), "what was before is there once more");
        assert!(shown.iter().all(|line| !line.text.contains(GOES_ON)));
        assert!(shown.is_sorted_by_key(|line| line.at));
        for _ in 0..2 {
            out.write_all(&vec![b'y'; MAX as usize]).unwrap();
            bound(folder, "log").unwrap();
        }
        let kept = lines(folder, "log", false).unwrap();
        assert!(kept.iter().all(|line| line.text != "boot 1"), "and then it is dropped");
        assert_eq!(kept[0].at.as_millisecond(), 2_000_000, "the boot that goes on is known");
        out.write_all(&vec![b'z'; 4 * MAX as usize]).unwrap();
        bound(folder, "log").unwrap();
        assert_eq!(std::fs::metadata(older(folder, "log")).unwrap().len(), SHOWN, "however fast it grew");
    }
}
