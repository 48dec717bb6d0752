//! Loading a model: one call for a GGUF file or a Hugging Face folder.

use crate::{
    ModelError, Result, arch,
    config::DecoderConfig,
    gguf::Gguf,
    hf::{HfFolder, Json, MAX_JSON},
    source::{hex, read_text},
    tokenizer::Tokenizer,
    weights::Weights,
};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Everything that a model's files hold.
pub struct Loaded {
    /// The decoder's sizes and switches.
    pub config: DecoderConfig,
    /// The frozen weights, in the form they are stored in.
    pub weights: Weights,
    /// The tokeniser, where the files hold one.
    pub tokenizer: Option<Tokenizer>,
    /// Source text of the chat template, where the files hold one.
    pub chat_template: Option<String>,
    /// Which model this is.
    pub identity: ModelIdentity,
}

/// Which model something was made with; stored in every file that depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// `general.name` of a GGUF file, else the name of the file or folder.
    pub name: String,
    /// Architecture as the file names it.
    pub architecture: String,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// SHA-256 of the GGUF file, or of a folder as [`HfFolder::sha256`] has it.
    pub file_sha256: String,
    /// SHA-256 of the tokeniser.
    pub tokenizer_sha256: Option<String>,
    /// SHA-256 of the chat template's source text.
    pub template_sha256: Option<String>,
}

/// Loads a `.gguf` file or a folder with `config.json` and `.safetensors` files. Norms are checked for NaN and
/// infinity here; the matrices are not looked at until the first forward pass.
///
/// # Errors
/// [`crate::ModelError`]: the file system's, a file that breaks its format, or one that asks for what this
/// build cannot do.
pub fn load(path: &Path) -> Result<Loaded> {
    if fs::metadata(path)?.is_dir() { load_folder(path) } else { load_gguf(path) }
}

fn load_gguf(path: &Path) -> Result<Loaded> {
    let gguf = Gguf::open(path)?;
    // The hash of a large file takes longer than all the rest.
    std::thread::scope(|scope| {
        let sha256 = scope.spawn(|| gguf.source().sha256());
        let (parts, name) = gguf_parts(path, &gguf)?;
        let sha256 = sha256.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        parts.loaded(path, name, sha256)
    })
}

fn gguf_parts(path: &Path, gguf: &Gguf) -> Result<(Parts, String)> {
    let (config, weights) = arch::read_gguf(gguf)?;
    let chat_template = gguf.meta.text("tokenizer.chat_template")?.map(str::to_owned);
    let name = match gguf.meta.text("general.name")?.filter(|n| !n.is_empty()) {
        Some(name) => name.to_owned(),
        None => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let tokenizer = Tokenizer::from_gguf(gguf)?;
    Ok((Parts { config, weights, tokenizer, chat_template }, name))
}

fn load_folder(path: &Path) -> Result<Loaded> {
    let folder = HfFolder::open(path)?;
    let (config, weights) = arch::read_hf(&folder)?;
    let chat_template = folder_template(path)?;
    let full = fs::canonicalize(path)?;
    let name = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let tokenizer = folder_tokenizer(path)?;
    let parts = Parts { config, weights, tokenizer, chat_template };
    parts.loaded(path, name, folder.sha256())
}

/// What both kinds of files give.
struct Parts {
    config: DecoderConfig,
    weights: Weights,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<String>,
}

impl Parts {
    /// Checks that the parts belong together and gives them their identity.
    fn loaded(self, path: &Path, name: String, file_sha256: String) -> Result<Loaded> {
        let Self { config, weights, tokenizer, chat_template } = self;
        if let Some(ids) = tokenizer.as_ref().map(Tokenizer::vocab_size).filter(|&n| n > config.vocab) {
            let found = format!("ids up to {}", ids - 1);
            let expected = format!("ids below {}, the rows of the embedding", config.vocab);
            return Err(ModelError::malformed(path, "tokeniser", found, expected).advise(
                "the tokeniser belongs to another model, or tokens were added without resizing the embedding",
            ));
        }
        let identity = ModelIdentity {
            name,
            architecture: config.architecture.clone(),
            d_model: config.d_model,
            n_layers: config.n_layers,
            vocab: config.vocab,
            file_sha256,
            tokenizer_sha256: tokenizer.as_ref().map(|t| t.sha256().to_owned()),
            template_sha256: chat_template.as_ref().map(|t| hex(&Sha256::digest(t.as_bytes()))),
        };
        Ok(Loaded { config, weights, tokenizer, chat_template, identity })
    }
}

/// The tokeniser of a folder that has one.
fn folder_tokenizer(folder: &Path) -> Result<Option<Tokenizer>> {
    let has = ["tokenizer.json", "tokenizer.model"].iter().any(|name| folder.join(name).exists());
    has.then(|| Tokenizer::from_folder(folder)).transpose()
}

/// The chat template of a folder: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`, which
/// may be a text or a list of named ones, of which `default` is taken.
fn folder_template(folder: &Path) -> Result<Option<String>> {
    let own = folder.join("chat_template.jinja");
    if own.exists() {
        return read_text(&own, MAX_JSON).map(Some);
    }
    let path = folder.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(None);
    }
    // Lists of added tokens make this file longer than others.
    let config = Json::parse(&path, &read_text(&path, 4 * MAX_JSON)?)?;
    match config.get("chat_template") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|t| t["name"] == "default");
            Ok(default.and_then(|t| t["template"].as_str()).map(str::to_owned))
        }
        Some(_) => Err(config.wrong("chat_template", "another type", "a text or a list of named texts")),
    }
}
