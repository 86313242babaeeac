//! `scripts/dev` on machines that lack something: what it lists, whom it asks, and what it runs.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::world::texts;

/// A machine with nothing but a shell and these programs, each a line of it. There is no terminal.
fn machine(user: u32, programs: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (bin, root) = (folder.path().join("bin"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    std::fs::create_dir(&bin).unwrap();
    std::fs::create_dir(folder.path().join("scripts")).unwrap();
    for file in ["scripts/dev", "scripts/lib.sh", "rust-toolchain.toml"] {
        std::fs::copy(root.join(file), folder.path().join(file)).unwrap();
    }
    for tool in ["bash", "sed", "grep", "dirname", "env"] {
        let real = ["/bin", "/usr/bin"].map(|place| Path::new(place).join(tool));
        symlink(real.iter().find(|path| path.exists()).unwrap(), bin.join(tool)).unwrap();
    }
    let id = format!("echo {user}");
    let apt = "case \"$*\" in *assume-no*) echo 'After this operation, 150 MB of additional disk space will be used.';; *) \
               echo \"RUN apt-get $*\";; esac";
    let usual = [("id", id.as_str()), ("apt-get", apt), ("uname", "echo x86_64")];
    let guest = ("../scripts/guest", "echo RUN guest >&2");
    for (name, line) in usual.iter().chain([&guest]).chain(programs) {
        let path = bin.join(name);
        std::fs::write(&path, format!("#!/bin/bash\n{line}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

/// Runs `scripts/dev`: exit code, output, complaints.
fn dev(machine: &TempDir, variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(machine.path().join("bin/bash"));
    command.arg(machine.path().join("scripts/dev")).env_clear().env("PATH", machine.path().join("bin"));
    let output = command.envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap();
    let (out, err) = texts(&output);
    (output.status.code(), out, err)
}

const WITH_SOURCES: (&str, &str) = ("cargo", "[ $1 = tree ] || echo \"RUN cargo $*\"");
const WITHOUT_SOURCES: (&str, &str) =
    ("cargo", "case \"$1\" in tree) exit 101;; *) echo \"RUN cargo $*\";; esac");
const COMPILER: (&str, &str) = ("cc", "");
/// Rust, but not the version that is wanted.
const OLD_RUST: (&str, &str) = ("rustup", "[ \"$2\" = list ] || echo \"RUN rustup $*\"");
/// What real machines need.
const QEMU: [(&str, &str); 4] = [("qemu-system-x86_64", ""), ("mke2fs", ""), ("sqfstar", ""), ("xz", "")];

/// What is run at last, with these nodes.
fn run(nodes: &str) -> String {
    format!(
        "RUN cargo build --locked -p casemate\nRUN cargo run --quiet --locked -p casemate -- dev --demo --data .casemate \
         --nodes {nodes}\n"
    )
}

const LISTED: &str = "To be installed:\n  Rust 1.95.0 by rustup, as rust-toolchain.toml asks (about 600 MB)\n  the Debian \
                      packages gcc libc6-dev qemu-system-x86 e2fsprogs squashfs-tools xz-utils (150 MB)\n";

#[test]
fn where_everything_is_there_it_says_so_and_starts() {
    let [qemu, mke2fs, sqfstar, xz] = QEMU;
    let whole = machine(1000, &[WITH_SOURCES, COMPILER, qemu, mke2fs, sqfstar, xz]);
    let (code, out, err) = dev(&whole, &[]);
    let made = "What machines boot is made from Debian's packages (about 30 MB are fetched).\n";
    let [build, start] = [0, 1].map(|at| run("qemu").lines().nth(at).unwrap().to_owned());
    assert_eq!((code, out), (Some(0), format!("Nothing to install.\n{build}\n{made}{start}\n")));
    assert_eq!(err, "RUN guest\n");
    let (code, out, err) = dev(&whole, &[("SIM", "1")]);
    assert_eq!((code, out, err), (Some(0), format!("Nothing to install.\n{}", run("sim:2")), String::new()));
}

#[test]
fn where_no_real_machine_can_run_it_says_so_and_simulates_them() {
    let (code, out, err) = dev(&machine(1000, &[WITH_SOURCES, COMPILER, ("uname", "echo aarch64")]), &[]);
    let why = "Machines will be simulated: real ones need an x86_64 host with Debian's packages.\n";
    assert_eq!(
        (code, out, err),
        (Some(0), format!("{why}Nothing to install.\n{}", run("sim:2")), String::new())
    );
}

#[test]
fn everything_that_is_missing_is_in_one_list_and_root_without_a_terminal_gets_it() {
    let (code, out, err) = dev(&machine(0, &[WITHOUT_SOURCES, OLD_RUST]), &[]);
    assert!(out.starts_with(LISTED), "{out}");
    assert!(out.contains("RUN rustup toolchain install 1.95.0"), "{out}");
    let packages = "gcc libc6-dev qemu-system-x86 e2fsprogs squashfs-tools xz-utils";
    assert!(out.contains(&format!("RUN apt-get install -y --no-install-recommends {packages}\n")), "{out}");
    assert!(
        out.contains("about 40 MB of sources")
            && out.trim_end().ends_with(run("qemu").lines().nth(1).unwrap()),
        "{out}"
    );
    assert_eq!((code, err.as_str()), (Some(0), "RUN guest\n"));
}

#[test]
fn without_rights_it_prints_the_exact_commands_and_stops() {
    let bare = machine(1000, &[WITHOUT_SOURCES, OLD_RUST]);
    // Nobody's yes makes up for the rights.
    for variables in [&[][..], &[("YES", "1")]] {
        let (code, out, err) = dev(&bare, variables);
        assert_eq!((code, out.as_str()), (Some(1), LISTED));
        for command in [
            "\n  rustup toolchain install 1.95.0 --profile minimal\n",
            "\n  sudo apt-get update -qq && sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y \
             --no-install-recommends gcc libc6-dev qemu-system-x86 e2fsprogs squashfs-tools xz-utils\n",
        ] {
            assert!(err.contains(command), "{command} in {err}");
        }
    }
}

#[test]
fn without_rust_it_says_how_to_get_it() {
    let (code, _, err) = dev(&machine(0, &[]), &[]);
    assert_eq!(code, Some(1));
    assert!(err.contains("curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs"), "{err}");
}
