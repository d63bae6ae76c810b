// Convolution by warpgroups, for cards of compute capability 9.0: as tensor_cores.cu.
//
// Boxes of 64 features of 128 pixels, and of the weights of as many features as a block computes, are read by the tensor cores from shared
// memory. The pixels of a block are a box too, whose sides are powers of two. One warp asks for boxes, two warpgroups of four
// warps multiply, each for 64 of the pixels.
#include "boxes.cuh"

#define PIXELS 128u
#define MULTIPLIERS 256u
#define THREADS_OF_GROUPS 288u

#ifdef MIMIC_HOST
// A thread's numbers are the same; it sums them by itself.
template <typename T, u32 BN>
static inline void add_box(float (&sums)[BN / 2], const unsigned char *rows, const unsigned char *columns) {
    u32 warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    for (u32 j = 0; j < BN / 2; j++) {
        u32 row = warp * 16 + lane / 4 + j / 2 % 2 * 8, column = j / 4 * 8 + lane % 4 * 2 + j % 2;
        for (u32 at = 0; at < WIDTH / sizeof(T); at++) {
            T x, y;
            memcpy(&x, rows + place_in_box(row, at * sizeof(T)), sizeof(T));
            memcpy(&y, columns + place_in_box(column, at * sizeof(T)), sizeof(T));
            sums[j] += to_float(x) * to_float(y);
        }
    }
}
// The same of f32; of the columns' elements two of f16, 32 of the first and then of the second.
template <u32 BN>
static inline void add_box_of_f32(float (&sums)[BN / 2], const unsigned char *rows, const unsigned char *columns) {
    u32 warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    for (u32 j = 0; j < BN / 2; j++) {
        u32 row = warp * 16 + lane / 4 + j / 2 % 2 * 8, column = j / 4 * 8 + lane % 4 * 2 + j % 2;
        for (u32 at = 0; at < WIDTH / 4; at++) {
            float x;
            __half most, rest;
            memcpy(&x, rows + place_in_box(row, at * 4), 4);
            // Of sixteen a thread has four that follow each other, where tensor cores want two and two.
            u32 slot = at / 16 * 16 + at % 16 / 4 * 2 + at % 4 / 2 * 8 + at % 2;
            memcpy(&most, columns + place_in_box(column, slot * 2), 2);
            memcpy(&rest, columns + place_in_box(column, WIDTH / 2 + slot * 2), 2);
            sums[j] += x * (to_float(most) + to_float(rest));
        }
    }
}
// The warps of a group multiply together: none is further than the others.
static inline void added_but_for_one() { sync_multipliers(); }
static inline void added() { sync_multipliers(); }
#else
__device__ inline void sync_multipliers() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// How tensor cores find rows of 128 bytes whose units are exchanged, eight rows after the other.
__device__ inline u64 description(const unsigned char *rows) {
    return (u64)((shared_address(rows) & 0x3ffffu) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// sums (64, BN) += rows (64, 32 bytes) x columns (BN, 32 bytes), by the four warps of a group together; rows are described as columns are, or
// are of registers. How an instruction names its sums, by the half of BN.
#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 NAMES_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_128 NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_4(n) "+f"(sums[n]), "+f"(sums[n + 1]), "+f"(sums[n + 2]), "+f"(sums[n + 3])
#define SUMS_16(n) SUMS_4(n), SUMS_4(n + 4), SUMS_4(n + 8), SUMS_4(n + 12)
#define SUMS_32 SUMS_16(0), SUMS_16(16)
#define SUMS_64 SUMS_32, SUMS_16(32), SUMS_16(48)
#define SUMS_128 SUMS_64, SUMS_16(64), SUMS_16(80), SUMS_16(96), SUMS_16(112)
#define MULTIPLY(BN, KIND, TYPE, HALF, ROWS, COLUMNS)                                                                  \
    __device__ inline void multiply(float (&sums)[HALF], u64 rows, u64 columns, TYPE) {                                \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #BN "k16.f32." KIND "." KIND " {" NAMES_##HALF "}, %" #ROWS   \
                     ", %" #COLUMNS ", 1, 1, 1, 0, 0;"                                                                 \
                     : SUMS_##HALF                                                                                     \
                     : "l"(rows), "l"(columns));                                                                       \
    }
MULTIPLY(64, "f16", __half, 32, 32, 33)
MULTIPLY(64, "bf16", __nv_bfloat16, 32, 32, 33)
MULTIPLY(128, "f16", __half, 64, 64, 65)
MULTIPLY(128, "bf16", __nv_bfloat16, 64, 64, 65)
MULTIPLY(256, "f16", __half, 128, 128, 129)
MULTIPLY(256, "bf16", __nv_bfloat16, 128, 128, 129)
#define MULTIPLY_REGISTERS(BN, HALF, R0, R1, R2, R3, COLUMNS)                                                          \
    __device__ inline void multiply(float (&sums)[HALF], const u32 (&rows)[4], u64 columns) {                          \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #BN "k16.f32.f16.f16 {" NAMES_##HALF "}, {%" #R0 ", %" #R1    \
                     ", %" #R2 ", %" #R3 "}, %" #COLUMNS ", 1, 1, 1, 0;"                                               \
                     : SUMS_##HALF                                                                                     \
                     : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "l"(columns));                          \
    }
