// Convolution by tensor cores: see src/ops/maps. For cards from compute capability 8.0 on.
//
// A convolution is a product of matrices: a row for each pixel of the result, a column for each of its features, and what is summed
// over are the taps of the kernel with the features of each. No matrix of taps is written: a block of threads gathers, for its
// rows and columns, 64 bytes of both at a time (a stage) from where they lie. What follows the sum (bias, relu, the mean of 2x2 pixels,
// a summand, the norm that opens the next block) is done before anything is stored.
//
// Maps are (picture, y, x, features), features padded to a multiple of 8 by zeros; weights are
// (phase, feature, tap, feature of the first input, then of the second).
#include "tiles.cuh"

// Bytes of a row in a stage: four units of 16.
#define ROW 64u
#define THREADS_OF_TILE 128u

// The smallest thing that is fetched.
struct Unit {
    u32 words[4];
};

// Where a unit of a row lies in a stage: units are exchanged so that eight rows' are in different banks.
__device__ inline u32 place_in_stage(u32 row, u32 unit) { return row * ROW + ((unit ^ (row >> 1 & 3u)) << 4); }

#ifdef MIMIC_HOST
#define UNROLL_4
static inline void fetch(unsigned char *to, const void *from, bool is_there) {
    if (is_there) memcpy(to, from, sizeof(Unit));
    else memset(to, 0, sizeof(Unit));
}
static inline void fetched() {}
template <u32> static inline void wait_but_for() {}
#else
#define UNROLL_4 _Pragma("unroll 4")
// Copies a unit while the thread goes on; zeros where there is nothing.
__device__ inline void fetch(unsigned char *to, const void *from, bool is_there) {
    u32 at = (u32)__cvta_generic_to_shared(to), bytes = is_there ? 16u : 0u;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
// Ends a stage's fetches.
__device__ inline void fetched() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all stages but the last N have come.
template <u32 N> __device__ inline void wait_but_for() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

__device__ inline void multiply_tf32(float (&sums)[4], const u32 (&rows)[4], u32 low, u32 high) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(low), "r"(high));
}
// A number as two of 11 bits, which tensor cores take: together 22 of the 24 of f32.
__device__ inline void split(u32 bits, u32 &large, u32 &small) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(large) : "f"(__uint_as_float(bits)));
    float rest = __uint_as_float(bits) - __uint_as_float(large);
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(small) : "f"(rest));
}
#endif

// Adds the products of a stage: of the rows from `first_row` and the columns from `first_column` on.
template <typename T, u32 MI, u32 NI>
__device__ inline void add_stage(float (&sums)[MI][NI][4], const unsigned char *rows, const unsigned char *columns,
                                 u32 first_row, u32 first_column) {
    u32 lane = threadIdx.x & 31u;
#ifdef MIMIC_HOST
    // A thread's numbers are the same; it sums them by itself.
    for (u32 i = 0; i < MI; i++)
        for (u32 j = 0; j < NI; j++)
            for (u32 n = 0; n < 4; n++) {
                u32 row = first_row + i * 16 + lane / 4 + n / 2 * 8, column = first_column + j * 8 + lane % 4 * 2 + n % 2;
                for (u32 e = 0; e < ROW / sizeof(T); e++) {
                    u32 unit = e * sizeof(T) / 16, within = e * sizeof(T) % 16;
                    T x, y;
                    memcpy(&x, rows + place_in_stage(row, unit) + within, sizeof(T));
                    memcpy(&y, columns + place_in_stage(column, unit) + within, sizeof(T));
                    sums[i][j][n] += to_float(x) * to_float(y);
                }
            }
#else
    UNROLL
    for (u32 step = 0; step < 2; step++) {
        u32 of_rows[MI][4], of_columns[NI / 2][4];
        UNROLL
        for (u32 i = 0; i < MI; i++) {
            u32 row = first_row + i * 16 + (lane & 15u);
            load_matrices(of_rows[i], rows + place_in_stage(row, step * 2 + (lane >> 4)));
        }
        UNROLL
        for (u32 j = 0; j < NI / 2; j++) {
            u32 column = first_column + j * 16 + (lane & 7u) + (lane >> 4) * 8;
            load_matrices(of_columns[j], columns + place_in_stage(column, step * 2 + (lane >> 3 & 1u)));
        }
        if constexpr (sizeof(T) == 4) {
            u32 large[NI / 2][4], small[NI / 2][4];
            UNROLL
            for (u32 j = 0; j < NI / 2; j++)
                UNROLL
                for (u32 n = 0; n < 4; n++) split(of_columns[j][n], large[j][n], small[j][n]);
            UNROLL
            for (u32 i = 0; i < MI; i++) {
                u32 most[4], rest[4];
                UNROLL
                for (u32 n = 0; n < 4; n++) split(of_rows[i][n], most[n], rest[n]);
                UNROLL
                for (u32 j = 0; j < NI; j++) {
                    u32 h = j / 2, n = j % 2 * 2;
                    multiply_tf32(sums[i][j], rest, large[h][n], large[h][n + 1]);
                    multiply_tf32(sums[i][j], most, small[h][n], small[h][n + 1]);
                    multiply_tf32(sums[i][j], most, large[h][n], large[h][n + 1]);
                }
            }
        } else {
            UNROLL
            for (u32 i = 0; i < MI; i++)
                UNROLL
                for (u32 j = 0; j < NI; j++) {
                    u32 h = j / 2, n = j % 2 * 2;
                    multiply(sums[i][j], of_rows[i], of_columns[h][n], of_columns[h][n + 1], T());
                }
        }
    }
#endif
}

