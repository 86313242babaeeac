//! RFC 3339 in UTC with microseconds, always of the same length: some clients sort the texts.
//!
//! Read is any offset, and none at all, which means UTC.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, Serializer, de};

fn parse(text: &str) -> Result<Timestamp, jiff::Error> {
    text.parse().or_else(|error| {
        let civil: DateTime = text.parse().map_err(|_| error)?;
        TimeZone::UTC.to_timestamp(civil)
    })
}

/// Writes a time.
///
/// # Errors
/// Only those of the serializer.
pub fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{time:.6}"))
}

/// Reads a time.
///
/// # Errors
/// Not a time.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
    parse(&text).map_err(de::Error::custom)
}

/// A time or `null`.
pub mod opt {
    use super::{Deserialize, Deserializer, Serializer, Timestamp, de, parse};

    /// Writes a time or `null`.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    /// Reads a time or `null`.
    ///
    /// # Errors
    /// Not a time.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
        let text = Option::<std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.map(|text| parse(&text)).transpose().map_err(de::Error::custom)
    }
}
