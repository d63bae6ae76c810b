// What happens to a prediction at the model's own size, before it is enlarged: see src/gpu/prepare.rs, which says why and is the
// twin. Five passes, each over what the one before it has written; `rim` beside them.
//
//   displace (map) -> compare (cells) -> judge (cells) -> gains (map) -> main (picture)
//
// Mirror of `Prepare`: `Uniform` in src/gpu/prepare_pass.rs.

struct Prepare {
    // Sides of the prediction and of its maps.
    size: u32,
    map_size: u32,
    // Cells of CELL pixels along a side of the prediction.
    cells: u32,
    // How often the picture is halved.
    halvings: u32,
    // Side of the photo's crop as the networks saw it.
    low_size: u32,
    // Places on the mask's soft edge; none: colours are left as they are.
    rims: u32,
    // How much of the photo's detail is taken, 0..1.
    detail: f32,
    // How much of the colours' difference is evened out, 0..1.
    matched: f32,
    // Where in its buffer the prediction begins.
    start: u32,
}

@group(0) @binding(0) var<uniform> prepare: Prepare;
// The prediction as it comes from the networks: its pixels, then x and y of the deformation for each cell of the map, then the
// occlusion map; numbers as their bits.
@group(0) @binding(1) var<storage, read> prediction: array<u32>;
@group(0) @binding(2) var<storage, read> low: array<u32>;
// x, y in sides of the crop, weight; unused.
@group(0) @binding(3) var<storage, read> rims: array<vec4<f32>>;
// Two of each cell. First: the mean of source less prediction, and what `judge` says of it. Second: the energies of the fine
// bands of that difference and of the source.
@group(0) @binding(4) var<storage, read_write> cells: array<vec4<f32>>;
// Per cell of the map: distance of the source in sides of the crop; whether that is in the crop; the gain.
@group(0) @binding(5) var<storage, read_write> field: array<vec4<f32>>;
// Red, green, blue in levels, and the gain.
@group(0) @binding(6) var<storage, read_write> picture: array<vec4<f32>>;
// Levels to add to red, green and blue.
@group(0) @binding(7) var<storage, read_write> offset: array<vec4<f32>>;

const CELL = 4u;
const FINE = vec2(1.0, 1.8);
const COARSE = vec2(10.0, 40.0);
const NOISE = 24.0;
const RIM_SHADE = 40.0;
const RIM_LIMIT = 24.0;

// Where a position lies between two pixels along each side: the first, the second, the second's weight.
struct Tap {
    low: vec2<u32>,
    high: vec2<u32>,
    weight: vec2<f32>,
}

fn tap(position: vec2<f32>, side: u32) -> Tap {
    let last = vec2(side - 1u);
    let inside = clamp(position, vec2(0.0), vec2<f32>(last));
    let first = min(vec2<u32>(inside), last);
    return Tap(first, min(first + vec2(1u), last), inside - vec2<f32>(first));
}

fn between(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, weight: vec2<f32>) -> vec4<f32> {
    return mix(mix(a, b, weight.x), mix(c, d, weight.x), weight.y);
}

fn levels(pixel: u32) -> vec4<f32> {
    return vec4<f32>(f32(pixel & 255u), f32((pixel >> 8u) & 255u), f32((pixel >> 16u) & 255u), 0.0);
}

fn low_at(position: vec2<f32>) -> vec4<f32> {
    let side = prepare.low_size;
    let t = tap(position, side);
    return between(
        levels(low[t.low.y * side + t.low.x]), levels(low[t.low.y * side + t.high.x]),
        levels(low[t.high.y * side + t.low.x]), levels(low[t.high.y * side + t.high.x]), t.weight,
    );
}

fn prediction_pixel(pixel: vec2<u32>) -> vec4<f32> {
    return levels(prediction[prepare.start + pixel.y * prepare.size + pixel.x]);
}

fn prediction_at(position: vec2<f32>) -> vec4<f32> {
    let t = tap(position, prepare.size);
    return between(
        prediction_pixel(t.low), prediction_pixel(vec2(t.high.x, t.low.y)),
        prediction_pixel(vec2(t.low.x, t.high.y)), prediction_pixel(t.high), t.weight,
    );
}

