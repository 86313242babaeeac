//! The parts of a node's answers that matter here. Everything else in them is skipped unread, so a transaction or receipt
//! of a type that did not exist when this was written is as good as any other.

use alloy_primitives::hex;
use serde::{Deserialize, Deserializer, de};

/// A number as `0x…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quantity(pub(crate) u64);

/// So many bytes as `0x…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fixed<const N: usize>(pub(crate) [u8; N]);

/// Any number of bytes as `0x…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Data(pub(crate) Vec<u8>);

/// A block without its transactions.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Header {
    pub(crate) number: Quantity,
    pub(crate) hash: Fixed<32>,
    pub(crate) timestamp: Quantity,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Receipt {
    pub(crate) transaction_hash: Fixed<32>,
    /// Some nodes have receipts of transactions that wait; they are in no block.
    pub(crate) block_hash: Option<Fixed<32>>,
    pub(crate) block_number: Option<Quantity>,
    pub(crate) status: Quantity,
    pub(crate) logs: Vec<Log>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Log {
    pub(crate) address: Fixed<20>,
    pub(crate) topics: Vec<Fixed<32>>,
    pub(crate) data: Data,
    pub(crate) block_hash: Fixed<32>,
    pub(crate) block_number: Quantity,
    pub(crate) log_index: Quantity,
    pub(crate) transaction_hash: Fixed<32>,
    #[serde(default)]
    pub(crate) removed: bool,
}

fn text<'de, D: Deserializer<'de>>(from: D) -> Result<std::borrow::Cow<'de, str>, D::Error> {
    // Without the attribute, `Cow` would always copy.
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);
    Text::deserialize(from).map(|Text(text)| text)
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = text(from)?;
        let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number.map(Self).ok_or_else(|| de::Error::custom("expected a number as `0x…`"))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Fixed<N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = text(from)?;
        let bytes = text.strip_prefix("0x").and_then(|digits| hex::decode_to_array(digits).ok());
        bytes.map(Self).ok_or_else(|| de::Error::custom(format_args!("expected {N} bytes as `0x…`")))
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = text(from)?;
        let bytes = text.strip_prefix("0x").and_then(|digits| hex::decode(digits).ok());
        bytes.map(Self).ok_or_else(|| de::Error::custom("expected bytes as `0x…`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_of_an_unknown_type_is_read() {
        let hash = format!("0x{}", "ab".repeat(32));
        let text = format!(
            r#"{{"type":"0x7e","depositNonce":"0x1","logs":[],"status":"0x1","transactionHash":"{hash}",
                "blockHash":"{hash}","blockNumber":"0x10","l1Fee":null,"later":{{"a":[1,2]}}}}"#
        );
        let receipt: Receipt = serde_json::from_str(&text).unwrap();
        assert_eq!((receipt.status, receipt.block_number), (Quantity(1), Some(Quantity(16))));
        assert_eq!(receipt.block_hash, Some(Fixed([0xab; 32])));
    }

    #[test]
    fn numbers_and_bytes_have_one_form() {
        for text in [r#""10""#, r#""0x""#, r#""0x+1""#, r#""0x11112222333344445""#, "16", "null", r#""0xg""#]
        {
            assert!(serde_json::from_str::<Quantity>(text).is_err(), "{text}");
        }
        for text in [r#""0x1""#, r#""0x112233""#, r#""1122""#, "[17,34]", r#""0x0x11""#] {
            assert!(serde_json::from_str::<Fixed<2>>(text).is_err(), "{text}");
        }
        assert_eq!(serde_json::from_str::<Fixed<2>>(r#""0x11FF""#).unwrap(), Fixed([0x11, 0xff]));
        assert_eq!(serde_json::from_str::<Data>(r#""0x""#).unwrap(), Data(Vec::new()));
        assert!(serde_json::from_str::<Data>(r#""0x1""#).is_err());
    }
}
