//! PyTorch's zip files with one tensor: what the authors' code saves as `vec_ep{E}_layer{L}.pt`.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use half::{bf16, f16};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::Raw;
use super::pickle::{self, Dtype, MAX_PICKLE, Tensor, Value};
use crate::error::malformed;
use crate::files::write_atomic;
use crate::vector::{self, Provenance, SteeringVector};
use crate::{Result, SteerError};

/// Entries of an archive; PyTorch writes five around one tensor.
const MAX_ENTRIES: usize = 64;

/// Reads a file that holds one tensor of `[d]` or `[1, d]`, in 16, 32 or 64 bits.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Raw> {
    let mut archive = Archive::open(path, bytes)?;
    let pickle = archive
        .entry("data.pkl", MAX_PICKLE)?
        .ok_or_else(|| refuse(path, "archive", "no data.pkl", "a file that torch.save wrote"))?;
    let value = pickle::parse(&pickle).map_err(|fault| {
        let place = format!("data.pkl, offset {}", fault.at);
        refuse(path, &place, fault.found, fault.expected)
    })?;
    let tensor = match &*value {
        Value::Tensor(tensor) => tensor,
        Value::Dict(n) => {
            let found = format!("a dictionary of {n} entries");
            return Err(refuse(path, "data.pkl", found, "one tensor, as torch.save(vector, file) writes"));
        }
        _ => return Err(refuse(path, "data.pkl", "no tensor", "one tensor")),
    };
    let big_endian = match archive.entry("byteorder", 16)?.as_deref() {
        None | Some(b"little") => false,
        Some(b"big") => true,
        Some(other) => {
            let found = format!("{:?}", String::from_utf8_lossy(other));
            return Err(refuse(path, "byteorder", found, "little or big"));
        }
    };
    let direction = numbers(path, &mut archive, tensor, big_endian)?;
    vector::check_numbers(path, "tensor", &direction)?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("unnamed");
    let provenance = Provenance { name: stem.into(), ..Provenance::default() };
    let warnings = match layer_in_name(path) {
        Some(layer) => vec![format!("the layer, {layer}, is taken from the file's name")],
        None => Vec::new(),
    };
    let vector = SteeringVector { direction, layer: 0, provenance };
    Ok(Raw { format: "PyTorch", vectors: vec![(layer_in_name(path), vector)], warnings })
}

/// The number behind the last `layer` of the file's name.
pub(super) fn layer_in_name(path: &Path) -> Option<usize> {
    let stem = path.file_stem()?.to_str()?;
    let behind = stem[stem.rfind("layer")? + "layer".len()..].trim_start_matches(['_', '-']);
    let digits = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    behind[..digits].parse().ok().filter(|&n: &usize| n < 10_000)
}

fn numbers(path: &Path, archive: &mut Archive<'_>, tensor: &Tensor, big_endian: bool) -> Result<Vec<f32>> {
    let (d, stride) = match (&tensor.shape[..], &tensor.stride[..]) {
        (&[d], &[stride]) | (&[1, d], &[_, stride]) => (d, stride),
        (shape, _) => {
            let found = format!("a tensor of {shape:?}");
            return Err(refuse(path, "tensor", found, "one row, [d_model] or [1, d_model]"));
        }
    };
    let place = format!("data/{}", tensor.key);
    let width = tensor.dtype.bytes();
    let size = usize::try_from(tensor.len).ok().and_then(|n| n.checked_mul(width));
    let size = size.filter(|&n| n as u64 <= vector::MAX_FILE).ok_or_else(|| {
        refuse(path, &place, format!("a storage of {} numbers", tensor.len), "a vector of some kilobytes")
    })?;
    let last = d.checked_sub(1).and_then(|n| n.checked_mul(stride)?.checked_add(tensor.offset));
    let inside = d > 0 && stride >= 1 && tensor.offset >= 0 && last.is_some_and(|n| n < tensor.len);
    if !inside {
        let found = format!("{d} numbers from {} with stride {stride}", tensor.offset);
        return Err(refuse(path, "tensor", found, format!("numbers inside a storage of {}", tensor.len)));
    }
    let bytes =
        archive.entry(&place, size)?.ok_or_else(|| refuse(path, &place, "no such entry", "the numbers"))?;
    if bytes.len() != size {
        let found = format!("{} bytes", bytes.len());
        return Err(refuse(path, &place, found, format!("{size} bytes, as the pickle says")));
    }
    let at = |i: i64| {
        let start = (tensor.offset + i * stride) as usize * width;
        let mut raw = [0u8; 8];
        raw[..width].copy_from_slice(&bytes[start..start + width]);
        if big_endian {
            raw[..width].reverse();
        }
        raw
    };
    let number = |raw: [u8; 8]| {
        let [a, b, c, d, ..] = raw;
        match tensor.dtype {
            Dtype::F32 => f32::from_le_bytes([a, b, c, d]),
            Dtype::F64 => f64::from_le_bytes(raw) as f32,
            Dtype::F16 => f16::from_le_bytes([a, b]).to_f32(),
            Dtype::Bf16 => bf16::from_le_bytes([a, b]).to_f32(),
        }
    };
    Ok((0..d).map(|i| number(at(i))).collect())
}

