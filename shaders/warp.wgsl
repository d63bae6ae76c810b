// The face at the crop's own resolution: what the prediction gives of it, enlarged, plus the photo
// moved by the deformation, as far as the gain says.
//
// Twin: `Twin::paint` in src/gpu/reference.rs. Mirror of `Warp`: `Uniform` in src/gpu/warp.rs.

struct Warp {
    // Crop in the photo: x, y, width, height in pixels.
    crop: vec4<u32>,
    // Pixels from one row of the photo to the next.
    stride: u32,
    // Sides of the picture and of the field.
    size: u32,
    map_size: u32,
    // 0: enlarge only.
    detailed: u32,
}

@group(0) @binding(0) var<uniform> warp: Warp;
@group(0) @binding(1) var<storage, read> photo: array<u32>;
// Red, green, blue in levels, and the gain: see prepare.wgsl.
@group(0) @binding(2) var<storage, read> picture: array<vec4<f32>>;
// Per cell: distance of the source in sides of the crop; unused.
@group(0) @binding(3) var<storage, read> field: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> warped: array<u32>;

// Where a position lies between two pixels: the first, the second, the second's weight.
struct Tap {
    low: vec2<u32>,
    high: vec2<u32>,
    weight: vec2<f32>,
}

fn tap(position: vec2<f32>, size: vec2<u32>) -> Tap {
    let last = size - vec2(1u);
    let inside = clamp(position, vec2(0.0), vec2<f32>(last));
    let first = min(vec2<u32>(inside), last);
    return Tap(first, min(first + vec2(1u), last), inside - vec2<f32>(first));
}

fn between(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, weight: vec2<f32>) -> vec4<f32> {
    let top = a + (b - a) * weight.x;
    let bottom = c + (d - c) * weight.x;
    return top + (bottom - top) * weight.y;
}

fn levels(pixel: u32) -> vec4<f32> {
    return vec4<f32>(
        f32(pixel & 255u), f32((pixel >> 8u) & 255u), f32((pixel >> 16u) & 255u), f32(pixel >> 24u),
    );
}

fn pack(levels: vec4<f32>) -> u32 {
    let bytes = vec4<u32>(round(clamp(levels, vec4(0.0), vec4(255.0))));
    return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}

fn picture_at(position: vec2<f32>) -> vec4<f32> {
    let t = tap(position, vec2(warp.size));
    let top = t.low.y * warp.size;
    let bottom = t.high.y * warp.size;
    return between(
        picture[top + t.low.x], picture[top + t.high.x],
        picture[bottom + t.low.x], picture[bottom + t.high.x], t.weight,
    );
}

fn field_at(position: vec2<f32>) -> vec2<f32> {
    let t = tap(position, vec2(warp.map_size));
    let row = t.low.y * warp.map_size;
    let next = t.high.y * warp.map_size;
    return between(
        field[row + t.low.x], field[row + t.high.x],
        field[next + t.low.x], field[next + t.high.x], t.weight,
    ).xy;
}

fn photo_at(position: vec2<f32>) -> vec4<f32> {
    let t = tap(position, warp.crop.zw);
    let top = (warp.crop.y + t.low.y) * warp.stride + warp.crop.x;
    let bottom = (warp.crop.y + t.high.y) * warp.stride + warp.crop.x;
    return between(
        levels(photo[top + t.low.x]), levels(photo[top + t.high.x]),
        levels(photo[bottom + t.low.x]), levels(photo[bottom + t.high.x]), t.weight,
    );
}

@compute @workgroup_size(16, 16)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let size = vec2<f32>(warp.crop.zw);
    if any(id.xy >= warp.crop.zw) {
        return;
    }
    let here = vec2<f32>(id.xy) + 0.5;
    var face = picture_at(here * f32(warp.size) / size - 0.5);
    if warp.detailed != 0u && face.w > 0.0 {
        let distance = field_at(here * f32(warp.map_size) / size - 0.5);
        face += face.w * photo_at(vec2<f32>(id.xy) + distance * size);
    }
    warped[id.y * warp.crop.z + id.x] = pack(face);
}
