//! Identifiers: parsed once, at the edge, and never a `String` after that.
//!
//! Hexadecimal ids are read in any letter case with an optional `0x`, and written as lower-case digits without it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Why a text is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct IdError {
    text: String,
    expected: &'static str,
}

impl IdError {
    fn new(text: &str, expected: &'static str) -> Self {
        // An error message repeats what was sent, but not a megabyte of it.
        let mut end = text.len().min(80);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() };
        Self { text, expected }
    }

    /// What would have been right, as a noun phrase ("an app id: 40 hex digits").
    pub fn expected(&self) -> &'static str {
        self.expected
    }
}

fn strip_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

fn bytes_from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $prefix:literal, $expected:literal, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = $pattern))]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The bytes behind the digits.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            fn with_digits<R>(&self, then: impl FnOnce(&str) -> R) -> R {
                let mut digits = [0; $len * 2];
                hex::encode_to_slice(self.0, &mut digits).expect("the buffer has two digits for each byte");
                then(std::str::from_utf8(&digits).expect("hex digits are ASCII"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.with_digits(|digits| f.pad(digits))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let digits = if $prefix.is_empty() { text } else { strip_prefix(text, $prefix).unwrap_or(text) };
                let digits = strip_prefix(digits, "0x").unwrap_or(digits);
                bytes_from_hex(digits).map(Self).ok_or_else(|| IdError::new(text, $expected))
            }
        }

        impl From<[u8; $len]> for $name {
            fn from(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                self.with_digits(|digits| to.serialize_str(digits))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from_text(from)
            }
        }
    };
}

/// Reads a string and parses it.
fn from_text<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<T, D::Error> {
    struct Text<T>(std::marker::PhantomData<T>);
    impl<T: FromStr<Err: fmt::Display>> de::Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    from.deserialize_str(Text(std::marker::PhantomData))
}

hex_id! {
    /// The identity under which keys are derived; on a chain, the address of the app's contract.
    AppId, 20, "app_", "an app id: 40 hex digits", "^[0-9a-f]{40}$"
}

hex_id! {
    /// The identity of one machine of an app, derived from a seed that belongs to the machine.
    InstanceId, 20, "instance_", "an instance id: 40 hex digits", "^[0-9a-f]{40}$"
}

hex_id! {
    /// SHA-256 of the normalised app-compose document.
    ComposeHash, 32, "", "a compose hash: 64 hex digits", "^[0-9a-f]{64}$"
}

hex_id! {
    /// The hash of a transaction on a chain.
    TxHash, 32, "", "a transaction hash: 64 hex digits", "^[0-9a-f]{64}$"
}

hex_id! {
    /// The address of a contract or an account on a chain.
    Address, 20, "", "an address: 40 hex digits", "^[0-9a-f]{40}$"
}

hex_id! {
    /// The identity of a node's processor, as its measurements give it and contracts list it.
    DeviceId, 32, "", "a device id: 64 hex digits", "^[0-9a-f]{64}$"
}

impl From<AppId> for Address {
    fn from(app: AppId) -> Self {
        Self(app.0)
    }
}

impl InstanceId {
    /// The first 20 bytes of SHA-256(seed ‖ app id), as the guest derives it.
    pub fn derive(seed: &[u8; 20], app: &AppId) -> Self {
        let digest: [u8; 32] = Sha256::new().chain_update(seed).chain_update(app.0).finalize().into();
        let mut id = [0; 20];
        id.copy_from_slice(&digest[..20]);
        Self(id)
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Uuid))]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_uuid(text).map(Self).ok_or_else(|| IdError::new(text, $expected))
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from_text(from)
            }
        }
    };
}

/// Dashed or as 32 digits; not the braced and URN forms that the library reads as well.
fn parse_uuid(text: &str) -> Option<Uuid> {
    matches!(text.len(), 32 | 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

uuid_id! {
    /// The id of an operation, which is the `correlation_id` that clients see.
    OperationId, "an operation id: a UUID"
}

uuid_id! {
    /// The UUID of a machine. Written with dashes.
    VmUuid, "a machine UUID"
}

/// The public id of a CVM: `cvm_` and letters or digits. Case matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^cvm_[0-9A-Za-z]+$"))]
#[serde(transparent)]
pub struct CvmUid(String);

impl CvmUid {
    const PREFIX: &str = "cvm_";
    const MAX: usize = 64;

    /// The whole id, prefix included.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CvmUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for CvmUid {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let rest = text.strip_prefix(Self::PREFIX).unwrap_or_default();
        if (1..=Self::MAX).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_alphanumeric()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::new(text, "a CVM id: `cvm_` followed by letters and digits"))
        }
    }
}

