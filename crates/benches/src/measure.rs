//! The rounds: product and yardstick in turn, the same load for both.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;

use crate::load::{Client, Request, request};
use crate::process::{self, Server};
use crate::report::{self, Better, Missing, Row};
use crate::{Result, cli, fill, flush, machines};

/// Options of a run.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these goals, for example P1,P3
    #[arg(long, value_delimiter = ',', value_name = "GOALS")]
    only: Vec<String>,
    /// How often everything is measured
    #[arg(long, default_value_t = 7, value_name = "N")]
    rounds: usize,
    /// End with status 1 if a goal is missed
    #[arg(long)]
    check: bool,
    /// Measure this build of the product, instead of building it
    #[arg(long, value_name = "FILE")]
    casemate: Option<PathBuf>,
}

/// CVMs in the filled folder.
const CVMS: usize = 10_000;
/// Updates that are open when a server starts.
const OPEN: usize = 1_000;
/// Until workers have their hands full of updates whose guests take an hour to stop. The first updates, which are not measured,
/// are more than enough for that.
const FULL_HANDS: Duration = Duration::from_secs(2);
/// Connections of many clients.
const MANY: usize = 64;

/// What all measurements share.
pub(crate) struct Bench {
    options: RunOptions,
    /// The product.
    pub(crate) casemate: PathBuf,
    bench: PathBuf,
    /// Everything of this run.
    pub(crate) folder: tempfile::TempDir,
    pinned: bool,
    key: String,
    ids: Vec<String>,
    rows: Vec<Row>,
    missing: Vec<Missing>,
}

struct RunOptions {
    only: Vec<String>,
    rounds: usize,
}

