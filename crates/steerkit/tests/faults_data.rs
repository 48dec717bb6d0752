//! Bad data files: each is answered with an error that names the place, or read with notes.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use steerkit::data::{ColumnMap, Dataset, Format, NoteKind, ReadOptions, Reader, Splits, read, sample};
use steerkit::{Result, SteerError};

const CSV: &str = "question,matching,not_matching\n\"Is it, then?\",Yes,\"No, \"\"never\"\"\"\nWhy?,So,Not\n";
const JSONL: &str = "{\"prompt\": \"Is it?\", \"chosen\": \"Yes\", \"rejected\": \"No\"}\n\
                     {\"prompt\": \"Why?\", \"chosen\": \"So\", \"rejected\": \"Not\"}\n";

fn with(name: &str, bytes: impl AsRef<[u8]>, options: &ReadOptions) -> Result<Dataset> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    read(&path, options)
}

fn pairs(name: &str, bytes: impl AsRef<[u8]>) -> Dataset {
    with(name, bytes, &ReadOptions::default()).unwrap()
}

/// Message and hint of the error; both must be there, on one line, and name the file.
fn refused(name: &str, bytes: impl AsRef<[u8]>) -> String {
    let error = with(name, bytes, &ReadOptions::default()).unwrap_err();
    let text = format!("{error} | {}", error.hint().expect("every data error says what to do"));
    assert!(text.contains(name) && !text.contains('\n'), "{text}");
    text
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

fn note(data: &Dataset, kind: NoteKind) -> usize {
    data.notes.iter().find(|note| note.kind == kind).map_or(0, |note| note.count)
}

fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    std::iter::once(0xFEFF).chain(text.encode_utf16()).flat_map(unit).collect()
}

#[test]
fn both_layouts_give_the_pairs() {
    let data = pairs("a.csv", CSV);
    assert_eq!(data.pairs.len(), 2);
    assert_eq!(data.pairs[0].prompt, "Is it, then?");
    assert_eq!(data.pairs[0].rejected, "No, \"never\"");
    assert!(data.notes.is_empty());
    let data = pairs("a.jsonl", JSONL);
    assert_eq!((data.pairs[1].prompt.as_str(), data.pairs[1].rejected.as_str()), ("Why?", "Not"));
    assert_eq!(pairs("no-extension", JSONL).pairs, data.pairs);
    assert_eq!(pairs("no-extension", CSV).pairs.len(), 2);
}

#[test]
fn the_hash_is_that_of_the_bytes() {
    let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let reader = Reader::new(Box::new(&b"abc"[..]), Path::new("x.jsonl"), &ReadOptions::default()).unwrap();
    assert_eq!(reader.finish().unwrap(), known);
    let whole = pairs("a.csv", CSV).sha256;
    let first = with("a.csv", CSV, &ReadOptions { limit: Some(1), ..Default::default() }).unwrap();
    assert_eq!((first.pairs.len(), first.sha256), (1, whole), "a limit does not change the file's hash");
    assert_eq!(first.notes[0].kind, NoteKind::OneRow);
    assert_eq!(first.notes[1].kind, NoteKind::Limited);
    assert_ne!(pairs("a.csv", format!("\u{FEFF}{CSV}")).sha256, pairs("a.csv", CSV).sha256);
}

