//! What a command says: results on standard output, everything else on standard error.

use std::io::{BufRead, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::environment::Environment;
use crate::error::{Failure, Result};
use crate::options::Options;

/// How a command speaks.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    json: bool,
    /// Spread JSON over lines, for people.
    pretty: bool,
    quiet: bool,
    yes: bool,
    can_ask: bool,
    lively: bool,
}

/// A colour on standard error.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Colour {
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Output {
    pub(crate) fn new(options: &Options, environment: &Environment) -> Self {
        Self {
            json: options.json,
            pretty: environment.stdout_is_terminal,
            // Whoever wants JSON wants nothing else.
            quiet: options.quiet || options.json,
            yes: options.yes,
            can_ask: environment.can_ask,
            lively: environment.lively,
        }
    }

    /// The wire shape is wanted.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Lines may move, and nobody asked for silence.
    pub(crate) fn is_lively(&self) -> bool {
        self.lively && !self.quiet
    }

    /// The result: the value itself for programs, what `text` makes of it for people.
    pub(crate) fn result<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json { self.json(value) } else { self.print(&text(value)) }
    }

    /// A value as JSON, on one line unless it goes to a terminal.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<()> {
        let text =
            if self.pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        self.print(&text.expect("answers have string keys"))
    }

    /// Text on standard output. Nothing for an empty one.
    pub(crate) fn print(&self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        let end = if text.ends_with('\n') { "" } else { "\n" };
        out.write_all(text.as_bytes())
            .and_then(|()| out.write_all(end.as_bytes()))
            .and_then(|()| out.flush())
            .map_err(Failure::output)
    }

    /// Bytes on standard output, as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::output)
    }

    /// Something to know besides the result.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            complain(text);
        }
    }

    /// Something that the user should know although it worked.
    pub(crate) fn warning(&self, text: &str) {
        self.note(&format!("{} {text}", self.paint(Colour::Yellow, "warning:")));
    }

    /// Text in a colour, where colours are welcome.
    pub(crate) fn paint(&self, colour: Colour, text: &str) -> String {
        if !self.lively {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Red => "1;31",
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Cyan => "36",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// Somebody is there to be asked something that has no yes for an answer, and wants to be talked to.
    pub(crate) fn can_be_asked(&self) -> bool {
        self.can_ask && !self.quiet && !self.yes
    }

    /// Asks before something that cannot be undone.
    pub(crate) fn confirm(&self, question: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        if !self.can_ask {
            let what = format!("{question} Without a terminal nobody can answer.");
            return Err(Failure::usage(what).hint("`--yes` answers the question"));
        }
        let mut err = std::io::stderr().lock();
        let _ = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
        drop(err);
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        match (read, answer.trim().to_ascii_lowercase().as_str()) {
            (Ok(1..), "y" | "yes") => Ok(()),
            _ => Err(Failure::failed("nothing was done")),
        }
    }
}

/// A line on standard error. If that is closed, there is nobody to tell.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Col {
    /// Text.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

/// Rows under a heading, in aligned columns without lines.
pub(crate) fn table(columns: &[Col], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| match column {
        Col::Left(name) | Col::Right(name) => *name,
    }));
    table.add_rows(rows);
    for (index, column) in columns.iter().enumerate() {
        if let Some(shown) = table.column_mut(index) {
            shown.set_padding((0, 2));
            if let Col::Right(_) = column {
                shown.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.trim_fmt()
}

/// Names and values below each other. What has no value is left out.
pub(crate) fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let known: Vec<_> = fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let width = known.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = known.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_has_no_spaces_at_its_ends() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = table(
            &[Col::Left("NAME"), Col::Right("VCPU"), Col::Left("STATUS")],
            [row(["web-1", "2", "running"]), row(["worker", "16", "é"])],
        );
        assert_eq!(text, "NAME    VCPU  STATUS\nweb-1      2  running\nworker    16  é");
    }

    #[test]
    fn fields_are_below_each_other_and_unknown_ones_are_left_out() {
        let text = fields([("name", Some("web-1".into())), ("node", None), ("app id", Some("ab".into()))]);
        assert_eq!(text, "name    web-1\napp id  ab");
    }

    #[test]
    fn without_a_terminal_there_is_no_colour_and_nobody_to_ask() {
        let output = Output::new(&Options::default(), &Environment::default());
        assert_eq!(output.paint(Colour::Red, "no"), "no");
        let refused = output.confirm("Delete web-1?").unwrap_err();
        assert_eq!(refused.code(), 2);
        let options = Options { yes: true, ..Options::default() };
        Output::new(&options, &Environment::default()).confirm("Delete web-1?").unwrap();
    }
}
