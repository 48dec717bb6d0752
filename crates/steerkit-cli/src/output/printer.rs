//! One voice: results on stdout, everything else on stderr, no escape codes off a terminal.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// Writes results, notes and errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    json: bool,
    quiet: bool,
    /// Colours on stdout and on stderr.
    colour: [bool; 2],
    /// Whether stderr is a terminal.
    stderr_terminal: bool,
}

impl Printer {
    /// A printer for this process's streams.
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        let stderr_terminal = io::stderr().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let colour = [wanted && io::stdout().is_terminal(), wanted && stderr_terminal];
        Self { json, quiet, colour, stderr_terminal }
    }

    /// Whether bars may be drawn on stderr.
    pub(crate) fn draws(&self) -> bool {
        self.stderr_terminal && !self.quiet
    }

    /// Whether answers are shown while they are written.
    pub(crate) fn streams(&self) -> bool {
        !self.json && io::stdout().is_terminal()
    }

    /// A result for people: a line on stdout, unless results are JSON.
    pub(crate) fn line(&self, text: impl Display) -> Outcome {
        if self.json { Ok(()) } else { self.stdout(format_args!("{}\n", printable(&text.to_string()))) }
    }

    /// A piece of a line on stdout, shown at once, unless results are JSON.
    pub(crate) fn piece(&self, text: &str) -> Outcome {
        if self.json { Ok(()) } else { self.stdout(format_args!("{}", printable(text))) }
    }

    /// A heading on stdout, unless results are JSON.
    pub(crate) fn heading(&self, text: impl Display) -> Outcome {
        let text = text.to_string();
        let text = printable(&text);
        match (self.json, self.colour[0]) {
            (true, _) => Ok(()),
            (false, true) => self.stdout(format_args!("\x1b[1m{text}\x1b[0m\n")),
            (false, false) => self.stdout(format_args!("{text}\n")),
        }
    }

    /// A result for programs: one line of JSON on stdout, if results are JSON.
    pub(crate) fn result(&self, value: &impl Serialize) -> Outcome {
        if !self.json {
            return Ok(());
        }
        let text = serde_json::to_string(value).expect("results hold only text, numbers and lists of them");
        self.stdout(format_args!("{text}\n"))
    }

    /// Text that is the result itself, such as a script, JSON or not.
    pub(crate) fn raw(&self, text: &[u8]) -> Outcome {
        write(io::stdout().lock(), |out| out.write_all(text))
    }

    fn stdout(&self, text: std::fmt::Arguments<'_>) -> Outcome {
        write(io::stdout().lock(), |out| out.write_fmt(text))
    }

    /// What happens meanwhile: a line on stderr.
    pub(crate) fn say(&self, text: impl Display) {
        if !self.quiet {
            self.stderr("", "", &text);
        }
    }

    /// Something that the user should know.
    pub(crate) fn warn(&self, text: impl Display) {
        if !self.quiet {
            self.stderr("\x1b[1;33m", "warning: ", &text);
        }
    }

    /// The end of a command that failed.
    pub(crate) fn failure(&self, failure: &Failure) {
        if let Failure::Told { message, hints, .. } = failure {
            self.stderr("\x1b[1;31m", "error: ", message);
            for hint in hints {
                self.stderr("\x1b[1;36m", "hint: ", hint);
            }
        }
    }

    /// A closed stderr is no reason to stop.
    fn stderr(&self, colour: &str, label: &str, text: &dyn Display) {
        let text = text.to_string();
        let text = printable(&text);
        let mut stderr = io::stderr().lock();
        let _ = match self.colour[1] && !label.is_empty() {
            true => writeln!(stderr, "{colour}{label}\x1b[0m{text}"),
            false => writeln!(stderr, "{label}{text}"),
        };
    }
}

fn write(mut out: impl Write, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Outcome {
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::ReaderGone),
        Err(error) => Err(Failure::from(io::Error::new(error.kind(), format!("stdout: {error}")))),
    }
}

/// Text without control characters: what a model or a file says must not steer the terminal.
fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    if text.chars().all(harmless) {
        return text.into();
    }
    text.chars().map(|c| if harmless(c) { c } else { '\u{fffd}' }).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable("a\tb\nc"), "a\tb\nc");
        assert_eq!(printable("\x1b[31mred\u{9b}"), "\u{fffd}[31mred\u{fffd}");
    }
}
