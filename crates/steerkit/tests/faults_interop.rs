//! Other programs' vector files: the real ones convert, hostile and malformed ones are answered with the reason.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::{Cursor, Write};
use std::path::Path;

use serde_json::json;
use steerkit::interop::{ImportOptions, Imported, SourceConvention, export, import};
use steerkit::vector::{Provenance, SteeringVector};
use steerkit::{Result, TokenScope};
use steerkit_model::ErrorKind;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn load(name: &str, bytes: &[u8]) -> Result<Imported> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    import(&path, &ImportOptions::default())
}

fn refused(name: &str, bytes: &[u8], says: &[&str]) {
    let error = load(name, bytes).unwrap_err();
    let text = format!("{error} | {}", error.hint().unwrap_or_default());
    assert_eq!(error.kind(), ErrorKind::BadInput, "{text}");
    for part in says.iter().chain([&name]) {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// An archive as PyTorch writes it.
fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn pt(pickle: &[u8], data: &[u8]) -> Vec<u8> {
    archive(&[("v/data.pkl", pickle), ("v/data/0", data)], CompressionMethod::Stored)
}

/// The pickle of a tensor; `n` numbers of `storage`, one byte each for offset, sizes and strides.
fn pickle(storage: &str, n: u8, offset: u8, shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let tuple = |numbers: &[u8]| {
        let inner: Vec<u8> = numbers.iter().flat_map(|&n| [b'K', n]).collect();
        [b"(".as_slice(), &inner, b"t"].concat()
    };
    let text = |t: &str| [&b"X"[..], &(t.len() as u32).to_le_bytes(), t.as_bytes()].concat();
    [
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((".as_slice(),
        &text("storage"),
        format!("ctorch\n{storage}\n").as_bytes(),
        &text("0"),
        &text("cpu"),
        &[b'K', n, b't', b'Q', b'K', offset],
        &tuple(shape),
        &tuple(stride),
        b"\x89ccollections\nOrderedDict\n)RtR.",
    ]
    .concat()
}

fn vector(layer: usize, direction: &[f32]) -> SteeringVector {
    let provenance = Provenance { name: "v".into(), method: "bipo".into(), ..Provenance::default() };
    SteeringVector { direction: direction.to_vec(), layer, provenance }
}

/// A GGUF file from its text keys and its tensors (name, sizes, type, bytes).
fn gguf(keys: &[(&str, &str)], tensors: &[(&str, &[u64], u32, Vec<u8>)]) -> Vec<u8> {
    let mut out = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    let text = |out: &mut Vec<u8>, t: &str| {
        out.extend((t.len() as u64).to_le_bytes());
        out.extend(t.as_bytes());
    };
    for (key, value) in keys {
        text(&mut out, key);
        out.extend(8u32.to_le_bytes());
        text(&mut out, value);
    }
    let mut offset = 0;
    for (name, sizes, kind, data) in tensors {
        text(&mut out, name);
        out.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += data.len().next_multiple_of(32);
    }
    for (_, _, _, data) in tensors {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
    }
    out
}

const CONTROL: &[(&str, &str)] = &[("general.architecture", "controlvector")];

#[test]
fn golden_the_authors_vectors_have_their_norms() {
    let Some(folder) = support::shared("the authors' vectors", "data/vectors") else { return };
    for (name, layer, norm) in [
        ("power-seeking_mistral_vec_ep5_layer13.pt", 13, 1.356),
        ("wealth-seeking_llama-2_vec_ep20_layer15.pt", 15, 8.994),
    ] {
        let got = import(&folder.join(name), &ImportOptions::default()).unwrap();
        let v = &got.vectors[0];
        println!("{name}: layer {}, norm {}", v.layer, v.norm());
        assert_eq!((got.format, v.layer, v.direction.len()), ("PyTorch", layer, 4096));
        assert!((v.norm() - norm).abs() < 5e-4);
    }
    let repeng = import(&folder.join("repeng_style.gguf"), &ImportOptions::default()).unwrap();
    assert_eq!(repeng.vectors.iter().map(|v| v.layer).collect::<Vec<_>>(), [3, 15]);
    assert!(repeng.warnings.is_empty());
    let Some(peers) = support::shared("llama.cpp's vectors", "goldens/llama.cpp") else { return };
    let generated = import(&peers.join("gen_mean.gguf"), &ImportOptions::default()).unwrap();
    assert!(generated.warnings[0].contains("cvector-generator"), "{:?}", generated.warnings);
    let options = ImportOptions { convention: SourceConvention::CvectorGenerator, layer: Some(15) };
    let shifted = import(&peers.join("gen_mean.gguf"), &options).unwrap();
    assert_eq!((shifted.vectors.len(), shifted.vectors[0].layer), (1, 14));
}

#[test]
fn vectors_survive_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let v = vector(7, &[0.25, -1.5, 3.0e-5]);
    for name in ["a_layer7.pt", "a.gguf", "a.safetensors"] {
        let path = folder.path().join(name);
        assert_eq!(export(std::slice::from_ref(&v), &path).unwrap(), Vec::<String>::new());
        let first = std::fs::read(&path).unwrap();
        export(std::slice::from_ref(&v), &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first, "the same bytes");
        let back = import(&path, &ImportOptions::default()).unwrap().vectors.remove(0);
        assert_eq!((back.layer, &back.direction), (7, &v.direction), "{name}");
        if !name.ends_with("pt") {
            assert_eq!(back.provenance, v.provenance);
        }
    }
    let many = [vector(3, &[1.0, 0.0]), vector(9, &[0.0, 2.0])];
    for name in ["many.gguf", "many.safetensors"] {
        let path = folder.path().join(name);
        export(&many, &path).unwrap();
        assert_eq!(import(&path, &ImportOptions::default()).unwrap().vectors, many);
        let one = import(&path, &ImportOptions { layer: Some(9), ..ImportOptions::default() }).unwrap();
        assert_eq!(one.vectors, many[1..]);
        let none = import(&path, &ImportOptions { layer: Some(4), ..ImportOptions::default() }).unwrap_err();
        assert!(none.to_string().contains("found the layers 3, 9, expected layer 4"), "{none}");
    }
    let path = |name: &str| folder.path().join(name);
    assert!(export(&many, &path("x.pt")).unwrap_err().to_string().contains("holds one vector"));
    assert!(export(&many, &path("x.npz")).unwrap_err().to_string().contains("no vector format"));
    let zero = export(&[vector(0, &[1.0])], &path("x.gguf")).unwrap_err();
    assert!(zero.hint().unwrap().contains("safetensors"), "{zero}");
    let mut scoped = v.clone();
    scoped.provenance.token_scope = TokenScope::Generated;
    let warnings = export(&[scoped], &path("nameless.pt")).unwrap();
    assert!(warnings[0].contains("generated") && warnings[1].contains("_layer7.pt"), "{warnings:?}");
    let nameless = import(&path("nameless.pt"), &ImportOptions::default()).unwrap_err();
    assert!(nameless.hint().unwrap().contains("--layer"), "{nameless}");
}

#[test]
fn other_programs_safetensors() {
    let file = |names: &[&str], metadata: serde_json::Value| {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), metadata);
        for (i, name) in names.iter().enumerate() {
            let offsets = [8 * i, 8 * i + 8];
            header.insert((*name).into(), json!({"dtype": "F32", "shape": [1, 2], "data_offsets": offsets}));
        }
        let header = serde_json::Value::Object(header).to_string();
        let data = floats(&[3.0, 4.0, 1.0, 0.0][..2 * names.len()]);
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
    };
    let modules = "['model.layers[13].mlp.down_proj', 'model.layers[14].mlp.down_proj']";
    let got = load("p.safetensors", &file(&["layer_0", "layer_1"], json!({"layer_names": modules}))).unwrap();
    assert_eq!((got.format, got.vectors[0].layer, got.vectors[1].layer), ("psyctl", 13, 14));
    assert_eq!(got.vectors[0].direction, [3.0, 4.0]);
    let single = file(&["steering_vector"], json!({"layer": "5", "method": "CAA"}));
    let got = load("p.safetensors", &single).unwrap();
    assert_eq!((got.vectors[0].layer, got.vectors[0].provenance.method.as_str()), (5, "CAA"));
    let cfg = json!({"cfg": json!({"method": "mean_diff", "coeff": 2.0}).to_string()});
    let got = load("s.safetensors", &file(&["layer15.v"], cfg)).unwrap();
    assert_eq!((got.format, got.vectors[0].layer), ("steering-lite", 15));
    assert_eq!(got.vectors[0].direction, [6.0, 8.0]);
    let cfg = json!({"cfg": "{\"coeff\": null}"});
    refused("s.safetensors", &file(&["layer15.v"], cfg), &["cfg", "coefficient null"]);
    refused("s.safetensors", &file(&["layer1.basis"], json!({"cfg": "{}"})), &["layer1.basis", "layer{L}.v"]);
    refused("p.safetensors", &file(&["layer_3"], json!({"layer_names": "['lm_head']"})), &["layer_names"]);
}

/// A global off the list is named with its offset; nothing runs.
#[test]
fn fault_17_programs_in_pickles() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("ran");
    let command = format!("touch {}", marker.display());
    let text = [&b"X"[..], &(command.len() as u32).to_le_bytes(), command.as_bytes()].concat();
    let evil = [b"\x80\x02cposix\nsystem\n".as_slice(), &text, b"\x85R."].concat();
    refused("e_layer1.pt", &pt(&evil, b""), &["posix.system", "data.pkl, offset 2", "executes nothing"]);
    assert!(!marker.exists());
    for op in [b'i', b'o', b'b', 0x81, 0x92, 0x93, 0x82, b'P'] {
        refused("e_layer1.pt", &pt(&[0x80, 2, op, b'.'], b""), &["instruction 0x"]);
    }
}

