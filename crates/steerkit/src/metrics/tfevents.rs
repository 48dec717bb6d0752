//! TensorBoard event files.
//!
//! A file is a sequence of TFRecords: length (u64), masked CRC-32C of the length, payload, masked CRC-32C of
//! the payload, all little-endian. The payload is a protobuf `tensorflow.Event`: `wall_time` = 1 (double),
//! `step` = 2 (int64), `file_version` = 3 (string), `summary` = 5 { `value` = 1 { `tag` = 1 (string),
//! `simple_value` = 2 (float) } }.

use super::{EvalRecord, Record, StepRecord};
use crate::checksum::crc32c;
use fs_err as fs;
use std::{
    io::{self, Write},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// A writer of scalar summaries.
pub struct TfEvents {
    file: fs::File,
}

impl TfEvents {
    /// Starts a new event file in `folder`; older ones of the folder are removed.
    pub fn create(folder: &Path) -> io::Result<Self> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("events.out.tfevents.") {
                fs::remove_file(&path)?;
            }
        }
        let name = format!("events.out.tfevents.{}.steerkit", now() as u64);
        let mut events = Self { file: fs::File::create(folder.join(name))? };
        let mut event = Vec::new();
        put_double(&mut event, 1, now());
        put_bytes(&mut event, 3, b"brain.Event:2");
        events.frame(&event)?;
        Ok(events)
    }

    /// Writes the scalars of one record at its step.
    pub fn record(&mut self, record: &Record) -> io::Result<()> {
        let scalars = match record {
            Record::Step(r) => step_scalars(r),
            Record::Eval(r) => eval_scalars(r),
        };
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut one = Vec::new();
            put_bytes(&mut one, 1, tag.as_bytes());
            put_float(&mut one, 2, value as f32);
            put_bytes(&mut summary, 1, &one);
        }
        let mut event = Vec::new();
        put_double(&mut event, 1, now());
        put_key(&mut event, 2, 0);
        put_varint(&mut event, record.step() as u64);
        put_bytes(&mut event, 5, &summary);
        self.frame(&event)
    }

    /// Brings the file to the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn frame(&mut self, payload: &[u8]) -> io::Result<()> {
        let length = (payload.len() as u64).to_le_bytes();
        let mut frame = Vec::with_capacity(payload.len() + 16);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&masked(&length));
        frame.extend_from_slice(payload);
        frame.extend_from_slice(&masked(payload));
        self.file.write_all(&frame)
    }
}

fn step_scalars(r: &StepRecord) -> Vec<(String, f64)> {
    let mut scalars = vec![
        ("train/loss".into(), r.loss),
        ("train/margin".into(), r.margin),
        ("train/accuracy".into(), r.accuracy),
        ("train/grad_norm".into(), r.grad_norm),
        ("train/norm".into(), r.norm),
    ];
    scalars.extend(r.lr.map(|lr| ("train/lr".into(), lr)));
    let layers = r.layer_norms.iter().enumerate();
    scalars.extend(layers.map(|(i, &norm)| (format!("train/norm/{i}"), norm)));
    scalars
}

fn eval_scalars(r: &EvalRecord) -> Vec<(String, f64)> {
    let p = &r.point;
    let tag = |what: &str| format!("{}/{what}/m={}", r.split, p.multiplier);
    vec![
        (tag("margin"), p.margin),
        (tag("accuracy"), p.accuracy),
        (tag("chosen"), p.chosen),
        (tag("rejected"), p.rejected),
    ]
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// TFRecord's mask: rotated right by 15, plus a constant.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_float(out: &mut Vec<u8>, field: u64, value: f32) {
    put_key(out, field, 5);
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_a_framed_version_event() {
        // The first 12 bytes of any file with a 24-byte first event, as TensorFlow writes them.
        let mut payload = Vec::new();
        put_double(&mut payload, 1, 0.0);
        put_bytes(&mut payload, 3, b"brain.Event:2");
        assert_eq!(payload.len(), 24);
        let length = 24u64.to_le_bytes();
        assert_eq!(masked(&length), [0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(&payload[9..], b"\x1a\x0dbrain.Event:2");
    }

    #[test]
    fn varints() {
        let mut out = Vec::new();
        put_varint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
    }
}
