//! New CVMs.

use std::fmt::Display;

use casemate_types::compose::{ComposeDoc, Normalised};
use casemate_types::env::EnvVar;
use casemate_types::error::FieldError;
use casemate_types::ids::{Address, AppId, CvmName, TxHash, VmUuid};
use casemate_types::patch::{CvmCreate, CvmProvision, GpuPatch, Sparse, TxProof};
use casemate_types::wire;
use reqwest::Method;
use serde::Deserialize;

use crate::call::{Call, Parsed, parsed};
use crate::client::Client;
use crate::compose::doc_too_long;
use crate::cvm::Cvm;
use crate::error::{Error, Result};
use crate::operation::{Operation, Target};

/// The size where a request names none.
const DEFAULT_INSTANCE_TYPE: &str = "tdx.small";

/// The first step to a new CVM: [`Client::provision`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use casemate_sdk::types::compose::ComposeDoc;
/// use casemate_sdk::types::patch::CvmProvision;
///
/// let mut doc = ComposeDoc::default();
/// doc.set_docker_compose_file("services:\n  web:\n    image: nginx:alpine\n");
/// let name = "web-1".parse().expect("a name that can be");
/// let wanted = CvmProvision { vcpu: Some(2), memory: Some(4096), ..CvmProvision::new(name, doc) };
/// let found = client.provision(wanted).send().await?;
/// println!("{} would run on node {:?}", found.compose_hash, found.node_id);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Provision {
    client: Client,
    body: CvmProvision,
}

impl Provision {
    fn call(mut self) -> Call {
        let body = &mut self.body;
        if body.instance_type.is_none() && body.vcpu.is_none() && body.memory.is_none() {
            body.instance_type = Some(DEFAULT_INSTANCE_TYPE.to_owned());
        }
        let call = self.client.call(Method::POST, ["cvms", "provision"]);
        call.problems(doc_too_long(&self.body.compose_file)).json(&self.body)
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the fields that are wrong, [`Error::Conflict`] if no node has room, and what every request can
    /// fail with.
    pub async fn send(self) -> Result<wire::ProvisionAnswer> {
        self.call().fetch().await
    }
}

/// The second step to a new CVM: [`Client::create`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Create {
    client: Client,
    body: CvmCreate,
    idempotency_key: Option<String>,
}

impl Create {
    /// Names this request, so that it is carried out once however often it is sent; it is then also repeated when no answer
    /// came. Needs Casemate. [`idempotency_key`](crate::idempotency_key) makes one.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing was provisioned with this app id and hash, or too long ago; [`Error::Conflict`] if the app
    /// has another compose hash; and what every request can fail with.
    pub async fn send(self) -> Result<Operation> {
        let call = self.client.call(Method::POST, ["cvms"]).json(&self.body);
        created(&self.client, call.idempotency_key(self.idempotency_key.as_deref())).await
    }
}

/// Sends what makes a CVM; the operation is about that one.
pub(crate) async fn created(client: &Client, call: Call) -> Result<Operation> {
    /// What of the record is needed. Servers differ in the rest.
    #[derive(Deserialize)]
    struct Made {
        id: wire::NumberOrString,
        vm_uuid: Option<VmUuid>,
    }

    let answer = call.answer().await?;
    let made: Made = answer.json()?;
    let cvm = match made.vm_uuid {
        Some(uuid) => Cvm::new(client.clone(), uuid),
        None => Cvm::new(client.clone(), &made.id),
    };
    Ok(Operation::of(&answer, cvm, Target::Running))
}

/// Both steps at once, with sealed environment variables: [`Client::deploy`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use casemate_sdk::env::EnvVar;
///
/// let op = client
///     .deploy("web-1", "services:\n  web:\n    image: nginx:alpine\n")
///     .env([EnvVar::new("TOKEN", "s3cret")])
///     .vcpu(2)
///     .memory_mb(4096)
///     .send()
///     .await?;
/// op.wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Deploy {
    client: Client,
    name: Parsed<CvmName>,
    doc: ComposeDoc,
    vars: Vec<EnvVar>,
    changes: Changes,
    idempotency_key: Option<String>,
    #[cfg(feature = "chain")]
    owner: Option<(crate::chain::Wallet, Option<crate::chain::Network>)>,
    #[cfg(feature = "chain")]
    contract_owner: Option<Address>,
}

