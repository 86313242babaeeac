//! `casemate images`.

use std::path::PathBuf;

use casemate_sdk::wire::{OsImage, OsImageGroup};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::context::Context;
use crate::error::{AboutExt, Failure, Result};
use crate::human::{self, NOTHING, yes_no};
use crate::output::{Col, table};
use crate::{ContainerImages, Freed, ImagesFrom, LocalImage};

/// List OS images, and import, list and remove container images
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
    Rm(Remove),
    Gc(Collect),
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

/// Remove a container image
///
/// Its name is gone, and what of it nothing else needs. Machines that have it go on, and can be started again. One that a registry
/// has is pulled again when a compose file names it.
#[derive(Args)]
pub(crate) struct Remove {
    /// Its name, as `images list --container` shows it
    #[arg(value_name = "NAME")]
    name: String,
    /// Data folder of the server
    #[arg(long, value_name = "DIR", default_value = ".casemate")]
    data: PathBuf,
}

/// Remove container images that nothing needs
///
/// What was imported stays, and what a machine has, and what was used within the last 7 days (see --keep). A server does the same once a day, and when it
/// runs out of room.
#[derive(Args)]
pub(crate) struct Collect {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Keep what was used in so many days
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    keep: u32,
    /// Data folder of the server
    #[arg(long, value_name = "DIR", default_value = ".casemate")]
    data: PathBuf,
}

/// List OS images, newest version first, or container images
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
    /// The container images in the data folder of a server on this host instead
    #[arg(long, conflicts_with_all = ["cvm", "dev", "prod"])]
    container: bool,
    /// Data folder of the server [default: .casemate]
    #[arg(long, value_name = "DIR", requires = "container")]
    data: Option<PathBuf>,
}

impl Images {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let list = match self.command {
            Some(Command::Import(import)) => return import.run(cx),
            Some(Command::Rm(remove)) => return remove.run(cx),
            Some(Command::Gc(collect)) => return collect.run(cx),
            Some(Command::List(list)) => list,
            None => List::default(),
        };
        if list.container {
            let data = list.data.unwrap_or_else(|| PathBuf::from(".casemate"));
            let images = (here(cx)?.list)(&data).map_err(Failure::failed)?;
            return cx.out.result(&images, |images| container_rows(images));
        }
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
        let from = ImagesFrom { data: self.data, path: self.path, name: self.name };
        let images = (here(cx)?.import)(from).map_err(Failure::failed)?;
        let shown: Vec<_> =
            images.iter().map(|(name, digest)| json!({ "name": name, "digest": digest })).collect();
        cx.out.result(&shown, |_| {
            let lines: Vec<_> = images.iter().map(|(name, digest)| format!("{name}  {digest}")).collect();
            lines.join("\n")
        })
    }
}

impl Remove {
    fn run(self, cx: &Context) -> Result<()> {
        let here = here(cx)?;
        cx.out.confirm(&format!("Remove {}?", self.name))?;
        let freed = (here.remove)(&self.data, &self.name).map_err(Failure::failed)?;
        cx.out.result(&freed, |freed| told(freed, "removed"))
    }
}

impl Collect {
    fn run(self, cx: &Context) -> Result<()> {
        let what = crate::Collect { keep_days: self.keep, dry_run: self.dry_run };
        let freed = (here(cx)?.collect)(&self.data, what).map_err(Failure::failed)?;
        cx.out.result(&freed, |freed| told(freed, if self.dry_run { "would go" } else { "removed" }))
    }
}

fn here(cx: &Context) -> Result<ContainerImages> {
    cx.program.container_images.ok_or_else(|| {
        let text = "this program is only a client";
        Failure::usage(text).hint("use the `casemate` that serves the folder")
    })
}

fn told(freed: &Freed, done: &str) -> String {
    let names = freed.names.iter().map(|name| format!("{done}: {name}\n"));
    format!(
        "{}{} bytes {}",
        names.collect::<String>(),
        freed.bytes,
        if done == "removed" { "freed" } else { "would be freed" }
    )
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

fn container_rows(images: &[LocalImage]) -> String {
    let columns = [Col::Left("NAME"), Col::Left("DIGEST"), Col::Right("BYTES")];
    let row = |image: &LocalImage| vec![image.name.clone(), image.digest.clone(), image.bytes.to_string()];
    table(&columns, images.iter().map(row))
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
