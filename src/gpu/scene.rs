//! A photo and its faces on the adapter: the buffers that the two shaders work on.
//!
//! The photo and the frame are rows of RGBA bytes in storage buffers, each row padded to 256 bytes
//! so that the frame can be copied into a texture as it is. Only the rows that faces touch are
//! renewed and read back.

use std::ops::Range;

use bytemuck::{Zeroable, bytes_of, cast_slice};
use image::RgbaImage;
use wgpu::BufferUsages as Usage;

use super::Error;
use super::context::{Context, dispatch};
use super::neighbours::{Neighbour, Share};
use super::paste_back::{self, PasteBack};
use super::prepare::{Face, Prepared};
use super::warp::{self, Bindings, Warp};
use crate::geometry::Rect;

/// Rows are padded to this many pixels: 256 bytes, what copies to textures ask for.
const ALIGN: u32 = 64;

/// An adapter with both shaders, and the photo set last if it fits.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) context: Context,
    warp: Warp,
    paste: PasteBack,
    scene: Option<Scene>,
}

#[derive(Debug)]
struct Scene {
    stride: u32,
    /// The rows that faces touch.
    rows: Range<u32>,
    photo: wgpu::Buffer,
    frame: wgpu::Buffer,
    warped: wgpu::Buffer,
    read_back: wgpu::Buffer,
    faces: Vec<FaceBuffers>,
}

#[derive(Debug)]
struct FaceBuffers {
    crop: Rect,
    warp_uniform: wgpu::Buffer,
    paste_uniform: wgpu::Buffer,
    /// Room for every face before this one.
    neighbours: wgpu::Buffer,
    paste_bindings: wgpu::BindGroup,
    /// What depends on the prediction's size.
    sized: Option<SizedBuffers>,
}

#[derive(Debug)]
struct SizedBuffers {
    size: u32,
    map_size: u32,
    picture: wgpu::Buffer,
    field: wgpu::Buffer,
    warp_bindings: wgpu::BindGroup,
}

impl Gpu {
    pub(crate) fn new(context: Context) -> Result<Self, Error> {
        let (warp, paste) =
            context.checked(|| Ok((Warp::new(&context), PasteBack::new(&context))))?;
        Ok(Self {
            context,
            warp,
            paste,
            scene: None,
        })
    }

    /// Whether the photo set last is here.
    pub(crate) fn ready(&self) -> bool {
        self.scene.is_some()
    }

    /// Takes a photo over; one too large for the adapter is left out, see [`Self::ready`].
    pub(crate) fn set_photo(&mut self, photo: &RgbaImage, faces: &[Face]) -> Result<(), Error> {
        self.scene = None;
        let (width, height) = photo.dimensions();
        let stride = width.next_multiple_of(ALIGN);
        let bytes = u64::from(stride) * u64::from(height) * 4;
        if !self.context.fits(stride, height, bytes) {
            tracing::warn!(
                "the {width}x{height} photo is too large for {}: composing on the CPU",
                self.context.name
            );
            return Ok(());
        }
        let scene = self.context.checked(|| self.build(photo, faces, stride))?;
        self.scene = Some(scene);
        Ok(())
    }

    fn build(&self, photo: &RgbaImage, faces: &[Face], stride: u32) -> Result<Scene, Error> {
        let context = &self.context;
        let bytes = u64::from(stride) * u64::from(photo.height()) * 4;
        let rows = rows_of(faces);
        let largest = faces
            .iter()
            .map(|face| face.crop.area())
            .max()
            .unwrap_or(0)
            .max(1);
        let rows_bytes = (u64::from(stride) * rows.len() as u64 * 4).max(4);
        let original = context.buffer("photo", bytes, Usage::STORAGE | Usage::COPY_SRC);
        let frame = context.buffer("frame", bytes, Usage::STORAGE | Usage::COPY_SRC);
        let warped = context.buffer("warped", largest * 4, Usage::STORAGE);
        context
            .queue
            .write_buffer(&original, 0, &padded(photo, stride));
        let faces = faces.iter().enumerate().map(|(before, face)| {
            let room = before.max(1) * size_of::<Neighbour>();
            let neighbours = context.buffer("neighbours", room as u64, Usage::STORAGE);
            let uniform = |label, bytes: usize| context.buffer(label, bytes as u64, Usage::UNIFORM);
            let paste_uniform = uniform("paste uniform", size_of::<paste_back::Uniform>());
            FaceBuffers {
                crop: face.crop,
                warp_uniform: uniform("warp uniform", size_of::<warp::Uniform>()),
                paste_bindings: self.paste.bind(
                    context,
                    &paste_uniform,
                    &warped,
                    &frame,
                    &neighbours,
                ),
                paste_uniform,
                neighbours,
                sized: None,
            }
        });
        Ok(Scene {
            stride,
            rows,
            faces: faces.collect(),
            photo: original,
            frame,
            warped,
            read_back: context.buffer("read back", rows_bytes, Usage::MAP_READ),
        })
    }

