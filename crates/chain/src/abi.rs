//! The contracts' functions, events and errors, as far as anything here asks for them or calls them.

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
        function setAllowAnyDevice(bool allowAny);
        function owner() view returns (address);

        event ComposeHashAdded(bytes32 composeHash);
        event ComposeHashRemoved(bytes32 composeHash);
        event DeviceAdded(bytes32 deviceId);
        event DeviceRemoved(bytes32 deviceId);
        event AllowAnyDeviceSet(bool allowAny);

        error OwnableUnauthorizedAccount(address account);
        error OwnableInvalidOwner(address owner);
    }

    /// The contract of a key service.
    #[derive(Debug)]
    interface Kms {
        function deployAndRegisterApp(address deployer, bool disableUpgrades, bool allowAnyDevice, bytes32 deviceId, bytes32 composeHash) returns (address);
        function registeredApps(address app) view returns (bool);
        function allowedOsImages(bytes32 osImageHash) view returns (bool);
        function gatewayAppId() view returns (string);
        function isAppAllowed(AppBootInfo bootInfo) view returns (bool isAllowed, string reason);

        event AppDeployedViaFactory(address indexed appId, address indexed deployer);
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::hex;
    use alloy_sol_types::{SolCall, SolError, SolEvent};

    use super::{App, Kms};

    /// What dstack's contracts, compiled from their sources, have.
    #[test]
    fn selectors_and_topics_are_those_of_dstacks_contracts() {
        for (ours, theirs) in [
            (App::addComposeHashCall::SELECTOR, "dfc77223"),
            (App::removeComposeHashCall::SELECTOR, "67b3f22c"),
            (App::allowedComposeHashesCall::SELECTOR, "2f6622e5"),
            (App::addDeviceCall::SELECTOR, "2a819728"),
            (App::removeDeviceCall::SELECTOR, "1d266200"),
            (App::allowedDeviceIdsCall::SELECTOR, "bf8b211b"),
            (App::allowAnyDeviceCall::SELECTOR, "3440a16a"),
            (App::setAllowAnyDeviceCall::SELECTOR, "7c4beeb8"),
            (App::ownerCall::SELECTOR, "8da5cb5b"),
            (App::OwnableUnauthorizedAccount::SELECTOR, "118cdaa7"),
            (Kms::deployAndRegisterAppCall::SELECTOR, "8618169d"),
            (Kms::registeredAppsCall::SELECTOR, "a6c4cce9"),
            (Kms::allowedOsImagesCall::SELECTOR, "9a4e1d18"),
            (Kms::gatewayAppIdCall::SELECTOR, "95f51931"),
            (Kms::isAppAllowedCall::SELECTOR, "1e079198"),
        ] {
            assert_eq!(hex::encode(ours), theirs);
        }
        for (ours, theirs) in [
            (
                App::ComposeHashAdded::SIGNATURE_HASH,
                "fecb34306dd9d8b785b54d65489d06afc8822a0893ddacedff40c50a4942d0af",
            ),
            (
                App::ComposeHashRemoved::SIGNATURE_HASH,
                "755b79bd4b0eeab344d032284a99003b2ddc018b646752ac72d681593a6e8947",
            ),
            (
                App::DeviceAdded::SIGNATURE_HASH,
                "67fc71ab96fe3fa3c6f78e9a00e635d591b7333ce611c0380bc577aac702243b",
            ),
            (
                App::DeviceRemoved::SIGNATURE_HASH,
                "e0862975ac517b0478d308012afabc4bc37c23874a18144d7f2dfb852ff95c2c",
            ),
            (
                App::AllowAnyDeviceSet::SIGNATURE_HASH,
                "bb2cdb6c7b362202d40373f87bc4788301cca658f91711ac1662e1ad2cba4a20",
            ),
            (
                Kms::AppDeployedViaFactory::SIGNATURE_HASH,
                "fd86d7f6962eba3b7a3bf9129c06c0b2f885e1c61ef2c9f0dbb856be0deefdee",
            ),
        ] {
            assert_eq!(hex::encode(ours), theirs);
        }
    }
}
