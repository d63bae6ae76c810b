//! The pipeline of `shaders/yuv_to_rgb.wgsl`: a camera's frame to a picture.

use bytemuck::{Pod, Zeroable, bytes_of};
use image::RgbaImage;
use wgpu::BufferUsages as Usage;

use super::Error;
use super::context::Context;
use super::context::TILE;
use crate::frame::{Malformed, PixelFormat, Raw};

const SHADER: &str = include_str!("../../shaders/yuv_to_rgb.wgsl");

/// Mirror of `struct Frame`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Uniform {
    width: u32,
    height: u32,
    stride: u32,
    planar: u32,
    black: f32,
    luma: f32,
    red_v: f32,
    green_u: f32,
    green_v: f32,
    blue_u: f32,
    pad: [u32; 2],
}

/// Makes pictures of YUYV and NV12 on a graphics card. Keep it on one thread.
#[derive(Debug)]
pub struct YuvToRgb {
    context: Context,
    pipeline: wgpu::ComputePipeline,
    uniform: wgpu::Buffer,
    buffers: Option<Buffers>,
    padded: Vec<u8>,
}

/// For frames of so many bytes and pictures of so many.
#[derive(Debug)]
struct Buffers {
    sizes: (u64, u64),
    bytes: wgpu::Buffer,
    picture: wgpu::Buffer,
    read_back: wgpu::Buffer,
    bindings: wgpu::BindGroup,
}

impl YuvToRgb {
    /// Opens the fastest adapter; a software one only if `software` says so.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(software: bool) -> Result<Self, Error> {
        let context = Context::open(software)?;
        let pipeline = context.pipeline("yuv_to_rgb", SHADER);
        let uniform = context.buffer("frame", size_of::<Uniform>() as u64, Usage::UNIFORM);
        Ok(Self {
            context,
            pipeline,
            uniform,
            buffers: None,
            padded: Vec::new(),
        })
    }

    /// Converts a frame into `into`, which gets the right size if it has another. Alpha is 255.
    ///
    /// # Errors
    /// A frame whose numbers do not agree or that is no YUV, one too large for the adapter, and what the
    /// adapter says.
    pub fn convert(&mut self, frame: &Raw<'_>, into: &mut RgbaImage) -> Result<(), Error> {
        let planar = match frame.format {
            PixelFormat::Yuyv => 0,
            PixelFormat::Nv12 => 1,
            other => return Err(Malformed::NotYuv(other).into()),
        };
        let stride = frame.stride()?;
        let rows = match frame.format {
            PixelFormat::Nv12 => frame.height + frame.height.div_ceil(2),
            _ => frame.height,
        };
        // The frame's own bytes, not what else the driver's buffer holds.
        let used = frame.bytes.len().min(stride.saturating_mul(rows as usize));
        self.padded.clear();
        self.padded.extend_from_slice(&frame.bytes[..used]);
        self.padded.resize(used.next_multiple_of(4), 0);
        let pixels = u64::from(frame.width) * u64::from(frame.height);
        let sizes = (self.padded.len() as u64, pixels * 4);
        let fits = |bytes| self.context.fits(frame.width, frame.height, bytes);
        let (true, true, Ok(stride)) = (fits(sizes.0), fits(sizes.1), u32::try_from(stride)) else {
            return Err(Malformed::Size(frame.width, frame.height).into());
        };
        let [black, luma, red_v, green_u, green_v, blue_u] = frame.colours.coefficients();
        let uniform = Uniform {
            width: frame.width,
            height: frame.height,
            stride,
            planar,
            black,
            luma,
            red_v,
            green_u,
            green_v,
            blue_u,
            pad: [0; 2],
        };
        if into.dimensions() != (frame.width, frame.height) {
            *into = RgbaImage::new(frame.width, frame.height);
        }
        let result = self.run(&uniform, sizes, into);
        if result.is_err() {
            self.buffers = None;
        }
        result
    }

    fn run(
        &mut self,
        uniform: &Uniform,
        sizes: (u64, u64),
        into: &mut RgbaImage,
    ) -> Result<(), Error> {
        let Self {
            context,
            pipeline,
            padded,
            ..
        } = self;
        context.checked(|| {
            let buffers = match self.buffers.take().filter(|made| made.sizes == sizes) {
                Some(made) => made,
                None => Buffers::new(context, pipeline, &self.uniform, sizes),
            };
            context
                .queue
                .write_buffer(&self.uniform, 0, bytes_of(uniform));
            context.queue.write_buffer(&buffers.bytes, 0, padded);
            let mut encoder =
                context
                    .device
                    .create_command_encoder(&wgpu::CommandEncoderDescriptor {
                        label: Some("yuv_to_rgb"),
                    });
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: Some("yuv_to_rgb"),
                    timestamp_writes: None,
                });
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, &buffers.bindings, &[]);
                let pairs = uniform.width.div_ceil(2);
                pass.dispatch_workgroups(pairs.div_ceil(TILE), uniform.height.div_ceil(TILE), 1);
            }
            encoder.copy_buffer_to_buffer(&buffers.picture, 0, &buffers.read_back, 0, sizes.1);
            context.queue.submit([encoder.finish()]);
            buffers.read_back.map_async(wgpu::MapMode::Read, .., |_| ());
            context.wait()?;
            {
                let view = buffers
                    .read_back
                    .get_mapped_range(..)
                    .map_err(|e| context.failed(e.to_string()))?;
                into.copy_from_slice(&view);
            }
            buffers.read_back.unmap();
            self.buffers = Some(buffers);
            Ok(())
        })
    }
}

impl Buffers {
    fn new(
        context: &Context,
        pipeline: &wgpu::ComputePipeline,
        uniform: &wgpu::Buffer,
        sizes: (u64, u64),
    ) -> Self {
        let bytes = context.buffer("frame bytes", sizes.0, Usage::STORAGE);
        let picture = context.buffer("picture", sizes.1, Usage::STORAGE | Usage::COPY_SRC);
        let read_back = context.buffer("read back", sizes.1, Usage::MAP_READ);
        let bindings = context.bind("yuv_to_rgb", pipeline, &[uniform, &bytes, &picture]);
        Self {
            sizes,
            bytes,
            picture,
            read_back,
            bindings,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_uniform_mirrors_the_shaders() {
        let offsets = [
            ("width", offset_of!(Uniform, width)),
            ("height", offset_of!(Uniform, height)),
            ("stride", offset_of!(Uniform, stride)),
            ("planar", offset_of!(Uniform, planar)),
            ("black", offset_of!(Uniform, black)),
            ("luma", offset_of!(Uniform, luma)),
            ("red_v", offset_of!(Uniform, red_v)),
            ("green_u", offset_of!(Uniform, green_u)),
            ("green_v", offset_of!(Uniform, green_v)),
            ("blue_u", offset_of!(Uniform, blue_u)),
            ("pad0", offset_of!(Uniform, pad)),
        ];
        super::super::layout::check(SHADER, "Frame", size_of::<Uniform>(), &offsets);
    }
}
