//! Numbers and times as people read them.

use jiff::Timestamp;

/// What a field without a value shows.
pub(crate) const NOTHING: &str = "-";

/// The time now. The one place in this crate where a clock is read.
#[expect(
    clippy::disallowed_methods,
    reason = "a command shows how long ago things were, and nothing depends on it"
)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// How long ago something was: `42 s ago`, `3 min ago`.
pub(crate) fn ago(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.as_second() - then.as_second();
    match seconds {
        // Clocks of two machines differ a little.
        ..=0 => "just now".to_owned(),
        1..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86400 => format!("{} h ago", seconds / 3600),
        86400..172800 => "1 day ago".to_owned(),
        _ => format!("{} days ago", seconds / 86400),
    }
}

/// The same for a time that may not be known.
pub(crate) fn ago_opt(now: Timestamp, then: Option<Timestamp>) -> String {
    then.map_or_else(|| NOTHING.to_owned(), |then| ago(now, then))
}

/// A time to the second, in UTC.
pub(crate) fn time(at: Timestamp) -> String {
    let text = format!("{at:.0}");
    text.replace('T', " ").replace('Z', " UTC")
}

/// A length of time in milliseconds: `40 ms`, `2.1 s`, `1 min 5 s`.
pub(crate) fn millis(millis: u64) -> String {
    match millis {
        ..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", millis / 60_000, millis % 60_000 / 1_000),
        _ => format!("{} h {} min", millis / 3_600_000, millis % 3_600_000 / 60_000),
    }
}

/// The time between two moments in milliseconds.
pub(crate) fn between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
}

/// Memory of so many MB, in GB where that is a whole number.
pub(crate) fn megabytes(mb: u64) -> String {
    match mb {
        0 => "0 GB".to_owned(),
        mb if mb.is_multiple_of(1024) => format!("{} GB", mb / 1024),
        mb => format!("{mb} MB"),
    }
}

/// The first digits of a hash, enough to recognise it.
pub(crate) fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

/// `yes` or `no`.
pub(crate) const fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_relative_and_round_down() {
        let now: Timestamp = "2026-03-01T12:00:00.9Z".parse().unwrap();
        for (then, text) in [
            ("2026-03-01T12:00:01Z", "just now"),
            ("2026-03-01T12:00:00Z", "just now"),
            ("2026-03-01T11:59:18Z", "42 s ago"),
            ("2026-03-01T11:56:01Z", "3 min ago"),
            ("2026-03-01T07:00:00Z", "5 h ago"),
            ("2026-02-28T11:00:00Z", "1 day ago"),
            ("2026-02-17T12:00:00Z", "12 days ago"),
        ] {
            assert_eq!(ago(now, then.parse().unwrap()), text);
        }
        assert_eq!(ago_opt(now, None), "-");
        assert_eq!(time(now), "2026-03-01 12:00:00 UTC");
    }

    #[test]
    fn lengths_of_time_have_a_fitting_unit() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (2_149, "2.1 s"),
            (59_999, "59.9 s"),
            (65_400, "1 min 5 s"),
            (3_720_000, "1 h 2 min"),
        ] {
            assert_eq!(millis(ms), text);
        }
    }

    #[test]
    fn memory_is_in_gb_where_it_can_be() {
        assert_eq!([0, 512, 1024, 1536, 8192].map(megabytes), ["0 GB", "512 MB", "1 GB", "1536 MB", "8 GB"]);
    }
}