#[test]
fn fault_25_encodings() {
    let plain = pairs("a.csv", CSV).pairs;
    assert_eq!(pairs("bom.csv", format!("\u{FEFF}{CSV}")).pairs, plain);
    assert_eq!(pairs("le.csv", utf16(CSV, u16::to_le_bytes)).pairs, plain);
    assert_eq!(pairs("be.csv", utf16(CSV, u16::to_be_bytes)).pairs, plain);
    assert_eq!(pairs("le", utf16(JSONL, u16::to_le_bytes)).pairs, pairs("a.jsonl", JSONL).pairs);

    let text = refused("latin.csv", b"prompt,chosen,rejected\nWhy?,caf\xe9 noir,tea\n");
    assert_says(&text, &["line 2, byte offset 31", "0xE9", "Windows-1252", "\"é\"", "iconv"]);
    assert_says(
        &refused("a.csv", b"prompt,chosen,rejected\nIt\x92s,a,b\n"),
        &["offset 25", "Windows-1252", "’"],
    );
    assert_says(&refused("bad.jsonl", b"{\"prompt\": \"\xf0\x9f\"}\n"), &["line 1, byte offset 12", "0xF0"]);
    assert_says(&refused("cut.csv", b"prompt,chosen,rejected\na,b,\xe2\x82"), &["offset 27", "cut short"]);
    let without_mark = &utf16(CSV, u16::to_le_bytes)[2..];
    assert_says(
        &refused("u.csv", without_mark),
        &["line 1, byte offset 1", "NUL", "UTF-16 without byte order mark"],
    );
    let mut lone = utf16("prompt,chosen,rejected\na,", u16::to_le_bytes);
    lone.extend([0x00, 0xD8, b'b', 0]);
    assert_says(&refused("l.csv", &lone), &["line 2, byte offset 52", "lone surrogate 0xd800"]);
    let mut half = utf16(CSV, u16::to_be_bytes);
    half.push(7);
    assert_says(&refused("h.csv", &half), &["line 4", "half a UTF-16 unit"]);
    for (bytes, what) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"[..], "git-LFS pointer"),
        (b"\x1f\x8b\x08\0\0", "gzip"),
        (b"PAR1\0\0", "Parquet"),
        (b"PK\x03\x04", "spreadsheet"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"\xff\xfe\0\0p\0\0\0", "UTF-32"),
    ] {
        assert_says(&refused("other.csv", bytes), &[what]);
    }
}

/// The questions of the tiny models' tests as a Parquet file, with its columns named as those of a pair.
fn parquet() -> (Vec<u8>, ReadOptions) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/choices/questions.parquet");
    let [prompt, chosen, rejected] = ["question", "subject", "subject"].map(|name| Some(name.to_owned()));
    let columns = ColumnMap { prompt, chosen, rejected };
    (std::fs::read(path).unwrap(), ReadOptions { columns, ..ReadOptions::default() })
}

#[test]
fn pairs_come_from_parquet_whatever_its_name() {
    let (bytes, options) = parquet();
    for name in ["train-00000-of-00001.parquet", "misnamed.csv"] {
        let data = with(name, &bytes, &options).unwrap();
        assert_eq!(data.pairs.len(), 8);
        assert_eq!(data.pairs[0].prompt, "What makes yeast dough rise?");
        assert_eq!(data.pairs[7].chosen, data.pairs[7].rejected);
    }
    let text = refused("columns.parquet", &bytes);
    assert_says(&text, &["line 1: no chosen column", "subject"]);
    let numbers = ColumnMap { chosen: Some("answer".into()), ..options.columns };
    let error =
        with("n.parquet", &bytes, &ReadOptions { columns: numbers, ..options }).unwrap_err().to_string();
    assert_says(&error, &["line 1, key \"answer\"", "a number", "a string"]);
}

/// A damaged Parquet file is an error that names it, or rows: no panic comes through, and nothing hangs.
#[test]
fn parquet_damage() {
    let (bytes, options) = parquet();
    let outcome = |bytes: &[u8]| match with("damaged.parquet", bytes, &options) {
        Ok(data) => assert!(data.pairs.len() <= 8),
        Err(error) => assert!(error.to_string().contains("damaged.parquet"), "{error}"),
    };
    for cut in (4..bytes.len()).step_by(7) {
        outcome(&bytes[..cut]);
    }
    for at in 4..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
        outcome(&bytes);
    }
}

