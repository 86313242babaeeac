//! Error bodies: what every answer outside 2xx holds.
//!
//! Three forms exist and are never mixed: clients that find a `detail` do not look at a code beside it.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::ids::{AppId, ComposeHash};
use crate::wire::KmsInfo;

/// Codes of structured errors. A code that is not here is a plain `detail`.
pub mod codes {
    /// No such node or region.
    pub const NODE_NOT_FOUND: &str = "ERR-01-001";
    /// No compose file was given.
    pub const COMPOSE_FILE_REQUIRED: &str = "ERR-01-002";
    /// The compose file cannot be used.
    pub const INVALID_COMPOSE_FILE: &str = "ERR-01-003";
    /// The name is taken in this workspace.
    pub const DUPLICATE_CVM_NAME: &str = "ERR-01-004";
    /// The compose hash has to be registered on the chain first. Status 465.
    pub const HASH_REGISTRATION_REQUIRED: &str = "ERR-01-005";
    /// The compose hash is unknown, or its time is over. Status 466.
    pub const HASH_INVALID_OR_EXPIRED: &str = "ERR-01-006";
    /// The transaction does not prove the registration. Status 467.
    pub const TX_VERIFICATION_FAILED: &str = "ERR-01-007";
    /// The contract does not allow the compose hash or the device. Status 468.
    pub const HASH_NOT_ALLOWED: &str = "ERR-01-008";
    /// No such instance type.
    pub const INSTANCE_TYPE_NOT_FOUND: &str = "ERR-02-001";
    /// No node can give what was asked for.
    pub const RESOURCE_NOT_AVAILABLE: &str = "ERR-02-002";
    /// Too few virtual processors left.
    pub const INSUFFICIENT_VCPU: &str = "ERR-02-003";
    /// Too little memory left.
    pub const INSUFFICIENT_MEMORY: &str = "ERR-02-004";
    /// No slot for another machine.
    pub const INSUFFICIENT_SLOTS: &str = "ERR-02-005";
    /// GPUs could not be assigned.
    pub const GPU_ALLOCATION_ERROR: &str = "ERR-02-006";
    /// Too few GPUs.
    pub const INSUFFICIENT_GPU: &str = "ERR-02-007";
    /// The request contradicts itself or a rule.
    pub const INVALID_REQUEST: &str = "ERR-02-008";
    /// The configuration does not fit the machine or its node.
    pub const INCOMPATIBLE_CONFIG: &str = "ERR-02-009";
    /// No such OS image.
    pub const IMAGE_NOT_FOUND: &str = "ERR-02-010";
    /// No such key service.
    pub const KMS_NOT_FOUND: &str = "ERR-02-011";
    /// The node does not answer, or not for this workspace.
    pub const NODE_NOT_ACCESSIBLE: &str = "ERR-02-012";
    /// The OS image cannot be used for this CVM.
    pub const OS_IMAGE_NOT_COMPATIBLE: &str = "ERR-02-013";
    /// The node has no capacity settings.
    pub const NODE_CAPACITY_NOT_CONFIGURED: &str = "ERR-02-014";
    /// The workspace's quota is used up.
    pub const QUOTA_EXCEEDED: &str = "ERR-02-015";
    /// No such CVM.
    pub const CVM_NOT_FOUND: &str = "ERR-03-001";
    /// Several CVMs have this name.
    pub const MULTIPLE_CVMS_SAME_NAME: &str = "ERR-03-002";
    /// The CVM belongs to another workspace.
    pub const CVM_NOT_IN_WORKSPACE: &str = "ERR-03-003";
    /// The caller may not do this to the CVM.
    pub const CVM_ACCESS_DENIED: &str = "ERR-03-005";
    /// The replica's node does not have the OS image.
    pub const REPLICA_IMAGE_NOT_AVAILABLE: &str = "ERR-03-006";
    /// Another CVM has this app id with another compose hash.
    pub const CVM_APP_ID_CONFLICT: &str = "ERR-03-007";
    /// The app id belongs to several CVMs and the route needs one.
    pub const MULTIPLE_CVMS_OF_APP: &str = "ERR-03-010";
    /// Not enough credit.
    pub const INSUFFICIENT_BALANCE: &str = "ERR-04-001";
    /// Too many CVMs.
    pub const MAX_CVM_LIMIT: &str = "ERR-04-002";
    /// Too much of some resource.
    pub const RESOURCE_LIMIT_EXCEEDED: &str = "ERR-04-003";
    /// Too many API keys.
    pub const TOKEN_LIMIT_EXCEEDED: &str = "ERR-05-001";
    /// Too many requests.
    pub const TOKEN_RATE_LIMIT: &str = "ERR-05-002";
    /// The e-mail address cannot be used.
    pub const OAUTH_EMAIL_INVALID: &str = "ERR-06-001";
    /// The key lacks a scope.
    pub const PERMISSION_DENIED: &str = "ERR-06-006";
}

