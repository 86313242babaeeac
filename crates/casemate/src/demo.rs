//! The example of `dev --demo`: an app is deployed, and then updated once while the reader looks on.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;

use casemate_sdk::wire::{self, OperationStatus, Status};
use casemate_sdk::{Client, Cvm, Error, Operation, PatchOutcome};
use casemate_server::error::Source;
use futures_util::StreamExt;

use crate::cloud::program;

const NAME: &str = "hello-casemate";

/// The compose file that it leaves beside the key.
pub(crate) const EXAMPLE: &str = "example.yml";

/// What the app is before and after the update. A later start changes it back.
const VERSIONS: [&str; 2] = ["traefik/whoami:v1.10", "traefik/whoami:v1.11"];
const MEMORY_MB: [u32; 2] = [2048, 4096];

fn compose_file(image: &str) -> String {
    format!("services:\n  hello:\n    image: {image}\n    ports:\n      - \"80:80\"\n")
}

/// Prints a line. Nobody may be reading.
fn say(line: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Deploys the example if it is not there yet, and updates it.
pub(crate) async fn run(url: &str, key: &str, env_file: &Path) -> Result<(), Source> {
    let client = Client::builder().base_url(format!("{url}/api/v1")).api_key(key).build()?;
    let program = program();
    // Beside the key, so that the commands that are shown can be tried.
    let file = env_file.with_file_name(EXAMPLE);
    let cvm = client.cvm(NAME);
    say("");
    match cvm.get().await {
        Ok(_) => say(format_args!("The example app `{NAME}` is here from an earlier start.")),
        Err(Error::NotFound(_)) => deploy(&client, &program, &file).await?,
        Err(error) => return Err(error.into()),
    }
    running(&client, &cvm).await?;
    update(&cvm, &program, &file).await?;
    next(&cvm, &program, env_file).await
}

async fn deploy(client: &Client, program: &str, file: &Path) -> Result<(), Source> {
    let (compose, [memory, _]) = (compose_file(VERSIONS[0]), MEMORY_MB);
    std::fs::write(file, &compose)?;
    say("An example: a confidential VM that runs a docker-compose app. The same by hand:");
    say("");
    say(format_args!(
        "  {program} deploy --name {NAME} --compose {} --memory {}G",
        file.display(),
        memory / 1024
    ));
    say("");
    let creation = client.deploy(NAME, &compose).vcpu(1).memory_mb(memory).send().await?;
    follow(&creation).await
}

/// Waits for whatever an earlier start has left, and switches the machine on.
async fn running(client: &Client, cvm: &Cvm) -> Result<(), Source> {
    let now = cvm.get().await?;
    if let Some(id) = now.progress.and_then(|work| work.correlation_id) {
        say(format_args!("It is still being worked on ({id}):"));
        // How that ends is not what is shown here.
        let _ = follow(&client.operation(id)).await;
    }
    if cvm.get().await?.status != Status::Running {
        say("It is off. Starting it:");
        follow(&cvm.start().send().await?).await?;
    }
    Ok(())
}

/// One request, two changes, one restart.
async fn update(cvm: &Cvm, program: &str, file: &Path) -> Result<(), Source> {
    let before = cvm.observed().await?;
    let compose = cvm.docker_compose_yml().await?;
    let [first, second] = VERSIONS;
    let (from, to) = if compose.contains(second) { (second, first) } else { (first, second) };
    let compose = compose.replace(from, to);
    let memory = if before.memory_mb == MEMORY_MB[1] { MEMORY_MB[0] } else { MEMORY_MB[1] };
    std::fs::write(file, &compose)?;
    say("");
    say("Now one PATCH changes its memory and its compose file together. The same by hand:");
    say("");
    say(format_args!(
        "  {program} cvms update {NAME} --memory {}G --compose {}",
        memory / 1024,
        file.display()
    ));
    say("");
    say(format_args!("  memory   {} MB -> {memory} MB", before.memory_mb));
    say(format_args!("  image    {from} -> {to}"));
    say("");
    let patch = cvm.patch().compose(compose).memory_mb(memory);
    let operation = match patch.send().await? {
        PatchOutcome::Accepted(operation) => operation,
        PatchOutcome::NeedsApproval(ask) => {
            return Err(format!("{NAME} needs the compose hash {} on chain first", ask.compose_hash).into());
        }
    };
    follow(&operation).await?;
    let after = cvm.observed().await?;
    say("");
    say("What the node itself reports of the machine:");
    say("");
    compare(&before, &after);
    if let Some(downtime) = after.last_downtime_ms {
        say("");
        say(format_args!(
            "It was down for {}, once, however many things change in one request.",
            millis(downtime)
        ));
    }
    Ok(())
}

fn compare(before: &wire::Observed, after: &wire::Observed) {
    let hash = |seen: &wire::Observed| {
        seen.compose_hash.map_or_else(String::new, |hash| hash.to_string()[..12].to_owned())
    };
    let memory = |seen: &wire::Observed| format!("{} MB", seen.memory_mb);
    say(format_args!("  {:14}{:16}{}", "", "before", "after"));
    say(format_args!("  {:14}{:<16}{}", "boots", before.boot_count, after.boot_count));
    say(format_args!("  {:14}{:<16}{}", "memory", memory(before), memory(after)));
    say(format_args!("  {:14}{:<16}{}", "compose hash", hash(before), hash(after)));
    say(format_args!("  {:14}{:<16}{}", "status", before.status, after.status));
}

/// Prints each step as it ends.
async fn follow(operation: &Operation) -> Result<(), Source> {
    let mut states = operation.watch();
    let mut told = 0;
    let mut last: Option<wire::Operation> = None;
    while let Some(state) = states.next().await {
        let state = match state {
            Ok(state) => state,
            // It has ended before it could be watched.
            Err(Error::Invalid(_)) if operation.id().is_none() => break,
            Err(error) => return Err(error.into()),
        };
        while let Some(step) = state.steps.get(told) {
            let (Some(from), Some(to)) = (step.started_at, step.ended_at) else { break };
            told += 1;
            let took = u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0);
            say(format_args!("  {:9}{:>8}   {}", step.name, millis(took), meaning(&step.name)));
        }
        last = Some(state);
    }
    match last {
        Some(ended) if ended.status == OperationStatus::Failed => {
            Err(ended.reason.map_or_else(|| "it failed".to_owned(), |reason| reason.message).into())
        }
        Some(ended) if ended.status == OperationStatus::Cancelled => Err("it was cancelled".into()),
        _ => Ok(()),
    }
}

