//! Real machines: how long they take from a request to an answer of the app inside, and what the server itself costs beside them.
//!
//! The yardstick of a boot is the very same QEMU process, started by hand with the same arguments in the same folder. QEMU
//! emulates the processor here, on every computer alike; it has all cores for itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use casemate_sdk::{Client, Cvm};
use futures_util::future;

use crate::measure::{Series, bound};
use crate::process::{self, Server};
use crate::report::{Better, Row};
use crate::{Error, Result};

/// How many machines are started together.
const MANY: usize = 10;
const MEMORY_MB: [u32; 2] = [512, 520];
const COMPOSE: &str = "services:\n  web:\n    image: web:1\n    ports: ['80:8080']\n";
/// Longer than this nothing may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// An answer that takes longer than this is none.
const SILENT: Duration = Duration::from_millis(500);

/// Deploys and updates machines. `casemate` is the program, `folder` an empty place on a disk.
pub(crate) async fn measure(casemate: &Path, folder: &Path, pinned: bool, rounds: usize) -> Result<Vec<Row>> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.casemate-guest");
    if !made.join("images").is_dir() {
        return Err("there are no OS images; `make guest` makes them".into());
    }
    let cloud = Cloud::start(casemate, folder, &made, pinned).await?;
    let rows = cloud.rows(rounds).await;
    for pid in cloud.processes() {
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
    }
    rows
}

struct Cloud {
    data: PathBuf,
    server: Server,
    client: Client,
    pinned: bool,
}

impl Cloud {
    async fn start(casemate: &Path, folder: &Path, made: &Path, pinned: bool) -> Result<Self> {
        let data = folder.to_owned();
        let mut import = Command::new(casemate);
        import
            .args(["images", "import", "--data"])
            .arg(&data)
            .arg(made.join("oci/web-1"))
            .stdout(Stdio::null());
        let setup =
            Command::new(casemate).args(["setup", "--workspace", "bench", "--data"]).arg(&data).output()?;
        if !import.status()?.success() || !setup.status.success() {
            return Err("the program cannot set a cloud up".into());
        }
        let key = String::from_utf8(setup.stdout)?.trim().to_owned();
        let address = process::free_address()?;
        let url = format!("http://{address}");
        let mut command = process::on_all_cores(casemate, pinned);
        command.args(["serve", "--listen", &address.to_string(), "--public-url", &url, "--data"]).arg(&data);
        command.arg(format!("--nodes=qemu,accel=tcg,os-images={}", made.join("images").display()));
        command.stdout(Stdio::null()).stderr(std::fs::File::create(data.join("server.log"))?);
        let (server, _) = Server::start(&mut command, address, &crate::measure::health()).await?;
        let client = Client::builder().base_url(format!("{url}/api/v1")).api_key(&key).build()?;
        Ok(Self { data, server, client, pinned })
    }

    async fn rows(&self, rounds: usize) -> Result<Vec<Row>> {
        let (mut deploys, mut boots, mut downtimes) = (Vec::new(), Series::new(), Vec::new());
        for round in 0..rounds {
            let began = Instant::now();
            let cvm = self.deploy(&format!("bench-{round}")).await?;
            let at = serving(&cvm).await?;
            deploys.push(millis(began.elapsed()));

            let downtime = tokio::spawn(downtime(at));
            let began = Instant::now();
            let patch = cvm.patch().memory_mb(MEMORY_MB[1]).send().await?.accepted()?;
            patch.wait().await?;
            answers(at).await?;
            boots.push(false, millis(began.elapsed()));
            downtimes.push(millis(downtime.await??));

            let mut bare = self.the_same_by_hand(&cvm).await?;
            let began = Instant::now();
            let mut process = Guard(bare.spawn()?);
            answers(at).await?;
            boots.push(true, millis(began.elapsed()));
            process.end();
            cvm.delete().send().await?.wait().await?;
        }
        let mut rows = vec![
            bound("M1", "one machine, deploy → serving: ms", &deploys, 8000.0, 4000.0),
            boots.row("M2", "update → serving ÷ the bare QEMU process: ms", Better::Less, 1.5, 1.15),
            bound("M3", "update, last answer → first answer: ms", &downtimes, 6000.0, 3000.0),
        ];
        rows.extend(self.many(crate::report::median(&boots.limit)).await?);
        Ok(rows)
    }

