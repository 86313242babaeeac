//! A chain whose answers are written down by hand.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId, TxHash};
use tokio::sync::Notify;

use crate::ask::{
    Allowed, Block, BootAnswer, BootInfo, Chain, Change, Changes, Error, Evidence, Head, Question,
    Registration, Standing, State, Subject, Verdict, What,
};

/// A chain whose answers are written down by hand. Every change makes a block; one confirmation is enough.
#[derive(Default)]
pub struct Scripted {
    script: Mutex<Script>,
    go: Notify,
}

#[derive(Default)]
struct Script {
    hashes: HashSet<(AppId, ComposeHash)>,
    devices: HashSet<(AppId, DeviceId)>,
    any_device: HashSet<AppId>,
    transactions: HashMap<TxHash, (AppId, ComposeHash)>,
    registered: HashSet<(Address, AppId)>,
    owners: HashMap<AppId, Address>,
    os_images: HashSet<(Address, [u8; 32])>,
    gateways: HashMap<Address, String>,
    log: Vec<(AppId, Change)>,
    blocks: u64,
    timestamp: u64,
    down: bool,
    odd: HashSet<AppId>,
    shallow: HashSet<AppId>,
    silent: bool,
    slow: Duration,
    held: bool,
    questions: Vec<Question>,
}

impl Script {
    fn head(&self) -> Block {
        block(self.blocks + 1)
    }

    fn report(&mut self, app: AppId, what: What, tx: Option<TxHash>) {
        self.blocks += 1;
        let block = self.head();
        let tx = tx.unwrap_or(TxHash(block.hash));
        self.log.push((app, Change { what, block, log_index: 0, tx }));
    }

    fn allowed(&self, app: AppId, hash: ComposeHash, device: DeviceId) -> Allowed {
        Allowed {
            compose_hash: self.hashes.contains(&(app, hash)),
            device: self.any_device.contains(&app) || self.devices.contains(&(app, device)),
        }
    }
}

/// Has `app` in the set, or not.
fn put(set: &mut HashSet<AppId>, app: AppId, there: bool) {
    if there {
        set.insert(app);
    } else {
        set.remove(&app);
    }
}

fn block(number: u64) -> Block {
    let mut hash = [1; 32];
    hash[24..].copy_from_slice(&number.to_be_bytes());
    Block { number, hash }
}

fn device_id(text: &str) -> DeviceId {
    text.parse().expect("a device id is 64 hex digits")
}

