//! Tensors as a file describes them, and the one place where their numbers are copied out.
//!
//! Nothing of a description is believed before [`Decoder::tensor`] has checked it against the bytes
//! that are there and against a budget that depends on the file's own size alone.

use std::borrow::Cow;

use candle_core::{Device, Tensor};

use super::Fault;

/// Most dimensions of a tensor; convolutions have four.
pub(super) const MAX_RANK: usize = 8;

/// What a tensor's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DType {
    F16,
    Bf16,
    F32,
    F64,
    /// Nothing that weights consist of, with its name and bytes for each element.
    Other(&'static str, usize),
}

impl DType {
    /// By the name of torch's storage without its `Storage`.
    pub(super) fn from_torch(name: &str) -> Option<Self> {
        Some(match name {
            "Half" => Self::F16,
            "BFloat16" => Self::Bf16,
            "Float" => Self::F32,
            "Double" => Self::F64,
            "Long" => Self::Other("int64", 8),
            "Int" => Self::Other("int32", 4),
            "Short" => Self::Other("int16", 2),
            "Char" => Self::Other("int8", 1),
            "Byte" => Self::Other("uint8", 1),
            "Bool" => Self::Other("bool", 1),
            _ => return None,
        })
    }

    /// By numpy's letter and width, without a byte order.
    pub(super) fn from_numpy(name: &str) -> Self {
        match name {
            "f2" => Self::F16,
            "f4" => Self::F32,
            "f8" => Self::F64,
            "i8" | "u8" => Self::Other("64-bit integers", 8),
            "i4" | "u4" => Self::Other("32-bit integers", 4),
            "i2" | "u2" => Self::Other("16-bit integers", 2),
            "i1" | "u1" => Self::Other("8-bit integers", 1),
            "b1" => Self::Other("bool", 1),
            _ => Self::Other("no numbers", 1),
        }
    }

    /// Bytes for each element.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Other(_, size) => size,
        }
    }
}

/// Where a tensor's numbers are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data<'a> {
    Bytes(&'a [u8]),
    /// One character below U+0100 for each byte.
    Latin1(&'a str),
    /// In a storage to be looked up: its key, its count of numbers, and the part that counts.
    Storage {
        key: &'a str,
        len: usize,
        view: Option<(usize, usize)>,
    },
}

/// A tensor as the file claims it to be.
#[derive(Clone, Debug)]
pub(super) struct RawTensor<'a> {
    pub(super) dtype: DType,
    pub(super) big_endian: bool,
    pub(super) shape: Vec<usize>,
    /// Distances in elements, one for each dimension; `None` for row-major and dense.
    pub(super) strides: Option<Vec<usize>>,
    /// First element.
    pub(super) offset: usize,
    pub(super) data: Data<'a>,
}

/// Row-major strides of a shape whose product was checked.
fn dense_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// Column-major strides, or `None` when they overflow.
pub(super) fn fortran_strides(shape: &[usize]) -> Option<Vec<usize>> {
    let mut next = 1usize;
    shape
        .iter()
        .map(|&size| {
            let stride = next;
            next = next.checked_mul(size)?;
            Some(stride)
        })
        .collect()
}

/// Copies tensors out of a file, within a budget.
pub(super) struct Decoder<F> {
    /// Bytes that may still be allocated.
    budget: usize,
    /// The bytes of a storage by its key.
    storage: F,
}

