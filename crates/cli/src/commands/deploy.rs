//! `casemate deploy`: makes the CVM of a name, or updates it.

use std::path::Path;

use casemate_sdk::chain::checksummed;
use casemate_sdk::ids::Address;
use casemate_sdk::types::compose::ComposeDoc;
use casemate_sdk::types::ids::hostname_from;
use casemate_sdk::{Deploy as Creation, Error, Operation, wire};
use clap::Args;

use super::changes::{App, How, Machine, Texts, Visibility};
use super::nodes;
use super::outcome::{self, Change, Waiting};
use super::signing::{Signing, chain_name, note_signing};
use crate::context::Context;
use crate::environment::PRIVATE_KEY_VAR;
use crate::error::{AboutExt, Failure, Result};
use crate::human;
use crate::output::fields;
use crate::value::{Disk, Memory, read_file};

/// The files that docker compose looks for, in its order.
const USUAL_FILES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// Says what is taken where no file is named; a test holds it against the list above.
const COMPOSE_HELP: &str = "docker-compose file, or - for standard input [default: the first of compose.yaml, compose.yml, \
                            docker-compose.yml, docker-compose.yaml in this folder]";

/// Deploy an app: makes the CVM of this name, or updates it
///
/// The same command can be given again and again: a CVM that is like this already is left alone, one that differs is updated
/// with one restart. Only what is named changes. Variables are the exception: each time they are given they are sealed anew and
/// count as changed, so leave -e out where they stay as they are.
#[derive(Args)]
#[command(mut_arg("compose", |arg| arg.help(COMPOSE_HELP)))]
#[command(after_help = "Examples:
  casemate deploy                                 the compose file of this folder, under its name
  casemate deploy -n web-1 -c app.yml -e .env --memory 4G
  casemate deploy -n web-1 -c app.yml --dry-run   what would be done
  casemate deploy -n web-1 -c app.yml --kms base --private-key-file owner.key
                                                  an app whose code a contract has to allow")]
pub struct Deploy {
    /// Name of the CVM, unique in the workspace [default: made from the name of this folder]
    #[arg(long, short, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    app: App,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    visibility: Visibility,
    #[command(flatten)]
    signing: Signing,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    waiting: Waiting,
}

/// What only a new CVM can choose.
#[derive(Args)]
#[command(next_help_heading = "New CVMs")]
struct Place {
    /// Node, by name or number; any that has room unless given
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Region, if any node of it will do
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// Take a development image, which lets its owner in, where no image is named
    #[arg(long, conflicts_with = "image")]
    dev_os: bool,
    /// Key service, by slug, id or kind, as `casemate kms list` shows them. One with a contract has a contract made for the
    /// app, which whoever signs owns
    #[arg(long, value_name = "KMS")]
    kms: Option<String>,
    /// Who shall own the contract that is made for the app, a Safe for instance [default: whoever signs]
    #[arg(long, value_name = "ADDRESS", value_parser = owner)]
    owner: Option<Address>,
}

/// An address that somebody owns: with a typing error in it, nobody would.
fn owner(text: &str) -> Result<Address, String> {
    let address: Address = text.parse().map_err(|error| format!("{error}"))?;
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let checked = digits.bytes().any(|byte| byte.is_ascii_uppercase())
        && digits.bytes().any(|byte| byte.is_ascii_lowercase());
    if checked && checksummed(address).strip_prefix("0x") != Some(digits) {
        return Err("its letters' case says that there is a typing error in it (EIP-55)".to_owned());
    }
    Ok(address)
}

