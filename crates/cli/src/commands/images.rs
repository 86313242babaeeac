//! `casemate images`.

use std::path::PathBuf;

use casemate_sdk::wire::{OsImage, OsImageGroup};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::ImagesFrom;
use crate::context::Context;
use crate::error::{AboutExt, Failure, Result};
use crate::human::{self, NOTHING, yes_no};
use crate::output::{Col, table};

/// List OS images; import container images
#[derive(Args)]
pub struct Images {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "ls")]
    List(List),
    Import(Import),
}

/// Import container images for the machines of this host
///
/// They come from an OCI image layout, as a folder or a tar archive, or from what `docker save` writes, and go into the data
/// folder of a server on this host; it may be running. Compose files can name them from then on, and nothing is pulled.
#[derive(Args)]
#[command(after_help = "Examples:
  docker save web:1 -o web.tar && casemate images import web.tar
  casemate images import build/layout --as registry.example.org/web:1")]
pub(crate) struct Import {
    /// The layout or archive
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// What to call the image [default: the names that come with it]
    #[arg(long = "as", value_name = "NAME:TAG")]
    name: Option<String>,
    /// Data folder of the server
    #[arg(long, value_name = "DIR", default_value = ".casemate")]
    data: PathBuf,
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
        let list = match self.command {
            Some(Command::Import(import)) => return import.run(cx),
            Some(Command::List(list)) => list,
            None => List::default(),
        };
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

impl Import {
    fn run(self, cx: &Context) -> Result<()> {
        let Some(import) = cx.program.import_images else {
            let text = "this program is only a client";
            return Err(Failure::usage(text).hint("use the `casemate` that serves the folder"));
        };
        let from = ImagesFrom { data: self.data, path: self.path, name: self.name };
        let images = import(from).map_err(Failure::failed)?;
        let shown: Vec<_> =
            images.iter().map(|(name, digest)| json!({ "name": name, "digest": digest })).collect();
        cx.out.result(&shown, |_| {
            let lines: Vec<_> = images.iter().map(|(name, digest)| format!("{name}  {digest}")).collect();
            lines.join("\n")
        })
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
