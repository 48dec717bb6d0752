//! Reading golden folders: a small model with numbers computed by PyTorch.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "test support")]

use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};
use steerkit_model::DeviceChoice;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every device that this build can use.
pub const DEVICES: &[DeviceChoice] = &[
    DeviceChoice::Cpu,
    #[cfg(feature = "device")]
    DeviceChoice::Candle(steerkit_model::CandleDevice::Cpu),
    #[cfg(feature = "cuda")]
    DeviceChoice::Candle(steerkit_model::CandleDevice::Cuda(0)),
    #[cfg(feature = "metal")]
    DeviceChoice::Candle(steerkit_model::CandleDevice::Metal(0)),
];

/// Golden folders in the layout of `tests/data/goldens`: the repository's, those of the reference data beside a
/// development checkout, and every folder below each of `STEERKIT_EXTRA_GOLDENS` (colon-separated; a folder that
/// holds a golden.json itself counts too).
pub fn golden_folders() -> Vec<PathBuf> {
    let extra = std::env::var("STEERKIT_EXTRA_GOLDENS").unwrap_or_default();
    let extra = extra.split(':').filter(|s| !s.is_empty()).map(PathBuf::from);
    let mut found = Vec::new();
    let own = ["tests/data/goldens", "tests/data/families"].map(|folder| root().join(folder));
    let beside = Some(root().join("../shared/goldens/tiny")).filter(|folder| folder.exists());
    for top in own.into_iter().chain(beside).chain(extra) {
        if top.join("golden.json").exists() {
            found.push(top);
            continue;
        }
        let entries = std::fs::read_dir(&top).unwrap_or_else(|e| panic!("{}: {e}", top.display()));
        let mut below: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        below.retain(|p| p.join("golden.json").exists());
        below.sort();
        found.extend(below);
    }
    found
}

/// What a golden folder holds a model as: the folder itself, and a GGUF file in some.
pub fn golden_models(folder: &Path) -> Vec<PathBuf> {
    let gguf = folder.join("model.gguf");
    std::iter::once(folder.to_owned()).chain(Some(gguf).filter(|file| file.exists())).collect()
}

/// Whether the folder's texts are longer than the original context of its LongRoPE.
pub fn long_context(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("golden.json")).unwrap().contains("\"long_context\": true")
}

/// `family` or `family/model.gguf`, for messages.
pub fn golden_name(folder: &Path, model: &Path) -> String {
    let name = model.strip_prefix(folder.parent().unwrap()).unwrap();
    name.display().to_string()
}

/// A safetensors file of reference numbers.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    pub fn numbers(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            Dtype::F64 => data.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I64 => data.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.numbers(name).iter().map(|&x| x as f32).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.numbers(name).iter().map(|&x| x as u32).collect()
    }
}

/// The largest absolute difference.
pub fn max_diff(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max)
}

/// The real SmolLM2-135M-Instruct, fetched once by the program's own `model pull` code.
///
/// Without a network this fails, unless `STEERKIT_OFFLINE=1`: then it prints what `test` leaves out.
pub fn smollm2(test: &str) -> Option<PathBuf> {
    const NAME: &str = "smollm2-135m";
    if let Ok(path) = steerkit_model::hub::resolve(NAME) {
        return Some(path);
    }
    if std::env::var("STEERKIT_OFFLINE").is_ok_and(|v| v == "1") {
        println!("left out: {test} (STEERKIT_OFFLINE=1 and {NAME} is not in the cache)");
        return None;
    }
    let pulled = steerkit_model::hub::pull(NAME, &mut |_| {});
    Some(
        pulled.unwrap_or_else(|e| {
            panic!("{e}; set STEERKIT_OFFLINE=1 to leave out the tests that need {NAME}")
        }),
    )
}

/// A file of the reference data that lies beside a development checkout; elsewhere `test` is left out.
pub fn shared(test: &str, path: &str) -> Option<PathBuf> {
    let found = root().join("../shared").join(path);
    if found.exists() {
        return Some(found);
    }
    println!("left out: {test} (no reference data at ../shared/{path})");
    None
}
