//! Following an operation: each step with its time as it happens, and what became of a failed one.
//!
//! On a terminal the step at work is a line that moves; elsewhere there is a plain line for each step that has ended.

use std::time::Duration;

use casemate_sdk::wire::{self, OperationStatus};
use casemate_sdk::{Error, Operation, PutBack};
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::context::Context;
use crate::error::{Failure, Result};
use crate::human;
use crate::output::{Colour, Output};

/// Follows an operation to its end, and a failed one until its old configuration was put back.
///
/// `None` where the server does not tell more than that it is done.
pub(crate) async fn follow(
    cx: &Context,
    operation: &Operation,
    title: &str,
) -> Result<Option<wire::Operation>> {
    let progress = Progress::new(&cx.out, title);
    if !cx.client()?.is_casemate().await? {
        return interruptible(None, wait_elsewhere(cx, operation)).await;
    }
    let id = operation.id().map(|id| id.to_string());
    let ended = interruptible(id.as_deref(), watch(cx, operation, progress)).await?;
    let Some(ended) = ended else { return Ok(None) };
    if cx.out.is_json() && ended.status != OperationStatus::Succeeded {
        // How it ended is the answer, also if it is not the one that was hoped for.
        cx.out.json(&ended)?;
    }
    match &ended.status {
        OperationStatus::Succeeded => Ok(Some(ended)),
        OperationStatus::Cancelled => Err(Error::Cancelled(Box::new(ended)).into()),
        OperationStatus::Failed
        | OperationStatus::Queued
        | OperationStatus::Running
        | OperationStatus::Other(_) => Err(failed(cx, ended).await?),
    }
}

/// A server without operations shows no steps.
async fn wait_elsewhere(cx: &Context, operation: &Operation) -> Result<Option<wire::Operation>> {
    let bar = spinner(&cx.out, "waiting".to_owned());
    let ended = operation.wait().await;
    bar.finish_and_clear();
    Ok(ended?)
}

async fn watch(
    cx: &Context,
    operation: &Operation,
    mut progress: Progress<'_>,
) -> Result<Option<wire::Operation>> {
    let mut states = operation.watch();
    let mut last = None;
    while let Some(now) = states.next().await {
        let now = match now {
            Ok(now) => now,
            // The server did not name it, and it has ended already, perhaps together with its CVM.
            Err(Error::Invalid(_) | Error::NotFound(_)) if operation.id().is_none() => {
                drop(progress);
                return wait_elsewhere(cx, operation).await;
            }
            Err(error) => return Err(error.into()),
        };
        progress.show(&now);
        last = Some(now);
    }
    Ok(last)
}

/// Says why, follows the put-back and makes an error of it all.
async fn failed(cx: &Context, ended: wire::Operation) -> Result<Failure> {
    let reason = ended.reason.clone().unwrap_or_else(|| wire::Reason {
        code: "unknown".into(),
        message: format!("it ended as {}", ended.status),
    });
    let put_back = match ended.put_back {
        None => PutBack::None,
        Some(id) => {
            let operation = cx.client()?.operation(id);
            let title = format!("It failed: {}\nPutting the old configuration back ({id})", reason.message);
            let progress = Progress::new(&cx.out, &title);
            match interruptible(Some(&id.to_string()), watch(cx, &operation, progress)).await? {
                Some(put_back) if put_back.status == OperationStatus::Succeeded => {
                    if let Some(downtime) = downtime(&ended, &put_back) {
                        cx.out.note(&format!("The machine was down for {} in all.", human::millis(downtime)));
                    }
                    PutBack::Done(Box::new(put_back))
                }
                Some(put_back) => PutBack::Failed(Box::new(put_back)),
                None => PutBack::Unknown,
            }
        }
    };
    Ok(Error::UpdateFailed { reason, put_back, operation: Some(Box::new(ended)) }.into())
}

/// How long the machine was down from the stop of an update to the end of its put-back.
fn downtime(failed: &wire::Operation, put_back: &wire::Operation) -> Option<u64> {
    let stop = failed.steps.iter().find(|step| step.name == "stop")?;
    Some(human::between(stop.ended_at?, put_back.ended_at?))
}

/// Stops following when the user says so. The operation goes on.
async fn interruptible<T>(id: Option<&str>, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => {
            let failure = Failure::failed("stopped watching; the operation goes on");
            Err(match id {
                Some(id) => failure.hint(format!("`casemate ops watch {id}` watches it again, `casemate ops cancel {id}` ends it")),
                None => failure,
            })
        }
    }
}

