//! The pipeline of `shaders/warp.wgsl`: one face, at the crop's own resolution.

use bytemuck::{Pod, Zeroable};

use super::context::Context;

const SHADER: &str = include_str!("../../shaders/warp.wgsl");

/// Mirror of `struct Warp`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Uniform {
    pub(super) crop: [u32; 4],
    pub(super) stride: u32,
    pub(super) size: u32,
    pub(super) map_size: u32,
    pub(super) detailed: u32,
}

/// The buffers of the bindings 1 to 4, in order.
#[derive(Debug)]
pub(super) struct Bindings<'a> {
    pub(super) photo: &'a wgpu::Buffer,
    pub(super) picture: &'a wgpu::Buffer,
    pub(super) field: &'a wgpu::Buffer,
    pub(super) warped: &'a wgpu::Buffer,
}

#[derive(Debug)]
pub(super) struct Warp {
    pub(super) pipeline: wgpu::ComputePipeline,
}

impl Warp {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            pipeline: context.pipeline("warp", SHADER),
        }
    }

    pub(super) fn bind(
        &self,
        context: &Context,
        uniform: &wgpu::Buffer,
        with: &Bindings<'_>,
    ) -> wgpu::BindGroup {
        let Bindings {
            photo,
            picture,
            field,
            warped,
        } = with;
        context.bind(
            "warp",
            &self.pipeline,
            &[uniform, photo, picture, field, warped],
        )
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_uniform_mirrors_the_shaders() {
        let offsets = [
            ("crop", offset_of!(Uniform, crop)),
            ("stride", offset_of!(Uniform, stride)),
            ("size", offset_of!(Uniform, size)),
            ("map_size", offset_of!(Uniform, map_size)),
            ("detailed", offset_of!(Uniform, detailed)),
        ];
        super::super::layout::check(SHADER, "Warp", size_of::<Uniform>(), &offsets);
    }
}