// The field at a pixel of the prediction.
fn field_at(pixel: vec2<u32>) -> vec4<f32> {
    let side = prepare.map_size;
    let t = tap((vec2<f32>(pixel) + 0.5) * f32(side) / f32(prepare.size) - 0.5, side);
    return between(
        field[t.low.y * side + t.low.x], field[t.low.y * side + t.high.x],
        field[t.high.y * side + t.low.x], field[t.high.y * side + t.high.x], t.weight,
    );
}

// The first of each cell's two, at a pixel of the prediction.
fn coarse_at(pixel: vec2<u32>) -> vec4<f32> {
    let side = prepare.cells;
    let t = tap((vec2<f32>(pixel) + 0.5) / f32(CELL) - 0.5, side);
    return between(
        cells[2u * (t.low.y * side + t.low.x)], cells[2u * (t.low.y * side + t.high.x)],
        cells[2u * (t.high.y * side + t.low.x)], cells[2u * (t.high.y * side + t.high.x)], t.weight,
    );
}

// By a 3x3 binomial filter over the cells, the border going on beyond itself: the first of each cell's two, or the second.
fn smoothed(cell: vec2<u32>, which: u32) -> vec4<f32> {
    var sum = vec4(0.0);
    let last = i32(prepare.cells) - 1;
    for (var dy = -1; dy <= 1; dy++) {
        for (var dx = -1; dx <= 1; dx++) {
            let at = vec2<u32>(clamp(vec2<i32>(cell) + vec2(dx, dy), vec2(0), vec2(last)));
            let weight = f32((2 - abs(dx)) * (2 - abs(dy))) / 16.0;
            sum += weight * cells[2u * (at.y * prepare.cells + at.x) + which];
        }
    }
    return sum;
}

// 1 up to the first number, 0 from the second.
fn falling(range: vec2<f32>, value: f32) -> f32 {
    let t = clamp((value - range.x) / (range.y - range.x), 0.0, 1.0);
    return 1.0 - t * t * (3.0 - 2.0 * t);
}

fn finite(bits: u32) -> bool {
    return (bits & 0x7f800000u) != 0x7f800000u;
}

@compute @workgroup_size(16, 16)
fn displace(@builtin(global_invocation_id) id: vec3<u32>) {
    let side = prepare.map_size;
    if any(id.xy >= vec2(side)) {
        return;
    }
    let cell = id.y * side + id.x;
    let start = prepare.start + prepare.size * prepare.size + 2u * cell;
    let bits = vec2(prediction[start], prediction[start + 1u]);
    if !(finite(bits.x) && finite(bits.y)) {
        field[cell] = vec4(0.0);
        return;
    }
    let source = ((bitcast<vec2<f32>>(bits) + 1.0) / 2.0 * (f32(side) - 1.0) + 0.5) / f32(side);
    // How far out of the crop, in cells.
    let out = abs(source - clamp(source, vec2(0.0), vec2(1.0))) * f32(side);
    let here = (vec2<f32>(id.xy) + 0.5) / f32(side);
    let distance = clamp(source, vec2(-1.0), vec2(2.0)) - here;
    field[cell] = vec4(distance, 1.0 - min(max(out.x, out.y), 1.0), 0.0);
}

@compute @workgroup_size(16, 16)
fn compare(@builtin(global_invocation_id) id: vec3<u32>) {
    if any(id.xy >= vec2(prepare.cells)) {
        return;
    }
    let end = min((id.xy + 1u) * CELL, vec2(prepare.size));
    var count = 0.0;
    var q_sum = vec4(0.0);
    var q_squares = vec4(0.0);
    var s_sum = vec4(0.0);
    var s_squares = vec4(0.0);
    for (var y = id.y * CELL; y < end.y; y++) {
        for (var x = id.x * CELL; x < end.x; x++) {
            let pixel = vec2(x, y);
            let here = (vec2<f32>(pixel) + 0.5) / f32(prepare.size);
            let s = low_at((here + field_at(pixel).xy) * f32(prepare.low_size) - 0.5);
            let q = s - prediction_pixel(pixel);
            count += 1.0;
            q_sum += q;
            q_squares += q * q;
            s_sum += s;
            s_squares += s * s;
        }
    }
    let q_mean = q_sum / count;
    let s_mean = s_sum / count;
    let q_energy = q_squares / count - q_mean * q_mean;
    let s_energy = s_squares / count - s_mean * s_mean;
    // Rounding can make nothing a little less than nothing.
    let energies = max(
        vec2(q_energy.r + q_energy.g + q_energy.b, s_energy.r + s_energy.g + s_energy.b) / 3.0, vec2(0.0),
    );
    let cell = 2u * (id.y * prepare.cells + id.x);
    cells[cell] = q_mean;
    cells[cell + 1u] = vec4(energies, 0.0, 0.0);
}