/// Measures, prints the table, and says whether every goal asked for is met.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let pinned = process::can_pin();
    let casemate = options.casemate.clone().map_or_else(build, Ok)?;
    if pinned {
        process::pin_self()?;
    } else {
        eprintln!("There are no two cores, or no taskset, to keep server and load apart: expect noise.");
    }
    let bench = std::env::current_exe()?;
    // Beside the program, since a temporary folder is often no disk at all.
    let folder = tempfile::tempdir_in(bench.parent().ok_or("this program has no folder")?)?;
    let only = options.only.iter().map(|goal| goal.to_uppercase()).collect();
    let mut bench = Bench {
        options: RunOptions { only, rounds: options.rounds },
        casemate,
        bench,
        folder,
        pinned,
        key: String::new(),
        ids: Vec::new(),
        rows: Vec::new(),
        missing: Vec::new(),
    };
    // One thread: the load generator has one core.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(bench.everything())?;
    println!("{}", report::table(&bench.rows, &bench.missing));
    println!("CPU and latency in µs, rates in requests/s; ratio is the median of {} rounds.", options.rounds);
    let met = bench.missing.is_empty() && bench.rows.iter().all(Row::met);
    Ok(if met || !options.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the program as it is shipped.
fn build() -> Result<PathBuf> {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let build = ["build", "--release", "--locked", "-p", "casemate"];
    if !Command::new(cargo).args(build).current_dir(root).status()?.success() {
        return Err("the product does not build".into());
    }
    Ok(std::env::current_exe()?.with_file_name("casemate"))
}

/// One kind of measurement, of product and yardstick in every round.
pub(crate) struct Series {
    pub(crate) product: Vec<f64>,
    pub(crate) limit: Vec<f64>,
}

impl Series {
    pub(crate) fn new() -> Self {
        Self { product: Vec::new(), limit: Vec::new() }
    }

    pub(crate) fn row(
        &self,
        goal: &'static str,
        what: &'static str,
        better: Better,
        must: f64,
        aim: f64,
    ) -> Row {
        let ratios: Vec<f64> =
            self.product.iter().zip(&self.limit).map(|(product, limit)| product / limit).collect();
        Row {
            goal,
            what,
            product: report::median(&self.product),
            limit: Some(report::median(&self.limit)),
            ratio: report::median(&ratios),
            spread: report::spread(&ratios),
            must,
            aim,
            better,
        }
    }
}

impl Bench {
    fn wants(&self, goals: &[&str]) -> bool {
        self.options.only.is_empty() || self.options.only.iter().any(|only| goals.contains(&only.as_str()))
    }

    async fn everything(&mut self) -> Result<()> {
        let server_goals = ["P1", "P2", "P3", "P4", "P5", "P7", "P14", "P15", "C2"];
        if self.wants(&server_goals) {
            let node = Node::start(self)?;
            self.key = std::fs::read_to_string(self.running().join("key"))?;
            let ids = std::fs::read_to_string(self.running().join("ids"))?;
            self.ids = ids.lines().map(str::to_owned).collect();
            if self.wants(&["P1", "P2", "P7", "P15", "C2"]) {
                self.reads().await?;
            }
            if self.wants(&["P3"]) {
                self.writes().await?;
            }
            if self.wants(&["P4", "P5"]) {
                self.slow_writes().await?;
            }
            if self.wants(&["P14"]) {
                self.start().await?;
            }
            drop(node);
        }
        if self.wants(&["C1"]) {
            self.version();
        }
        if self.wants(&["M1", "M2", "M3", "M4", "M5", "M6"]) {
            let folder = self.folder.path().join("machines");
            std::fs::create_dir(&folder)?;
            match machines::measure(&self.casemate, &folder, self.pinned, self.options.rounds).await {
                Ok(rows) => self.rows.extend(rows),
                Err(error) => self.missing.push(Missing { goal: "M1–M6", why: error.to_string() }),
            }
        }
        let only = &self.options.only;
        self.rows.retain(|row| only.is_empty() || only.iter().any(|only| row.goal == only));
        let number = |row: &Row| ("PCM".find(&row.goal[..1]), row.goal[1..].parse().unwrap_or(0_u32));
        self.rows.sort_by_key(number);
        Ok(())
    }

    fn running(&self) -> PathBuf {
        self.folder.path().join("running")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("node.sock")
    }

    fn rounds(&self) -> std::ops::Range<usize> {
        0..self.options.rounds
    }

    /// The product on this data folder, and how long it took to its first answer.
    async fn product(
        &self,
        data: &Path,
        slow_disk: Option<&Path>,
        probe: &[u8],
    ) -> Result<(Server, Duration)> {
        let address = process::free_address()?;
        let mut command = process::on_server_core(&self.casemate, self.pinned);
        let url = format!("http://{address}");
        command.args(["serve", "--listen", &address.to_string(), "--public-url", &url, "--data"]).arg(data);
        command.arg("--nodes").arg(format!("sim=unix:{}", self.socket().display()));
        command.stdout(Stdio::null()).stderr(std::fs::File::create(data.join("server.log"))?);
        if let Some(library) = slow_disk {
            flush::slow(&mut command, library);
        }
        Server::start(&mut command, address, probe).await
    }

    async fn limit(&self, which: &str, slow_disk: Option<&Path>) -> Result<Server> {
        let address = process::free_address()?;
        let folder = self.folder.path().join(format!("{which}-{}", address.port()));
        let mut command = process::on_server_core(&self.bench, self.pinned);
        command.args([which, "--listen", &address.to_string(), "--key", &self.key]);
        command.arg("--ids").arg(self.running().join("ids")).arg("--folder").arg(folder);
        if let Some(library) = slow_disk {
            flush::slow(&mut command, library);
        }
        Ok(Server::start(&mut command, address, health().as_ref()).await?.0)
    }

    /// A copy of a data folder.
    fn copy(&self, of: &str, name: &str) -> Result<PathBuf> {
        let copy = self.folder.path().join(name);
        fill::copy(&self.folder.path().join(of), &copy)?;
        Ok(copy)
    }

    fn requests(&self, range: std::ops::Range<usize>, write: impl Fn(&str) -> Request) -> Vec<Request> {
        range.map(|number| write(&self.ids[number * 7919 % self.ids.len()])).collect()
    }

    fn gets(&self, prefix: &str, count: usize) -> Vec<Request> {
        self.requests(0..count, |id| request("GET", &format!("{prefix}/cvms/{id}"), &self.key, ""))
    }

    /// Updates of CVMs that no other range of numbers names.
    fn patches(&self, prefix: &str, range: std::ops::Range<usize>) -> Vec<Request> {
        let body = r#"{"memory":4096}"#;
        self.requests(range, |id| request("PATCH", &format!("{prefix}/cvms/{id}"), &self.key, body))
    }

    async fn reads(&mut self) -> Result<()> {
        const PAGE: &str = "/cvms/paginated?page=3&page_size=50";
        let begun = Instant::now();
        let (product, _) = self.product(&self.running(), None, &health()).await?;
        let limit = self.limit("limit-get", None).await?;
        let servers = [(&product, "/api/v1", PAGE), (&limit, "", "/cvms?after=5000")];
        let mut series = [Series::new(), Series::new(), Series::new(), Series::new()];
        for round in self.rounds() {
            for (server, prefix, page) in servers {
                let is_limit = prefix.is_empty();
                let mut many = Client::connect(server.address, MANY).await?;
                let mut one = Client::connect(server.address, 1).await?;
                let gets = self.gets(prefix, CVMS);
                // Once each: what a server remembers of a CVM, it has to have seen.
                many.send(&gets, 200).await?;
                let (cpu, outcome) = cpu_of(server, many.send(&[&gets[..], &gets[..]].concat(), 200)).await?;
                series[0].push(is_limit, cpu);
                if round == 0 {
                    let whose = if is_limit { "limit" } else { "product" };
                    println!(
                        "GET, {whose}: {} bytes an answer, {:.0} requests/s",
                        outcome.bytes,
                        outcome.rate()
                    );
                }
                series[1].push(is_limit, one.send(&gets[..2_000], 200).await?.p50_us());
                if self.wants(&["P7"]) {
                    let pages = vec![request("GET", &format!("{prefix}{page}"), &self.key, ""); 400];
                    many.send(&pages[..50], 200).await?;
                    let (page_cpu, outcome) = cpu_of(server, many.send(&pages, 200)).await?;
                    series[2].push(is_limit, page_cpu);
                    series[3].push(is_limit, page_cpu / cpu);
                    if round == 0 {
                        println!("list of 50: {} bytes an answer", outcome.bytes);
                    }
                }
            }
        }
        self.rows.push(series[0].row("P1", "GET one CVM, 64 connections: CPU", Better::Less, 1.25, 1.10));
        self.rows.push(series[1].row("P2", "GET one CVM, 1 connection: p50", Better::Less, 1.3, 1.1));
        if self.wants(&["P7"]) {
            self.rows.push(series[2].row("P7", "list of 50, 64 connections: CPU", Better::Less, 1.3, 1.1));
            let rates = &series[3].product;
            self.rows.push(bound("P7", "list of 50 ÷ GET one: CPU", rates, 12.0, 10.0));
        }
        if self.wants(&["P15"]) {
            // A comparison of the node with the store, every 10 s, is part of what a server holds memory for.
            tokio::time::sleep(Duration::from_secs(22).saturating_sub(begun.elapsed())).await;
            let busy = product.private_mib()?;
            let idle = self.idle_memory().await?;
            self.rows.push(bound("P15", "private memory, idle: MiB", &[idle], 16.0, 8.0));
            self.rows.push(bound("P15", "private memory, 10,000 CVMs, after load: MiB", &[busy], 48.0, 24.0));
        }
        if self.wants(&["C2"]) {
            self.list(&product);
        }
        Ok(())
    }

    async fn idle_memory(&self) -> Result<f64> {
        let data = self.folder.path().join("idle");
        std::fs::create_dir_all(&data)?;
        let (product, _) = self.product(&data, None, &health()).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        product.private_mib()
    }

    async fn writes(&mut self) -> Result<()> {
        let mut series = Series::new();
        for round in self.rounds() {
            let limit = self.limit("limit-accept-group", None).await?;
            let data = self.copy("running", &format!("writes-{round}"))?;
            let (product, _) = self.product(&data, None, &health()).await?;
            // The yardstick has written its machines just now and has them at hand. So should the product.
            Client::connect(product.address, MANY).await?.send(&self.gets("/api/v1", CVMS), 200).await?;
            for (server, prefix) in [(&product, "/api/v1"), (&limit, "")] {
                let mut many = Client::connect(server.address, MANY).await?;
                many.send(&self.patches(prefix, 0..1_000), 202).await?;
                tokio::time::sleep(FULL_HANDS).await;
                let (cpu, outcome) =
                    cpu_of(server, many.send(&self.patches(prefix, 1_000..9_000), 202)).await?;
                series.push(prefix.is_empty(), cpu);
                if round == 0 {
                    let whose = if prefix.is_empty() { "limit" } else { "product" };
                    println!("PATCH, {whose}: {:.0} requests/s", outcome.rate());
                }
            }
            drop(product);
            std::fs::remove_dir_all(data)?;
        }
        let what = "durable PATCH, 64 connections: CPU";
        self.rows.push(series.row("P3", what, Better::Less, 1.45, 1.2));
        Ok(())
    }

    async fn slow_writes(&mut self) -> Result<()> {
        let Some(library) = flush::library(self.folder.path())? else {
            for goal in ["P4", "P5"] {
                self.missing.push(Missing { goal, why: "a slow disk needs a C compiler (cc)".into() });
            }
            return Ok(());
        };
        let (mut rate, mut alone) = (Series::new(), Series::new());
        for round in self.rounds() {
            let limit = self.limit("limit-accept-one", Some(&library)).await?;
            let data = self.copy("running", &format!("slow-{round}"))?;
            let (product, _) = self.product(&data, Some(&library), &health()).await?;
            for (server, prefix, count) in [(&product, "/api/v1", 6_000), (&limit, "", 500)] {
                let mut many = Client::connect(server.address, MANY).await?;
                let mut one = Client::connect(server.address, 1).await?;
                many.send(&self.patches(prefix, 0..800), 202).await?;
                tokio::time::sleep(FULL_HANDS).await;
                let outcome = many.send(&self.patches(prefix, 800..800 + count), 202).await?;
                rate.push(prefix.is_empty(), outcome.rate());
                alone.push(
                    prefix.is_empty(),
                    one.send(&self.patches(prefix, 7_000..7_200), 202).await?.p50_us(),
                );
            }
            drop(product);
            std::fs::remove_dir_all(data)?;
        }
        let what = "durable PATCH, 64 connections, flush 2 ms: rate";
        self.rows.push(rate.row("P4", what, Better::More, 12.0, 20.0));
        let what = "durable PATCH, 1 connection, flush 2 ms: p50";
        self.rows.push(alone.row("P5", what, Better::Less, 1.10, 1.03));
        Ok(())
    }

    async fn start(&mut self) -> Result<()> {
        let mut took = Vec::new();
        let probe = request("GET", &format!("/api/v1/cvms/{}", self.ids[0]), &self.key, "");
        for round in self.rounds() {
            let data = self.copy("open", &format!("start-{round}"))?;
            let (product, first) = self.product(&data, None, &probe).await?;
            took.push(first.as_secs_f64() * 1e3);
            drop(product);
            std::fs::remove_dir_all(data)?;
        }
        let what = "start to first GET, 10,000 CVMs, 1,000 open updates: ms";
        self.rows.push(bound("P14", what, &took, 100.0, 30.0));
        Ok(())
    }

    fn version(&mut self) {
        let ours = [("--version", vec!["--version"]), ("--help", vec!["--help"])];
        for (name, arguments) in ours {
            let mut commands = cli::Commands::new(self.casemate.clone(), cli::phala(), self.folder.path());
            self.compare(
                "C1",
                name,
                &mut commands,
                &arguments,
                (1.0 / 50.0, 1.0 / 200.0),
                (1.0 / 100.0, 1.0 / 400.0),
            );
        }
    }

    fn list(&mut self, product: &Server) {
        let cvm = self.ids[17].clone();
        let mut commands = cli::Commands::new(self.casemate.clone(), cli::phala(), self.folder.path());
        commands.api = Some((format!("http://{}/api/v1", product.address), self.key.clone()));
        let ours = [
            ("cvms list --json", vec!["cvms", "list", "--json"]),
            ("cvms get --json", vec!["cvms", "get", &cvm, "--json"]),
        ];
        for (name, arguments) in ours {
            self.compare(
                "C2",
                name,
                &mut commands,
                &arguments,
                (1.0 / 40.0, 1.0 / 150.0),
                (1.0 / 80.0, 1.0 / 300.0),
            );
        }
    }

    /// A command of ours against the same of theirs: by the clock, and by processor time.
    fn compare(
        &mut self,
        goal: &'static str,
        name: &'static str,
        commands: &mut cli::Commands,
        arguments: &[&str],
        wall: (f64, f64),
        cpu: (f64, f64),
    ) {
        match commands.rounds(arguments, self.options.rounds) {
            Ok(rounds) => {
                let row = |what: &'static str, of: fn(&cli::Used) -> f64, bars: (f64, f64)| {
                    let series = Series {
                        product: rounds.iter().map(|(ours, _)| of(ours)).collect(),
                        limit: rounds.iter().map(|(_, theirs)| of(theirs)).collect(),
                    };
                    series.row(goal, what, Better::Less, bars.0, bars.1)
                };
                let (what_wall, what_cpu) = match name {
                    "--version" => {
                        ("casemate --version ÷ phala: wall, ms", "casemate --version ÷ phala: CPU, ms")
                    }
                    "--help" => ("casemate --help ÷ phala: wall, ms", "casemate --help ÷ phala: CPU, ms"),
                    "cvms list --json" => {
                        ("cvms list --json ÷ phala: wall, ms", "cvms list --json ÷ phala: CPU, ms")
                    }
                    _ => ("cvms get --json ÷ phala: wall, ms", "cvms get --json ÷ phala: CPU, ms"),
                };
                self.rows.push(row(what_wall, |used| used.wall_ms, wall));
                self.rows.push(row(what_cpu, |used| used.cpu_ms, cpu));
            }
            Err(error) => self.missing.push(Missing { goal, why: format!("{name}: {error}") }),
        }
    }
}

