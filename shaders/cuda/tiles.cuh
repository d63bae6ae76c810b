// What the convolutions by tensor cores share: their instructions, which pixels a row of the product is, and what follows a sum.
#pragma once

#include "common.cuh"

#ifdef MIMIC_HOST
#define UNROLL
#else
#define UNROLL _Pragma("unroll")
__device__ inline void load_matrices(u32 (&to)[4], const unsigned char *from) {
    u32 at = (u32)__cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

// sums (16, 8) += rows (16, 32 bytes) x columns (8, 32 bytes).
__device__ inline void multiply(float (&sums)[4], const u32 (&rows)[4], u32 low, u32 high, __half) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(low), "r"(high));
}
__device__ inline void multiply(float (&sums)[4], const u32 (&rows)[4], u32 low, u32 high, __nv_bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(low), "r"(high));
}
#endif

// Of a place that is none of the result's.
#define NOWHERE 0xffffffffu

// Rows of the product: the pixels of all pictures, by fours where their mean is taken.
__device__ inline u32 rows_of(const Params &p) {
    return p.flags & FLAG_POOLED ? p.outputs * (p.ho / 2) * (p.wo / 2) * 4 : p.outputs * p.ho * p.wo;
}

// The pixel of a row.
__device__ inline void pixel_of(u32 row, const Params &p, u32 &picture, u32 &y, u32 &x) {
    u32 wide = p.flags & FLAG_POOLED ? p.wo / 2 : p.wo, high = p.flags & FLAG_POOLED ? p.ho / 2 : p.ho;
    u32 corner = row & 3u, cell = p.flags & FLAG_POOLED ? row >> 2 : row;
    x = cell % wide;
    y = cell / wide % high;
    picture = cell / wide / high;
    if (p.flags & FLAG_POOLED) {
        x = 2 * x + (corner & 1u);
        y = 2 * y + (corner >> 1);
    }
}

// Folded weights are those of the odd rows and columns first.
__device__ inline u32 row_of_phase(u32 phase) { return 1u - (phase >> 1); }
__device__ inline u32 column_of_phase(u32 phase) { return 1u - (phase & 1u); }

// What follows a sum with its bias: 8 features of a place of the result.
template <typename T>
__device__ inline void store(void *out, float (&values)[8], u32 place, u32 feature, const Params &p, const T *summand,
                             const float *norm) {
    size_t at = (size_t)place * p.features + feature;
    if (summand) {
        float more[8];
        load8(summand + at, more);
        UNROLL
        for (u32 n = 0; n < 8; n++) values[n] += more[n];
    }
    if (p.flags & FLAG_WIDE) {
        store8((float *)out + at, values);
        return;
    }
    store8((T *)out + at, values);
    if (norm) {
        size_t all = (size_t)p.outputs * p.ho * p.wo * p.features;
        float scale[8], shift[8];
        load8(norm + feature, scale);
        load8(norm + p.features + feature, shift);
        UNROLL
        for (u32 n = 0; n < 8; n++) {
            float v = values[n] * scale[n] + shift[n];
            values[n] = v > 0.0f ? v : 0.0f;
        }
        store8((T *)out + all + at, values);
    }
}

// Where in the enlarged result a pixel of a folded convolution's map is.
__device__ inline u32 enlarged_at(u32 picture, u32 y, u32 x, u32 phase, const Params &p) {
    return (picture * 2 * p.ho + 2 * y + row_of_phase(phase)) * 2 * p.wo + 2 * x + column_of_phase(phase);
}

// Where a pixel of a block is.
struct Place {
    u32 local; // among those of the block, or NOWHERE
    u32 row;   // of the product
    u32 stored; // of the result, as which its mean is stored if one is taken
};

// Of a pixel that has been computed.
__device__ inline Place place_at(u32 local, u32 picture, u32 y, u32 x, u32 phase, const Params &p) {
    bool pooled = p.flags & FLAG_POOLED;
    u32 high = pooled ? p.ho & ~1u : p.ho, wide = pooled ? p.wo & ~1u : p.wo;
    if (picture >= p.outputs || y >= high || x >= wide) return {NOWHERE, 0, 0};
    u32 row = (picture * high + y) * wide + x;
    if (p.flags & FLAG_FOLDED) return {local, row, enlarged_at(picture, y, x, phase, p)};
    if (!pooled) return {local, row, row};
    u32 cell = (picture * (high / 2) + y / 2) * (wide / 2) + x / 2;
    return {local, cell * 4 + (y & 1u) * 2 + (x & 1u), cell};
}

// Of a row.
__device__ inline u32 stored_at(u32 row, u32 phase, const Params &p) {
    if (p.flags & FLAG_POOLED) return row >> 2;
    if (!(p.flags & FLAG_FOLDED)) return row;
    u32 picture, y, x;
    pixel_of(row, p, picture, y, x);
    return enlarged_at(picture, y, x, phase, p);
}

// Stores what a block has summed: PASS features from `feature0` on of BM pixels, which lie in `room` (pixel, PITCH); with parts > 1
// the sums as they are, in f32 (part, phase, row, feature). `at` is asked for a pixel's place; the four of a mean follow each other, and
// in the room the second two are `below` after the first.
template <typename T, u32 BM, u32 PASS, u32 PITCH, u32 STORERS, typename At>
__device__ inline void store_pass(void *out, const float *room, u32 t, u32 feature0, u32 part, u32 phase, const Params &p,
                                  const float *bias, const T *summand, const float *norm, u32 below, At at) {
    u32 corners = p.parts == 1 && (p.flags & FLAG_POOLED) ? 4 : 1, phases = p.flags & FLAG_FOLDED ? 4 : 1;
    for (u32 i = t; i < BM / corners * (PASS / 8); i += STORERS) {
        u32 column = i % (PASS / 8) * 8, feature = feature0 + column;
        Place place = at(i / (PASS / 8) * corners);
        if (place.local == NOWHERE || feature >= p.features) continue;
        float values[8];
        load8(room + place.local * PITCH + column, values);
        if (p.parts > 1) {
            store8((float *)out + ((size_t)(part * phases + phase) * rows_of(p) + place.row) * p.features + feature, values);
            continue;
        }
        float added[8];
        load8(bias + feature, added);
        UNROLL
        for (u32 n = 0; n < 8; n++) values[n] = relu_if(values[n] + added[n], p.flags);
        for (u32 corner = 1; corner < corners; corner++) {
            float more[8];
            load8(room + (place.local + (corner & 1u) + (corner >> 1) * below) * PITCH + column, more);
            UNROLL
            for (u32 n = 0; n < 8; n++) values[n] += relu_if(more[n] + added[n], p.flags);
        }
        if (corners == 4)
            for (u32 n = 0; n < 8; n++) values[n] *= 0.25f;
        store<T>(out, values, place.stored, feature, p, summand, norm);
    }
}