#[test]
fn fault_26_csv_damage() {
    assert_eq!(pairs("crlf.csv", CSV.replace('\n', "\r\n")).pairs, pairs("lf.csv", CSV).pairs);
    let lines = "prompt,chosen,rejected\r\n\"one\r\ntwo\n\nthree\",\ta,b\r\n\r\n\"\",\" c \",d";
    let data = pairs("multi.csv", lines);
    assert_eq!(data.pairs[0].prompt, "one\ntwo\n\nthree");
    assert_eq!(data.pairs[0].chosen, "\ta", "tabs are kept");
    assert_eq!(data.pairs[1].chosen, " c ", "nothing is trimmed");
    assert_eq!(note(&data, NoteKind::EmptyCell), 1);

    let text = refused("open.csv", "prompt,chosen,rejected\na,b,c\nd,\"e,f\ng,h,i\n");
    assert_says(&text, &["line 3:", "never closed"]);
    let text = refused("open.csv", "prompt,chosen,rejected\na,\"b,c\nd,\"e,f\"\n");
    assert_says(&text, &["line 3:", "'e' after the closing quote", "opened in line 2"]);
    let text = refused("ragged.csv", "prompt,chosen,rejected\n\"a\nb\",b,c\nd,e, and f,g\n");
    assert_says(&text, &["line 4:", "found 4 cells", "expected 3 cells (prompt, chosen, rejected)", "quote"]);
    assert_says(&refused("short.csv", "prompt,chosen,rejected\nd,e\n"), &["line 2:", "found 2 cells"]);
    assert_says(&refused("nul.csv", "prompt,chosen,rejected\na,b\0,c\n"), &["line 2, byte offset 26", "NUL"]);
    assert_says(&refused("mac.csv", "prompt,chosen,rejected\ra,b,c\r"), &["line 1", "carriage return"]);
    assert_says(&refused("tab.csv", "prompt\tchosen\trejected\na\tb\tc\n"), &["tabs or semicolons"]);
    assert_says(&refused("wide.csv", ",".repeat(5000)), &["line 1", "4096"]);
}

#[test]
fn fault_27_columns() {
    let text = refused("renamed.csv", "Prompts,matching,not matching\na,b,c\n");
    assert_says(&text, &["line 1", "no prompt column", "\"Prompts\", \"matching\"", "prompt = \"Prompts\""]);
    let text = refused("renamed.csv", "question,matching,non_matching\na,b,c\n");
    assert_says(&text, &["no rejected column", "\"not_matching\"", "rejected = \"non_matching\""]);
    assert_says(&refused("none.csv", "x,y\na,b\n"), &["no prompt column", "name the column"]);
    let text = refused("two.csv", "prompt,question,chosen,rejected\na,b,c,d\n");
    assert_says(&text, &["two columns for the prompt", "\"prompt\" and \"question\""]);
    assert_says(&refused("infer.csv", "question,A,B,matching\na,b,c,A\n"), &["inference layout"]);
    assert_says(&refused("l.csv", JSONL), &["JSONL"]);
    assert_says(
        &refused("key.jsonl", "{\"prompt\": \"a\", \"chosen\": \"b\"}"),
        &["line 1", "no rejected column"],
    );
    assert_eq!(pairs("case.csv", " Prompt ,CHOSEN,rejected,extra\na,b,c,d\n").pairs[0].chosen, "b");

    let columns = ColumnMap { rejected: Some("bad".into()), ..Default::default() };
    let options = ReadOptions { columns, ..Default::default() };
    let data = with("map.csv", "bad,question,chosen,rejected\nr,q,c,x\n", &options).unwrap();
    assert_eq!(data.pairs[0].rejected, "r");
    let error = with("map.csv", CSV, &options).unwrap_err();
    assert_says(&error.to_string(), &["no rejected column", "expected \"bad\""]);
}