/// What differs from the least that a new CVM needs.
#[derive(Debug, Clone, Default)]
struct Changes {
    instance_type: Option<String>,
    vcpu: Option<u32>,
    memory_mb: Option<u32>,
    disk_gb: Option<u32>,
    image: Option<String>,
    prefer_dev: Option<bool>,
    node_id: Option<i64>,
    region: Option<String>,
    listed: Option<bool>,
    kms: Option<wire::KmsType>,
    app_id: Option<(AppId, u64)>,
    ssh_authorized_keys: Option<Vec<String>>,
    user_config: Option<String>,
    kms_id: Option<String>,
    gpus: Sparse<GpuPatch>,
}

/// The contract that was made for a new app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewContract {
    /// Its address, which is the app's id.
    pub app_id: AppId,
    /// Who made it.
    pub deployer: Address,
    /// The transaction that made it and allowed the compose hash, if it is known.
    pub transaction_hash: Option<TxHash>,
}

impl Deploy {
    /// The whole app-compose document; what is missing in it gets its default. The docker-compose file given first is forgotten.
    pub fn document(mut self, doc: ComposeDoc) -> Self {
        self.doc = doc;
        self
    }

    /// The script that runs before the containers start.
    pub fn pre_launch_script(mut self, script: &str) -> Self {
        self.doc.set_pre_launch_script(script);
        self
    }

    /// Environment variables, sealed for the app before they are sent. They also become the variables that may reach it.
    pub fn env(mut self, vars: impl IntoIterator<Item = EnvVar>) -> Self {
        self.vars = vars.into_iter().collect();
        self
    }

    /// A named size.
    pub fn instance_type(mut self, name: impl Into<String>) -> Self {
        self.changes.instance_type = Some(name.into());
        self
    }

    /// Virtual processors.
    pub fn vcpu(mut self, vcpu: u32) -> Self {
        self.changes.vcpu = Some(vcpu);
        self
    }

    /// Memory, in MB.
    pub fn memory_mb(mut self, memory: u32) -> Self {
        self.changes.memory_mb = Some(memory);
        self
    }

    /// Disk, in GB.
    pub fn disk_gb(mut self, disk: u32) -> Self {
        self.changes.disk_gb = Some(disk);
        self
    }

    /// The OS image, by name or slug.
    pub fn os_image(mut self, image: impl Into<String>) -> Self {
        self.changes.image = Some(image.into());
        self
    }

    /// A development image, which lets its owner in, where no image is named.
    pub fn prefer_dev(mut self, dev: bool) -> Self {
        self.changes.prefer_dev = Some(dev);
        self
    }

    /// The node.
    pub fn node(mut self, id: i64) -> Self {
        self.changes.node_id = Some(id);
        self
    }