    /// Ten at once: what they take beside what two cores would take for ten bare ones, and who uses what.
    async fn many(&self, bare_ms: f64) -> Result<[Row; 3]> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(MANY);
        let (began, cpu_before) = (Instant::now(), self.server.cpu()?);
        let deploys = (0..MANY)
            .map(|number| async move { serving(&self.deploy(&format!("many-{number}")).await?).await });
        future::try_join_all(deploys).await?;
        let took = millis(began.elapsed());
        let own = (self.server.cpu()? - cpu_before).as_secs_f64();
        let (mut memory, mut theirs) = (0.0, 0.0);
        for pid in self.processes() {
            memory += process::pss_mib(pid)?;
            theirs += process::cpu_of(pid)?.as_secs_f64();
        }
        let mut series = Series::new();
        series.push(false, took);
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let (many, cores) = (MANY as f64, cores as f64);
        series.push(true, bare_ms * many / cores);
        Ok([
            series.row(
                "M4",
                "ten at once, the last one serving ÷ ten bare boots: ms",
                Better::Less,
                1.5,
                1.1,
            ),
            bound("M5", "memory of a machine of 512 MB that serves: MiB", &[memory / many], 320.0, 256.0),
            bound(
                "M6",
                "the server's own share of the CPU time of ten boots",
                &[own / (own + theirs)],
                0.05,
                0.02,
            ),
        ])
    }

    async fn deploy(&self, name: &str) -> Result<Cvm> {
        let deploy = self.client.deploy(name, COMPOSE).vcpu(1).memory_mb(MEMORY_MB[0]).disk_gb(1);
        deploy.send().await?.wait().await?;
        Ok(self.client.cvm(name))
    }

    /// Switches the machine off. Its process as a command, with the files that it had.
    async fn the_same_by_hand(&self, cvm: &Cvm) -> Result<Command> {
        let pid = self.processes().first().copied().ok_or("there is no machine")?;
        let told = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        let folder = std::fs::read_link(format!("/proc/{pid}/cwd"))?;
        cvm.stop().send().await?.wait().await?;
        let told = String::from_utf8(told)?;
        let mut arguments = told.trim_end_matches('\0').split('\0');
        let program = arguments.next().ok_or("a process without a name")?;
        let mut command = process::on_all_cores(Path::new(program), self.pinned);
        command
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command)
    }

    /// The machines' processes: those that work in a folder of the node.
    fn processes(&self) -> BTreeSet<u32> {
        let nodes = self.data.canonicalize().unwrap_or_default().join("nodes");
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers
            .filter(|pid: &u32| {
                std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&nodes))
            })
            .collect()
    }
}

/// A process that ends with this.
struct Guard(Child);

impl Guard {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end();
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Waits for the app inside; gives its address.
async fn serving(cvm: &Cvm) -> Result<SocketAddr> {
    let at = cvm.observed().await?.ports.first().ok_or("it publishes no port")?.at;
    answers(at).await?;
    Ok(at)
}

/// Waits until somebody answers there.
async fn answers(at: SocketAddr) -> Result<()> {
    let probe = crate::load::request("GET", "/", "", "");
    let ask = async {
        while !matches!(tokio::time::timeout(SILENT, process::answers(at, &probe)).await, Ok(true)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ask).await.map_err(|_| Error::from("a machine does not answer"))
}

/// How long there was no answer, the first time that there is none.
async fn downtime(at: SocketAddr) -> Result<Duration> {
    let probe = crate::load::request("GET", "/", "", "");
    let began = Instant::now();
    let mut last = began;
    while let Ok(true) = tokio::time::timeout(SILENT, process::answers(at, &probe)).await {
        last = Instant::now();
        if began.elapsed() > PATIENCE {
            return Err("a machine was never down".into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    answers(at).await?;
    Ok(last.elapsed())
}
