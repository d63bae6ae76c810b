// Mixes a face of the crop's size into the frame, by a mask.
//
// Twins: `Mask::at` in src/gpu/mask.rs, `Share::kept` in src/gpu/neighbours.rs, `paste_row` in
// src/gpu/reference.rs. Mirror of `Paste`: `Uniform` in src/gpu/paste_back.rs; of `Mask`: `Mask` in
// src/gpu/mask.rs; of `Neighbour`: `Neighbour` in src/gpu/neighbours.rs.

struct Mask {
    // 0: the rectangle, 1: the hard circle, 2: the soft rounded square.
    kind: u32,
    // Hard circle: middle in pixels of the crop, radius.
    circle_x: i32,
    circle_y: i32,
    radius: i32,
    // Soft: left, top, right, bottom: how much the distance from the middle counts there.
    sides: vec4<f32>,
    // Soft: ratio, width of the soft edge in pixels, the crop's shorter side, unused.
    soft: vec4<f32>,
}

struct Paste {
    // Crop in the photo: x, y, width, height in pixels.
    crop: vec4<u32>,
    mask: Mask,
    // Pixels from one row of the frame to the next.
    stride: u32,
    // How many faces this one gives way to.
    neighbours: u32,
    pad_a: u32,
    pad_b: u32,
}

// A face pasted before, whose crop overlaps.
struct Neighbour {
    mask: Mask,
    // Its crop's left and top from this one's, its width and height in pixels.
    place: vec4<i32>,
    // Half the seam's width; unused.
    seam: vec4<f32>,
}

@group(0) @binding(0) var<uniform> paste: Paste;
@group(0) @binding(1) var<storage, read> warped: array<u32>;
@group(0) @binding(2) var<storage, read_write> frame: array<u32>;
@group(0) @binding(3) var<storage, read> neighbours: array<Neighbour>;
// Levels to add to red, green and blue: see prepare.wgsl.
@group(0) @binding(4) var<storage, read> offset: array<vec4<f32>>;

fn smooth_step(value: f32) -> f32 {
    let t = clamp(value, 0.0, 1.0);
    return t * t * (3.0 - 2.0 * t);
}

fn soft_mask(mask: Mask, size: vec2<f32>, at: vec2<f32>) -> f32 {
    let sides = mask.sides;
    let ratio = mask.soft.x;
    let feather = mask.soft.y;
    let shorter = mask.soft.z;
    let pull = select(sides.zw, sides.xy, at < size / 2.0);
    let from_middle = (at / size - 0.5) * pull;
    let q = from_middle * from_middle;
    // The fourth-power norm: a square with round corners.
    let distance = sqrt(sqrt(q.x * q.x + q.y * q.y));
    var value = smooth_step((ratio - distance) * shorter / feather + 1.0);
    // The outermost pixel is the photo's own, wherever the photo goes on beyond it.
    value *= 1.0 + sides.x * (smooth_step((at.x - 1.0) / feather) - 1.0);
    value *= 1.0 + sides.y * (smooth_step((at.y - 1.0) / feather) - 1.0);
    value *= 1.0 + sides.z * (smooth_step((size.x - at.x - 1.0) / feather) - 1.0);
    value *= 1.0 + sides.w * (smooth_step((size.y - at.y - 1.0) / feather) - 1.0);
    return value;
}

fn mask_at(mask: Mask, size: vec2<f32>, pixel: vec2<i32>) -> f32 {
    if mask.kind == 0u {
        return 1.0;
    }
    if mask.kind == 1u {
        let d = pixel - vec2(mask.circle_x, mask.circle_y);
        return select(0.0, 1.0, d.x * d.x + d.y * d.y <= mask.radius * mask.radius);
    }
    return soft_mask(mask, size, vec2<f32>(pixel) + 0.5);
}

// From a pixel's centre to the crop's, over the crop's shorter side.
fn distance_in(size: vec2<f32>, pixel: vec2<i32>) -> f32 {
    return length(vec2<f32>(pixel) + 0.5 - size / 2.0) / min(size.x, size.y);
}

// How much of what the mask gives a pixel is left by the faces pasted before.
fn kept(pixel: vec2<i32>) -> f32 {
    var left = 1.0;
    for (var i = 0u; i < paste.neighbours; i++) {
        let neighbour = neighbours[i];
        let there = pixel - neighbour.place.xy;
        if all(there >= vec2(0)) && all(there < neighbour.place.zw) {
            let size = vec2<f32>(neighbour.place.zw);
            let difference = distance_in(vec2<f32>(paste.crop.zw), pixel) - distance_in(size, there);
            let nearer = smooth_step(0.5 + difference / (2.0 * neighbour.seam.x));
            left *= 1.0 - mask_at(neighbour.mask, size, there) * nearer;
        }
    }
    return left;
}

fn levels(pixel: u32) -> vec4<f32> {
    return vec4<f32>(
        f32(pixel & 255u), f32((pixel >> 8u) & 255u), f32((pixel >> 16u) & 255u), f32(pixel >> 24u),
    );
}

@compute @workgroup_size(16, 16)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if any(id.xy >= paste.crop.zw) {
        return;
    }
    // In steps of a byte, as the twin keeps its masks.
    let pixel = vec2<i32>(id.xy);
    let value = mask_at(paste.mask, vec2<f32>(paste.crop.zw), pixel) * kept(pixel);
    let mask = floor(value * 255.0 + 0.5) / 255.0;
    if mask <= 0.0 {
        return;
    }
    let face = levels(warped[id.y * paste.crop.z + id.x]) + offset[0];
    let at = (paste.crop.y + id.y) * paste.stride + paste.crop.x + id.x;
    let base = levels(frame[at]);
    let bytes = vec4<u32>(round(clamp(base + (face - base) * mask, vec4(0.0), vec4(255.0))));
    frame[at] = bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (frame[at] & 0xff000000u);
}