    /// The region, if any node of it will do.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.changes.region = Some(region.into());
        self
    }

    /// Shown in the public directory.
    pub fn listed(mut self, listed: bool) -> Self {
        self.changes.listed = Some(listed);
        self
    }

    /// Anyone may read the containers' logs.
    pub fn public_logs(mut self, public: bool) -> Self {
        self.doc.set_flag(casemate_types::compose::Flag::PublicLogs, public);
        self
    }

    /// Anyone may read system information.
    pub fn public_sysinfo(mut self, public: bool) -> Self {
        self.doc.set_flag(casemate_types::compose::Flag::PublicSysinfo, public);
        self
    }

    /// The kind of key service; off chain by default.
    pub fn kms(mut self, kms: wire::KmsType) -> Self {
        self.changes.kms = Some(kms);
        self
    }

    /// The key service, by id or slug: the one to take among several of a kind.
    pub fn kms_id(mut self, id: impl Into<String>) -> Self {
        self.changes.kms_id = Some(id.into());
        self
    }

    /// Who signs for the app's contract, where the key service has one: the contract is then made along the way, allows the
    /// compose hash and the device, and belongs to this wallet. Feature `chain`.
    #[cfg(feature = "chain")]
    pub fn wallet(mut self, wallet: &crate::chain::Wallet) -> Self {
        self.owner = Some((wallet.clone(), None));
        self
    }

    /// The same, with the chain asked at a node of your choice; [`Network::of`](crate::chain::Network::of) the key service by
    /// default.
    #[cfg(feature = "chain")]
    pub fn wallet_on(mut self, wallet: &crate::chain::Wallet, network: crate::chain::Network) -> Self {
        self.owner = Some((wallet.clone(), Some(network)));
        self
    }

    /// Whose the app's contract shall be, a Safe for instance; that of the wallet that signs by default. Feature `chain`.
    #[cfg(feature = "chain")]
    pub fn contract_owner(mut self, owner: Address) -> Self {
        self.contract_owner = Some(owner);
        self
    }

    /// An app id and its number, as [`Client::kms`]'s `next_app_ids` gives them.
    pub fn app_id(mut self, id: AppId, nonce: u64) -> Self {
        self.changes.app_id = Some((id, nonce));
        self
    }

    /// Who may log in to a development image.
    pub fn ssh_authorized_keys<T: Into<String>>(mut self, keys: impl IntoIterator<Item = T>) -> Self {
        self.changes.ssh_authorized_keys = Some(keys.into_iter().map(Into::into).collect());
        self
    }

    /// Text that the guest gets besides the document, not measured.
    pub fn user_config(mut self, text: impl Into<String>) -> Self {
        self.changes.user_config = Some(text.into());
        self
    }

    /// The GPUs the machine shall have.
    pub fn gpus(mut self, gpus: GpuPatch) -> Self {
        self.changes.gpus = Sparse::Value(gpus);
        self
    }

    /// Names the creation, so that it is carried out once however often it is sent; it is then also repeated when no answer
    /// came. Needs Casemate. [`idempotency_key`](crate::idempotency_key) makes one.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Only the first step: what the new CVM would be. Nothing runs.
    ///
    /// # Errors
    /// Those of [`Provision::send`].
    pub async fn provision(&self) -> Result<wire::ProvisionAnswer> {
        let (name, doc, keys) = (self.checked_name()?, self.doc_sent(), self.env_keys());
        let changes = self.changes.clone();
        let body = CvmProvision {
            instance_type: changes.instance_type,
            vcpu: changes.vcpu,
            memory: changes.memory_mb,
            disk_size: changes.disk_gb,
            image: changes.image,
            prefer_dev: changes.prefer_dev,
            node_id: changes.node_id,
            region: changes.region,
            listed: changes.listed,
            kms: changes.kms,
            kms_id: changes.kms_id,
            env_keys: (!keys.is_empty()).then_some(keys),
            app_id: changes.app_id.map(|(id, _)| id),
            nonce: changes.app_id.map(|(_, nonce)| nonce),
            ssh_authorized_keys: changes.ssh_authorized_keys,
            user_config: changes.user_config,
            gpus: changes.gpus,
            ..CvmProvision::new(name, doc)
        };
        self.client.provision(body).send().await
    }

    fn checked_name(&self) -> Result<CvmName> {
        self.name.clone().map_err(|problem| Error::invalid(vec![*problem]))
    }

    fn env_keys(&self) -> Vec<String> {
        self.vars.iter().map(|var| var.key.clone()).collect()
    }

    fn doc_sent(&self) -> ComposeDoc {
        let (mut doc, keys) = (self.doc.clone(), self.env_keys());
        if !keys.is_empty() && doc.get("allowed_envs").is_none() {
            doc.set_allowed_envs(keys);
        }
        doc
    }

    /// The compose hash of what was given, and the text that has it, without asking a server: what is missing in the document
    /// has its default.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that cannot be.
    pub fn normalised(&self) -> Result<Normalised> {
        let (mut doc, keys) = (self.doc_sent().with_defaults(self.checked_name()?.as_str()), self.env_keys());
        // A server takes an empty list for none.
        if !keys.is_empty() && doc.allowed_envs().is_empty() {
            doc.set_allowed_envs(keys);
        }
        Ok(doc.normalise())
    }

    /// Provisions, has the app's contract made if there is to be one, seals the environment variables and creates.
    ///
    /// # Errors
    /// Those of [`provision`](Self::provision) and [`create`](Self::create); [`Error::Invalid`] for an app whose contract has to
    /// be made first, if there is no wallet; with one, `Error::Chain`.
    pub async fn send(self) -> Result<Operation> {
        let provision = self.provision().await?;
        if provision.app_id.is_some() {
            return self.create(provision, None).await;
        }
        #[cfg(feature = "chain")]
        if let Some((wallet, network)) = &self.owner {
            let contract = self.make_contract(&provision, wallet, network.clone()).await?;
            return self.create(provision, Some((&contract).into())).await;
        }
        let text = "the app needs a contract first, and a wallet that signs for it: feature `chain`, `Deploy::wallet`";
        Err(Error::invalid(vec![FieldError::body("wallet", "missing", text)]))
    }

    /// The step in between, where the key service has a contract: has one made for the app that allows what was provisioned.
    ///
    /// A hash cannot be read, so the server's is compared with that of what was given. Where a server is known to make another
    /// document, and that was read, [`Network::deploy_app_auth`](crate::chain::Network::deploy_app_auth) makes the contract.
    ///
    /// # Errors
    /// [`Error::Chain`], with [`chain::Error::OtherComposeHash`](crate::chain::Error::OtherComposeHash) if the server provisioned
    /// something else than was given: nothing was signed then; [`Error::Invalid`] if the server does not say where the key service's contract is.
    #[cfg(feature = "chain")]
    pub async fn make_contract(
        &self,
        provision: &wire::ProvisionAnswer,
        wallet: &crate::chain::Wallet,
        network: Option<crate::chain::Network>,
    ) -> Result<crate::chain::AppAuth> {
        use crate::chain::{Devices, Network, NewApp};

        let missing = || {
            let text = "the server does not name the contract of the key service";
            Error::invalid(vec![FieldError::body("kms_info", "missing", text)])
        };
        let given = self.normalised()?.hash;
        if given != provision.compose_hash {
            let asked = provision.compose_hash;
            return Err(crate::chain::Error::OtherComposeHash { given, asked }.into());
        }
        let kms = provision.kms_info.as_ref().ok_or_else(missing)?;
        let contract = kms.kms_contract_address.as_ref().ok_or_else(missing)?;
        let devices = match provision.device_id.as_deref().filter(|id| !id.is_empty()) {
            None => Devices::None,
            Some(id) => {
                Devices::One(parsed("device_id", id).map_err(|problem| Error::invalid(vec![*problem]))?)
            }
        };
        let owner = self.contract_owner;
        let app = NewApp { compose_hash: Some(provision.compose_hash), devices, owner };
        let network = network.map_or_else(|| Network::of(kms), Ok)?;
        network.deploy_app_auth(wallet, contract, app).send().await
    }

    /// The last step: seals the environment variables and creates what was provisioned. `contract` is that of the app, if one
    /// was made for it.
    ///
    /// # Errors
    /// Those of [`Create::send`]; [`Error::Invalid`] if there is to be a contract and it is not given.
    pub async fn create(
        &self,
        provision: wire::ProvisionAnswer,
        contract: Option<NewContract>,
    ) -> Result<Operation> {
        let app_id = contract.map(|contract| contract.app_id).or(provision.app_id).ok_or_else(|| {
            Error::invalid(vec![FieldError::body(
                "contract_address",
                "missing",
                "the app's contract is needed",
            )])
        })?;
        let encrypted_env = if self.vars.is_empty() {
            None
        } else {
            let key = match &provision.app_env_encrypt_pubkey {
                Some(key) => key.clone(),
                None => {
                    let kms = provision.kms_id.as_deref().unwrap_or("phala");
                    self.client.kms().pubkey(kms, app_id).await?.public_key
                }
            };
            Some(crate::seal::seal(&key, &self.vars)?)
        };
        let env_keys = encrypted_env.is_some().then(|| self.vars.iter().map(|var| var.key.clone()).collect());
        let body = CvmCreate {
            app_id,
            compose_hash: provision.compose_hash,
            encrypted_env,
            env_keys,
            kms_id: provision.kms_id,
            contract_address: contract.map(|contract| contract.app_id),
            deployer_address: contract.map(|contract| format!("0x{}", contract.deployer)),
            transaction_hash: contract.and_then(|contract| contract.transaction_hash).map(TxProof::Tx),
            token: None,
        };
        let send = || {
            let mut create = self.client.create(body.clone());
            create.idempotency_key = self.idempotency_key.clone();
            create.send()
        };
        #[cfg(feature = "chain")]
        if body.transaction_hash.is_some() {
            return crate::chain::seen(send).await;
        }
        send().await
    }
}

