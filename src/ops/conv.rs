//! Convolutions of the packed layout: which kernel a layer gets, and what happens to its sums.

use super::blocked::{Buffer, Channels, Size};
use super::direct::Direct;
use super::simd::{BLOCK, Isa, Simd};
use super::threads::Workers;
use super::winograd::{Form, Winograd};

/// What a convolution is, before its weights are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Zero padding on each side.
    pub padding: usize,
    /// Nearest x2 before the convolution.
    pub upsample: bool,
    /// max(0, y) after it.
    pub relu: bool,
}

/// What happens to the sums on their way to memory, after bias and activation.
#[derive(Debug, Default)]
pub struct Epilogue<'a> {
    /// Add what the output holds: the residual connection of a block that works in place.
    pub residual: bool,
    /// Store also `relu(y * scale + shift)`: the batch norm and activation that open the next block.
    pub activated: Option<Activated<'a>>,
    /// Store the means of 2x2 instead.
    pub pool: bool,
}

/// See [`Epilogue::activated`].
#[derive(Debug)]
pub struct Activated<'a> {
    /// As large as the output.
    pub out: &'a mut [f32],
    /// One for each padded output channel.
    pub scale: &'a [f32],
    /// One for each padded output channel.
    pub shift: &'a [f32],
}

/// A convolution with packed weights, bias and activation fused, on the kernel that suits its size.
#[derive(Debug)]
pub enum Conv {
    /// 3x3 by minimal filtering.
    Winograd(Winograd),
    /// Everything else.
    Direct(Direct),
}

impl Conv {
    /// Packs `weight` (out, in, k, k) and `bias` (out) for inputs of `size` (before upsampling).
    pub fn new(
        spec: Spec,
        weight: &[f32],
        bias: &[f32],
        input: &Channels,
        size: Size,
        isa: Isa,
    ) -> Self {
        let side = size.height.min(size.width);
        let form = match (spec.kernel, spec.padding, spec.upsample) {
            (3, 1, true) if side >= 8 => Some(Form::Up),
            (3, 0 | 1, false) if side >= 32 => Some(Form::F4),
            (3, 0 | 1, false) if side >= 8 => Some(Form::F2),
            _ => None,
        };
        match form {
            Some(form) => Self::Winograd(Winograd::new(form, spec, weight, bias, input, isa)),
            None => Self::Direct(Direct::new(spec, weight, bias, input, isa)),
        }
    }

    /// Height and width of the output for an input.
    pub fn output_size(&self, input: Size, pool: bool) -> Size {
        match self {
            Self::Winograd(conv) => conv.output_size(input, pool),
            Self::Direct(conv) => conv.output_size(input, pool),
        }
    }

    /// Name of the kernel, for the benchmark's table.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Winograd(conv) => conv.form().name(),
            Self::Direct(_) => "direct",
        }
    }

    /// Convolves the packed `input` of `size` into `output`.
    ///
    /// # Panics
    /// When a slice has not the length that its size asks for: a fault of the program.
    pub fn run(
        &self,
        workers: &Workers,
        input: &[f32],
        size: Size,
        output: &mut [f32],
        epilogue: Epilogue<'_>,
    ) {
        match self {
            Self::Winograd(conv) => conv.run(workers, input, size, output, epilogue),
            Self::Direct(conv) => conv.run(workers, input, size, output, epilogue),
        }
    }
}

/// The output of a convolution, taken apart for the kernels; shared by all jobs of a layer.
#[derive(Clone, Copy)]
pub(crate) struct Sink {
    pub(crate) size: Size,
    output: *mut f32,
    bias: *const f32,
    relu: bool,
    residual: bool,
    activated: *mut f32,
    scale: *const f32,
    shift: *const f32,
}

// SAFETY: jobs write disjoint pixels or channels of the output, and only read the rest.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

impl Sink {
    /// # Panics
    /// When the epilogue's slices do not fit the output: a fault of the program.
    pub(crate) fn new(
        output: &mut [f32],
        size: Size,
        bias: &Buffer,
        relu: bool,
        epilogue: Epilogue<'_>,
    ) -> Self {
        assert_eq!(
            output.len() % (size.pixels() * BLOCK),
            0,
            "whole blocks of {size:?}"
        );
        let channels = output.len() / size.pixels();
        assert!(bias.len() >= channels);
        let (scale, shift, activated) = match epilogue.activated {
            Some(a) => {
                assert_eq!(a.out.len(), output.len());
                assert!(a.scale.len() >= channels && a.shift.len() >= channels);
                (a.scale.as_ptr(), a.shift.as_ptr(), a.out.as_mut_ptr())
            }
            None => (std::ptr::null(), std::ptr::null(), std::ptr::null_mut()),
        };
        Self {
            size,
            output: output.as_mut_ptr(),
            bias: bias.as_ptr(),
            relu,
            residual: epilogue.residual,
            activated,
            scale,
            shift,
        }
    }

    /// Bias and activation for the channels from `lane`.
    #[inline(always)]
    pub(crate) unsafe fn activate<S: Simd>(&self, lane: usize, sum: S::V) -> S::V {
        // SAFETY: `lane` is a vector of the output's channels, says the caller.
        unsafe {
            let value = S::add(sum, S::load(self.bias.add(lane)));
            if self.relu {
                S::max(value, S::splat(0.0))
            } else {
                value
            }
        }
    }

    /// Stores channels from `lane` of one pixel, with residual and second output.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd>(&self, lane: usize, y: usize, x: usize, value: S::V) {
        let Size { height, width } = self.size;
        // SAFETY: the caller gives a vector of channels and a pixel of the output.
        unsafe {
            let at = ((lane / BLOCK * height + y) * width + x) * BLOCK + lane % BLOCK;
            let out = self.output.add(at);
            let value = if self.residual {
                S::add(value, S::load(out))
            } else {
                value
            };
            S::store(out, value);
            if !self.activated.is_null() {
                let moved = S::fma(
                    value,
                    S::load(self.scale.add(lane)),
                    S::load(self.shift.add(lane)),
                );
                S::store(self.activated.add(at), S::max(moved, S::splat(0.0)));
            }
        }
    }
}