/// What a step does, in a few words.
fn meaning(step: &str) -> &'static str {
    match step {
        "stage" => "everything that can fail is checked first",
        "stop" => "the guest has shut down",
        "apply" => "the node has the new configuration",
        "start" => "the machine is switched on",
        "observe" => "the guest itself reports that it runs just this configuration",
        _ => "",
    }
}

fn millis(millis: u64) -> String {
    if millis < 1_000 {
        format!("{millis} ms")
    } else {
        format!("{}.{} s", millis / 1_000, millis % 1_000 / 100)
    }
}

/// What to try next.
async fn next(cvm: &Cvm, program: &str, env_file: &Path) -> Result<(), Source> {
    let node = cvm.get().await?.node_info.and_then(|node| node.name).unwrap_or_else(|| "sim-1".to_owned());
    let lines = [
        (format!("source {}", env_file.display()), ""),
        (format!("{program} cvms list"), ""),
        (format!("{program} cvms update {NAME} --vcpu 2"), ""),
        (format!("{program} cvms logs {NAME}"), ""),
        (format!("{program} nodes fault {node} boot-fail --once"), "rehearse a failure: the next update"),
        (format!("{program} cvms update {NAME} --memory 8G"), "does not boot, and is put back"),
        (format!("{program} --help"), ""),
    ];
    let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    say("");
    say("Try next, in another terminal and in this folder:");
    say("");
    for (line, note) in lines {
        let note = if note.is_empty() { String::new() } else { format!("# {note}") };
        say(format!("  {line:width$}   {note}").trim_end());
    }
    say("");
    say("The cloud stays up until Ctrl-C, and is the same one when it is started again.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_has_two_versions_that_can_be_told_apart() {
        let [old, new] = VERSIONS.map(compose_file);
        assert_ne!(old, new);
        assert_eq!(old.replace(VERSIONS[0], VERSIONS[1]), new);
        assert!(!old.contains(VERSIONS[1]) && !new.contains(VERSIONS[0]));
    }

    #[test]
    fn every_step_has_a_meaning() {
        for step in ["stage", "stop", "apply", "start", "observe"] {
            assert!(!meaning(step).is_empty());
        }
    }
}
