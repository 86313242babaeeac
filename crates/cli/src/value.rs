//! Values of options, parsed once.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use casemate_types::env::EnvVar;

/// Memory in MB: `2G`, `2048M` or `2048`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory(pub u32);

/// Disk in GB: `20G`, `1T` or `20`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disk(pub u32);

/// How long something lasts: `90m`, `12h`, `30d` or `8w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime(pub Duration);

impl FromStr for Lifetime {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        /// A hundred years: what is longer is meant to have no end.
        const LONGEST: u64 = 100 * 365 * 86_400;
        let seconds = |number: &str, each: u64| number.parse::<u64>().ok()?.checked_mul(each);
        let last = text.trim().char_indices().last();
        let seconds = last.and_then(|(end, unit)| match unit {
            'm' => seconds(&text.trim()[..end], 60),
            'h' => seconds(&text.trim()[..end], 3600),
            'd' => seconds(&text.trim()[..end], 86_400),
            'w' => seconds(&text.trim()[..end], 7 * 86_400),
            _ => None,
        });
        match seconds {
            Some(seconds @ 1..=LONGEST) => Ok(Self(Duration::from_secs(seconds))),
            _ => Err("should be a time such as 90m, 12h, 30d or 8w"),
        }
    }
}

/// A number and its unit, in upper case and without `B` or `iB`.
fn amount(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim().to_ascii_uppercase();
    let unit = unit.strip_suffix('B').unwrap_or(&unit);
    let unit = unit.strip_suffix('I').unwrap_or(unit);
    Some((number.parse().ok()?, unit.to_owned()))
}

/// A whole number of at least 1, or nothing.
fn whole(number: f64) -> Option<u32> {
    let fits = number.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(&number);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "just checked")]
    fits.then_some(number as u32)
}

impl FromStr for Memory {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let megabytes = amount(text).and_then(|(number, unit)| match unit.as_str() {
            "" | "M" => whole(number),
            "G" => whole(number * 1024.0),
            "T" => whole(number * 1024.0 * 1024.0),
            _ => None,
        });
        megabytes
            .map(Self)
            .ok_or("should be an amount of memory such as 2G or 2048M; without a unit it is MB")
    }
}

impl FromStr for Disk {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let gigabytes = amount(text).and_then(|(number, unit)| match unit.as_str() {
            "" | "G" => whole(number),
            "T" => whole(number * 1024.0),
            _ => None,
        });
        gigabytes.map(Self).ok_or("should be a size such as 20G; without a unit it is GB")
    }
}

/// An environment variable, or a file with some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EnvArg {
    /// `KEY=VALUE`.
    Var(EnvVar),
    /// A file in dotenv form.
    File(PathBuf),
}

impl FromStr for EnvArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if is_name(key) => Ok(Self::Var(EnvVar::new(key, value))),
            _ if text.is_empty() => Err("should be KEY=VALUE or the name of a file"),
            _ => Ok(Self::File(text.into())),
        }
    }
}

/// Whether a variable can be called so. `./my=file` cannot, and is a file.
fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// GPUs by number, of one product if it is named: `2` or `2:H200`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gpus {
    /// How many; 0 removes all.
    pub count: u32,
    /// Only of this product.
    pub product: Option<String>,
}

impl FromStr for Gpus {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (count, product) = match text.split_once(':') {
            Some((count, product)) if !product.is_empty() => (count, Some(product.to_owned())),
            Some(_) => return Err("should name a product behind the colon, such as 1:H200"),
            None => (text, None),
        };
        let count =
            count.parse().map_err(|_| "should be a number of GPUs such as 1, 1:H200, or 0 for none")?;
        Ok(Self { count, product })
    }
}

/// A file that is read, or `-` for standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Standard input.
    Stdin,
    /// A file.
    File(PathBuf),
}

impl From<&str> for Input {
    fn from(text: &str) -> Self {
        if text == "-" { Self::Stdin } else { Self::File(text.into()) }
    }
}

impl Input {
    /// All of it, as text.
    pub(crate) fn read(&self) -> Result<String, crate::error::Failure> {
        match self {
            Self::File(path) => read_file(path),
            Self::Stdin => std::io::read_to_string(std::io::stdin()).map_err(|error| {
                crate::error::Failure::usage(format!("cannot read standard input: {error}"))
            }),
        }
    }
}

/// A file, as text.
pub(crate) fn read_file(path: &Path) -> Result<String, crate::error::Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| crate::error::Failure::usage(format!("cannot read {}: {error}", path.display())))
}

/// The variables of some options, in order; a later one replaces an earlier one of the same name.
pub(crate) fn read_env(args: &[EnvArg]) -> Result<Vec<EnvVar>, crate::error::Failure> {
    let mut vars: Vec<EnvVar> = Vec::new();
    for arg in args {
        let more = match arg {
            EnvArg::Var(var) => vec![var.clone()],
            EnvArg::File(path) => casemate_types::env::parse_env_file(&read_file(path)?),
        };
        for var in more {
            match vars.iter_mut().find(|known| known.key == var.key) {
                Some(known) => *known = var,
                None => vars.push(var),
            }
        }
    }
    Ok(vars)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_disk_take_the_usual_units() {
        for (text, mb) in [
            ("2048", 2048),
            ("2G", 2048),
            ("2gb", 2048),
            ("2 GiB", 2048),
            ("1.5G", 1536),
            ("512M", 512),
            ("1T", 1 << 20),
        ] {
            assert_eq!(text.parse(), Ok(Memory(mb)), "{text}");
        }
        for (text, gb) in [("20", 20), ("20G", 20), ("2T", 2048)] {
            assert_eq!(text.parse(), Ok(Disk(gb)), "{text}");
        }
    }

    #[test]
    fn a_lifetime_is_a_number_and_a_unit() {
        for (text, seconds) in [("90m", 5400), ("12h", 43_200), ("30d", 2_592_000), (" 8w ", 4_838_400)] {
            assert_eq!(text.parse(), Ok(Lifetime(Duration::from_secs(seconds))), "{text}");
        }
        for text in
            ["", "d", "0d", "-1d", "30", "1.5d", "30 d", "5y", "30é", "99999999999999999999d", "5300w"]
        {
            assert!(text.parse::<Lifetime>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["", "G", "0", "-1", "2X", "1.2.3", "1.0001G", "9999999T"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
        for text in ["", "0", "1.5G", "20M"] {
            assert!(text.parse::<Disk>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_variable_is_told_from_a_file() {
        assert_eq!("A_1=x=y".parse(), Ok(EnvArg::Var(EnvVar::new("A_1", "x=y"))));
        assert_eq!("A=".parse(), Ok(EnvArg::Var(EnvVar::new("A", ""))));
        assert_eq!("app.env".parse(), Ok(EnvArg::File("app.env".into())));
        assert_eq!("./a=b".parse(), Ok(EnvArg::File("./a=b".into())));
        assert!("".parse::<EnvArg>().is_err());
    }

    #[test]
    fn a_later_variable_wins() {
        let args = ["A=1", "B=2", "A=3"].map(|text| text.parse().unwrap());
        assert_eq!(read_env(&args).unwrap(), [EnvVar::new("A", "3"), EnvVar::new("B", "2")]);
    }

    #[test]
    fn gpus_have_a_number_and_maybe_a_product() {
        assert_eq!("0".parse(), Ok(Gpus { count: 0, product: None }));
        assert_eq!("2:H200".parse(), Ok(Gpus { count: 2, product: Some("H200".into()) }));
        assert!("x".parse::<Gpus>().is_err() && "1:".parse::<Gpus>().is_err());
    }
}