fn spinner(out: &Output, message: String) -> ProgressBar {
    if !out.is_lively() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("  {spinner:.cyan} {msg} {elapsed}").expect("a fixed template");
    bar.set_style(style.tick_strings(&["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏", " "]));
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Shows the states of one operation.
struct Progress<'a> {
    out: &'a Output,
    story: Story,
    bar: Option<ProgressBar>,
}

impl<'a> Progress<'a> {
    fn new(out: &'a Output, title: &str) -> Self {
        if !title.is_empty() {
            out.note(title);
        }
        Self { out, story: Story::default(), bar: None }
    }

    /// Shows what is new in a state.
    fn show(&mut self, now: &wire::Operation) {
        for news in self.story.news(now) {
            if matches!(news, News::Step { .. }) {
                // The next step has a time of its own.
                self.clear();
            }
            let line = news.line(self.out);
            match &self.bar {
                Some(bar) => bar.suspend(|| self.out.note(&line)),
                None => self.out.note(&line),
            }
        }
        match &now.step {
            _ if now.status.is_final() => self.clear(),
            Some(step) if self.out.is_lively() => {
                let again =
                    if now.attempt > 1 { format!(" (attempt {})", now.attempt) } else { String::new() };
                let message = format!("{step:8}{again}");
                match &self.bar {
                    Some(bar) => bar.set_message(message),
                    None => self.bar = Some(spinner(self.out, message)),
                }
            }
            _ => {}
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Something that was not told about an operation yet.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// A field that changes.
    Change(String),
    /// A step that has ended, and how long it took in milliseconds.
    Step { name: String, took_ms: u64, broken: bool },
    /// It cannot go on for now.
    Waits(String),
}

impl News {
    fn line(&self, out: &Output) -> String {
        match self {
            Self::Change(line) => format!("  {line}"),
            Self::Waits(what) => format!("  {} waits for {what}", out.paint(Colour::Yellow, "…")),
            Self::Step { name, took_ms, broken } => {
                let mark = match (out.is_lively(), broken) {
                    (false, _) => String::new(),
                    (true, false) => format!("{} ", out.paint(Colour::Green, "✓")),
                    (true, true) => format!("{} ", out.paint(Colour::Red, "✗")),
                };
                let failed = if *broken { "failed after " } else { "" };
                format!("  {mark}{name:8} {failed}{}", human::millis(*took_ms))
            }
        }
    }
}

/// What was told about an operation so far.
#[derive(Debug, Default)]
struct Story {
    diff: bool,
    steps: usize,
    waiting_for: Option<String>,
}

impl Story {
    /// What is new in a state. Each thing is news once, however often a state is seen.
    fn news(&mut self, now: &wire::Operation) -> Vec<News> {
        let mut news = Vec::new();
        if !std::mem::replace(&mut self.diff, true) {
            news.extend(diff_lines(&now.diff).into_iter().map(News::Change));
        }
        let failed = now.status == OperationStatus::Failed;
        while let Some(step) = now.steps.get(self.steps) {
            let broken = failed && now.step.as_deref() == Some(step.name.as_str());
            let ended_at = step.ended_at.or(now.ended_at.filter(|_| broken));
            let (Some(from), Some(to)) = (step.started_at, ended_at) else { break };
            self.steps += 1;
            news.push(News::Step { name: step.name.clone(), took_ms: human::between(from, to), broken });
        }
        if now.waiting_for != self.waiting_for {
            self.waiting_for.clone_from(&now.waiting_for);
            news.extend(now.waiting_for.clone().map(News::Waits));
        }
        news
    }
}

/// What an operation changes, one line a field.
pub(crate) fn diff_lines(diff: &[wire::Diff]) -> Vec<String> {
    let width = diff.iter().map(|one| one.field.chars().count()).max().unwrap_or(0);
    diff.iter()
        .map(|one| {
            format!("{:width$}  {} → {}", one.field, value(&one.field, &one.from), value(&one.field, &one.to))
        })
        .collect()
}

/// A value as people read it: sizes with their unit, hashes by their beginning.
fn value(field: &str, value: &Value) -> String {
    const LONG: usize = 60;
    match (field, value) {
        (_, Value::Null) => "none".into(),
        ("memory" | "memory_mb", Value::Number(mb)) => {
            mb.as_u64().map_or_else(|| mb.to_string(), human::megabytes)
        }
        ("disk_size" | "disk_gb", Value::Number(gb)) => format!("{gb} GB"),
        (_, Value::String(text)) if hash(text).is_some() => {
            format!("{}…", human::short(hash(text).unwrap_or_default()))
        }
        (_, Value::String(text)) if text.is_empty() => "none".into(),
        (_, Value::String(text)) if text.chars().count() > LONG || text.contains('\n') => {
            let first: String = text.lines().next().unwrap_or_default().chars().take(LONG).collect();
            format!("{first}…")
        }
        (_, Value::String(text)) => text.clone(),
        (_, Value::Bool(flag)) => human::yes_no(*flag).into(),
        (_, Value::Array(items)) if items.is_empty() => "none".into(),
        (_, Value::Array(items)) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
        }
        (_, other) => other.to_string(),
    }
}

/// The digits of a hash.
fn hash(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    (digits.len() == 64 && digits.chars().all(|c| c.is_ascii_hexdigit())).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A state of an operation with the steps stage and stop, of which some have begun and ended, in seconds.
    fn state(
        status: &str,
        step: &str,
        times: [(Option<u8>, Option<u8>); 2],
        waiting_for: Option<&str>,
    ) -> wire::Operation {
        let time = |second: Option<u8>| second.map(|second| format!("2026-03-01T12:00:{second:02}Z"));
        let step_json =
            |name: &str, (from, to)| json!({ "name": name, "started_at": time(from), "ended_at": time(to) });
        let state = json!({
            "correlation_id": "0198c1d2-0000-7000-8000-000000000000",
            "cvm_id": "cvm_AR0ShvD7NR",
            "kind": "update",
            "status": status,
            "step": step,
            "attempt": 1,
            "waiting_for": waiting_for,
            "steps": [step_json("stage", times[0]), step_json("stop", times[1])],
            "diff": [{ "field": "vcpu", "from": 1, "to": 2 }],
            "created_at": "2026-03-01T12:00:00Z",
            "ended_at": time((status == "failed").then_some(9)),
        });
        serde_json::from_value(state).unwrap()
    }

    fn step(name: &str, seconds: u64, broken: bool) -> News {
        News::Step { name: name.into(), took_ms: seconds * 1_000, broken }
    }

    #[test]
    fn everything_is_news_once() {
        let mut story = Story::default();
        let begun = state("running", "stage", [(Some(1), None), (None, None)], None);
        assert_eq!(story.news(&begun), [News::Change("vcpu  1 → 2".into())]);
        assert_eq!(story.news(&begun), []);
        let waits = state("running", "stop", [(Some(1), Some(3)), (Some(3), None)], Some("the node"));
        assert_eq!(story.news(&waits), [step("stage", 2, false), News::Waits("the node".into())]);
        assert_eq!(story.news(&waits), []);
        let goes_on = state("running", "stop", [(Some(1), Some(3)), (Some(3), None)], None);
        assert_eq!(story.news(&goes_on), []);
        let failed = state("failed", "stop", [(Some(1), Some(3)), (Some(3), None)], None);
        assert_eq!(story.news(&failed), [step("stop", 6, true)]);
        assert_eq!(story.news(&failed), []);
    }

    #[test]
    fn without_a_terminal_a_step_is_a_plain_line() {
        let out = Output::new(&Default::default(), &Default::default());
        assert_eq!(step("stop", 2, false).line(&out), "  stop     2.0 s");
        assert_eq!(step("observe", 2, true).line(&out), "  observe  failed after 2.0 s");
    }

    #[test]
    fn values_are_shown_with_their_units_and_hashes_are_shortened() {
        let diff = |field: &str, from, to| wire::Diff { field: field.into(), from, to };
        let lines = diff_lines(&[
            diff("memory", json!(2048), json!(4096)),
            diff("docker_compose_file", json!("a".repeat(64)), json!(format!("sha256:{}", "b".repeat(64)))),
            diff("listed", json!(false), json!(true)),
            diff("allowed_envs", json!([]), json!(["A", "B"])),
            diff("pre_launch_script", Value::Null, json!("#!/bin/sh\necho")),
        ]);
        assert_eq!(
            lines,
            [
                "memory               2 GB → 4 GB",
                "docker_compose_file  aaaaaaaaaaaa… → bbbbbbbbbbbb…",
                "listed               no → yes",
                "allowed_envs         none → A, B",
                "pre_launch_script    none → #!/bin/sh…",
            ]
        );
    }
}
