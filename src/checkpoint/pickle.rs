//! The part of Python's pickle machine that checkpoints need, and nothing of the rest.
//!
//! A pickle is a program for a stack machine. [`parse`] runs the opcodes of protocols 2 to 5 that
//! `torch.save` and `paddle.save` write and builds a graph of plain [`Node`]s. It has no notion of
//! importing or calling: a global is a name on a short list ([`Global`]) or the file is refused, and
//! "calling" one is a `match` that fills in a node. Text opcodes of protocols 0 and 1, instances,
//! sets, extension codes and out-of-band buffers are left out.
//!
//! Nodes live in one vector and point to each other by index. Shared and even cyclic values are
//! therefore harmless, dropping never recurses, and all memory is bounded by [`MAX_WORK`]: every
//! opcode and every item it moves counts. Texts and arrays are slices of the input, never copies.
//!
//! The opcodes are described in CPython's `Lib/pickletools.py`.

use std::collections::HashMap;

use super::Fault;
use super::globals::Global;
use super::raw::{DType, MAX_RANK};
use super::reader::Reader;

/// Most opcodes and moved items in one pickle. The published models with their optimisers need
/// about 30 thousand; a million nodes take some 100 MB.
pub(super) const MAX_WORK: usize = 1 << 20;

/// Index of a node in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id(u32);

/// What the machine builds.
#[derive(Debug)]
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i128),
    Float,
    /// Text, or a byte string of Python 2.
    Text(&'a str),
    Bytes(&'a [u8]),
    /// Bytes that protocol 2 spells as text, one character below U+0100 for each.
    Latin1(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// Any mapping, its pairs in the order they were set.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(Box<TorchTensor<'a>>),
    /// A numpy type; endianness follows in a BUILD.
    NumpyType {
        dtype: DType,
        big_endian: bool,
    },
    Array(Box<NumpyArray>),
    /// A value that weights do not need, such as a numpy scalar or a device.
    Opaque,
}

/// The numbers behind torch tensors, by name; the file says elsewhere where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub(super) dtype: DType,
    pub(super) key: &'a str,
    /// Numbers in the whole storage.
    pub(super) len: usize,
    /// The part of it that this one is (first, count), for torch before 0.4.
    pub(super) view: Option<(usize, usize)>,
}

/// A torch tensor: a strided view of a storage.
#[derive(Debug)]
pub(super) struct TorchTensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// A numpy array, its numbers in a node of their own.
#[derive(Debug)]
pub(super) struct NumpyArray {
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) big_endian: bool,
    /// Column-major instead of row-major.
    pub(super) fortran: bool,
    /// `None` until the array's state was set.
    pub(super) data: Option<Id>,
}

/// The result of a pickle.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
    /// Bytes read, up to and with the STOP opcode.
    pub(super) len: usize,
}

impl<'a> Pickle<'a> {
    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id.0 as usize]
    }

    /// Every storage that any tensor named.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(storage),
            _ => None,
        })
    }
}

/// Runs the pickle at the start of `input`.
pub(super) fn parse(input: &[u8]) -> Result<Pickle<'_>, Fault> {
    let mut machine = Machine {
        input: Reader::new(input),
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        work: 0,
    };
    if machine.input.u8()? != op::PROTO || !(2..=5).contains(&machine.input.u8()?) {
        return Err(Fault::corrupt("its pickle is not of protocol 2 to 5"));
    }
    while !machine.step()? {}
    let root = machine.pop()?;
    let len = machine.input.position();
    Ok(Pickle {
        nodes: machine.nodes,
        root,
        len,
    })
}

/// The names of the opcodes are those of `pickletools`.
mod op {
    pub(super) const MARK: u8 = b'(';
    pub(super) const STOP: u8 = b'.';
    pub(super) const POP: u8 = b'0';
    pub(super) const POP_MARK: u8 = b'1';
    pub(super) const DUP: u8 = b'2';
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const NONE: u8 = b'N';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BINSTRING: u8 = b'T';
    pub(super) const SHORT_BINSTRING: u8 = b'U';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const BINBYTES: u8 = b'B';
    pub(super) const SHORT_BINBYTES: u8 = b'C';
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const NEWOBJ: u8 = 0x81;
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const LONG4: u8 = 0x8b;
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const BINUNICODE8: u8 = 0x8d;
    pub(super) const BINBYTES8: u8 = 0x8e;
    pub(super) const STACK_GLOBAL: u8 = 0x93;
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const FRAME: u8 = 0x95;
    pub(super) const BYTEARRAY8: u8 = 0x96;
}

/// The machine in mid-program; what calls give is in [`globals`](super::globals).
#[derive(Debug)]
pub(super) struct Machine<'a> {
    input: Reader<'a>,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Stack heights; what lies below the last one is out of reach until it is popped.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    pub(super) work: usize,
}