// A block's part of the result, BM pixels by BN features; with parts > 1 of their sums, in f32 (part, phase, row, feature).
// The block's warps stand in `TALL` rows.
template <typename T, u32 BM, u32 BN, u32 TALL, u32 STAGES>
__device__ void convolve(void *out, const void *a, const void *b, const void *c, const Params &p, const void *d,
                         const void *e, const void *f) {
    constexpr u32 WIDE = 4 / TALL, MI = BM / TALL / 16, NI = BN / WIDE / 8, STAGE = (BM + BN) * ROW;
    constexpr u32 PASS = BN < 32 ? BN : 32, PITCH = PASS + 4;
    static_assert(NI % 2 == 0 && BM * PITCH * 4 <= STAGES * STAGE, "tile");
    __shared__ __align__(16) unsigned char memory[STAGES * STAGE];
    u32 t = threadIdx.x, warp = t / 32, unit = t & 3u, first = t / 4;
    u32 first_row = warp % TALL * (BM / TALL), first_column = warp / TALL * (BN / WIDE);

    u32 rows = rows_of(p), block = blockIdx.x;
    u32 tiles_n = (p.features + BN - 1) / BN, tiles_m = (rows + BM - 1) / BM, phases = p.flags & FLAG_FOLDED ? 4 : 1;
    u32 n0 = block % tiles_n * BN, m0 = block / tiles_n % tiles_m * BM;
    u32 phase = block / tiles_n / tiles_m % phases, part = block / tiles_n / tiles_m / phases;

    // Units of a pixel, and of all that is summed.
    u32 of_first = p.channels * (u32)sizeof(T) / 16, of_pixel = of_first + p.second * (u32)sizeof(T) / 16;
    u32 all = p.count * p.count * of_pixel, stages = (all + 3) / 4, share = (stages + p.parts - 1) / p.parts;
    u32 begin = part * share, end = begin + share < stages ? begin + share : stages;
    if (begin > end) begin = end;

    const Unit *input = (const Unit *)a, *more = (const Unit *)d, *weights = (const Unit *)b;
    u32 shift = p.flags & FLAG_DOUBLED ? 1 : 0, high = p.h << shift, wide = p.w << shift;
    int top[BM / 32], left[BM / 32];
    u32 base[BM / 32];
    UNROLL
    for (u32 i = 0; i < BM / 32; i++) {
        u32 row = m0 + first + 32 * i, picture, y, x;
        pixel_of(row < rows ? row : 0, p, picture, y, x);
        base[i] = picture * p.h * p.w;
        top[i] = row < rows ? (int)(y - p.padding) : -(1 << 20);
        left[i] = (int)(x - p.padding);
        if (p.flags & FLAG_FOLDED) {
            top[i] += (int)row_of_phase(phase);
            left[i] += (int)column_of_phase(phase);
        }
    }
    // Which unit of which tap this thread fetches next.
    u32 at = begin * 4 + unit, tap = at / of_pixel, within = at % of_pixel;
    u32 ky = tap / p.count, kx = tap % p.count;

    auto fetch_stage = [&](u32 slot) {
        unsigned char *to = memory + slot * STAGE;
        bool summed = at < all;
        UNROLL
        for (u32 i = 0; i < BM / 32; i++) {
            int y = top[i] + (int)ky, x = left[i] + (int)kx;
            bool inside = summed && (u32)y < high && (u32)x < wide;
            size_t pixel = base[i] + (((u32)y >> shift) * p.w + ((u32)x >> shift));
            const Unit *from = within < of_first ? input + pixel * of_first + within
                                                 : more + pixel * (of_pixel - of_first) + (within - of_first);
            fetch(to + place_in_stage(first + 32 * i, unit), inside ? from : input, inside);
        }
        UNROLL
        for (u32 i = 0; i < (BN + 31) / 32; i++) {
            u32 column = first + 32 * i;
            if (BN >= 32 || column < BN) {
                bool inside = summed && n0 + column < p.features;
                const Unit *from = weights + (size_t)(phase * p.features + n0 + column) * all + at;
                fetch(to + BM * ROW + place_in_stage(column, unit), inside ? from : weights, inside);
            }
        }
        at += 4;
        within += 4;
        while (within >= of_pixel) {
            within -= of_pixel;
            if (++kx == p.count) {
                kx = 0;
                ky++;
            }
        }
    };

    float sums[MI][NI][4];
    for (u32 i = 0; i < MI; i++)
        for (u32 j = 0; j < NI; j++)
            for (u32 n = 0; n < 4; n++) sums[i][j][n] = 0.0f;
    for (u32 ahead = 0; ahead < STAGES - 1; ahead++) {
        if (begin + ahead < end) fetch_stage(ahead);
        fetched();
    }
    for (u32 stage = begin, slot = 0; stage < end; stage++, slot = slot + 1 == STAGES ? 0 : slot + 1) {
        wait_but_for<STAGES - 2>();
        __syncthreads();
        if (stage + STAGES - 1 < end) fetch_stage(slot == 0 ? STAGES - 1 : slot - 1);
        fetched();
        const unsigned char *here = memory + slot * STAGE;
        add_stage<T, MI, NI>(sums, here, here + BM * ROW, first_row, first_column);
    }
    wait_but_for<0>();

    // The sums go by way of shared memory, 32 features at a time, so that a thread has eight features of a pixel.
    float *room = (float *)memory;
    const float *bias = (const float *)c;
    u32 lane = t & 31u;
    auto at_row = [&](u32 i) {
        u32 row = m0 + i;
        return row < rows ? Place{i, row, stored_at(row, phase, p)} : Place{NOWHERE, 0, 0};
    };
    for (u32 pass = 0; pass < BN / PASS; pass++) {
        __syncthreads();
        UNROLL
        for (u32 i = 0; i < MI; i++)
            UNROLL
            for (u32 j = 0; j < NI; j++) {
                u32 column = first_column + j * 8 + lane % 4 * 2, row = first_row + i * 16 + lane / 4;
                if (column / PASS != pass) continue;
                for (u32 n = 0; n < 4; n++) room[(row + n / 2 * 8) * PITCH + column % PASS + n % 2] = sums[i][j][n];
            }
        __syncthreads();
        store_pass<T, BM, PASS, PITCH, THREADS_OF_TILE>(out, room, t, n0 + pass * PASS, part, phase, p, bias, (const T *)e,
                                                        (const float *)f, 2, at_row);
    }
}

