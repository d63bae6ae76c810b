// What is done beside convolutions with maps (picture, y, x, features): see src/ops/maps. Features are padded to a multiple of
// 8 by zeros.
#include "motion.cuh"

// Threads of a block at most.
#define TOGETHER 256u

// ---- From and to pictures.

// Pixels seen through a kernel, every `stride`-th from the first on, zeros outside. A block works on a few of them, sixteen threads on one.
// a: (batch, h, w) of RGBA bytes, b: kernel (count, count) in f32; out: (batch, ho, wo, 8): red, green, blue in 0..1, zeros.
template <typename T> __device__ void look(T *out, const void *a, const void *b, const void *, const Params &p) {
    __shared__ float sums[TOGETHER][3];
    u32 t = threadIdx.x, here = t / 16, per_block = blockDim.x / 16, pixel = blockIdx.x * per_block + here;
    u32 count = p.batch * p.ho * p.wo;
    const u32 *pixels = (const u32 *)a;
    const float *taps = (const float *)b;
    float sum[3] = {0.0f, 0.0f, 0.0f};
    if (pixel < count) {
        u32 x = pixel % p.wo, y = pixel / p.wo % p.ho, picture = pixel / p.wo / p.ho;
        for (u32 ky = t % 16; ky < p.count; ky += 16) {
            u32 row = y * p.stride + ky - p.padding; // wraps round outside, and is large then
            if (row >= p.h) continue;
            for (u32 kx = 0; kx < p.count; kx++) {
                u32 column = x * p.stride + kx - p.padding;
                if (column >= p.w) continue;
                u32 rgba = pixels[((size_t)picture * p.h + row) * p.w + column];
                float tap = taps[ky * p.count + kx];
                for (u32 n = 0; n < 3; n++) sum[n] += (float)(rgba >> 8 * n & 255u) * tap;
            }
        }
    }
    for (u32 n = 0; n < 3; n++) sums[t][n] = sum[n];
    __syncthreads();
    if (t % 16 == 0 && pixel < count) {
        float values[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        for (u32 i = 0; i < 16; i++)
            for (u32 n = 0; n < 3; n++) values[n] += sums[t + i][n] / 255.0f;
        store8(out + 8 * (size_t)pixel, values);
    }
}
KERNEL(look, look)

// Three features as opaque pixels, by the logistic function. a: (batch, h, w, channels), out: (batch, h, w) of RGBA bytes.
template <typename T> __device__ void paint(u32 *out, const void *a, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    const T *from = (const T *)a + (size_t)i * p.channels;
    u32 rgba = 255u << 24;
    for (u32 n = 0; n < 3; n++) {
        float v = 255.0f / (1.0f + expf(-to_float(from[n]))) + 0.5f;
        // What is no number becomes 0.
        rgba |= (v >= 255.0f ? 255u : v > 0.0f ? (u32)v : 0u) << 8 * n;
    }
    out[i] = rgba;
}
extern "C" __global__ void paint_f32(void *out, const void *a, const void *, const void *, const Params p) {
    paint<float>((u32 *)out, a, p);
}
extern "C" __global__ void paint_f16(void *out, const void *a, const void *, const void *, const Params p) {
    paint<__half>((u32 *)out, a, p);
}
extern "C" __global__ void paint_bf16(void *out, const void *a, const void *, const void *, const Params p) {
    paint<__nv_bfloat16>((u32 *)out, a, p);
}

// ---- Depthwise convolution.

// A thread has eight features of a pixel. a: (batch, h, w, channels), b: taps (count, count, channels) in f32, c: bias in f32;
// out: (batch, ho, wo, channels).
template <typename T>
__device__ void each_feature(T *out, const void *a, const void *b, const void *c, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 units = p.channels / 8, feature = i % units * 8, x = i / units % p.wo, y = i / units / p.wo % p.ho;
    u32 picture = i / units / p.wo / p.ho, shift = p.flags & FLAG_DOUBLED ? 1 : 0;
    float sums[8], values[8], taps[8];
    load8((const float *)c + feature, sums);
    for (u32 ky = 0; ky < p.count; ky++) {
        u32 row = y + ky - p.padding;
        if (row >= p.h << shift) continue;
        for (u32 kx = 0; kx < p.count; kx++) {
            u32 column = x + kx - p.padding;
            if (column >= p.w << shift) continue;
            size_t pixel = ((size_t)picture * p.h + (row >> shift)) * p.w + (column >> shift);
            load8((const T *)a + pixel * p.channels + feature, values);
            load8((const float *)b + (size_t)(ky * p.count + kx) * p.channels + feature, taps);
            for (u32 n = 0; n < 8; n++) sums[n] += values[n] * taps[n];
        }
    }
    for (u32 n = 0; n < 8; n++) sums[n] = relu_if(sums[n], p.flags);
    store8(out + (size_t)i * 8, sums);
}
KERNEL(each_feature, each_feature)

// ---- Keypoints and motion.

// From heat-maps to keypoints, as in keypoints.cu. A block works on one keypoint. a: (outputs, h, w, channels) in f32: the logits of
// `count` keypoints, then with FLAG_LINEAR the jacobians' maps, four for each or for all; out: (outputs, count, 6). real: the temperature.
extern "C" __global__ void points_f32(void *out, const void *a, const void *, const void *, const Params p) {
    __shared__ float parts[7][TOGETHER];
    u32 t = threadIdx.x, step = blockDim.x, places = p.h * p.w;
    u32 k = blockIdx.x % p.count, picture = blockIdx.x / p.count;
    const float *maps = (const float *)a + (size_t)picture * places * p.channels;
    u32 jacobian = p.count + (p.flags & FLAG_ONE_MAP ? 0 : 4 * k);
    float most = -INFINITY;
    for (u32 i = t; i < places; i += step) most = fmaxf(most, maps[(size_t)i * p.channels + k] / p.real);
    parts[0][t] = most;
    __syncthreads();
    for (u32 half = step / 2; half > 0; half /= 2) {
        if (t < half) parts[0][t] = fmaxf(parts[0][t], parts[0][t + half]);
        __syncthreads();
    }
    most = parts[0][0];
    __syncthreads();
    float sums[7] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 i = t; i < places; i += step) {
        const float *here = maps + (size_t)i * p.channels;
        float weight = expf(here[k] / p.real - most);
        sums[0] += weight * centre(i % p.w, p.w);
        sums[1] += weight * centre(i / p.w, p.h);
        if (p.flags & FLAG_LINEAR)
            for (u32 n = 0; n < 4; n++) sums[2 + n] += weight * here[jacobian + n];
        sums[6] += weight;
    }
    for (u32 n = 0; n < 7; n++) parts[n][t] = sums[n];
    __syncthreads();
    for (u32 half = step / 2; half > 0; half /= 2) {
        if (t < half)
            for (u32 n = 0; n < 7; n++) parts[n][t] += parts[n][t + half];
        __syncthreads();
    }
    // A block may have fewer threads than there are numbers.
    for (u32 n = t; n < 6; n += step) ((float *)out)[6 * (size_t)blockIdx.x + n] = parts[n][0] / parts[6][0];
}

