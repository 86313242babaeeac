//! The example of `dev --demo`: an app is deployed, and then updated once while the reader looks on.

use std::fmt::Display;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use casemate_sdk::wire::{self, OperationStatus, Status};
use casemate_sdk::{Client, Cvm, Error, Operation, PatchOutcome};
use casemate_server::driver::qemu::Qemu;
use casemate_server::error::Source;
use futures_util::StreamExt;

use crate::cloud::program;

const NAME: &str = "hello-casemate";

/// The compose file that it leaves beside the key.
pub(crate) const EXAMPLE: &str = "example.yml";
/// One that does not boot, for who wants to see what happens then.
const BROKEN: &str = "broken.yml";

/// What the app is before and after the update. A later start changes it back.
struct Example {
    images: [&'static str; 2],
    memory_mb: [u32; 2],
    /// What follows the image in the compose file.
    service: &'static str,
}

/// On simulated machines: any image will do.
const SIMULATED: Example = Example {
    images: ["traefik/whoami:v1.10", "traefik/whoami:v1.11"],
    memory_mb: [2048, 4096],
    service: "    ports:\n      - \"80:80\"\n",
};

/// On real ones: a small HTTP server that comes with the OS images, whose data is on a volume.
const REAL: Example = Example {
    images: ["web:1", "web:2"],
    memory_mb: [512, 1024],
    service: "    ports:\n      - \"80:8080\"\n    volumes:\n      - data:/data\nvolumes:\n  data:\n",
};

/// Where `make guest` leaves the images of [`REAL`].
const IMAGES: &str = ".casemate-guest/oci";

impl Example {
    fn compose(&self, image: &str) -> String {
        format!("services:\n  web:\n    image: {image}\n{}", self.service)
    }
}

/// Prints a line. Nobody may be reading.
fn say(line: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Deploys the example if it is not there yet, and updates it.
pub(crate) async fn run(url: &str, key: &str, env_file: &Path, qemu: Option<&Qemu>) -> Result<(), Source> {
    let client = Client::builder().base_url(format!("{url}/api/v1")).api_key(key).build()?;
    let example = if qemu.is_some() { REAL } else { SIMULATED };
    if let Some(qemu) = qemu {
        for layout in ["web-1", "web-2"] {
            let layout = Path::new(IMAGES).join(layout);
            let imported = qemu.images().import(&layout, None);
            imported.map_err(|error| format!("{}: {error}; `make guest` makes it", layout.display()))?;
        }
    }
    // Beside the key, so that the commands that are shown can be tried.
    let demo = Demo { example, program: program(), file: env_file.with_file_name(EXAMPLE), client };
    let cvm = demo.client.cvm(NAME);
    say("");
    match cvm.get().await {
        Ok(_) => say(format_args!("The example app `{NAME}` is here from an earlier start.")),
        Err(Error::NotFound(_)) => demo.deploy().await?,
        Err(error) => return Err(error.into()),
    }
    demo.running(&cvm).await?;
    demo.update(&cvm).await?;
    demo.next(&cvm, env_file).await
}

/// The example and where it is shown.
struct Demo {
    example: Example,
    program: String,
    file: PathBuf,
    client: Client,
}

impl Demo {
    async fn deploy(&self) -> Result<(), Source> {
        let Self { example, program, file, client } = self;
        let (compose, memory) = (example.compose(example.images[0]), example.memory_mb[0]);
        std::fs::write(file, &compose)?;
        say("An example: a confidential VM that runs a docker-compose app. The same by hand:");
        say("");
        let (file, size) = (file.display(), size(memory));
        say(format_args!("  {program} deploy --name {NAME} --compose {file} --memory {size}"));
        say("");
        follow(&client.deploy(NAME, &compose).vcpu(1).memory_mb(memory).send().await?).await
    }

    /// Waits for whatever an earlier start has left, and switches the machine on.
    async fn running(&self, cvm: &Cvm) -> Result<(), Source> {
        let now = cvm.get().await?;
        if let Some(id) = now.progress.and_then(|work| work.correlation_id) {
            say(format_args!("It is still being worked on ({id}):"));
            // How that ends is not what is shown here.
            let _ = follow(&self.client.operation(id)).await;
        }
        if cvm.get().await?.status != Status::Running {
            say("It is off. Starting it:");
            follow(&cvm.start().send().await?).await?;
        }
        Ok(())
    }

    /// One request, two changes, one restart.
    async fn update(&self, cvm: &Cvm) -> Result<(), Source> {
        let Self { example, program, file, .. } = self;
        let before = look(cvm).await?;
        let compose = cvm.docker_compose_yml().await?;
        let [first, second] = example.images;
        let (from, to) = if compose.contains(second) { (second, first) } else { (first, second) };
        let compose = compose.replace(from, to);
        let [small, large] = example.memory_mb;
        let memory = if before.seen.memory_mb == large { small } else { large };
        std::fs::write(file, &compose)?;
        say("");
        say("Now one PATCH changes its memory and its compose file together. The same by hand:");
        say("");
        let (file, size) = (file.display(), size(memory));
        say(format_args!("  {program} cvms update {NAME} --memory {size} --compose {file}"));
        say("");
        say(format_args!("  memory   {} MB -> {memory} MB", before.seen.memory_mb));
        say(format_args!("  image    {from} -> {to}"));
        say("");
        let operation = match cvm.patch().compose(compose).memory_mb(memory).send().await? {
            PatchOutcome::Accepted(operation) => operation,
            PatchOutcome::NeedsApproval(ask) => {
                return Err(
                    format!("{NAME} needs the compose hash {} on chain first", ask.compose_hash).into()
                );
            }
        };
        follow(&operation).await?;
        let after = look(cvm).await?;
        say("");
        say("What the node itself reports of the machine:");
        say("");
        compare(&before, &after);
        if let Some(downtime) = after.seen.last_downtime_ms {
            say("");
            say(format_args!(
                "It was down for {}, once, however many things change in one request.",
                millis(downtime)
            ));
        }
        Ok(())
    }
}

fn size(megabytes: u32) -> String {
    if megabytes.is_multiple_of(1024) { format!("{}G", megabytes / 1024) } else { format!("{megabytes}M") }
}

/// What is to be seen of the machine, from outside.
struct Look {
    seen: wire::Observed,
    /// What its app answers, where it can be asked.
    app: Option<App>,
}

/// Answers of the app.
struct App {
    at: SocketAddr,
    version: String,
    memory_mb: u64,
    lines: String,
}

async fn look(cvm: &Cvm) -> Result<Look, Source> {
    let seen = cvm.observed().await?;
    let app = match seen.ports.first() {
        None => None,
        Some(port) => {
            let ask = async |path: &str| -> Result<String, Source> {
                let answer = reqwest::get(format!("http://{}{path}", port.at)).await?.error_for_status()?;
                Ok(answer.text().await?.trim().to_owned())
            };
            Some(App {
                at: port.at,
                version: ask("/").await?,
                memory_mb: ask("/memory").await?.parse::<u64>()? / 1024,
                lines: ask("/count").await?,
            })
        }
    };
    Ok(Look { seen, app })
}

fn compare(before: &Look, after: &Look) {
    let row = |what: &str, of: fn(&wire::Observed) -> String| {
        say(format_args!("  {what:18}{:<16}{}", of(&before.seen), of(&after.seen)));
    };
    say(format_args!("  {:18}{:16}{}", "", "before", "after"));
    row("boots", |seen| seen.boot_count.to_string());
    row("memory", |seen| format!("{} MB", seen.memory_mb));
    row("compose hash", |seen| {
        seen.compose_hash.map_or_else(String::new, |hash| hash.to_string()[..12].to_owned())
    });
    row("status", |seen| seen.status.to_string());
    if let (Some(before), Some(after)) = (&before.app, &after.app) {
        let row = |what: &str, before: &str, after: &str| say(format_args!("  {what:18}{before:<16}{after}"));
        say("");
        say(format_args!("And what the app inside answers on http://{}:", after.at));
        say("");
        row("/", &before.version, &after.version);
        row("/memory", &format!("{} MB", before.memory_mb), &format!("{} MB", after.memory_mb));
        row("/count", &before.lines, &format!("{} (its volume is still there)", after.lines));
    }
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

impl Demo {
    /// What to try next.
    async fn next(&self, cvm: &Cvm, env_file: &Path) -> Result<(), Source> {
        let Self { program, .. } = self;
        let mut lines = vec![
            (format!("source {}", env_file.display()), ""),
            (format!("{program} cvms list"), ""),
            (format!("{program} cvms update {NAME} --vcpu 2"), ""),
            (format!("{program} cvms logs {NAME}"), ""),
        ];
        match cvm.observed().await?.ports.first() {
            Some(port) => {
                let file = env_file.with_file_name(BROKEN);
                let [image, _] = self.example.images;
                let broken = format!("    command: [\"/no/such/program\"]\n{}", self.example.service);
                std::fs::write(
                    &file,
                    format!("services:\n  web:\n    image: {image}\n    entrypoint: []\n{broken}"),
                )?;
                let update = format!("{program} cvms update {NAME} --compose {}", file.display());
                lines.insert(1, (format!("curl http://{}/", port.at), "the app itself"));
                lines.push((update, "rehearse a failure: it does not boot, and is put back"));
            }
            None => {
                let node = cvm.get().await?.node_info.and_then(|node| node.name);
                let node = node.unwrap_or_else(|| "sim-1".to_owned());
                let fault = format!("{program} nodes fault {node} boot-fail --once");
                lines.push((fault, "rehearse a failure: the next update"));
                let update = format!("{program} cvms update {NAME} --memory 8G");
                lines.push((update, "does not boot, and is put back"));
            }
        }
        lines.push((format!("{program} --help"), ""));
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_has_two_versions_that_can_be_told_apart() {
        for example in [SIMULATED, REAL] {
            let [first, second] = example.images;
            let [old, new] = example.images.map(|image| example.compose(image));
            assert_eq!(old.replace(first, second), new);
            assert!(!old.contains(second) && !new.contains(first));
        }
    }

    #[test]
    fn every_step_has_a_meaning() {
        for step in ["stage", "stop", "apply", "start", "observe"] {
            assert!(!meaning(step).is_empty());
        }
    }
}
