// What the kernels share: element types, their numbers, where a thread stands.
//
// Kernels do arithmetic in f32, whatever their elements are. Each is `extern "C"`, named for its element type, and takes the same
// arguments: the output, three inputs, Params, and where there are more of them three more inputs. A thread that finds nothing to do
// returns. With MIMIC_HOST the same files are compiled by the host's C++ compiler, for tests (tests/cuda/host.h).
#pragma once

#ifdef MIMIC_HOST
#include "host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

typedef unsigned int u32;

// Mirrored by `Params` in src/ops/fused/mod.rs: the same fields in the same order.
struct Params {
    u32 threads;   // threads that have work, or blocks where a block works together
    u32 batch;     // pictures of the first input
    u32 channels;  // of the first input
    u32 h, w;      // of the first input
    u32 outputs;   // pictures of the output
    u32 ho, wo;    // of the output
    u32 count;     // keypoints, or the side of a kernel
    u32 padding;
    u32 stride;
    u32 flags;     // see FLAG_*
    float real;    // variance, temperature
    u32 second;    // channels of a second input
    u32 features;  // channels of the output
    u32 parts;     // that a sum is made in
    u32 tile_w, tile_h; // pixels of a block in x and y, as powers of two
};

#define FLAG_REFLECT 1u
#define FLAG_ALIGN 2u
#define FLAG_RELU 4u
#define FLAG_BIAS 8u
#define FLAG_LINEAR 16u
#define FLAG_ONE_MAP 32u
#define FLAG_DOUBLED 64u   // the input enlarged by two, each pixel four times
#define FLAG_FOLDED 128u   // the same by four 2x2 kernels over the input itself
#define FLAG_POOLED 256u   // the mean of every 2x2 pixels of the result
#define FLAG_WIDE 512u     // the output is f32

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T> __device__ inline T from_float(float v);
template <> __device__ inline float from_float<float>(float v) { return v; }
template <> __device__ inline __half from_float<__half>(float v) { return __float2half_rn(v); }
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }

// Eight elements that lie at a multiple of 16 bytes.
template <typename T> struct alignas(16) Eight {
    T values[8];
};
template <typename T> __device__ inline void load8(const T *from, float (&to)[8]) {
    Eight<T> all = *(const Eight<T> *)from;
    for (int n = 0; n < 8; n++) to[n] = to_float(all.values[n]);
}
template <typename T> __device__ inline void store8(T *to, const float (&from)[8]) {
    Eight<T> all;
    for (int n = 0; n < 8; n++) all.values[n] = from_float<T>(from[n]);
    *(Eight<T> *)to = all;
}

// As Rust's `f32::max(0)`: what is no number becomes 0.
__device__ inline float relu_if(float v, u32 flags) { return (flags & FLAG_RELU) && !(v > 0.0f) ? 0.0f : v; }

__device__ inline u32 thread_index() { return blockIdx.x * blockDim.x + threadIdx.x; }

// One instance of a kernel's body for every element type.
#define KERNEL(name, body)                                                                                            \
    extern "C" __global__ void name##_f32(void *out, const void *a, const void *b, const void *c, const Params p) {   \
        body<float>((float *)out, a, b, c, p);                                                                        \
    }                                                                                                                 \
    extern "C" __global__ void name##_f16(void *out, const void *a, const void *b, const void *c, const Params p) {   \
        body<__half>((__half *)out, a, b, c, p);                                                                      \
    }                                                                                                                 \
    extern "C" __global__ void name##_bf16(void *out, const void *a, const void *b, const void *c, const Params p) {  \
        body<__nv_bfloat16>((__nv_bfloat16 *)out, a, b, c, p);                                                        \
    }

