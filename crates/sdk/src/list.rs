//! Lists: `send()` for a page, `stream()` for everything.

use std::fmt::Display;

use casemate_types::ids::AppId;
use casemate_types::wire;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use reqwest::Method;
use serde::de::DeserializeOwned;

use crate::call::Call;
use crate::client::Client;
use crate::error::Result;

/// A page that knows where the next one begins.
pub trait Cursor: DeserializeOwned + Send + 'static {
    /// What is on it.
    type Item: Send + 'static;

    /// The parameter that says where a page begins.
    const BEGIN: &str = "cursor";

    /// What is on it, and where the next one begins.
    fn split(self) -> (Vec<Self::Item>, Option<String>);
}

/// A list whose pages are found by a cursor: [`Client::operations`], [`Client::approvals`], [`Client::audit`],
/// [`Cvm::revisions`](crate::Cvm::revisions).
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use futures_util::TryStreamExt;
///
/// let mut stuck = client.operations().stuck().stream();
/// while let Some(op) = stuck.try_next().await? {
///     println!("{} waits for {:?}", op.correlation_id, op.waiting_for);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send` or `stream`"]
pub struct ByCursor<P> {
    call: Call,
    page: std::marker::PhantomData<fn() -> P>,
}

impl<P: Cursor> ByCursor<P> {
    pub(crate) fn new(call: Call) -> Self {
        Self { call, page: std::marker::PhantomData }
    }

    pub(crate) fn query(mut self, name: &str, value: impl Display) -> Self {
        self.call = self.call.query(name, value);
        self
    }

    /// At most so many on a page.
    pub fn limit(self, limit: u32) -> Self {
        self.query("limit", limit)
    }

    /// From where an earlier page said that it goes on.
    pub fn cursor(self, cursor: impl Display) -> Self {
        self.query(P::BEGIN, cursor)
    }

    /// One page.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported), and what every request can fail with.
    pub async fn send(self) -> Result<P> {
        self.call.fetch().await
    }

    /// Everything, page after page. The errors of the stream are those of [`send`](Self::send); after one, it ends.
    pub fn stream(self) -> BoxStream<'static, Result<P::Item>> {
        stream::try_unfold(Some(self.call), |next| async {
            let Some(call) = next else { return Ok(None) };
            let (items, cursor) = call.clone().fetch::<P>().await?.split();
            let next = cursor.map(|cursor| call.set_query(P::BEGIN, cursor));
            Ok::<_, crate::Error>(Some((stream::iter(items.into_iter().map(Ok)), next)))
        })
        .try_flatten()
        .boxed()
    }
}

impl ByCursor<wire::OperationPage> {
    /// Only those on this CVM.
    pub fn cvm(self, id: impl Display) -> Self {
        self.query("cvm", id)
    }

    /// Only those that stand there.
    pub fn status(self, status: impl Into<wire::OperationStatus>) -> Self {
        self.query("status", status.into())
    }

    /// Only those that cannot go on by themselves for now.
    pub fn stuck(self) -> Self {
        self.query("stuck", true)
    }
}

impl ByCursor<wire::AuditPage> {
    /// Only what happened after the event with this number. A reader that comes back with the last number it has misses
    /// nothing; [`Error::Api`](crate::Error::Api) with status 410 if events after it are no longer kept.
    pub fn after(self, seq: u64) -> Self {
        self.cursor(seq)
    }

    /// Only what concerns this CVM.
    pub fn cvm(self, id: impl Display) -> Self {
        self.query("cvm", id)
    }
}

impl Cursor for wire::OperationPage {
    type Item = wire::Operation;

    fn split(self) -> (Vec<wire::Operation>, Option<String>) {
        (self.items, self.next_cursor)
    }
}

impl Cursor for wire::AuditPage {
    type Item = wire::AuditEvent;

    const BEGIN: &str = "after";

    fn split(self) -> (Vec<wire::AuditEvent>, Option<String>) {
        (self.items, self.next_cursor)
    }
}

/// A list whose pages are numbered from 1: [`Client::cvms`], [`Client::os_images`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// use futures_util::TryStreamExt;
///
/// let page = client.cvms().page_size(100).send().await?;
/// println!("{} of {}", page.items.len(), page.total);
///
/// let all: Vec<_> = client.cvms().stream().try_collect().await?;
/// assert_eq!(all.len() as u64, page.total);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send` or `stream`"]
pub struct ByPage<T> {
    call: Call,
    page: u64,
    page_size: Option<u32>,
    item: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned + Send + 'static> ByPage<T> {
    pub(crate) fn new(call: Call) -> Self {
        Self { call, page: 1, page_size: None, item: std::marker::PhantomData }
    }

    fn query(mut self, name: &str, value: impl Display) -> Self {
        self.call = self.call.query(name, value);
        self
    }

    /// This page; pages count from 1. A stream begins there.
    pub fn page(mut self, page: u64) -> Self {
        self.page = page;
        self
    }

    /// At most so many on a page: 1 to 100.
    pub fn page_size(mut self, size: u32) -> Self {
        self.page_size = Some(size);
        self
    }

    fn call(&self) -> Call {
        // Always sent: a server may answer with everything at once, and in another form, if it is not asked for a page.
        self.call.clone().query("page", self.page).query_opt("page_size", self.page_size)
    }

    /// One page.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a page that cannot be, and what every request can fail with.
    pub async fn send(self) -> Result<wire::Page<T>> {
        self.call().fetch().await
    }

