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
    /// In place of bias and activation: what a style asks for.
    pub styled: Option<Styled<'a>>,
}

/// Below zero, what is left of a styled convolution's sums.
pub const LEAK: f32 = 0.2;

/// `after * leaky(scale * sum + bias)`, each one value for each padded output channel; `leaky` leaves
/// [`LEAK`] of what is below zero.
#[derive(Clone, Copy, Debug)]
pub struct Styled<'a> {
    /// What sums are multiplied by.
    pub scale: &'a [f32],
    /// What the next layer wants its input multiplied by.
    pub after: &'a [f32],
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
pub struct Conv {
    spec: Spec,
    stride: usize,
    in_blocks: usize,
    out_blocks: usize,
    bias: Buffer,
    kernel: Kernel,
    isa: Isa,
}

#[derive(Debug)]
enum Kernel {
    /// 3x3 by minimal filtering.
    Winograd(Winograd),
    /// Everything else.
    Direct(Direct),
}

impl Conv {
    /// Packs `weight` (out, in, k, k) and `bias` (out) for inputs of `size` (before upsampling).
    ///
    /// # Panics
    /// When `weight` has not the length that the others ask for: a fault of the program.
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
        Self::pack(form, (spec, 1), weight, bias, input, isa)
    }

    /// As [`Conv::new`], of every `stride`-th pixel of every `stride`-th row alone, from the first on.
    ///
    /// # Panics
    /// As [`Conv::new`], and with a stride of 0 or after nearest x2.
    pub fn with_stride(
        spec: Spec,
        stride: usize,
        weight: &[f32],
        bias: &[f32],
        input: &Channels,
        isa: Isa,
    ) -> Self {
        assert!(stride > 0 && !spec.upsample, "stride {stride} of {spec:?}");
        Self::pack(None, (spec, stride), weight, bias, input, isa)
    }

    fn pack(
        form: Option<Form>,
        (spec, stride): (Spec, usize),
        weight: &[f32],
        bias: &[f32],
        input: &Channels,
        isa: Isa,
    ) -> Self {
        let (outs, ins) = (bias.len(), input.count());
        assert_eq!(
            weight.len(),
            outs * ins * spec.kernel * spec.kernel,
            "weights of {outs} x {ins}, {spec:?}"
        );
        let kernel = match form {
            Some(form) => {
                Kernel::Winograd(Winograd::new(form, spec.padding, weight, outs, input, isa))
            }
            None => Kernel::Direct(Direct::new((spec, stride), weight, outs, input, isa)),
        };
        Self {
            spec,
            stride,
            in_blocks: input.blocks(),
            out_blocks: outs.div_ceil(BLOCK),
            bias: Buffer::from_slice(bias),
            kernel,
            isa,
        }
    }

    /// Height and width of the output for an input (before nearest x2).
    pub fn output_size(&self, input: Size, pool: bool) -> Size {
        let side = |n: usize| {
            let n = if self.spec.upsample { 2 * n } else { n };
            let all = n + 2 * self.spec.padding + 1 - self.spec.kernel;
            all.div_ceil(self.stride) / if pool { 2 } else { 1 }
        };
        Size {
            height: side(input.height),
            width: side(input.width),
        }
    }

    /// Name of the kernel, for the benchmark's table.
    pub fn algorithm(&self) -> &'static str {
        match &self.kernel {
            Kernel::Winograd(winograd) => winograd.form().name(),
            Kernel::Direct(_) => "direct",
        }
    }

    /// Convolves the packed `input` of `size` into `output`.
    ///
    /// # Panics
    /// When a slice has not the length that its size asks for, or the workers run another instruction
    /// set: faults of the program.
    pub fn run(
        &self,
        workers: &Workers,
        input: &[f32],
        size: Size,
        output: &mut [f32],
        epilogue: Epilogue<'_>,
    ) {
        let pool = epilogue.pool;
        let (full_size, out_size) = (self.output_size(size, false), self.output_size(size, pool));
        assert_eq!(
            workers.isa.exact(),
            self.isa.exact(),
            "weights are packed for the workers' instruction set"
        );
        assert_eq!(
            input.len(),
            size.values(self.in_blocks),
            "input of {size:?}"
        );
        assert_eq!(
            output.len(),
            out_size.values(self.out_blocks),
            "output of {out_size:?}"
        );
        let even = full_size.height % 2 + full_size.width % 2 == 0;
        assert!(
            !pool || (even && !self.spec.upsample),
            "pooling halves {full_size:?}"
        );
        let maps = Maps {
            input,
            size,
            full_size,
            pool,
            sink: Sink::new(output, out_size, &self.bias, self.spec.relu, epilogue),
        };
        match &self.kernel {
            Kernel::Winograd(winograd) => winograd.run(workers, &maps),
            Kernel::Direct(direct) => direct.run(workers, &maps),
        }
    }
}

