// Wide kernels of few features, for cards of compute capability 9.0: what a generator ends with, and what decides on motion.
//
// By the kernels of tensor_cores.cu and warpgroups.cu each pixel would be fetched once for each tap. Here a block fetches the pixels that
// its 8 rows of 16 see, 64 features of them at a time, and its four warps, each for 16 of the features, read what a row of
// them is for all rows of the result that see it.
#include "boxes.cuh"

#define FEATURES_OF_BOX 64u
#define ACROSS 16u
#define DOWN 8u
#define FEATURES_OF_WARP 16u
#define THREADS_OF_NARROW 128u

// sums (row of the result, tile of 8 features, 16 pixels x 8 features by thread) += what column `kx` of the kernel adds; `taps` are that
// column's weights, a row for each tap of each feature.
#ifdef MIMIC_HOST
// A thread's numbers are the same; it sums them by itself.
template <typename T, u32 SIDE, u32 TILES>
static inline void add_column(float (&sums)[DOWN][TILES][4], const unsigned char *box, u32 kx, const T (&taps)[TILES * 8][SIDE][FEATURES_OF_WARP]) {
    u32 lane = threadIdx.x % 32;
    for (u32 y = 0; y < DOWN; y++)
        for (u32 ky = 0; ky < SIDE; ky++)
            for (u32 tile = 0; tile < TILES; tile++)
                for (u32 n = 0; n < 4; n++)
                    for (u32 c = 0; c < FEATURES_OF_WARP; c++) {
                        u32 pixel = (y + ky) * (ACROSS + SIDE - 1) + lane / 4 + n / 2 * 8 + kx;
                        T v;
                        memcpy(&v, box + place_in_box(pixel, (threadIdx.x / 32 * FEATURES_OF_WARP + c) * sizeof(T)), sizeof(T));
                        sums[y][tile][n] += to_float(v) * to_float(taps[tile * 8 + lane % 4 * 2 + n % 2][ky][c]);
                    }
}
// What a warp needs of a column's weights.
template <typename T, u32 SIDE, u32 TILES>
static inline void load_taps(T (&taps)[TILES * 8][SIDE][FEATURES_OF_WARP], const unsigned char *weights) {
    for (u32 row = 0; row < TILES * 8 * SIDE; row++)
        for (u32 c = 0; c < FEATURES_OF_WARP; c++)
            memcpy(&taps[row / SIDE][row % SIDE][c], weights + place_in_box(row, (threadIdx.x / 32 * FEATURES_OF_WARP + c) * sizeof(T)), sizeof(T));
}
#define TAPS(T, SIDE, TILES) T taps[TILES * 8][SIDE][FEATURES_OF_WARP]
#else
template <typename T, u32 SIDE, u32 TILES>
__device__ inline void add_column(float (&sums)[DOWN][TILES][4], const unsigned char *box, u32 kx, const u32 (&taps)[SIDE][TILES][2]) {
    u32 lane = threadIdx.x & 31u, byte = threadIdx.x / 32 * FEATURES_OF_WARP * 2 + (lane >> 4) * 16;
    UNROLL
    for (u32 row = 0; row < DOWN + SIDE - 1; row++) {
        u32 of_row[4];
        load_matrices(of_row, box + place_in_box(row * (ACROSS + SIDE - 1) + (lane & 15u) + kx, byte));
        UNROLL
        for (u32 ky = 0; ky < SIDE; ky++) {
            if (row < ky || row - ky >= DOWN) continue;
            UNROLL
            for (u32 tile = 0; tile < TILES; tile++) multiply(sums[row - ky][tile], of_row, taps[ky][tile][0], taps[ky][tile][1], T());
        }
    }
}
template <typename T, u32 SIDE, u32 TILES>
__device__ inline void load_taps(u32 (&taps)[SIDE][TILES][2], const unsigned char *weights) {
    // Two matrices of 8 features by 8 of what is summed for each tap, two taps at a time.
    u32 lane = threadIdx.x & 31u, byte = threadIdx.x / 32 * FEATURES_OF_WARP * 2 + (lane >> 3 & 1u) * 16;
    UNROLL
    for (u32 tile = 0; tile < TILES; tile++)
        UNROLL
        for (u32 ky = 0; ky < SIDE; ky += 2) {
            u32 two[4], tap = ky + (lane >> 4) < SIDE ? ky + (lane >> 4) : ky;
            load_matrices(two, weights + place_in_box((tile * 8 + (lane & 7u)) * SIDE + tap, byte));
            for (u32 n = 0; n < 2; n++) {
                taps[ky][tile][n] = two[n];
                if (ky + 1 < SIDE) taps[ky + 1][tile][n] = two[2 + n];
            }
        }
}
#define TAPS(T, SIDE, TILES) u32 taps[SIDE][TILES][2]
#endif

