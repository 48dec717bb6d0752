//! Tokeniser, chat templates and prompts, against references and on broken input.

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
