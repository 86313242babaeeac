// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AppBootInfo, Boot} from "./Boot.sol";
import {Owned} from "./Owned.sol";

/// What one app may run, and on which devices. The app's id is the address of its contract.
///
/// Functions and events are those of dstack's app contracts. The code is deployed once; each app is a clone of it, made and
/// set up by the factory in `Kms.sol`.
contract App is Owned, Boot {
    mapping(bytes32 composeHash => bool) public allowedComposeHashes;
    mapping(bytes32 deviceId => bool) public allowedDeviceIds;
    bool public allowAnyDevice;
    bool public requireTcbUpToDate;
    bool private initialized = true;

    event Initialized(uint64 version);
    event ComposeHashAdded(bytes32 composeHash);
    event ComposeHashRemoved(bytes32 composeHash);
    event DeviceAdded(bytes32 deviceId);
    event DeviceRemoved(bytes32 deviceId);
    event AllowAnyDeviceSet(bool allowAny);
    event RequireTcbUpToDateSet(bool required);

    error InvalidInitialization();

    /// Sets a clone up, once. The code itself has been: the line above that says so runs in its constructor, not in a clone.
    function initialize(address owner_, bool requireTcb, bool anyDevice, bytes32 deviceId, bytes32 composeHash) external {
        if (initialized) revert InvalidInitialization();
        initialized = true;
        requireTcbUpToDate = requireTcb;
        allowAnyDevice = anyDevice;
        if (deviceId != 0) _allowDevice(deviceId);
        if (composeHash != 0) _allowComposeHash(composeHash);
        _own(owner_);
        emit Initialized(1);
    }

    function addComposeHash(bytes32 composeHash) external onlyOwner {
        _allowComposeHash(composeHash);
    }

    function removeComposeHash(bytes32 composeHash) external onlyOwner {
        allowedComposeHashes[composeHash] = false;
        emit ComposeHashRemoved(composeHash);
    }

    function addDevice(bytes32 deviceId) external onlyOwner {
        _allowDevice(deviceId);
    }

    function removeDevice(bytes32 deviceId) external onlyOwner {
        allowedDeviceIds[deviceId] = false;
        emit DeviceRemoved(deviceId);
    }

    function setAllowAnyDevice(bool allowAny) external onlyOwner {
        allowAnyDevice = allowAny;
        emit AllowAnyDeviceSet(allowAny);
    }

    function setRequireTcbUpToDate(bool required) external onlyOwner {
        requireTcbUpToDate = required;
        emit RequireTcbUpToDateSet(required);
    }

    function isAppAllowed(AppBootInfo calldata bootInfo) external view returns (bool, string memory) {
        if (bootInfo.appId != address(this)) return (false, "another app");
        if (!allowedComposeHashes[bootInfo.composeHash]) return (false, "compose hash not allowed");
        if (!allowAnyDevice && !allowedDeviceIds[bootInfo.deviceId]) return (false, "device not allowed");
        if (requireTcbUpToDate && keccak256(bytes(bootInfo.tcbStatus)) != keccak256("UpToDate")) {
            return (false, "TCB not up to date");
        }
        return (true, "");
    }

    /// ERC-165: itself, the boot question, and the management functions.
    function supportsInterface(bytes4 interfaceId) external pure returns (bool) {
        return interfaceId == 0x01ffc9a7 || interfaceId == type(Boot).interfaceId || interfaceId == 0x8fd37527;
    }

    function version() external pure returns (uint256) {
        return 2;
    }

    function _allowComposeHash(bytes32 composeHash) private {
        allowedComposeHashes[composeHash] = true;
        emit ComposeHashAdded(composeHash);
    }

    function _allowDevice(bytes32 deviceId) private {
        allowedDeviceIds[deviceId] = true;
        emit DeviceAdded(deviceId);
    }
}
