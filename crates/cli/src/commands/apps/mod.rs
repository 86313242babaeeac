//! `casemate apps`.

mod allowed;

pub(crate) use allowed::is_allowed_text;

use casemate_sdk::App;
use casemate_sdk::wire::{AppPage, AppRecord, Cvm};
use clap::{Args, Subcommand};
use futures_util::TryStreamExt;

use super::cvms::rows as cvm_rows;
use crate::context::Context;
use crate::error::{Failure, Result};
use crate::human;
use crate::output::{Col, fields, table};

/// List apps, the identities that CVMs share
#[derive(Args)]
pub struct Apps {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "ls")]
    List(List),
    Get(Get),
    Allowed(allowed::Allowed),
    IsAllowed(allowed::IsAllowed),
    Devices(allowed::Devices),
}

impl Apps {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        match self.command {
            Command::List(list) => list.run(cx).await,
            Command::Get(get) => get.run(cx).await,
            Command::Allowed(allowed) => allowed.run(cx).await,
            Command::IsAllowed(is_allowed) => is_allowed.run(cx).await,
            Command::Devices(devices) => devices.run(cx).await,
        }
    }
}

/// List apps
#[derive(Args)]
pub(crate) struct List {
    /// Only those with this in their name or ids
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Which page
    #[arg(long, value_name = "N", default_value_t = 1)]
    page: u64,
    /// How many on a page, 1 to 100
    #[arg(long, value_name = "N", default_value_t = 50)]
    page_size: u32,
}

impl List {
    async fn run(self, cx: &Context) -> Result<()> {
        let mut list = cx.client()?.apps().page(self.page).page_size(self.page_size);
        if let Some(text) = &self.search {
            list = list.search(text);
        }
        let page: AppPage<Cvm> = list.send().await?;
        cx.out.result(&page, |page| rows(&page.dstack_apps))?;
        if !cx.out.is_json() {
            match (page.dstack_apps.len() as u64, page.total) {
                (0, 0) => cx.out.note("No apps."),
                (shown, total) if shown < total => {
                    cx.out.note(&format!("Page {} of {}, {total} apps in all.", page.page, page.total_pages));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn rows(apps: &[AppRecord<Cvm>]) -> String {
    if apps.is_empty() {
        return String::new();
    }
    let now = human::now();
    let columns = [
        Col::Left("NAME"),
        Col::Left("APP ID"),
        Col::Left("KEY SERVICE"),
        Col::Right("CVMS"),
        Col::Left("STATUS"),
        Col::Left("CREATED"),
    ];
    table(
        &columns,
        apps.iter().map(|app| {
            let mut statuses: Vec<_> = app.cvms.iter().map(|cvm| cvm.status.to_string()).collect();
            statuses.sort();
            statuses.dedup();
            vec![
                app.name.clone(),
                app.app_id.to_string(),
                app.kms_type.to_string(),
                app.cvm_count.to_string(),
                statuses.join(", "),
                human::ago(now, app.created_at),
            ]
        }),
    )
}

/// Which app.
#[derive(Args)]
pub(crate) struct Which {
    /// The app's id or name
    #[arg(value_name = "APP")]
    app: String,
}

impl Which {
    async fn record(&self, cx: &Context) -> Result<AppRecord<Cvm>> {
        let wanted = self.app.strip_prefix("app_").unwrap_or(&self.app);
        let id = wanted.strip_prefix("0x").unwrap_or(wanted).to_ascii_lowercase();
        let mut apps = cx.client()?.apps().search(&id).page_size(100).stream();
        while let Some(app) = apps.try_next().await? {
            if app.app_id.to_string() == id || app.name.eq_ignore_ascii_case(&self.app) {
                return Ok(app);
            }
        }
        let failure = Failure::failed(format!("there is no app `{}`", self.app));
        Err(failure.hint("`casemate apps list` shows those that there are"))
    }

    async fn app(&self, cx: &Context) -> Result<App> {
        let record = self.record(cx).await?;
        Ok(cx.client()?.app(record.app_id))
    }
}

/// Show an app and its CVMs
#[derive(Args)]
pub(crate) struct Get {
    #[command(flatten)]
    which: Which,
}

impl Get {
    async fn run(self, cx: &Context) -> Result<()> {
        cx.out.result(&self.which.record(cx).await?, shown)
    }
}

fn shown(app: &AppRecord<Cvm>) -> String {
    let now = human::now();
    let known = fields([
        ("name", Some(app.name.clone())),
        ("app id", Some(app.app_id.to_string())),
        ("key service", Some(app.kms_type.to_string())),
        ("created", Some(format!("{} ({})", human::time(app.created_at), human::ago(now, app.created_at)))),
    ]);
    format!("{known}\n\n{}", cvm_rows(&app.cvms, now))
}
