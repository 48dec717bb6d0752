//! The few pickle instructions that PyTorch writes around one tensor, interpreted as data.
//!
//! An instruction or global that is not on the list ends the reading. Nothing is imported, called or executed: a
//! "call" of a known global only builds the value that stands for it.

use std::rc::Rc;

/// Bytes of a pickle; around one tensor PyTorch writes some 150.
pub(super) const MAX_PICKLE: usize = 64 << 10;
/// Values on the stack at a time.
const MAX_STACK: usize = 4096;
/// Tuples inside tuples.
const MAX_DEPTH: usize = 16;

/// What a pickle may hold.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Text(String),
    Tuple(Vec<Rc<Value>>, usize),
    Global(&'static str),
    /// A dictionary with this many entries; its contents do not matter.
    Dict(usize),
    Storage {
        dtype: Dtype,
        key: String,
        len: i64,
    },
    Tensor(Tensor),
}

/// A tensor as its pickle describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    /// Name of the file in the archive that holds the numbers.
    pub(super) key: String,
    /// Numbers in that file.
    pub(super) len: i64,
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    pub(super) stride: Vec<i64>,
}

/// Element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    F32,
    F64,
    F16,
    Bf16,
}

impl Dtype {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Every global that a file may name.
const GLOBALS: [&str; 7] = [
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch FloatStorage",
    "torch DoubleStorage",
    "torch HalfStorage",
    "torch BFloat16Storage",
    "collections OrderedDict",
];

fn storage(global: &str) -> Option<Dtype> {
    match global {
        "torch FloatStorage" => Some(Dtype::F32),
        "torch DoubleStorage" => Some(Dtype::F64),
        "torch HalfStorage" => Some(Dtype::F16),
        "torch BFloat16Storage" => Some(Dtype::Bf16),
        _ => None,
    }
}

/// What is wrong, and where.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) found: String,
    pub(super) expected: &'static str,
}

enum Item {
    Mark,
    Value(Rc<Value>),
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the present instruction begins.
    op_at: usize,
    stack: Vec<Item>,
    memo: Vec<Option<Rc<Value>>>,
}

/// The value that a pickle stands for.
pub(super) fn parse(bytes: &[u8]) -> Result<Rc<Value>, Fault> {
    if bytes.len() > MAX_PICKLE {
        let found = format!("{} bytes", bytes.len());
        return Err(Fault { at: 0, found, expected: "the pickle of one tensor, some hundred bytes" });
    }
    let mut machine = Machine { bytes, at: 0, op_at: 0, stack: Vec::new(), memo: Vec::new() };
    loop {
        machine.op_at = machine.at;
        let [op] = machine.take()?;
        if op == b'.' {
            let value = machine.pop()?;
            return match machine.stack.is_empty() {
                true => Ok(value),
                false => Err(machine.fault("values left on the stack", "one value at the end")),
            };
        }
        machine.step(op)?;
    }
}

