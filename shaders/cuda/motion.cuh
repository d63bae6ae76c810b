// The motion around a pair of keypoints.
//
// A pair is 12 numbers: the source's place and jacobian by rows, then the driver's; without FLAG_LINEAR the jacobians are not read.
#pragma once

#include "common.cuh"

// Where the motion around one pair of keypoints takes (x, y): paper, equation 4.
struct Motion {
    float sx, sy, dx, dy, a, b, c, d;
};

__device__ inline Motion motion_of(const float *pair, u32 flags) {
    Motion m = {pair[0], pair[1], pair[6], pair[7], 1.0f, 0.0f, 0.0f, 1.0f};
    if (flags & FLAG_LINEAR) {
        const float *s = pair + 2, *d = pair + 8;
        // As ops::matrix::inverse_2x2: a singular matrix gets a large inverse, no infinite one.
        float determinant = d[0] * d[3] - d[1] * d[2];
        float size = fabsf(determinant);
        size = size > 1e-8f ? size : 1e-8f;
        if (!(determinant >= 0.0f)) size = -size;
        float ia = d[3] / size, ib = -d[1] / size, ic = -d[2] / size, id = d[0] / size;
        m.a = s[0] * ia + s[1] * ic;
        m.b = s[0] * ib + s[1] * id;
        m.c = s[2] * ia + s[3] * ic;
        m.d = s[2] * ib + s[3] * id;
    }
    return m;
}

__device__ inline void moved(const Motion &m, float &x, float &y) {
    float ax = x - m.dx, ay = y - m.dy;
    x = m.a * ax + m.b * ay + m.sx;
    y = m.c * ax + m.d * ay + m.sy;
}

__device__ inline float gaussian(float x, float y, float kx, float ky, float variance) {
    float ax = x - kx, ay = y - ky;
    return expf(-0.5f / variance * (ax * ax + ay * ay));
}
