// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

/// A machine that wants to boot, as its key service measured it.
struct AppBootInfo {
    address appId;
    bytes32 composeHash;
    address instanceId;
    bytes32 deviceId;
    bytes32 mrAggregated;
    bytes32 mrSystem;
    bytes32 osImageHash;
    string tcbStatus;
    string[] advisoryIds;
}

/// What a key service asks before it gives keys to a machine.
interface Boot {
    function isAppAllowed(AppBootInfo calldata bootInfo) external view returns (bool isAllowed, string memory reason);
}