impl<'de> Deserialize<'de> for CvmUid {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from_text(from)
    }
}

/// How a path names a CVM. Displayed as the path segment that reads back as the same reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CvmRef {
    /// A UUID with dashes, or its 32 digits.
    Uuid(VmUuid),
    /// 40 digits, bare or after `app_`: an app id and, where no app has it, an instance id. Clients put the
    /// prefix before any 40 digits, whatever their user meant.
    AppOrInstance([u8; 20]),
    /// `0x…` or `app_0x…`, the spelling of a contract address: an app id and nothing else.
    App(AppId),
    /// `instance_…`.
    Instance(InstanceId),
    /// `cvm_…`.
    Uid(CvmUid),
    /// A decimal number, as older API versions give to CVMs.
    Number(i64),
    /// Anything that can be a name. Shorter than [`CvmName`] allows is fine: no such CVM then exists.
    Name(String),
}

impl FromStr for CvmRef {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let unknown = || {
            IdError::new(
                text,
                "a CVM identifier: a UUID, `app_` or `instance_` and 40 hex digits, `cvm_…`, a number or a name",
            )
        };
        if let Some(uuid) = parse_uuid(text) {
            return Ok(Self::Uuid(VmUuid(uuid)));
        }
        if let Some(rest) = strip_prefix(text, "instance_") {
            return rest.parse().map(Self::Instance).map_err(|_| unknown());
        }
        if strip_prefix(text, "cvm_").is_some() {
            return text.parse().map(Self::Uid).map_err(|_| unknown());
        }
        let (prefixed, rest) = match strip_prefix(text, "app_") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if let Some(digits) = strip_prefix(rest, "0x") {
            return bytes_from_hex(digits).map(|bytes| Self::App(AppId(bytes))).ok_or_else(unknown);
        }
        if let Some(bytes) = bytes_from_hex(rest) {
            return Ok(Self::AppOrInstance(bytes));
        }
        if prefixed {
            return Err(unknown());
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Self::Number).map_err(|_| unknown());
        }
        if is_name_like(text) { Ok(Self::Name(text.to_owned())) } else { Err(unknown()) }
    }
}

impl fmt::Display for CvmRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => write!(f, "{}", uuid.0.simple()),
            Self::AppOrInstance(bytes) => write!(f, "app_{}", AppId(*bytes)),
            Self::App(app) => write!(f, "0x{app}"),
            Self::Instance(instance) => write!(f, "instance_{instance}"),
            Self::Uid(uid) => write!(f, "{uid}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl From<VmUuid> for CvmRef {
    fn from(uuid: VmUuid) -> Self {
        Self::Uuid(uuid)
    }
}

impl From<AppId> for CvmRef {
    fn from(app: AppId) -> Self {
        Self::App(app)
    }
}

impl From<InstanceId> for CvmRef {
    fn from(instance: InstanceId) -> Self {
        Self::Instance(instance)
    }
}

impl From<CvmUid> for CvmRef {
    fn from(uid: CvmUid) -> Self {
        Self::Uid(uid)
    }
}

impl From<CvmName> for CvmRef {
    fn from(name: CvmName) -> Self {
        Self::Name(name.0)
    }
}

/// Letters, digits and single hyphens, a letter first, no hyphen last, at most 63.
fn is_name_like(text: &str) -> bool {
    text.len() <= CvmName::MAX
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.contains("--")
        && !text.ends_with('-')
}

