//! The way down: from the driver's word, or the power button.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

use crate::agent::Machine;
use crate::disk::DATA;
use crate::{clock, init, say, supervise};

/// The power button among the keys of an input device.
const KEY_POWER: u16 = 116;
/// A key, among the kinds of input events.
const EV_KEY: u16 = 1;
/// An input event of a 64-bit kernel: time (16 bytes), kind (2), code (2), value (4).
const EVENT: usize = 24;

/// Listens to every power button.
pub(crate) fn watch_button(machine: &Arc<Machine>) {
    let machine = machine.clone();
    thread::spawn(move || {
        let devices = clock::wait_for(Duration::from_millis(50), Duration::from_secs(10), || {
            let found: Vec<_> = fs::read_dir("/dev/input")
                .ok()?
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
                .filter_map(|entry| File::open(entry.path()).ok())
                .collect();
            (!found.is_empty()).then_some(found)
        });
        let Some(devices) = devices else { return say!("the machine has no power button") };
        for mut device in devices {
            let machine = machine.clone();
            thread::spawn(move || {
                let mut event = [0; EVENT];
                while device.read_exact(&mut event).is_ok() {
                    if is_power(&event) {
                        say!("the power button was pressed");
                        begin(&machine);
                    }
                }
            });
        }
    });
}

fn is_power(event: &[u8; EVENT]) -> bool {
    let number = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    let pressed = event[20..] == 1_i32.to_ne_bytes();
    number(16) == EV_KEY && number(18) == KEY_POWER && pressed
}

/// Stops the services and switches off, once, in a thread of its own.
pub(crate) fn begin(machine: &Arc<Machine>) {
    if !machine.begin_stop() {
        return;
    }
    let machine = machine.clone();
    thread::spawn(move || {
        supervise::stop_all(&machine);
        say!("the services have stopped; the machine goes down");
        machine.close_logs();
        rustix::fs::sync();
        for entry in fs::read_dir(machine.services()).into_iter().flatten().flatten() {
            let _ = unmount(entry.path().join("root"), UnmountFlags::DETACH);
        }
        if Path::new(DATA).exists()
            && let Err(error) = unmount(DATA, UnmountFlags::empty())
        {
            // Whoever still uses it has nothing more to write; the journal has everything.
            say!("the data disk is still in use: {error}");
        }
        init::power_off()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_power_key_counts() {
        let mut event = [0; EVENT];
        event[16..18].copy_from_slice(&1_u16.to_ne_bytes());
        event[18..20].copy_from_slice(&116_u16.to_ne_bytes());
        event[20..].copy_from_slice(&1_i32.to_ne_bytes());
        assert!(is_power(&event));
        for (at, value) in [(16, 0), (18, 115), (20, 0)] {
            let mut other = event;
            other[at] = value;
            assert!(!is_power(&other));
        }
    }
}
