// Dense motion's first and last step: see src/model/dense_motion.rs and src/ops/fused/motion.rs.
//
// A pair of keypoints is 12 numbers: the source's place and jacobian by rows, then the driver's; without
// FLAG_LINEAR the jacobians are not read.
#include "motion.cuh"

// What the hourglass sees: for the background and each pair the difference of two gaussians and the source moved.
// a: source (batch | 1, channels, h, w) in f32, b: pairs (outputs, count, 12) in f32,
// out: (outputs, (count + 1) * (1 + channels), h, w). real: the variance.
template <typename T>
__device__ void sparse_motion(T *out, const void *a, const void *b, const void *, const Params &p) {
    const float *source = (const float *)a, *pairs = (const float *)b;
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 places = p.h * p.w, motions = p.count + 1;
    u32 place = i % places, k = i / places % motions, picture = i / places / motions;
    float x = centre(place % p.w, p.w), y = centre(place / p.w, p.h), heat = 0.0f;
    if (k > 0) {
        Motion m = motion_of(pairs + 12 * ((size_t)picture * p.count + k - 1), p.flags);
        heat = gaussian(x, y, m.dx, m.dy, p.real) - gaussian(x, y, m.sx, m.sy, p.real);
        moved(m, x, y);
    }
    T *to = out + ((size_t)picture * motions + k) * (1 + p.channels) * places + place;
    *to = from_float<T>(heat);
    Corners<float> seen = corners<float>(x, y, p.h, p.w, FLAG_ALIGN);
    size_t from = p.batch == 1 ? 0 : picture;
    for (u32 c = 0; c < p.channels; c++) {
        const float *values = source + (from * p.channels + c) * places;
        float sum = 0.0f;
        for (int n = 0; n < 4; n++) sum += values[seen.at[n]] * seen.weight[n];
        to[(size_t)(c + 1) * places] = from_float<T>(sum);
    }
}
KERNEL(sparse_motion, sparse_motion)

// Softmax of the mask over the motions, and their mean by it. a: logits (outputs, count + 1, h, w), b: pairs;
// out: (outputs, h, w, 2) in f32.
template <typename T> __device__ void deformation(float *out, const void *a, const void *b, const Params &p) {
    const T *logits = (const T *)a;
    const float *pairs = (const float *)b;
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 places = p.h * p.w, motions = p.count + 1, place = i % places, picture = i / places;
    const T *mine = logits + (size_t)picture * motions * places + place;
    float most = to_float(mine[0]);
    for (u32 k = 1; k < motions; k++) most = fmaxf(most, to_float(mine[(size_t)k * places]));
    float gx = centre(place % p.w, p.w), gy = centre(place / p.w, p.h);
    float sum = 0.0f, sum_x = 0.0f, sum_y = 0.0f;
    for (u32 k = 0; k < motions; k++) {
        float x = gx, y = gy, weight = expf(to_float(mine[(size_t)k * places]) - most);
        if (k > 0) moved(motion_of(pairs + 12 * ((size_t)picture * p.count + k - 1), p.flags), x, y);
        sum += weight;
        sum_x += weight * x;
        sum_y += weight * y;
    }
    out[2 * (size_t)i] = sum_x / sum;
    out[2 * (size_t)i + 1] = sum_y / sum;
}

extern "C" __global__ void deformation_f32(void *out, const void *a, const void *b, const void *, const Params p) {
    deformation<float>((float *)out, a, b, p);
}
extern "C" __global__ void deformation_f16(void *out, const void *a, const void *b, const void *, const Params p) {
    deformation<__half>((float *)out, a, b, p);
}
extern "C" __global__ void deformation_bf16(void *out, const void *a, const void *b, const void *, const Params p) {
    deformation<__nv_bfloat16>((float *)out, a, b, p);
}

// A motion that fades out towards the border. a: deformation (batch, h, w, 2), b: what is left of it (h, w); out: as a.
extern "C" __global__ void kept_still_f32(void *out, const void *a, const void *b, const void *, const Params p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 place = i / 2 % (p.h * p.w);
    float still = i % 2 ? centre(place / p.w, p.h) : centre(place % p.w, p.w);
    ((float *)out)[i] = (((const float *)a)[i] - still) * ((const float *)b)[place] + still;
}

// An occlusion map whose border shows the source. a: map (batch, 1, h, w), b: what counts of it (h, w); out: as a.
extern "C" __global__ void opened_f32(void *out, const void *a, const void *b, const void *, const Params p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    float inner = ((const float *)b)[i % (p.h * p.w)];
    ((float *)out)[i] = ((const float *)a)[i] * inner + (1.0f - inner);
}

// Features of which a part is hidden. a: x (batch, c, h, w), b: map (batch, 1, h, w) in f32; out: as a.
template <typename T> __device__ void veiled(T *out, const void *a, const void *b, const void *, const Params &p) {
    u32 i = thread_index();
    if (i >= p.threads) return;
    u32 places = p.h * p.w, picture = i / places / p.channels;
    out[i] = from_float<T>(to_float(((const T *)a)[i]) * ((const float *)b)[(size_t)picture * places + i % places]);
}
KERNEL(veiled, veiled)
