//! Chat templates: the Jinja program of a model that turns messages into its prompt, with the meaning that Hugging Face
//! gives it.
//!
//! A template comes with a model file and is not trusted: steps, memory, nesting and stack are bounded whatever it does.
//! How memory is bounded is told in `rewrite.rs` and `budget.rs`. Not supported are inclusion of other templates, call
//! blocks, recursive loops, macros inside loops, `*` and `**` arguments, `format`, `batch`, `slice` and `groupby`.

mod budget;
mod filters;
mod json;
mod operators;
mod rewrite;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use minijinja::machinery::{CodeGenerator, Token, eval, make_string_output, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, Value};

use crate::{ModelError, Result};
use budget::Budget;

/// Bytes of the longest template that is read; real ones have up to about 30 KB.
const MAX_SOURCE: usize = 256 << 10;
/// Bytes of a template's longest line, and lines: the engine counts both with 16 bits.
const MAX_LINES: usize = 65_000;
/// Tokens in the longest expression or statement, which bounds how deep the syntax tree is.
const MAX_TOKENS: usize = 2000;
/// `elif` branches in a template; each nests the tree by one.
const MAX_ELIF: usize = 500;
/// Engine steps of one rendering; a hundred messages take some ten thousand.
const MAX_STEPS: u64 = 1_000_000;
/// Stack of the thread that renders, which is touched only as far as it is used.
const STACK_BYTES: usize = 32 << 20;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    fn value(&self) -> Value {
        Value::from_pairs([("role", self.role.as_str()), ("content", self.content.as_str())])
    }
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    bos: Option<String>,
    eos: Option<String>,
    /// Whether `strftime_now` exists; a template that asks has its own date for when it does not.
    today: bool,
    supports_system: OnceLock<bool>,
}

impl ChatTemplate {
    /// Reads a template; `bos` and `eos` are the texts of these tokens, for templates that write them.
    ///
    /// # Errors
    /// A template that is too long, breaks Jinja's syntax or uses what is not supported.
    pub fn new(source: impl Into<String>, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let source = source.into();
        if source.len() > MAX_SOURCE {
            return Err(template_error(
                format!("found {} bytes, expected at most {MAX_SOURCE}", source.len()),
                Some("give a shorter template, or none for plain completion"),
            ));
        }
        if source.lines().count() > MAX_LINES || source.lines().any(|line| line.len() > MAX_LINES) {
            let found = format!("found a line of more than {MAX_LINES} bytes, or more lines than that");
            return Err(template_error(found, Some("break the line")));
        }
        let source = without_generation_marks(&source);
        let today = !source.contains("strftime_now is ");
        let template = Self {
            source,
            bos: bos.map(str::to_owned),
            eos: eos.map(str::to_owned),
            today,
            supports_system: OnceLock::new(),
        };
        on_own_stack(|| template.compile(|_| Ok(())))?;
        Ok(template)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for these messages; `add_generation_prompt` adds the beginning of the assistant's turn.
    ///
    /// # Errors
    /// Messages that the template refuses, a template that does what is not supported, takes too many steps or too much
    /// memory.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        on_own_stack(|| self.compile(|compiled| self.run(compiled, messages, add_generation_prompt)))
    }

    /// Whether the template takes a system message and shows it; found out once by trying.
    pub fn supports_system(&self) -> bool {
        *self.supports_system.get_or_init(|| {
            const PROBE: &str = "system probe 1c9e";
            let messages = [Message::new("system", PROBE), Message::new("user", "hello")];
            self.render(&messages, true).is_ok_and(|text| text.contains(PROBE))
        })
    }

    /// Parses, rewrites and compiles the template, which takes less time than rendering it.
    fn compile<T>(&self, then: impl FnOnce(&Compiled<'_>) -> std::result::Result<T, Error>) -> Result<T> {
        check_tokens(&self.source, &syntax())?;
        let tree = parse(&self.source, NAME, syntax()).map_err(|e| explain(&e))?;
        let tree = rewrite::template(&tree).map_err(|e| explain(&e))?;
        let mut code = CodeGenerator::new(NAME, &self.source);
        code.compile_stmt(&tree);
        let (instructions, blocks) = code.finish();
        then(&Compiled { instructions, blocks }).map_err(|e| explain(&e))
    }

    fn run(
        &self,
        compiled: &Compiled<'_>,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> std::result::Result<String, Error> {
        let bytes = messages.iter().map(|m| m.role.len() + m.content.len() + 64).sum();
        let budget = Budget::new(bytes);
        let mut env = Environment::empty();
        env.set_debug(false);
        env.set_fuel(Some(MAX_STEPS));
        operators::register(&mut env, &budget, self.today);
        filters::register(&mut env, &budget);
        let pays = budget.clone();
        env.set_formatter(move |out, _, value| pays.write(out, value));

        let mut root = BTreeMap::from([
            ("messages", messages.iter().map(Message::value).collect()),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        root.extend(self.bos.as_deref().map(|bos| ("bos_token", Value::from(bos))));
        root.extend(self.eos.as_deref().map(|eos| ("eos_token", Value::from(eos))));

        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        let (code, blocks) = (&compiled.instructions, &compiled.blocks);
        eval(&env, code, Value::from(root), blocks, &mut out, AutoEscape::None)?;
        drop(out);
        Ok(text)
    }
}

/// What the engine calls the template in its messages.
const NAME: &str = "chat template";

/// A template as the engine runs it.
struct Compiled<'s> {
    instructions: minijinja::machinery::Instructions<'s>,
    blocks: BTreeMap<&'s str, minijinja::machinery::Instructions<'s>>,
}

/// Hugging Face's settings: blocks take no line of their own.
fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .expect("the default delimiters differ from each other")
}

/// Bounds the depth of the syntax tree before it is built: the parser nests by operators and `elif` without a limit.
fn check_tokens(source: &str, syntax: &SyntaxConfig) -> Result<()> {
    let (mut in_block, mut elifs) = (0, 0);
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token.map_err(|e| explain(&e))?;
        match token {
            Token::BlockStart | Token::VariableStart => in_block = 0,
            Token::Ident("elif") => elifs += 1,
            _ => in_block += 1,
        }
        if in_block > MAX_TOKENS || elifs > MAX_ELIF {
            let found = format!(
                "line {}: found more than {MAX_TOKENS} tokens in a block or {MAX_ELIF} elif branches",
                span.start_line
            );
            return Err(template_error(found, None));
        }
    }
    Ok(())
}

/// `{% generation %}` marks the assistant's part for training masks; the text is the same without.
fn without_generation_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        let sign = if tag.starts_with(['-', '+']) { &tag[..1] } else { "" };
        let inside = &tag[sign.len()..];
        let name = inside.trim_start();
        text.push_str(sign);
        rest = inside;
        for (mark, stands_for) in [("generation", " if true "), ("endgeneration", " endif ")] {
            if let Some(end) = name.strip_prefix(mark)
                && end.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                text.push_str(stands_for);
                rest = end;
            }
        }
    }
    text.push_str(rest);
    text
}

/// Runs on a thread with a stack that the deepest allowed template fits, whatever the caller's is.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| {
            Err(template_error("the template engine failed".to_owned(), Some("give another template")))
        })
    })
}

fn template_error(found: String, hint: Option<&str>) -> ModelError {
    ModelError::Template { found, hint: hint.map(str::to_owned) }
}

/// The engine's error with its line.
fn explain(error: &Error) -> ModelError {
    let line = error.line().map_or(String::new(), |line| format!("line {line}: "));
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    template_error(format!("{line}{detail}"), None)
}
