//! `steerkit model`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use steerkit_model::hub::{self, Installed};
use steerkit_model::{Loaded, ModelIdentity, Run, load};

use super::steering;
use crate::args::{ModelCommand, ModelLogits};
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, Progress, Table};

pub(crate) fn run(command: ModelCommand, printer: Printer) -> Outcome {
    match command {
        ModelCommand::Pull { name } => {
            let path = pull(&name, printer)?;
            printer.line(path.display())?;
            printer.result(&Pulled { name: &name, path: &path })
        }
        ModelCommand::Logits(args) => logits(&args, printer),
        ModelCommand::List => list(printer),
        ModelCommand::Inspect { model } => inspect(&model, printer),
    }
}

#[derive(Serialize)]
struct Pulled<'a> {
    name: &'a str,
    path: &'a Path,
}

/// Fetches a model unless it is there.
pub(crate) fn pull(name: &str, printer: Printer) -> Outcome<PathBuf> {
    let mut shown: Option<(String, Progress)> = None;
    let path = hub::pull(name, &mut |at| {
        let new = shown.as_ref().is_none_or(|(file, _)| file != at.file);
        if new {
            let size = at.total.map_or(String::new(), |total| format!(" ({:.0} MB)", total as f64 / 1e6));
            printer.say(format_args!("fetching {}{size}", at.file));
            let progress = Progress::bytes(printer, at.file, at.total.unwrap_or(0));
            shown = Some((at.file.to_owned(), progress));
        }
        if let Some((_, progress)) = &mut shown {
            progress.at(at.done, "");
        }
    })?;
    Ok(path)
}

/// A model by path or by the name it was pulled with.
pub(crate) fn resolve(name_or_path: &str) -> Outcome<PathBuf> {
    let path = hub::resolve(name_or_path)?;
    if path.is_dir() && !path.join("config.json").is_file() {
        return Err(Failure::input(format_args!("{}: the folder holds no config.json", path.display()))
            .hint("a model is a .gguf file or a folder with config.json and .safetensors files"));
    }
    Ok(path)
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    path: &'a Path,
    bytes: u64,
}

fn list(printer: Printer) -> Outcome {
    let installed = hub::list()?;
    let mut table = Table::new(&["model", "MB", "path"]);
    for Installed { name, path, bytes } in &installed {
        table.row(&[name.clone(), format!("{:.0}", *bytes as f64 / 1e6), path.display().to_string()]);
    }
    if installed.is_empty() {
        printer.say("no models here yet; fetch one: steerkit model pull smollm2-135m");
    } else {
        printer.line(table)?;
    }
    for Installed { name, path, bytes } in &installed {
        printer.result(&Listed { name, path, bytes: *bytes })?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Written<'a> {
    path: &'a Path,
    tokens: usize,
    vocab: usize,
}

fn logits(args: &ModelLogits, printer: Printer) -> Outcome {
    let model = steering::open(&args.model, 1)?;
    let mut sequence = model.new_sequence(Vec::new())?;
    let mut bytes = Vec::new();
    for id in &args.ids {
        let run = Run { sequence: &mut sequence, tokens: std::slice::from_ref(id) };
        for logits in model.advance(&mut [run])? {
            bytes.extend(logits?.iter().flat_map(|x| x.to_le_bytes()));
        }
    }
    let (tokens, vocab) = (args.ids.len(), model.config().vocab);
    steerkit::files::write_tensor(&args.out, "logits", &[tokens, vocab], &bytes)?;
    printer.line(args.out.display())?;
    printer.result(&Written { path: &args.out, tokens, vocab })
}

/// What `model inspect` shows.
#[derive(Serialize)]
struct Inspected<'a> {
    path: &'a Path,
    #[serde(flatten)]
    identity: &'a ModelIdentity,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    d_ff: usize,
    context: usize,
    tokenizer_tokens: Option<usize>,
    chat_template: bool,
}

fn inspect(name: &str, printer: Printer) -> Outcome {
    let path = resolve(name)?;
    let loaded = load(&path)?;
    let Loaded { config, identity, .. } = &loaded;
    let inspected = Inspected {
        path: &path,
        identity,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        d_ff: config.d_ff,
        context: config.context,
        tokenizer_tokens: loaded.tokenizer.as_ref().map(|t| t.vocab_size()),
        chat_template: loaded.chat_template.is_some(),
    };
    let yes = |there: bool| if there { "yes" } else { "no" };
    printer.heading(format_args!("{} ({})", identity.name, path.display()))?;
    for (what, value) in [
        ("architecture", identity.architecture.clone()),
        (
            "blocks",
            format!("{} (a vector goes after block 0 to {})", identity.n_layers, identity.n_layers - 1),
        ),
        ("width", identity.d_model.to_string()),
        (
            "heads",
            format!("{} of {}, {} for keys and values", config.n_heads, config.head_dim, config.n_kv_heads),
        ),
        ("MLP width", config.d_ff.to_string()),
        ("vocabulary", identity.vocab.to_string()),
        ("context", format!("{} tokens", config.context)),
        ("tokeniser", yes(loaded.tokenizer.is_some()).into()),
        ("chat template", yes(loaded.chat_template.is_some()).into()),
        ("sha256", identity.file_sha256.clone()),
    ] {
        printer.line(format_args!("  {what:<14}{value}"))?;
    }
    printer.result(&inspected)
}
