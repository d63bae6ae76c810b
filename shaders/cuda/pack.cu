// From a picture in 0..1 to bytes and back: see src/ops/fused/pictures.rs.
#include "common.cuh"

__device__ inline u32 byte_of(float v) {
    v = v * 255.0f + 0.5f;
    // What is no number becomes 0.
    return v >= 255.0f ? 255u : v > 0.0f ? (u32)v : 0u;
}

// Three planes to pixels. a: (batch, 3, h, w), out: (batch, h, w) of RGBA bytes.
template <typename T> __device__ void pack(u32 *out, const void *a, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    size_t places = (size_t)p.h * p.w;
    const T *at = (const T *)a + i / places * 3 * places + i % places;
    out[i] = byte_of(to_float(at[0])) | byte_of(to_float(at[places])) << 8 | byte_of(to_float(at[2 * places])) << 16 |
             255u << 24;
}

extern "C" __global__ void pack_f32(void *out, const void *a, const void *, const void *, const Params p) {
    pack<float>((u32 *)out, a, p);
}
extern "C" __global__ void pack_f16(void *out, const void *a, const void *, const void *, const Params p) {
    pack<__half>((u32 *)out, a, p);
}
extern "C" __global__ void pack_bf16(void *out, const void *a, const void *, const void *, const Params p) {
    pack<__nv_bfloat16>((u32 *)out, a, p);
}

// Pixels to three planes. a: (batch, h, w) of RGBA bytes, out: (batch, 3, h, w).
extern "C" __global__ void unpack_f32(void *out, const void *a, const void *, const void *, const Params p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    size_t places = (size_t)p.h * p.w;
    u32 pixel = ((const u32 *)a)[i];
    float *to = (float *)out + i / places * 3 * places + i % places;
    for (u32 c = 0; c < 3; c++) to[c * places] = (float)(pixel >> 8 * c & 255u) / 255.0f;
}
