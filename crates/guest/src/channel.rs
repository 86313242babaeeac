//! The driver's questions, and answers to them, as frames on a virtio-serial port.
//!
//! The other side comes and goes: without it, reading finds nothing. What it left half-written is dropped, since nobody
//! else could finish it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use casemate_types::guest::{AGENT_PORT, Answer, Ask, MAX_FRAME, Question, Reply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zeroize::Zeroizing;

use crate::agent::Machine;
use crate::{Doing, Result, clock, power, say, stats};

/// How long the rest of a frame may take. It is written at once, so this is ample.
const REST: Duration = Duration::from_secs(2);
/// How often to look whether somebody is there.
const IDLE: Duration = Duration::from_millis(20);

/// Opens the port by its name.
pub(crate) fn open() -> Result<File> {
    let look = || {
        fs::read_dir("/sys/class/virtio-ports").ok()?.flatten().find_map(|entry| {
            let name = fs::read_to_string(entry.path().join("name")).ok()?;
            let device: PathBuf = Path::new("/dev").join(entry.file_name());
            (name.trim() == AGENT_PORT && device.exists()).then_some(device)
        })
    };
    let port = clock::wait_for(Duration::from_millis(10), Duration::from_secs(5), look)
        .ok_or_else(|| format!("the machine has no virtio-serial port `{AGENT_PORT}`"))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(&port)
        .doing(format_args!("cannot open {}", port.display()))
}

/// Answers for as long as the machine runs.
pub(crate) fn serve(machine: &Arc<Machine>, port: &File) {
    loop {
        match frame(port) {
            Ok(Some(frame)) => match serde_json::from_slice::<Question>(&frame) {
                Ok(question) => {
                    let reply = reply(machine, question.ask);
                    if let Err(error) = answer(port, &Answer { id: question.id, reply }) {
                        say!("an answer did not reach the driver: {error}");
                    }
                }
                Err(error) => {
                    say!("a question that is none: {error}");
                    drain(port);
                }
            },
            Ok(None) => {}
            Err(error) => {
                say!("the driver's port: {error}");
                drain(port);
            }
        }
    }
}

fn reply(machine: &Arc<Machine>, ask: Ask) -> Reply {
    match ask {
        Ask::Status => Reply::Status(Box::new(machine.report())),
        Ask::Keys { env_secret } => done(machine.give_secret(&env_secret.into())),
        Ask::Stats => stats::collect().map_or_else(Reply::Error, Reply::Stats),
        Ask::Logs { service, from, limit } => match machine.log(&service) {
            Some(log) => log
                .lines(from, limit)
                .map_or_else(|error| Reply::Error(format!("cannot read the log: {error}")), Reply::Logs),
            None => {
                Reply::Error(format!("there is no service `{service}`, or the data disk is not there yet"))
            }
        },
        Ask::Evidence => Reply::Evidence(Box::new(machine.evidence())),
        Ask::PowerOff => {
            power::begin(machine);
            Reply::Done
        }
    }
}

fn done(result: Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Error(error),
    }
}

/// The next frame; nothing if there is none now.
fn frame(port: &File) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut length = [0; 4];
    if !fill(port, &mut length, None)? {
        return Ok(None);
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::other(format!(
            "a frame of {length} bytes, and at most {MAX_FRAME} are allowed"
        )));
    }
    // It may have a secret in it.
    let mut frame = Zeroizing::new(vec![0; length]);
    Ok(fill(port, &mut frame, Some(REST))?.then_some(frame))
}

/// Fills the buffer. False if the other side is not there, goes away, or does not go on.
///
/// The first byte may take for ever, unless `at_most` says otherwise.
fn fill(mut port: &File, buffer: &mut [u8], at_most: Option<Duration>) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        if !readable(port, if filled > 0 { Some(REST) } else { at_most })? {
            return Ok(false);
        }
        match port.read(&mut buffer[filled..]) {
            Ok(0) => {
                // Nobody is there.
                clock::pause(IDLE);
                return Ok(false);
            }
            Ok(read) => filled += read,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn readable(port: &File, at_most: Option<Duration>) -> io::Result<bool> {
    let timeout = at_most
        .map(|time| Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() });
    let mut fds = [PollFd::new(port, PollFlags::IN)];
    Ok(poll(&mut fds, timeout.as_ref())? > 0)
}

/// Reads until nothing comes any more.
fn drain(mut port: &File) {
    let mut sink = [0; 4096];
    while readable(port, Some(Duration::from_millis(200))).unwrap_or(false) {
        if !matches!(port.read(&mut sink), Ok(1..)) {
            break;
        }
    }
    clock::pause(IDLE);
}

fn answer(mut port: &File, answer: &Answer) -> io::Result<()> {
    let text = serde_json::to_vec(answer)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(text);
    port.write_all(&frame)
}