#[test]
fn fault_18_storages_and_strides() {
    let data = floats(&[1.0, 2.0, 3.0, 4.0]);
    let one =
        |n, offset, shape: &[u8], stride: &[u8]| pt(&pickle("FloatStorage", n, offset, shape, stride), &data);
    assert_eq!(load("a_layer1.pt", &one(4, 1, &[2], &[2])).unwrap().vectors[0].direction, [2.0, 4.0]);
    refused("a_layer1.pt", &one(5, 0, &[5], &[1]), &["data/0", "16 bytes", "20 bytes"]);
    refused("a_layer1.pt", &one(3, 0, &[3], &[1]), &["data/0", "12 bytes"]);
    refused("a_layer1.pt", &one(4, 2, &[3], &[1]), &["3 numbers from 2 with stride 1"]);
    refused("a_layer1.pt", &one(4, 0, &[2], &[200]), &["stride 200"]);
    refused("a_layer1.pt", &one(4, 0, &[2], &[0]), &["stride 0"]);
    // A whole number of eight bytes as offset, size or stride: 77 marks its place.
    for n in [i64::MIN, -1, i64::MAX] {
        let long = [&[0x8a, 8][..], &n.to_le_bytes()].concat();
        for (offset, size, stride) in [(77, 1, 1), (0, 77, 1), (0, 2, 77)] {
            let plain = pickle("FloatStorage", 4, offset, &[size], &[stride]);
            let at = plain.windows(2).position(|w| w == [b'K', 77]).unwrap();
            let wide = [&plain[..at], &long, &plain[at + 2..]].concat();
            refused("a_layer1.pt", &pt(&wide, &data), &["tensor", "numbers from", &n.to_string()]);
        }
    }
    for storage in ["LongStorage", "QInt8Storage", "sparse_coo"] {
        refused("a_layer1.pt", &pt(&pickle(storage, 4, 0, &[4], &[1]), &data), &[storage]);
    }
    refused("a_layer1.pt", &pt(b"\x80\x02K\x01K\x02K\x03s.", b""), &["no dictionary"]);
    refused("a_layer1.pt", &pt(&vec![b'('; 1_000_000], b""), &["data.pkl", "1000000 bytes"]);
    refused("a_layer1.pt", &pt(&[b'('; 60_000], b""), &["more than 4096 values"]);
}