    /// Everything, page after page. The errors of the stream are those of [`send`](Self::send); after one, it ends.
    pub fn stream(self) -> BoxStream<'static, Result<T>> {
        stream::try_unfold(Some(self), |next| async {
            let Some(mut list) = next else { return Ok(None) };
            let page: wire::Page<T> = list.call().fetch().await?;
            let more = !page.items.is_empty() && list.page < page.pages;
            list.page += 1;
            Ok::<_, crate::Error>(Some((stream::iter(page.items.into_iter().map(Ok)), more.then_some(list))))
        })
        .try_flatten()
        .boxed()
    }
}

impl ByPage<wire::Cvm> {
    /// Only those on this node.
    pub fn node(self, id: i64) -> Self {
        self.query("node_id", id)
    }

    /// Only those with GPUs, or only those without.
    pub fn gpu(self, gpu: bool) -> Self {
        self.query("family", if gpu { "gpu" } else { "cpu" })
    }

    /// Only those of this named size. Can be given several times.
    pub fn instance_type(self, name: impl Display) -> Self {
        self.query("instance_types", name)
    }
}

impl ByPage<wire::OsImage> {
    /// Only images for development, or only those for production.
    pub fn dev(self, dev: bool) -> Self {
        self.query("is_dev", dev)
    }
}

/// The apps of a workspace: [`Client::apps`].
///
/// ```no_run
/// # async fn example(client: casemate_sdk::Client) -> casemate_sdk::Result<()> {
/// for app in client.apps().search("web").send().await?.dstack_apps {
///     println!("{} has {} CVMs", app.name, app.cvm_count);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send` or `stream`"]
pub struct Apps {
    call: Call,
    page: u64,
    page_size: Option<u32>,
}

impl Apps {
    pub(crate) fn new(client: &Client) -> Self {
        Self { call: client.call(Method::GET, ["apps"]), page: 1, page_size: None }
    }

    fn query(mut self, name: &str, value: impl Display) -> Self {
        self.call = self.call.query(name, value);
        self
    }

    /// This page; pages count from 1. A stream begins there.
    pub fn page(mut self, page: u64) -> Self {
        self.page = page;
        self
    }

    /// At most so many on a page: 1 to 100.
    pub fn page_size(mut self, size: u32) -> Self {
        self.page_size = Some(size);
        self
    }

    /// Only those whose name, app id, machine UUID or instance id contains this.
    pub fn search(self, text: impl Display) -> Self {
        self.query("search", text)
    }

    /// Only those with a CVM in this status. Can be given several times.
    pub fn status(self, status: impl Into<wire::Status>) -> Self {
        self.query("status", status.into())
    }

    /// Only those that are shown in the public directory, or only the others.
    pub fn listed(self, listed: bool) -> Self {
        self.query("listed", listed)
    }

    /// Only those with a CVM on the node of this name.
    pub fn node(self, name: impl Display) -> Self {
        self.query("node", name)
    }

    /// Only those with a CVM in this region.
    pub fn region(self, region: impl Display) -> Self {
        self.query("region", region)
    }

    fn call(&self) -> Call {
        self.call.clone().query("page", self.page).query_opt("page_size", self.page_size)
    }

    /// One page.
    ///
    /// # Errors
    /// What every request can fail with.
    pub async fn send(self) -> Result<wire::AppPage<wire::Cvm>> {
        self.call().fetch().await
    }

    /// Everything, page after page. The errors of the stream are those of [`send`](Self::send); after one, it ends.
    pub fn stream(self) -> BoxStream<'static, Result<wire::AppRecord<wire::Cvm>>> {
        stream::try_unfold(Some(self), |next| async {
            let Some(mut list) = next else { return Ok(None) };
            let page: wire::AppPage<wire::Cvm> = list.call().fetch().await?;
            let more = !page.dstack_apps.is_empty() && list.page < page.total_pages;
            list.page += 1;
            Ok::<_, crate::Error>(Some((
                stream::iter(page.dstack_apps.into_iter().map(Ok)),
                more.then_some(list),
            )))
        })
        .try_flatten()
        .boxed()
    }
}

impl Client {
    /// The CVMs of the workspace, newest first.
    #[doc(alias = "getCvmList")]
    pub fn cvms(&self) -> ByPage<wire::Cvm> {
        ByPage::new(self.call(Method::GET, ["cvms", "paginated"]))
    }

    /// The apps of the workspace.
    pub fn apps(&self) -> Apps {
        Apps::new(self)
    }

    /// The CVMs of an app.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), and what every request can fail with.
    pub async fn app_cvms(&self, app: AppId) -> Result<Vec<wire::Cvm>> {
        self.call(Method::GET, ["apps", &app.to_string(), "cvms"]).fetch().await
    }

    /// The OS images that there are.
    #[doc(alias = "getAvailableOsImages")]
    pub fn os_images(&self) -> ByPage<wire::OsImage> {
        ByPage::new(self.call(Method::GET, ["os-images"]))
    }

    /// Operations, newest first. Needs Casemate.
    pub fn operations(&self) -> ByCursor<wire::OperationPage> {
        ByCursor::new(self.call(Method::GET, ["operations"]).only_casemate("operations"))
    }

    /// What happened in the workspace, oldest first. Needs Casemate.
    pub fn audit(&self) -> ByCursor<wire::AuditPage> {
        ByCursor::new(self.call(Method::GET, ["audit"]).only_casemate("the audit trail"))
    }
}
