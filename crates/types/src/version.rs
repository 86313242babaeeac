//! Dated versions of the API, as the header `X-Phala-Version` names them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A version of the API. Later dates compare greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ApiVersion {
    /// 2025-05-31, the version of keys made before versions existed.
    V20250531,
    /// 2025-10-28: hosted list items, flat details, numbers as ids.
    V20251028,
    /// 2026-01-21: one CVM shape for lists and details, with a string id; other answers keep numbers.
    V20260121,
    /// 2026-05-22: every id is a string.
    V20260522,
    /// 2026-06-23: key services are shown by contract.
    V20260623,
}

impl ApiVersion {
    /// The newest version.
    pub const LATEST: Self = Self::V20260623;

    /// Every version, oldest first.
    pub const ALL: [Self; 5] =
        [Self::V20250531, Self::V20251028, Self::V20260121, Self::V20260522, Self::V20260623];

    /// The date, as the header carries it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V20250531 => "2025-05-31",
            Self::V20251028 => "2025-10-28",
            Self::V20260121 => "2026-01-21",
            Self::V20260522 => "2026-05-22",
            Self::V20260623 => "2026-06-23",
        }
    }

    /// Lists and details have the newer CVM shape, from 2026-01-21 on.
    pub fn has_cvm_objects(self) -> bool {
        self >= Self::V20260121
    }

    /// CVM and user ids are strings in every answer, from 2026-05-22 on.
    pub fn has_string_ids(self) -> bool {
        self >= Self::V20260522
    }
}

/// The text names no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown API version; supported are 2025-05-31, 2025-10-28, 2026-01-21, 2026-05-22, 2026-06-23 and LATEST"
)]
pub struct UnknownVersion;

impl FromStr for ApiVersion {
    type Err = UnknownVersion;

    /// A date, or `LATEST` in any letter case.
    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("latest") {
            return Ok(Self::LATEST);
        }
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or(UnknownVersion)
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for ApiVersion {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ApiVersion {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for ApiVersion {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::schema::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .enum_values(Some(Self::ALL.map(Self::as_str)))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for ApiVersion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_date_or_latest_in_any_case() {
        for version in ApiVersion::ALL {
            assert_eq!(version.as_str().parse(), Ok(version));
        }
        assert_eq!("Latest".parse(), Ok(ApiVersion::LATEST));
        assert_eq!("2024-01-01".parse::<ApiVersion>(), Err(UnknownVersion));
        assert!(ApiVersion::ALL.is_sorted());
        assert_eq!(ApiVersion::ALL.last(), Some(&ApiVersion::LATEST));
    }
}
