// Half a picture: a level of its mip map from the one before. Of an odd size the last row or
// column is left out.

@group(0) @binding(0) var large: texture_2d<f32>;
@group(0) @binding(1) var small: texture_storage_2d<rgba8unorm, write>;
// The part of `small` that is renewed: x, y, width, height.
@group(0) @binding(2) var<uniform> part: vec4<u32>;

@compute @workgroup_size(16, 16)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if any(id.xy >= part.zw) {
        return;
    }
    let to = part.xy + id.xy;
    // A side of one pixel has no second.
    let last = textureDimensions(large) - 1u;
    let a = min(2u * to, last);
    let b = min(2u * to + 1u, last);
    let mean = 0.25 * (textureLoad(large, a, 0) + textureLoad(large, vec2(b.x, a.y), 0)
        + textureLoad(large, vec2(a.x, b.y), 0) + textureLoad(large, b, 0));
    textureStore(small, to, mean);
}