// The sum of a kernel's taps (count, count) over a plane, at output (x, y), zeros outside.
template <typename T, typename W>
__device__ inline float window(const T *plane, const W *taps, u32 x, u32 y, const Params &p) {
    float sum = 0.0f;
    for (u32 ky = 0; ky < p.count; ky++) {
        u32 row = y * p.stride + ky - p.padding; // wraps round outside, and is large then
        if (row >= p.h) continue;
        for (u32 kx = 0; kx < p.count; kx++) {
            u32 column = x * p.stride + kx - p.padding;
            if (column >= p.w) continue;
            sum += to_float(plane[(size_t)row * p.w + column]) * to_float(taps[ky * p.count + kx]);
        }
    }
    return sum;
}

// Coordinates of a pixel's centre among `size` as -1..1.
__device__ inline float centre(u32 i, u32 size) { return size > 1 ? 2.0f * (float)i / (float)(size - 1) - 1.0f : -1.0f; }

// The four pixels around a place of a picture, and their weights; weights are 0 outside the picture. `slope_x` and
// `slope_y` are what the weights gain when x and y of the place grow.
template <typename R> struct Corners {
    u32 at[4];
    R weight[4];
    R slope_x[4];
    R slope_y[4];
};

__device__ inline float rest_of(float v, float period) { return fmodf(v, period); }
__device__ inline double rest_of(double v, double period) { return fmod(v, period); }
__device__ inline float whole(float v) { return floorf(v); }
__device__ inline double whole(double v) { return floor(v); }

// Mirrors a position into low..=high; `sign` becomes whether it goes forward there or back.
template <typename R> __device__ inline R mirrored(R position, R low, R high, R &sign) {
    R span = high - low;
    if (!(span > (R)0)) {
        sign = (R)0;
        return (R)0;
    }
    sign = position < low ? (R)-1 : (R)1;
    R away = position < low ? low - position : position - low;
    R folded = rest_of(away, (R)2 * span);
    if (folded > span) {
        sign = -sign;
        return low + (R)2 * span - folded;
    }
    return low + folded;
}

// A coordinate in -1..1 as a position in pixels, and the slope of the one against the other. One that is no number stays
// so, and lies outside of every picture.
template <typename R> __device__ inline R pixel(R coordinate, u32 size, u32 flags, R &slope) {
    R n = (R)size, position;
    if (flags & FLAG_ALIGN) {
        position = (coordinate + (R)1) / (R)2 * (n - (R)1);
        slope = (n - (R)1) / (R)2;
    } else {
        position = ((coordinate + (R)1) * n - (R)1) / (R)2;
        slope = n / (R)2;
    }
    if (flags & FLAG_REFLECT) {
        R sign;
        if (flags & FLAG_ALIGN) {
            position = mirrored<R>(position, (R)0, n - (R)1, sign);
        } else {
            position = mirrored<R>(position, (R)-0.5, n - (R)0.5, sign);
            R clamped = position < (R)0 ? (R)0 : position > n - (R)1 ? n - (R)1 : position;
            if (clamped != position) sign = (R)0;
            position = clamped;
        }
        slope *= sign;
    }
    return position;
}

template <typename R> __device__ inline Corners<R> corners(R x, R y, u32 h, u32 w, u32 flags) {
    R dx, dy;
    x = pixel<R>(x, w, flags, dx);
    y = pixel<R>(y, h, flags, dy);
    R left = whole(x), top = whole(y);
    R across = x - left, down = y - top;
    Corners<R> found;
    for (int i = 0; i < 4; i++) {
        int column = i & 1, row = i >> 1;
        R cx = left + (R)column, cy = top + (R)row;
        bool inside = cx >= (R)0 && cx < (R)w && cy >= (R)0 && cy < (R)h;
        R wx = column ? across : (R)1 - across, wy = row ? down : (R)1 - down;
        found.at[i] = inside ? (u32)cy * w + (u32)cx : 0u;
        found.weight[i] = inside ? wx * wy : (R)0;
        found.slope_x[i] = inside ? (column ? dx : -dx) * wy : (R)0;
        found.slope_y[i] = inside ? wx * (row ? dy : -dy) : (R)0;
    }
    return found;
}