/// Why a text cannot be the name of a CVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Fewer than [`CvmName::MIN`] characters.
    #[error("a CVM name has at least 5 characters")]
    TooShort,
    /// More than [`CvmName::MAX`] characters.
    #[error("a CVM name has at most 63 characters")]
    TooLong,
    /// A character or a position that a host name does not have.
    #[error(
        "a CVM name begins with a letter, continues with letters, digits and single hyphens, and does not end with a hyphen"
    )]
    Form,
    /// A path with this name would be read as another kind of identifier.
    #[error("a CVM name must not look like a UUID, an app id or an instance id")]
    ReadsAsId,
    /// A word that the API's own paths use.
    #[error("this CVM name is a word that the API uses in its own paths")]
    Reserved,
}

/// The name of a CVM: a host name of 5 to 63 characters that no other identifier form could read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(
    feature = "openapi",
    schema(value_type = String, min_length = 5, max_length = 63, pattern = "^[A-Za-z](-?[A-Za-z0-9])*$")
)]
#[serde(transparent)]
pub struct CvmName(String);

impl CvmName {
    /// Shortest name.
    pub const MIN: usize = 5;
    /// Longest name, that of a DNS label.
    pub const MAX: usize = 63;

    /// Second segments of `/cvms/…` that a name would hide behind.
    const RESERVED: [&str; 9] = [
        "paginated",
        "provision",
        "instance-ids",
        "refresh-instance-ids",
        "pubkey",
        "from_cvm_configuration",
        "workload",
        "eliza",
        "batch-stop",
    ];

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CvmName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let length = text.chars().count();
        if length < Self::MIN {
            return Err(NameError::TooShort);
        }
        if length > Self::MAX {
            return Err(NameError::TooLong);
        }
        if Self::RESERVED.iter().any(|word| word.eq_ignore_ascii_case(text)) {
            return Err(NameError::Reserved);
        }
        match text.parse() {
            Ok(CvmRef::Name(name)) => Ok(Self(name)),
            Ok(
                CvmRef::Uuid(_)
                | CvmRef::AppOrInstance(_)
                | CvmRef::App(_)
                | CvmRef::Instance(_)
                | CvmRef::Uid(_)
                | CvmRef::Number(_),
            ) => Err(NameError::ReadsAsId),
            Err(_) => Err(NameError::Form),
        }
    }
}

impl fmt::Display for CvmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for CvmName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for CvmName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from_text(from)
    }
}

