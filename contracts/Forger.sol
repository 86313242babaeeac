// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

/// Reports what no app's contract did. For tests.
contract Forger {
    event ComposeHashAdded(bytes32 composeHash);

    /// The event of an app's contract, from a contract that is none.
    function forge(bytes32 composeHash) external {
        emit ComposeHashAdded(composeHash);
    }
}