MULTIPLY_REGISTERS(64, 32, 32, 33, 34, 35, 36)
MULTIPLY_REGISTERS(128, 64, 64, 65, 66, 67, 68)

template <typename T, u32 BN>
__device__ inline void add_box(float (&sums)[BN / 2], const unsigned char *rows, const unsigned char *columns) {
    u64 of_rows = description(rows), of_columns = description(columns);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    UNROLL
    for (u32 step = 0; step < WIDTH / 32; step++) multiply(sums, of_rows + 2 * step, of_columns + 2 * step, T());
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Two numbers as two each of f16, the second what the first leaves; together 22 bits of the 24 of f32.
__device__ inline void split(float x, float y, u32 &large, u32 &small) {
    // No larger than f16 holds.
    __half2 most = __floats2half2_rn(fminf(fmaxf(x, -65504.0f), 65504.0f), fminf(fmaxf(y, -65504.0f), 65504.0f));
    float2 wide = __half22float2(most);
    __half2 rest = __floats2half2_rn(x - wide.x, y - wide.y);
    large = *(u32 *)&most;
    small = *(u32 *)&rest;
}

// The same of f32; of the columns' elements two of f16, 32 of the first and then of the second.
template <u32 BN>
__device__ inline void add_box_of_f32(float (&sums)[BN / 2], const unsigned char *rows, const unsigned char *columns) {
    u32 lane = threadIdx.x & 31u, row = threadIdx.x / 32 % 4 * 16 + lane / 4, large[2][4], small[2][4];
    UNROLL
    for (u32 step = 0; step < 2; step++)
        UNROLL
        for (u32 n = 0; n < 2; n++) {
            float4 v = *(const float4 *)(rows + place_in_box(row + 8 * n, step * 64 + lane % 4 * 16));
            split(v.x, v.y, large[step][n], small[step][n]);
            split(v.z, v.w, large[step][2 + n], small[step][2 + n]);
        }
    u64 most = description(columns), rest = most + WIDTH / 2 / 16;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    UNROLL
    for (u32 step = 0; step < 2; step++) {
        multiply(sums, small[step], most + 2 * step);
        multiply(sums, large[step], rest + 2 * step);
        multiply(sums, large[step], most + 2 * step);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until all boxes but the last have been added.
__device__ inline void added_but_for_one() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }
__device__ inline void added() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
#endif

// A block's part of the result, 128 pixels by BN features; with parts > 1 of their sums.
template <typename T, u32 BN, u32 STAGES>
__device__ void convolve_box(void *out, const void *c, const Params &p, const void *e, const void *f, const Boxes &boxes) {
    constexpr u32 DEPTH = WIDTH / sizeof(T), OF_PIXELS = PIXELS * WIDTH, STAGE = OF_PIXELS + BN * WIDTH, PASS = 64, PITCH = PASS + 8;
    constexpr bool IS_F32 = sizeof(T) == 4;
    static_assert(PIXELS * PITCH * 4 <= STAGES * STAGE, "box");
#ifdef MIMIC_HOST
    static unsigned char memory[STAGES * STAGE];
#else
    extern __shared__ unsigned char from_anywhere[];
    unsigned char *memory = (unsigned char *)(((size_t)from_anywhere + 1023) & ~(size_t)1023);
#endif
    __shared__ Barrier full[STAGES], empty[STAGES];
    u32 t = threadIdx.x;
    if (t == 0) {
        for (u32 slot = 0; slot < STAGES; slot++) {
            begin(full + slot, 1);
            begin(empty + slot, MULTIPLIERS / (IS_F32 ? 32 : 128));
        }
        begun();
    }
    __syncthreads();

    u32 tiles_n = (p.features + BN - 1) / BN, tile_w = 1u << p.tile_w, tile_h = 1u << p.tile_h, pictures = PIXELS >> (p.tile_w + p.tile_h);
    u32 tiles_x = (p.wo + tile_w - 1) >> p.tile_w, tiles_y = (p.ho + tile_h - 1) >> p.tile_h;
    u32 tiles_p = (p.outputs + pictures - 1) / pictures, phases = p.flags & FLAG_FOLDED ? 4 : 1;
    u32 block = blockIdx.x, n0 = block % tiles_n * BN;
    block /= tiles_n;
    u32 x0 = block % tiles_x * tile_w;
    block /= tiles_x;
    u32 y0 = block % tiles_y * tile_h;
    block /= tiles_y;
    u32 picture0 = block % tiles_p * pictures;
    block /= tiles_p;
    u32 phase = block % phases, part = block / phases;

    // Boxes of a tap, and of all that is summed.
    u32 of_first = (p.channels + DEPTH - 1) / DEPTH, of_tap = of_first + (p.second + DEPTH - 1) / DEPTH;
    u32 all = p.count * p.count * of_tap, share = (all + p.parts - 1) / p.parts;
    u32 start = part * share, end = start + share < all ? start + share : all;
    if (start > end) start = end;

    if (t >= MULTIPLIERS) {
        if (t > MULTIPLIERS) return;
        int top = (int)(y0 - p.padding), left = (int)(x0 - p.padding);
        if (p.flags & FLAG_FOLDED) {
            top += (int)row_of_phase(phase);
            left += (int)column_of_phase(phase);
        }
        for (u32 box = start, slot = 0, phase_of_slot = 1; box < end; box++) {
            u32 tap = box / of_tap, within = box % of_tap;
            int y = top + (int)(tap / p.count), x = left + (int)(tap % p.count);
            bool is_first = within < of_first;
            u32 from = (is_first ? within : within - of_first) * DEPTH, of_weights = is_first ? from : p.channels + from;
            // f32's are two numbers each.
            if (IS_F32) of_weights = within * 2 * DEPTH;
            unsigned char *to = memory + slot * STAGE;
            wait(empty + slot, phase_of_slot);
            expect(full + slot, STAGE);
            fetch(to, is_first ? boxes.input : boxes.second, (int)from, x, y, (int)picture0, full + slot);
            fetch(to + OF_PIXELS, boxes.weights, (int)of_weights, (int)(tap % p.count), (int)(tap / p.count), (int)(phase * p.features + n0),
                  full + slot);
            fetched(full + slot);
            if (++slot == STAGES) {
                slot = 0;
                phase_of_slot ^= 1u;
            }
        }
        return;
    }

    u32 group = t / 128;
    float sums[BN / 2];
    UNROLL
    for (u32 n = 0; n < BN / 2; n++) sums[n] = 0.0f;
    for (u32 box = start, slot = 0, phase_of_slot = 0; box < end; box++) {
        const unsigned char *here = memory + slot * STAGE;
        wait(full + slot, phase_of_slot);
        if constexpr (IS_F32) {
            // The registers that hold rows are wanted again. While one group waits, the other's are multiplied. Each warp says that it has read
            // its own rows.
            add_box_of_f32<BN>(sums, here + group * (PIXELS / 2 * WIDTH), here + OF_PIXELS);
            added();
            if (t % 32 == 0) arrive(empty + slot);
        } else {
            add_box<T, BN>(sums, here + group * (PIXELS / 2 * WIDTH), here + OF_PIXELS);
            // A box has been multiplied by all warps of a group or by none. (With other conditions here the compiler lets products wait for
            // each other, and says so: C7515.)
            added_but_for_one();
            if (box > start && t % 128 == 0) arrive(empty + (slot == 0 ? STAGES - 1 : slot - 1));
        }
        if (++slot == STAGES) {
            slot = 0;
            phase_of_slot ^= 1u;
        }
    }
    added();
    if constexpr (IS_F32) {
        UNROLL
        for (u32 n = 0; n < BN / 2; n++) sums[n] *= p.real;
    }

    // The sums go by way of shared memory, 64 features at a time, so that a thread has eight features of a pixel.
    float *room = (float *)memory;
    u32 lane = t & 31u, first_row = t / 32 * 16 + lane / 4;
    bool is_mean = p.parts == 1 && (p.flags & FLAG_POOLED);
    auto at = [&](u32 i) {
        // Of a mean the first of its pixels.
        u32 cell = is_mean ? i >> 2 : i, half = is_mean ? 1 : 0, w = p.tile_w - half, h = p.tile_h - half;
        u32 x = (cell & ((1u << w) - 1)) << half, y = (cell >> w & ((1u << h) - 1)) << half, picture = cell >> (w + h);
        return place_at((((picture << p.tile_h) + y) << p.tile_w) + x, picture0 + picture, y0 + y, x0 + x, phase, p);
    };
    UNROLL
    for (u32 pass = 0; pass < BN / PASS; pass++) {
        sync_multipliers();
        UNROLL
        for (u32 j = 0; j < PASS / 8; j++)
            UNROLL
            for (u32 n = 0; n < 2; n++) {
                float *to = room + (first_row + n * 8) * PITCH + j * 8 + lane % 4 * 2;
                to[0] = sums[(pass * (PASS / 8) + j) * 4 + n * 2];
                to[1] = sums[(pass * (PASS / 8) + j) * 4 + n * 2 + 1];
            }
        sync_multipliers();
        store_pass<T, PIXELS, PASS, PITCH, MULTIPLIERS>(out, room, t, n0 + pass * PASS, part, phase, p, (const float *)c, (const T *)e,
                                                        (const float *)f, tile_w, at);
    }
}

// As the kernels of tensor_cores.cu. Those of f32 take weights in f16 by which sums are to be multiplied by `real`: (phase, feature, tap, 32 features
// of an input, two of f16 each, so that first come 32 of the first), of sixteen features 0, 1, 4, 5, 8, 9, 12, 13 before the others.
#define PIXELS_OF_BOX Sides{1u << p.tile_w, 1u << p.tile_h, PIXELS >> (p.tile_w + p.tile_h)}
#define WEIGHTS_OF_BOX(BN) Sides{1, 1, BN}
#define BOX(name, SUFFIX, T, BN, STAGES, BLOCKS)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS_OF_GROUPS, BLOCKS)                                            \
        name##SUFFIX(void *out, const void *a, const void *b, const void *c, const Params p, const void *d,            \
                     const void *e, const void *f BOXES) {                                                             \
        convolve_box<T, BN, STAGES>(out, c, p, e, f, GIVEN(T, (PIXELS_OF_BOX), (WEIGHTS_OF_BOX(BN))));                 \
    }
// Named for pixels by features. A multiprocessor has 227 KB of shared memory and 65536 registers for its blocks.
#define BOXES_OF_HALVES(SUFFIX, T)                                                                                     \
    BOX(convolve_box_128x256, SUFFIX, T, 256, 4, 1)                                                                    \
    BOX(convolve_box_128x128, SUFFIX, T, 128, 3, 2)                                                                    \
    BOX(convolve_deep_128x128, SUFFIX, T, 128, 6, 1)                                                                   \
    BOX(convolve_box_128x64, SUFFIX, T, 64, 3, 3)
BOXES_OF_HALVES(_f16, __half)
BOXES_OF_HALVES(_bf16, __nv_bfloat16)
BOX(convolve_box_128x128, _f32, float, 128, 6, 1)
BOX(convolve_box_128x64, _f32, float, 64, 4, 2)