impl Scripted {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("nothing panics while holding it")
    }

    async fn asked(&self) -> Result<MutexGuard<'_, Script>, Error> {
        let (silent, slow) = {
            let script = self.script();
            (script.silent, script.slow)
        };
        if silent {
            std::future::pending::<()>().await;
        }
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        let script = self.script();
        if script.down { Err(Error::Unreachable("it is switched off".into())) } else { Ok(script) }
    }

    async fn asked_about(&self, app: AppId) -> Result<MutexGuard<'_, Script>, Error> {
        let script = self.asked().await?;
        if script.odd.contains(&app) { Err(Error::Nonsense(format!("0x{app} is odd"))) } else { Ok(script) }
    }

    /// The contract allows this hash from now on.
    pub fn allow_hash(&self, app: AppId, hash: ComposeHash) {
        let mut script = self.script();
        script.hashes.insert((app, hash));
        script.report(app, What::HashAdded(hash), None);
    }

    /// The contract no longer allows this hash.
    pub fn forbid_hash(&self, app: AppId, hash: ComposeHash) {
        let mut script = self.script();
        script.hashes.remove(&(app, hash));
        script.report(app, What::HashRemoved(hash), None);
    }

    /// The contract allows this device, 64 hex digits, from now on.
    pub fn allow_device(&self, app: AppId, device: &str) {
        let (mut script, device) = (self.script(), device_id(device));
        script.devices.insert((app, device));
        script.report(app, What::DeviceAdded(device), None);
    }

    /// The contract no longer allows this device.
    pub fn forbid_device(&self, app: AppId, device: &str) {
        let (mut script, device) = (self.script(), device_id(device));
        script.devices.remove(&(app, device));
        script.report(app, What::DeviceRemoved(device), None);
    }

    /// The contract allows any device from now on, or only listed ones.
    pub fn set_allow_any_device(&self, app: AppId, any: bool) {
        let mut script = self.script();
        put(&mut script.any_device, app, any);
        script.report(app, What::AnyDevice(any), None);
    }

    /// The transaction is on the chain and registers this hash.
    pub fn register(&self, tx: TxHash, app: AppId, hash: ComposeHash) {
        let mut script = self.script();
        script.transactions.insert(tx, (app, hash));
        script.hashes.insert((app, hash));
        script.report(app, What::HashAdded(hash), Some(tx));
    }

    /// The app has a contract with this owner, and the key service's contract lists it.
    pub fn register_app(&self, kms: Address, app: AppId, owner: Address) {
        let mut script = self.script();
        script.owners.insert(app, owner);
        script.registered.insert((kms, app));
        script.blocks += 1;
    }

    /// The key service's contract allows this OS image from now on.
    pub fn allow_os_image(&self, kms: Address, os_image: [u8; 32]) {
        let mut script = self.script();
        script.os_images.insert((kms, os_image));
        script.blocks += 1;
    }

    /// The key service's contract no longer allows this OS image.
    pub fn forbid_os_image(&self, kms: Address, os_image: [u8; 32]) {
        let mut script = self.script();
        script.os_images.remove(&(kms, os_image));
        script.blocks += 1;
    }

    /// The key service's contract names this gateway.
    pub fn set_gateway(&self, kms: Address, app_id: &str) {
        self.script().gateways.insert(kms, app_id.to_owned());
    }

    /// Blocks in which nothing happens.
    pub fn mine(&self, blocks: u64) {
        self.script().blocks += blocks;
    }

    /// When the newest block was made, in seconds since 1970.
    pub fn set_timestamp(&self, seconds: u64) {
        self.script().timestamp = seconds;
    }

    /// From now on the chain does not answer, or does again.
    pub fn set_down(&self, down: bool) {
        self.script().down = down;
    }

    /// From now on no question is ever answered, or all are again.
    pub fn set_silent(&self, silent: bool) {
        self.script().silent = silent;
    }

    /// From now on whatever is asked takes this long: for [`Chain::state`] once for each subject, and once more.
    pub fn set_slow(&self, takes: Duration) {
        self.script().slow = takes;
    }

    /// From now on nobody can make sense of what this app's contract says, or can again.
    pub fn set_odd(&self, app: AppId, odd: bool) {
        put(&mut self.script().odd, app, odd);
    }

    /// From now on what this app's contract allows has too few confirmations, or has enough again.
    pub fn set_shallow(&self, app: AppId, shallow: bool) {
        put(&mut self.script().shallow, app, shallow);
    }

    /// From now on every [`Question`] waits until [`Scripted::let_go`].
    pub fn hold(&self) {
        self.script().held = true;
    }

    /// Questions that wait are answered, and those to come at once.
    pub fn let_go(&self) {
        self.script().held = false;
        self.go.notify_waiters();
    }

    /// Every [`Question`] that was asked, in order.
    pub fn questions(&self) -> Vec<Question> {
        self.script().questions.clone()
    }
}

#[async_trait]
impl Chain for Scripted {
    async fn check(&self, question: &Question) -> Result<Verdict, Error> {
        let let_go = self.go.notified();
        if self.script().held {
            let_go.await;
        }
        self.script().questions.push(question.clone());
        let script = self.asked().await?;
        let subject = (question.app_id, question.compose_hash);
        match question.tx.map(|tx| script.transactions.get(&tx)) {
            Some(None) => return Ok(Verdict::NotYet("the transaction is not on the chain yet".into())),
            Some(Some(registered)) if *registered != subject => {
                let message = "the transaction does not register this compose hash on the app's contract";
                return Ok(Verdict::OtherTransaction(message.into()));
            }
            Some(Some(_)) | None => {}
        }
        let allowed = script.allowed(question.app_id, question.compose_hash, question.device_id);
        if !allowed.both() {
            return Ok(Verdict::NotAllowed(allowed));
        }
        let at = |tx| script.log.iter().find(|(_, change)| change.tx == tx).map(|(_, change)| change.block);
        let block = question.tx.and_then(at).unwrap_or(script.head());
        let log_index = question.tx.map(|_| 0);
        Ok(Verdict::Confirmed(Evidence { block: block.number, block_hash: block.hash, log_index }))
    }

    async fn head(&self) -> Result<Head, Error> {
        let script = self.asked().await?;
        Ok(Head { block: script.head(), timestamp: script.timestamp })
    }

    async fn state(&self, subjects: &[Subject]) -> Result<State, Error> {
        for subject in subjects {
            drop(self.asked_about(subject.app_id).await?);
        }
        let script = self.asked().await?;
        let standings = subjects.iter().map(|subject| {
            let now = script.allowed(subject.app_id, subject.compose_hash, subject.device_id);
            Standing { now, confirmed: now.both() && !script.shallow.contains(&subject.app_id) }
        });
        Ok(State { standings: standings.collect(), block: script.head() })
    }

