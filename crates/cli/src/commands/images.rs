//! `casemate images`.

use casemate_sdk::wire::{OsImage, OsImageGroup};
use clap::{Args, Subcommand};

use crate::context::Context;
use crate::error::{AboutExt, Result};
use crate::human::{self, NOTHING, yes_no};
use crate::output::{Col, table};

/// List OS images
#[derive(Args)]
pub struct Images {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "ls")]
    List(List),
}

/// List OS images, newest version first
#[derive(Args, Default)]
pub(crate) struct List {
    /// Only those that this CVM may switch to
    #[arg(long, value_name = "CVM", conflicts_with_all = ["dev", "prod"])]
    cvm: Option<String>,
    /// Only those for development, which let their owner in
    #[arg(long, conflicts_with = "prod")]
    dev: bool,
    /// Only those for production
    #[arg(long)]
    prod: bool,
}

impl Images {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let Command::List(list) = self.command.unwrap_or_else(|| Command::List(List::default()));
        if let Some(cvm) = &list.cvm {
            let groups = cx.client()?.cvm(cvm).available_os_images().await.about_cvm(cvm)?;
            return cx.out.result(&groups, |groups| choices(groups));
        }
        let mut images = cx.client()?.os_images().page_size(100);
        if list.dev || list.prod {
            images = images.dev(list.dev);
        }
        let page = images.send().await?;
        cx.out.result(&page, |page| rows(&page.items))
    }
}

fn hash(hash: Option<&String>) -> String {
    hash.map_or_else(|| NOTHING.into(), |hash| human::short(hash))
}

fn rows(images: &[OsImage]) -> String {
    let columns = [
        Col::Left("NAME"),
        Col::Left("VERSION"),
        Col::Left("FOR DEVELOPMENT"),
        Col::Left("GPU"),
        Col::Left("HASH"),
    ];
    table(
        &columns,
        images.iter().map(|image| {
            vec![
                image.name.clone(),
                image.version.clone(),
                yes_no(image.is_dev).into(),
                if image.requires_gpu { "needed" } else { NOTHING }.into(),
                hash(image.os_image_hash.as_ref()),
            ]
        }),
    )
}

fn choices(groups: &[OsImageGroup]) -> String {
    let columns = [Col::Left("NAME"), Col::Left("FOR DEVELOPMENT"), Col::Left("NOTE"), Col::Left("HASH")];
    let images = groups.iter().flat_map(|group| {
        let prod = group.prod.iter().map(|image| (image, false));
        prod.chain(group.dev.iter().map(|image| (image, true)))
    });
    table(
        &columns,
        images.map(|(image, dev)| {
            let note = match (image.is_current, image.enabled) {
                (true, _) => "current",
                (false, false) => "cannot be chosen",
                (false, true) => "",
            };
            vec![image.name.clone(), yes_no(dev).into(), note.into(), hash(image.os_image_hash.as_ref())]
        }),
    )
}