    /// Composes a frame, which stays on the adapter.
    pub(crate) fn render(&mut self, prepared: &[Prepared], shares: &[Share]) -> Result<(), Error> {
        let Self {
            context,
            warp,
            paste,
            scene,
        } = self;
        let Some(scene) = scene.as_mut().filter(|scene| !scene.rows.is_empty()) else {
            return Ok(());
        };
        context.checked(|| {
            scene.submit(context, warp, paste, prepared, shares);
            Ok(())
        })
    }

    /// Reads the frame into `output`, which holds the photo in all rows without a face.
    pub(crate) fn read(&self, output: &mut RgbaImage) -> Result<(), Error> {
        let Some(scene) = self.scene.as_ref().filter(|scene| !scene.rows.is_empty()) else {
            return Ok(());
        };
        self.context.checked(|| scene.read(&self.context, output))
    }

    /// Copies the frame's rows that faces touch into a texture of the same device and the photo's size.
    pub(crate) fn copy_into(&self, texture: &wgpu::Texture) -> Result<(), Error> {
        let Some(scene) = self.scene.as_ref().filter(|scene| !scene.rows.is_empty()) else {
            return Ok(());
        };
        self.context.checked(|| {
            scene.copy_into(&self.context, texture);
            Ok(())
        })
    }
}

impl Scene {
    fn submit(
        &mut self,
        context: &Context,
        warp: &Warp,
        paste: &PasteBack,
        prepared: &[Prepared],
        shares: &[Share],
    ) {
        let mut encoder = context
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor {
                label: Some("compose"),
            });
        let row = u64::from(self.stride) * 4;
        let (start, bytes) = (
            u64::from(self.rows.start) * row,
            self.rows.len() as u64 * row,
        );
        encoder.copy_buffer_to_buffer(&self.photo, start, &self.frame, start, bytes);

        let Self {
            faces,
            photo,
            warped,
            stride,
            ..
        } = self;
        for ((face, prepared), share) in faces.iter_mut().zip(prepared).zip(shares) {
            face.upload(context, prepared, share, *stride);
            face.fit(context, warp, prepared, photo, warped);
            if let Some(sized) = &face.sized {
                context
                    .queue
                    .write_buffer(&sized.picture, 0, cast_slice(&prepared.picture));
                context
                    .queue
                    .write_buffer(&sized.field, 0, cast_slice(&prepared.field));
            }
        }
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("faces"),
                timestamp_writes: None,
            });
            for face in faces {
                if let Some(sized) = &face.sized {
                    dispatch(&mut pass, &warp.pipeline, &sized.warp_bindings, face.crop);
                    dispatch(&mut pass, &paste.pipeline, &face.paste_bindings, face.crop);
                }
            }
        }
        context.queue.submit([encoder.finish()]);
    }

    fn copy_into(&self, context: &Context, texture: &wgpu::Texture) {
        let mut encoder = context.device.create_command_encoder(&Default::default());
        let row = self.stride * 4;
        encoder.copy_buffer_to_texture(
            wgpu::TexelCopyBufferInfo {
                buffer: &self.frame,
                layout: wgpu::TexelCopyBufferLayout {
                    offset: u64::from(self.rows.start) * u64::from(row),
                    bytes_per_row: Some(row),
                    rows_per_image: None,
                },
            },
            wgpu::TexelCopyTextureInfo {
                origin: wgpu::Origin3d {
                    y: self.rows.start,
                    ..wgpu::Origin3d::ZERO
                },
                ..texture.as_image_copy()
            },
            wgpu::Extent3d {
                width: texture.width(),
                height: self.rows.len() as u32,
                depth_or_array_layers: 1,
            },
        );
        context.queue.submit([encoder.finish()]);
    }

    fn read(&self, context: &Context, output: &mut RgbaImage) -> Result<(), Error> {
        let mut encoder = context.device.create_command_encoder(&Default::default());
        let row = u64::from(self.stride) * 4;
        let (start, bytes) = (
            u64::from(self.rows.start) * row,
            self.rows.len() as u64 * row,
        );
        encoder.copy_buffer_to_buffer(&self.frame, start, &self.read_back, 0, bytes);
        context.queue.submit([encoder.finish()]);
        self.read_back.map_async(wgpu::MapMode::Read, .., |_| ());
        context.wait()?;
        let width = output.width() as usize * 4;
        {
            let view = self
                .read_back
                .get_mapped_range(..)
                .map_err(|e| context.failed(e.to_string()))?;
            let first = self.rows.start as usize * width;
            let rows = output.as_mut()[first..].chunks_exact_mut(width);
            for (to, from) in rows.zip(view.chunks_exact(self.stride as usize * 4)) {
                to.copy_from_slice(&from[..width]);
            }
        }
        self.read_back.unmap();
        Ok(())
    }
}

