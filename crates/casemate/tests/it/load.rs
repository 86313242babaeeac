//! Many clients that change a set of CVMs at random, and write down what they were told.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Answer, Api, Outcome};
use crate::cloud::Cloud;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Asked {
    Create,
    Update,
    Start,
    Stop,
    Shutdown,
    Restart,
    Delete,
}

impl Asked {
    /// The kinds of operation that this may become.
    pub(crate) fn kinds(self) -> &'static [&'static str] {
        match self {
            Self::Create => &["create"],
            Self::Update => &["update"],
            Self::Start => &["start"],
            Self::Stop => &["stop"],
            Self::Shutdown => &["shutdown"],
            // A machine that is off is started.
            Self::Restart => &["restart", "start"],
            Self::Delete => &["delete"],
        }
    }
}

/// One change that was asked for, and all that its client knows about it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// What was asked for.
    pub(crate) asked: Asked,
    /// The CVM, or the name of one to be created.
    pub(crate) cvm: String,
    /// The user config of an update, which no other update has.
    pub(crate) mark: String,
    /// What became of it.
    pub(crate) outcome: Outcome,
    /// Was it sent more than once, because what became of it was unknown?
    pub(crate) repeated: bool,
}

/// The clients and what they share.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
    quit: watch::Sender<bool>,
}

struct Shared {
    slots: Vec<Mutex<Slot>>,
    log: Mutex<Vec<Entry>>,
    wrong: Mutex<Vec<String>>,
    accepted: watch::Sender<u64>,
    witness: Witness,
}

/// Hears of every accepted change at once.
pub(crate) type Witness = Box<dyn Fn(&Entry) + Send + Sync>;

/// A place for one CVM. When it is deleted, somebody creates the next.
#[derive(Default)]
struct Slot {
    cvm: Option<String>,
    creating: bool,
}

/// What clients were told in the end.
#[derive(Default)]
pub(crate) struct Told {
    /// Every change that was asked for.
    pub(crate) log: Vec<Entry>,
    /// Answers that no client should ever get.
    pub(crate) wrong: Vec<String>,
}

impl Load {
    /// Sets `clients` clients on `slots` CVMs. What they do follows from `seed`.
    pub(crate) fn start(cloud: &Cloud, seed: u64, clients: u64, slots: usize) -> Self {
        Self::start_with(cloud, seed, clients, slots, Box::new(|_| ()))
    }

    /// The same with a witness.
    pub(crate) fn start_with(cloud: &Cloud, seed: u64, clients: u64, slots: usize, witness: Witness) -> Self {
        let shared = Arc::new(Shared {
            slots: (0..slots).map(|_| Mutex::default()).collect(),
            log: Mutex::default(),
            wrong: Mutex::default(),
            accepted: watch::Sender::new(0),
            witness,
        });
        let quit = watch::Sender::new(false);
        let mut running = JoinSet::new();
        for number in 0..clients {
            let client = Client {
                number,
                requests: 0,
                api: Api::new(cloud),
                rng: StdRng::seed_from_u64(seed ^ (number << 32)),
                shared: Arc::clone(&shared),
                last_accepted: None,
            };
            running.spawn(client.run(quit.subscribe()));
        }
        Self { shared, clients: running, quit }
    }

    /// Returns when `count` more changes have been accepted.
    pub(crate) async fn accepted(&self, count: u64) {
        let mut accepted = self.shared.accepted.subscribe();
        let goal = *accepted.borrow() + count;
        let enough =
            tokio::time::timeout(Duration::from_secs(30), accepted.wait_for(|now| *now >= goal)).await;
        drop(enough.expect("the server accepts changes").expect("the clients are there"));
    }

    /// No new changes from now on. Clients that do not know what became of one still find out.
    pub(crate) fn end(&self) {
        self.quit.send_replace(true);
    }

    /// Waits for all clients, which needs a running server.
    pub(crate) async fn told(mut self) -> Told {
        self.end();
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("no client panics");
        }
        let shared = Arc::into_inner(self.shared).expect("all clients have ended");
        Told {
            log: shared.log.into_inner().expect("no panic while holding it"),
            wrong: shared.wrong.into_inner().expect("no panic while holding it"),
        }
    }
}

