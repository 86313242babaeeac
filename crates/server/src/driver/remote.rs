//! A simulated node in a process of its own, over a Unix socket. It survives the kill of its client, and a call that was
//! on its way then still takes effect, perhaps late: just what makes real nodes hard.
//!
//! Both sides write one JSON document a line: `{"id": 1, "call": "observe", "machines": […]}` there, `{"id": 1, "result":
//! {"Ok": …}}` back. Many calls may be on their way at once; answers come as they are ready, in any order.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use casemate_types::guest::ImageRef;
use casemate_types::ids::VmUuid;
use casemate_types::wire::Sysinfo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;

use super::fault::{Plan, Planned};
use super::sim::{self, Called, Effect, Sim};
use super::{
    Abilities, At, Driver, Error, LogChannel, LogLine, Machine, NodeFacts, Observed, Result, Stop, Stopped,
};
use crate::cvm::spec::Booking;

/// Everything that can be asked of a simulated node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
enum Call {
    Hello,
    Describe,
    EnsureStaged { at: At, machine: Box<Machine> },
    EnsureStopped { at: At, how: Stop },
    EnsureApplied { at: At, machine: Box<Machine> },
    EnsureStarted { at: At },
    EnsureAbsent { at: At },
    Observe { machines: Vec<VmUuid> },
    Inventory,
    Sysinfo { machine: VmUuid },
    Logs { machine: VmUuid, channel: LogChannel },
    Plan { planned: Planned },
    Clear,
    Faults,
    History { machine: VmUuid },
    Calls,
    Used,
    SetFacts { facts: Box<NodeFacts> },
    CorruptCompose { machine: VmUuid },
    PowerCycle { machine: VmUuid },
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    id: u64,
    #[serde(flatten)]
    call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
struct Response {
    id: u64,
    result: Result<Box<RawValue>>,
}

/// Serves `sim` until the listener fails. Dropping the future ends all connections, but no call that has arrived.
///
/// # Errors
/// When no further connection can be accepted.
pub async fn serve(sim: Sim, listener: UnixListener) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        connections.spawn(serve_connection(sim.clone(), stream));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_connection(sim: Sim, stream: UnixStream) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let (answers, mut ready) = mpsc::unbounded_channel::<Response>();
    let write = async move {
        while let Some(response) = ready.recv().await {
            if writer.write_all(&line(&response)).await.is_err() {
                return;
            }
        }
    };
    let read = async move {
        while let Some(text) = lines.next_line().await? {
            let Request { id, call } = serde_json::from_str(&text)?;
            let (sim, answers) = (sim.clone(), answers.clone());
            // On its own: the call goes on when the connection ends.
            tokio::spawn(async move {
                let result = call.run(&sim).await;
                // Nobody may be left to hear it.
                drop(answers.send(Response { id, result }));
            });
        }
        io::Result::Ok(())
    };
    // A client that hears no more may have sent calls that are not read yet, and one that sends no more still listens.
    let (read, ()) = tokio::join!(read, write);
    if let Err(error) = read {
        tracing::warn!(error = &error as &dyn std::error::Error, "a connection to the simulated node broke");
    }
}

impl Call {
    async fn run(self, sim: &Sim) -> Result<Box<RawValue>> {
        match self {
            Self::Hello => json(sim.name()),
            Self::Describe => json(sim.describe().await?),
            Self::EnsureStaged { at, machine } => json(sim.ensure_staged(at, &machine).await?),
            Self::EnsureStopped { at, how } => json(sim.ensure_stopped(at, how).await?),
            Self::EnsureApplied { at, machine } => json(sim.ensure_applied(at, &machine).await?),
            Self::EnsureStarted { at } => json(sim.ensure_started(at).await?),
            Self::EnsureAbsent { at } => json(sim.ensure_absent(at).await?),
            Self::Observe { machines } => json(sim.observe(&machines).await?),
            Self::Inventory => json(sim.inventory().await?),
            Self::Sysinfo { machine } => json(sim.sysinfo(machine).await?),
            Self::Logs { machine, channel } => json(sim.logs(machine, &channel).await?),
            Self::Plan { planned } => json(sim.plan(planned)?),
            Self::Clear => json(sim.clear()?),
            Self::Faults => json(sim.faults()),
            Self::History { machine } => json(sim.history(machine)),
            Self::Calls => json(sim.calls()),
            Self::Used => json(sim.used()),
            Self::SetFacts { facts } => {
                sim.set_facts(*facts);
                json(())
            }
            Self::CorruptCompose { machine } => json(sim.corrupt_compose(machine)?),
            Self::PowerCycle { machine } => json(sim.power_cycle(machine)?),
        }
    }
}

