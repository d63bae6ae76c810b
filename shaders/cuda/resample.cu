// Changing a picture's size: see src/ops/resample.rs.
#include "common.cuh"

// Every pixel 2x2 times. a: (batch, c, h, w), out: (batch, c, 2h, 2w).
template <typename T>
__device__ void nearest_x2(T *out, const void *a, const void *, const void *, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 x = i % p.wo, y = i / p.wo % p.ho, plane = i / p.wo / p.ho;
    out[i] = ((const T *)a)[((size_t)plane * p.h + y / 2) * p.w + x / 2];
}
KERNEL(nearest_x2, nearest_x2)

// The mean of every 2x2 pixels; a last odd row or column is left out. a: (batch, c, h, w), out: (batch, c, h/2, w/2).
template <typename T>
__device__ void mean_2x2(T *out, const void *a, const void *, const void *, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 x = i % p.wo, y = i / p.wo % p.ho, plane = i / p.wo / p.ho;
    const T *at = (const T *)a + ((size_t)plane * p.h + 2 * y) * p.w + 2 * x;
    float sum = to_float(at[0]) + to_float(at[1]) + to_float(at[p.w]) + to_float(at[p.w + 1]);
    out[i] = from_float<T>(0.25f * sum);
}
KERNEL(mean_2x2, mean_2x2)

// A gaussian, then every `stride`-th pixel from the first on. a: (batch, c, h, w), b: kernel (count, count) in f32,
// zeros outside; out: (batch, c, ho, wo).
template <typename T>
__device__ void reduce(T *out, const void *a, const void *b, const void *, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 x = i % p.wo, y = i / p.wo % p.ho, plane = i / p.wo / p.ho;
    const T *values = (const T *)a + (size_t)plane * p.h * p.w;
    out[i] = from_float<T>(window<T, float>(values, (const float *)b, x, y, p));
}
KERNEL(reduce, reduce)