@compute @workgroup_size(16, 16)
fn judge(@builtin(global_invocation_id) id: vec3<u32>) {
    if any(id.xy >= vec2(prepare.cells)) {
        return;
    }
    let cell = 2u * (id.y * prepare.cells + id.x);
    let energies = smoothed(id.xy, 1u);
    let mean = abs(cells[cell].rgb);
    let coarse = max(max(mean.r, mean.g), mean.b);
    cells[cell].w = falling(FINE, energies.x / (energies.y + NOISE)) * falling(COARSE, coarse);
}

@compute @workgroup_size(16, 16)
fn gains(@builtin(global_invocation_id) id: vec3<u32>) {
    let side = prepare.map_size;
    if any(id.xy >= vec2(side)) {
        return;
    }
    let cell = id.y * side + id.x;
    let t = tap((vec2<f32>(id.xy) + 0.5) * f32(prepare.cells) / f32(side) - 0.5, prepare.cells);
    let gate = between(
        smoothed(t.low, 0u), smoothed(vec2(t.high.x, t.low.y), 0u),
        smoothed(vec2(t.low.x, t.high.y), 0u), smoothed(t.high, 0u), t.weight,
    ).w;
    let maps = prepare.start + prepare.size * prepare.size;
    let bits = prediction[maps + 2u * side * side + cell];
    let occlusion = select(0.0, clamp(bitcast<f32>(bits), 0.0, 1.0), finite(bits));
    field[cell].w = field[cell].z * gate * occlusion * prepare.detail;
}

// A pixel of the picture: of the prediction's, as many as it stands for.
@compute @workgroup_size(16, 16)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let side = prepare.size >> prepare.halvings;
    if any(id.xy >= vec2(side)) {
        return;
    }
    let many = 1u << prepare.halvings;
    var sum = vec4(0.0);
    for (var y = id.y * many; y < (id.y + 1u) * many; y++) {
        for (var x = id.x * many; x < (id.x + 1u) * many; x++) {
            let pixel = vec2(x, y);
            let p = prediction_pixel(pixel).rgb;
            if prepare.detail > 0.0 {
                let gain = field_at(pixel).w;
                sum += vec4(p - gain * (p + coarse_at(pixel).rgb), gain);
            } else {
                sum += vec4(p, 0.0);
            }
        }
    }
    picture[id.y * side + id.x] = sum / f32(many * many);
}

const RIM_THREADS = 256u;
// Of each thread: weighted differences of red, green and blue, and the weight of those that were taken; the weight of all.
var<workgroup> taken: array<vec4<f32>, RIM_THREADS>;
var<workgroup> all_of: array<f32, RIM_THREADS>;

// The mean of photo less prediction along the rim, by one workgroup.
@compute @workgroup_size(256)
fn rim(@builtin(local_invocation_index) thread: u32) {
    var sum = vec4(0.0);
    var weights = 0.0;
    for (var i = thread; i < prepare.rims; i += RIM_THREADS) {
        let place = rims[i];
        let s = low_at(place.xy * f32(prepare.low_size) - 0.5);
        let d = s - prediction_at(place.xy * f32(prepare.size) - 0.5);
        weights += place.z;
        if all(abs(d) <= vec4(RIM_SHADE)) {
            sum += place.z * vec4(d.rgb, 1.0);
        }
    }
    taken[thread] = sum;
    all_of[thread] = weights;
    workgroupBarrier();
    for (var reach = RIM_THREADS / 2u; reach > 0u; reach /= 2u) {
        if thread < reach {
            taken[thread] += taken[thread + reach];
            all_of[thread] += all_of[thread + reach];
        }
        workgroupBarrier();
    }
    if thread == 0u {
        var added = vec3(0.0);
        // Otherwise too little in common to say anything.
        if taken[0].w > 0.2 * all_of[0] {
            let mean = taken[0].rgb / taken[0].w;
            added = clamp(mean, vec3(-RIM_LIMIT), vec3(RIM_LIMIT)) * prepare.matched;
        }
        offset[0] = vec4(added, 0.0);
    }
}
