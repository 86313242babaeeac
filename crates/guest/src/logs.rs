//! What containers write, as numbered lines that survive a boot.
//!
//! Each service has a folder with segments, named by the number of their first line. A segment that is full is followed by
//! another, and the oldest goes. A line is `MICROSECONDS o|e TEXT`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use casemate_types::guest::{Line, Lines};
use jiff::Timestamp;

/// Bytes of a segment, and how many of them a service keeps: 4 MiB.
const SEGMENT: u64 = 512 * 1024;
const SEGMENTS: usize = 8;
/// Longer lines are kept as several.
const MAX_LINE: usize = 16 * 1024;
/// Bytes of one answer, below what a frame takes.
const MAX_ANSWER: usize = 1024 * 1024;

/// The lines of one service.
pub(crate) struct Log {
    folder: PathBuf,
    end: Mutex<End>,
}

/// Where the next line goes.
struct End {
    /// Nothing once the log was closed.
    segment: Option<File>,
    size: u64,
    next: u64,
}

impl Log {
    /// Opens what earlier boots left, or begins.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let end = match segments(folder)?.pop() {
            None => End { segment: Some(segment(folder, 0)?), size: 0, next: 0 },
            Some(first) => {
                let segment = segment(folder, first)?;
                // A machine that died may have left half a line; it is no line.
                let text = fs::read(path(folder, first))?;
                let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                segment.set_len(whole as u64)?;
                let lines = text[..whole].iter().filter(|byte| **byte == b'\n').count();
                End { segment: Some(segment), size: whole as u64, next: first + lines as u64 }
            }
        };
        Ok(Self { folder: folder.to_owned(), end: Mutex::new(end) })
    }

    /// Takes everything that comes until it ends.
    pub(crate) fn take(&self, from: impl Read, stderr: bool, now: impl Fn() -> Timestamp) {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = from.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                return;
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            // A full disk loses lines, but the container goes on: nothing waits for it to read them.
            let _ = self.add(now(), stderr, &String::from_utf8_lossy(&line));
        }
    }

    fn add(&self, at: Timestamp, stderr: bool, text: &str) -> io::Result<()> {
        let line = format!("{} {} {}\n", at.as_microsecond(), if stderr { 'e' } else { 'o' }, text);
        let mut end = self.end.lock().expect("nobody panics with it");
        if end.segment.is_none() {
            return Ok(());
        }
        if end.size >= SEGMENT {
            end.segment = Some(segment(&self.folder, end.next)?);
            end.size = 0;
            let all = segments(&self.folder)?;
            for old in &all[..all.len().saturating_sub(SEGMENTS)] {
                fs::remove_file(path(&self.folder, *old))?;
            }
        }
        let size = end.size;
        if let Some(segment) = &mut end.segment
            && let Err(error) = segment.write_all(line.as_bytes())
        {
            segment.set_len(size)?;
            return Err(error);
        }
        end.size += line.len() as u64;
        end.next += 1;
        Ok(())
    }

    /// Lets go of the disk. What comes now is lost.
    pub(crate) fn close(&self) {
        self.end.lock().expect("nobody panics with it").segment = None;
    }

    /// Lines from a number on, at most so many.
    pub(crate) fn lines(&self, from: u64, limit: usize) -> io::Result<Lines> {
        let last = self.end.lock().expect("nobody panics with it").next;
        let firsts = segments(&self.folder)?;
        let mut next = from.max(firsts.first().copied().unwrap_or(last)).min(last);
        let (mut lines, mut bytes) = (Vec::new(), 0);
        let start = firsts.partition_point(|first| *first <= next).saturating_sub(1);
        'all: for first in &firsts[start..] {
            let text = BufReader::new(File::open(path(&self.folder, *first))?).split(b'\n');
            for (number, line) in (*first..).zip(text) {
                if next >= last || lines.len() >= limit || bytes >= MAX_ANSWER {
                    break 'all;
                }
                let line = line?;
                if number == next {
                    bytes += line.len() + 64;
                    lines.push(parse(&line));
                    next += 1;
                }
            }
        }
        Ok(Lines { lines, next })
    }
}

fn parse(line: &[u8]) -> Line {
    let line = String::from_utf8_lossy(line);
    let mut parts = line.splitn(3, ' ');
    let at = parts
        .next()
        .and_then(|at| Timestamp::from_microsecond(at.parse().ok()?).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH);
    let stderr = parts.next() == Some("e");
    Line { at, stderr, text: parts.next().unwrap_or_default().to_owned() }
}

fn path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}.log"))
}

fn segment(folder: &Path, first: u64) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path(folder, first))
}

/// The numbers of the segments' first lines, in order.
fn segments(folder: &Path) -> io::Result<Vec<u64>> {
    let mut firsts: Vec<u64> = fs::read_dir(folder)?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    firsts.sort_unstable();
    Ok(firsts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn texts(lines: &Lines) -> Vec<&str> {
        lines.lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn lines_have_numbers_over_all_boots() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path()).unwrap();
        log.take(&b"one\ntwo words\n\nhalf"[..], false, at);
        log.take(&b"bad\n"[..], true, at);
        drop(log);
        let file = path(folder.path(), 0);
        let mut torn = fs::read(&file).unwrap();
        torn.extend_from_slice(b"17000000 o torn");
        fs::write(&file, torn).unwrap();

        let log = Log::open(folder.path()).unwrap();
        log.take(&b"six\n"[..], false, at);
        let all = log.lines(0, 100).unwrap();
        assert_eq!(texts(&all), ["one", "two words", "", "half", "bad", "six"]);
        assert_eq!(all.next, 6);
        assert_eq!((all.lines[4].stderr, all.lines[5].stderr, all.lines[0].at), (true, false, at()));
        let some = log.lines(1, 2).unwrap();
        assert_eq!((texts(&some), some.next), (vec!["two words", ""], 3));
        assert_eq!(log.lines(6, 10).unwrap(), Lines { lines: vec![], next: 6 });
        assert_eq!(log.lines(99, 10).unwrap().next, 6, "a number that is still to come");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path()).unwrap();
        let long = "x".repeat(MAX_LINE);
        for _ in 0..600 {
            log.take(long.as_bytes(), false, at);
        }
        let kept: u64 =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(kept <= (SEGMENTS as u64) * (SEGMENT + 2 * MAX_LINE as u64), "{kept}");
        let lines = log.lines(0, 1).unwrap();
        let oldest = segments(folder.path()).unwrap()[0];
        assert!(oldest > 0);
        assert_eq!(lines.next, oldest + 1, "older lines are skipped");
        let many = log.lines(0, usize::MAX).unwrap();
        assert!(many.lines.iter().map(|line| line.text.len()).sum::<usize>() <= MAX_ANSWER + MAX_LINE);
        assert_eq!(log.lines(599, 10).unwrap().next, 600);
    }

    #[test]
    fn a_line_that_is_too_long_becomes_several() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path()).unwrap();
        log.take(format!("{}\nshort\n", "x".repeat(MAX_LINE + 5)).as_bytes(), false, at);
        let lengths: Vec<usize> =
            log.lines(0, 10).unwrap().lines.iter().map(|line| line.text.len()).collect();
        assert_eq!(lengths, [MAX_LINE, 5, 5]);
    }
}
