//! The pipeline of `shaders/paste_back.wgsl`: one face into the frame, by its mask.

use bytemuck::{Pod, Zeroable};

use super::context::Context;
use super::mask::Mask;

const SHADER: &str = include_str!("../../shaders/paste_back.wgsl");

/// Mirror of `struct Paste`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Uniform {
    pub(super) crop: [u32; 4],
    pub(super) mask: Mask,
    pub(super) stride: u32,
    pub(super) neighbours: u32,
    pub(super) pad: [u32; 2],
}

/// The buffers of the bindings 0 to 4, in order.
#[derive(Debug)]
pub(super) struct Bindings<'a> {
    pub(super) uniform: &'a wgpu::Buffer,
    pub(super) warped: &'a wgpu::Buffer,
    pub(super) frame: &'a wgpu::Buffer,
    pub(super) neighbours: &'a wgpu::Buffer,
    pub(super) offset: &'a wgpu::Buffer,
}

#[derive(Debug)]
pub(super) struct PasteBack {
    pub(super) pipeline: wgpu::ComputePipeline,
}

impl PasteBack {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            pipeline: context.pipeline("paste_back", SHADER),
        }
    }

    pub(super) fn bind(&self, context: &Context, with: &Bindings<'_>) -> wgpu::BindGroup {
        let &Bindings {
            uniform,
            warped,
            frame,
            neighbours,
            offset,
        } = with;
        let buffers = [uniform, warped, frame, neighbours, offset];
        context.bind("paste_back", &self.pipeline, &buffers)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::super::layout::check;
    use super::super::neighbours::Neighbour;
    use super::*;

    #[test]
    fn the_uniforms_mirror_the_shaders() {
        let offsets = [
            ("crop", offset_of!(Uniform, crop)),
            ("mask", offset_of!(Uniform, mask)),
            ("stride", offset_of!(Uniform, stride)),
            ("neighbours", offset_of!(Uniform, neighbours)),
        ];
        check(SHADER, "Paste", size_of::<Uniform>(), &offsets);
        let offsets = [
            ("kind", offset_of!(Mask, kind)),
            ("circle_x", offset_of!(Mask, circle)),
            ("sides", offset_of!(Mask, sides)),
            ("soft", offset_of!(Mask, soft)),
        ];
        check(SHADER, "Mask", size_of::<Mask>(), &offsets);
        let offsets = [
            ("mask", offset_of!(Neighbour, mask)),
            ("place", offset_of!(Neighbour, place)),
            ("seam", offset_of!(Neighbour, seam)),
        ];
        check(SHADER, "Neighbour", size_of::<Neighbour>(), &offsets);
    }
}
