//! Vector units behind one small trait, so that each kernel is written once.
//!
//! A kernel is an `#[inline(always)]` function generic over `Simd`; the `kernel!` macro makes the
//! callable entry, one `#[target_feature]` instance for each instruction set, chosen at run time.
//! Everything a kernel calls must be `#[inline(always)]` too: a call that stays a call would be
//! compiled without the vector unit and run several times slower.

use std::hint::black_box;
use std::sync::OnceLock;

/// Channels in one block of the packed layout: a multiple of every unit's lanes.
pub(crate) const BLOCK: usize = 16;

/// An instruction set this build has kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, for every machine.
    Portable,
    /// x86-64 with AVX2 and FMA: 8 lanes, 16 registers.
    Avx2,
    /// x86-64 with AVX-512 F: 16 lanes, 32 registers.
    Avx512,
    /// The same with AVX-512 BF16: matrix products of bf16 summed in f32, all else in f32.
    Avx512Bf16,
    /// 64-bit Arm: 4 lanes, 32 registers.
    Neon,
}

impl Isa {
    /// The widest one this machine has; `MIMIC_ISA=portable|avx2|avx512|neon` asks for a narrower one.
    pub fn detected() -> Self {
        static CHOICE: OnceLock<Isa> = OnceLock::new();
        *CHOICE.get_or_init(|| {
            let asked = std::env::var("MIMIC_ISA").unwrap_or_default();
            let found = Self::available();
            found
                .iter()
                .copied()
                .find(|isa| isa.name() == asked)
                .unwrap_or(found[0])
        })
    }

    /// The one whose matrix products are of bf16, where this machine has it.
    pub fn bf16() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bf16")
        {
            return Some(Self::Avx512Bf16);
        }
        None
    }

    /// Every one of f32 this machine can run, widest first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                found.push(Self::Avx512);
            }
            if std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("fma")
            {
                found.push(Self::Avx2);
            }
        }
        if cfg!(target_arch = "aarch64") {
            found.push(Self::Neon);
        }
        found.push(Self::Portable);
        found
    }

    /// The name as `MIMIC_ISA` and `mimic doctor` spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Neon => "neon",
        }
    }

    /// Output channels that one matrix micro-kernel makes at once: how weights are packed.
    pub(crate) const fn panel(self) -> usize {
        match self {
            Self::Avx512 | Self::Avx512Bf16 => 32,
            Self::Portable | Self::Avx2 | Self::Neon => 16,
        }
    }

    /// Channels in one slot of a matrix product's operands: 1 of f32, or 2 of bf16.
    pub(crate) const fn pair(self) -> usize {
        match self {
            Self::Avx512Bf16 => 2,
            Self::Portable | Self::Avx2 | Self::Avx512 | Self::Neon => 1,
        }
    }

    /// The same unit with products of f32.
    pub(crate) const fn exact(self) -> Self {
        match self {
            Self::Avx512Bf16 => Self::Avx512,
            other => other,
        }
    }

    /// Whether this machine can run it.
    pub(crate) fn runs_here(self) -> bool {
        Self::available().contains(&self) || Self::bf16() == Some(self)
    }
}

/// A vector of `LANES` f32 and the few operations the kernels need.
///
/// # Safety
/// Every method may only run on a machine that has the instruction set; pointers must be valid for
/// `LANES` values (no alignment is asked for).
pub(crate) trait Simd: Copy {
    /// The register.
    type V: Copy;
    /// Values in it; divides [`BLOCK`].
    const LANES: usize;
    /// See [`Isa::pair`].
    const PAIR: usize = 1;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// c - a * b.
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// Writes channels as an operand of matrix products: `LANES / PAIR` slots.
    #[inline(always)]
    unsafe fn store_operand(to: *mut f32, v: Self::V) {
        // SAFETY: the caller's promises.
        unsafe { Self::store(to, v) }
    }
    /// c + a * b of operands, slot by slot.
    #[inline(always)]
    unsafe fn dot(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the caller's promises.
        unsafe { Self::fma(a, b, c) }
    }
}

/// Puts a channel's value into its slot of a packed operand; `channel` counts within the pair.
pub(crate) fn put_operand(slot: &mut f32, channel: usize, value: f32, isa: Isa) {
    if isa.pair() == 1 {
        *slot = value;
        return;
    }
    let half = u32::from(half::bf16::from_f32(value).to_bits());
    let shift = 16 * channel as u32;
    *slot = f32::from_bits((slot.to_bits() & !(0xffff << shift)) | (half << shift));
}

/// Plain Rust: the fallback, and what the vector units are tested against.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller's promise; an array of f32 has the alignment of f32.
        unsafe { from.cast::<[f32; 8]>().read() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: as above.
        unsafe { to.cast::<[f32; 8]>().write(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        // The comparison (rather than f32::max) is what the vector units do, and becomes one instruction.
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not mul_add: without the unit that is a library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| c[i] - a[i] * b[i])
    }
}

