//! A writer of small GGUF and safetensors files that the tests then break.

pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const F32: u32 = 6;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;
pub(crate) const U64: u32 = 10;

/// A metadata value: type number and payload.
pub(crate) type Value = (u32, Vec<u8>);

pub(crate) fn string(text: &str) -> Value {
    (STRING, prefixed(text.as_bytes()))
}

pub(crate) fn u32v(x: u32) -> Value {
    (U32, x.to_le_bytes().to_vec())
}

pub(crate) fn f32v(x: f32) -> Value {
    (F32, x.to_le_bytes().to_vec())
}

pub(crate) fn array(element: u32, len: u64, payload: &[u8]) -> Value {
    (ARRAY, [&element.to_le_bytes()[..], &len.to_le_bytes(), payload].concat())
}

fn prefixed(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) format: u32,
    pub(crate) offset: u64,
}

/// The parts of a GGUF file, free to contradict each other.
#[derive(Clone, Debug)]
pub(crate) struct GgufParts {
    pub(crate) magic: Vec<u8>,
    pub(crate) version: u32,
    pub(crate) n_tensors: u64,
    pub(crate) n_keys: u64,
    pub(crate) keys: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

impl GgufParts {
    /// A valid one-block Llama: width 32, 2 heads, 1 key/value head, MLP 32, vocabulary 8, all F32.
    pub(crate) fn llama() -> Self {
        let mut parts = Self {
            magic: b"GGUF".to_vec(),
            version: 3,
            n_tensors: 0,
            n_keys: 0,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        };
        parts.set("general.architecture", string("llama"));
        for (key, x) in [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("vocab_size", 8),
        ] {
            parts.set(&format!("llama.{key}"), u32v(x));
        }
        parts.set("llama.attention.layer_norm_rms_epsilon", f32v(1e-5));
        parts.set("tokenizer.chat_template", string("{{ messages }}"));
        for (name, dims) in [
            ("token_embd", &[32, 8][..]),
            ("output_norm", &[32]),
            ("blk.0.attn_norm", &[32]),
            ("blk.0.attn_q", &[32, 32]),
            ("blk.0.attn_k", &[32, 16]),
            ("blk.0.attn_v", &[32, 16]),
            ("blk.0.attn_output", &[32, 32]),
            ("blk.0.ffn_norm", &[32]),
            ("blk.0.ffn_gate", &[32, 32]),
            ("blk.0.ffn_up", &[32, 32]),
            ("blk.0.ffn_down", &[32, 32]),
        ] {
            let n: u64 = dims.iter().product();
            let values: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            parts.add(&format!("{name}.weight"), dims, &values);
        }
        parts
    }

    /// Adds or replaces a key.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        match self.keys.iter_mut().find(|k| k.0 == key) {
            Some(k) => k.1 = value,
            None => self.append(key, value),
        }
    }

    /// Adds a key, even a second time.
    pub(crate) fn append(&mut self, key: &str, value: Value) {
        self.keys.push((key.to_owned(), value));
        self.n_keys += 1;
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.keys.retain(|k| k.0 != key);
        self.n_keys = self.keys.len() as u64;
    }

    /// Adds an F32 tensor behind the others.
    pub(crate) fn add(&mut self, name: &str, dims: &[u64], values: &[f32]) {
        let offset = self.data.len().next_multiple_of(self.alignment);
        self.data.resize(offset, 0);
        self.data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            format: 0,
            offset: offset as u64,
        });
        self.n_tensors += 1;
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.clone();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.to_le_bytes());
        out.extend(self.n_keys.to_le_bytes());
        for (key, (kind, payload)) in &self.keys {
            out.extend(prefixed(key.as_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(payload);
        }
        for t in &self.tensors {
            out.extend(prefixed(t.name.as_bytes()));
            out.extend((t.dims.len() as u32).to_le_bytes());
            out.extend(t.dims.iter().flat_map(|d| d.to_le_bytes()));
            out.extend(t.format.to_le_bytes());
            out.extend(t.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

/// A safetensors file of a header's text and data.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}
