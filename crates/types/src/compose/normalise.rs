//! The text that is hashed.
//!
//! It is defined by what a JavaScript program writes, so it has that language's ways: keys that look like array indices
//! come first, other keys go by UTF-16 code unit, numbers are doubles. One step is a plain text replacement over the whole
//! result, which also reaches into string values; [`Altered`] says where.

use std::cmp::Ordering;

use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

use super::ComposeDoc;
use crate::ids::ComposeHash;

/// A document's text, its hash, and where the two differ from the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Normalised {
    /// The text. A node gets exactly these bytes.
    pub text: String,
    /// SHA-256 of the text.
    pub hash: ComposeHash,
    /// Where the text has another string than the document.
    pub altered: Vec<Altered>,
}

/// A line of a string value in which `": ` became `":`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Altered {
    /// The field; dots and brackets lead to a nested one.
    pub field: String,
    /// The line within the value, from 1.
    pub line: usize,
}

impl std::fmt::Display for Altered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { field, line } = self;
        write!(f, "{field}, line {line}: the hashed text has `\":` where you wrote `\": `")
    }
}

impl ComposeDoc {
    /// Makes the text that is hashed.
    pub fn normalise(&self) -> Normalised {
        let runner = self.as_map().get("runner").and_then(Value::as_str);
        let skip = |key: &str, value: &Value| match key {
            "docker_compose_file" => runner == Some("bash"),
            "bash_script" => runner == Some("docker-compose"),
            "pre_launch_script" => is_falsy(value),
            _ => false,
        };
        let mut writer = Writer::default();
        writer.object(self.as_map(), skip);
        let text = writer.text.replace("\": ", "\":");
        let hash = ComposeHash(Sha256::digest(text.as_bytes()).into());
        Normalised { text, hash, altered: writer.altered }
    }
}

fn is_falsy(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    }
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

#[derive(Default)]
struct Writer<'a> {
    text: String,
    path: Vec<Step<'a>>,
    altered: Vec<Altered>,
}

impl<'a> Writer<'a> {
    fn value(&mut self, value: &'a Value) {
        match value {
            Value::Null => self.text.push_str("null"),
            Value::Bool(true) => self.text.push_str("true"),
            Value::Bool(false) => self.text.push_str("false"),
            Value::Number(number) => self.text.push_str(&js_number(number)),
            Value::String(text) => {
                self.string(text);
                self.note_altered(text);
            }
            Value::Array(items) => self.array(items),
            Value::Object(map) => self.object(map, |_, _| false),
        }
    }

    fn object(&mut self, map: &'a Map<String, Value>, skip: impl Fn(&str, &Value) -> bool) {
        let mut entries: Vec<_> = map.iter().filter(|(key, value)| !skip(key, value)).collect();
        if entries.is_empty() {
            self.text.push_str("{}");
            return;
        }
        entries.sort_by(|(a, _), (b, _)| js_key_order(a, b));
        let mut open = '{';
        for (key, value) in entries {
            self.text.push(open);
            open = ',';
            self.path.push(Step::Key(key));
            self.new_line();
            self.string(key);
            self.text.push_str(": ");
            self.value(value);
            self.path.pop();
        }
        self.new_line();
        self.text.push('}');
    }

    fn array(&mut self, items: &'a [Value]) {
        if items.is_empty() {
            self.text.push_str("[]");
            return;
        }
        let mut open = '[';
        for (index, value) in items.iter().enumerate() {
            self.text.push(open);
            open = ',';
            self.path.push(Step::Index(index));
            self.new_line();
            self.value(value);
            self.path.pop();
        }
        self.new_line();
        self.text.push(']');
    }

    fn new_line(&mut self) {
        self.text.push('\n');
        for _ in 0..self.path.len() {
            self.text.push_str("    ");
        }
    }

    /// Strings are escaped alike in both languages.
    fn string(&mut self, text: &str) {
        let quoted = serde_json::to_string(text).expect("a string always serialises");
        self.text.push_str(&quoted);
    }

    /// The replacement hits `": ` inside a value, and a value that begins with `: ` after its opening quote.
    fn note_altered(&mut self, text: &str) {
        let inside = text.match_indices("\": ").map(|(at, _)| at);
        let mut last = 0;
        for at in text.starts_with(": ").then_some(0).into_iter().chain(inside) {
            let line = text[..at].matches('\n').count() + 1;
            if line != last {
                let field = self.field();
                self.altered.push(Altered { field, line });
                last = line;
            }
        }
    }

    fn field(&self) -> String {
        let mut field = String::new();
        for step in &self.path {
            match step {
                Step::Key(key) if field.is_empty() => field.push_str(key),
                Step::Key(key) => {
                    field.push('.');
                    field.push_str(key);
                }
                Step::Index(index) => field.push_str(&format!("[{index}]")),
            }
        }
        field
    }
}

fn js_key_order(a: &str, b: &str) -> Ordering {
    match (array_index(a), array_index(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.encode_utf16().cmp(b.encode_utf16()),
    }
}

/// A whole number below 2³² − 1 in its shortest spelling.
fn array_index(key: &str) -> Option<u32> {
    let digits = !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit());
    let shortest = key == "0" || !key.starts_with('0');
    if digits && shortest { key.parse().ok().filter(|index| *index < u32::MAX) } else { None }
}

/// A number as JavaScript writes it: the double nearest to it, in the fewest digits that read back as that double.
fn js_number(number: &Number) -> String {
    /// Every integer up to here is a double.
    const EXACT: u64 = 1 << 53;
    if let Some(integer) = number.as_i64().filter(|integer| integer.unsigned_abs() <= EXACT) {
        return integer.to_string();
    }
    let value = number.as_f64().unwrap_or_default();
    if value == 0.0 {
        return "0".into();
    }
    let sign = if value < 0.0 { "-" } else { "" };
    // Both languages choose the fewest digits; of two equally near, serde_json takes the even one as JavaScript does, and
    // Rust's own formatting does not. Only the layout differs.
    let shortest = Number::from_f64(value.abs()).map_or_else(String::new, |number| number.to_string());
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let significant = all.trim_start_matches('0');
    let digits = significant.trim_end_matches('0');
    // The place of the decimal point, counted from the first digit.
    let leading = (all.len() - significant.len()) as i32;
    let point = exponent.parse::<i32>().unwrap_or_default() + whole.len() as i32 - leading;
    let count = digits.len() as i32;
    let body = if count <= point && point <= 21 {
        format!("{digits}{}", "0".repeat((point - count) as usize))
    } else if 0 < point && point <= 21 {
        let (whole, fraction) = digits.split_at(point as usize);
        format!("{whole}.{fraction}")
    } else if -6 < point && point <= 0 {
        format!("0.{}{digits}", "0".repeat(point.unsigned_abs() as usize))
    } else {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        format!("{first}{dot}{rest}e{:+}", point - 1)
    };
    format!("{sign}{body}")
}
