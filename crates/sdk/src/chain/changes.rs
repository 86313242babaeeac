//! What owners change on contracts.

use std::fmt::Display;

use alloy_sol_types::SolCall;
use casemate_chain::Action;
use casemate_chain::abi::{App, Kms};
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId, TxHash};
use serde::Serialize;

use super::error::Error;
use super::network::{Network, Problems, app_id, both, compose_hash, device_id};
use super::transact::{Mined, Plan, Transact};
use super::wallet::Wallet;
use crate::call::parsed;

/// A compose hash that was allowed, or is no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ComposeHashChange {
    /// The hash.
    pub compose_hash: ComposeHash,
    /// The app.
    pub app_id: AppId,
    /// Its contract.
    pub app_auth_address: Address,
    /// The transaction that did it.
    pub transaction_hash: TxHash,
    /// The block it is in.
    pub block_number: u64,
    /// What it took, in units of gas.
    pub gas_used: u64,
}

/// A device that was allowed, or is no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceChange {
    /// The app's contract.
    pub app_address: Address,
    /// The device.
    pub device_id: DeviceId,
    /// The transaction that did it.
    pub transaction_hash: TxHash,
    /// The block it is in.
    pub block_number: u64,
    /// What it took, in units of gas.
    pub gas_used: u64,
}

/// Whether any device is allowed, changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AllowAnyDeviceChange {
    /// The app's contract.
    pub app_address: Address,
    /// Any device is allowed from now on, or only those listed.
    pub allow: bool,
    /// The transaction that did it.
    pub transaction_hash: TxHash,
    /// The block it is in.
    pub block_number: u64,
    /// What it took, in units of gas.
    pub gas_used: u64,
}

/// The contract of a new app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppAuth {
    /// The app: its id is the address of its contract.
    pub app_id: AppId,
    /// The contract.
    pub app_auth_address: Address,
    /// Who made it, and owns it.
    pub deployer: Address,
    /// The transaction that did it.
    pub transaction_hash: TxHash,
    /// The block it is in.
    pub block_number: u64,
    /// What it took, in units of gas.
    pub gas_used: u64,
}

/// What the contract of a new app allows from the beginning, nothing by default, and whose it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewApp {
    /// This compose hash.
    pub compose_hash: Option<ComposeHash>,
    /// These devices.
    pub devices: Devices,
    /// Who owns it, a Safe for instance; `None` is the wallet that signs.
    pub owner: Option<Address>,
}

/// Devices that a new app's contract allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Devices {
    /// None yet.
    #[default]
    None,
    /// This one.
    One(DeviceId),
    /// Any.
    Any,
}

impl Network {
    /// Allows a compose hash: what has it can boot and gets the app's keys. Allowing one again changes nothing. Takes
    /// about 55,000 units of gas. [`Transact`] has an example.
    #[doc(alias = "addComposeHash")]
    pub fn add_compose_hash(
        &self,
        wallet: &Wallet,
        app: impl Display,
        hash: impl Display,
    ) -> Transact<ComposeHashChange> {
        let plan = both(app_id(app), compose_hash(hash)).map(|(app, hash)| {
            of_app(app, Action::AddComposeHash(hash).calldata(), move |mined| {
                let is_it = |event: App::ComposeHashAdded| event.composeHash.0 == hash.0;
                let reported = mined.events::<App::ComposeHashAdded>(app.into()).any(is_it);
                hash_changed(app, hash, reported, "the hash is allowed", mined)
            })
        });
        Transact::new(self, wallet, plan)
    }

    /// Allows a compose hash no longer. What runs goes on running, and cannot boot again.
    #[doc(alias = "removeComposeHash")]
    pub fn remove_compose_hash(
        &self,
        wallet: &Wallet,
        app: impl Display,
        hash: impl Display,
    ) -> Transact<ComposeHashChange> {
        let plan = both(app_id(app), compose_hash(hash)).map(|(app, hash)| {
            of_app(app, Action::RemoveComposeHash(hash).calldata(), move |mined| {
                let is_it = |event: App::ComposeHashRemoved| event.composeHash.0 == hash.0;
                let reported = mined.events::<App::ComposeHashRemoved>(app.into()).any(is_it);
                hash_changed(app, hash, reported, "the hash is no longer allowed", mined)
            })
        });
        Transact::new(self, wallet, plan)
    }

    /// Allows a device.
    ///
    /// ```no_run
    /// # async fn example(network: casemate_sdk::chain::Network) -> casemate_sdk::Result<()> {
    /// let wallet = casemate_sdk::chain::Wallet::from_file("owner.key")?;
    /// let (app, device) = ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "cd".repeat(32));
    /// network.add_device(&wallet, app, &device).send().await?;
    /// network.remove_device(&wallet, app, &device).send().await?;
    /// network.set_allow_any_device(&wallet, app, false).send().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "addDevice")]
    pub fn add_device(
        &self,
        wallet: &Wallet,
        app: impl Display,
        device: impl Display,
    ) -> Transact<DeviceChange> {
        let plan = both(app_id(app), device_id(device)).map(|(app, device)| {
            of_app(app, Action::AddDevice(device).calldata(), move |mined| {
                let is_it = |event: App::DeviceAdded| event.deviceId.0 == device.0;
                let reported = mined.events::<App::DeviceAdded>(app.into()).any(is_it);
                device_changed(app, device, reported, "the device is allowed", mined)
            })
        });
        Transact::new(self, wallet, plan)
    }

