//! `casemate dev --demo`: a newcomer's first sight.

use std::io::BufRead;

use super::world::World;

/// Everything that is printed until the example has been shown.
fn shown(lines: impl BufRead) -> String {
    let mut text = String::new();
    for line in lines.lines() {
        let line = line.unwrap();
        let last = line.starts_with("The cloud stays up");
        text.push_str(&line);
        text.push('\n');
        if last {
            break;
        }
    }
    text
}

#[test]
fn the_example_is_deployed_updated_and_updated_again_by_a_second_start() {
    let mut world = World::empty();
    let first = shown(world.serve(&["--demo"]));
    let steps: Vec<_> = ["stage", "stop", "apply", "start", "observe"]
        .into_iter()
        .map(|step| first.lines().filter(|line| line.trim_start().starts_with(&format!("{step} "))).count())
        .collect();
    assert_eq!(steps, [2, 1, 2, 2, 2], "{first}");
    for part in [
        "boots             1               2",
        "memory            2048 MB         4096 MB",
        "It was down for ",
    ] {
        assert!(first.contains(part), "{part} in {first}");
    }
    assert!(first.contains("source .casemate/dev.env"), "{first}");

    // What is shown can be tried.
    let rehearsal = first.lines().find(|line| line.contains("nodes fault")).unwrap();
    let (_, words) = rehearsal.split_once("nodes fault ").unwrap();
    world.ok(&format!("nodes fault {}", words.split('#').next().unwrap().trim()));
    let err = world.fails("cvms update hello-casemate --memory 8G", 1);
    assert!(err.contains("was put back"), "{err}");

    world.ok("cvms stop hello-casemate");
    world.end_server();
    let second = shown(world.serve(&["--demo"]));
    for part in [
        "is here from an earlier start",
        "It is off. Starting it",
        "memory            4096 MB         2048 MB",
    ] {
        assert!(second.contains(part), "{part} in {second}");
    }
}