/// One thing that is wrong with a request, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldError {
    /// `body`, `query`, `path` or `header`, then the names that lead to the field.
    #[serde(default, deserialize_with = "texts")]
    pub loc: Vec<String>,
    /// What is wrong and what would be right, for people.
    pub msg: String,
    /// What is wrong, for programs: `missing`, `int_type`, `string_too_short` …
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The limit that was passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub ctx: Option<Value>,
    /// What was sent. Left out for secrets and for long texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
}

impl FieldError {
    /// A finding about a field of the body.
    pub fn body(field: &str, kind: &str, msg: impl Into<String>) -> Self {
        Self {
            loc: vec!["body".into(), field.into()],
            msg: msg.into(),
            kind: kind.into(),
            ctx: None,
            input: None,
        }
    }

    /// A finding about a query parameter.
    pub fn query(name: &str, kind: &str, msg: impl Into<String>) -> Self {
        Self { loc: vec!["query".into(), name.into()], ..Self::body(name, kind, msg) }
    }

    /// A finding about a header.
    pub fn header(name: &str, kind: &str, msg: impl Into<String>) -> Self {
        Self { loc: vec!["header".into(), name.into()], ..Self::body(name, kind, msg) }
    }

    /// The field's name as clients show it: `loc` without its first word, joined with dots.
    pub fn field(&self) -> String {
        let rest = match self.loc.split_first() {
            Some((first, rest)) if matches!(first.as_str(), "body" | "query" | "path" | "header") => rest,
            _ => &self.loc,
        };
        rest.join(".")
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field(), self.msg)
    }
}

/// Texts, or numbers where a server counts list entries.
fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let parts = Vec::<Value>::deserialize(from)?;
    Ok(parts
        .into_iter()
        .map(|part| match part {
            Value::String(text) => text,
            other => other.to_string(),
        })
        .collect())
}

/// A field and its value, or a sentence about it, in a structured error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Detail {
    /// The field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Its value. Never `null`: clients read that as a value of the wrong type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A page that explains more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Link {
    /// Absolute address.
    pub url: String,
    /// What it leads to.
    pub label: String,
}

/// The error form with a code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Structured {
    /// One of [`codes`].
    pub error_code: String,
    /// What is wrong, for people. Not empty.
    pub message: String,
    /// The fields concerned.
    #[serde(default)]
    pub details: Vec<Detail>,
    /// What to do about it.
    #[serde(default)]
    pub suggestions: Vec<String>,
    /// Where to read more.
    #[serde(default)]
    pub links: Vec<Link>,
    /// The id of the request, to be found in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// The body of an answer outside 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum ErrorBody {
    /// Something with a code, so that a program can tell it from everything else.
    Structured(Structured),
    /// Fields that are wrong. Status 422.
    Validation {
        /// All of them, not only the first.
        detail: Vec<FieldError>,
    },
    /// A sentence.
    Plain {
        /// What is wrong.
        detail: String,
    },
}

impl ErrorBody {
    /// A sentence and nothing else.
    pub fn plain(detail: impl Into<String>) -> Self {
        Self::Plain { detail: detail.into() }
    }

    /// Wrong fields.
    pub fn validation(detail: Vec<FieldError>) -> Self {
        Self::Validation { detail }
    }

    /// A code and a sentence. [`with`](Self::with) and its siblings add to it.
    pub fn structured(code: &str, message: impl Into<String>) -> Self {
        Self::Structured(Structured {
            error_code: code.into(),
            message: message.into(),
            details: Vec::new(),
            suggestions: Vec::new(),
            links: Vec::new(),
            request_id: None,
        })
    }

    /// The body of a 465: what has to be registered, and where.
    pub fn approval_needed(message: impl Into<String>, ask: &ApprovalNeeded) -> Self {
        let mut body = Self::structured(codes::HASH_REGISTRATION_REQUIRED, message)
            .with("compose_hash", ask.compose_hash.to_string())
            .with("app_id", ask.app_id.to_string())
            .with("device_id", ask.device_id.as_str())
            .with("kms_info", serde_json::to_value(&ask.kms_info).unwrap_or_default());
        // An entry without a value would be read as one of the wrong type.
        for (field, text) in [
            ("commit_token", &ask.commit_token),
            ("commit_url", &ask.commit_url),
            ("api_commit_url", &ask.api_commit_url),
        ] {
            if let Some(text) = text {
                body = body.with(field, text.as_str());
            }
        }
        if let Some(status) = &ask.onchain_status {
            body = body.with("onchain_status", serde_json::to_value(status).unwrap_or_default());
        }
        if let Some(id) = &ask.approval_id {
            body = body.with("approval_id", id.as_str());
        }
        if ask.auto_commit {
            body = body.with("auto_commit", true);
        }
        if !ask.warnings.is_empty() {
            body = body.with("warnings", ask.warnings.clone());
        }
        body.suggest("Register the compose hash on the app contract")
            .suggest("Confirm with the compose hash and the transaction hash")
    }

