//! What is taken, and what is refused before anything is sent.

use clap::Parser;
use clap::error::ErrorKind;

use crate::help::Program;

fn parse(line: &str) -> Result<Program, clap::Error> {
    Program::try_parse_from(std::iter::once("casemate").chain(line.split(' ')))
}

#[test]
fn common_lines_are_taken() {
    for line in [
        "deploy",
        "deploy -n web-1 -c app.yml -e A=1 -e .env --memory 2G --disk-size 20G --public-logs=false --dev-os --wait --dry-run",
        "deploy -n web-1 --instance-type tdx.small --vcpu 2 --image dstack-0.5.5 --node sim-1 --region local --listed",
        "cvms list --json",
        "cvms --json list",
        "--json -y --api-url http://localhost cvms list --quiet",
        "cvms ls --page 2 --page-size 10 --node sim-1",
        "cvms update web-1 --compose - --disk 20G --gpus 1:H200 --on-failure put-back --no-wait",
        "cvms update web-1 --on-failure put_back --allowed-env A --allowed-env B --rename web-2 --force-restart",
        "cvms delete web-1 --yes",
        "cvms logs web-1 db -f -n 20",
        "cvms rollback web-1 3 --dry-run",
        "cvms rollback web-1 3 --shutdown-timeout 30 --allow-force-stop",
        "cvms confirm web-1 0xaa",
        "cvms commit web-1 - 0xaa 0xbb",
        "cvms refresh-instance-id web-1 web-2 -y",
        "cvms is-allowed web-1 --compose-hash 0xaa --node 2",
        "cvms replicate web-1 --name web-2 --node 2 --private-key-file owner.key",
        "cvms replicate web-1 --prepare-only --no-wait",
        "cvms commit-replica web-1 - 0xaa 0xbb",
        "apps allowed web-1",
        "apps is-allowed web-1",
        "apps is-allowed web-1 0xaa --device-id 0xbb",
        "apps devices web-1 --json",
        "ops list --stuck",
        "deploy -n web-1 --kms base --private-key-file owner.key --rpc-url http://127.0.0.1:8545",
        "deploy -n web-1 --kms base --owner 0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266",
        "cvms update web-1 -c app.yml --auto-commit",
        "cvms update web-1 -c app.yml --prepare-only --rpc-url http://127.0.0.1:8545",
        "cvms update web-1 -c app.yml --private-key 0x11",
        "cvms rollback web-1 3 --private-key-file -",
        "approvals list --state any --cvm web-1",
        "approvals show -",
        "approvals show 0198c1d2 --app-compose",
        "approvals commit 0198c1d2 0xaa --no-wait",
        "approvals commit https://cloud.example/approve/0198c1d2#ct_1 --private-key-file owner.key",
        "approvals cancel 0198c1d2 --yes",
        "approvals auto-commit 0198c1d2 --off",
        "approvals calldata 0198c1d2",
        "approvals safe-batch 0198c1d2 -o batch.json",
        "nodes fault sim-1 slow-stop=30 --once --cvm web-1",
        "nodes fault sim-1 --clear",
        "images",
        "images list --cvm web-1",
        "images list --container --data data",
        "images rm web:1 --data data",
        "images gc --dry-run --keep 3",
        "keys create --data /var/lib/casemate --workspace main",
        "completion bash",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn wrong_lines_are_refused_with_the_reason() {
    use ErrorKind::{
        ArgumentConflict, InvalidValue, MissingRequiredArgument, UnknownArgument, ValueValidation,
    };
    for (line, kind) in [
        ("deploy --memory 2X", ValueValidation),
        ("deploy --public-logs=perhaps", InvalidValue),
        ("deploy --dev-os --image dstack-0.5.5", ArgumentConflict),
        ("cvms update", MissingRequiredArgument),
        ("cvms update web-1 --dryrun", UnknownArgument),
        ("cvms update web-1 --on-failure never", ValueValidation),
        ("cvms commit web-1", MissingRequiredArgument),
        ("cvms update web-1 --encrypted-env 00", ValueValidation),
        ("cvms logs web-1 db --channel serial", ArgumentConflict),
        ("cvms rollback web-1", MissingRequiredArgument),
        ("nodes fault sim-1", MissingRequiredArgument),
        ("nodes fault sim-1 explode", ValueValidation),
        ("nodes fault sim-1 lie --clear", ArgumentConflict),
        ("keys create --data x", MissingRequiredArgument),
        ("cvms update web-1 --prepare-only --auto-commit", ArgumentConflict),
        ("cvms update web-1 --prepare-only --private-key-file owner.key", ArgumentConflict),
        ("cvms update web-1 --auto-commit --private-key-file owner.key", ArgumentConflict),
        ("approvals calldata", MissingRequiredArgument),
        ("approvals calldata --app-id 0x1 --compose-hash 0x2", ValueValidation),
        ("approvals commit 0198c1d2 0xaa --private-key-file owner.key", ArgumentConflict),
        ("approvals show 0198c1d2 --app-compose --json", ArgumentConflict),
        ("completion", MissingRequiredArgument),
    ] {
        match parse(line) {
            Ok(_) => panic!("`{line}` is taken"),
            Err(error) => {
                assert_eq!(error.kind(), kind, "{line}");
                assert_eq!(error.exit_code(), 2, "{line}");
            }
        }
    }
}
