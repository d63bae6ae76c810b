// A camera's frame, YUYV or NV12, to RGBA: one invocation for two pixels of a row, which share their chroma.
//
// Twin: `to_rgba` in src/media/pixels.rs. Mirror of `Frame`: `Uniform` in src/gpu/yuv.rs.

struct Frame {
    // In pixels.
    width: u32,
    height: u32,
    // Bytes from row to row, in both planes.
    stride: u32,
    // 0: Y U Y V; 1: a plane of Y, then one of U V at half the size.
    planar: u32,
    // What is taken off Y, and what the rest is multiplied by.
    black: f32,
    luma: f32,
    // What U and V, less 128, add.
    red_v: f32,
    green_u: f32,
    green_v: f32,
    blue_u: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> frame: Frame;
@group(0) @binding(1) var<storage, read> bytes: array<u32>;
@group(0) @binding(2) var<storage, read_write> picture: array<u32>;

fn byte(at: u32) -> f32 {
    return f32((bytes[at >> 2u] >> ((at & 3u) * 8u)) & 255u);
}

fn store(x: u32, y: u32, level: f32, chroma: vec3<f32>) {
    if x >= frame.width {
        return;
    }
    let rgb = vec3<u32>(round(clamp(vec3((level - frame.black) * frame.luma) + chroma, vec3(0.0), vec3(255.0))));
    picture[y * frame.width + x] = rgb.x | (rgb.y << 8u) | (rgb.z << 16u) | (255u << 24u);
}

@compute @workgroup_size(16, 16)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let x = id.x * 2u;
    let y = id.y;
    if x >= frame.width || y >= frame.height {
        return;
    }
    var first = y * frame.stride + x * 2u;
    var second = first + 2u;
    var u = first + 1u;
    var v = first + 3u;
    if frame.planar != 0u {
        first = y * frame.stride + x;
        second = first + 1u;
        u = (frame.height + y / 2u) * frame.stride + x;
        v = u + 1u;
    }
    let cu = byte(u) - 128.0;
    let cv = byte(v) - 128.0;
    let chroma = vec3(frame.red_v * cv, frame.green_u * cu + frame.green_v * cv, frame.blue_u * cu);
    store(x, y, byte(first), chroma);
    store(x + 1u, y, byte(second), chroma);
}