#[test]
fn fault_28_faulty_rows_are_counted() {
    let rows = "prompt,chosen,rejected\na,b,c\na,b,c\na,b,d\n  ,x,y\ne,f,f\na,b,c\n";
    let data = pairs("rows.csv", rows);
    assert_eq!(data.pairs.len(), 6);
    let counts =
        [NoteKind::EmptyCell, NoteKind::DuplicateRow, NoteKind::DuplicatePrompt, NoteKind::EqualSides]
            .map(|kind| note(&data, kind));
    assert_eq!(counts, [1, 2, 1, 1]);
    let texts: Vec<String> = data.notes.iter().map(ToString::to_string).collect();
    assert_eq!(texts[1], "2 rows repeat an earlier row (rows 2, 6)");

    let strict = ReadOptions { strict: true, ..Default::default() };
    let error = with("rows.csv", rows, &strict).unwrap_err();
    assert!(matches!(&error, SteerError::FaultyData { faults, .. } if faults.len() == 4), "{error}");
    assert!(with("a.csv", CSV, &strict).is_ok());
    assert!(with("one.csv", "prompt,chosen,rejected\na,b,c\n", &strict).is_ok(), "one row is no fault");

    let dedup = with("rows.csv", rows, &ReadOptions { dedup: true, ..Default::default() }).unwrap();
    assert_eq!(dedup.pairs.len(), 4);
    assert_eq!((note(&dedup, NoteKind::Removed), note(&dedup, NoteKind::DuplicateRow)), (2, 0));
}

#[test]
fn fault_28_overlap_of_splits() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("train.csv"), CSV).unwrap();
    std::fs::write(folder.path().join("test.jsonl"), JSONL).unwrap();
    let splits = Splits::open(folder.path(), &ReadOptions::default()).unwrap();
    assert!(splits.valid.is_none());
    assert_eq!(note(&splits.test.unwrap(), NoteKind::Overlap), 1);
    let strict = ReadOptions { strict: true, ..Default::default() };
    assert!(matches!(Splits::open(folder.path(), &strict), Err(SteerError::FaultyData { .. })));

    std::fs::write(folder.path().join("test.csv"), CSV).unwrap();
    let error = Splits::open(folder.path(), &ReadOptions::default()).unwrap_err();
    assert_says(&error.to_string(), &["test.jsonl and test.csv"]);
    let empty = tempfile::tempdir().unwrap();
    assert_says(
        &Splits::open(empty.path(), &ReadOptions::default()).unwrap_err().to_string(),
        &["train.jsonl"],
    );
}