/// A zip archive of stored entries below one folder.
struct Archive<'a> {
    path: &'a Path,
    zip: ZipArchive<Cursor<&'a [u8]>>,
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let zip = ZipArchive::new(Cursor::new(bytes))
            .map_err(|e| refuse(path, "archive", e.to_string(), "a zip file, as torch.save writes"))?;
        if zip.len() > MAX_ENTRIES {
            let found = format!("{} entries", zip.len());
            return Err(refuse(path, "archive", found, format!("at most {MAX_ENTRIES}, around one tensor")));
        }
        Ok(Self { path, zip })
    }

    /// The bytes of the one entry `FOLDER/name`.
    fn entry(&mut self, name: &str, most: usize) -> Result<Option<Vec<u8>>> {
        let matches = |full: &&str| full.split_once('/').is_some_and(|(_, rest)| rest == name);
        let found: Vec<String> = self.zip.file_names().filter(matches).map(str::to_owned).collect();
        let full = match &found[..] {
            [] => return Ok(None),
            [one] => one.clone(),
            more => return Err(refuse(self.path, name, format!("{} such entries", more.len()), "one")),
        };
        let path = self.path;
        let broken = |e: String| refuse(path, name, e, "a stored entry");
        let index = self.zip.index_for_name(&full).ok_or_else(|| broken("no entry".into()))?;
        let entry = self.zip.by_index_raw(index).map_err(|e| broken(e.to_string()))?;
        let odd = if entry.encrypted() {
            Some("an encrypted entry")
        } else if entry.compression() != CompressionMethod::Stored {
            Some("a compressed entry")
        } else if entry.is_symlink() {
            Some("a link")
        } else {
            None
        };
        if let Some(odd) = odd {
            return Err(broken(odd.into()));
        }
        if entry.size() > most as u64 || entry.compressed_size() != entry.size() {
            let found = format!("{} bytes, stored in {}", entry.size(), entry.compressed_size());
            return Err(refuse(path, name, found, format!("at most {most} bytes")));
        }
        drop(entry);
        let entry = self.zip.by_index(index).map_err(|e| broken(e.to_string()))?;
        let mut bytes = Vec::new();
        entry.take(most as u64 + 1).read_to_end(&mut bytes).map_err(|e| broken(e.to_string()))?;
        Ok(Some(bytes))
    }
}

fn refuse(path: &Path, place: &str, found: impl Into<String>, expected: impl Into<String>) -> SteerError {
    malformed(path, place, found, expected, "save the vector again: torch.save(vector, file)")
}

/// Writes one vector as the authors' code does: a bare tensor of f32.
pub(super) fn write(path: &Path, vectors: &[SteeringVector]) -> Result<()> {
    let [vector] = vectors else {
        return Err(SteerError::Export {
            path: path.into(),
            what: format!("a .pt file holds one vector, and there are {}", vectors.len()),
            hint: "choose a layer with --layer N, or write safetensors".into(),
        });
    };
    vector.check()?;
    let data: Vec<u8> = vector.direction.iter().flat_map(|x| x.to_le_bytes()).collect();
    let pickle = pickle_of(vector.direction.len() as u32);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let entries: [(&str, &[u8]); 4] = [
        ("vector/data.pkl", &pickle),
        ("vector/byteorder", b"little"),
        ("vector/data/0", &data),
        ("vector/version", b"3\n"),
    ];
    let failed = |e: zip::result::ZipError| crate::files::at(path, std::io::Error::other(e));
    for (name, bytes) in entries {
        zip.start_file(name, plain).map_err(failed)?;
        zip.write_all(bytes)?;
    }
    Ok(write_atomic(path, zip.finish().map_err(failed)?.get_ref())?)
}

/// `torch._utils._rebuild_tensor_v2(storage '0' of n floats, 0, (n,), (1,), False, OrderedDict())`, protocol 2.
fn pickle_of(n: u32) -> Vec<u8> {
    let number = [&b"J"[..], &n.to_le_bytes()].concat();
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    [
        &b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(("[..],
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        &number,
        b"tQK\x00",
        &number,
        b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR.",
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_in_names() {
        let of = |name: &str| layer_in_name(Path::new(name));
        assert_eq!(of("vec_ep20_layer15.pt"), Some(15));
        assert_eq!(of("layer_7-x.pt"), Some(7));
        assert_eq!((of("vector.pt"), of("layer.pt"), of("layer99999.pt")), (None, None, None));
    }

    #[test]
    fn our_pickle_reads_back() {
        let value = pickle::parse(&pickle_of(70_000)).unwrap();
        let Value::Tensor(tensor) = &*value else { panic!("{value:?}") };
        assert_eq!((tensor.dtype, tensor.len, tensor.offset), (Dtype::F32, 70_000, 0));
        assert_eq!((&tensor.shape[..], &tensor.stride[..]), (&[70_000][..], &[1][..]));
    }
}
