//! `docs/reference.md`: every command with its options, written from the definitions that clap reads.
//!
//! `STEERKIT_BLESS=1 cargo test -p steerkit-cli reference` writes the file anew.

use std::fmt::Write;
use std::path::Path;

use clap::{Arg, Command, CommandFactory};

use crate::args::Cli;

/// Options of every command are described once.
const GLOBAL: [&str; 5] = ["json", "quiet", "threads", "help", "version"];

fn reference() -> String {
    let mut root = Cli::command().term_width(100);
    root.build();
    let mut text = String::from(
        "# Command reference\n\n\
         Written from the program's own definitions by `STEERKIT_BLESS=1 cargo test -p steerkit-cli reference`; \
         a test fails when it is stale. `steerkit COMMAND --help` shows the same.\n\n",
    );
    let _ = writeln!(text, "{}\n", about(&root));
    let _ = writeln!(text, "```text\n{}\n```\n", after_help(&root));
    text.push_str("## Options of every command\n\n");
    for arg in root.get_arguments().filter(|arg| GLOBAL.contains(&arg.get_id().as_str())) {
        option(&mut text, arg);
    }
    text.push('\n');
    for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
        section(&mut text, command, "steerkit");
    }
    text.trim_end().to_owned() + "\n"
}

fn section(text: &mut String, command: &Command, parent: &str) {
    let path = format!("{parent} {}", command.get_name());
    let _ = writeln!(text, "## {path}\n\n{}\n", about(command));
    let children: Vec<&Command> =
        command.get_subcommands().filter(|child| child.get_name() != "help").collect();
    if children.is_empty() {
        let usage = command.clone().render_usage().to_string();
        let _ = writeln!(text, "```text\n{}\n```\n", usage.trim_start_matches("Usage: "));
        let own = |arg: &&Arg| !GLOBAL.contains(&arg.get_id().as_str());
        command.get_arguments().filter(own).for_each(|arg| option(text, arg));
        text.push('\n');
    }
    let examples = after_help(command);
    if !examples.is_empty() {
        let _ = writeln!(text, "```text\n{examples}\n```\n");
    }
    for child in children {
        section(text, child, &path);
    }
}

fn about(command: &Command) -> String {
    command.get_long_about().or(command.get_about()).map_or(String::new(), |text| text.to_string())
}

fn after_help(command: &Command) -> String {
    command.get_after_help().map_or(String::new(), |text| text.to_string())
}

/// One line of a list: names, values, help, default and choices.
fn option(text: &mut String, arg: &Arg) {
    let mut names = Vec::new();
    names.extend(arg.get_long().map(|long| format!("--{long}")));
    names.extend(arg.get_short().map(|short| format!("-{short}")));
    let values: Vec<String> =
        arg.get_value_names().into_iter().flatten().map(|name| name.to_string()).collect();
    let takes = arg.get_num_args().is_some_and(|range| range.takes_values()) || arg.is_positional();
    let shown = match (names.is_empty(), takes) {
        (true, _) => values.join(" "),
        (false, true) => format!("{} {}", names.join(", "), values.join(" ")),
        (false, false) => names.join(", "),
    };
    let help = arg.get_long_help().or(arg.get_help()).map_or(String::new(), |help| help.to_string());
    let _ = write!(text, "- `{shown}`: {}", help.replace("\n\n", ". ").replace('\n', " "));
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if takes && !defaults.is_empty() {
        let _ = write!(text, " [default: {}]", defaults.join(","));
    }
    let _ = writeln!(text);
    if takes {
        for value in arg.get_possible_values().iter().filter(|value| !value.is_hide_set()) {
            let help = value.get_help().map_or(String::new(), |help| format!(": {help}"));
            let _ = writeln!(text, "  - `{}`{help}", value.get_name());
        }
    }
}

#[test]
fn clap_definitions_are_sound() {
    Cli::command().debug_assert();
}

#[test]
fn the_reference_is_fresh() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference.md"));
    let fresh = reference();
    if std::env::var_os("STEERKIT_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &fresh).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(stored, fresh, "run: STEERKIT_BLESS=1 cargo test -p steerkit-cli reference");
}