impl<'a> Machine<'a> {
    /// Executes one opcode; true at the end of the program.
    fn step(&mut self) -> Result<bool, Fault> {
        self.charge(1)?;
        let at = self.input.position();
        match self.input.u8()? {
            op::STOP => return Ok(true),
            op::PROTO => _ = self.input.u8()?,
            op::FRAME => _ = self.input.u64()?,

            op::MARK => self.marks.push(self.stack.len()),
            op::POP => _ = self.pop()?,
            op::POP_MARK => _ = self.pop_mark()?,
            op::DUP => {
                let top = self.top()?;
                self.stack.push(top);
            }

            op::NONE => self.push(Node::None),
            op::NEWTRUE => self.push(Node::Bool(true)),
            op::NEWFALSE => self.push(Node::Bool(false)),
            op::BININT1 => {
                let value = self.input.u8()?;
                self.push(Node::Int(value.into()));
            }
            op::BININT2 => {
                let value = self.input.u16()?;
                self.push(Node::Int(value.into()));
            }
            op::BININT => {
                let value = self.input.u32()?.cast_signed();
                self.push(Node::Int(value.into()));
            }
            op::LONG1 => {
                let len = self.input.u8()?.into();
                self.long(len)?;
            }
            op::LONG4 => {
                let len = self.input.len32()?;
                self.long(len)?;
            }
            op::BINFLOAT => {
                self.input.take(8)?;
                self.push(Node::Float);
            }

            op::SHORT_BINUNICODE => {
                let len = self.input.u8()?.into();
                self.text(len)?;
            }
            op::BINUNICODE => {
                let len = self.input.len32()?;
                self.text(len)?;
            }
            op::BINUNICODE8 => {
                let len = self.input.len64()?;
                self.text(len)?;
            }
            op::SHORT_BINSTRING => {
                let len = self.input.u8()?.into();
                self.python2_string(len)?;
            }
            op::BINSTRING => {
                let len = self.input.len32()?;
                self.python2_string(len)?;
            }
            op::SHORT_BINBYTES => {
                let len = self.input.u8()?.into();
                self.bytes(len)?;
            }
            op::BINBYTES => {
                let len = self.input.len32()?;
                self.bytes(len)?;
            }
            op::BINBYTES8 | op::BYTEARRAY8 => {
                let len = self.input.len64()?;
                self.bytes(len)?;
            }

            op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
            op::TUPLE1 => self.tuple(1)?,
            op::TUPLE2 => self.tuple(2)?,
            op::TUPLE3 => self.tuple(3)?,
            op::TUPLE => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            op::EMPTY_LIST => self.push(Node::List(Vec::new())),
            op::APPEND => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            op::APPENDS => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            op::EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            op::SETITEMS => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }

            op::BINPUT => {
                let slot = self.input.u8()?.into();
                self.put(slot)?;
            }
            op::LONG_BINPUT => {
                let slot = self.input.u32()?;
                self.put(slot)?;
            }
            op::MEMOIZE => self.put(self.memo.len() as u32)?,
            op::BINGET => {
                let slot = self.input.u8()?.into();
                self.get(slot)?;
            }
            op::LONG_BINGET => {
                let slot = self.input.u32()?;
                self.get(slot)?;
            }

            op::GLOBAL => {
                let module = self.input.line()?;
                let name = self.input.line()?;
                self.push(Node::Global(Global::find(module, name)?));
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (module, name) = (self.text_of(module)?, self.text_of(name)?);
                self.push(Node::Global(Global::find(module, name)?));
            }
            op::REDUCE | op::NEWOBJ => {
                let args = self.pop()?;
                let callee = self.pop()?;
                let Node::Global(global) = *self.node(callee) else {
                    return Err(Fault::corrupt(format!(
                        "its pickle calls what is no function at byte {at}"
                    )));
                };
                let Node::Tuple(args) = self.node(args) else {
                    return Err(Fault::corrupt(format!(
                        "its pickle calls without arguments at byte {at}"
                    )));
                };
                // Every function on the list takes a few arguments; the rest is never looked at.
                let args: Vec<Id> = args.iter().take(8).copied().collect();
                let result = self.call(global, &args)?;
                self.stack.push(result);
            }
            op::BUILD => {
                let state = self.pop()?;
                let object = self.top()?;
                self.build(object, state)?;
            }
            op::BINPERSID => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Node::Storage(storage));
            }

            other => {
                return Err(Fault::corrupt(format!(
                    "its pickle has opcode 0x{other:02x} at byte {at}, which checkpoints do not use"
                )));
            }
        }
        Ok(false)
    }

    pub(super) fn charge(&mut self, items: usize) -> Result<(), Fault> {
        self.work += items;
        if self.work > MAX_WORK {
            return Err(Fault::Limit(format!(
                "a pickle of more than {MAX_WORK} steps"
            )));
        }
        Ok(())
    }

    pub(super) fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id.0 as usize]
    }

    /// Writes a node's successor in its place.
    pub(super) fn replace(&mut self, id: Id, node: Node<'a>) {
        self.nodes[id.0 as usize] = node;
    }

    pub(super) fn add(&mut self, node: Node<'a>) -> Id {
        // The work limit keeps the count far below 2^32.
        let id = Id(self.nodes.len() as u32);
        self.nodes.push(node);
        id
    }

    fn push(&mut self, node: Node<'a>) {
        let id = self.add(node);
        self.stack.push(id);
    }

    fn top(&self) -> Result<Id, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&id) if self.stack.len() > floor => Ok(id),
            _ => Err(Fault::corrupt(
                "its pickle takes more from the stack than is there",
            )),
        }
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let floor = self
            .marks
            .pop()
            .ok_or_else(|| Fault::corrupt("its pickle misses a mark"))?;
        Ok(self.stack.split_off(floor))
    }

    fn put(&mut self, slot: u32) -> Result<(), Fault> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, slot: u32) -> Result<(), Fault> {
        let Some(&id) = self.memo.get(&slot) else {
            return Err(Fault::corrupt(format!(
                "its pickle recalls memo {slot}, never stored"
            )));
        };
        self.stack.push(id);
        Ok(())
    }

    fn long(&mut self, len: usize) -> Result<(), Fault> {
        let bytes = self.input.take(len)?;
        if len > 16 {
            return Err(Fault::Limit(format!("an integer of {len} bytes")));
        }
        // Two's complement, little-endian, sign-extended to 16 bytes.
        let sign = if bytes.last().is_some_and(|&b| b >= 0x80) {
            0xff
        } else {
            0
        };
        let mut wide = [sign; 16];
        wide[..len].copy_from_slice(bytes);
        self.push(Node::Int(i128::from_le_bytes(wide)));
        Ok(())
    }

    fn text(&mut self, len: usize) -> Result<(), Fault> {
        let text = self.input.text(len)?;
        self.push(Node::Text(text));
        Ok(())
    }

    fn bytes(&mut self, len: usize) -> Result<(), Fault> {
        let bytes = self.input.take(len)?;
        self.push(Node::Bytes(bytes));
        Ok(())
    }

    /// Python 2 had one type for names and for raw numbers.
    fn python2_string(&mut self, len: usize) -> Result<(), Fault> {
        let bytes = self.input.take(len)?;
        self.push(std::str::from_utf8(bytes).map_or(Node::Bytes(bytes), Node::Text));
        Ok(())
    }

    fn tuple(&mut self, len: usize) -> Result<(), Fault> {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), Fault> {
        let list = self.top()?;
        match &mut self.nodes[list.0 as usize] {
            Node::List(list) => list.extend_from_slice(items),
            _ => return Err(Fault::corrupt("its pickle appends to what is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Fault> {
        let dict = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(Fault::corrupt("its pickle sets a key without a value"));
        };
        match &mut self.nodes[dict.0 as usize] {
            Node::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => {
                return Err(Fault::corrupt(
                    "its pickle sets items of what is no dictionary",
                ));
            }
        }
        Ok(())
    }

    pub(super) fn text_of(&self, id: Id) -> Result<&'a str, Fault> {
        match *self.node(id) {
            Node::Text(text) => Ok(text),
            _ => Err(Fault::corrupt(
                "its pickle has another value where text belongs",
            )),
        }
    }

    pub(super) fn size_of(&self, id: Id) -> Result<usize, Fault> {
        match *self.node(id) {
            Node::Int(value) if value < 0 => Err(Fault::corrupt(
                "a tensor has a negative size, offset or stride",
            )),
            Node::Int(value) => usize::try_from(value)
                .ok()
                .ok_or_else(|| Fault::Limit(format!("a tensor with a size of {value}"))),
            _ => Err(Fault::corrupt(
                "its pickle has another value where a size belongs",
            )),
        }
    }

    pub(super) fn sizes_of(&self, id: Id) -> Result<Vec<usize>, Fault> {
        let (Node::Tuple(sizes) | Node::List(sizes)) = self.node(id) else {
            return Err(Fault::corrupt("a tensor has no list of sizes"));
        };
        if sizes.len() > MAX_RANK {
            return Err(Fault::Limit(format!(
                "a tensor of {} dimensions",
                sizes.len()
            )));
        }
        sizes.iter().map(|&size| self.size_of(size)).collect()
    }
}
