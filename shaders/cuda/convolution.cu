// What surrounds a convolution: see src/ops/fused/convolution.rs.
#include "common.cuh"

// One kernel of its own for each channel, zeros outside. a: x (batch, c, h, w), b: weight (c, 1, count, count),
// c: bias (c) with FLAG_BIAS; out: (batch, c, ho, wo).
template <typename T>
__device__ void depthwise(T *out, const void *a, const void *b, const void *c, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 x = i % p.wo, y = i / p.wo % p.ho, plane = i / p.wo / p.ho, channel = plane % p.channels;
    const T *values = (const T *)a + (size_t)plane * p.h * p.w;
    const T *weight = (const T *)b + (size_t)channel * p.count * p.count;
    float sum = p.flags & FLAG_BIAS ? to_float(((const T *)c)[channel]) : 0.0f;
    sum += window<T, T>(values, weight, x, y, p);
    out[i] = from_float<T>(relu_if(sum, p.flags));
}
KERNEL(depthwise, depthwise)

// a: x (batch, c, h, w), b: bias (c); out: x + bias, relu by FLAG_RELU.
template <typename T>
__device__ void bias(T *out, const void *a, const void *b, const void *, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 channel = i / (p.h * p.w) % p.channels;
    out[i] = from_float<T>(relu_if(to_float(((const T *)a)[i]) + to_float(((const T *)b)[channel]), p.flags));
}
KERNEL(bias, bias)

// A batch norm that is fixed. a: x (batch, c, h, w), b: scale (c) and c: shift (c) in f32.
template <typename T>
__device__ void scale_shift(T *out, const void *a, const void *b, const void *c, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 channel = i / (p.h * p.w) % p.channels;
    float v = to_float(((const T *)a)[i]) * ((const float *)b)[channel] + ((const float *)c)[channel];
    out[i] = from_float<T>(relu_if(v, p.flags));
}
KERNEL(scale_shift, scale_shift)

// The windows of a folded convolution put in their places: a 3x3 one over a picture enlarged by two is a 2x2 one over the
// picture, for each parity of row and column another. Window (u, v) holds the outputs 2u - 1, 2u by 2v - 1, 2v.
// a: windows (batch, 4 * c, h, w), b: bias (c); out: (batch, c, 2(h - 1), 2(w - 1)); channels counts c.
template <typename T>
__device__ void unfold(T *out, const void *a, const void *b, const void *, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 x = i % p.wo, y = i / p.wo % p.ho, plane = i / p.wo / p.ho;
    u32 channel = plane % p.channels, picture = plane / p.channels;
    u32 phase = 2 * ((y + 1) % 2) + (x + 1) % 2;
    size_t from = ((size_t)picture * 4 * p.channels + (size_t)phase * p.channels + channel) * p.h;
    float v = to_float(((const T *)a)[(from + (y + 1) / 2) * p.w + (x + 1) / 2]);
    out[i] = from_float<T>(relu_if(v + to_float(((const T *)b)[channel]), p.flags));
}
KERNEL(unfold, unfold)