impl Machine<'_> {
    fn fault(&self, found: impl Into<String>, expected: &'static str) -> Fault {
        Fault { at: self.op_at, found: found.into(), expected }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let slice = self.slice(N)?;
        slice.try_into().map_err(|_| self.fault("the end of the pickle", "more bytes"))
    }

    fn slice(&mut self, n: usize) -> Result<&[u8], Fault> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else { return Err(self.fault("the end of the pickle", "more bytes")) };
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn line(&mut self) -> Result<String, Fault> {
        let rest = &self.bytes[self.at..];
        let Some(n) = rest.iter().take(256).position(|&b| b == b'\n') else {
            return Err(self.fault("a name without end", "a line of at most 256 bytes"));
        };
        let text = String::from_utf8_lossy(&rest[..n]).into_owned();
        self.at += n + 1;
        Ok(text)
    }

    fn push(&mut self, value: Value) -> Result<(), Fault> {
        self.push_item(Item::Value(Rc::new(value)))
    }

    fn push_item(&mut self, item: Item) -> Result<(), Fault> {
        if self.stack.len() >= MAX_STACK {
            return Err(self.fault(format!("more than {MAX_STACK} values on the stack"), "a few"));
        }
        self.stack.push(item);
        Ok(())
    }

    fn pop(&mut self) -> Result<Rc<Value>, Fault> {
        match self.stack.pop() {
            Some(Item::Value(value)) => Ok(value),
            _ => Err(self.fault("an empty stack", "a value")),
        }
    }

    /// The values above the last mark, which goes too.
    fn above_mark(&mut self) -> Result<Vec<Rc<Value>>, Fault> {
        let Some(mark) = self.stack.iter().rposition(|item| matches!(item, Item::Mark)) else {
            return Err(self.fault("no mark on the stack", "a mark"));
        };
        let values = self.stack.drain(mark..).filter_map(|item| match item {
            Item::Value(value) => Some(value),
            Item::Mark => None,
        });
        Ok(values.collect())
    }

    fn push_tuple(&mut self, items: Vec<Rc<Value>>) -> Result<(), Fault> {
        let depth = |v: &Rc<Value>| if let Value::Tuple(_, depth) = **v { depth } else { 0 };
        let deep = 1 + items.iter().map(depth).max().unwrap_or(0);
        if deep > MAX_DEPTH {
            return Err(self.fault(format!("tuples more than {MAX_DEPTH} deep"), "the pickle of one tensor"));
        }
        self.push(Value::Tuple(items, deep))
    }

    fn step(&mut self, op: u8) -> Result<(), Fault> {
        match op {
            0x80 => match self.take()? {
                [2..=4] => Ok(()),
                [version] => Err(self.fault(format!("pickle protocol {version}"), "protocol 2, 3 or 4")),
            },
            b'c' => self.global(),
            b'q' => {
                let [slot] = self.take()?;
                self.remember(slot.into())
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.take()?);
                self.remember(slot as usize)
            }
            b'h' => {
                let [slot] = self.take()?;
                self.recall(slot.into())
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.take()?);
                self.recall(slot as usize)
            }
            b'(' => self.push_item(Item::Mark),
            b'X' => {
                let n = u32::from_le_bytes(self.take()?);
                let text = String::from_utf8_lossy(self.slice(n as usize)?).into_owned();
                self.push(Value::Text(text))
            }
            b'K' => {
                let [n] = self.take()?;
                self.push(Value::Int(n.into()))
            }
            b'M' => {
                let n = u16::from_le_bytes(self.take()?);
                self.push(Value::Int(n.into()))
            }
            b'J' => {
                let n = i32::from_le_bytes(self.take()?);
                self.push(Value::Int(n.into()))
            }
            0x8a => self.long(),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b')' => self.push_tuple(Vec::new()),
            b't' => {
                let items = self.above_mark()?;
                self.push_tuple(items)
            }
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.push_tuple(items)
            }
            b'}' => self.push(Value::Dict(0)),
            b's' => {
                let items = vec![self.pop()?, self.pop()?];
                self.set_items(items)
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set_items(items)
            }
            b'Q' => self.persistent(),
            b'R' => self.reduce(),
            _ => {
                let expected = "an instruction that a tensor needs; this reader executes nothing";
                Err(self.fault(format!("the pickle instruction 0x{op:02x}"), expected))
            }
        }
    }

    fn global(&mut self) -> Result<(), Fault> {
        let name = format!("{} {}", self.line()?, self.line()?);
        match GLOBALS.into_iter().find(|known| *known == name) {
            Some(known) => self.push(Value::Global(known)),
            None => {
                let shown: String = name.replacen(' ', ".", 1).chars().take(80).collect();
                let expected = "only what a plain tensor needs; this reader executes nothing";
                Err(self.fault(format!("the global {shown:?}"), expected))
            }
        }
    }

    fn remember(&mut self, slot: usize) -> Result<(), Fault> {
        let Some(Item::Value(value)) = self.stack.last() else {
            return Err(self.fault("nothing to remember", "a value"));
        };
        let value = Rc::clone(value);
        if slot >= MAX_STACK {
            return Err(self.fault(format!("memo slot {slot}"), "a few slots"));
        }
        if slot >= self.memo.len() {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = Some(value);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Result<(), Fault> {
        match self.memo.get(slot).cloned().flatten() {
            Some(value) => self.push_item(Item::Value(value)),
            None => Err(self.fault(format!("memo slot {slot}, which is empty"), "a slot written before")),
        }
    }

    /// A whole number of up to eight bytes.
    fn long(&mut self) -> Result<(), Fault> {
        let [n] = self.take()?;
        if n > 8 {
            return Err(self.fault(format!("a whole number of {n} bytes"), "8 bytes or fewer"));
        }
        let slice = self.slice(n.into())?;
        let mut bytes = [if slice.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
        bytes[..slice.len()].copy_from_slice(slice);
        self.push(Value::Int(i64::from_le_bytes(bytes)))
    }

    fn set_items(&mut self, items: Vec<Rc<Value>>) -> Result<(), Fault> {
        let target = self.pop()?;
        match *target {
            Value::Dict(n) if items.len().is_multiple_of(2) => self.push(Value::Dict(n + items.len() / 2)),
            Value::Dict(_) => Err(self.fault("a key without value", "pairs")),
            _ => Err(self.fault("entries for something that is no dictionary", "a dictionary")),
        }
    }

    /// `('storage', TYPE, key, place, length)`.
    fn persistent(&mut self) -> Result<(), Fault> {
        let id = self.pop()?;
        if let Value::Tuple(items, _) = &*id
            && let [kind, global, key, _, len] = &items[..]
            && let (Value::Text(kind), Value::Global(global)) = (&**kind, &**global)
            && let (Value::Text(key), Value::Int(len)) = (&**key, &**len)
            && kind == "storage"
            && let Some(dtype) = storage(global)
        {
            return self.push(Value::Storage { dtype, key: key.clone(), len: *len });
        }
        Err(self.fault("another persistent id", "a storage of floats"))
    }

    fn reduce(&mut self) -> Result<(), Fault> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Value::Tuple(arguments, _) = &*arguments else {
            return Err(self.fault("a call without arguments", "a tuple of arguments"));
        };
        match *callee {
            Value::Global("collections OrderedDict") if arguments.is_empty() => self.push(Value::Dict(0)),
            Value::Global("torch._utils _rebuild_tensor_v2") => {
                let tensor = tensor(arguments).ok_or_else(|| {
                    self.fault("a tensor that is described wrongly", "storage, offset, shape, stride")
                })?;
                self.push(Value::Tensor(tensor))
            }
            Value::Global("torch._utils _rebuild_parameter") => match arguments.first() {
                Some(data) if matches!(**data, Value::Tensor(_)) => {
                    self.push_item(Item::Value(Rc::clone(data)))
                }
                _ => Err(self.fault("a parameter without tensor", "a tensor")),
            },
            _ => Err(self.fault("a call of something else", "the rebuilding of a tensor")),
        }
    }
}

fn tensor(arguments: &[Rc<Value>]) -> Option<Tensor> {
    let [storage, offset, shape, stride, ..] = arguments else { return None };
    let numbers = |value: &Value| match value {
        Value::Tuple(items, _) => items
            .iter()
            .map(|v| if let Value::Int(n) = **v { Some(n) } else { None })
            .collect::<Option<Vec<_>>>(),
        _ => None,
    };
    match (&**storage, &**offset) {
        (Value::Storage { dtype, key, len }, Value::Int(offset)) => Some(Tensor {
            dtype: *dtype,
            key: key.clone(),
            len: *len,
            offset: *offset,
            shape: numbers(shape)?,
            stride: numbers(stride)?,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(bytes: &[u8]) -> Fault {
        parse(bytes).unwrap_err()
    }

    #[test]
    fn globals_off_the_list_are_named_with_their_offset() {
        let got = fault(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.");
        assert_eq!((got.at, got.found.as_str()), (2, "the global \"os.system\""));
        assert!(fault(b"\x80\x02cbuiltins\neval\n.").found.contains("builtins.eval"));
        assert!(fault(b"\x80\x02ctorch\nFloatStorage extra\n.").found.contains("FloatStorage extra"));
    }

    #[test]
    fn odd_programs_are_refused() {
        assert!(fault(b"\x80\x02K\x01K\x02K\x03s.").found.contains("no dictionary"));
        assert!(fault(&[b"\x80\x02".as_slice(), &[b'('; 5000], b"."].concat()).found.contains("4096"));
        assert!(fault(&[b'('; MAX_PICKLE + 1]).found.contains("65537 bytes"));
        let deep = [b"\x80\x02)".as_slice(), &[0x85; 40], b"."].concat();
        assert!(fault(&deep).found.contains("16 deep"));
        for bad in [
            &b""[..],
            b".",
            b"\x80",
            b"\x80\x01.",
            b"X\xff\xff\xff\xff",
            b"\x8a\xff",
            b"cos",
            b"R.",
            b"t.",
            b"q\x00.",
            b"K\x01r\xff\xff\xff\xff.",
            b"h\x05.",
            b"i.",
            b"K\x01K\x02.",
            b"K\x01Q.",
            b"))R.",
        ] {
            parse(bad).unwrap_err();
        }
    }

    #[test]
    fn whole_numbers_of_several_bytes() {
        assert_eq!(*parse(b"\x8a\x02\x00\x80.").unwrap(), Value::Int(-32768));
        assert_eq!(*parse(b"\x8a\x00.").unwrap(), Value::Int(0));
        assert_eq!(*parse(b"J\xff\xff\xff\xff.").unwrap(), Value::Int(-1));
    }
}