/// A CVM name made from any text, as the JavaScript client makes one: `MyApp v2` becomes `my-app-v2`.
///
/// `None` when nothing usable is left; the caller then draws a random name, which this crate cannot.
pub fn hostname_from(text: &str) -> Option<CvmName> {
    let mut name = String::with_capacity(text.len() + 4);
    let mut after_lower = false;
    for c in text.chars() {
        if after_lower && c.is_ascii_uppercase() {
            name.push('-');
        }
        after_lower = c.is_ascii_lowercase();
        for c in c.to_lowercase() {
            if c.is_ascii_alphanumeric() {
                name.push(c);
            } else if !name.ends_with('-') {
                name.push('-');
            }
        }
    }
    let name = name.trim_matches('-');
    if name.is_empty() {
        return None;
    }
    let prefix = if name.starts_with(|c: char| c.is_ascii_digit()) || name.len() < CvmName::MIN {
        "dstack-app-"
    } else {
        ""
    };
    let name = format!("{prefix}{name}");
    name[..name.len().min(CvmName::MAX)].trim_end_matches('-').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX40: &str = "3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091";

    fn bytes() -> [u8; 20] {
        bytes_from_hex(HEX40).unwrap()
    }

    #[test]
    fn hex_ids_are_read_in_any_spelling_and_written_in_one() {
        for text in [
            HEX40.to_owned(),
            format!("0x{HEX40}"),
            format!("app_{HEX40}"),
            format!("app_0x{HEX40}"),
            HEX40.to_uppercase(),
        ] {
            let app: AppId = text.parse().unwrap();
            assert_eq!(app.to_string(), HEX40);
            assert_eq!(serde_json::to_string(&app).unwrap(), format!("\"{HEX40}\""));
            assert_eq!(serde_json::from_str::<AppId>(&format!("\"{text}\"")).unwrap(), app);
        }
        assert_eq!(format!("instance_{HEX40}").parse(), Ok(InstanceId(bytes())));
        let error = "app_12".parse::<AppId>().unwrap_err();
        assert_eq!(error.to_string(), "`app_12` is not an app id: 40 hex digits");
        assert!("é".repeat(100).parse::<AppId>().unwrap_err().to_string().len() < 150);
    }

    #[test]
    fn an_instance_id_is_derived_from_seed_and_app() {
        let mut seed = [0; 20];
        for (at, byte) in seed.iter_mut().enumerate() {
            *byte = at as u8;
        }
        let id = InstanceId::derive(&seed, &AppId(bytes()));
        assert_eq!(id.to_string(), "cc0b5c8d498ed19d69fcfa7a3fcfe2660bbefe30");
    }

    #[test]
    fn a_path_names_a_cvm_in_nine_ways() {
        let uuid = VmUuid("1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed".parse().unwrap());
        let cases = [
            ("1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed".to_owned(), CvmRef::Uuid(uuid)),
            ("1B9D6BCDBBFD4B2D9B5DAB8DFBBD4BED".to_owned(), CvmRef::Uuid(uuid)),
            (format!("app_{HEX40}"), CvmRef::AppOrInstance(bytes())),
            (HEX40.to_uppercase(), CvmRef::AppOrInstance(bytes())),
            (format!("0x{HEX40}"), CvmRef::App(AppId(bytes()))),
            (format!("app_0x{HEX40}"), CvmRef::App(AppId(bytes()))),
            (format!("instance_{HEX40}"), CvmRef::Instance(InstanceId(bytes()))),
            ("cvm_x8Kq2Lm9".to_owned(), CvmRef::Uid("cvm_x8Kq2Lm9".parse().unwrap())),
            ("1042".to_owned(), CvmRef::Number(1042)),
            ("hello-tee".to_owned(), CvmRef::Name("hello-tee".to_owned())),
        ];
        for (text, expected) in cases {
            let parsed: CvmRef = text.parse().unwrap();
            assert_eq!(parsed, expected, "{text}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed), "{text}");
        }
    }

    #[test]
    fn a_text_that_can_name_nothing_is_refused() {
        for text in [
            "",
            "app_",
            "app_12",
            "app_hello",
            "instance_",
            "instance_xyz",
            "0x12",
            "cvm_",
            "cvm_a-b",
            "a b",
            "a_b",
            "-a",
            "a-",
            "a--b",
            "99999999999999999999",
            "é",
            "../x",
            "{1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed}",
        ] {
            assert!(text.parse::<CvmRef>().is_err(), "{text:?}");
        }
        assert_eq!("ab".parse(), Ok(CvmRef::Name("ab".into())), "too short to exist, but well formed");
    }

    #[test]
    fn a_name_is_one_that_no_other_form_can_read() {
        for (text, error) in [
            ("abcd", NameError::TooShort),
            (&"a".repeat(64), NameError::TooLong),
            ("1abcd", NameError::Form),
            ("ab--cd", NameError::Form),
            ("abcd-", NameError::Form),
            ("ab_cd", NameError::Form),
            ("naïve", NameError::Form),
            (&"a".repeat(40), NameError::ReadsAsId),
            (&"b".repeat(32), NameError::ReadsAsId),
            ("ab9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed", NameError::ReadsAsId),
            ("paginated", NameError::Reserved),
            ("Batch-Stop", NameError::Reserved),
        ] {
            assert_eq!(text.parse::<CvmName>(), Err(error), "{text}");
        }
        for text in ["hello", "a1b2c", "My-App", &"z".repeat(63), &"g".repeat(40)] {
            assert_eq!(text.parse::<CvmName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_are_made_from_any_text() {
        for (text, name) in [
            ("MyApp v2", Some("my-app-v2")),
            ("web_server.prod", Some("web-server-prod")),
            ("api", Some("dstack-app-api")),
            ("9lives-app", Some("dstack-app-9lives-app")),
            ("--Ünïcode--", Some("n-code")),
            ("", None),
            ("!!!", None),
            ("paginated", None),
        ] {
            assert_eq!(hostname_from(text).as_ref().map(CvmName::as_str), name, "{text}");
        }
        assert_eq!(hostname_from(&"ab-".repeat(40)).unwrap().as_str().len(), 62);
    }
}
