//! What the SDK's errors mean to somebody who typed a command: what is wrong, and what to do about it.

use casemate_sdk::types::error::{ErrorBody, FieldError};
use casemate_sdk::wire::Operation;
use casemate_sdk::{Error, Failure as Answer, Invalid, chain};

use crate::context::Context;
use crate::environment::RPC_URL_VAR;
use crate::error::About;
use crate::settings::Origin;

/// What a Casemate server says about a route that it does not have.
pub(crate) const NO_ROUTE: &str = "Route not found";

/// The error, and hints.
pub(crate) async fn explain(cx: &Context, error: &Error, about: Option<&About>) -> (String, Vec<String>) {
    // What is at work on a busy CVM says more than that it is busy.
    if let (Error::Busy(_), Some(About::Cvm(name))) = (error, about)
        && let Some((kind, id)) = at_work(cx, name).await
    {
        let text = format!("cvm `{name}` already has {kind} running");
        return (text, vec![format!("follow it with `casemate ops watch {id}`")]);
    }
    let hints = error.suggestions().iter().cloned().chain(hints(cx, error, about)).collect();
    (text(error, about), hints)
}

/// The operation at work on a CVM: its kind with an article, and its id.
async fn at_work(cx: &Context, name: &str) -> Option<(String, String)> {
    let client = cx.client().ok()?;
    let id = client.cvm(name).get().await.ok()?.progress?.correlation_id?;
    let kind = match client.operation(&id).get().await {
        Ok(operation) => operation.kind.replace('_', " "),
        Err(_) => "operation".to_owned(),
    };
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    Some((format!("{article} {kind}"), id))
}