impl FaceBuffers {
    fn upload(&self, context: &Context, prepared: &Prepared, share: &Share, stride: u32) {
        // Crops lie in the photo: nothing is negative.
        let crop = [
            self.crop.x1.unsigned_abs(),
            self.crop.y1.unsigned_abs(),
            self.crop.width(),
            self.crop.height(),
        ];
        let [r, g, b] = prepared.offset;
        let warp = warp::Uniform {
            crop,
            stride,
            size: prepared.size,
            map_size: prepared.map_size,
            detailed: u32::from(!prepared.field.is_empty()),
        };
        let paste = paste_back::Uniform {
            crop,
            offset: [r, g, b, 0.0],
            mask: share.mask,
            stride,
            neighbours: share.neighbours.len() as u32,
            ..Zeroable::zeroed()
        };
        context
            .queue
            .write_buffer(&self.warp_uniform, 0, bytes_of(&warp));
        context
            .queue
            .write_buffer(&self.paste_uniform, 0, bytes_of(&paste));
        context
            .queue
            .write_buffer(&self.neighbours, 0, cast_slice(&share.neighbours));
    }

    /// Makes the buffers fit the prediction's sizes.
    fn fit(
        &mut self,
        context: &Context,
        warp: &Warp,
        prepared: &Prepared,
        photo: &wgpu::Buffer,
        warped: &wgpu::Buffer,
    ) {
        let (size, map_size) = (prepared.size, prepared.map_size);
        if self
            .sized
            .as_ref()
            .is_some_and(|s| (s.size, s.map_size) == (size, map_size))
        {
            return;
        }
        let area = |side: u32| u64::from(side) * u64::from(side);
        let picture = context.buffer("picture", area(size) * 16, Usage::STORAGE);
        let field = context.buffer("field", area(map_size) * 8, Usage::STORAGE);
        let bindings = Bindings {
            photo,
            picture: &picture,
            field: &field,
            warped,
        };
        let warp_bindings = warp.bind(context, &self.warp_uniform, &bindings);
        self.sized = Some(SizedBuffers {
            size,
            map_size,
            picture,
            field,
            warp_bindings,
        });
    }
}

/// From the first row that a face touches to the last.
fn rows_of(faces: &[Face]) -> Range<u32> {
    let start = faces
        .iter()
        .map(|f| f.crop.y1.unsigned_abs())
        .min()
        .unwrap_or(0);
    let end = faces
        .iter()
        .map(|f| f.crop.y2.unsigned_abs())
        .max()
        .unwrap_or(0);
    start..end
}

/// The photo's bytes with every row filled up to `stride` pixels.
fn padded(photo: &RgbaImage, stride: u32) -> Vec<u8> {
    let row = stride as usize * 4;
    let mut bytes = Vec::with_capacity(row * photo.height() as usize);
    for pixels in photo.chunks_exact(photo.width() as usize * 4) {
        bytes.extend_from_slice(pixels);
        bytes.resize(bytes.len().next_multiple_of(row), 0);
    }
    bytes
}