#[test]
fn fault_19_archives() {
    let good = pickle("FloatStorage", 1, 0, &[1], &[1]);
    let entries: &[(&str, &[u8])] = &[("v/data.pkl", &good), ("v/data/0", &[0, 0, 128, 63])];
    assert!(load("a_layer1.pt", &archive(entries, CompressionMethod::Stored)).is_ok());
    refused("a_layer1.pt", &archive(entries, CompressionMethod::Deflated), &["a compressed entry"]);
    // A gigabyte of zeros in a megabyte.
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let deflated = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    zip.start_file("v/data.pkl", deflated).unwrap();
    for _ in 0..64 {
        zip.write_all(&vec![0; 1 << 20]).unwrap();
    }
    refused("bomb_layer1.pt", &zip.finish().unwrap().into_inner(), &["a compressed entry"]);
    let twice: &[(&str, &[u8])] = &[("a/data.pkl", &good), ("b/data.pkl", &good)];
    refused("a_layer1.pt", &archive(twice, CompressionMethod::Stored), &["2 such entries"]);
    refused("a_layer1.pt", &archive(&[("../../x", b"1")], CompressionMethod::Stored), &["no data.pkl"]);
    let many: Vec<(String, &[u8])> = (0..100).map(|i| (format!("v/{i}"), &b""[..])).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(n, b)| (n.as_str(), *b)).collect();
    refused("a_layer1.pt", &archive(&many, CompressionMethod::Stored), &["100 entries"]);
    // The encryption bit of the first entry, in both headers.
    let mut locked = archive(entries, CompressionMethod::Stored);
    locked[6] |= 1;
    let central = locked.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    locked[central + 8] |= 1;
    refused("a_layer1.pt", &locked, &["encrypted"]);
    // A link in the place of the pickle.
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.add_symlink("v/data.pkl", "/etc/passwd", SimpleFileOptions::default()).unwrap();
    refused("a_layer1.pt", &zip.finish().unwrap().into_inner(), &["data.pkl", "a link"]);
    let whole = archive(entries, CompressionMethod::Stored);
    // A directory of 2^60 entries, or at 2^60, or of 2^60 bytes, by the 64-bit fields.
    let (body, end) = whole.split_at(whole.len() - 22);
    let directory = whole.windows(4).position(|w| w == b"PK\x01\x02").unwrap() as u64;
    let honest = [entries.len() as u64, body.len() as u64 - directory, directory];
    for lie in [None, Some(0), Some(1), Some(2)] {
        let mut says = honest;
        lie.into_iter().for_each(|i| says[i] = 1 << 60);
        let [n, size, offset] = says.map(u64::to_le_bytes);
        let record =
            [&b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0"[..], &n, &n, &size, &offset];
        let locator = [&b"PK\x06\x07\0\0\0\0"[..], &(body.len() as u64).to_le_bytes(), &[1, 0, 0, 0]];
        let end = [&end[..8], &[0xff; 12], &end[20..]];
        let bytes = [body, &record.concat(), &locator.concat(), &end.concat()].concat();
        match lie {
            None => assert!(load("a_layer1.pt", &bytes).is_ok(), "the record itself is sound"),
            // A size that nothing is read by may lie: the numbers are the same.
            Some(1) if load("a_layer1.pt", &bytes).is_ok() => {
                assert_eq!(load("a_layer1.pt", &bytes).unwrap().vectors[0].direction, [1.0]);
            }
            Some(_) => refused("a_layer1.pt", &bytes, &["archive"]),
        }
    }
    for end in 4..whole.len() {
        refused("cut_layer1.pt", &whole[..end], &["archive"]);
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        let _ = load("changed_layer1.pt", &bytes);
    }
}

