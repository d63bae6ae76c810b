// Mixes a face of the crop's size into the frame, by a mask.
//
// Twins: `Mask::at` in src/gpu/mask.rs, `paste_row` in src/gpu/reference.rs. Mirror of `Paste`:
// `Uniform` in src/gpu/paste_back.rs; of `Mask`: `Mask` in src/gpu/mask.rs.

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
    // Levels to add to red, green and blue; unused.
    offset: vec4<f32>,
    mask: Mask,
    // Pixels from one row of the frame to the next.
    stride: u32,
    pad_a: u32,
    pad_b: u32,
    pad_c: u32,
}

@group(0) @binding(0) var<uniform> paste: Paste;
@group(0) @binding(1) var<storage, read> warped: array<u32>;
@group(0) @binding(2) var<storage, read_write> frame: array<u32>;

fn smooth_step(value: f32) -> f32 {
    let t = clamp(value, 0.0, 1.0);
    return t * t * (3.0 - 2.0 * t);
}

fn soft_mask(at: vec2<f32>) -> f32 {
    let size = vec2<f32>(paste.crop.zw);
    let sides = paste.mask.sides;
    let ratio = paste.mask.soft.x;
    let feather = paste.mask.soft.y;
    let shorter = paste.mask.soft.z;
    let pull = select(sides.zw, sides.xy, at < size / 2.0);
    let from_middle = (at / size - 0.5) * pull;
    let q = from_middle * from_middle;
    // The fourth-power norm: a square with round corners.
    let distance = sqrt(sqrt(q.x * q.x + q.y * q.y));
    var mask = smooth_step((ratio - distance) * shorter / feather + 1.0);
    // The outermost pixel is the photo's own, wherever the photo goes on beyond it.
    mask *= 1.0 + sides.x * (smooth_step((at.x - 1.0) / feather) - 1.0);
    mask *= 1.0 + sides.y * (smooth_step((at.y - 1.0) / feather) - 1.0);
    mask *= 1.0 + sides.z * (smooth_step((size.x - at.x - 1.0) / feather) - 1.0);
    mask *= 1.0 + sides.w * (smooth_step((size.y - at.y - 1.0) / feather) - 1.0);
    return mask;
}

fn mask_at(pixel: vec2<u32>) -> f32 {
    if paste.mask.kind == 0u {
        return 1.0;
    }
    if paste.mask.kind == 1u {
        let d = vec2<i32>(pixel) - vec2(paste.mask.circle_x, paste.mask.circle_y);
        return select(0.0, 1.0, d.x * d.x + d.y * d.y <= paste.mask.radius * paste.mask.radius);
    }
    return soft_mask(vec2<f32>(pixel) + 0.5);
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
    let mask = floor(mask_at(id.xy) * 255.0 + 0.5) / 255.0;
    if mask <= 0.0 {
        return;
    }
    let face = levels(warped[id.y * paste.crop.z + id.x]) + paste.offset;
    let at = (paste.crop.y + id.y) * paste.stride + paste.crop.x + id.x;
    let base = levels(frame[at]);
    let bytes = vec4<u32>(round(clamp(base + (face - base) * mask, vec4(0.0), vec4(255.0))));
    frame[at] = bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (frame[at] & 0xff000000u);
}
