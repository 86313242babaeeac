//! A chain, and what can be asked there.

use std::fmt;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Bytes, hex};
use alloy_sol_types::SolCall;
use casemate_chain::abi::App;
use casemate_chain::{Node, RpcUrl};
use casemate_types::error::FieldError;
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId};
use casemate_types::wire::KmsInfo;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::Error;
use crate::call::{Parsed, parsed};
use crate::error::Result;

/// How long one exchange with a node may take.
const EXCHANGE: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_secs(2);

/// The public nodes that the JavaScript client uses, too.
const PUBLIC: [(u64, &str); 3] = [
    (1, "https://ethereum.reth.rs/rpc"),
    (8453, "https://mainnet.base.org"),
    // What anvil calls itself, and where it listens, if nobody says otherwise.
    (31337, "http://127.0.0.1:8545"),
];

/// A chain, and the node of it that is asked. Cheap to clone. Connects to nothing before it is used.
///
/// ```no_run
/// # async fn example() -> casemate_sdk::Result<()> {
/// use casemate_sdk::chain::Network;
///
/// let base = Network::at(8453, "https://mainnet.base.org")?;
/// let app = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
/// let hash = "aa8150fb698fa81201284b1e3bf1cc63fa2149ae6bc64f670489a3dfa694e682";
/// println!("may boot: {}", base.check_compose_hash_allowed(app, hash).await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Network {
    node: Arc<Node>,
    poll_every: Duration,
}

/// What has to hold before a machine can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prerequisites {
    /// Any device is allowed.
    pub allow_any_device: bool,
    /// This device is on the contract's list. It need not be if any is allowed.
    pub device_allowed: bool,
    /// The compose hash is allowed.
    pub compose_hash_allowed: bool,
}

impl Prerequisites {
    /// Whether everything holds.
    pub fn all(self) -> bool {
        self.compose_hash_allowed && (self.allow_any_device || self.device_allowed)
    }
}

/// Which devices an app's contract allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedDevices {
    /// The app's contract.
    pub app_address: Address,
    /// Who may change what it allows.
    pub owner: Address,
    /// Any device is allowed.
    pub allow_any_device: bool,
    /// Those of the devices asked about that are allowed; all of them, if any is.
    pub devices: Vec<DeviceId>,
}

impl Network {
    /// The chain with this id, asked at a public node: 1 Ethereum, 8453 Base, 31337 an anvil on this machine.
    ///
    /// # Errors
    /// [`Error::UnknownChain`] for any other.
    pub fn new(chain_id: u64) -> Result<Self> {
        let known = PUBLIC.iter().find(|(id, _)| *id == chain_id);
        let (_, url) = known.ok_or(Error::UnknownChain(chain_id))?;
        Self::at(chain_id, url)
    }

    /// The chain with this id, asked at the node with this RPC address.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if it is no http or https address. It does not repeat the address, which may
    /// hold a key.
    pub fn at(chain_id: u64, rpc_url: &str) -> Result<Self> {
        let url: RpcUrl = rpc_url.parse().map_err(|error: casemate_chain::RpcUrlError| {
            crate::Error::invalid(vec![FieldError::body("rpc_url", "value_error", error.to_string())])
        })?;
        Ok(Self { node: Arc::new(Node::new(chain_id, url, EXCHANGE)), poll_every: POLL })
    }

    /// The chain of a key service's contract, asked at the node that the server names for it, else at a public one.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if the key service has no contract; [`Error::UnknownChain`].
    pub fn of(kms: &KmsInfo) -> Result<Self> {
        let chain_id = chain_of(kms)?;
        let named = kms.chain.as_ref().and_then(|chain| chain["rpcUrls"]["default"]["http"][0].as_str());
        match named {
            Some(url) => Self::at(chain_id, url),
            None => Self::new(chain_id),
        }
    }

    /// How often it is looked whether a transaction is in a block. 2 seconds by default.
    #[must_use]
    pub fn poll_every(mut self, pause: Duration) -> Self {
        self.poll_every = pause;
        self
    }