/// What a convolution reads and writes: lengths have been checked against sizes.
pub(super) struct Maps<'a> {
    pub(super) input: &'a [f32],
    /// Of the input.
    pub(super) size: Size,
    /// Of the output before pooling.
    pub(super) full_size: Size,
    /// Whether the output is the means of 2x2.
    pub(super) pool: bool,
    pub(super) sink: Sink,
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
    styled: *const f32,
    after: *const f32,
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
        let (styled, after) = match epilogue.styled {
            Some(styled) => {
                assert!(styled.scale.len() >= channels && styled.after.len() >= channels);
                (styled.scale.as_ptr(), styled.after.as_ptr())
            }
            None => (std::ptr::null(), std::ptr::null()),
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
            styled,
            after,
        }
    }

    /// Bias and activation for the channels from `lane`.
    #[inline(always)]
    pub(crate) unsafe fn activate<S: Simd>(&self, lane: usize, sum: S::V) -> S::V {
        // SAFETY: `lane` is a vector of the output's channels, says the caller.
        unsafe {
            if !self.styled.is_null() {
                let bias = S::load(self.bias.add(lane));
                let value = S::fma(sum, S::load(self.styled.add(lane)), bias);
                let value = S::max(value, S::mul(value, S::splat(LEAK)));
                return S::mul(value, S::load(self.after.add(lane)));
            }
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

#[cfg(test)]
mod tests {
    use super::super::blocked::{pack, unpack};
    use super::super::reference::{self, error, noise};
    use super::*;

    /// Relative to the output's root mean square, the largest: F(4, 3) comes to 1e-5 in f32 and to 0.24
    /// in bf16, F(2, 3) and F(3, 2) to 0.05, direct sums to 0.02.
    fn tolerance(isa: Isa) -> f64 {
        if isa.pair() == 1 { 3e-5 } else { 0.3 }
    }

    /// Every instruction set of this machine.
    fn all() -> Vec<Isa> {
        let mut all = Isa::available();
        match Isa::bf16() {
            Some(isa) => all.push(isa),
            None => println!("no AVX-512 BF16 here: products of bf16 are not tested"),
        }
        all
    }

    struct Case {
        channels: Channels,
        outs: usize,
        size: Size,
        spec: Spec,
    }

    fn case(
        ins: usize,
        outs: usize,
        (height, width): (usize, usize),
        kernel: usize,
        padding: usize,
    ) -> Case {
        let spec = Spec {
            kernel,
            padding,
            upsample: false,
            relu: true,
        };
        Case {
            channels: Channels::new(ins),
            outs,
            size: Size { height, width },
            spec,
        }
    }

    fn up(case: Case) -> Case {
        Case {
            spec: Spec {
                upsample: true,
                ..case.spec
            },
            ..case
        }
    }

    /// Runs a case with every epilogue on every instruction set; gives the kernel's name.
    fn check(case: &Case) -> &'static str {
        let Case {
            channels,
            outs,
            size,
            spec,
        } = case;
        let input = noise(channels.count() * size.pixels(), 1);
        let weight = noise(outs * channels.count() * spec.kernel.pow(2), 2);
        let bias = noise(*outs, 3);
        let (wanted, out_size) = reference::conv(&input, *size, &weight, &bias, *spec, false);
        let out_channels = Channels::new(*outs);
        let packed = pack(&input, channels, *size);
        let mut name = "";
        for isa in all() {
            let workers = Workers::with_isa(2, isa).unwrap();
            let conv = Conv::new(*spec, &weight, &bias, channels, *size, isa);
            assert_eq!(conv.output_size(*size, false), out_size);
            name = conv.algorithm();
            let label = format!(
                "{name} on {}: {} -> {outs}, {size:?}, {spec:?}",
                isa.name(),
                channels.count()
            );
            let close = |got: &[f32], wanted: &[f32], what: &str| {
                let error = error(got, wanted);
                assert!(error < tolerance(isa), "{label}, {what}: {error:e}");
            };

            let mut out = Buffer::zeroed(out_size.values(out_channels.blocks()));
            conv.run(&workers, &packed, *size, &mut out, Epilogue::default());
            close(&unpack(&out, &out_channels, out_size), &wanted, "plain");

            // Once more on top of itself, with a second output.
            let (scale, shift) = (noise(out.len(), 4), noise(out.len(), 5));
            let mut second = out.clone();
            let activated = Some(Activated {
                out: &mut second,
                scale: &scale,
                shift: &shift,
            });
            let epilogue = Epilogue {
                residual: true,
                activated,
                ..Epilogue::default()
            };
            conv.run(&workers, &packed, *size, &mut out, epilogue);
            let doubled: Vec<f32> = wanted.iter().map(|v| v * 2.0).collect();
            close(&unpack(&out, &out_channels, out_size), &doubled, "residual");
            let moved: Vec<f32> = doubled
                .iter()
                .enumerate()
                .map(|(i, v)| {
                    (v * scale[i / out_size.pixels()] + shift[i / out_size.pixels()]).max(0.0)
                })
                .collect();
            close(
                &unpack(&second, &out_channels, out_size),
                &moved,
                "activated",
            );

            let unbiased = Spec {
                relu: false,
                ..*spec
            };
            let (sums, _) =
                reference::conv(&input, *size, &weight, &vec![0.0; *outs], unbiased, false);
            let after = noise(out_channels.blocks() * BLOCK, 6);
            let styled = Styled {
                scale: &scale,
                after: &after,
            };
            let epilogue = Epilogue {
                styled: Some(styled),
                ..Epilogue::default()
            };
            let mut out = Buffer::zeroed(out_size.values(out_channels.blocks()));
            conv.run(&workers, &packed, *size, &mut out, epilogue);
            let leaky = |v: f32| if v < 0.0 { LEAK * v } else { v };
            let styled: Vec<f32> = sums
                .iter()
                .enumerate()
                .map(|(i, sum)| {
                    let channel = i / out_size.pixels();
                    after[channel] * leaky(scale[channel] * sum + bias[channel])
                })
                .collect();
            close(&unpack(&out, &out_channels, out_size), &styled, "styled");

            if !spec.upsample && out_size.height % 2 + out_size.width % 2 == 0 {
                let half = conv.output_size(*size, true);
                let mut out = Buffer::zeroed(half.values(out_channels.blocks()));
                conv.run(
                    &workers,
                    &packed,
                    *size,
                    &mut out,
                    Epilogue {
                        pool: true,
                        ..Epilogue::default()
                    },
                );
                close(
                    &unpack(&out, &out_channels, half),
                    &reference::pool(&wanted, out_size),
                    "pooled",
                );
            }
        }
        name
    }

    #[test]
    fn large_maps_go_by_tiles_of_four() {
        for case in [
            case(5, 20, (33, 40), 3, 1),
            case(32, 16, (64, 64), 3, 1),
            case(20, 7, (35, 38), 3, 0),
        ] {
            assert_eq!(check(&case), "F(4,3)");
        }
    }

    #[test]
    fn smaller_maps_go_by_tiles_of_two() {
        for case in [
            case(20, 7, (9, 13), 3, 1),
            case(17, 33, (8, 30), 3, 1),
            case(3, 3, (12, 12), 3, 0),
        ] {
            assert_eq!(check(&case), "F(2,3)");
        }
    }

    #[test]
    fn doubled_maps_are_folded() {
        for case in [
            case(20, 7, (9, 13), 3, 1),
            case(16, 33, (8, 8), 3, 1),
            case(3, 40, (32, 17), 3, 1),
        ] {
            assert_eq!(check(&up(case)), "up F(3,2)");
        }
    }

    #[test]
    fn everything_else_goes_directly() {
        for case in [
            up(case(17, 33, (4, 4), 3, 1)),
            up(case(40, 40, (2, 2), 3, 1)),
            case(17, 33, (4, 6), 3, 1),
            case(40, 70, (2, 2), 3, 1),
            case(19, 50, (20, 20), 7, 0),
            case(19, 12, (20, 21), 7, 3),
            case(40, 100, (16, 18), 1, 0),
            case(40, 100, (4, 5), 1, 0),
            case(7, 16, (13, 11), 1, 0),
            case(8, 8, (1, 1), 3, 1),
        ] {
            assert_eq!(check(&case), "direct");
        }
    }

    #[test]
    fn bf16_products_are_exact_for_numbers_of_bf16() {
        let Some(isa) = Isa::bf16() else {
            return println!("skipped: this machine has no AVX-512 BF16");
        };
        let rounded = |values: Vec<f32>| -> Vec<f32> {
            let round = |v| half::bf16::from_f32(v).to_f32();
            values.into_iter().map(round).collect()
        };
        for case in [
            case(19, 50, (20, 20), 7, 0),
            case(40, 100, (16, 18), 1, 0),
            case(17, 33, (4, 6), 3, 1),
        ] {
            let (ins, size) = (case.channels.count(), case.size);
            let input = rounded(noise(ins * size.pixels(), 1));
            let weight = rounded(noise(case.outs * ins * case.spec.kernel.pow(2), 2));
            let bias = noise(case.outs, 3);
            let (wanted, out_size) =
                reference::conv(&input, size, &weight, &bias, case.spec, false);
            let conv = Conv::new(case.spec, &weight, &bias, &case.channels, size, isa);
            let out_channels = Channels::new(case.outs);
            let mut out = Buffer::zeroed(out_size.values(out_channels.blocks()));
            let workers = Workers::with_isa(2, isa).unwrap();
            let packed = pack(&input, &case.channels, size);
            conv.run(&workers, &packed, size, &mut out, Epilogue::default());
            let error = error(&unpack(&out, &out_channels, out_size), &wanted);
            assert!(error < 3e-5, "{:?}: {error:e}", case.spec);
        }
    }

    #[test]
    fn concatenations_keep_their_gaps() {
        for (size, kernel) in [(4, 3), (8, 3), (32, 3), (4, 1), (8, 1)] {
            let case = case(0, 20, (size, size), kernel, kernel / 2);
            check(&Case {
                channels: Channels::concat(10, 19),
                ..case
            });
        }
    }
}
