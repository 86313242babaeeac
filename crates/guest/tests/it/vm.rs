use casemate_types::guest::{Ask, Phase, Reply};

use crate::machine::{Disks, config};

const WEB: &str =
    "services: {web: {image: 'web:1', ports: ['8080:8080'], volumes: ['data:/data']}}\nvolumes: {data: }\n";

#[test]
fn vm_runs_a_container_that_answers() {
    let disks = Disks::new();
    let mut vm = disks.boot(&config(1, WEB, &[]), &[8080]);
    let report = vm.done();
    assert_eq!(vm.get(8080, "/"), "web 1");
    assert!(report.containers[0].running);
    assert_eq!(vm.ask(Ask::PowerOff), Reply::Done);
    println!("power off: {} ms", vm.off().as_millis());
    assert_ne!(report.phase, Phase::Stopping);
    println!("{}", disks.serial());
}
