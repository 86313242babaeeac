//! Faults of simulated nodes, planned from outside: so that people can rehearse an update that fails. Only in `dev`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use casemate_types::error::FieldError;
use serde_json::{Map, Value, json as object};

use crate::app::{App, Node};
use crate::driver;
use crate::driver::fault::{Fault, Plan, Planned};
use crate::error::{Error, Resource, Result};
use crate::http::answer::{json, nothing};
use crate::http::extract::{Body, Caller, Params, TheCvm};
use crate::store::{self, Answer};

/// Seconds of `slow-stop` and `slow` that name none.
const SLOW: u64 = 30;

/// Longest a fault may slow something down, in seconds: a day.
const SLOWEST: u64 = 24 * 3600;

/// Plan a fault
///
/// From now on this goes wrong on the node; with `once` only the next time, with `cvm` only for this CVM. `fault` is one of
/// `boot-fail` (with `image` or `env` only for machines that have it), `refuse`, `disk-full`, `unreachable`, `slow-stop` and `slow`
/// (with `seconds`), `stop-hangs`, `crash`, `lie`, `vanish`, `answer-lost`.
#[utoipa::path(post, path = "/dev/nodes/{node}/faults", tag = "dev", params(("node" = String, Path, description = "The node's number or name.")), request_body = Object,
    responses((status = 201, description = "Planned", body = Object)))]
pub async fn fault_plan(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<String>,
    params: Params,
    Body(body): Body,
) -> Result<Answer> {
    let (name, plan) = node(&app, &named)?;
    params.only(&[])?;
    caller.author()?;
    let planned = read(&app, &caller, &body)?;
    plan.plan(planned.clone()).await.map_err(|error| refused(&name, error))?;
    Ok(json(StatusCode::CREATED, &shown(&app, &planned)?))
}

/// List planned faults
///
/// What goes wrong on purpose on the node.
#[utoipa::path(get, path = "/dev/nodes/{node}/faults", tag = "dev", params(("node" = String, Path, description = "The node's number or name.")),
    responses((status = 200, description = "The faults", body = Vec<Object>)))]
pub async fn fault_list(State(app): State<App>, _: Caller, Path(named): Path<String>) -> Result<Answer> {
    let (name, plan) = node(&app, &named)?;
    let planned = plan.planned().await.map_err(|error| refused(&name, error))?;
    let planned: Vec<_> = planned.iter().map(|planned| shown(&app, planned)).collect::<Result<_>>()?;
    Ok(json(StatusCode::OK, &planned))
}

/// Clear planned faults
///
/// From now on nothing goes wrong on purpose on the node.
#[utoipa::path(delete, path = "/dev/nodes/{node}/faults", tag = "dev", params(("node" = String, Path, description = "The node's number or name.")),
    responses((status = 204, description = "Cleared")))]
pub async fn fault_clear(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<String>,
    params: Params,
) -> Result<Answer> {
    let (name, plan) = node(&app, &named)?;
    params.only(&[])?;
    caller.author()?;
    plan.clear().await.map_err(|error| refused(&name, error))?;
    Ok(nothing())
}

/// A planned fault in the words in which it is asked for: a CVM is named by its id, or by its machine once it is gone.
pub(super) fn shown(app: &App, planned: &Planned) -> Result<Map<String, Value>> {
    let Value::Object(mut shown) = object!(planned) else { unreachable!("a struct is an object") };
    shown.remove("vm");
    let cvm = match planned.vm.map(|machine| (machine, app.store.cvm_of_machine(machine))) {
        None => Value::Null,
        Some((_, Ok(cvm))) => cvm.uid.to_string().into(),
        Some((machine, Err(store::Error::Missing))) => machine.to_string().into(),
        Some((_, Err(error))) => return Err(error.into()),
    };
    shown.insert("cvm".to_owned(), cvm);
    Ok(shown)
}

/// The node with this number or name, if its faults can be planned.
fn node<'a>(app: &'a App, named: &str) -> Result<(String, &'a dyn Plan)> {
    if !app.config.dev {
        return Err(Error::NotFound { what: Resource::Route });
    }
    let is_it = |(id, node): &(&i64, &Node)| id.to_string() == named || node.facts().name == named;
    let (_, node) = app.nodes.iter().find(is_it).ok_or(Error::NotFound { what: Resource::Node })?;
    match &node.faults {
        Some(plan) => Ok((node.facts().name.clone(), plan.as_ref())),
        None => {
            let message = format!("node {} is not simulated; it has no faults to plan", node.facts().name);
            Err(Error::Rejected { code: None, field: None, message })
        }
    }
}

fn refused(node: &str, error: driver::Error) -> Error {
    match error {
        driver::Error::Unreachable(why) => {
            Error::Unavailable { service: "the node", source: format!("{node}: {why}").into() }
        }
        other => Error::Rejected { code: None, field: None, message: format!("{node}: {other}") },
    }
}

fn read(app: &App, caller: &Caller, body: &Map<String, Value>) -> Result<Planned> {
    let text = |name: &str| match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Error::invalid(name, "should be a string")),
    };
    let once = match body.get("once") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(once)) => *once,
        Some(_) => return Err(Error::invalid("once", "should be true or false")),
    };
    let seconds = match body.get("seconds") {
        None | Some(Value::Null) => SLOW,
        Some(value) => match value.as_u64() {
            Some(seconds) if (1..=SLOWEST).contains(&seconds) => seconds,
            _ => {
                return Err(Error::invalid(
                    "seconds",
                    format!("should be a whole number from 1 to {SLOWEST}"),
                ));
            }
        },
    };
    let vm = match text("cvm")? {
        None => None,
        Some(named) => match TheCvm::find(app, &caller.actor, &named) {
            Ok(found) => Some(found.cvm.vm_uuid),
            Err(Error::NotFound { .. }) => {
                return Err(Error::invalid("cvm", format!("there is no CVM `{named}`")));
            }
            Err(error) => return Err(error),
        },
    };
    Ok(Planned { fault: fault(text("fault")?, text("image")?, text("env")?, seconds)?, once, vm })
}

fn fault(word: Option<String>, image: Option<String>, env: Option<String>, seconds: u64) -> Result<Fault> {
    let known = [
        Fault::BootFail { image, env },
        Fault::Refuse,
        Fault::DiskFull,
        Fault::Unreachable,
        Fault::SlowStop { seconds },
        Fault::StopHangs,
        Fault::Crash,
        Fault::Lie,
        Fault::Vanish,
        Fault::AnswerLost,
        Fault::Slow { seconds },
    ];
    let word_of = |fault: &Fault| object!(fault)["fault"].as_str().unwrap_or_default().to_owned();
    let words = known.iter().map(word_of).collect::<Vec<_>>().join(", ");
    known.into_iter().find(|fault| Some(word_of(fault)) == word).ok_or_else(|| {
        Error::Invalid(vec![FieldError::body("fault", "enum", format!("should be one of {words}"))])
    })
}
