// What the kernels share that have the card's own copying engine fetch for them, for cards of compute capability 9.0: a box of a map's
// pixels, or of weights, at a time, 128 bytes of each. Where a box reaches over an edge, the engine writes zeros.
#pragma once

#include "tiles.cuh"

// Bytes of a pixel or a row of weights in a box.
#define WIDTH 128u

// Where a byte of a pixel lies in a box: units of 16 are exchanged among those of a pixel, so that those of eight pixels are in different
// banks.
__device__ inline u32 place_in_box(u32 pixel, u32 byte) { return pixel * WIDTH + (byte ^ (pixel & 7u) << 4); }

// A kernel that has boxes takes where they come from as the last of its arguments: its input and second input (picture, y, x, feature), and
// weights (phase and feature, tap in y, tap in x, feature of the inputs). On the host it finds that out by itself: GIVEN is told the sides of
// a box of the inputs and of one of weights, those that change quickest first.
#ifdef MIMIC_HOST
#define BOXES
#define GIVEN(T, INPUTS, WEIGHTS) boxes_of<T>(a, b, d, p, INPUTS, WEIGHTS)

struct Sides {
    u32 x, y, n;
};
// An array of four dimensions, the sides of its boxes, and what an element takes.
struct Array {
    const unsigned char *start;
    u32 depth, x, y, n;
    Sides box;
    u32 size;
};
struct Boxes {
    Array input, second, weights;
};
template <typename T>
static inline Boxes boxes_of(const void *a, const void *b, const void *d, const Params &p, Sides inputs, Sides weights) {
    auto array = [](const void *start, u32 depth, u32 x, u32 y, u32 n, Sides box) {
        return Array{(const unsigned char *)start, depth, x, y, n, box, (u32)sizeof(T)};
    };
    u32 rows = (p.flags & FLAG_FOLDED ? 4 : 1) * p.features, first = p.channels, second = p.second;
    Array input = array(a, first, p.w, p.h, p.batch, inputs), more = array(d, second, p.w, p.h, p.batch, inputs);
    if (sizeof(T) == 2) return {input, more, array(b, first + second, p.count, p.count, rows, weights)};
    // Of f32 they are two of f16.
    Array halves = array(b, 2 * ((first + 31) / 32 + (second + 31) / 32) * 32, p.count, p.count, rows, weights);
    halves.size = 2;
    return {input, more, halves};
}
static inline void fetch(unsigned char *to, const Array &from, int c, int x, int y, int n, Barrier *) {
    for (u32 row = 0; row < from.box.x * from.box.y * from.box.n; row++) {
        int ax = x + (int)(row % from.box.x), ay = y + (int)(row / from.box.x % from.box.y), an = n + (int)(row / from.box.x / from.box.y);
        bool there = ax >= 0 && ax < (int)from.x && ay >= 0 && ay < (int)from.y && an < (int)from.n;
        for (u32 i = 0; i < WIDTH / from.size; i++) {
            unsigned char *element = to + place_in_box(row, i * from.size);
            size_t at = ((((size_t)an * from.y + ay) * from.x + ax) * from.depth + c + i) * from.size;
            if (there && c + i < from.depth) memcpy(element, from.start + at, from.size);
            else memset(element, 0, from.size);
        }
    }
}
#else
#include <cuda.h>
#define BOXES , const __grid_constant__ Boxes boxes
#define GIVEN(...) boxes

struct Boxes {
    CUtensorMap input, second, weights;
};

typedef unsigned long long u64;

// Counts arrivals and bytes; whoever waits does so until a phase has ended.
struct Barrier {
    u64 state;
};
__device__ inline u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }
__device__ inline void begin(Barrier *barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void begun() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Arrives, and so many bytes are still to come.
__device__ inline void expect(Barrier *barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ inline void fetched(Barrier *) {}
__device__ inline void arrive(Barrier *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void wait(Barrier *barrier, u32 phase) {
    u32 at = shared_address(barrier), done = 0;
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(at), "r"(phase)
                     : "memory");
}

// Fetches the box of an array that begins there; its bytes arrive at the barrier.
__device__ inline void fetch(unsigned char *to, const CUtensorMap &from, int c, int x, int y, int n, Barrier *barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&from), "r"(shared_address(barrier)), "r"(c), "r"(x), "r"(y), "r"(n)
        : "memory");
}
#endif
