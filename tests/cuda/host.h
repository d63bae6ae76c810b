// The kernels of shaders/cuda on the host: what they need of CUDA, for a C++ compiler. Whoever calls a kernel says first which thread it is
// (mimic_thread); for a block that works together there is a thread of the host for each of the card's (mimic_block).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <pthread.h>

#define __global__
#define __device__
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct Dim {
    unsigned x;
};
static thread_local Dim blockIdx, threadIdx, blockDim;
static pthread_barrier_t block_barrier;
static unsigned block_threads = 0;

static inline void __syncthreads() {
    if (block_threads > 1) pthread_barrier_wait(&block_barrier);
}

// As a card's: counts arrivals, and whoever waits does so until a phase has ended.
struct Barrier {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    unsigned expected, pending, phase;
};
static inline void begin(Barrier *barrier, unsigned arrivals) {
    pthread_mutex_init(&barrier->lock, nullptr);
    pthread_cond_init(&barrier->ended, nullptr);
    barrier->expected = barrier->pending = arrivals;
    barrier->phase = 0;
}
static inline void begun() {}
static inline void arrive(Barrier *barrier) {
    pthread_mutex_lock(&barrier->lock);
    if (--barrier->pending == 0) {
        barrier->pending = barrier->expected;
        barrier->phase++;
        pthread_cond_broadcast(&barrier->ended);
    }
    pthread_mutex_unlock(&barrier->lock);
}
// What is fetched is there when it has been asked for.
static inline void expect(Barrier *, unsigned) {}
static inline void fetched(Barrier *barrier) { arrive(barrier); }
static inline void wait(Barrier *barrier, unsigned phase) {
    pthread_mutex_lock(&barrier->lock);
    while ((barrier->phase & 1) == phase) pthread_cond_wait(&barrier->ended, &barrier->lock);
    pthread_mutex_unlock(&barrier->lock);
}
// Of the threads that multiply, in a block where one warp does not.
static pthread_barrier_t multipliers_barrier;
static inline void sync_multipliers() { pthread_barrier_wait(&multipliers_barrier); }

// One thread at a time adds: kernels that use it do not work together.
static inline float atomicAdd(float *at, float v) {
    float before = *at;
    *at += v;
    return before;
}

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

static inline uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}

static inline float of_bits(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

// To the nearest, ties to even.
static inline __half __float2half_rn(float v) {
    uint32_t x = bits_of(v), sign = x >> 16 & 0x8000, size = x & 0x7fffffff;
    if (size > 0x7f800000) return {(uint16_t)(sign | 0x7e00)};
    if (size >= 0x477ff000) return {(uint16_t)(sign | 0x7c00)};
    if (size < 0x38800000) return {(uint16_t)(sign | (uint32_t)nearbyintf(of_bits(size) * 16777216.0f))};
    size += 0xfff + (size >> 13 & 1);
    return {(uint16_t)(sign | (size - 0x38000000) >> 13)};
}

static inline float __half2float(__half h) {
    uint32_t exponent = h.bits >> 10 & 31, fraction = h.bits & 1023;
    float size = exponent == 0    ? ldexpf((float)fraction, -24)
                 : exponent == 31 ? (fraction ? NAN : INFINITY)
                                  : ldexpf((float)(1024 + fraction), (int)exponent - 25);
    return h.bits & 0x8000 ? -size : size;
}

static inline __nv_bfloat16 __float2bfloat16_rn(float v) {
    uint32_t x = bits_of(v);
    if ((x & 0x7fffffff) > 0x7f800000) return {(uint16_t)(x >> 16 | 0x40)};
    return {(uint16_t)((x + 0x7fff + (x >> 16 & 1)) >> 16)};
}

static inline float __bfloat162float(__nv_bfloat16 v) { return of_bits((uint32_t)v.bits << 16); }

extern "C" void mimic_thread(unsigned block, unsigned thread, unsigned threads) {
    blockIdx.x = block;
    threadIdx.x = thread;
    blockDim.x = threads;
}

// From now on blocks of so many threads work together.
extern "C" void mimic_block(unsigned threads) {
    if (block_threads > 1) pthread_barrier_destroy(&block_barrier);
    block_threads = threads;
    if (threads > 1) pthread_barrier_init(&block_barrier, nullptr, threads);
    static unsigned multipliers = 0;
    if (multipliers > 0) pthread_barrier_destroy(&multipliers_barrier);
    multipliers = threads > 32 ? threads - 32 : 0;
    if (multipliers > 0) pthread_barrier_init(&multipliers_barrier, nullptr, multipliers);
}
