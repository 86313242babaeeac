//! An app that belongs to a wallet of several people.

use casemate_chain::Action;
use casemate_chain::dev::{Batch, forge_calldata};
use casemate_types::ids::{Address, ComposeHash, DeviceId};

use super::site::{STRANGER, Site, assert_467, assert_468, image};

#[tokio::test]
async fn a_batch_of_two_of_three_people_is_accepted() {
    let site = Site::with(|_| (), |contracts| contracts.wallet).await;
    let boots = site.boots().await;
    let prepared = site.prepare(image(2)).await;
    assert_468(&site.commit(&prepared.token, "").await);
    let forger = site.chain().deploy_forger().await.expect("deployed");
    let contract = Address::from(site.app());
    // Among other calls, some of them to other contracts, and one that reports the hash without being the app.
    let other = ComposeHash([0xee; 32]);
    let calls = vec![
        (forger, forge_calldata(prepared.asked)),
        (contract, Action::AddComposeHash(other).calldata()),
        (contract, Action::AddDevice(DeviceId([0xdd; 32])).calldata()),
        (contract, Action::AddComposeHash(prepared.asked).calldata()),
        (contract, Action::RemoveComposeHash(other).calldata()),
    ];
    // The same batch without the call that counts proves nothing.
    let vain: Vec<_> = calls.iter().take(3).cloned().collect();
    let wallet = site.contracts.wallet;
    let in_vain = Batch { salt: 1, calls: vain };
    let tx = site.chain().through_wallet(wallet, &in_vain, STRANGER).await.expect("made");
    assert_467(
        &site.commit(&prepared.token, &format!("0x{tx}")).await,
        "does not register this compose hash",
    );
    assert_468(&site.commit(&prepared.token, "").await);
    site.assert_untouched(boots).await;

    let tx = site.chain().through_wallet(wallet, &Batch { salt: 2, calls }, STRANGER).await.expect("made");
    site.commit(&prepared.token, &format!("0x{tx}")).await.expect(202);
    site.assert_becomes(prepared.asked, boots + 1).await;
}

#[tokio::test]
async fn one_of_three_people_is_not_enough() {
    let site = Site::with(|_| (), |contracts| contracts.wallet).await;
    let boots = site.boots().await;
    let prepared = site.prepare(image(2)).await;
    let data = Action::AddComposeHash(prepared.asked).calldata();
    // An owner of the wallet does not own the app.
    let alone = site.send(STRANGER, site.app().into(), &data, serde_json::json!({})).await;
    assert_467(&site.commit(&prepared.token, &format!("0x{alone}")).await, "failed on the chain");
    assert_468(&site.commit(&prepared.token, "").await);
    site.assert_untouched(boots).await;
}
