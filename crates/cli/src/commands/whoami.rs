//! `casemate whoami`.

use clap::Args;

use crate::context::Context;
use crate::error::Result;
use crate::output::fields;

/// Show whose key is used, and where
#[derive(Args)]
pub struct Whoami {}

impl Whoami {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let settings = cx.settings()?;
        let me = cx.client()?.me().await?;
        cx.out.result(&me, |me| {
            fields([
                ("user", Some(me.user.username.clone())),
                ("e-mail", Some(me.user.email.clone()).filter(|email| !email.is_empty())),
                ("workspace", Some(me.workspace.name.clone())),
                ("server", Some(format!("{} (from {})", settings.url, settings.url_from))),
                ("key", settings.key.as_ref().map(|key| format!("from {}", key.from))),
            ])
        })
    }
}
