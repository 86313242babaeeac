//! A transaction as the chain takes it: EIP-1559, type 2, without an access list and without money.

use alloy_primitives::keccak256;
use alloy_rlp::{Encodable, Header};
use casemate_types::ids::{Address, TxHash};

use super::wallet::{Signature, Wallet};

const TYPE: u8 = 2;

/// A transaction that is not signed yet.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub(super) chain_id: u64,
    pub(super) nonce: u64,
    /// For who makes the block, in wei for a unit of gas.
    pub(super) max_priority_fee: u128,
    /// In all, in wei for a unit of gas.
    pub(super) max_fee: u128,
    pub(super) gas: u64,
    pub(super) to: Address,
    pub(super) data: Vec<u8>,
}

/// One that is.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    pub(super) raw: Vec<u8>,
    pub(super) hash: TxHash,
}

impl Transaction {
    pub(super) fn sign(&self, wallet: &Wallet) -> Signed {
        let signature = wallet.sign(&keccak256(self.encoded(None)));
        let raw = self.encoded(Some(&signature));
        Signed { hash: TxHash(keccak256(&raw).0), raw }
    }

    /// The most that it can cost, in wei.
    pub(super) fn max_cost(&self) -> u128 {
        self.max_fee.saturating_mul(u128::from(self.gas))
    }

    fn encoded(&self, signature: Option<&Signature>) -> Vec<u8> {
        let mut fields = Vec::new();
        self.chain_id.encode(&mut fields);
        self.nonce.encode(&mut fields);
        self.max_priority_fee.encode(&mut fields);
        self.max_fee.encode(&mut fields);
        self.gas.encode(&mut fields);
        self.to.0.encode(&mut fields);
        // The money.
        0_u8.encode(&mut fields);
        self.data.as_slice().encode(&mut fields);
        // The access list.
        Header { list: true, payload_length: 0 }.encode(&mut fields);
        if let Some(Signature { y_is_odd, r, s }) = signature {
            u8::from(*y_is_odd).encode(&mut fields);
            significant(r).encode(&mut fields);
            significant(s).encode(&mut fields);
        }
        let mut encoded = vec![TYPE];
        Header { list: true, payload_length: fields.len() }.encode(&mut encoded);
        encoded.append(&mut fields);
        encoded
    }
}

/// A number without the zeros in front.
fn significant(number: &[u8; 32]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What viem 2.57 signs.
    #[test]
    fn a_signed_transaction_is_byte_for_byte_what_other_clients_send() {
        let wallet =
            Wallet::from_private_key("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80");
        let call =
            format!("82d548945aaeb6053f3e94c9b9a09f33669435e7ef1beaed80a4dfc77223{}c0", "ab".repeat(32));
        for (nonce, raw) in [
            (
                0,
                format!(
                    "02f89082210580843b9aca0084b2d05e00{call}80a014f194a349ac6b2e7ff91829de31230e6cb4966dcc67d77ce65d0eb2509a6d\
                     b0a052287bcda120898f04a12bf83e5335d4899d644b518a7d1462eaf842da23ae84"
                ),
            ),
            (
                300,
                format!(
                    "02f89282210582012c843b9aca0084b2d05e00{call}80a0cb5d0c64b8f04cda1662328c8fab4c5249f9467b6cd4f82e258db2f423\
                     455a58a07dc7fa1fe8d36c2971b5b6e4d7ceafbba692f840f1885a8c84c5adaca64c8c1e"
                ),
            ),
        ] {
            let transaction = Transaction {
                chain_id: 8453,
                nonce,
                max_priority_fee: 1_000_000_000,
                max_fee: 3_000_000_000,
                gas: 54_600,
                to: "5aaeb6053f3e94c9b9a09f33669435e7ef1beaed".parse().unwrap(),
                data: [&[0xdf, 0xc7, 0x72, 0x23][..], &[0xab; 32]].concat(),
            };
            assert_eq!(hex::encode(transaction.sign(wallet.as_ref().unwrap()).raw), raw, "{nonce}");
        }
    }

    #[test]
    fn numbers_lose_their_zeros() {
        let mut number = [0; 32];
        assert!(significant(&number).is_empty());
        number[30] = 1;
        assert_eq!(significant(&number), [1, 0]);
    }
}