impl Series {
    pub(crate) fn push(&mut self, is_limit: bool, value: f64) {
        match is_limit {
            true => self.limit.push(value),
            false => self.product.push(value),
        }
    }
}

/// A goal that is an absolute bound.
pub(crate) fn bound(goal: &'static str, what: &'static str, values: &[f64], must: f64, aim: f64) -> Row {
    let ratio = report::median(values);
    let spread = report::spread(values);
    Row { goal, what, product: ratio, limit: None, ratio, spread, must, aim, better: Better::Less }
}

/// Processor time of `server` for each of the requests that `work` sends, in microseconds.
async fn cpu_of(
    server: &Server,
    work: impl Future<Output = Result<crate::load::Outcome>>,
) -> Result<(f64, crate::load::Outcome)> {
    let before = server.cpu()?;
    let outcome = work.await?;
    let used = server.cpu()?.saturating_sub(before);
    Ok((used.as_secs_f64() * 1e6 / outcome.latencies.len() as f64, outcome))
}

pub(crate) fn health() -> Request {
    request("GET", "/healthz", "-", "")
}

/// The node of all CVMs. It fills the folders first.
struct Node(Child);

impl Node {
    fn start(bench: &Bench) -> Result<Self> {
        println!("Filling a data folder with {CVMS} CVMs");
        let mut command = Command::new(&bench.bench);
        command.arg("node").arg("--folder").arg(bench.folder.path()).arg("--listen").arg(bench.socket());
        command.args(["--cvms", &CVMS.to_string(), "--open", &OPEN.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let said = child.stdout.take().ok_or("the node has no output")?;
        let node = Self(child);
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        if line.trim() == "ready" { Ok(node) } else { Err("the node did not start".into()) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