/// A simulated node at the other end of a socket. Connects with the first call, and again after a connection broke.
/// Any trouble with the connection is [`Error::Unreachable`]: the call may have taken effect. Clones share the connection.
#[derive(Clone)]
pub struct RemoteSim(Arc<Remote>);

struct Remote {
    path: PathBuf,
    link: Mutex<Option<Link>>,
    /// Name of the node that is meant, if that is known.
    expected: OnceLock<String>,
}

/// A connection, and who answers on it.
#[derive(Clone)]
struct Link {
    asked: mpsc::UnboundedSender<Asked>,
    name: Arc<str>,
}

/// A call on its way to the connection, and where its result goes.
type Asked = (Call, oneshot::Sender<Result<Box<RawValue>>>);

impl RemoteSim {
    /// The node that listens, or will listen, at `path`.
    pub fn connect(path: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Remote { path: path.into(), link: Mutex::new(None), expected: OnceLock::new() }))
    }

    /// As [`Sim::effects`].
    pub async fn effects(&self, machine: VmUuid) -> Result<Vec<&'static str>> {
        Ok(self.history(machine).await?.iter().map(|effect| effect.change.as_str()).collect())
    }

    /// As [`Sim::history`].
    pub async fn history(&self, machine: VmUuid) -> Result<Vec<Effect>> {
        self.ask(Call::History { machine }).await
    }

    /// As [`Sim::calls`].
    pub async fn calls(&self) -> Result<Vec<Called>> {
        self.ask(Call::Calls).await
    }

    /// As [`Sim::used`].
    pub async fn used(&self) -> Result<Booking> {
        self.ask(Call::Used).await
    }

    /// As [`Sim::set_facts`].
    pub async fn set_facts(&self, facts: NodeFacts) -> Result<()> {
        self.ask(Call::SetFacts { facts: Box::new(facts) }).await
    }

    /// As [`Sim::corrupt_compose`].
    pub async fn corrupt_compose(&self, machine: VmUuid) -> Result<bool> {
        self.ask(Call::CorruptCompose { machine }).await
    }

    /// As [`Sim::power_cycle`].
    pub async fn power_cycle(&self, machine: VmUuid) -> Result<bool> {
        self.ask(Call::PowerCycle { machine }).await
    }

    async fn ask<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let Link { asked, name } = self.link().await?;
        match self.0.expected.get() {
            Some(expected) if **expected != *name && call != Call::Describe => {
                Err(Error::Unreachable(format!("{name} answers where {expected} should be")))
            }
            Some(_) | None => ask(&asked, call).await,
        }
    }

    /// The connection, made anew if there is none.
    async fn link(&self) -> Result<Link> {
        let mut link = self.0.link.lock().await;
        if let Some(link) = link.as_ref().filter(|link| !link.asked.is_closed()) {
            return Ok(link.clone());
        }
        let stream = UnixStream::connect(&self.0.path).await.map_err(|error| {
            Error::Unreachable(format!("no connection to {}: {error}", self.0.path.display()))
        })?;
        let (asked, inbox) = mpsc::unbounded_channel();
        tokio::spawn(carry(stream, inbox));
        let name: String = ask(&asked, Call::Hello).await?;
        Ok(link.insert(Link { asked, name: name.into() }).clone())
    }
}