    pub(super) fn pause(&self) -> Duration {
        self.poll_every
    }

    /// The chain's id.
    pub fn chain_id(&self) -> u64 {
        self.node.chain_id()
    }

    /// Host and port of the node.
    pub fn host(&self) -> String {
        self.node.host()
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// Reads an answer.
    pub(super) fn read<T: DeserializeOwned>(&self, answer: Value) -> Result<T, Error> {
        serde_json::from_value(answer)
            .map_err(|_| self.node.nonsense("answers in another form than was asked for").into())
    }

    /// Whether an app's contract allows a compose hash, now.
    ///
    /// # Errors
    /// [`Error::NoContract`], [`Error::WrongNetwork`], and a node that does not answer, which is never a no.
    #[doc(alias = "checkComposeHashAllowed")]
    pub async fn check_compose_hash_allowed(&self, app: impl Display, hash: impl Display) -> Result<bool> {
        let (app, hash) = valid(both(app_id(app), compose_hash(hash)))?;
        let call = App::allowedComposeHashesCall { composeHash: hash.0.into() };
        Ok(self.view(app, &call).await?)
    }

    /// Whether an app's contract lists a device, now. It may allow any other as well:
    /// [`check_on_chain_prerequisites`](Self::check_on_chain_prerequisites) tells.
    ///
    /// # Errors
    /// Those of [`check_compose_hash_allowed`](Self::check_compose_hash_allowed).
    #[doc(alias = "checkDeviceAllowed")]
    pub async fn check_device_allowed(&self, app: impl Display, device: impl Display) -> Result<bool> {
        let (app, device) = valid(both(app_id(app), device_id(device)))?;
        Ok(self.view(app, &App::allowedDeviceIdsCall { deviceId: device.0.into() }).await?)
    }

    /// What holds already of what a machine needs to boot, all read in one exchange.
    ///
    /// # Errors
    /// Those of [`check_compose_hash_allowed`](Self::check_compose_hash_allowed).
    #[doc(alias = "checkOnChainPrerequisites")]
    pub async fn check_on_chain_prerequisites(
        &self,
        app: impl Display,
        device: impl Display,
        hash: impl Display,
    ) -> Result<Prerequisites> {
        let ((app, device), hash) = valid(both(both(app_id(app), device_id(device)), compose_hash(hash)))?;
        let calls = [
            App::allowAnyDeviceCall {}.abi_encode(),
            App::allowedDeviceIdsCall { deviceId: device.0.into() }.abi_encode(),
            App::allowedComposeHashesCall { composeHash: hash.0.into() }.abi_encode(),
        ];
        let mut answers = self.views(app, calls).await?.into_iter();
        let mut next = || self.flag(app, answers.next().unwrap_or_default());
        Ok(Prerequisites {
            allow_any_device: next()?,
            device_allowed: next()?,
            compose_hash_allowed: next()?,
        })
    }

    /// Who owns an app's contract, and which of these devices it allows. A contract cannot list what it allows.
    ///
    /// ```no_run
    /// # async fn example(device: casemate_sdk::ids::DeviceId) -> casemate_sdk::Result<()> {
    /// let base = casemate_sdk::chain::Network::new(8453)?;
    /// let app = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
    /// let allowed = base.get_allowed_devices(app, [device]).await?;
    /// println!("owned by 0x{}, any device: {}", allowed.owner, allowed.allow_any_device);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`check_compose_hash_allowed`](Self::check_compose_hash_allowed).
    #[doc(alias = "getAllowedDevices")]
    pub async fn get_allowed_devices(
        &self,
        app: impl Display,
        candidates: impl IntoIterator<Item = DeviceId>,
    ) -> Result<AllowedDevices> {
        let app = valid(app_id(app))?;
        let candidates: Vec<_> = candidates.into_iter().collect();
        let mut calls = vec![App::allowAnyDeviceCall {}.abi_encode(), App::ownerCall {}.abi_encode()];
        calls.extend(
            candidates.iter().map(|id| App::allowedDeviceIdsCall { deviceId: id.0.into() }.abi_encode()),
        );
        let mut answers = self.views(app, calls).await?.into_iter();
        let allow_any_device = self.flag(app, answers.next().unwrap_or_default())?;
        let owner = self.decoded::<App::ownerCall>(app, &answers.next().unwrap_or_default())?;
        let mut devices = Vec::new();
        for (device, answer) in candidates.into_iter().zip(answers) {
            if self.flag(app, answer)? || allow_any_device {
                devices.push(device);
            }
        }
        Ok(AllowedDevices { app_address: app.into(), owner: Address(owner.0.0), allow_any_device, devices })
    }

    async fn view<C: SolCall>(&self, app: AppId, call: &C) -> Result<C::Return, Error> {
        let answers = self.views(app, [call.abi_encode()]).await?;
        self.decoded::<C>(app, answers.first().map_or(&[], Vec::as_slice))
    }

    /// What an app's contract returns, at the newest block.
    async fn views(
        &self,
        app: AppId,
        calls: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let calls = calls.into_iter().map(|data| {
            let data = hex::encode_prefixed(data);
            ("eth_call", json!([{ "to": format!("0x{app}"), "data": data }, "latest"]))
        });
        let mut returned = Vec::new();
        for answer in self.node.ask(calls).await? {
            returned.push(match answer {
                Ok(answer) => self.read::<Bytes>(answer)?.into(),
                // Other code, which does not know the function.
                Err(refused) if refused.of_the_contract => return Err(self.no_app(app)),
                Err(refused) => return Err(casemate_chain::NodeError::Refused(refused).into()),
            });
        }
        Ok(returned)
    }

    fn flag(&self, app: AppId, returned: Vec<u8>) -> Result<bool, Error> {
        self.decoded::<App::allowAnyDeviceCall>(app, &returned)
    }

    fn decoded<C: SolCall>(&self, app: AppId, returned: &[u8]) -> Result<C::Return, Error> {
        C::abi_decode_returns(returned).map_err(|_| self.no_app(app))
    }

    pub(super) fn no_app(&self, app: AppId) -> Error {
        Error::NoContract { what: "app contract", address: app.into(), chain_id: self.chain_id() }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({} at {})", self.chain_id(), self.host())
    }
}

/// The chain of a key service's contract.
pub(super) fn chain_of(kms: &KmsInfo) -> Result<u64> {
    kms.chain_id.filter(|id| *id != 0).ok_or_else(|| {
        let what = format!("key service {} has no contract on a chain", kms.slug.as_ref().unwrap_or(&kms.id));
        crate::Error::invalid(vec![FieldError::body("chain_id", "missing", what)])
    })
}

pub(super) fn app_id(text: impl Display) -> Parsed<AppId> {
    parsed("app_id", text)
}

pub(super) fn compose_hash(text: impl Display) -> Parsed<ComposeHash> {
    parsed("compose_hash", text)
}

pub(super) fn device_id(text: impl Display) -> Parsed<DeviceId> {
    parsed("device_id", text)
}

/// Two values, or everything that is wrong with them.
pub(super) fn both<A, B>(a: impl Problems<A>, b: impl Problems<B>) -> Result<(A, B), Vec<FieldError>> {
    match (a.problems(), b.problems()) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(a), Err(b)) => Err([a, b].concat()),
        (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => Err(problems),
    }
}

/// A value, or what is wrong with it.
pub(super) trait Problems<T> {
    fn problems(self) -> Result<T, Vec<FieldError>>;
}

impl<T> Problems<T> for Parsed<T> {
    fn problems(self) -> Result<T, Vec<FieldError>> {
        self.map_err(|problem| vec![*problem])
    }
}

impl<T> Problems<T> for Result<T, Vec<FieldError>> {
    fn problems(self) -> Self {
        self
    }
}

pub(super) fn valid<T>(value: impl Problems<T>) -> Result<T> {
    value.problems().map_err(crate::Error::invalid)
}