// A block's part of the result, 8 rows of 16 pixels by 8 TILES features; with parts > 1 of their sums. No mean is taken.
template <typename T, u32 SIDE, u32 TILES>
__device__ void convolve_narrow(void *out, const void *c, const Params &p, const void *e, const void *f, const Boxes &boxes) {
    constexpr u32 WIDE = ACROSS + SIDE - 1, BOX = WIDE * (DOWN + SIDE - 1) * WIDTH, PITCH = 8 * TILES + 4, OF_BLOCK = ACROSS * DOWN;
    // Boxes begin at multiples of 1024 bytes.
    constexpr u32 TAPS_BOX = SIDE * 8 * TILES * WIDTH, TAPS_AT = (BOX + 1023) / 1024 * 1024, TAPS_STEP = (TAPS_BOX + 1023) / 1024 * 1024;
    static_assert(4 * OF_BLOCK * PITCH * 4 <= TAPS_AT + 2 * TAPS_STEP, "room");
#ifdef MIMIC_HOST
    static unsigned char memory[TAPS_AT + 2 * TAPS_STEP];
#else
    extern __shared__ unsigned char from_anywhere[];
    unsigned char *memory = (unsigned char *)(((size_t)from_anywhere + 1023) & ~(size_t)1023);
#endif
    __shared__ Barrier of_pixels, of_taps[2];
    u32 t = threadIdx.x, warp = t / 32, lane = t & 31u;
    if (t == 0) {
        begin(&of_pixels, 1);
        begin(of_taps, 1);
        begin(of_taps + 1, 1);
        begun();
    }
    __syncthreads();

    u32 tiles_x = (p.wo + ACROSS - 1) / ACROSS, tiles_y = (p.ho + DOWN - 1) / DOWN, block = blockIdx.x;
    u32 x0 = block % tiles_x * ACROSS;
    block /= tiles_x;
    u32 y0 = block % tiles_y * DOWN;
    block /= tiles_y;
    u32 picture = block % p.outputs, part = block / p.outputs;

    // Steps are the kernel's columns, for each box of features.
    u32 of_first = (p.channels + FEATURES_OF_BOX - 1) / FEATURES_OF_BOX;
    u32 all = (of_first + (p.second + FEATURES_OF_BOX - 1) / FEATURES_OF_BOX) * SIDE, share = (all + p.parts - 1) / p.parts;
    u32 start = part * share, end = start + share < all ? start + share : all;
    auto fetch_pixels = [&](u32 step) {
        u32 box = step / SIDE, is_first = box < of_first, from = (is_first ? box : box - of_first) * FEATURES_OF_BOX;
        expect(&of_pixels, BOX);
        fetch(memory, is_first ? boxes.input : boxes.second, (int)from, (int)(x0 - p.padding), (int)(y0 - p.padding), (int)picture, &of_pixels);
        fetched(&of_pixels);
    };
    auto fetch_taps = [&](u32 step) {
        u32 box = step / SIDE, is_first = box < of_first, from = is_first ? box * FEATURES_OF_BOX : p.channels + (box - of_first) * FEATURES_OF_BOX;
        u32 slot = (step - start) & 1u;
        expect(of_taps + slot, TAPS_BOX);
        fetch(memory + TAPS_AT + slot * TAPS_STEP, boxes.weights, (int)from, (int)(step % SIDE), 0, 0, of_taps + slot);
        fetched(of_taps + slot);
    };
    if (t == 0 && start < end) {
        fetch_pixels(start);
        fetch_taps(start);
    }

    float sums[DOWN][TILES][4];
    UNROLL
    for (u32 y = 0; y < DOWN; y++)
        UNROLL
        for (u32 tile = 0; tile < TILES; tile++)
            UNROLL
            for (u32 n = 0; n < 4; n++) sums[y][tile][n] = 0.0f;
    u32 boxes_seen = 0;
    for (u32 step = start; step < end; step++) {
        // What a warp has read in the step before has been multiplied when it comes here. The engine would not wait for what it has only
        // asked for.
        __syncthreads();
        if (t == 0) {
            if (step > start && step % SIDE == 0) fetch_pixels(step);
            if (step + 1 < end) fetch_taps(step + 1);
        }
        u32 slot = (step - start) & 1u;
        TAPS(T, SIDE, TILES);
        wait(of_taps + slot, (step - start) >> 1 & 1u);
        load_taps<T, SIDE, TILES>(taps, memory + TAPS_AT + slot * TAPS_STEP);
        if (step == start || step % SIDE == 0) wait(&of_pixels, boxes_seen++ & 1u);
        add_column<T, SIDE, TILES>(sums, memory, step % SIDE, taps);
    }

    // The warps' sums come together in shared memory.
    __syncthreads();
    float *room = (float *)memory;
    UNROLL
    for (u32 y = 0; y < DOWN; y++)
        UNROLL
        for (u32 tile = 0; tile < TILES; tile++)
            UNROLL
            for (u32 n = 0; n < 4; n++) {
                u32 pixel = y * ACROSS + lane / 4 + n / 2 * 8, feature = tile * 8 + lane % 4 * 2 + n % 2;
                room[(warp * OF_BLOCK + pixel) * PITCH + feature] = sums[y][tile][n];
            }
    __syncthreads();
    for (u32 i = t; i < OF_BLOCK * PITCH; i += THREADS_OF_NARROW)
        room[i] += room[i + OF_BLOCK * PITCH] + room[i + 2 * OF_BLOCK * PITCH] + room[i + 3 * OF_BLOCK * PITCH];
    __syncthreads();
    auto at = [&](u32 i) { return place_at(i, picture, y0 + i / ACROSS, x0 + i % ACROSS, 0, p); };
    store_pass<T, OF_BLOCK, 8 * TILES, PITCH, THREADS_OF_NARROW>(out, room, t, 0, part, 0, p, (const float *)c, (const T *)e, (const float *)f,
                                                               ACROSS, at);
}

// As the kernels of tensor_cores.cu.
#define SEEN(SIDE) Sides{ACROSS + SIDE - 1, DOWN + SIDE - 1, 1}
#define TAPS_OF(SIDE, TILES) Sides{1, SIDE, 8 * TILES}
#define NARROW(name, SUFFIX, T, SIDE, TILES)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS_OF_NARROW)                                                    \
        name##SUFFIX(void *out, const void *a, const void *b, const void *c, const Params p, const void *d,            \
                     const void *e, const void *f BOXES) {                                                             \
        convolve_narrow<T, SIDE, TILES>(out, c, p, e, f, GIVEN(T, (SEEN(SIDE)), (TAPS_OF(SIDE, TILES))));              \
    }
// Named for the kernel and its features.
#define NARROW_OF_HALVES(SUFFIX, T)                                                                                    \
    NARROW(narrow_7x7x8, SUFFIX, T, 7, 1)                                                                              \
    NARROW(narrow_7x7x16, SUFFIX, T, 7, 2)
NARROW_OF_HALVES(_f16, __half)
NARROW_OF_HALVES(_bf16, __nv_bfloat16)