#[test]
fn fault_20_types_and_shapes() {
    let f16 = [0x00, 0x3c, 0x00, 0xc0]; // 1, -2
    let direction = |bytes: &[u8]| load("a_layer1.pt", bytes).unwrap().vectors.remove(0).direction;
    assert_eq!(direction(&pt(&pickle("HalfStorage", 2, 0, &[2], &[1]), &f16)), [1.0, -2.0]);
    let bf16 = [0x80, 0x3f, 0x00, 0xc0];
    assert_eq!(direction(&pt(&pickle("BFloat16Storage", 2, 0, &[2], &[1]), &bf16)), [1.0, -2.0]);
    let f64s: Vec<u8> = [1.0f64, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(direction(&pt(&pickle("DoubleStorage", 2, 0, &[2], &[1]), &f64s)), [1.0, -2.0]);
    let row = floats(&[1.0, -2.0]);
    assert_eq!(direction(&pt(&pickle("FloatStorage", 2, 0, &[1, 2], &[2, 1]), &row)), [1.0, -2.0]);
    for (shape, stride) in [([2u8, 1], [1u8, 1]), ([2, 2], [1, 1])] {
        refused("a_layer1.pt", &pt(&pickle("FloatStorage", 2, 0, &shape, &stride), &row), &["a tensor of ["]);
    }
    refused("a_layer1.pt", &pt(&pickle("FloatStorage", 2, 0, &[], &[]), &row), &["a tensor of []"]);
    let big: Vec<u8> = [1.0f32, -2.0].iter().flat_map(|x| x.to_be_bytes()).collect();
    let one = pickle("FloatStorage", 2, 0, &[2], &[1]);
    let with = |order: &[u8]| {
        let entries: &[(&str, &[u8])] = &[("v/data.pkl", &one), ("v/byteorder", order), ("v/data/0", &big)];
        archive(entries, CompressionMethod::Stored)
    };
    assert_eq!(direction(&with(b"big")), [1.0, -2.0]);
    refused("a_layer1.pt", &with(b"middle"), &["byteorder", "middle"]);
}

#[test]
fn fault_22_numbers() {
    let one = |x: f32| pt(&pickle("FloatStorage", 2, 0, &[2], &[1]), &floats(&[1.0, x]));
    refused("a_layer1.pt", &one(f32::NAN), &["1 of 2 values that are not finite"]);
    refused("a_layer1.pt", &one(f32::INFINITY), &["not finite"]);
    refused(
        "a_layer1.pt",
        &pt(&pickle("FloatStorage", 2, 0, &[2], &[1]), &floats(&[0.0; 2])),
        &["zeros only"],
    );
    let zero = gguf(CONTROL, &[("direction.3", &[2], 0, floats(&[0.0; 2]))]);
    refused("z.gguf", &zero, &["direction.3", "zeros only"]);
}

#[test]
fn fault_23_control_vectors() {
    let row = floats(&[1.0, 2.0]);
    let got = load("g.gguf", &gguf(CONTROL, &[("direction.3", &[2], 0, row.clone())])).unwrap();
    assert_eq!((got.vectors[0].layer, got.vectors[0].direction.as_slice()), (3, &[1.0, 2.0][..]));
    refused("g.gguf", &gguf(&[("general.architecture", "llama")], &[]), &["\"llama\"", "controlvector"]);
    refused("g.gguf", &gguf(&[], &[]), &["general.architecture"]);
    refused("g.gguf", &gguf(CONTROL, &[]), &["0 tensors", "direction.N"]);
    refused("g.gguf", &gguf(CONTROL, &[("output.weight", &[2], 0, row.clone())]), &["output.weight"]);
    refused("g.gguf", &gguf(CONTROL, &[("direction.x", &[2], 0, row.clone())]), &["direction.x"]);
    refused(
        "g.gguf",
        &gguf(CONTROL, &[("direction.3", &[1, 2], 0, row.clone())]),
        &["direction.3", "one row"],
    );
    refused("g.gguf", &gguf(CONTROL, &[("direction.3", &[4], 1, row)]), &["another type", "F32"]);
    refused("g.gguf", b"GGUF\x03\0\0\0", &["offset"]);
}

#[test]
fn no_file_is_read_whole_when_it_is_huge() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.pt");
    std::fs::File::create(&path).unwrap().set_len(8 << 30).unwrap();
    let error = import(Path::new(&path), &ImportOptions::default()).unwrap_err();
    assert!(error.to_string().contains("more than"), "{error}");
}
