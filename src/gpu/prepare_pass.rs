//! The pipelines of `shaders/prepare.wgsl`: a prediction at the model's own size, compared with the photo.

use bytemuck::{Pod, Zeroable};

use super::context::{Context, TILE};
use super::prepare::{CELL, Face, Taste, halvings};
use crate::frame::Prediction;

const SHADER: &str = include_str!("../../shaders/prepare.wgsl");

/// Mirror of `struct Prepare`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Uniform {
    pub(super) size: u32,
    pub(super) map_size: u32,
    cells: u32,
    halvings: u32,
    low_size: u32,
    rims: u32,
    detail: f32,
    matched: f32,
    start: u32,
}

impl Uniform {
    /// `rims` is how many places the soft edge has, `start` where the prediction begins in its buffer, in words of four bytes.
    pub(super) fn of(
        prediction: &Prediction,
        face: &Face,
        taste: &Taste,
        rims: u32,
        start: u32,
    ) -> Self {
        let halvings = match taste.shrinks {
            true => halvings(prediction.size, face.crop),
            false => 0,
        };
        Self {
            size: prediction.size,
            map_size: prediction.map_size,
            cells: cells(prediction.size),
            halvings,
            low_size: face.low.width(),
            rims: if taste.matched > 0.0 { rims } else { 0 },
            detail: taste.detail,
            matched: taste.matched,
            start,
        }
    }

    /// Whether something of the photo's detail is taken.
    pub(super) fn is_detailed(&self) -> bool {
        self.detail > 0.0
    }

    /// Side of the picture that is made.
    pub(super) fn picture(&self) -> u32 {
        self.size >> self.halvings
    }
}

/// Cells along a side of a prediction.
pub(super) fn cells(size: u32) -> u32 {
    size.div_ceil(CELL as u32)
}

/// Words of four bytes that a prediction takes: pixels, then two of each cell of the deformation and one of the occlusion map.
pub(super) fn words(size: u32, map_size: u32) -> u64 {
    let area = |side: u32| u64::from(side) * u64::from(side);
    area(size) + 3 * area(map_size)
}

/// The buffers of the bindings 0 to 7, in order.
#[derive(Debug)]
pub(super) struct Bindings<'a> {
    pub(super) uniform: &'a wgpu::Buffer,
    pub(super) prediction: &'a wgpu::Buffer,
    pub(super) low: &'a wgpu::Buffer,
    pub(super) rims: &'a wgpu::Buffer,
    pub(super) cells: &'a wgpu::Buffer,
    pub(super) field: &'a wgpu::Buffer,
    pub(super) picture: &'a wgpu::Buffer,
    pub(super) offset: &'a wgpu::Buffer,
}

/// How many of the bindings are only read: the uniform's successors.
const READ: u32 = 3;
/// How many bindings there are.
const BINDINGS: u32 = 8;

/// The passes, which share their bindings.
#[derive(Debug)]
pub(super) struct Prepare {
    displace: wgpu::ComputePipeline,
    compare: wgpu::ComputePipeline,
    judge: wgpu::ComputePipeline,
    gains: wgpu::ComputePipeline,
    bracket: wgpu::ComputePipeline,
    rim: wgpu::ComputePipeline,
}

impl Prepare {
    pub(super) fn new(context: &Context) -> Self {
        let device = &context.device;
        let entries: Vec<_> = (0..BINDINGS)
            .map(|binding| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding {
                        0 => wgpu::BufferBindingType::Uniform,
                        _ => wgpu::BufferBindingType::Storage {
                            read_only: binding <= READ,
                        },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("prepare"),
            entries: &entries,
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("prepare"),
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: 0,
        });
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("prepare"),
            source: wgpu::ShaderSource::Wgsl(SHADER.into()),
        });
        let pass = |entry: &str| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry),
                layout: Some(&layout),
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            })
        };
        Self {
            displace: pass("displace"),
            compare: pass("compare"),
            judge: pass("judge"),
            gains: pass("gains"),
            bracket: pass("main"),
            rim: pass("rim"),
        }
    }

    pub(super) fn bind(&self, context: &Context, with: &Bindings<'_>) -> wgpu::BindGroup {
        let &Bindings {
            uniform,
            prediction,
            low,
            rims,
            cells,
            field,
            picture,
            offset,
        } = with;
        let buffers = [
            uniform, prediction, low, rims, cells, field, picture, offset,
        ];
        context.bind("prepare", &self.bracket, &buffers)
    }

    /// Does for one face what the uniform says.
    pub(super) fn run(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        bindings: &wgpu::BindGroup,
        uniform: &Uniform,
    ) {
        pass.set_bind_group(0, bindings, &[]);
        let mut over = |pipeline: &wgpu::ComputePipeline, side: u32| {
            pass.set_pipeline(pipeline);
            pass.dispatch_workgroups(side.div_ceil(TILE), side.div_ceil(TILE), 1);
        };
        if uniform.is_detailed() {
            over(&self.displace, uniform.map_size);
            over(&self.compare, uniform.cells);
            over(&self.judge, uniform.cells);
            over(&self.gains, uniform.map_size);
        }
        over(&self.bracket, uniform.picture());
        over(&self.rim, 1);
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_uniform_mirrors_the_shaders() {
        let offsets = [
            ("size", offset_of!(Uniform, size)),
            ("map_size", offset_of!(Uniform, map_size)),
            ("cells", offset_of!(Uniform, cells)),
            ("halvings", offset_of!(Uniform, halvings)),
            ("low_size", offset_of!(Uniform, low_size)),
            ("rims", offset_of!(Uniform, rims)),
            ("detail", offset_of!(Uniform, detail)),
            ("matched", offset_of!(Uniform, matched)),
            ("start", offset_of!(Uniform, start)),
        ];
        super::super::layout::check(SHADER, "Prepare", size_of::<Uniform>(), &offsets);
    }
}
