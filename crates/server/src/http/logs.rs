//! Logs, by addresses that need no API key. Access is in the address: only whoever could read the CVM was given it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use casemate_types::error::FieldError;
use casemate_types::ids::VmUuid;
use futures_util::stream;
use jiff::Timestamp;

use super::cvms::composition::service_of;
use super::cvms::observed::no_answer;
use super::extract::Params;
use super::streams::{Open, Reader};
use super::view::{Shown, signature_holds};
use crate::app::App;
use crate::cvm::state::Cvm;
use crate::driver::{self, LogChannel, LogLine, Report};
use crate::error::{Error, Resource, Result};
use crate::store;

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_secs(1);

/// Read a log of a machine
///
/// Plain text. The address, with its signature, comes from the CVM's details.
#[utoipa::path(get, path = "/logs/{vm_uuid}", tag = "logs", security(()),
    params(
        ("vm_uuid" = VmUuid, Path, description = "The machine."),
        ("ch" = Option<String>, Query, description = "`serial`, `stdout` or `stderr`; `serial` unless given."),
        ("expires" = i64, Query, description = "Until when the address is good, in Unix seconds."),
        ("sig" = String, Query, description = "The signature."),
        ("since" = Option<String>, Query, description = "Only lines from here on: a time, or how long ago (`42m`)."),
        ("until" = Option<String>, Query, description = "Only lines up to here."),
        ("tail" = Option<u64>, Query, description = "Only the last so many lines. `lines` says the same."),
        ("follow" = Option<bool>, Query, description = "Stay and send lines as they are written."),
        ("timestamps" = Option<bool>, Query, description = "A time before each line."),
        ("ansi" = Option<bool>, Query, description = "Keep colours."),
    ),
    responses((status = 200, description = "The log", body = String, content_type = "text/plain")))]
pub async fn machine_log(State(app): State<App>, Path(vm): Path<String>, params: Params) -> Result<Response> {
    let cvm = signed_for(&app, &vm, &params)?;
    let channel = match params.get("ch").unwrap_or("serial") {
        "serial" => LogChannel::Serial,
        "stdout" => LogChannel::Stdout,
        "stderr" => LogChannel::Stderr,
        _ => return Err(wrong("ch", "should be `serial`, `stdout` or `stderr`")),
    };
    send(app, &cvm, channel, Form::Text, &params).await
}

/// Read the log of a container
///
/// With `text` or `bare` plain text, else one JSON object a line, with `channel` (`stdout`, `stderr`) and `message` (base64).
/// The address, with its signature, comes from the CVM's list of containers.
#[utoipa::path(get, path = "/logs/{vm_uuid}/container", tag = "logs", security(()),
    params(
        ("vm_uuid" = VmUuid, Path, description = "The machine."),
        ("name" = String, Query, description = "The container's name."),
        ("expires" = i64, Query, description = "Until when the address is good, in Unix seconds."),
        ("sig" = String, Query, description = "The signature."),
        ("since" = Option<String>, Query, description = "Only lines from here on: a time, or how long ago (`42m`)."),
        ("until" = Option<String>, Query, description = "Only lines up to here."),
        ("tail" = Option<u64>, Query, description = "Only the last so many lines. `lines` says the same."),
        ("follow" = Option<bool>, Query, description = "Stay and send lines as they are written."),
        ("text" = Option<bool>, Query, description = "Plain text."),
        ("bare" = Option<bool>, Query, description = "Plain text."),
        ("timestamps" = Option<bool>, Query, description = "A time before each line."),
        ("ansi" = Option<bool>, Query, description = "Keep colours."),
    ),
    responses((status = 200, description = "The log", content(
        (String = "text/plain"),
        (String = "application/x-ndjson"),
    ))))]
pub async fn container_log(
    State(app): State<App>,
    Path(vm): Path<String>,
    params: Params,
) -> Result<Response> {
    let cvm = signed_for(&app, &vm, &params)?;
    let name = params.get("name").unwrap_or_default().trim_start_matches('/');
    let service = service(&app, &cvm, name)?.ok_or(Error::NotFound { what: Resource::Container })?;
    let form = match params.has("text") || params.has("bare") {
        true => Form::Text,
        false => Form::Json,
    };
    let channel = LogChannel::Container(service);
    send(app, &cvm, channel, form, &params).await
}

