// From heat-maps to keypoints: see src/model/keypoint_detector.rs and src/ops/fused/keypoints.rs.
#include "common.cuh"

// Threads of a block at most.
#define THREADS 256

// Softmax of a keypoint's map over its pixels, the centre of its mass, and the mean by it of the map of jacobians.
// A block works on one keypoint: each thread on a part of the pixels, then the parts are put together.
// a: logits (outputs, count, h, w), b: maps (outputs, 4 * (count | 1), h, w), out: (outputs, count, 6) in f32, zeros
// for the jacobian without FLAG_LINEAR. real: the temperature.
extern "C" __global__ void keypoints_f32(void *out, const void *a, const void *b, const void *, const Params p) {
    __shared__ float parts[7][THREADS];
    u32 t = threadIdx.x, step = blockDim.x, places = p.h * p.w;
    u32 k = blockIdx.x % p.count, picture = blockIdx.x / p.count;
    const float *logits = (const float *)a + (size_t)blockIdx.x * places;
    float most = -INFINITY;
    for (u32 i = t; i < places; i += step) most = fmaxf(most, logits[i] / p.real);
    parts[0][t] = most;
    __syncthreads();
    for (u32 half = step / 2; half > 0; half /= 2) {
        if (t < half) parts[0][t] = fmaxf(parts[0][t], parts[0][t + half]);
        __syncthreads();
    }
    most = parts[0][0];
    __syncthreads();

    const float *maps = (const float *)b;
    if (p.flags & FLAG_LINEAR) {
        size_t map = p.flags & FLAG_ONE_MAP ? picture : (size_t)picture * p.count + k;
        maps += 4 * map * places;
    }
    float sums[7] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 i = t; i < places; i += step) {
        float weight = expf(logits[i] / p.real - most);
        sums[0] += weight * centre(i % p.w, p.w);
        sums[1] += weight * centre(i / p.w, p.h);
        if (p.flags & FLAG_LINEAR) {
            for (u32 n = 0; n < 4; n++) sums[2 + n] += weight * maps[(size_t)n * places + i];
        }
        sums[6] += weight;
    }
    for (u32 n = 0; n < 7; n++) parts[n][t] = sums[n];
    __syncthreads();
    for (u32 half = step / 2; half > 0; half /= 2) {
        if (t < half) {
            for (u32 n = 0; n < 7; n++) parts[n][t] += parts[n][t + half];
        }
        __syncthreads();
    }
    if (t < 6) {
        // A block may have fewer threads than there are numbers.
        for (u32 n = t; n < 6; n += step) ((float *)out)[6 * (size_t)blockIdx.x + n] = parts[n][0] / parts[6][0];
    }
}