/// What is wrong, in one or more lines.
fn text(error: &Error, about: Option<&About>) -> String {
    match (error, about) {
        (Error::Invalid(invalid), _) => invalid_text(invalid),
        (Error::NotFound(answer), Some(About::Cvm(name))) if answer.body.message() == "CVM not found" => {
            format!("there is no cvm `{name}`")
        }
        (Error::NotFound(answer), Some(About::Cvm(name)))
            if answer.body.message() == "Revision not found" =>
        {
            format!("{name} has no such revision")
        }
        (Error::Conflict(answer), _) => message(answer),
        (Error::Unsupported { what, base_url }, _) => {
            format!("only a Casemate server has {what}, and {base_url} is something else")
        }
        (Error::UpdateFailed { operation, .. }, Some(About::Cvm(name))) => {
            let kind = operation.as_ref().map_or("update", |operation| operation.kind.as_str());
            format!("the {kind} of `{name}` failed: {error}")
        }
        _ => match root_cause(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}

/// What the server says, with the code that goes with it.
fn message(answer: &Answer) -> String {
    match answer.body.code() {
        Some(code) => format!("{} ({code})", answer.body.message()),
        None => answer.body.message(),
    }
}

fn invalid_text(invalid: &Invalid) -> String {
    // The message of a list of fields is the list.
    let answer =
        invalid.failure.as_ref().filter(|answer| !matches!(answer.body, ErrorBody::Validation { .. }));
    let fields: Vec<String> = invalid.fields.iter().map(field_text).collect();
    match (answer, fields.as_slice()) {
        (None, []) => invalid.to_string(),
        (None, [field]) => field.clone(),
        (None, _) => format!("the request is wrong\n  {}", fields.join("\n  ")),
        (Some(answer), []) => message(answer),
        // The same sentence is not said twice.
        (Some(answer), [field]) if answer.body.message().eq_ignore_ascii_case(&invalid.fields[0].msg) => {
            match answer.body.code() {
                Some(code) => format!("{field} ({code})"),
                None => field.clone(),
            }
        }
        (Some(answer), _) => format!("{}\n  {}", message(answer), fields.join("\n  ")),
    }
}

fn field_text(field: &FieldError) -> String {
    match (typed_as(&field.field()), field.field().as_str()) {
        (Some(option), _) => format!("{option}: {}", field.msg),
        (None, "" | "body") => field.msg.clone(),
        (None, _) => field.to_string(),
    }
}

/// What is typed to give a field.
fn typed_as(field: &str) -> Option<&'static str> {
    Some(match field.split('.').next()? {
        "docker_compose_file" | "compose_file" => "--compose",
        "pre_launch_script" => "--pre-launch-script",
        "allowed_envs" | "env_keys" => "--allowed-env",
        "encrypted_env" => "--env",
        "public_logs" => "--public-logs",
        "public_sysinfo" => "--public-sysinfo",
        "public_tcbinfo" => "--public-tcbinfo",
        "listed" => "--listed",
        "user_config" => "--user-config",
        "gpus" => "--gpus",
        "vcpu" => "--vcpu",
        "memory" => "--memory",
        "disk_size" => "--disk-size",
        "instance_type" => "--instance-type",
        "image" | "os_image_name" => "--image",
        "shutdown_timeout" => "--shutdown-timeout",
        "timeout" => "--timeout",
        "teepod_id" | "node_id" => "--node",
        "region" => "--region",
        "compose_hash" => "COMPOSE HASH",
        "correlation_id" => "OPERATION",
        "transaction_hash" => "TRANSACTION",
        "approval_id" => "APPROVAL",
        "app_id" | "contract_address" => "--app-id",
        "device_id" => "--device-id",
        "kms" | "kms_id" => "--kms",
        "base_url" => "--api-url",
        "api_key" => "--api-key",
        _ => return None,
    })
}

/// The last of an error's causes: the ones between say less and less what happened.
fn root_cause(error: &Error) -> Option<String> {
    let mut cause = std::error::Error::source(error)?;
    while let Some(next) = cause.source() {
        cause = next;
    }
    Some(cause.to_string())
}

/// Has it come to the start of the machine?
fn was_started(operation: &Operation) -> bool {
    operation.steps.iter().any(|step| step.name == "start" && step.started_at.is_some())
}

/// What to do about it.
fn hints(cx: &Context, error: &Error, about: Option<&About>) -> Vec<String> {
    let list = |what: &str| format!("`casemate {what} list` shows those that there are");
    match error {
        Error::Unauthorized(_) => sign_in(cx).into_iter().collect(),
        Error::Forbidden(_) => vec!["`casemate whoami` says whose key this is".into()],
        Error::NotFound(answer) if answer.body.message() == NO_ROUTE => {
            vec!["the server does not know this; it may be older than this program".into()]
        }
        Error::NotFound(answer) => match about {
            Some(About::Cvm(name)) => vec![match answer.body.message().as_str() {
                "Revision not found" => {
                    format!("`casemate cvms revisions {name}` shows those that there are")
                }
                _ => list("cvms"),
            }],
            Some(About::Operation) => vec![list("ops")],
            Some(About::Node) => vec![list("nodes")],
            Some(About::Key) => vec![list("keys")],
            Some(About::Kms) => vec![list("kms")],
            Some(About::Approval) => vec![list("approvals")],
            None => Vec::new(),
        },
        Error::Chain(error) => chain_hints(error),
        Error::NotProven(_) => {
            vec!["a failed proof uses nothing up: the same command can be tried again".into()]
        }
        Error::UpdateFailed { operation: Some(operation), .. } => {
            let details = format!("`casemate ops show {}` has the details", operation.correlation_id);
            let booting = about.and_then(|about| match about {
                // Of one that was not started, it shows the boot before.
                About::Cvm(name) if was_started(operation) => {
                    Some(format!("`casemate cvms logs {name} --channel serial` shows how it booted"))
                }
                _ => None,
            });
            std::iter::once(details).chain(booting).collect()
        }
        Error::Transport { .. } => vec![match cx.settings().map(|found| &found.url_from) {
            Ok(Origin::DevEnv(path)) => {
                format!("the address is from {}; `casemate dev` starts that server again", path.display())
            }
            Ok(Origin::Default) | Err(_) => "`casemate doctor` looks closer".into(),
            Ok(from) => {
                format!("the address is from {from}; is that server running? `casemate doctor` looks closer")
            }
        }],
        Error::Decode { .. } => {
            vec![
                "is this the address of an API? It usually ends in /api/v1; `casemate doctor` looks closer"
                    .into(),
            ]
        }
        Error::Unsupported { .. } => {
            vec!["`casemate doctor` says which server this is and who named it".into()]
        }
        Error::Api(answer) if answer.status >= 500 => {
            let id = answer.request_id.as_ref();
            id.map(|id| format!("the server's log has more about request {id}")).into_iter().collect()
        }
        Error::Invalid(invalid) if invalid.fields.iter().any(|field| field.field() == "correlation_id") => {
            vec![list("ops")]
        }
        Error::Invalid(invalid) if invalid.fields.iter().any(|field| field.field() == "body") => {
            vec!["`--help` lists what can be given".into()]
        }
        _ => Vec::new(),
    }
}

/// What to do about what happened on a chain.
fn chain_hints(error: &chain::Error) -> Vec<String> {
    use chain::Error as On;
    let node = |what: &str| vec![format!("`--rpc-url URL`, or {RPC_URL_VAR}, names {what}")];
    match error {
        On::UnknownChain(id) => node(&format!("a node of chain {id}")),
        On::WrongNetwork { wanted, .. } => node(&format!("a node of chain {wanted}")),
        On::Node(_) | On::Refused { .. } => node("another node"),
        On::TooLittleMoney { sender, .. } => {
            vec![format!("send some ETH to {}", chain::checksummed(*sender))]
        }
        On::NotOwner { owner, .. } => vec![format!(
            "sign with the key of {}; `casemate approvals safe-batch` is for a Safe, `calldata` for any other wallet",
            chain::checksummed(*owner)
        )],
        On::OtherComposeHash { .. } => vec![
            "nothing was signed: a text, script or flag that you did not write would be part of the app"
                .into(),
        ],
        On::TimedOut { tx, .. } | On::Dropped { tx } => {
            vec![format!("look for 0x{tx} before you sign again: it may still be carried out")]
        }
        _ => Vec::new(),
    }
}

/// How to get a key that is accepted.
fn sign_in(cx: &Context) -> Option<String> {
    let settings = cx.settings().ok()?;
    Some(match (&settings.key, &settings.other) {
        (None, Some(other)) => format!(
            "the stored key is for {other}; `casemate login --api-url {}` stores one for this server",
            settings.url
        ),
        (None, None) => format!("`casemate login` stores a key, or set {}", casemate_sdk::API_KEY_VAR),
        (Some(key), _) => format!("the key is from {}; `casemate login` stores another one", key.from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error as IoError, ErrorKind};

    #[test]
    fn a_cause_is_told_once_and_without_what_lies_between() {
        let source =
            Box::new(IoError::new(ErrorKind::ConnectionRefused, IoError::other("Connection refused")));
        let error = Error::Transport { url: "http://h/api/v1/cvms".into(), source };
        assert_eq!(text(&error, None), "no answer from http://h/api/v1/cvms: Connection refused");
    }

    #[test]
    fn fields_are_named_by_what_is_typed() {
        let client = casemate_sdk::Client::builder().base_url("nowhere").build();
        assert!(text(&client.unwrap_err(), None).starts_with("--api-url: `nowhere` is not a URL"));
        assert_eq!(field_text(&FieldError::body("memory", "", "too little")), "--memory: too little");
        assert_eq!(field_text(&FieldError::body("other", "", "wrong")), "other: wrong");
        assert_eq!(field_text(&FieldError::body("body", "", "nothing to update")), "nothing to update");
    }
}