/// The service whose container has this name: one that runs, or one that the compose file has.
fn service(app: &App, cvm: &Cvm, name: &str) -> Result<Option<String>> {
    let mut services = Shown::of(&app.store.spec(cvm.id, cvm.revision)?).document.services();
    let mut known: Vec<_> = services.drain(..).map(|service| service.name).collect();
    let report = app.store.report(cvm.id)?;
    let seen = report.as_ref().and_then(Report::read);
    known.extend(seen.into_iter().flat_map(|seen| seen.containers).map(|container| container.service));
    let named = |wanted: &str| known.iter().find(|service| *service == wanted).cloned();
    Ok(named(name).or_else(|| named(service_of(name))))
}

/// The CVM whose logs the address was made for. An address that does not hold says nothing about what exists.
fn signed_for(app: &App, vm: &str, params: &Params) -> Result<Cvm> {
    const WRONG: Error =
        Error::Unauthenticated("the address is not signed, or its time is over; ask for a new one");
    let vm: VmUuid = vm.parse().map_err(|_| WRONG)?;
    let expires = params.get("expires").and_then(|text| text.parse().ok()).ok_or(WRONG)?;
    let signature = params.get("sig").ok_or(WRONG)?;
    if !signature_holds(app, vm, expires, signature, app.clock.now()) {
        return Err(WRONG);
    }
    match app.store.cvm_of_machine(vm) {
        Err(store::Error::Missing) => Err(Error::NotFound { what: Resource::Cvm }),
        other => Ok(other?),
    }
}

fn wrong(name: &str, message: &str) -> Error {
    Error::Invalid(vec![FieldError::query(name, "value_error", message)])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

/// How lines are chosen and written.
#[derive(Clone)]
struct Options {
    form: Form,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tail: Option<usize>,
    timestamps: bool,
    ansi: bool,
}

impl Options {
    fn read(params: &Params, form: Form, now: Timestamp) -> Result<Self> {
        let time = |name: &str| -> Result<Option<Timestamp>> {
            let Some(text) = params.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
            let time = moment(text, now);
            time.map(Some).ok_or_else(|| {
                wrong(
                    name,
                    "should be a time such as 2026-01-31T12:00:00Z, Unix seconds, or how long ago: 90s, 42m, 3h, 2d",
                )
            })
        };
        let tail = match params.get("tail").or(params.get("lines")) {
            None | Some("" | "all") => None,
            Some(text) => Some(text.parse().map_err(|_| wrong("tail", "should be a number of lines"))?),
        };
        Ok(Self {
            form,
            since: time("since")?,
            until: time("until")?,
            tail,
            timestamps: params.flag("timestamps")?.unwrap_or(false),
            ansi: params.flag("ansi")?.unwrap_or(false),
        })
    }

    fn wants(&self, line: &LogLine) -> bool {
        self.since.is_none_or(|since| line.at >= since) && self.until.is_none_or(|until| line.at <= until)
    }

    fn write(&self, to: &mut String, line: &LogLine) {
        let text = if self.ansi { line.text.clone() } else { without_ansi(&line.text) };
        let time = if self.timestamps { format!("{:.6} ", line.at) } else { String::new() };
        let text = format!("{time}{text}\n");
        match self.form {
            Form::Text => to.push_str(&text),
            Form::Json => {
                let channel = if line.stderr { "stderr" } else { "stdout" };
                let json = serde_json::json!({ "channel": channel, "message": BASE64.encode(text) });
                to.push_str(&json.to_string());
                to.push('\n');
            }
        }
    }
}

/// A time, Unix seconds, or how long ago: a number and one of `s`, `m`, `h`, `d`.
fn moment(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Timestamp::from_second(text.parse().ok()?).ok();
    }
    let unit = text.chars().next_back()?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let ago = Duration::from_secs(number.checked_mul(seconds)?);
    now.checked_sub(ago).ok()
}

/// Leaves out what colours a terminal.
fn without_ansi(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '\u{1b}' {
            plain.push(letter);
        } else if letters.next_if_eq(&'[').is_some() {
            // Parameters, then one letter that ends the sequence.
            letters.by_ref().find(|letter| ('\u{40}'..='\u{7e}').contains(letter));
        }
    }
    plain
}

async fn send(app: App, cvm: &Cvm, channel: LogChannel, form: Form, params: &Params) -> Result<Response> {
    let options = Options::read(params, form, app.clock.now())?;
    let follow = params.flag("follow")?.unwrap_or(false);
    let mut log = Log {
        app,
        node_id: cvm.node_id,
        vm: cvm.vm_uuid,
        channel,
        options,
        seen: Seen::default(),
        open: None,
    };
    let first = log.first().await?;
    let body = if follow {
        log.open = Some(log.app.streams.open(Reader::OfLogs(cvm.vm_uuid))?);
        Body::from_stream(stream::unfold((Some(first), log), |(first, mut log)| async {
            let text = match first {
                Some(first) => first,
                None => log.more().await?,
            };
            Some((Ok::<_, Infallible>(Bytes::from(text)), (None, log)))
        }))
    } else {
        Body::from(first)
    };
    let kind = match form {
        Form::Text => "text/plain; charset=utf-8",
        Form::Json => "application/x-ndjson",
    };
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], body).into_response())
}