// a: input (outputs, h, w, channels), b: weights, c: bias (features) in f32, d: a second input (outputs, h, w, second) or null,
// e: what is added to the result or null, f: scale and shift (2, features) in f32 of a second output or null.
#define TILE(name, BM, BN, TALL, STAGES)                                                                              \
    extern "C" __global__ void __launch_bounds__(128)                                                                 \
        name##_f32(void *out, const void *a, const void *b, const void *c, const Params p, const void *d,             \
                   const void *e, const void *f) {                                                                    \
        convolve<float, BM, BN, TALL, STAGES>(out, a, b, c, p, d, e, f);                                              \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128)                                                                 \
        name##_f16(void *out, const void *a, const void *b, const void *c, const Params p, const void *d,             \
                   const void *e, const void *f) {                                                                    \
        convolve<__half, BM, BN, TALL, STAGES>(out, a, b, c, p, d, e, f);                                             \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(128)                                                                 \
        name##_bf16(void *out, const void *a, const void *b, const void *c, const Params p, const void *d,            \
                    const void *e, const void *f) {                                                                   \
        convolve<__nv_bfloat16, BM, BN, TALL, STAGES>(out, a, b, c, p, d, e, f);                                      \
    }

// Named for pixels by features. Static shared memory ends at 48 KB.
TILE(convolve_128x128, 128, 128, 2, 3)
TILE(convolve_128x64, 128, 64, 2, 4)
TILE(convolve_64x64, 64, 64, 2, 5)
TILE(convolve_128x16, 128, 16, 4, 5)

