//! What somebody has to send to an app's contract, ready to be signed elsewhere.

use std::collections::BTreeSet;

use alloy_primitives::keccak256;
use alloy_sol_types::SolCall;
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId};
use serde_json::{Value, json};

use crate::abi::App;

/// A call of an app's contract that its owner can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Allow a compose hash.
    AddComposeHash(ComposeHash),
    /// Allow it no longer.
    RemoveComposeHash(ComposeHash),
    /// Allow a device.
    AddDevice(DeviceId),
    /// Allow it no longer.
    RemoveDevice(DeviceId),
}

impl Action {
    /// The transaction's data: selector and argument, 36 bytes.
    pub fn calldata(self) -> Vec<u8> {
        match self {
            Self::AddComposeHash(hash) => App::addComposeHashCall { composeHash: hash.0.into() }.abi_encode(),
            Self::RemoveComposeHash(hash) => {
                App::removeComposeHashCall { composeHash: hash.0.into() }.abi_encode()
            }
            Self::AddDevice(device) => App::addDeviceCall { deviceId: device.0.into() }.abi_encode(),
            Self::RemoveDevice(device) => App::removeDeviceCall { deviceId: device.0.into() }.abi_encode(),
        }
    }

    /// The function's name, the argument's name, and the argument as `0x…`.
    pub fn spelled(self) -> (&'static str, &'static str, String) {
        match self {
            Self::AddComposeHash(hash) => ("addComposeHash", "composeHash", format!("0x{hash}")),
            Self::RemoveComposeHash(hash) => ("removeComposeHash", "composeHash", format!("0x{hash}")),
            Self::AddDevice(device) => ("addDevice", "deviceId", format!("0x{device}")),
            Self::RemoveDevice(device) => ("removeDevice", "deviceId", format!("0x{device}")),
        }
    }
}

/// An address with `0x` and the letter case of EIP-55, by which wallets find typing errors.
pub fn checksummed(address: impl Into<Address>) -> String {
    alloy_primitives::Address::from(address.into().0).to_checksum(None)
}

/// A file for the Transaction Builder of Safe wallets that makes these calls, in order and in one transaction.
///
/// `created_at_ms` is in milliseconds since 1970. The form is the builder's version 1.0, `BatchFile` in
/// `apps/tx-builder/src/typings/models.ts` of github.com/safe-global/safe-react-apps. Calls are given by name and argument,
/// not as bytes, so that signers read them. It has the builder's checksum: without one, or after a change, the builder warns
/// that the file was modified. Which Safe signs is not known here.
pub fn safe_batch(chain_id: u64, created_at_ms: u64, name: &str, calls: &[(AppId, Action)]) -> Value {
    let transactions: Vec<_> = calls
        .iter()
        .map(|(app, action)| {
            let (function, argument, value) = action.spelled();
            json!({
                "to": checksummed(*app),
                "value": "0",
                "data": null,
                "contractMethod": {
                    "inputs": [{ "internalType": "bytes32", "name": argument, "type": "bytes32" }],
                    "name": function,
                    "payable": false,
                },
                "contractInputsValues": { argument: value },
            })
        })
        .collect();
    let mut batch = json!({
        "version": "1.0",
        "chainId": chain_id.to_string(),
        "createdAt": created_at_ms,
        "meta": {
            "name": name,
            "description": "",
            "txBuilderVersion": BUILDER,
            "createdFromSafeAddress": "",
            "createdFromOwnerAddress": "",
        },
        "transactions": transactions,
    });
    batch["meta"]["checksum"] = json!(checksum(&batch));
    batch
}

/// The Transaction Builder whose files ours are like.
const BUILDER: &str = "1.18.2";

/// The checksum of a batch that has none yet, as `lib/checksum.ts` of the builder makes it: Keccak-256 of a text of its own kind,
/// in which the batch has no name.
fn checksum(batch: &Value) -> String {
    let mut nameless = batch.clone();
    nameless["meta"]["name"] = Value::Null;
    let mut text = String::new();
    write_sorted(&nameless, &mut text);
    keccak256(text).to_string()
}