/// A log that is being read.
struct Log {
    app: App,
    node_id: i64,
    vm: VmUuid,
    channel: LogChannel,
    options: Options,
    seen: Seen,
    open: Option<Open>,
}

/// How far a log was read: a node gives the whole of it each time, and may have dropped its beginning by then.
#[derive(Default)]
struct Seen {
    until: Option<Timestamp>,
    /// So many lines of exactly that time.
    lines: usize,
}

impl Seen {
    /// The lines that are new, from now on seen.
    fn advance<'a>(&mut self, lines: &'a [LogLine]) -> &'a [LogLine] {
        let known = match self.until {
            None => 0,
            Some(until) => lines.partition_point(|line| line.at < until) + self.lines,
        };
        let new = lines.get(known..).unwrap_or_default();
        if let Some(last) = new.last() {
            let before = lines.partition_point(|line| line.at < last.at);
            *self = Self { until: Some(last.at), lines: lines.len() - before };
        }
        new
    }
}

impl Log {
    /// All lines there are now. A machine that is not on its node yet has none.
    async fn lines(&self) -> Result<Vec<LogLine>> {
        let node = self.app.node(self.node_id).ok_or(Error::NotFound { what: Resource::Node })?;
        match node.driver.logs(self.vm, &self.channel).await {
            Ok(lines) => Ok(lines),
            Err(driver::Error::Refused(_)) => Ok(Vec::new()),
            Err(error) => Err(no_answer(error)),
        }
    }

    async fn first(&mut self) -> Result<String> {
        let lines = self.lines().await?;
        let mut wanted: Vec<_> =
            self.seen.advance(&lines).iter().filter(|line| self.options.wants(line)).collect();
        if let Some(tail) = self.options.tail {
            wanted.drain(..wanted.len().saturating_sub(tail));
        }
        Ok(self.text(&wanted))
    }

    /// What was written since, as soon as there is something. Ends with the CVM, and at the time asked for.
    async fn more(&mut self) -> Option<String> {
        loop {
            if self.options.until.is_some_and(|until| self.app.clock.now() > until) {
                return None;
            }
            self.app.clock.sleep(POLL).await;
            self.app.store.cvm_of_machine(self.vm).ok()?;
            // A node that does not answer now may do so the next time.
            let Ok(lines) = self.lines().await else { continue };
            let wanted: Vec<_> =
                self.seen.advance(&lines).iter().filter(|line| self.options.wants(line)).collect();
            if !wanted.is_empty() {
                return Some(self.text(&wanted));
            }
        }
    }

    fn text(&self, lines: &[&LogLine]) -> String {
        let mut text = String::new();
        for line in lines {
            self.options.write(&mut text, line);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).expect("in range")
    }

    fn line(second: i64, text: &str) -> LogLine {
        LogLine { at: at(second), stderr: false, text: text.into() }
    }

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        assert_eq!(moment("42m", at(0)), Some(at(-42 * 60)));
        assert_eq!(moment("2d", at(0)), Some(at(-172_800)));
        assert_eq!(moment("1970-01-12T13:46:40Z", at(7)), Some(at(0)));
        assert_eq!(moment("1000000", at(7)), Some(at(0)));
        for wrong in ["", "m", "-5m", "5x", "99999999999999999d", "é"] {
            assert_eq!(moment(wrong, at(0)), None, "{wrong}");
        }
    }

    #[test]
    fn colours_go_and_the_rest_stays() {
        assert_eq!(without_ansi("\u{1b}[1;31mred\u{1b}[0m und grün"), "red und grün");
        assert_eq!(without_ansi("cut off \u{1b}[3"), "cut off ");
    }

    #[test]
    fn lines_are_new_once_even_if_several_have_one_time_and_the_first_ones_are_dropped() {
        let mut seen = Seen::default();
        let mut log = vec![line(1, "a"), line(2, "b")];
        assert_eq!(seen.advance(&log).len(), 2);
        log.push(line(2, "c"));
        assert_eq!(seen.advance(&log), [line(2, "c")]);
        log.remove(0);
        assert_eq!(seen.advance(&log).len(), 0);
        log.push(line(3, "d"));
        assert_eq!(seen.advance(&log), [line(3, "d")]);
    }
}
