//! The contracts' functions and events, as far as this crate asks for them.

use alloy_sol_types::sol;

sol! {
    /// One machine that wants to boot.
    #[derive(Debug)]
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

    /// The contract of an app.
    #[derive(Debug)]
    interface App {
        function addComposeHash(bytes32 composeHash);
        function removeComposeHash(bytes32 composeHash);
        function allowedComposeHashes(bytes32 composeHash) view returns (bool);
        function addDevice(bytes32 deviceId);
        function removeDevice(bytes32 deviceId);
        function allowedDeviceIds(bytes32 deviceId) view returns (bool);
        function allowAnyDevice() view returns (bool);
        function owner() view returns (address);

        event ComposeHashAdded(bytes32 composeHash);
        event ComposeHashRemoved(bytes32 composeHash);
        event DeviceAdded(bytes32 deviceId);
        event DeviceRemoved(bytes32 deviceId);
        event AllowAnyDeviceSet(bool allowAny);
    }

    /// The contract of a key service.
    #[derive(Debug)]
    interface Kms {
        function registeredApps(address app) view returns (bool);
        function allowedOsImages(bytes32 osImageHash) view returns (bool);
        function gatewayAppId() view returns (string);
        function isAppAllowed(AppBootInfo bootInfo) view returns (bool isAllowed, string reason);
    }
}