    /// Adds a field and its value. No effect on the forms without details.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        if let Self::Structured(body) = &mut self {
            body.details.push(Detail { field: Some(field.into()), value: Some(value.into()), message: None });
        }
        self
    }

    /// Adds a sentence about a field. No effect on the forms without details.
    #[must_use]
    pub fn with_message(mut self, field: &str, message: impl Into<String>) -> Self {
        if let Self::Structured(body) = &mut self {
            body.details.push(Detail {
                field: Some(field.into()),
                value: None,
                message: Some(message.into()),
            });
        }
        self
    }

    /// Adds advice. No effect on the forms without suggestions.
    #[must_use]
    pub fn suggest(mut self, text: impl Into<String>) -> Self {
        if let Self::Structured(body) = &mut self {
            body.suggestions.push(text.into());
        }
        self
    }

    /// Adds the id of the request. No effect on the forms without one.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        if let Self::Structured(body) = &mut self {
            body.request_id = Some(id.into());
        }
        self
    }

    /// The code, where there is one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Structured(body) => Some(&body.error_code),
            Self::Validation { .. } | Self::Plain { .. } => None,
        }
    }

    /// One sentence for people.
    pub fn message(&self) -> String {
        match self {
            Self::Structured(body) => body.message.clone(),
            Self::Validation { detail } => {
                detail.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            }
            Self::Plain { detail } => detail.clone(),
        }
    }

    /// The value of a field in a structured error.
    pub fn value(&self, field: &str) -> Option<&Value> {
        match self {
            Self::Structured(body) => body
                .details
                .iter()
                .find(|detail| detail.field.as_deref() == Some(field))
                .and_then(|detail| detail.value.as_ref()),
            Self::Validation { .. } | Self::Plain { .. } => None,
        }
    }

    /// What a 465 asks for; `None` for any other body.
    pub fn approval(&self) -> Option<ApprovalNeeded> {
        let text = |field| self.value(field).and_then(Value::as_str).map(str::to_owned);
        Some(ApprovalNeeded {
            compose_hash: text("compose_hash")?.parse().ok()?,
            app_id: text("app_id")?.parse().ok()?,
            device_id: text("device_id").unwrap_or_default(),
            kms_info: self.value("kms_info").and_then(|kms| KmsInfo::deserialize(kms).ok())?,
            commit_token: text("commit_token"),
            commit_url: text("commit_url"),
            api_commit_url: text("api_commit_url"),
            onchain_status: self
                .value("onchain_status")
                .and_then(|status| OnchainStatus::deserialize(status).ok()),
            approval_id: text("approval_id"),
            auto_commit: self.value("auto_commit").and_then(Value::as_bool).unwrap_or_default(),
            warnings: self.value("warnings").and_then(|list| Vec::deserialize(list).ok()).unwrap_or_default(),
        })
    }
}

/// What must be registered on a chain before an update can run: the details of a 465.
#[derive(Clone, PartialEq, Eq)]
pub struct ApprovalNeeded {
    /// The hash to register.
    pub compose_hash: ComposeHash,
    /// The app, whose contract it is.
    pub app_id: AppId,
    /// The device that has to be allowed: 64 hex digits.
    pub device_id: String,
    /// The key service that will ask the contract.
    pub kms_info: KmsInfo,
    /// Lets anyone who has it commit the update, once. A secret.
    pub commit_token: Option<String>,
    /// A page where people commit it. Holds the token.
    pub commit_url: Option<String>,
    /// The route where programs commit it.
    pub api_commit_url: Option<String>,
    /// What the contract says at the moment.
    pub onchain_status: Option<OnchainStatus>,
    /// What waits for it, at `/approvals/{id}`. Only this server says so.
    pub approval_id: Option<String>,
    /// The server commits it by itself once it is registered.
    pub auto_commit: bool,
    /// What whoever says yes may not expect, such as an image that the hash does not settle. Only this server says so.
    pub warnings: Vec<String>,
}