    async fn registration(&self, kms: Address, app: AppId) -> Result<Registration, Error> {
        let script = self.asked().await?;
        Ok(Registration {
            registered: script.registered.contains(&(kms, app)),
            owner: script.owners.get(&app).copied(),
            allow_any_device: script.any_device.contains(&app),
            block: script.head(),
        })
    }

    async fn os_image_allowed(&self, kms: Address, os_image: [u8; 32]) -> Result<bool, Error> {
        Ok(self.asked().await?.os_images.contains(&(kms, os_image)))
    }

    async fn is_app_allowed(&self, kms: Address, boot: &BootInfo) -> Result<BootAnswer, Error> {
        let script = self.asked().await?;
        let allowed = script.allowed(boot.app_id, boot.compose_hash, boot.device_id);
        let refusal = [
            (script.registered.contains(&(kms, boot.app_id)), "App not registered"),
            (script.os_images.contains(&(kms, boot.os_image_hash)), "OS image is not allowed"),
            (allowed.compose_hash, "Compose hash not allowed"),
            (allowed.device, "Device not allowed"),
        ];
        let reason = refusal.into_iter().find(|(holds, _)| !holds).map_or("", |(_, reason)| reason);
        Ok(BootAnswer { allowed: reason.is_empty(), reason: reason.into() })
    }

    async fn gateway_app_id(&self, kms: Address) -> Result<Option<String>, Error> {
        Ok(self.asked().await?.gateways.get(&kms).cloned())
    }

    async fn changes(&self, app: AppId, from_block: u64, to_block: u64) -> Result<Changes, Error> {
        let script = self.asked_about(app).await?;
        let head = script.head();
        let to = to_block.min(head.number);
        let within =
            |(of, change): &&(AppId, Change)| *of == app && (from_block..=to).contains(&change.block.number);
        let changes = script.log.iter().filter(within).map(|(_, change)| *change).collect();
        Ok(Changes { changes, read_to: block(to), head })
    }

    async fn allow_any_device(&self, app: AppId) -> Result<bool, Error> {
        Ok(self.asked().await?.any_device.contains(&app))
    }
}

#[cfg(test)]
mod tests {
    use casemate_types::ids::InstanceId;

    use super::*;

    #[tokio::test]
    async fn all_answers_come_from_one_script() {
        let (chain, kms) = (Scripted::default(), Address([1; 20]));
        let (app, hash, device, tx) =
            (AppId([2; 20]), ComposeHash([3; 32]), DeviceId([4; 32]), TxHash([5; 32]));
        let question =
            Question { chain_id: 1, app_id: app, compose_hash: hash, device_id: device, tx: Some(tx) };
        let subject = Subject { app_id: app, compose_hash: hash, device_id: device };
        let boot = BootInfo {
            app_id: app,
            compose_hash: hash,
            instance_id: InstanceId([6; 20]),
            device_id: device,
            mr_aggregated: [0; 32],
            mr_system: [0; 32],
            os_image_hash: [7; 32],
            tcb_status: "UpToDate".into(),
            advisory_ids: Vec::new(),
        };
        assert!(matches!(chain.check(&question).await.unwrap(), Verdict::NotYet(_)));
        assert!(!chain.is_app_allowed(kms, &boot).await.unwrap().allowed);
        chain.register_app(kms, app, Address([8; 20]));
        chain.allow_os_image(kms, [7; 32]);
        chain.register(tx, app, hash);
        chain.allow_device(app, &device.to_string());
        let Verdict::Confirmed(evidence) = chain.check(&question).await.unwrap() else {
            panic!("not confirmed")
        };
        assert!(chain.state(&[subject]).await.unwrap().standings[0].confirmed);
        assert!(chain.is_app_allowed(kms, &boot).await.unwrap().allowed);
        let changes = chain.changes(app, evidence.block, u64::MAX).await.unwrap();
        let whats: Vec<_> = changes.changes.iter().map(|change| change.what).collect();
        assert_eq!(whats, [What::HashAdded(hash), What::DeviceAdded(device)]);
        assert_eq!((changes.changes[0].tx, changes.changes[0].block.hash), (tx, evidence.block_hash));

        chain.forbid_hash(app, hash);
        let gone = Allowed { compose_hash: false, device: true };
        assert_eq!(chain.check(&question).await.unwrap(), Verdict::NotAllowed(gone));
        assert!(!chain.is_app_allowed(kms, &boot).await.unwrap().allowed);
        chain.set_down(true);
        assert!(chain.state(&[subject]).await.is_err());
    }
}