// What dense motion's hourglass sees; a thread has one motion at one pixel. a: the source (batch | 1, h, w, 8) in f32, b: pairs
// (outputs, count, 12); out: (outputs, h, w, features): for the background and each pair heat, red, green, blue. real: the variance.
template <typename T> __device__ void motions(T *out, const void *a, const void *b, const void *, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 slots = p.features / 4, k = i % slots, places = p.h * p.w, place = i / slots % places, picture = i / slots / places;
    T *to = out + (size_t)i * 4;
    float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (k <= p.count) {
        float x = centre(place % p.w, p.w), y = centre(place / p.w, p.h);
        if (k > 0) {
            Motion m = motion_of((const float *)b + 12 * ((size_t)picture * p.count + k - 1), p.flags);
            values[0] = gaussian(x, y, m.dx, m.dy, p.real) - gaussian(x, y, m.sx, m.sy, p.real);
            moved(m, x, y);
        }
        Corners<float> seen = corners<float>(x, y, p.h, p.w, FLAG_ALIGN);
        const float *source = (const float *)a + (size_t)(p.batch == 1 ? 0 : picture) * places * 8;
        for (u32 n = 0; n < 4; n++)
            for (u32 colour = 0; colour < 3; colour++)
                values[1 + colour] += source[8 * (size_t)seen.at[n] + colour] * seen.weight[n];
    }
    for (u32 n = 0; n < 4; n++) to[n] = from_float<T>(values[n]);
}
KERNEL(motions, motions)

