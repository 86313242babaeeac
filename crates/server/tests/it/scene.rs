//! One CVM that runs, somebody who asks for changes, and a look at what came of them on the node.

use casemate_server::config::Config;
use casemate_server::cvm::spec::{Booking, Spec, sha256};
use casemate_server::cvm::state::Cvm;
use casemate_server::driver::sim::SimConfig;
use casemate_server::driver::{Driver, Observed};
use casemate_testkit::World;
use casemate_types::env::{EnvVar, seal};
use serde_json::{Map, Value};

use crate::client::Client;

/// A world, a CVM in it, and its owner.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) client: Client,
    pub(crate) cvm: Cvm,
}

/// Everything about a machine that an update can change, as the node has it; the document as its owner sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) size: Booking,
    pub(crate) image: String,
    pub(crate) user_config: Option<[u8; 32]>,
    pub(crate) sealed_env: Option<[u8; 32]>,
    pub(crate) document: Map<String, Value>,
    pub(crate) boots: u64,
}

impl Scene {
    /// `web-one` runs `web:1` on a node with graphics cards.
    pub(crate) async fn start() -> Self {
        let world =
            World::with(SimConfig::node(1).with_gpus(), Config { dev: true, ..Config::default() }).await;
        let client = Client::of(&world).await;
        let cvm = world.deploy("web-one", "web:1").await;
        Self { world, client, cvm }
    }

    /// The path of something about the CVM.
    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/cvms/{}{rest}", self.cvm.uid)
    }

    /// The record now.
    pub(crate) fn now(&self) -> Cvm {
        self.world.cvm(&self.cvm)
    }

    /// The spec in force now.
    pub(crate) fn spec(&self) -> Spec {
        self.world.app.store.spec(self.cvm.id, self.now().revision).expect("the current spec")
    }

    /// What the node reports.
    pub(crate) async fn seen(&self) -> Observed {
        self.world
            .sim
            .observe(&[self.cvm.vm_uuid])
            .await
            .expect("the node answers")
            .pop()
            .expect("it is there")
    }

    /// What the node has, and the document in force. Both have to agree.
    pub(crate) async fn snapshot(&self) -> Snapshot {
        let (seen, spec) = (self.seen().await, self.spec());
        assert_eq!(seen.compose_hash, spec.compose.hash, "the node runs what is in force");
        Snapshot {
            size: seen.size,
            image: seen.image,
            user_config: seen.user_config_sha256,
            sealed_env: seen.encrypted_env_sha256,
            document: spec.compose.parsed().into_map(),
            boots: seen.boot_count,
        }
    }

    /// Variables sealed for the app, in hex.
    pub(crate) fn sealed(&self, vars: &[(&str, &str)]) -> String {
        let key = self.world.app.kms.env_public_key(&self.cvm.app_id).expect("a key");
        let vars: Vec<_> = vars.iter().map(|(key, value)| EnvVar::new(*key, *value)).collect();
        hex::encode(seal(&key, &vars, sha256(b"ephemeral"), [7; 12]).expect("a good key"))
    }
}