// Parts of a sum that are read side by side, and threads of a block that does it.
#define MOST_READERS 8u
#define THREADS_OF_FINISH 256u

// The parts of a convolution's sums put together. Several threads read the parts of the same eight features, so that a card need not
// wait for one after the other. a: (parts, phases, rows, features) in f32; c, e, f as above.
template <typename T>
__device__ void finish(void *out, const void *a, const void *c, const Params &p, const void *e, const void *f) {
    __shared__ float read[8][THREADS_OF_FINISH];
    u32 readers = p.parts < MOST_READERS ? p.parts : MOST_READERS, at_once = THREADS_OF_FINISH / readers;
    u32 t = threadIdx.x, reader = t / at_once, i = blockIdx.x * at_once + t % at_once;
    u32 rows = rows_of(p), per_place = p.flags & FLAG_POOLED ? 4 : 1, phases = p.flags & FLAG_FOLDED ? 4 : 1;
    u32 units = p.features / 8, feature = i % units * 8, row = i / units % (rows / per_place) * per_place;
    u32 phase = i / units / (rows / per_place);
    const float *bias = (const float *)c;
    float values[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 corner = 0; corner < per_place; corner++) {
        float sums[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        if (phase < phases && reader < readers) {
            const float *from = (const float *)a + ((size_t)phase * rows + row + corner) * p.features + feature;
            size_t of_part = (size_t)phases * rows * p.features;
            UNROLL_4
            for (u32 part = reader; part < p.parts; part += readers) {
                float more[8];
                load8(from + part * of_part, more);
                for (u32 n = 0; n < 8; n++) sums[n] += more[n];
            }
        }
        for (u32 n = 0; n < 8; n++) read[n][t] = sums[n];
        __syncthreads();
        if (phase < phases && reader == 0) {
            for (u32 other = 1; other < readers; other++)
                for (u32 n = 0; n < 8; n++) sums[n] += read[n][other * at_once + t];
            for (u32 n = 0; n < 8; n++) values[n] += relu_if(sums[n] + bias[feature + n], p.flags);
        }
        __syncthreads();
    }
    if (phase >= phases || reader > 0) return;
    if (per_place == 4)
        for (u32 n = 0; n < 8; n++) values[n] *= 0.25f;
    store<T>(out, values, stored_at(row, phase, p), feature, p, (const T *)e, (const float *)f);
}

extern "C" __global__ void finish_f32(void *out, const void *a, const void *, const void *c, const Params p,
                                      const void *, const void *e, const void *f) {
    finish<float>(out, a, c, p, e, f);
}
extern "C" __global__ void finish_f16(void *out, const void *a, const void *, const void *c, const Params p,
                                      const void *, const void *e, const void *f) {
    finish<__half>(out, a, c, p, e, f);
}
extern "C" __global__ void finish_bf16(void *out, const void *a, const void *, const void *c, const Params p,
                                       const void *, const void *e, const void *f) {
    finish<__nv_bfloat16>(out, a, c, p, e, f);
}