// What dense motion decides: the mean of the motions by the softmax of their logits, and what of the source is seen, by the logistic
// function. a: (outputs, h, w, channels) in f32: logits of the background and `count` pairs, then, with FLAG_BIAS, the map of what is
// seen; b: pairs. out, f32: places (outputs, h, w, 2), then that map (outputs, h, w).
extern "C" __global__ void decide_f32(void *out, const void *a, const void *b, const void *, const Params p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 places = p.h * p.w, place = i % places, picture = i / places;
    const float *logits = (const float *)a + (size_t)i * p.channels;
    float most = logits[0];
    for (u32 k = 1; k <= p.count; k++) most = fmaxf(most, logits[k]);
    float gx = centre(place % p.w, p.w), gy = centre(place / p.w, p.h);
    float sum = 0.0f, sum_x = 0.0f, sum_y = 0.0f;
    for (u32 k = 0; k <= p.count; k++) {
        float x = gx, y = gy, weight = expf(logits[k] - most);
        if (k > 0) moved(motion_of((const float *)b + 12 * ((size_t)picture * p.count + k - 1), p.flags), x, y);
        sum += weight;
        sum_x += weight * x;
        sum_y += weight * y;
    }
    float *to = (float *)out;
    to[2 * (size_t)i] = sum_x / sum;
    to[2 * (size_t)i + 1] = sum_y / sum;
    if (p.flags & FLAG_BIAS) to[2 * (size_t)p.threads + i] = 1.0f / (1.0f + expf(-logits[p.count + 1]));
}

// Features moved and veiled; a thread has eight of a pixel. a: (batch | 1, h, w, channels), b: places (outputs, ho, wo, 2) in f32,
// c: what is seen (outputs, ho, wo) in f32 or null, d: scale and shift (2, channels) in f32 of a second output, by relu, or null;
// out: (1 | 2, outputs, ho, wo, channels).
template <typename T>
__device__ void follow(T *out, const void *a, const void *b, const void *c, const Params &p, const void *d) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 units = p.channels / 8, feature = i % units * 8, place = i / units, picture = place / (p.ho * p.wo);
    const float *xy = (const float *)b + 2 * (size_t)place;
    Corners<float> seen = corners<float>(xy[0], xy[1], p.h, p.w, FLAG_ALIGN);
    const T *input = (const T *)a + (size_t)(p.batch == 1 ? 0 : picture) * p.h * p.w * p.channels + feature;
    float sums[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}, values[8];
    for (u32 k = 0; k < 4; k++) {
        load8(input + (size_t)seen.at[k] * p.channels, values);
        for (u32 n = 0; n < 8; n++) sums[n] += values[n] * seen.weight[k];
    }
    if (c)
        for (u32 n = 0; n < 8; n++) sums[n] *= ((const float *)c)[place];
    store8(out + (size_t)i * 8, sums);
    if (d) {
        const float *norm = (const float *)d;
        for (u32 n = 0; n < 8; n++) {
            float v = sums[n] * norm[feature + n] + norm[p.channels + feature + n];
            sums[n] = v > 0.0f ? v : 0.0f;
        }
        store8(out + (size_t)p.threads * 8 + (size_t)i * 8, sums);
    }
}
extern "C" __global__ void follow_f32(void *out, const void *a, const void *b, const void *c, const Params p,
                                      const void *d) {
    follow<float>((float *)out, a, b, c, p, d);
}
extern "C" __global__ void follow_f16(void *out, const void *a, const void *b, const void *c, const Params p,
                                      const void *d) {
    follow<__half>((__half *)out, a, b, c, p, d);
}
extern "C" __global__ void follow_bf16(void *out, const void *a, const void *b, const void *c, const Params p,
                                       const void *d) {
    follow<__nv_bfloat16>((__nv_bfloat16 *)out, a, b, c, p, d);
}

// ---- Timing.

// Keeps the card from what comes next for `count` clocks.
extern "C" __global__ void hold_f32(void *out, const void *, const void *, const void *, const Params p) {
    if (thread_index() >= p.threads) return;
#ifndef MIMIC_HOST
    long long end = clock64() + p.count;
    while (clock64() < end) {
    }
#endif
    *(float *)out = (float)p.count;
}
