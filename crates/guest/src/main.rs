//! Everything that runs in a machine before its containers do.
//!
//! The kernel starts this program as process 1. It does two things, as two processes: [`init`] keeps the system together and
//! collects what others leave behind; [`agent`] does the work and answers the driver. If the agent ends, so does the machine.
//! `docs/guest.md` tells the same for people who run machines.
//!
//! | module | holds |
//! | --- | --- |
//! | [`init`] | process 1: file systems of the kernel, modules, the agent, and the power switch when it fails |
//! | [`agent`] | the boot, step by step, and what is known about it |
//! | [`channel`] | the driver's questions, over a virtio-serial port |
//! | [`measure`] | the event log and the register that stands for it |
//! | [`environment`] | the sealed environment, opened |
//! | [`disk`], [`image`] | disks by serial number; images, each on one of them |
//! | [`scratch`] | what lasts no longer than a boot |
//! | [`bundle`], [`inside`] | a container's configuration; files of its root |
//! | [`supervise`], [`logs`], [`forward`] | a container's life; its output; its ports |
//! | [`network`] | the machine's network, and one for each container |
//! | [`power`], [`stats`] | the way down; what the machine uses |

mod agent;
mod bundle;
mod channel;
mod clock;
mod disk;
mod environment;
mod forward;
mod image;
mod init;
mod inside;
mod logs;
mod measure;
mod network;
mod power;
mod scratch;
mod stats;
mod supervise;

/// What went wrong, in words that a person reads in the CVM's status.
type Result<T, E = String> = std::result::Result<T, E>;

/// Puts what was attempted in front of what went wrong.
trait Doing<T> {
    fn doing(self, what: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

/// A line on the serial console, which the driver keeps.
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        // A console that is gone is no reason to stop.
        let _ = writeln!(std::io::stdout(), "casemate: {}", format_args!($($what)*));
    }};
}
pub(crate) use say;

fn main() {
    if std::env::args().nth(1).as_deref() == Some("agent") {
        agent::main();
    } else if std::process::id() == 1 {
        init::main();
    } else {
        eprintln!("casemate-guest is the first process of a machine; it does nothing anywhere else");
        std::process::exit(2);
    }
}
