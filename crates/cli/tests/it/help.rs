//! The help of every command is a golden file, so that a change shows in review.
//!
//! `INSTA_UPDATE=always cargo test -p casemate-cli` writes the files anew.

use clap::{Command, CommandFactory, Parser};

/// The program, as far as it is a client.
#[derive(Parser)]
#[command(name = "casemate", max_term_width = 100)]
pub(crate) struct Program {
    #[command(flatten)]
    early: casemate_cli::Early,
    #[command(subcommand)]
    pub(crate) command: casemate_cli::Command,
}

/// Every command below this one that does something, with the words that lead to it.
fn walk(command: &Command, path: &str, visit: &mut impl FnMut(&str, &Command)) {
    visit(path, command);
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        walk(sub, &format!("{path} {}", sub.get_name()), visit);
    }
}

fn built() -> Command {
    let mut command = Program::command().term_width(100);
    command.build();
    command
}

#[test]
fn the_help_of_every_command_is_as_recorded() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("golden");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _bound = settings.bind_to_scope();
    let mut count = 0;
    walk(&built(), "casemate", &mut |path, command| {
        count += 1;
        let text = command.clone().render_long_help().to_string();
        let trimmed: Vec<_> = text.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(path.replace(' ', "-"), trimmed.join("\n"));
    });
    assert!(count > 40, "only {count} commands were found");
}

#[test]
fn every_command_says_what_it_does_and_no_line_is_too_long() {
    walk(&built(), "casemate", &mut |path, command| {
        assert!(path == "casemate" || command.get_about().is_some(), "{path} says nothing about itself");
        for arg in command.get_arguments() {
            assert!(arg.get_help().is_some(), "{path}: {} has no help", arg.get_id());
        }
        for line in command.clone().render_long_help().to_string().lines() {
            assert!(line.chars().count() <= 100, "{path}: {line}");
        }
    });
}

/// A command is put together only when it is called, so its summary stands in two places.
#[test]
fn a_command_is_summed_up_in_the_same_words_everywhere() {
    let built = built();
    for listed in Program::command().get_subcommands() {
        let own = built.find_subcommand(listed.get_name()).unwrap().get_about().unwrap().to_string();
        assert_eq!(listed.get_about().unwrap().to_string(), own, "{}", listed.get_name());
    }
}