impl std::fmt::Debug for ApprovalNeeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApprovalNeeded")
            .field("compose_hash", &self.compose_hash)
            .field("app_id", &self.app_id)
            .field("device_id", &self.device_id)
            .field("has_token", &self.commit_token.is_some())
            .field("onchain_status", &self.onchain_status)
            .finish_non_exhaustive()
    }
}

/// What an app contract allows at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OnchainStatus {
    /// The compose hash is registered.
    pub compose_hash_allowed: bool,
    /// The device is allowed, or any device is.
    pub device_id_allowed: bool,
    /// Both.
    pub is_allowed: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask() -> ApprovalNeeded {
        ApprovalNeeded {
            compose_hash: ComposeHash([0xab; 32]),
            app_id: AppId([0xcd; 20]),
            device_id: "ef".repeat(32),
            kms_info: KmsInfo {
                id: "kms_1".into(),
                slug: None,
                url: "https://kms.example.org".into(),
                version: "v1".into(),
                chain_id: Some(31337),
                kms_contract_address: Some("0x11".into()),
                gateway_app_id: None,
                chain: None,
                custody: None,
                problem: None,
            },
            commit_token: None,
            commit_url: None,
            api_commit_url: None,
            onchain_status: None,
            approval_id: None,
            auto_commit: false,
            warnings: vec![],
        }
    }

    fn fields(body: &ErrorBody) -> Vec<String> {
        match body {
            ErrorBody::Structured(body) => body.details.iter().filter_map(|d| d.field.clone()).collect(),
            ErrorBody::Validation { .. } | ErrorBody::Plain { .. } => Vec::new(),
        }
    }

    #[test]
    fn a_465_leaves_out_what_it_does_not_have() {
        let body = ErrorBody::approval_needed("register first", &ask());
        assert_eq!(fields(&body), ["compose_hash", "app_id", "device_id", "kms_info"]);
        let json = serde_json::to_value(&body).unwrap();
        assert_eq!(json["error_code"], "ERR-01-005");
        assert!(json.get("detail").is_none());
        let kms = json["details"][3]["value"].as_object().unwrap();
        for key in ["id", "slug", "url", "version", "chain_id", "kms_contract_address", "gateway_app_id"] {
            assert!(kms.contains_key(key), "{key}");
        }
    }

    #[test]
    fn a_465_reads_back() {
        let full = ApprovalNeeded {
            commit_token: Some("ct_1".into()),
            commit_url: Some("https://c.example.org/#ct_1".into()),
            api_commit_url: Some("https://c.example.org/api".into()),
            onchain_status: Some(OnchainStatus {
                compose_hash_allowed: false,
                device_id_allowed: true,
                is_allowed: false,
            }),
            approval_id: Some("0198c1d2-0000-7000-8000-000000000000".into()),
            auto_commit: true,
            warnings: vec!["service `web`: pin a digest".into()],
            ..ask()
        };
        for ask in [ask(), full] {
            let text = serde_json::to_string(&ErrorBody::approval_needed("register first", &ask)).unwrap();
            let body: ErrorBody = serde_json::from_str(&text).unwrap();
            assert_eq!(body.approval(), Some(ask.clone()));
            assert!(!format!("{ask:?}").contains("ct_1"));
        }
        assert_eq!(ErrorBody::structured(codes::CVM_NOT_FOUND, "no").approval(), None);
    }

    #[test]
    fn each_form_is_told_from_the_others() {
        let plain: ErrorBody = serde_json::from_value(json!({ "detail": "CVM not found" })).unwrap();
        assert_eq!(plain, ErrorBody::plain("CVM not found"));
        let issues: ErrorBody = serde_json::from_value(json!({
            "detail": [{ "loc": ["body", "gpus", 0, "slot"], "msg": "required" }]
        }))
        .unwrap();
        assert_eq!(issues.message(), "gpus.0.slot: required");
        let coded: ErrorBody =
            serde_json::from_value(json!({ "error_code": "ERR-03-007", "message": "taken" })).unwrap();
        assert_eq!((coded.code(), coded.message().as_str()), (Some(codes::CVM_APP_ID_CONFLICT), "taken"));
    }

    #[test]
    fn nothing_is_null_at_the_top() {
        for body in [
            ErrorBody::plain("x"),
            ErrorBody::validation(vec![FieldError::query("page", "int_type", "must be a whole number")]),
            ErrorBody::structured(codes::INVALID_REQUEST, "x")
                .with_message("disk_size", "can only grow")
                .suggest("grow"),
        ] {
            let json = serde_json::to_value(&body).unwrap();
            assert!(json.as_object().unwrap().values().all(|value| !value.is_null()), "{json}");
        }
    }
}
