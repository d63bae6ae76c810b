//! Everything a checkpoint may name, and what "calling" it gives: plain data, by a table.
//!
//! The other half of the machine in [`pickle`](super::pickle). Nothing here runs code of the file's
//! choice; a name outside the table is refused before anything is made of it.

use super::Fault;
use super::pickle::{Id, MAX_WORK, Machine, Node, NumpyArray, Storage, TorchTensor};
use super::raw::DType;

/// Everything a checkpoint may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    TorchStorage(DType),
    TorchSize,
    TorchDevice,
    NumpyReconstruct,
    NumpyFromBuffer,
    NumpyArray,
    NumpyType,
    NumpyScalar,
    CodecsEncode,
    Tuple,
}

impl Global {
    /// The allow-list.
    pub(super) fn find(module: &str, name: &str) -> Result<Self, Fault> {
        let found = match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", "Size") => Some(Self::TorchSize),
            ("torch", "device") => Some(Self::TorchDevice),
            ("torch" | "torch.cuda" | "torch.storage", name) => name
                .strip_suffix("Storage")
                .and_then(DType::from_torch)
                .map(Self::TorchStorage),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
                Some(Self::NumpyReconstruct)
            }
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => {
                Some(Self::NumpyScalar)
            }
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => {
                Some(Self::NumpyFromBuffer)
            }
            ("numpy", "ndarray") => Some(Self::NumpyArray),
            ("numpy", "dtype") => Some(Self::NumpyType),
            ("_codecs", "encode") => Some(Self::CodecsEncode),
            ("builtins" | "__builtin__", "tuple") => Some(Self::Tuple),
            _ => None,
        };
        found.ok_or_else(|| Fault::Refused(format!("{module}.{name}")))
    }
}