/// Asks on this connection, whoever is at its other end.
async fn ask<T: DeserializeOwned>(asked: &mpsc::UnboundedSender<Asked>, call: Call) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    let broke = || Error::Unreachable("the connection broke".into());
    asked.send((call, answer)).map_err(|_| broke())?;
    let value = answered.await.map_err(|_| broke())??;
    serde_json::from_str(value.get())
        .map_err(|error| Error::Unreachable(format!("its answer is no answer: {error}")))
}

/// Carries calls over one connection until it breaks or nobody is left to ask. What is not answered by then never will
/// be, and the askers learn it by losing their channel.
async fn carry(stream: UnixStream, mut inbox: mpsc::UnboundedReceiver<Asked>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut waiting = HashMap::new();
    let mut last_id = 0;
    loop {
        tokio::select! {
            asked = inbox.recv() => {
                let Some((call, answer)) = asked else { return };
                last_id += 1;
                waiting.insert(last_id, answer);
                // The other side always reads on, so this ends.
                if writer.write_all(&line(&Request { id: last_id, call })).await.is_err() {
                    return;
                }
            }
            text = lines.next_line() => {
                let Ok(Some(text)) = text else { return };
                let Ok(Response { id, result }) = serde_json::from_str(&text) else { return };
                if let Some(answer) = waiting.remove(&id) {
                    drop(answer.send(result));
                }
            }
        }
    }
}

#[async_trait]
impl Driver for RemoteSim {
    fn kind(&self) -> &'static str {
        "sim"
    }

    fn abilities(&self) -> Abilities {
        sim::ABILITIES
    }

    fn boot_deadline(&self) -> Duration {
        sim::BOOT_DEADLINE
    }

    fn poll_interval(&self) -> Duration {
        sim::POLL_INTERVAL
    }

    fn expect_node(&self, name: &str) {
        // The first one stays: a node is known by its name, and what is known of it does not move to another.
        self.0.expected.get_or_init(|| name.to_owned());
    }

    async fn describe(&self) -> Result<NodeFacts> {
        self.ask(Call::Describe).await
    }

    async fn ensure_staged(&self, at: At, machine: &Machine) -> Result<Vec<ImageRef>> {
        self.ask(Call::EnsureStaged { at, machine: Box::new(machine.clone()) }).await
    }

    async fn ensure_stopped(&self, at: At, how: Stop) -> Result<Stopped> {
        self.ask(Call::EnsureStopped { at, how }).await
    }

    async fn ensure_applied(&self, at: At, machine: &Machine) -> Result<()> {
        self.ask(Call::EnsureApplied { at, machine: Box::new(machine.clone()) }).await
    }

    async fn ensure_started(&self, at: At) -> Result<()> {
        self.ask(Call::EnsureStarted { at }).await
    }

    async fn ensure_absent(&self, at: At) -> Result<()> {
        self.ask(Call::EnsureAbsent { at }).await
    }

    async fn observe(&self, machines: &[VmUuid]) -> Result<Vec<Observed>> {
        self.ask(Call::Observe { machines: machines.to_vec() }).await
    }

    async fn inventory(&self) -> Result<Vec<Observed>> {
        self.ask(Call::Inventory).await
    }

    async fn sysinfo(&self, machine: VmUuid) -> Result<Option<Sysinfo>> {
        self.ask(Call::Sysinfo { machine }).await
    }

    async fn logs(&self, machine: VmUuid, channel: &LogChannel) -> Result<Vec<LogLine>> {
        self.ask(Call::Logs { machine, channel: channel.clone() }).await
    }
}

#[async_trait]
impl Plan for RemoteSim {
    async fn plan(&self, planned: Planned) -> Result<()> {
        self.ask(Call::Plan { planned }).await
    }

    async fn clear(&self) -> Result<()> {
        self.ask(Call::Clear).await
    }

    async fn planned(&self) -> Result<Vec<Planned>> {
        self.ask(Call::Faults).await
    }
}

fn json(value: impl Serialize) -> Result<Box<RawValue>> {
    Ok(to_raw_value(&value).expect("what calls return has text as keys and nothing that can fail"))
}