    /// Allows a device no longer. It still is if any is.
    #[doc(alias = "removeDevice")]
    pub fn remove_device(
        &self,
        wallet: &Wallet,
        app: impl Display,
        device: impl Display,
    ) -> Transact<DeviceChange> {
        let plan = both(app_id(app), device_id(device)).map(|(app, device)| {
            of_app(app, Action::RemoveDevice(device).calldata(), move |mined| {
                let is_it = |event: App::DeviceRemoved| event.deviceId.0 == device.0;
                let reported = mined.events::<App::DeviceRemoved>(app.into()).any(is_it);
                device_changed(app, device, reported, "the device is no longer allowed", mined)
            })
        });
        Transact::new(self, wallet, plan)
    }

    /// Allows any device, or only those that are listed.
    #[doc(alias = "setAllowAnyDevice")]
    pub fn set_allow_any_device(
        &self,
        wallet: &Wallet,
        app: impl Display,
        allow: bool,
    ) -> Transact<AllowAnyDeviceChange> {
        let plan = app_id(app).problems().map(|app| {
            let data = App::setAllowAnyDeviceCall { allowAny: allow }.abi_encode();
            of_app(app, data, move |mined| {
                let is_it = |event: App::AllowAnyDeviceSet| event.allowAny == allow;
                let reported = mined.events::<App::AllowAnyDeviceSet>(app.into()).any(is_it);
                done(mined, reported, "it changed which devices are allowed")?;
                Ok(AllowAnyDeviceChange {
                    app_address: app.into(),
                    allow,
                    transaction_hash: mined.tx,
                    block_number: mined.block_number,
                    gas_used: mined.gas_used,
                })
            })
        });
        Transact::new(self, wallet, plan)
    }

    /// Has the contract of a key service make one for a new app, which the wallet then owns. Takes about 260,000 units of gas.
    ///
    /// ```no_run
    /// # async fn example(hash: casemate_sdk::ids::ComposeHash) -> casemate_sdk::Result<()> {
    /// use casemate_sdk::chain::{Devices, Network, NewApp, Wallet};
    ///
    /// let wallet = Wallet::from_file("owner.key")?;
    /// let kms_contract = "0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512";
    /// let app = NewApp { compose_hash: Some(hash), devices: Devices::Any, owner: None };
    /// let made = Network::new(8453)?.deploy_app_auth(&wallet, kms_contract, app).send().await?;
    /// println!("app {} for {} units of gas", made.app_id, made.gas_used);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "deployAppAuth")]
    pub fn deploy_app_auth(
        &self,
        wallet: &Wallet,
        kms_contract: impl Display,
        app: NewApp,
    ) -> Transact<AppAuth> {
        let deployer = wallet.address();
        let plan = parsed::<Address>("kms_contract", kms_contract).problems().map(|kms| {
            let (any, device) = match app.devices {
                Devices::None => (false, [0; 32]),
                Devices::One(device) => (false, device.0),
                Devices::Any => (true, [0; 32]),
            };
            let call = Kms::deployAndRegisterAppCall {
                deployer: app.owner.unwrap_or(deployer).0.into(),
                disableUpgrades: false,
                allowAnyDevice: any,
                deviceId: device.into(),
                composeHash: app.compose_hash.map_or([0; 32], |hash| hash.0).into(),
            };
            Plan {
                to: kms,
                what: "contract of a key service",
                owner_only: false,
                data: call.abi_encode(),
                done: Box::new(move |mined: &Mined| {
                    let made = mined.events::<Kms::AppDeployedViaFactory>(kms).next();
                    let made =
                        made.ok_or(Error::NotReported { tx: mined.tx, what: "it made one for the app" })?;
                    Ok(AppAuth {
                        app_id: AppId(made.appId.0.0),
                        app_auth_address: Address(made.appId.0.0),
                        deployer,
                        transaction_hash: mined.tx,
                        block_number: mined.block_number,
                        gas_used: mined.gas_used,
                    })
                }),
            }
        });
        Transact::new(self, wallet, plan)
    }
}

fn of_app<R>(
    app: AppId,
    data: Vec<u8>,
    done: impl FnOnce(&Mined) -> Result<R, Error> + Send + 'static,
) -> Plan<R> {
    Plan { to: app.into(), what: "app contract", owner_only: true, data, done: Box::new(done) }
}

fn done(mined: &Mined, reported: bool, what: &'static str) -> Result<(), Error> {
    if reported { Ok(()) } else { Err(Error::NotReported { tx: mined.tx, what }) }
}

fn hash_changed(
    app: AppId,
    hash: ComposeHash,
    reported: bool,
    what: &'static str,
    mined: &Mined,
) -> Result<ComposeHashChange, Error> {
    done(mined, reported, what)?;
    Ok(ComposeHashChange {
        compose_hash: hash,
        app_id: app,
        app_auth_address: app.into(),
        transaction_hash: mined.tx,
        block_number: mined.block_number,
        gas_used: mined.gas_used,
    })
}

fn device_changed(
    app: AppId,
    device: DeviceId,
    reported: bool,
    what: &'static str,
    mined: &Mined,
) -> Result<DeviceChange, Error> {
    done(mined, reported, what)?;
    Ok(DeviceChange {
        app_address: app.into(),
        device_id: device,
        transaction_hash: mined.tx,
        block_number: mined.block_number,
        gas_used: mined.gas_used,
    })
}
