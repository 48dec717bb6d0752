//! `steerkit chat`.

use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde::Serialize;
use steerkit::eval::check_effect;
use steerkit::scope::last_user_span;
use steerkit::{PromptShape, SteeringPlan, SteeringVector};
use steerkit_model::chat::Message;
use steerkit_model::prompting::Prompting;
use steerkit_model::{Model, Request, Sampling};

use super::steering::{self, Applied, PlanPart};
use super::vector::nearest;
use crate::args::{ChatArgs, SteerSpec};
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, signed};
use crate::signals;

const HELP: &str = "\
/steer                 the vectors and their multipliers
/steer NAME 1.5        sets a multiplier; a NAME that is not there yet is loaded
/system [TEXT]         sets the system prompt (nothing: none) and begins anew
/reset                 forgets the conversation
/save FILE             writes the conversation as JSON
/help                  this list
/quit                  ends (also Ctrl-D); Ctrl-C stops an answer";

pub(crate) fn run(args: &ChatArgs, printer: Printer) -> Outcome {
    let cancel = signals::install()?;
    let vectors =
        args.steering.steer.iter().map(|s| Applied::load(s, &args.steering)).collect::<Outcome<Vec<_>>>()?;
    let model = steering::open(&args.model, 1)?;
    if model.chat_template()?.is_none() {
        return Err(Failure::input(format_args!("model {:?} has no chat template", model.identity().name))
            .hint("use steerkit generate --raw for plain completion"));
    }
    let system = steering::system_prompt(&args.steering, &vectors, printer);
    let prompting = steering::prompting(&model, system.clone())?;
    steering::warn(&steering::plan(&vectors, 1.0)?, &model, args.steering.force, printer)?;
    let mut chat =
        Chat { args, model: &model, prompting, vectors, system, turns: Vec::new(), cancel, printer };
    let mut lines = Lines::new()?;
    if lines.is_terminal() {
        printer.say(format_args!("{}; /help lists the commands", model.identity().name));
    }
    while let Some(line) = lines.next(&chat.head())? {
        let line = line.trim();
        let outcome = match line.strip_prefix('/') {
            _ if line.is_empty() => Ok(()),
            Some("quit" | "exit") => break,
            Some(command) => chat.command(command),
            None => chat.turn(line),
        };
        match outcome {
            Err(Failure::ReaderGone) => return Err(Failure::ReaderGone),
            // A mistake in a command is no reason to lose the conversation at a terminal.
            Err(failure) if lines.is_terminal() => printer.failure(&failure),
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Lines of a terminal with editing and history, or of a pipe.
enum Lines {
    Terminal(Box<DefaultEditor>),
    Pipe(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Lines {
    fn new() -> Outcome<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self::Pipe(stdin.lock().lines()));
        }
        let editor = DefaultEditor::new().map_err(|e| Failure::from(std::io::Error::other(e)))?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line; none at the end.
    fn next(&mut self, head: &str) -> Outcome<Option<String>> {
        match self {
            Self::Pipe(lines) => Ok(lines.next().transpose()?),
            Self::Terminal(editor) => loop {
                match editor.readline(head) {
                    Ok(line) => {
                        // A line that the history refuses is still a line.
                        let _ = editor.add_history_entry(&line);
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(std::io::Error::other(error).into()),
                }
            },
        }
    }
}

/// A conversation.
struct Chat<'a> {
    args: &'a ChatArgs,
    model: &'a Model,
    prompting: Prompting<'a>,
    vectors: Vec<Applied>,
    system: Option<String>,
    /// Without the system prompt.
    turns: Vec<Message>,
    cancel: Arc<AtomicBool>,
    printer: Printer,
}

/// One answer, as JSON shows it.
#[derive(Serialize)]
struct Answer<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    logprobs: &'a [f32],
    finish: &'static str,
    plan: Vec<PlanPart>,
}

impl Chat<'_> {
    /// What stands before the user's line: the multipliers in use.
    fn head(&self) -> String {
        let part = |v: &Applied| format!("{} {}", v.name, signed(v.multiplier));
        let parts: Vec<String> = self.vectors.iter().map(part).collect();
        if parts.is_empty() { "> ".into() } else { format!("[{}] > ", parts.join(", ")) }
    }

    /// One question and its answer.
    fn turn(&mut self, text: &str) -> Outcome {
        self.cancel.store(false, Ordering::SeqCst);
        self.turns.push(Message::new("user", text));
        let answer = self.answer();
        match &answer {
            Ok(text) => self.turns.push(Message::new("assistant", text.as_str())),
            Err(_) => drop(self.turns.pop()),
        }
        answer.map(drop)
    }

    /// What the plan must know of the conversation so far.
    fn shape(&self, plan: &SteeringPlan, prompt: &[u32]) -> Outcome<PromptShape> {
        let last_user = match plan.needs_user() {
            false => 0..0,
            true => last_user_span(prompt, |text| {
                let mut messages = self.messages();
                if let Some(last) = messages.last_mut() {
                    last.content = text.into();
                }
                self.prompting.conversation(&messages)
            })?,
        };
        Ok(PromptShape { len: prompt.len(), last_user })
    }

    fn answer(&self) -> Outcome<String> {
        let plan = steering::plan(&self.vectors, 1.0)?;
        let prompt = self.prompting.conversation(&self.messages())?;
        let edits = plan.edits(self.model.config(), &self.shape(&plan, &prompt)?)?;
        check_effect(self.model, &plan, &edits, &prompt)?;
        let request = Request {
            prompt,
            edits,
            sampling: Sampling::from(&self.args.sampling),
            max_tokens: self.args.sampling.max_tokens,
            stop: self.args.sampling.stop.clone(),
            ..Request::default()
        };
        // Kept here too: an answer that the user stops is still part of the conversation.
        let mut text = String::new();
        let mut written = Ok(());
        let completions = self.model.generate(vec![request], 1, &mut |event| {
            if let Ok(new) = &event.news {
                let piece = new.text.as_deref().unwrap_or_default();
                text.push_str(piece);
                written = self.printer.piece(piece);
            }
            let go_on = written.is_ok() && !self.cancel.load(Ordering::Relaxed);
            if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        written?;
        self.printer.line("")?;
        match completions {
            Err(_) if self.cancel.load(Ordering::Relaxed) && std::io::stdin().is_terminal() => Ok(text),
            Err(error) => Err(error.into()),
            Ok(completions) => {
                for completion in &completions {
                    self.printer.result(&Answer {
                        text: &completion.text,
                        token_ids: &completion.tokens,
                        logprobs: &completion.logprobs,
                        finish: super::generate::finish_name(completion.finish),
                        plan: self.vectors.iter().flat_map(|v| v.parts(1.0)).collect(),
                    })?;
                }
                Ok(text)
            }
        }
    }

    /// The conversation as the template wants it; a template without system prompts gets it with the first turn.
    fn messages(&self) -> Vec<Message> {
        let mut messages = self.turns.clone();
        let Some(system) = &self.system else { return messages };
        if self.prompting.template.is_some_and(|template| template.supports_system()) {
            messages.insert(0, Message::new("system", system.as_str()));
        } else if let Some(first) = messages.first_mut() {
            first.content = format!("{system}\n{}", first.content);
        }
        messages
    }

    /// A line that begins with `/`.
    fn command(&mut self, line: &str) -> Outcome {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match name {
            "help" => self.printer.say(HELP),
            "steer" if rest.is_empty() => self.list(),
            "steer" => return self.steer(rest),
            "system" => {
                self.system = Some(rest.to_owned()).filter(|text| !text.is_empty());
                self.turns.clear();
                self.printer.say("the conversation begins anew");
            }
            "reset" => {
                self.turns.clear();
                self.printer.say("the conversation begins anew");
            }
            "save" if rest.is_empty() => return Err(Failure::usage("/save needs a file: /save chat.json")),
            "save" => return self.save(Path::new(rest)),
            _ => {
                let known = ["steer", "system", "reset", "save", "help", "quit"].map(String::from);
                let failure = Failure::usage(format_args!("no command /{name}"));
                return Err(match nearest(name, &known) {
                    Some(near) => failure.hint(format_args!("did you mean /{near}?")),
                    None => failure.hint("/help lists the commands"),
                });
            }
        }
        Ok(())
    }

    fn list(&self) {
        if self.vectors.is_empty() {
            self.printer.say("no vectors; load one: /steer NAME 1");
        }
        for v in &self.vectors {
            let place = |vector: &Arc<SteeringVector>| {
                let dose = vector.relative_norm().map(|norm| norm * v.multiplier.abs() as f32);
                let dose = dose.map_or(String::new(), |dose| format!(", dose {dose:.3}"));
                format!("after block {}{dose}", vector.layer)
            };
            let places: Vec<String> = v.vectors.iter().map(place).collect();
            self.printer.say(format_args!("{} {} ({})", v.name, signed(v.multiplier), places.join("; ")));
        }
    }

    /// `NAME 1.5` or `NAME=1.5`; `NAME` alone stands for 1.
    fn steer(&mut self, text: &str) -> Outcome {
        let spec = match text.rsplit_once(char::is_whitespace) {
            Some((name, number)) => format!("{}={number}", name.trim()),
            None => text.to_owned(),
        };
        let spec: SteerSpec = spec
            .parse()
            .map_err(|what: String| Failure::usage(what).hint("for example: /steer formality 1.5"))?;
        let mut vectors = self.vectors.clone();
        match vectors.iter_mut().find(|v| v.name == spec.vector) {
            Some(v) => v.multiplier = spec.multiplier,
            None => vectors.push(Applied::load(&spec, &self.args.steering)?),
        }
        steering::warn(&steering::plan(&vectors, 1.0)?, self.model, self.args.steering.force, self.printer)?;
        self.vectors = vectors;
        self.list();
        Ok(())
    }

    /// Writes the conversation: a temporary file, then renamed.
    fn save(&self, path: &Path) -> Outcome {
        let messages: Vec<serde_json::Value> = self
            .messages()
            .iter()
            .map(|m| serde_json::json!({ "role": m.role, "content": m.content }))
            .collect();
        let plan: Vec<PlanPart> = self.vectors.iter().flat_map(|v| v.parts(1.0)).collect();
        let chat = serde_json::json!({ "model": self.model.identity(), "plan": plan, "messages": messages });
        steerkit::files::write_atomic(path, format!("{chat:#}\n").as_bytes())?;
        self.printer.say(format_args!("saved to {}", path.display()));
        Ok(())
    }
}
