//! The pipeline of `shaders/paste_back.wgsl`: one face into the frame, by its mask.

use bytemuck::{Pod, Zeroable};

use super::context::Context;
use super::mask::Mask;
use super::warp::TILE;
use crate::geometry::Rect;

/// Mirror of `struct Paste`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Uniform {
    pub(super) crop: [u32; 4],
    pub(super) offset: [f32; 4],
    pub(super) mask: Mask,
    pub(super) stride: u32,
    pub(super) pad: [u32; 3],
}

const _: () = assert!(size_of::<Mask>() == 48 && size_of::<Uniform>() == 96);

#[derive(Debug)]
pub(super) struct PasteBack {
    pipeline: wgpu::ComputePipeline,
}

impl PasteBack {
    pub(super) fn new(context: &Context) -> Self {
        let source = include_str!("../../shaders/paste_back.wgsl");
        Self {
            pipeline: context.pipeline("paste_back", source),
        }
    }

    pub(super) fn bind(
        &self,
        context: &Context,
        uniform: &wgpu::Buffer,
        warped: &wgpu::Buffer,
        frame: &wgpu::Buffer,
    ) -> wgpu::BindGroup {
        context.bind("paste_back", &self.pipeline, &[uniform, warped, frame])
    }

    pub(super) fn dispatch(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        bindings: &wgpu::BindGroup,
        crop: Rect,
    ) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, bindings, &[]);
        pass.dispatch_workgroups(crop.width().div_ceil(TILE), crop.height().div_ceil(TILE), 1);
    }
}