impl Shared {
    fn slot(&self, index: usize) -> MutexGuard<'_, Slot> {
        self.slots[index].lock().expect("no panic while holding it")
    }

    fn write(&self, entry: Entry) {
        if matches!(entry.outcome, Outcome::Ok(_)) {
            (self.witness)(&entry);
            self.accepted.send_modify(|count| *count += 1);
        }
        self.log.lock().expect("no panic while holding it").push(entry);
    }

    fn complain(&self, what: String) {
        self.wrong.lock().expect("no panic while holding it").push(what);
    }
}

struct Client {
    number: u64,
    requests: u64,
    api: Api,
    rng: StdRng,
    shared: Arc<Shared>,
    /// The run in which an operation was last accepted, and its id.
    last_accepted: Option<(u32, String)>,
}

/// A request as it is sent, and sent again.
struct Request {
    method: Method,
    path: String,
    body: Option<Value>,
    key: Option<String>,
}

impl Client {
    async fn run(mut self, quit: watch::Receiver<bool>) {
        while !*quit.borrow() {
            self.requests += 1;
            let index = self.rng.random_range(0..self.shared.slots.len());
            let cvm = {
                let mut slot = self.shared.slot(index);
                let cvm = slot.cvm.clone();
                if cvm.is_none() && std::mem::replace(&mut slot.creating, true) { None } else { Some(cvm) }
            };
            let went_well = match cvm {
                // Somebody else is creating it.
                None => false,
                Some(None) => self.create(index).await,
                Some(Some(cvm)) => self.change(index, cvm).await,
            };
            self.check_last_accepted().await;
            if !went_well {
                let pause = self.rng.random_range(1..50);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
    }

    async fn create(&mut self, index: usize) -> bool {
        let name = format!("m{index:02}-c{}-n{}", self.number, self.requests);
        let document = json!({ "docker_compose_file": compose(self.rng.random_range(0..1000)) });
        let body =
            json!({ "name": name, "compose_file": document, "vcpu": 1, "memory": 1024, "disk_size": 10 });
        let (life, path) = (self.api.life(), "/cvms/provision");
        let provisioned = self.api.send(Method::POST, path, Some(&body), None).await;
        let created = match provisioned {
            Outcome::Ok(answer) => {
                let body =
                    json!({ "app_id": answer.body["app_id"], "compose_hash": answer.body["compose_hash"] });
                // Asked again, with a key or without, the server gives the CVM that it has.
                let key = self.rng.random_bool(0.5).then(|| format!("create-{name}"));
                let request = Request { method: Method::POST, path: "/cvms".into(), body: Some(body), key };
                let (outcome, repeated) = self.send(&request, true).await;
                let created = match &outcome {
                    Outcome::Ok(answer) => answer.text("id").map(str::to_owned),
                    _ => None,
                };
                self.shared.write(Entry {
                    asked: Asked::Create,
                    cvm: name,
                    mark: String::new(),
                    outcome,
                    repeated,
                });
                created
            }
            Outcome::Refused(answer) => {
                self.shared.complain(format!("provision: {answer:?}"));
                None
            }
            Outcome::Unknown(_) | Outcome::NotSent => {
                self.api.next_life(life).await;
                None
            }
        };
        let went_well = created.is_some();
        *self.shared.slot(index) = Slot { cvm: created, creating: false };
        went_well
    }

    async fn change(&mut self, index: usize, cvm: String) -> bool {
        let asked = match self.rng.random_range(0..1000) {
            0..550 => Asked::Update,
            550..800 => Asked::Start,
            800..920 => Asked::Restart,
            920..955 => Asked::Shutdown,
            955..990 => Asked::Stop,
            _ => Asked::Delete,
        };
        let mark = format!("c{}-n{}", self.number, self.requests);
        let (method, path, body) = match asked {
            Asked::Create => unreachable!("is not drawn"),
            Asked::Update => (Method::PATCH, format!("/cvms/{cvm}"), Some(self.patch(&mark))),
            Asked::Start => (Method::POST, format!("/cvms/{cvm}/start"), None),
            Asked::Stop => (Method::POST, format!("/cvms/{cvm}/stop"), None),
            Asked::Shutdown => (Method::POST, format!("/cvms/{cvm}/shutdown"), None),
            Asked::Restart => {
                let force = self.rng.random_bool(0.3);
                (Method::POST, format!("/cvms/{cvm}/restart"), Some(json!({ "force": force })))
            }
            Asked::Delete => (Method::DELETE, format!("/cvms/{cvm}"), None),
        };
        let key = self.rng.random_bool(0.5).then(|| format!("{asked:?}-{mark}"));
        let again = key.is_some();
        let life = self.api.life();
        let (outcome, repeated) = self.send(&Request { method, path, body, key }, again).await;
        let mut went_well = false;
        match &outcome {
            Outcome::Ok(answer) => {
                went_well = true;
                if let Some(id) = answer.text("correlation_id") {
                    self.last_accepted = Some((life, id.to_owned()));
                }
            }
            Outcome::Refused(answer) => self.judge_refusal(asked, answer),
            Outcome::Unknown(_) | Outcome::NotSent => {}
        }
        let gone = match &outcome {
            Outcome::Ok(_) => asked == Asked::Delete,
            Outcome::Refused(answer) => answer.status.as_u16() == 404,
            Outcome::Unknown(_) | Outcome::NotSent => false,
        };
        if gone {
            let mut slot = self.shared.slot(index);
            slot.cvm = slot.cvm.take().filter(|there| *there != cvm);
        }
        self.shared.write(Entry { asked, cvm, mark, outcome, repeated });
        went_well
    }

    /// Some fields in one, and always a user config that no other request has.
    fn patch(&mut self, mark: &str) -> Value {
        let mut patch = json!({ "user_config": mark });
        if self.rng.random_bool(0.3) {
            patch["vcpu"] = self.rng.random_range(1..9).into();
        }
        if self.rng.random_bool(0.3) {
            patch["memory"] = (1024 * self.rng.random_range(1..9)).into();
        }
        if self.rng.random_bool(0.3) {
            patch["docker_compose_file"] = compose(self.rng.random_range(0..1000)).into();
        }
        patch
    }

    /// Sends a request. If it may be sent `again`, then until it is known what became of it.
    async fn send(&mut self, request: &Request, again: bool) -> (Outcome, bool) {
        let mut life = self.api.life();
        let Request { method, path, body, key } = request;
        let mut outcome = self.api.send(method.clone(), path, body.as_ref(), key.as_deref()).await;
        let mut repeated = false;
        while matches!(outcome, Outcome::Unknown(_)) && again {
            repeated = true;
            self.api.next_life(life).await;
            life = self.api.life();
            match self.api.send(method.clone(), path, body.as_ref(), key.as_deref()).await {
                // It is still not known what became of it the first time.
                Outcome::NotSent => {}
                other => outcome = other,
            }
        }
        if matches!(outcome, Outcome::Unknown(_) | Outcome::NotSent) {
            self.api.next_life(life).await;
        }
        (outcome, repeated)
    }

    /// A change may be refused because the CVM is busy or gone, and for no other reason.
    fn judge_refusal(&self, asked: Asked, answer: &Answer) {
        let busy = answer.status.as_u16() == 409 && answer.text("error_code").is_none();
        if !busy && answer.status.as_u16() != 404 {
            self.shared.complain(format!("{asked:?}: {answer:?}"));
        }
    }

    /// What was accepted in an earlier run of the server is known in this one.
    async fn check_last_accepted(&mut self) {
        let Some((life, id)) = self.last_accepted.take() else { return };
        if self.api.life() == life {
            self.last_accepted = Some((life, id));
            return;
        }
        match self.api.send(Method::GET, &format!("/operations/{id}"), None, None).await {
            Outcome::Ok(_) => {}
            Outcome::Refused(answer) => self.shared.complain(format!("operation {id} is lost: {answer:?}")),
            Outcome::Unknown(_) | Outcome::NotSent => self.last_accepted = Some((life, id)),
        }
    }
}

fn compose(tag: u32) -> String {
    format!("services:\n  web:\n    image: web:{tag}\n")
}
