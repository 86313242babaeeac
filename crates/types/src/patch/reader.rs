//! Reads the fields of a JSON object and collects everything that is wrong with them.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::compose::kind_of;
use crate::error::FieldError;

/// Longest text that an error repeats.
const MAX_INPUT: usize = 200;

/// A JSON object being read. `null` is as good as absent everywhere.
///
/// A field that is wrong is noted and read as absent, so that one answer names all of them.
pub(super) struct Reader<'a> {
    map: &'a Map<String, Value>,
    prefix: Vec<String>,
    errors: Vec<FieldError>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, prefix: vec!["body".into()], errors: Vec::new() }
    }

    /// The value, unless something was wrong.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<FieldError>> {
        if self.errors.is_empty() { Ok(value) } else { Err(self.errors) }
    }

    /// As [`finish`](Self::finish), for values that exist only if nothing was wrong.
    pub(super) fn finish_with<T>(mut self, value: Option<T>) -> Result<T, Vec<FieldError>> {
        match value {
            Some(value) => self.finish(value),
            None => {
                if self.errors.is_empty() {
                    self.errors.push(FieldError::body("", "value_error", "the body is incomplete"));
                }
                Err(self.errors)
            }
        }
    }

    /// The first of `names` that is there. What is found may contradict another of them; see [`Reader::one_of`].
    pub(super) fn find<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &'a Value)> {
        names
            .iter()
            .find_map(|name| self.map.get(*name).filter(|value| !value.is_null()).map(|value| (*name, value)))
    }

    /// The field that goes by several `names`. Those that are there have to say the same; an empty text says nothing.
    fn one_of<'n>(
        &mut self,
        names: &[&'n str],
        same: fn(&Value, &Value) -> bool,
    ) -> Option<(&'n str, &'a Value)> {
        let (first, rest) = names.split_first()?;
        if rest.is_empty() {
            return self.find(&[first]);
        }
        let given: Vec<_> = names.iter().filter_map(|name| self.find(&[name])).collect();
        let meant = given.iter().copied().find(|(_, value)| value.as_str() != Some(""));
        let (name, value) = meant.or(given.first().copied())?;
        let other = given.iter().find(|(_, other)| other.as_str() != Some("") && !same(value, other));
        if let Some((other, _)) = other {
            self.note(
                name,
                "value_error",
                format!("`{name}` and `{other}` are two names of one field and say different things; send one of them"),
                Some(value),
            );
            return None;
        }
        Some((name, value))
    }

    pub(super) fn note(&mut self, field: &str, kind: &str, msg: impl Into<String>, input: Option<&Value>) {
        let mut loc = self.prefix.clone();
        loc.push(field.to_owned());
        self.errors.push(FieldError {
            loc,
            msg: msg.into(),
            kind: kind.into(),
            ctx: None,
            input: input.and_then(shown),
        });
    }

    /// Adds to the error noted last what limit was passed.
    fn with_ctx(&mut self, ctx: Value) {
        if let Some(error) = self.errors.last_mut() {
            error.ctx = Some(ctx);
        }
    }

    fn wrong_type(&mut self, field: &str, kind: &str, expected: &str, value: &Value) {
        self.note(field, kind, format!("must be {expected}, not {}", kind_of(value)), Some(value));
    }

    /// Notes that a field is missing.
    pub(super) fn missing(&mut self, field: &str, what: &str) {
        self.note(field, "missing", format!("required: {what}"), None);
    }

    pub(super) fn text(&mut self, names: &[&str]) -> Option<&'a str> {
        self.named_text(names, same).map(|(_, text)| text)
    }

    fn named_text<'n>(
        &mut self,
        names: &[&'n str],
        same: fn(&Value, &Value) -> bool,
    ) -> Option<(&'n str, &'a str)> {
        let (name, value) = self.one_of(names, same)?;
        let text = value.as_str();
        if text.is_none() {
            self.wrong_type(name, "string_type", "a string", value);
        }
        text.map(|text| (name, text))
    }

    pub(super) fn string(&mut self, names: &[&str]) -> Option<String> {
        self.text(names).map(str::to_owned)
    }

    /// A text that must not be empty.
    pub(super) fn non_empty(&mut self, names: &[&str]) -> Option<String> {
        let (name, text) = self.named_text(names, same)?;
        if text.trim().is_empty() {
            self.note(name, "string_too_short", "must not be empty", None);
            self.with_ctx(json!({ "min_length": 1 }));
            return None;
        }
        Some(text.to_owned())
    }

    /// A text that is parsed. Its error is shown, the text itself only if it is not a secret.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, names: &[&str]) -> Option<T> {
        let (name, text) = self.named_text(names, same_id)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.note(name, "value_error", error.to_string(), Some(&Value::from(text)));
                None
            }
        }
    }

    /// As [`parsed`](Self::parsed), with an empty text counting as absent.
    pub(super) fn parsed_unless_empty<T: FromStr<Err: Display>>(&mut self, names: &[&str]) -> Option<T> {
        let blank = |value: &Value| value.as_str().is_some_and(|text| text.trim().is_empty());
        let given = names.iter().filter_map(|name| self.find(&[name]));
        if given.map(|(_, value)| value).all(blank) { None } else { self.parsed(names) }
    }

    /// `true`, `false`, and `1` and `0`, which one client sends.
    pub(super) fn bool(&mut self, names: &[&str]) -> Option<bool> {
        let (name, value) = self.one_of(names, same)?;
        match value {
            Value::Bool(value) => Some(*value),
            Value::Number(number) if number.as_f64() == Some(0.0) => Some(false),
            Value::Number(number) if number.as_f64() == Some(1.0) => Some(true),
            _ => {
                self.wrong_type(name, "bool_type", "true or false", value);
                None
            }
        }
    }

    /// A whole number within bounds; `4.0` is one.
    pub(super) fn int<T: TryFrom<i64>>(&mut self, names: &[&str], min: i64, max: i64) -> Option<T> {
        let (name, value) = self.one_of(names, same)?;
        let Some(integer) = integer_of(value) else {
            let kind = if value.is_number() { "int_from_float" } else { "int_type" };
            let msg = if value.is_number() {
                "must be a whole number".to_owned()
            } else {
                format!("must be a whole number, not {}", kind_of(value))
            };
            self.note(name, kind, msg, Some(value));
            return None;
        };
        if integer < min {
            self.note(name, "greater_than_equal", format!("must be at least {min}"), Some(value));
            self.with_ctx(json!({ "ge": min }));
            return None;
        }
        if integer > max {
            self.note(name, "less_than_equal", format!("must be at most {max}"), Some(value));
            self.with_ctx(json!({ "le": max }));
            return None;
        }
        T::try_from(integer).ok()
    }

    /// A count of something: 0 to 2³² − 1.
    pub(super) fn count(&mut self, names: &[&str]) -> Option<u32> {
        self.int(names, 0, i64::from(u32::MAX))
    }

    /// A size of a machine, at least `least`. How large it may be is the server's to say, and it says both bounds: what is
    /// not negative is read as it is, and what no machine can have as 2³² − 1.
    pub(super) fn size(&mut self, name: &str, least: u32) -> Option<u32> {
        match self.find(&[name]).and_then(|(_, value)| integer_of(value)) {
            Some(integer @ 0..) => Some(u32::try_from(integer).unwrap_or(u32::MAX)),
            Some(_) | None => self.int(&[name], i64::from(least), i64::from(u32::MAX)),
        }
    }

    pub(super) fn strings(&mut self, names: &[&str]) -> Option<Vec<String>> {
        let (name, value) = self.one_of(names, same)?;
        let items = value.as_array().map(|items| items.iter().map(|item| item.as_str().map(str::to_owned)));
        match items.map(|items| items.collect::<Option<Vec<_>>>()) {
            Some(Some(items)) => Some(items),
            Some(None) => {
                self.note(name, "string_type", "must be a list of strings only", Some(value));
                None
            }
            None => {
                self.wrong_type(name, "list_type", "a list of strings", value);
                None
            }
        }
    }

    /// A list of strings, or one string with commas between them.
    pub(super) fn strings_or_one(&mut self, names: &[&str]) -> Option<Vec<String>> {
        match self.one_of(names, |a, b| listed(a) == listed(b))? {
            (_, value @ Value::String(_)) => listed(value),
            (name, _) => self.strings(&[name]),
        }
    }

    pub(super) fn object(&mut self, names: &[&str]) -> Option<(String, &'a Map<String, Value>)> {
        let (name, value) = self.one_of(names, same)?;
        let object = value.as_object();
        if object.is_none() {
            self.wrong_type(name, "dict_type", "an object", value);
        }
        object.map(|object| (name.to_owned(), object))
    }

    /// Reads an object within this one.
    pub(super) fn within<T>(
        &mut self,
        path: &[&str],
        map: &Map<String, Value>,
        read: impl FnOnce(&mut Reader<'_>) -> T,
    ) -> T {
        let mut prefix = self.prefix.clone();
        prefix.extend(path.iter().map(|&part| part.to_owned()));
        let mut inner = Reader { map, prefix, errors: Vec::new() };
        let value = read(&mut inner);
        self.errors.append(&mut inner.errors);
        value
    }
}

fn same(one: &Value, other: &Value) -> bool {
    one == other || (one.is_number() && one.as_f64() == other.as_f64())
}

/// The same id or hash, written with or without `0x`, in capitals or not.
fn same_id(one: &Value, other: &Value) -> bool {
    let bare = |value: &Value| {
        let text = value.as_str()?.trim().to_ascii_lowercase();
        Some(text.strip_prefix("0x").map(str::to_owned).unwrap_or(text))
    };
    one == other || (bare(one).is_some() && bare(one) == bare(other))
}

/// The strings of a list, or of a text with commas between them.
fn listed(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => {
            Some(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
        }
        other => other.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
    }
}

fn integer_of(value: &Value) -> Option<i64> {
    /// Above this a double no longer says which integer was meant.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let number = value.as_number()?;
    number.as_i64().or_else(|| {
        let float = number.as_f64()?;
        // A huge integer stays huge, so that it is refused as too large and not as something else.
        if float.fract() == 0.0 { Some(float.clamp(-EXACT, EXACT) as i64) } else { None }
    })
}

fn shown(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) if text.len() > MAX_INPUT => None,
        Value::Array(_) | Value::Object(_) => None,
        short => Some(short.clone()),
    }
}
