//! `casemate cvms diff`.

use casemate_sdk::wire::{Diff as Change, Revision};
use clap::Args;
use futures_util::TryStreamExt;
use serde::Serialize;

use crate::context::Context;
use crate::error::{AboutExt, Failure, Result};
use crate::progress::diff_lines;
use crate::value::Input;

/// Show what a revision changed, or how a compose file differs from the one that runs
#[derive(Args)]
#[command(after_help = "Examples:
  casemate cvms diff web-1             what its current revision changed
  casemate cvms diff web-1 4           what revision 4 changed
  casemate cvms diff web-1 -c app.yml  how the file differs from what runs")]
pub(crate) struct Diff {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    /// The number of the revision; the current one unless given
    #[arg(value_name = "REVISION", conflicts_with = "compose")]
    revision: Option<u64>,
    /// docker-compose file to compare with the one that runs, or - for standard input
    #[arg(long, short, value_name = "FILE")]
    compose: Option<Input>,
}

#[derive(Serialize)]
struct Changes<'a> {
    diff: &'a [Change],
}

impl Diff {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        match &self.compose {
            Some(file) => self.file(cx, file).await,
            None => self.of_revision(cx).await,
        }
    }

    async fn file(&self, cx: &Context, file: &Input) -> Result<()> {
        let new = file.read()?;
        let old = cx.client()?.cvm(&self.cvm).docker_compose_yml().await.about_cvm(&self.cvm)?;
        let lines = line_diff(&old, &new);
        if lines.is_empty() {
            cx.out.note("No difference.");
        }
        cx.out.print(&lines.join("\n"))
    }

    async fn of_revision(&self, cx: &Context) -> Result<()> {
        let client = cx.client()?;
        let mut revisions = client.cvm(&self.cvm).revisions().stream();
        let revision = loop {
            let wanted = |one: &Revision| self.revision.map_or(one.current, |number| one.revision == number);
            match revisions.try_next().await.about_cvm(&self.cvm)? {
                Some(one) if wanted(&one) => break one,
                Some(_) => {}
                None => {
                    let text = match self.revision {
                        Some(number) => format!("{} has no revision {number}", self.cvm),
                        None => format!("{} has no current revision", self.cvm),
                    };
                    let hint = format!("`casemate cvms revisions {}` lists them", self.cvm);
                    return Err(Failure::failed(text).hint(hint));
                }
            }
        };
        let Some(cause) = revision.cause else {
            return Err(Failure::failed(format!("what made revision {} is not known", revision.revision)));
        };
        let operation = client.operation(cause).get().await?;
        cx.out.result(&Changes { diff: &operation.diff }, |changes| diff_lines(changes.diff).join("\n"))?;
        if operation.diff.is_empty() {
            cx.out.note(&format!(
                "Revision {} was made by a {} and changed nothing.",
                revision.revision, operation.kind
            ));
        }
        Ok(())
    }
}

/// Lines around a change that are shown with it.
const AROUND: usize = 2;

/// A file larger than that is compared as a whole: the comparison takes the square of it.
const MOST_LINES: usize = 3000;

/// How a text becomes another one: removed lines with `-`, added ones with `+`, and some that stay around them.
pub(crate) fn line_diff(old: &str, new: &str) -> Vec<String> {
    if old == new {
        return Vec::new();
    }
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let edits = edits(&old, &new);
    let near = |at: usize| {
        let from = at.saturating_sub(AROUND);
        edits[from..edits.len().min(at + AROUND + 1)].iter().any(|(mark, _)| *mark != ' ')
    };
    let mut lines = Vec::new();
    let mut left_out = false;
    for (at, (mark, line)) in edits.iter().enumerate() {
        if near(at) {
            if std::mem::take(&mut left_out) && !lines.is_empty() {
                lines.push("…".to_owned());
            }
            lines.push(format!("{mark} {line}").trim_end().to_owned());
        } else {
            left_out = true;
        }
    }
    lines
}

/// Every line of both texts once, with what happens to it.
fn edits<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    let same = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (head, old) = old.split_at(same);
    let new = &new[same..];
    let same = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old, tail) = old.split_at(old.len() - same);
    let new = &new[..new.len() - same];

    let mut edits: Vec<_> = head.iter().map(|line| (' ', *line)).collect();
    if old.len().max(new.len()) > MOST_LINES {
        edits.extend(old.iter().map(|line| ('-', *line)));
        edits.extend(new.iter().map(|line| ('+', *line)));
    } else {
        // How many lines the rests have in common, in order.
        let mut common = vec![vec![0_u16; new.len() + 1]; old.len() + 1];
        for a in (0..old.len()).rev() {
            for b in (0..new.len()).rev() {
                common[a][b] = match old[a] == new[b] {
                    true => common[a + 1][b + 1] + 1,
                    false => common[a + 1][b].max(common[a][b + 1]),
                };
            }
        }
        let (mut a, mut b) = (0, 0);
        while a < old.len() || b < new.len() {
            if a < old.len() && b < new.len() && old[a] == new[b] {
                edits.push((' ', old[a]));
                (a, b) = (a + 1, b + 1);
            } else if b == new.len() || (a < old.len() && common[a + 1][b] >= common[a][b + 1]) {
                edits.push(('-', old[a]));
                a += 1;
            } else {
                edits.push(('+', new[b]));
                b += 1;
            }
        }
    }
    edits.extend(tail.iter().map(|line| (' ', *line)));
    edits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_lines_are_shown_with_what_is_around_them() {
        let old =
            "services:\n  web:\n    image: nginx:1\n    ports: []\n  a:\n  b:\n  c:\n  d:\n  e:\nlast: 1\n";
        let new = old.replace("nginx:1", "nginx:2").replace("last: 1", "last: 2");
        assert_eq!(
            line_diff(old, &new),
            [
                "  services:",
                "    web:",
                "-     image: nginx:1",
                "+     image: nginx:2",
                "      ports: []",
                "    a:",
                "…",
                "    d:",
                "    e:",
                "- last: 1",
                "+ last: 2",
            ]
        );
    }

    #[test]
    fn additions_and_removals_are_found_in_order() {
        assert!(line_diff("a\n", "a\n").is_empty());
        assert_eq!(line_diff("", "a\nb\n"), ["+ a", "+ b"]);
        assert_eq!(line_diff("a\nb\nc\n", "b\nc\nd\n"), ["- a", "  b", "  c", "+ d"]);
    }
}