impl Deploy {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        self.signing.check(self.app.reads_stdin())?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => name_of(&cx.environment.folder)?,
        };
        let mut texts = self.app.read()?;
        if texts.compose.is_none() {
            texts.compose = usual_file(cx)?;
        }
        match cx.client()?.cvm(&name).get().await {
            Ok(cvm) => self.update(cx, &name, &texts, &cvm).await,
            Err(Error::NotFound(_)) => self.create(cx, &name, texts).await,
            Err(error) => Err(error).about_cvm(&name),
        }
    }

    async fn create(self, cx: &Context, name: &str, texts: Texts) -> Result<()> {
        let Some(compose) = &texts.compose else {
            let what = format!("there is no CVM `{name}` yet, and no compose file to make it from");
            return Err(Failure::usage(what).hint("`-c FILE` names one"));
        };
        let mut doc = ComposeDoc::default();
        doc.set_docker_compose_file(compose);
        if let Some(script) = &texts.pre_launch_script {
            doc.set_pre_launch_script(script);
        }
        self.visibility.document(&mut doc);
        let creation = self.creation(cx, name, doc, texts).await?;
        if self.how.dry_run {
            return would_create(cx, name, creation.provision().await?);
        }
        if self.how.prepare_only {
            let what =
                format!("--prepare-only: there is no CVM `{name}` yet, and only updates can be prepared");
            return Err(Failure::usage(what).hint("--dry-run shows what would be created"));
        }
        let provision = creation.provision().await?;
        let operation = match provision.app_id {
            Some(_) if self.place.owner.is_some() => {
                return Err(Failure::usage(
                    "--owner: this key service has no contract, so there is none to own",
                )
                .hint("`--kms` names one that has; `casemate kms list` shows them"));
            }
            Some(_) => creation.create(provision, None).await?,
            None => self.with_contract(cx, name, &creation, provision).await?,
        };
        let change = Change { cvm: name, doing: "Creating", done: "up", waiting: self.waiting };
        change.accepted(cx, &operation).await
    }

    /// Has the app's contract made first.
    async fn with_contract(
        &self,
        cx: &Context,
        name: &str,
        creation: &Creation,
        provision: wire::ProvisionAnswer,
    ) -> Result<Operation> {
        let kms = provision.kms_info.clone();
        let (Some(kms), Some(chain_id)) = (&kms, kms.as_ref().and_then(|kms| kms.chain_id)) else {
            return Err(Failure::failed(
                "the server names neither an app nor the key service that has a contract",
            ));
        };
        let whose = match self.place.owner {
            Some(owner) => format!("{} owns", checksummed(owner)),
            None => "whoever signs for it owns".to_owned(),
        };
        let what = format!("a contract on {}, which {whose}", chain_name(chain_id));
        let Some(wallet) = self.signing.wallet(cx, &format!("{name} needs {what}."))? else {
            return Err(Failure::failed(format!("{name} is not created: it needs {what}"))
                .hint(format!("`--private-key-file FILE`, or {PRIVATE_KEY_VAR}, signs for it")));
        };
        let network = self.signing.network(cx, kms)?;
        note_signing(cx, &wallet, &network, &format!("Having a contract made for {name}"));
        let made = creation.make_contract(&provision, &wallet, Some(network)).await?;
        let contract = checksummed(made.app_auth_address);
        cx.out.note(&format!(
            "  contract {contract} by transaction 0x{}, block {}",
            made.transaction_hash, made.block_number
        ));
        let created = creation.create(provision, Some((&made).into())).await;
        created.map_err(|error| {
            Failure::from(error).hint(format!(
                "the contract {contract} was made all the same; trying again makes another one"
            ))
        })
    }

    async fn creation(&self, cx: &Context, name: &str, doc: ComposeDoc, texts: Texts) -> Result<Creation> {
        let mut creation = cx.client()?.deploy(name, "").document(doc);
        if let Some(vars) = texts.env {
            creation = creation.env(vars);
        }
        if let Some(text) = texts.user_config {
            creation = creation.user_config(text);
        }
        let machine = &self.machine;
        if let Some(size) = &machine.instance_type {
            creation = creation.instance_type(size);
        }
        if let Some(vcpu) = machine.vcpu {
            creation = creation.vcpu(vcpu);
        }
        if let Some(Memory(mb)) = machine.memory {
            creation = creation.memory_mb(mb);
        }
        if let Some(Disk(gb)) = machine.disk_size {
            creation = creation.disk_gb(gb);
        }
        if let Some(gpus) = &machine.gpus {
            creation = creation.gpus(gpus.wire());
        }
        if let Some(image) = &machine.image {
            creation = creation.os_image(image);
        }
        if let Some(node) = &self.place.node {
            creation = creation.node(nodes::number(cx, node).await?);
        }
        if let Some(region) = &self.place.region {
            creation = creation.region(region);
        }
        match self.place.kms.as_deref() {
            None => {}
            Some(kind) if is_kind(kind) => creation = creation.kms(kind.to_ascii_lowercase().as_str().into()),
            Some(slug) => creation = creation.kms_id(slug),
        }
        if let Some(owner) = self.place.owner {
            creation = creation.contract_owner(owner);
        }
        if self.place.dev_os {
            creation = creation.prefer_dev(true);
        }
        if let Some(listed) = self.visibility.listed {
            creation = creation.listed(listed);
        }
        Ok(creation)
    }

    async fn update(self, cx: &Context, name: &str, texts: &Texts, now: &wire::Cvm) -> Result<()> {
        self.place.check(name, now)?;
        if !(texts.is_some() || self.machine.is_some() || self.visibility.is_some() || self.how.force_restart)
        {
            return cx.out.result(now, |_| {
                format!("{name} exists already, and there is no compose file or option to change it: nothing changed.")
            });
        }
        let cvm = cx.client()?.cvm(name);
        let mut patch = texts.patch(cvm.patch());
        patch = self.visibility.patch(self.machine.patch(patch));
        if let (Some(vars), Some(names)) = (&texts.env, texts.env_names()) {
            patch = patch.envs(cvm.seal(vars).await.about_cvm(name)?).allowed_envs(names);
        }
        patch = self.how.patch(patch);
        if self.how.dry_run {
            outcome::plan(cx, name, patch.dry_run().send().await.about_cvm(name)?)?;
            texts.note_on_env(cx);
            return Ok(());
        }
        let outcome = patch.clone().send().await.about_cvm(name)?;
        let change = Change { cvm: name, doing: "Updating", done: "updated", waiting: self.waiting };
        change.outcome(cx, outcome, self.how.approving(&self.signing, &patch)).await
    }
}

