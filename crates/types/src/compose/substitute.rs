//! Variables in a docker-compose file: `$NAME`, `${NAME}`, and the forms that say what an absent one means.
//!
//! | form | is |
//! | --- | --- |
//! | `$NAME`, `${NAME}` | the value, or nothing |
//! | `${NAME:-other}`, `${NAME-other}` | the value, or `other`; with the colon also where it is empty |
//! | `${NAME:?why}`, `${NAME?why}` | the value, or an error that says why |
//! | `${NAME:+other}`, `${NAME+other}` | `other` if there is a value, else nothing |
//! | `$$` | a dollar sign |
//!
//! `other` may have variables of its own.

use super::check::MAX_DEPTH;

/// Replaces every variable.
///
/// # Errors
/// A form that is not among these, or a required variable that is not there.
pub fn substitute(text: &str, value_of: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    expand(text, value_of, true, MAX_DEPTH)
}

/// Whether every variable has a form that is understood.
///
/// # Errors
/// One that has not.
pub(super) fn check_template(text: &str) -> Result<(), String> {
    // Once with all variables there and once with none, so that both sides of every form are read.
    expand(text, &|_| None, false, MAX_DEPTH)?;
    expand(text, &|_| Some("x".to_owned()), false, MAX_DEPTH).map(|_| ())
}

fn expand(
    text: &str,
    value_of: &dyn Fn(&str) -> Option<String>,
    required: bool,
    depth: usize,
) -> Result<String, String> {
    let deeper = depth.checked_sub(1).ok_or("variables are nested too deep")?;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inside) = after.strip_prefix('{') {
            let end = closing(inside)
                .ok_or_else(|| format!("`${{` of `{text}` has no `}}`; a dollar sign itself is `$$`"))?;
            out.push_str(&braced(&inside[..end], value_of, required, deeper)?);
            rest = &inside[end + 1..];
        } else {
            let name = name_at(after);
            if name.is_empty() {
                return Err(format!("a `$` of `{text}` has no name behind it; a dollar sign itself is `$$`"));
            }
            out.push_str(&value_of(name).unwrap_or_default());
            rest = &after[name.len()..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The variable's name at the beginning of a text.
fn name_at(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) { "" } else { &text[..end] }
}

/// Where the brace that is open at the beginning closes.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'$' if bytes.get(at + 1) == Some(&b'{') => {
                open += 1;
                at += 1;
            }
            b'}' => {
                open -= 1;
                if open == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

fn braced(
    inside: &str,
    value_of: &dyn Fn(&str) -> Option<String>,
    required: bool,
    depth: usize,
) -> Result<String, String> {
    let name = name_at(inside);
    let form = &inside[name.len()..];
    let (colon, form) = form.strip_prefix(':').map_or((false, form), |form| (true, form));
    let mut chars = form.chars();
    let sign = chars.next();
    let other = chars.as_str();
    let there = value_of(name).filter(|value| !(colon && value.is_empty()));
    match sign {
        None if !name.is_empty() && !colon => Ok(there.unwrap_or_default()),
        Some('-') if !name.is_empty() => there.map_or_else(|| expand(other, value_of, required, depth), Ok),
        Some('+') if !name.is_empty() => match there {
            Some(_) => expand(other, value_of, required, depth),
            None => Ok(String::new()),
        },
        Some('?') if !name.is_empty() => match there {
            Some(value) => Ok(value),
            None if !required => Ok(String::new()),
            None if other.is_empty() => Err(format!("the variable `{name}` is required")),
            None => Err(format!("the variable `{name}` is required: {other}")),
        },
        _ => Err(format!("`${{{inside}}}` is not a form of a variable that is understood")),
    }
}