impl<'a, F> Decoder<F>
where
    F: FnMut(&str) -> Result<&'a [u8], Fault>,
{
    /// An honest file holds each number once. Shared and broadcast storages may multiply that a
    /// little, a hostile file would like to do so a lot: four times the file is the limit.
    pub(super) fn new(file_len: usize, storage: F) -> Self {
        Self {
            budget: file_len.saturating_mul(4),
            storage,
        }
    }

    /// The tensor in candle's hands, dense, on the CPU, in its stored type (f64 becomes f32).
    pub(super) fn tensor(&mut self, name: &str, raw: &RawTensor<'a>) -> Result<Tensor, Fault> {
        let dtype = match raw.dtype {
            DType::F16 => candle_core::DType::F16,
            DType::Bf16 => candle_core::DType::BF16,
            DType::F32 => candle_core::DType::F32,
            DType::F64 => candle_core::DType::F64,
            DType::Other(kind, _) => {
                return Err(Fault::corrupt(format!(
                    "the tensor {name} holds {kind} where weights are floating-point numbers"
                )));
            }
        };
        if raw.big_endian {
            return Err(Fault::corrupt(format!(
                "the tensor {name} is in big-endian byte order"
            )));
        }
        if raw.shape.len() > MAX_RANK {
            return Err(Fault::Limit(format!(
                "a tensor of {} dimensions",
                raw.shape.len()
            )));
        }
        if raw.shape.contains(&0) {
            return Err(Fault::corrupt(format!("the tensor {name} is empty")));
        }

        let size = raw.dtype.size();
        let too_large = || over_budget(name, &raw.shape);
        let bytes = raw
            .shape
            .iter()
            .try_fold(size, |product, &dim| product.checked_mul(dim))
            .ok_or_else(too_large)?;
        self.budget = self.budget.checked_sub(bytes).ok_or_else(too_large)?;

        let source = self.source(name, raw)?;
        let dense = dense_strides(&raw.shape);
        let strides = raw.strides.as_deref().unwrap_or(&dense);
        let outside = || Fault::corrupt(format!("the tensor {name} reaches past its data"));
        // The last element's end, in bytes.
        let end = raw
            .shape
            .iter()
            .zip(strides)
            .try_fold(raw.offset, |last, (dim, stride)| {
                last.checked_add((dim - 1).checked_mul(*stride)?)
            })
            .and_then(|last| last.checked_add(1)?.checked_mul(size))
            .filter(|&end| end <= source.len())
            .ok_or_else(outside)?;

        // A dimension of one element may have any stride.
        let is_dense = raw
            .shape
            .iter()
            .zip(strides.iter().zip(&dense))
            .all(|(&dim, (stride, dense))| dim == 1 || stride == dense);
        let data = if is_dense {
            Cow::Borrowed(&source[end - bytes..end])
        } else {
            Cow::Owned(gather(
                &source, raw.offset, &raw.shape, strides, size, bytes,
            ))
        };
        let tensor = Tensor::from_raw_buffer(&data, dtype, &raw.shape, &Device::Cpu);
        tensor
            .and_then(|tensor| match raw.dtype {
                DType::F64 => tensor.to_dtype(candle_core::DType::F32),
                _ => Ok(tensor),
            })
            .map_err(|e| Fault::corrupt(format!("the tensor {name} cannot be built: {e}")))
    }

    /// The bytes that the tensor's offset counts in.
    fn source(&mut self, name: &str, raw: &RawTensor<'a>) -> Result<Cow<'a, [u8]>, Fault> {
        let size = raw.dtype.size();
        match raw.data {
            Data::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Data::Latin1(text) => {
                // Counted before it is copied: many tensors may name the same text.
                self.budget = self
                    .budget
                    .checked_sub(text.len())
                    .ok_or_else(|| over_budget(name, &raw.shape))?;
                let bytes: Option<Vec<u8>> = text
                    .chars()
                    .map(|c| u8::try_from(u32::from(c)).ok())
                    .collect();
                let bytes = bytes.ok_or_else(|| {
                    Fault::corrupt(format!("the tensor {name} has text in place of bytes"))
                })?;
                Ok(Cow::Owned(bytes))
            }
            Data::Storage { key, len, view } => {
                let bytes = (self.storage)(key)?;
                let sized = |count: usize| count.checked_mul(size);
                let whole = sized(len).and_then(|end| bytes.get(..end)).ok_or_else(|| {
                    Fault::corrupt(format!("the storage of the tensor {name} is cut short"))
                })?;
                let Some((first, count)) = view else {
                    return Ok(Cow::Borrowed(whole));
                };
                let part = first
                    .checked_add(count)
                    .and_then(sized)
                    .and_then(|end| whole.get(sized(first)?..end));
                part.map(Cow::Borrowed).ok_or_else(|| {
                    Fault::corrupt(format!("the tensor {name} reaches past its storage"))
                })
            }
        }
    }
}

/// More than a file of this size can mean, at the tensor where that shows.
fn over_budget(name: &str, shape: &[usize]) -> Fault {
    Fault::Limit(format!(
        "more numbers than it has room for (in {name} of shape {shape:?})"
    ))
}

/// Elements in row-major order from anywhere; every index was checked by the caller.
fn gather(
    source: &[u8],
    offset: usize,
    shape: &[usize],
    strides: &[usize],
    size: usize,
    bytes: usize,
) -> Vec<u8> {
    let mut gathered = Vec::with_capacity(bytes);
    // The stride of a single element is never walked and may be any number.
    let strides: Vec<usize> = shape
        .iter()
        .zip(strides)
        .map(|(&dim, &stride)| if dim == 1 { 0 } else { stride })
        .collect();
    let mut index = vec![0; shape.len()];
    let mut element = offset;
    while gathered.len() < bytes {
        gathered.extend_from_slice(&source[element * size..][..size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            element += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            element -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    gathered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(raw: &RawTensor<'_>, file_len: usize) -> Result<Tensor, Fault> {
        Decoder::new(file_len, |_: &str| Err(Fault::Truncated)).tensor("t", raw)
    }

    #[test]
    fn the_stride_of_a_single_element_may_be_anything() {
        let data: Vec<u8> = [1f32, 3.0, 2.0, 4.0]
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect();
        let raw = RawTensor {
            dtype: DType::F32,
            big_endian: false,
            shape: vec![2, 1, 2],
            strides: Some(vec![1, usize::MAX, 2]),
            offset: 0,
            data: Data::Bytes(&data),
        };
        let tensor = decode(&raw, data.len()).unwrap();
        assert_eq!(tensor.dims(), [2, 1, 2]);
        let numbers: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(numbers, [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn a_broadcast_is_taken_up_to_four_times_the_file() {
        let data = 7f32.to_le_bytes();
        let raw = |count| RawTensor {
            dtype: DType::F32,
            big_endian: false,
            shape: vec![count],
            strides: Some(vec![0]),
            offset: 0,
            data: Data::Bytes(&data),
        };
        assert!(decode(&raw(40), 40).is_ok());
        assert!(matches!(decode(&raw(41), 40), Err(Fault::Limit(_))));
    }
}