impl Place {
    /// A CVM stays where it is. Naming that place again is fine.
    fn check(&self, name: &str, now: &wire::Cvm) -> Result<()> {
        let place = now.node_info.clone().unwrap_or_default();
        let is_here = |node: &String| {
            place.name.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(node))
                || place.id.is_some_and(|id| id.to_string() == *node)
        };
        let differs = match (&self.node, &self.region) {
            (Some(node), _) if !is_here(node) => Some("node"),
            (_, Some(region)) if place.region.as_ref().is_some_and(|here| here != region) => Some("region"),
            _ => None,
        };
        if let Some(what) = differs {
            let here = place.name.unwrap_or_default();
            let text = format!("--{what}: {name} exists already, on {here}, and a CVM cannot move");
            return Err(Failure::failed(text).hint(format!("leave --{what} out, or choose another --name")));
        }
        if self.dev_os && now.os.as_ref().and_then(|os| os.is_dev) == Some(false) {
            let text = format!("--dev-os: {name} exists already, with a production image");
            return Err(Failure::failed(text).hint("`--image` switches to another one"));
        }
        Ok(())
    }
}

/// A word for all key services of a kind, which every server knows; anything else names one of them.
fn is_kind(text: &str) -> bool {
    wire::KmsType::WORDS.iter().any(|word| word.eq_ignore_ascii_case(text))
}

/// A name made from that of a folder.
fn name_of(folder: &Path) -> Result<String> {
    let name = folder.file_name().and_then(|name| hostname_from(&name.to_string_lossy()));
    name.map(|name| name.to_string()).ok_or_else(|| {
        Failure::usage("the name of this folder cannot be that of a CVM").hint("`-n NAME` gives it one")
    })
}

/// The compose file that lies in the folder under a usual name.
fn usual_file(cx: &Context) -> Result<Option<String>> {
    let path =
        USUAL_FILES.map(|name| cx.environment.folder.join(name)).into_iter().find(|path| path.is_file());
    path.as_deref().map(read_file).transpose()
}

fn would_create(cx: &Context, name: &str, answer: wire::ProvisionAnswer) -> Result<()> {
    for warning in &answer.warnings {
        cx.out.warning(warning);
    }
    cx.out.result(&answer, |answer| {
        let known = fields([
            ("node", answer.node_id.map(|id| id.to_string())),
            ("size", answer.instance_type.clone()),
            ("app id", answer.app_id.map(|id| id.to_string())),
            ("compose hash", Some(answer.compose_hash.to_string())),
            ("OS image hash", answer.os_image_hash.as_deref().map(human::short)),
        ]);
        let known: Vec<_> = known.lines().map(|line| format!("  {line}")).collect();
        format!("{name} would be created:\n{}", known.join("\n"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_the_files_that_are_looked_for() {
        assert!(COMPOSE_HELP.contains(&USUAL_FILES.join(", ")));
    }

    #[test]
    fn an_owner_with_a_typing_error_is_refused() {
        let right = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
        for text in [right, &right.to_lowercase(), right.trim_start_matches("0x")] {
            assert!(owner(text).is_ok(), "{text}");
        }
        assert!(owner(&right.replace("266", "366")).unwrap_err().contains("EIP-55"));
        assert!(owner("0x12").is_err());
    }

    #[test]
    fn a_folder_gives_its_name_to_the_app() {
        assert_eq!(name_of(Path::new("/home/me/My_Shop")).unwrap(), "my-shop");
        assert_eq!(name_of(Path::new("/home/me/web")).unwrap(), "dstack-app-web");
        assert_eq!(name_of(Path::new("/")).unwrap_err().code(), 2);
    }
}
