//! Tokeniser, chat templates and prompts, against references and on broken input.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[cfg(test)]
mod chat;
#[cfg(test)]
mod folder;
#[cfg(test)]
mod prompting;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tokenizer;
