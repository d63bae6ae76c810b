// Bilinear sampling at arbitrary places, and its gradients: see src/ops/grid_sample.rs.
#include "common.cuh"

// Channels of one thread: where to look is found once for them.
#define SHARE 8u

// a: input (batch | 1, c, h, w), b: grid (outputs, ho, wo, 2) in f32, out: (outputs, c, ho, wo).
template <typename T>
__device__ void grid_sample(T *out, const void *a, const void *b, const void *, const Params &p) {
    const T *input = (const T *)a;
    const float *grid = (const float *)b;
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 places = p.ho * p.wo, shares = (p.channels + SHARE - 1) / SHARE;
    u32 place = i % places, first = i / places % shares * SHARE, picture = i / places / shares;
    const float *xy = grid + 2 * ((size_t)picture * places + place);
    Corners<float> seen = corners<float>(xy[0], xy[1], p.h, p.w, p.flags);
    size_t plane = (size_t)p.h * p.w, from = p.batch == 1 ? 0 : picture;
    for (u32 c = first; c < first + SHARE && c < p.channels; c++) {
        const T *values = input + (from * p.channels + c) * plane;
        float sum = 0.0f;
        for (int k = 0; k < 4; k++) sum += to_float(values[seen.at[k]]) * seen.weight[k];
        out[((size_t)picture * p.channels + c) * places + place] = from_float<T>(sum);
    }
}
KERNEL(grid_sample, grid_sample)

// The gradient of the input. a: grid, b: gradient of the output (outputs, c, ho, wo); out: (batch, c, h, w), zeros
// before. Sums are atomic, so their order, and the last bits, differ from run to run.
extern "C" __global__ void grid_sample_of_input_f32(void *out, const void *a, const void *b, const void *,
                                                    const Params p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 places = p.ho * p.wo;
    u32 place = i % places, c = i / places % p.channels, picture = i / places / p.channels;
    const float *xy = (const float *)a + 2 * ((size_t)picture * places + place);
    Corners<double> seen = corners<double>(xy[0], xy[1], p.h, p.w, p.flags);
    float grad = ((const float *)b)[i];
    size_t to = p.batch == 1 ? 0 : picture;
    float *sums = (float *)out + (to * p.channels + c) * p.h * p.w;
    for (int k = 0; k < 4; k++) {
        if (seen.weight[k] != 0.0) atomicAdd(&sums[seen.at[k]], grad * (float)seen.weight[k]);
    }
}

// The gradient of the grid. a: input, b: grid, c: gradient of the output; out: (outputs, ho, wo, 2).
extern "C" __global__ void grid_sample_of_grid_f32(void *out, const void *a, const void *b, const void *c,
                                                   const Params p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 places = p.ho * p.wo, place = i % places, picture = i / places;
    const float *xy = (const float *)b + 2 * (size_t)i;
    Corners<double> seen = corners<double>(xy[0], xy[1], p.h, p.w, p.flags);
    size_t plane = (size_t)p.h * p.w, from = p.batch == 1 ? 0 : picture;
    float by_x = 0.0f, by_y = 0.0f;
    for (u32 channel = 0; channel < p.channels; channel++) {
        const float *values = (const float *)a + (from * p.channels + channel) * plane;
        float grad = ((const float *)c)[((size_t)picture * p.channels + channel) * places + place];
        for (int k = 0; k < 4; k++) {
            by_x += grad * values[seen.at[k]] * (float)seen.slope_x[k];
            by_y += grad * values[seen.at[k]] * (float)seen.slope_y[k];
        }
    }
    ((float *)out)[2 * (size_t)i] = by_x;
    ((float *)out)[2 * (size_t)i + 1] = by_y;
}