impl<'a> Machine<'a> {
    /// The value of calling a listed global, made without calling anything.
    pub(super) fn call(&mut self, global: Global, args: &[Id]) -> Result<Id, Fault> {
        let node = match (global, args) {
            (Global::OrderedDict, []) => Node::Dict(Vec::new()),
            (Global::OrderedDict, &[pairs]) => self.dict_from_pairs(pairs)?,
            // torch/_utils.py: (storage, offset, size, stride, requires_grad, hooks, metadata)
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                let Node::Storage(storage) = *self.node(storage) else {
                    return Err(Fault::corrupt("a tensor has no storage"));
                };
                let tensor = TorchTensor {
                    storage,
                    offset: self.size_of(offset)?,
                    shape: self.sizes_of(shape)?,
                    strides: self.sizes_of(strides)?,
                };
                if tensor.shape.len() != tensor.strides.len() {
                    return Err(Fault::corrupt(
                        "a tensor has not one stride for each dimension",
                    ));
                }
                Node::Tensor(Box::new(tensor))
            }
            // These give back their first argument as it is.
            (Global::RebuildParameter | Global::Tuple | Global::TorchSize, &[value, ..]) => {
                return Ok(value);
            }
            (Global::TorchDevice | Global::NumpyScalar, _) => Node::Opaque,
            (Global::NumpyReconstruct, _) => Node::Array(Box::new(NumpyArray {
                shape: Vec::new(),
                dtype: DType::F32,
                big_endian: false,
                fortran: false,
                data: None,
            })),
            // numpy/core/numeric.py, protocol 5: (buffer, dtype, shape, order)
            (Global::NumpyFromBuffer, &[data, dtype, shape, order]) => {
                let fortran = match self.text_of(order)? {
                    "C" => false,
                    "F" => true,
                    _ => return Err(Fault::corrupt("an array has no known order")),
                };
                Node::Array(Box::new(self.array(shape, dtype, fortran, data)?))
            }
            (Global::NumpyType, &[name, ..]) => {
                let name = self.text_of(name)?;
                Node::NumpyType {
                    dtype: DType::from_numpy(name.trim_start_matches(['<', '>', '=', '|'])),
                    big_endian: name.starts_with('>'),
                }
            }
            (Global::CodecsEncode, &[text, codec]) => match (self.node(text), self.text_of(codec)?)
            {
                (&Node::Text(text), "latin1" | "latin-1") => Node::Latin1(text),
                _ => return Err(Fault::corrupt("its pickle encodes bytes in an unknown way")),
            },
            _ => return Err(Fault::corrupt(format!("its pickle misuses {global:?}"))),
        };
        Ok(self.add(node))
    }

    /// Python 2 gave an OrderedDict its items as one list of pairs.
    fn dict_from_pairs(&mut self, pairs: Id) -> Result<Node<'a>, Fault> {
        let wrong = || Fault::corrupt("its pickle makes a dictionary of what are no pairs");
        let pair_of = |id: &Id| match self.node(*id) {
            Node::List(pair) | Node::Tuple(pair) => match pair[..] {
                [key, value] => Ok((key, value)),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        };
        let pairs: Vec<(Id, Id)> = match self.node(pairs) {
            // Counted before it is copied: the same list may be asked for again and again.
            Node::List(pairs) if self.work + pairs.len() <= MAX_WORK => {
                pairs.iter().map(pair_of).collect::<Result<_, _>>()?
            }
            Node::List(_) => return Err(Fault::Limit("too many items in its pickle".into())),
            _ => return Err(wrong()),
        };
        self.charge(pairs.len())?;
        Ok(Node::Dict(pairs))
    }

    /// Sets an object's state; all that have one besides numpy's are dictionaries, whose attributes
    /// (`_metadata` of torch) say nothing about weights.
    pub(super) fn build(&mut self, object: Id, state: Id) -> Result<(), Fault> {
        let built = match (self.node(object), self.node(state)) {
            (Node::Dict(_), _) => return Ok(()),
            // (version, shape, dtype, fortran order, data)
            (Node::Array(_), Node::Tuple(state)) => match state[..] {
                [_, shape, dtype, fortran, data] => {
                    let fortran = matches!(self.node(fortran), Node::Bool(true) | Node::Int(1));
                    Node::Array(Box::new(self.array(shape, dtype, fortran, data)?))
                }
                _ => return Err(Fault::corrupt("an array's state is not as numpy writes it")),
            },
            // (version, byte order, ...)
            (&Node::NumpyType { dtype, .. }, Node::Tuple(state)) => match state[..] {
                [_, order, ..] => Node::NumpyType {
                    dtype,
                    big_endian: self.text_of(order)? == ">",
                },
                _ => return Err(Fault::corrupt("a type's state is not as numpy writes it")),
            },
            _ => return Err(Fault::corrupt("its pickle sets the state of a plain value")),
        };
        self.replace(object, built);
        Ok(())
    }

    fn array(&self, shape: Id, dtype: Id, fortran: bool, data: Id) -> Result<NumpyArray, Fault> {
        let &Node::NumpyType { dtype, big_endian } = self.node(dtype) else {
            return Err(Fault::corrupt("an array has no type"));
        };
        let shape = self.sizes_of(shape)?;
        Ok(NumpyArray {
            shape,
            dtype,
            big_endian,
            fortran,
            data: Some(data),
        })
    }

    /// torch's persistent ids: ('storage', type, key, location, count, view or nothing).
    pub(super) fn storage(&self, id: Id) -> Result<Storage<'a>, Fault> {
        let wrong = || Fault::corrupt("a storage is not described as torch does");
        let Node::Tuple(parts) = self.node(id) else {
            return Err(wrong());
        };
        let (&[kind, dtype, key, _location, len], view) =
            parts.split_first_chunk::<5>().ok_or_else(wrong)?;
        if self.text_of(kind)? != "storage" {
            return Err(wrong());
        }
        let Node::Global(Global::TorchStorage(dtype)) = *self.node(dtype) else {
            return Err(wrong());
        };
        let view = match view {
            [] => None,
            [view] => match self.node(*view) {
                Node::None => None,
                Node::Tuple(view) => match view[..] {
                    [_key, first, count] => Some((self.size_of(first)?, self.size_of(count)?)),
                    _ => return Err(wrong()),
                },
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        };
        Ok(Storage {
            dtype,
            key: self.text_of(key)?,
            len: self.size_of(len)?,
            view,
        })
    }
}