/// Writes the [`Simd`] methods of a unit whose operations are single intrinsics.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $v:ty, $lanes:literal, $splat:ident, $load:ident, $store:ident,
     $add:ident, $sub:ident, $mul:ident, $max:ident, |$a:ident, $b:ident, $c:ident| $fma:expr, $fnma:expr
     $(, $($more:tt)*)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        // SAFETY of every block: one intrinsic, on the unit and the pointers that the caller promises.
        #[allow(clippy::undocumented_unsafe_blocks, reason = "one sentence above covers all nine")]
        impl Simd for $name {
            type V = $v;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self::V {
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self::V {
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut f32, v: Self::V) {
                unsafe { $store(to, v) }
            }
            #[inline(always)]
            unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
                unsafe { $sub(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
                unsafe { $mul(a, b) }
            }
            #[inline(always)]
            unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
                unsafe { $max(a, b) }
            }
            #[inline(always)]
            unsafe fn fma($a: Self::V, $b: Self::V, $c: Self::V) -> Self::V {
                unsafe { $fma }
            }
            #[inline(always)]
            unsafe fn fnma($a: Self::V, $b: Self::V, $c: Self::V) -> Self::V {
                unsafe { $fnma }
            }
            $($($more)*)?
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, Avx512Bf16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    unit!(
        /// AVX2 with FMA.
        Avx2, __m256, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
        _mm256_sub_ps, _mm256_mul_ps, _mm256_max_ps,
        |a, b, c| _mm256_fmadd_ps(a, b, c), _mm256_fnmadd_ps(a, b, c)
    );
    unit!(
        /// AVX-512 F.
        Avx512, __m512, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
        _mm512_sub_ps, _mm512_mul_ps, _mm512_max_ps,
        |a, b, c| _mm512_fmadd_ps(a, b, c), _mm512_fnmadd_ps(a, b, c)
    );
    unit!(
        /// AVX-512 F and BF16: a slot of an operand is two channels.
        Avx512Bf16, __m512, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
        _mm512_sub_ps, _mm512_mul_ps, _mm512_max_ps,
        |a, b, c| _mm512_fmadd_ps(a, b, c), _mm512_fnmadd_ps(a, b, c),
        const PAIR: usize = 2;
        #[inline(always)]
        unsafe fn store_operand(to: *mut f32, v: Self::V) {
            unsafe { to.cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(v)) }
        }
        #[inline(always)]
        unsafe fn dot(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // The registers are the same, only the types say what is in them.
            unsafe {
                let [a, b] = [a, b].map(|v| std::mem::transmute::<__m512, __m512bh>(v));
                _mm512_dpbf16_ps(c, a, b)
            }
        }
    );
}

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Simd;
    use std::arch::aarch64::*;

    unit!(
        /// NEON, part of every 64-bit Arm.
        Neon, float32x4_t, 4, vdupq_n_f32, vld1q_f32, vst1q_f32, vaddq_f32, vsubq_f32, vmulq_f32,
        vmaxq_f32, |a, b, c| vfmaq_f32(c, a, b), vfmsq_f32(c, a, b)
    );
}

/// Makes `unsafe fn name(isa, args…)` from a generic `body::<S, ROWS, WIDE>(args…)`.
///
/// `ROWS` x `WIDE` vectors is the register tile of the matrix micro-kernels: as many accumulators as
/// fit beside the operands (12 of 16 registers on AVX2, 24 of 32 on AVX-512 and NEON), the panel
/// `WIDE * LANES` being [`Isa::panel`].
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As for the body; `isa` must be one that this machine has.
        #[allow(clippy::too_many_arguments, reason = "a kernel takes its pieces apart")]
        unsafe fn $name(isa: $crate::ops::simd::Isa, $($arg: $ty),*) {
            use $crate::ops::simd::{self, Isa};
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                unsafe fn avx2($($arg: $ty),*) {
                    // SAFETY: the caller's promises, handed on.
                    unsafe { $body::<simd::Avx2, 6, 2>($($arg),*) }
                }
                #[target_feature(enable = "avx512f")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                unsafe fn avx512($($arg: $ty),*) {
                    // SAFETY: the caller's promises, handed on.
                    unsafe { $body::<simd::Avx512, 12, 2>($($arg),*) }
                }
                #[target_feature(enable = "avx512f,avx512bf16")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                unsafe fn avx512_bf16($($arg: $ty),*) {
                    // SAFETY: the caller's promises, handed on.
                    unsafe { $body::<simd::Avx512Bf16, 12, 2>($($arg),*) }
                }
                match isa {
                    // SAFETY: the machine has the unit, says the caller.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx512Bf16 => return unsafe { avx512_bf16($($arg),*) },
                    Isa::Portable | Isa::Neon => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            if isa == Isa::Neon {
                // SAFETY: NEON is part of the architecture.
                return unsafe { $body::<simd::Neon, 6, 4>($($arg),*) };
            }
            let _ = isa;
            // SAFETY: the caller's promises, handed on.
            unsafe { $body::<simd::Portable, 6, 2>($($arg),*) }
        }
    };
}
pub(crate) use kernel;

/// `acc[r][w] += a[r][k] * panel[k][w]` over `k`: the micro-kernel under every matrix product.
///
/// `a[r]` and `panel` are operands (see [`Simd::store_operand`]) of `depth` slots; `panel` holds
/// `WIDE * LANES` of them for each.
///
/// # Safety
/// `a[r]` valid for `depth` slots each, `panel` for `depth * WIDE * LANES`.
#[inline(always)]
pub(crate) unsafe fn accumulate<S: Simd, const ROWS: usize, const WIDE: usize>(
    acc: &mut [[S::V; WIDE]; ROWS],
    a: [*const f32; ROWS],
    panel: *const f32,
    depth: usize,
) {
    // Out of the optimiser's sight: worked into the loops around it, this one would keep its sums in memory instead of
    // registers.
    let acc = black_box(acc);
    let mut panel = panel;
    let mut sums = *acc;
    for k in 0..depth {
        // SAFETY: k < depth, within what the caller promises.
        unsafe {
            let mut weights = [S::splat(0.0); WIDE];
            for (w, weight) in weights.iter_mut().enumerate() {
                *weight = S::load(panel.add(w * S::LANES));
            }
            for r in 0..ROWS {
                let x = S::splat(*a[r].add(k));
                for w in 0..WIDE {
                    sums[r][w] = S::dot(x, weights[w], sums[r][w]);
                }
            }
            panel = panel.add(WIDE * S::LANES);
        }
    }
    *acc = sums;
}