/// Of an object the list of its keys comes first, sorted, and then each value with a comma.
fn write_sorted(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            let keys: BTreeSet<_> = map.keys().collect();
            text.push('{');
            text.push_str(&json!(keys).to_string());
            for key in keys {
                write_sorted(&map[key], text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    text.push(',');
                }
                write_sorted(item, text);
            }
            text.push(']');
        }
        one => text.push_str(&one.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calldata_is_the_selector_and_the_argument() {
        let (hash, device) = (ComposeHash([0xab; 32]), DeviceId([0xcd; 32]));
        for (action, selector, argument) in [
            (Action::AddComposeHash(hash), [0xdf, 0xc7, 0x72, 0x23], hash.0),
            (Action::RemoveComposeHash(hash), [0x67, 0xb3, 0xf2, 0x2c], hash.0),
            (Action::AddDevice(device), [0x2a, 0x81, 0x97, 0x28], device.0),
            (Action::RemoveDevice(device), [0x1d, 0x26, 0x62, 0x00], device.0),
        ] {
            assert_eq!(action.calldata(), [&selector[..], &argument].concat(), "{action:?}");
        }
    }

    #[test]
    fn an_address_is_shown_as_eip_55_says() {
        // The standard's own example.
        let address: Address = "5aaeb6053f3e94c9b9a09f33669435e7ef1beaed".parse().unwrap();
        assert_eq!(checksummed(address), "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed");
    }

    #[test]
    fn a_checksum_is_the_builders() {
        // A file that the builder itself wrote: TRANSACTION_BUILDER_FORMAT_ANALYSIS.md of github.com/5afe/safe-cli-nodejs.
        let input = |name: &str, kind: &str| json!({ "internalType": kind, "name": name, "type": kind });
        let spender = "0x474e5Ded6b5D078163BFB8F6dBa355C3aA5478C8";
        let batch = json!({
            "version": "1.0",
            "chainId": "1",
            "createdAt": 1_761_326_849_944_u64,
            "meta": {
                "name": "Transactions Batch",
                "description": "",
                "txBuilderVersion": "1.18.2",
                "createdFromSafeAddress": "0xA77DE01e157f9f57C7c4A326eeE9C4874D0598b6",
                "createdFromOwnerAddress": "",
            },
            "transactions": [{
                "to": "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48",
                "value": "0",
                "data": null,
                "contractMethod":
                    { "inputs": [input("spender", "address"), input("value", "uint256")], "name": "approve", "payable": false },
                "contractInputsValues": { "spender": spender, "value": "100000000000" },
            }],
        });
        assert_eq!(checksum(&batch), "0x8b5032f716845c8b08bab3d63dbd9ba92e056f3557793cd041e59b84e16aa989");
        // The name is not part of it, everything else is.
        let mut other = batch.clone();
        other["meta"]["name"] = json!("Mine");
        assert_eq!(checksum(&other), checksum(&batch));
        other["transactions"][0]["to"] = json!(spender);
        assert_ne!(checksum(&other), checksum(&batch));
    }

    #[test]
    fn a_safe_batch_names_function_and_argument() {
        let app: AppId = "5aaeb6053f3e94c9b9a09f33669435e7ef1beaed".parse().unwrap();
        let calls = [
            (app, Action::AddComposeHash(ComposeHash([0xab; 32]))),
            (app, Action::AddDevice(DeviceId([0xcd; 32]))),
        ];
        let batch = safe_batch(8453, 1_767_225_600_000, "web-1: update", &calls);
        let input = |name: &str| json!([{ "internalType": "bytes32", "name": name, "type": "bytes32" }]);
        assert_eq!(
            batch,
            json!({
                "version": "1.0",
                "chainId": "8453",
                "createdAt": 1_767_225_600_000_u64,
                "meta": {
                    "name": "web-1: update",
                    "description": "",
                    "txBuilderVersion": "1.18.2",
                    "createdFromSafeAddress": "",
                    "createdFromOwnerAddress": "",
                    "checksum": batch["meta"]["checksum"],
                },
                "transactions": [
                    {
                        "to": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
                        "value": "0",
                        "data": null,
                        "contractMethod":
                            { "inputs": input("composeHash"), "name": "addComposeHash", "payable": false },
                        "contractInputsValues": { "composeHash": format!("0x{}", "ab".repeat(32)) },
                    },
                    {
                        "to": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
                        "value": "0",
                        "data": null,
                        "contractMethod": { "inputs": input("deviceId"), "name": "addDevice", "payable": false },
                        "contractInputsValues": { "deviceId": format!("0x{}", "cd".repeat(32)) },
                    },
                ],
            })
        );
    }
}