fn line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("a message has text as keys and nothing that can fail");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::driver::fault::Fault;
    use crate::driver::sim::SimConfig;
    use crate::driver::sim::tests::{at, config, machine};
    use crate::driver::{AfterTimeout, DynDriver};

    struct Served {
        sim: Sim,
        remote: RemoteSim,
        server: tokio::task::JoinHandle<io::Result<()>>,
        folder: tempfile::TempDir,
    }

    impl Served {
        fn new(config: SimConfig) -> Self {
            let sim = Sim::new(config, Clock::manual(1), None, None).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("sim.sock");
            let server = tokio::spawn(serve(sim.clone(), UnixListener::bind(&path).unwrap()));
            Self { sim, remote: RemoteSim::connect(path), server, folder }
        }

        async fn restart(&mut self) {
            self.server.abort();
            assert!((&mut self.server).await.unwrap_err().is_cancelled());
            let path = self.folder.path().join("sim.sock");
            std::fs::remove_file(&path).unwrap();
            self.server = tokio::spawn(serve(self.sim.clone(), UnixListener::bind(&path).unwrap()));
        }
    }

    /// One update with everything that a driver can be asked, in its course.
    async fn story(driver: DynDriver, faults: Arc<dyn Plan>) -> Vec<String> {
        let stop = Stop::Graceful { timeout: Duration::from_secs(10), then: AfterTimeout::GiveUp };
        let lost = Planned { fault: Fault::AnswerLost, once: true, vm: Some(at(1).vm) };
        let mut told = Vec::new();
        macro_rules! tell {
            ($($call:expr;)*) => { $(told.push(format!("{:?}", $call.await));)* };
        }
        tell! {
            driver.describe();
            driver.ensure_staged(at(1), &machine(1));
            driver.ensure_applied(at(1), &machine(1));
            driver.ensure_started(at(1));
            driver.observe(&[at(1).vm]);
            driver.sysinfo(at(1).vm);
            driver.logs(at(1).vm, &LogChannel::Serial);
            driver.logs(at(1).vm, &LogChannel::Container("db".into()));
            faults.plan(lost);
            faults.planned();
            driver.ensure_stopped(at(2), stop);
            driver.ensure_stopped(at(2), stop);
            driver.ensure_started(at(1));
            faults.clear();
            driver.inventory();
            driver.ensure_absent(at(3));
            driver.inventory();
        }
        told
    }

    #[tokio::test(start_paused = true)]
    async fn a_remote_node_tells_the_same_as_a_local_one() {
        let config = SimConfig { call_ms: 20, ..config() };
        let local = Sim::new(config.clone(), Clock::manual(1), None, None).unwrap();
        let told = story(Arc::new(local.clone()), Arc::new(local.clone())).await;
        let Served { sim, remote, .. } = &Served::new(config);
        assert_eq!(story(Arc::new(remote.clone()), Arc::new(remote.clone())).await, told);
        assert_eq!(remote.calls().await, Ok(local.calls()));
        assert_eq!(remote.history(at(1).vm).await, Ok(sim.history(at(1).vm)));
        assert_eq!(remote.effects(at(1).vm).await, Ok(local.effects(at(1).vm)));
    }

    #[tokio::test(start_paused = true)]
    async fn hooks_reach_the_node() {
        let Served { sim, remote, .. } = &Served::new(config());
        remote.ensure_applied(at(1), &machine(1)).await.unwrap();
        remote.ensure_started(at(1)).await.unwrap();
        assert_eq!(remote.used().await, Ok(machine(1).spec.booking()));
        assert_eq!(remote.corrupt_compose(at(1).vm).await, Ok(true));
        assert_eq!(remote.power_cycle(at(1).vm).await, Ok(true));
        let faults = [
            Fault::BootFail { image: Some("dstack-0.5.5".into()), env: None },
            Fault::Refuse,
            Fault::DiskFull,
            Fault::SlowStop { seconds: 9 },
            Fault::StopHangs,
            Fault::Lie,
            Fault::AnswerLost,
        ];
        for fault in faults {
            remote.plan(Planned { fault, once: true, vm: Some(at(1).vm) }).await.unwrap();
        }
        assert_eq!(remote.planned().await, Ok(sim.faults()));
        assert_eq!(sim.faults().len(), 7);
        remote.clear().await.unwrap();
        assert_eq!(sim.faults(), []);
        let facts = NodeFacts { images: vec![], ..config().facts };
        remote.set_facts(facts.clone()).await.unwrap();
        assert_eq!(sim.describe().await, Ok(facts));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_do_not_wait_for_each_other() {
        let Served { sim, remote, .. } = &Served::new(config());
        remote.ensure_applied(at(1), &machine(1)).await.unwrap();
        remote.ensure_started(at(1)).await.unwrap();
        let stop = Stop::Graceful { timeout: Duration::from_secs(60), then: AfterTimeout::GiveUp };
        let vms = [at(1).vm];
        let (_, seen) = tokio::join!(remote.ensure_stopped(at(2), stop), remote.observe(&vms));
        assert_eq!(seen.unwrap()[0].boot_count, 1);
        assert_eq!(
            sim.calls().iter().map(|called| called.call.clone()).collect::<Vec<_>>()[2..],
            ["observe", "ensure_stopped"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_takes_effect_after_its_client_is_gone() {
        let Served { sim, folder, .. } = &Served::new(config());
        sim.plan(Planned { fault: Fault::Slow { seconds: 5 }, once: false, vm: None }).unwrap();
        let mut stream = UnixStream::connect(folder.path().join("sim.sock")).await.unwrap();
        let call = Call::EnsureApplied { at: at(1), machine: Box::new(machine(1)) };
        stream.write_all(&line(&Request { id: 1, call })).await.unwrap();
        drop(stream);
        sim.describe().await.expect("takes as long");
        sim.describe().await.expect("and as long again");
        assert_eq!(sim.effects(at(1).vm), ["apply"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_connection_is_unreachable_and_made_anew() {
        let mut served = Served::new(config());
        served.remote.describe().await.unwrap();
        served.sim.plan(Planned { fault: Fault::Slow { seconds: 5 }, once: true, vm: None }).unwrap();
        let remote = served.remote.clone();
        let (waiting, ()) = tokio::join!(remote.describe(), served.restart());
        assert_eq!(waiting, Err(Error::Unreachable("the connection broke".into())));
        served.remote.describe().await.unwrap();

        let nobody = RemoteSim::connect(served.folder.path().join("nobody.sock"));
        assert!(matches!(nobody.describe().await, Err(Error::Unreachable(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn another_node_at_the_same_place_hears_nothing() {
        let mut served = Served::new(config());
        let sim = served.sim.clone();
        served.remote.expect_node(&sim.name());
        served.remote.ensure_applied(at(1), &machine(1)).await.unwrap();
        let stranger = Sim::new(SimConfig::node(2), Clock::manual(1), None, None).unwrap();
        served.sim = stranger.clone();
        served.restart().await;
        // Perhaps only now it hears that the connection broke.
        drop(served.remote.describe().await);
        let wrong = Error::Unreachable("sim-2 answers where sim-1 should be".into());
        assert_eq!(served.remote.ensure_started(at(1)).await, Err(wrong.clone()));
        assert_eq!(served.remote.observe(&[at(1).vm]).await, Err(wrong));
        assert_eq!(served.remote.describe().await.unwrap().name, "sim-2", "who it is, it is asked");
        assert!(stranger.calls().iter().all(|call| call.call == "describe"), "{:?}", stranger.calls());
        served.sim = sim.clone();
        served.restart().await;
        drop(served.remote.describe().await);
        served.remote.ensure_started(at(1)).await.unwrap();
        assert_eq!(sim.effects(at(1).vm), ["apply", "start"]);
    }

    #[tokio::test(start_paused = true)]
    async fn nonsense_ends_the_connection_and_nothing_else() {
        let Served { remote, folder, .. } = &Served::new(config());
        let mut stream = UnixStream::connect(folder.path().join("sim.sock")).await.unwrap();
        stream.write_all(b"hello\n").await.unwrap();
        let mut lines = BufReader::new(&mut stream).lines();
        assert_eq!(lines.next_line().await.unwrap(), None);
        remote.describe().await.unwrap();
    }
}
