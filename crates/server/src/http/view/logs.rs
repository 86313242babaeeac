//! Addresses of logs. They need no API key: a signature in the query shows that somebody was given the address who could
//! read the CVM, and says until when it is good.

use std::fmt::Write;

use casemate_types::ids::VmUuid;
use casemate_types::wire;
use jiff::Timestamp;

use crate::app::App;
use crate::mac;

/// Addresses are good until the end of the next day (UTC). All those made on one day are equal, so that an answer that
/// shows one does not change with every request.
const DAY: i64 = 24 * 3600;

fn sign(app: &App, vm: VmUuid, expires: i64) -> String {
    let mut message = vm.0.as_bytes().to_vec();
    message.extend(expires.to_be_bytes());
    hex::encode(&mac::of(&app.secret, "log", &message)[..20])
}

/// What every address of the logs of a machine ends with today.
fn signature(app: &App, vm: VmUuid) -> String {
    let today = app.clock.now().as_second().div_euclid(DAY);
    let expires = (today + 2) * DAY;
    format!("?expires={expires}&sig={}", sign(app, vm, expires))
}

fn address(app: &App, vm: VmUuid, what: &str, signature: &str) -> String {
    format!("{}/api/v1/logs/{vm}{what}{signature}", app.config.public_url)
}

fn signed(app: &App, vm: VmUuid, what: &str) -> String {
    address(app, vm, what, &signature(app, vm))
}

/// Was `signature` given out for the logs of this machine, and is it still good?
pub fn signature_holds(app: &App, vm: VmUuid, expires: i64, signature: &str, now: Timestamp) -> bool {
    use subtle::ConstantTimeEq;
    let right = sign(app, vm, expires);
    now.as_second() < expires && bool::from(right.as_bytes().ct_eq(signature.as_bytes()))
}

/// Logs of a machine; readers append `&ch=serial`, `stdout` or `stderr`.
pub fn syslog_url(app: &App, vm: VmUuid) -> String {
    signed(app, vm, "")
}

/// The log of one container.
pub fn container_log_url(app: &App, vm: VmUuid, name: &str) -> String {
    let mut url = signed(app, vm, "/container");
    url.push_str("&name=");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}

/// Every log of a machine.
pub fn log_urls(app: &App, vm: VmUuid) -> wire::LogUrls {
    let signature = signature(app, vm);
    let syslog = address(app, vm, "", &signature);
    let channel = |name: &str| Some(format!("{syslog}&ch={name}"));
    wire::LogUrls {
        serial: channel("serial"),
        stdout: channel("stdout"),
        stderr: channel("stderr"),
        container_log_base: Some(address(app, vm, "/container", &signature) + "&name="),
    }
}
