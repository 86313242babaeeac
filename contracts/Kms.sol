// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {App} from "./App.sol";
import {AppBootInfo, Boot} from "./Boot.sol";
import {Owned} from "./Owned.sol";

/// A key service's register of apps and OS images, and the factory of app contracts.
///
/// Functions and events are those of dstack's KMS contract.
contract Kms is Owned, Boot {
    struct KmsInfo {
        bytes k256Pubkey;
        bytes caPubkey;
        bytes quote;
        bytes eventlog;
    }

    KmsInfo public kmsInfo;
    string public gatewayAppId;
    address public appImplementation;
    mapping(address app => bool) public registeredApps;
    mapping(bytes32 osImageHash => bool) public allowedOsImages;

    event AppRegistered(address appId);
    event AppDeployedViaFactory(address indexed appId, address indexed deployer);
    event OsImageHashAdded(bytes32 osImageHash);
    event OsImageHashRemoved(bytes32 osImageHash);
    event KmsInfoSet(bytes k256Pubkey);
    event GatewayAppIdSet(string gatewayAppId);

    error CloneFailed();

    /// `app` is deployed code of `App.sol`.
    constructor(address owner_, address app) {
        appImplementation = app;
        _own(owner_);
    }

    function deployAndRegisterApp(
        address owner_,
        bool disableUpgrades,
        bool allowAnyDevice,
        bytes32 deviceId,
        bytes32 composeHash
    ) external returns (address) {
        return deployAndRegisterApp(owner_, disableUpgrades, false, allowAnyDevice, deviceId, composeHash);
    }

    /// The second argument, `disableUpgrades`, changes nothing: a clone's code is fixed.
    function deployAndRegisterApp(
        address owner_,
        bool,
        bool requireTcbUpToDate,
        bool allowAnyDevice,
        bytes32 deviceId,
        bytes32 composeHash
    ) public returns (address app) {
        app = _clone(appImplementation);
        App(app).initialize(owner_, requireTcbUpToDate, allowAnyDevice, deviceId, composeHash);
        registerApp(app);
        emit AppDeployedViaFactory(app, msg.sender);
    }

    /// Anyone may: a registered app still decides by itself what it allows.
    function registerApp(address app) public {
        registeredApps[app] = true;
        emit AppRegistered(app);
    }

    function addOsImageHash(bytes32 osImageHash) external onlyOwner {
        allowedOsImages[osImageHash] = true;
        emit OsImageHashAdded(osImageHash);
    }

    function removeOsImageHash(bytes32 osImageHash) external onlyOwner {
        allowedOsImages[osImageHash] = false;
        emit OsImageHashRemoved(osImageHash);
    }

    function setKmsInfo(KmsInfo calldata info) external onlyOwner {
        kmsInfo = info;
        emit KmsInfoSet(info.k256Pubkey);
    }

    function setGatewayAppId(string calldata appId) external onlyOwner {
        gatewayAppId = appId;
        emit GatewayAppIdSet(appId);
    }

    function isAppAllowed(AppBootInfo calldata bootInfo) external view returns (bool, string memory) {
        if (!registeredApps[bootInfo.appId]) return (false, "app not registered");
        if (!allowedOsImages[bootInfo.osImageHash]) return (false, "OS image not allowed");
        return Boot(bootInfo.appId).isAppAllowed(bootInfo);
    }

    /// ERC-165: itself and the boot question.
    function supportsInterface(bytes4 interfaceId) external pure returns (bool) {
        return interfaceId == 0x01ffc9a7 || interfaceId == type(Boot).interfaceId;
    }

    function version() external pure returns (uint256) {
        return 2;
    }

    /// A contract that hands every call to `code` (ERC-1167).
    function _clone(address code) private returns (address clone) {
        bytes memory creation = abi.encodePacked(
            hex"3d602d80600a3d3981f3363d3d373d3d3d363d73", code, hex"5af43d82803e903d91602b57fd5bf3"
        );
        assembly {
            clone := create(0, add(creation, 0x20), mload(creation))
        }
        if (clone == address(0)) revert CloneFailed();
    }
}