#[cfg(feature = "chain")]
impl From<&crate::chain::AppAuth> for NewContract {
    fn from(made: &crate::chain::AppAuth) -> Self {
        Self { app_id: made.app_id, deployer: made.deployer, transaction_hash: Some(made.transaction_hash) }
    }
}

impl Client {
    /// The first step to a new CVM: checks what it shall be and finds a node. The server keeps it for 7 days; nothing runs yet.
    #[doc(alias = "provisionCvm")]
    pub fn provision(&self, body: CvmProvision) -> Provision {
        Provision { client: self.clone(), body }
    }

    /// The second step to a new CVM: makes what was provisioned.
    #[doc(alias = "commitCvmProvision")]
    pub fn create(&self, body: CvmCreate) -> Create {
        Create { client: self.clone(), body, idempotency_key: None }
    }

    /// Makes a CVM out of a docker-compose file. Its name has 5 to 63 letters, digits and single hyphens, a letter first.
    pub fn deploy(&self, name: impl Display, docker_compose: &str) -> Deploy {
        let mut doc = ComposeDoc::default();
        doc.set_docker_compose_file(docker_compose);
        Deploy {
            client: self.clone(),
            name: parsed("name", name),
            doc,
            vars: Vec::new(),
            changes: Changes::default(),
            idempotency_key: None,
            #[cfg(feature = "chain")]
            owner: None,
            #[cfg(feature = "chain")]
            contract_owner: None,
        }
    }
}