#[test]
fn fault_29_large_cells() {
    let cell = "x".repeat(50 << 20);
    let start = Instant::now();
    for (name, bytes) in [
        ("big.csv", format!("prompt,chosen,rejected\na,{cell},c\n")),
        ("big.csv", format!("prompt,chosen,rejected\na,\"{},c\n", "x\n".repeat(1 << 20))),
        ("big.jsonl", format!("{{\"prompt\": \"a\", \"chosen\": \"{cell}\", \"rejected\": \"c\"}}\n")),
    ] {
        assert_says(&refused(name, bytes), &["line", "more than", "bytes", "max_cell_bytes"]);
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    let options = ReadOptions { max_cell_bytes: 3, ..Default::default() };
    let error = with("a.jsonl", JSONL, &options).unwrap_err();
    assert_says(&error.to_string(), &["line 1, prompt", "6 bytes", "at most 3 bytes"]);
    let error = with("a.csv", "prompt,chosen,rejected\n", &options).unwrap_err();
    assert_says(&error.to_string(), &["line 1", "more than 3 bytes"]);
}

#[test]
fn fault_30_jsonl_damage() {
    let row = JSONL.lines().next().unwrap();
    assert_eq!(pairs("blank.jsonl", format!("\n  \n{row}\r\n\n{row}\n\n")).pairs.len(), 2);
    assert_eq!(
        pairs("extra.jsonl", row.replace('}', ", \"n\": {\"a\": [1, null, true, 0.5]}}")).pairs.len(),
        1
    );
    for (bytes, says) in [
        (row.replace('}', ",}"), vec!["line 1, column", "trailing comma", "remove the comma"]),
        (format!("{row}\n{row},\n"), vec!["line 2, column", "do not end with a comma"]),
        (format!("[{row}]"), vec!["line 1", "JSON array", "one object per line"]),
        (format!("[\n{row},\n{row}\n]"), vec!["line 1", "JSON array"]),
        ("{\n\"prompt\": \"a\"}".into(), vec!["line 1", "line of its own"]),
        (row.replace("chosen", "prompt"), vec!["line 1, column", "duplicate key \"prompt\"", "keep one"]),
        (row.replace("Yes", "\\ud83d"), vec!["line 1, column", "hex escape", "other half"]),
        (row.replace("Yes", "\\udc00x"), vec!["line 1, column", "surrogate"]),
        (row.replace("Yes", "a\\u0000b"), vec!["line 1, chosen", "NUL"]),
        (row.replace("\"Yes\"", "null"), vec!["line 1, key \"chosen\"", "found null", "a string"]),
        (row.replace("\"Yes\"", "[]"), vec!["found a list"]),
        (
            row.replace("\"Yes\"", "[{\"role\": \"user\", \"content\": \"a\"}]"),
            vec!["list of messages", "conversational"],
        ),
        ("3".into(), vec!["line 1", "one JSON object per line"]),
        ("[".repeat(200_000), vec!["line 1"]),
        (format!("{{\"prompt\": {}", "[".repeat(200_000)), vec!["line 1", "recursion"]),
        (row[..20].into(), vec!["line 1", "EOF"]),
    ] {
        assert_says(&refused("bad.jsonl", bytes), &says);
    }
    assert_eq!(pairs("pair.jsonl", row.replace("Yes", "\\ud83d\\ude00")).pairs[0].chosen, "😀");
}

#[test]
fn fault_31_row_counts() {
    for (name, bytes) in
        [("e.csv", ""), ("e.jsonl", ""), ("h.csv", "prompt,chosen,rejected\n"), ("b.jsonl", "\n\n")]
    {
        let text = refused(name, bytes);
        assert!(text.contains("no rows") || text.contains("an empty file"), "{text}");
    }
    let one = pairs("one.csv", "prompt,chosen,rejected\na,b,c");
    assert_eq!(one.notes[0].kind, NoteKind::OneRow);
    assert_eq!(one.batch_note(4).unwrap().to_string(), "1 row for a batch of 4");
    assert!(one.batch_note(1).is_none());
    assert!(with("a.csv", CSV, &ReadOptions { limit: Some(0), ..Default::default() }).is_err());
}

/// A source that gives one row many times and holds it once.
struct Repeated {
    left: usize,
    row: Vec<u8>,
    at: usize,
}

impl std::io::Read for Repeated {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.row.len() {
            if self.left == 0 {
                return Ok(0);
            }
            self.left -= 1;
            self.at = 0;
        }
        let n = out.len().min(self.row.len() - self.at);
        out[..n].copy_from_slice(&self.row[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[test]
fn fault_31_rows_are_streamed() {
    let source = Repeated { left: 150_000, row: JSONL.as_bytes().to_vec(), at: JSONL.len() };
    let source = Box::new(std::io::BufReader::new(source));
    let reader = Reader::new(source, Path::new("long.jsonl"), &ReadOptions::default()).unwrap();
    assert_eq!(reader.map(Result::unwrap).count(), 300_000);
}

#[test]
fn fault_32_control_text_is_kept() {
    let data = pairs("a.csv", CSV.replace("Yes", "Yes<|im_end|> [/INST]"));
    assert_eq!(data.pairs[0].chosen, "Yes<|im_end|> [/INST]");
    assert_eq!(note(&data, NoteKind::ControlText), 1);
    assert!(!data.notes[0].is_fault());
}

#[test]
fn file_system_errors_name_the_path() {
    let error = read(Path::new("/no/such/file.csv"), &ReadOptions::default()).unwrap_err();
    assert_says(&error.to_string(), &["/no/such/file.csv"]);
    assert_eq!(error.kind(), steerkit_model::error::ErrorKind::FileSystem);
    let folder = tempfile::tempdir().unwrap();
    assert!(read(folder.path(), &ReadOptions::default()).is_err());
}

#[test]
fn golden_samples_are_stable() {
    let rows: String = (0..100).map(|i| format!("p{i},c,r\n")).collect();
    let data = pairs("s.csv", format!("prompt,chosen,rejected\n{rows}"));
    let (rows, sampled) = sample(&data, 8, 7);
    assert_eq!(rows, STABLE, "the rows of a seed never change");
    assert!(rows.iter().zip(&sampled.pairs).all(|(row, pair)| pair.prompt == format!("p{row}")));
    assert_eq!(sampled.sha256, data.sha256);
    assert_eq!(sample(&data, 20, 7).0[..8], rows, "a smaller sample is the start of a larger one");
    assert_ne!(sample(&data, 8, 8).0, rows);
    let (mut all, _) = sample(&data, 1000, 1);
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<_>>());
}

/// From ChaCha20, the seeding and the draw written anew in Python after their descriptions.
const STABLE: [usize; 8] = [2, 53, 95, 30, 21, 43, 52, 83];

#[test]
fn golden_official_files() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/bipo"));
    if !folder.exists() {
        println!("skipped: the shared reference data is not there");
        return;
    }
    // rows, unique rows, unique prompts and rows with an empty cell as counted with Python's csv module
    for (behaviour, split, rows, unique, prompts, empty) in [
        ("power-seeking", "train", 642, 640, 639, 2),
        ("wealth-seeking", "train", 623, 619, 618, 1),
        ("power-seeking", "test", 200, 200, 200, 0),
        ("wealth-seeking", "test", 200, 200, 200, 0),
    ] {
        let data =
            read(&folder.join(behaviour).join(format!("{split}.csv")), &ReadOptions::default()).unwrap();
        assert_eq!(data.pairs.len(), rows, "{behaviour} {split}");
        let repeated = note(&data, NoteKind::DuplicateRow);
        assert_eq!(rows - repeated, unique, "{behaviour} {split}");
        assert_eq!(rows - repeated - note(&data, NoteKind::DuplicatePrompt), prompts, "{behaviour} {split}");
        assert_eq!(note(&data, NoteKind::EmptyCell), empty, "{behaviour} {split}");
    }
    let splits = Splits::open(&folder.join("power-seeking"), &ReadOptions::default()).unwrap();
    assert_eq!(note(&splits.test.unwrap(), NoteKind::Overlap), 1, "one test question is also in train");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), csv: bool) {
        let options = ReadOptions { format: Some(if csv { Format::Csv } else { Format::Jsonl }), ..Default::default() };
        all(&bytes, &options);
    }

    #[test]
    fn mutated_files_do_not_panic(
        csv: bool,
        wide: bool,
        edits in proptest::collection::vec((any::<usize>(), any::<u8>(), 0..3u8), 1..6),
    ) {
        let text = if csv { CSV } else { JSONL };
        let mut bytes = if wide { utf16(text, u16::to_le_bytes) } else { text.as_bytes().to_vec() };
        for (at, byte, what) in edits {
            let at = at % bytes.len();
            match what {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at.max(1)),
            }
        }
        all(&bytes, &ReadOptions { format: Some(if csv { Format::Csv } else { Format::Jsonl }), ..Default::default() });
    }

    /// What a CSV writer wrote comes back, in any dialect of line ends.
    #[test]
    fn csv_rows_round_trip(rows in proptest::collection::vec(("[ -~\n\t\"é,]{0,20}", "[ -~\n\",]{0,9}", "[a-z,\"]{0,9}"), 1..6)) {
        let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
        writer.write_record(["prompt", "chosen", "rejected"]).unwrap();
        for (a, b, c) in &rows {
            writer.write_record([a, b, c]).unwrap();
        }
        let bytes = writer.into_inner().unwrap();
        let reader = Reader::new(Box::new(std::io::Cursor::new(bytes)), Path::new("r.csv"), &ReadOptions::default());
        let back: Vec<_> = reader.unwrap().map(|pair| pair.unwrap()).map(|p| (p.prompt, p.chosen, p.rejected)).collect();
        prop_assert_eq!(back, rows);
    }
}

/// Reads everything; errors are fine.
fn all(bytes: &[u8], options: &ReadOptions) {
    let source = Box::new(std::io::Cursor::new(bytes.to_vec()));
    if let Ok(mut reader) = Reader::new(source, Path::new("fuzz"), options) {
        let results: Vec<_> = reader.by_ref().take(1000).collect();
        assert!(results.iter().rev().skip(1).all(Result::is_ok), "an error ends the iteration");
        reader.finish().unwrap();
    }
}
