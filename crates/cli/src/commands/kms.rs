//! `casemate kms`.

use crate::context::Context;
use crate::error::{About, AboutExt, Failure, Result};
use crate::human::{self, NOTHING};
use crate::output::{Col, table};
use casemate_sdk::wire::{KmsContract, Page};
use clap::{Args, Subcommand};

/// List key services and their public keys
#[derive(Args)]
pub struct Kms {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "ls")]
    List(List),
    Pubkey(PubKey),
}

/// List key services
#[derive(Args)]
pub(crate) struct List {}

/// Print the public key of an app, to seal environment variables with
#[derive(Args)]
pub(crate) struct PubKey {
    /// The app's id
    #[arg(value_name = "APP ID")]
    app: String,
    /// The key service, by id, slug or kind
    #[arg(long, value_name = "KMS", default_value = "phala")]
    kms: String,
}

/// How many a server puts on a page that nobody asked for; no server has that many.
const PAGE_SIZE: u64 = 30;

impl Kms {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let kms = cx.client()?.kms();
        match self.command {
            Command::List(List {}) => {
                let services = kms.list().await?;
                let total = services.len() as u64;
                let page = Page::new(services, total, 1, PAGE_SIZE);
                cx.out.result(&page, |page| rows(&page.items))
            }
            Command::Pubkey(wanted) => {
                let app = wanted.app.strip_prefix("app_").unwrap_or(&wanted.app);
                let app = app.parse().map_err(|error| Failure::usage(format!("the app's id: {error}")))?;
                let key = kms.pubkey(&wanted.kms, app).await.about(About::Kms)?;
                cx.out.result(&key, |key| key.public_key.clone())
            }
        }
    }
}

fn rows(services: &[KmsContract]) -> String {
    let columns = [
        Col::Left("ID"),
        Col::Left("SLUG"),
        Col::Right("CHAIN"),
        Col::Left("CONTRACT"),
        Col::Left("CUSTODY"),
        Col::Left("SIGNING KEY"),
    ];
    let listed = table(
        &columns,
        services.iter().map(|kms| {
            let text = |text: &Option<String>| text.clone().unwrap_or_else(|| NOTHING.into());
            let on_chain = kms.chain_id != 0;
            vec![
                kms.id.clone(),
                text(&kms.slug),
                if on_chain { kms.chain_id.to_string() } else { NOTHING.into() },
                if on_chain { kms.contract_address.clone() } else { NOTHING.into() },
                text(&kms.custody),
                kms.k256_pubkey.as_deref().map_or_else(|| NOTHING.into(), human::short),
            ]
        }),
    );
    let problems = services.iter().filter_map(|kms| {
        let problem = kms.problem.as_ref()?;
        Some(format!("\n{} cannot be used: {problem}", kms.slug.as_ref().unwrap_or(&kms.id)))
    });
    std::iter::once(listed).chain(problems).collect()
}
