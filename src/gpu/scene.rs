//! A photo and its faces on the adapter: the buffers that the shaders work on.
//!
//! The photo and the frame are rows of RGBA bytes in storage buffers, each row padded to 256 bytes
//! so that the frame can be copied into a texture as it is. Only the rows that faces touch are
//! renewed and read back.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Zeroable, bytes_of, cast_slice};
use image::RgbaImage;
use wgpu::BufferUsages as Usage;

use super::Error;
use super::context::{Context, dispatch};
use super::interop::Shared;
use super::neighbours::{Neighbour, Share};
use super::paste_back::{self, PasteBack};
use super::prepare::{Face, Rim, Taste};
use super::prepare_pass::{self, Prepare};
use super::warp::{self, Warp};
use crate::frame::{Lent, Prediction, SharedMemory};
use crate::geometry::Rect;

/// Rows are padded to this many pixels: 256 bytes, what copies to textures ask for.
const ALIGN: u32 = 64;

/// An adapter with the shaders, and the photo set last if it fits.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) context: Context,
    passes: Passes,
    scene: Option<Scene>,
    /// Where predictions may lie already; made when it is asked for.
    shared: Option<Shared>,
}

#[derive(Debug)]
struct Passes {
    prepare: Prepare,
    warp: Warp,
    paste: PasteBack,
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
    /// The crop as the networks saw it.
    low: wgpu::Buffer,
    /// The mask's soft edge, and how many places it has.
    rims: wgpu::Buffer,
    rim_count: u32,
    /// What is added to its colours.
    offset: wgpu::Buffer,
    prepare_uniform: wgpu::Buffer,
    warp_uniform: wgpu::Buffer,
    paste_uniform: wgpu::Buffer,
    /// Room for every face before this one.
    neighbours: wgpu::Buffer,
    paste_bindings: wgpu::BindGroup,
    /// What depends on the prediction's size and on where it comes from.
    sized: Option<SizedBuffers>,
}

#[derive(Debug)]
struct SizedBuffers {
    size: u32,
    map_size: u32,
    /// Where predictions are written to; none when they lie in shared memory.
    prediction: Option<wgpu::Buffer>,
    prepare_bindings: wgpu::BindGroup,
    warp_bindings: wgpu::BindGroup,
}

impl Gpu {
    pub(crate) fn new(context: Context) -> Result<Self, Error> {
        let passes = context.checked(|| {
            Ok(Passes {
                prepare: Prepare::new(&context),
                warp: Warp::new(&context),
                paste: PasteBack::new(&context),
            })
        })?;
        Ok(Self {
            context,
            passes,
            scene: None,
            shared: None,
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
            let storage = |label, bytes: usize| context.buffer(label, bytes as u64, Usage::STORAGE);
            let uniform = |label, bytes: usize| context.buffer(label, bytes as u64, Usage::UNIFORM);
            let low = storage("low", face.low.as_raw().len());
            context.queue.write_buffer(&low, 0, face.low.as_raw());
            let neighbours = storage("neighbours", before.max(1) * size_of::<Neighbour>());
            let paste_uniform = uniform("paste uniform", size_of::<paste_back::Uniform>());
            let offset = storage("offset", size_of::<[f32; 4]>());
            let bindings = paste_back::Bindings {
                uniform: &paste_uniform,
                warped: &warped,
                frame: &frame,
                neighbours: &neighbours,
                offset: &offset,
            };
            FaceBuffers {
                crop: face.crop,
                low,
                rims: storage("rims", Rim::MOST * size_of::<Rim>()),
                rim_count: 0,
                paste_bindings: self.passes.paste.bind(context, &bindings),
                offset,
                prepare_uniform: uniform("prepare uniform", size_of::<prepare_pass::Uniform>()),
                warp_uniform: uniform("warp uniform", size_of::<warp::Uniform>()),
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

    /// Memory in which the networks may leave predictions, if they run on the same card.
    pub(crate) fn share(&mut self) -> Result<Arc<SharedMemory>, Error> {
        let shared = match self.shared.take() {
            Some(shared) => shared,
            None => self.context.checked(|| Shared::new(&self.context))?,
        };
        Ok(Arc::clone(&self.shared.insert(shared).memory))
    }

    /// Whether a place is one of that memory's.
    pub(crate) fn holds(&self, lent: &Lent) -> bool {
        self.shared
            .as_ref()
            .is_some_and(|shared| shared.holds(lent))
    }

    /// A prediction as the CPU's twin needs it: what lies in that memory is read back.
    pub(crate) fn fetch(&self, prediction: &Prediction) -> Result<Prediction, Error> {
        match (&prediction.lent, &self.shared) {
            (Some(lent), Some(shared)) => self
                .context
                .checked(|| shared.read(&self.context, lent, prediction)),
            _ => Ok(prediction.clone()),
        }
    }

    /// Takes the soft edges of the faces' masks over.
    pub(crate) fn set_rims(&mut self, rims: &[Vec<Rim>]) {
        for (face, rim) in self.scene.iter_mut().flat_map(|s| &mut s.faces).zip(rims) {
            let places = cast_slice(rim);
            self.context.queue.write_buffer(&face.rims, 0, places);
            face.rim_count = rim.len() as u32;
        }
    }

    /// Composes a frame, which stays on the adapter.
    pub(crate) fn render(
        &mut self,
        faces: &[Face],
        predictions: &[Prediction],
        taste: &Taste,
        shares: &[Share],
    ) -> Result<(), Error> {
        let Self {
            context,
            passes,
            scene,
            shared,
        } = self;
        let Some(scene) = scene.as_mut().filter(|scene| !scene.rows.is_empty()) else {
            return Ok(());
        };
        context.checked(|| {
            let faces = faces.iter().zip(predictions).zip(shares);
            scene.submit(context, passes, shared.as_ref(), faces, taste);
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
    fn submit<'a>(
        &mut self,
        context: &Context,
        passes: &Passes,
        shared: Option<&Shared>,
        shown: impl Iterator<Item = ((&'a Face, &'a Prediction), &'a Share)>,
        taste: &Taste,
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

        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("faces"),
            timestamp_writes: None,
        });
        let mut read = Vec::new();
        for (buffers, ((face, prediction), share)) in self.faces.iter_mut().zip(shown) {
            let lent = prediction.lent.as_ref().zip(shared);
            let sized = buffers.fit(
                context,
                passes,
                prediction,
                (&self.photo, &self.warped),
                lent.map(|(_, shared)| &shared.buffer),
            );
            if let Some(buffer) = &sized.prediction {
                write(context, buffer, prediction);
            }
            let start = lent.map_or(0, |(lent, _)| lent.start() as u32 / 4);
            read.extend(lent.map(|(lent, _)| Arc::clone(lent)));
            let rims = buffers.rim_count;
            let uniform = prepare_pass::Uniform::of(prediction, face, taste, rims, start);
            buffers.upload(context, &uniform, share, self.stride);
            let Some(sized) = &buffers.sized else {
                continue;
            };
            let prepare = &sized.prepare_bindings;
            passes.prepare.run(&mut pass, prepare, &uniform);
            let warp = (&passes.warp.pipeline, &sized.warp_bindings);
            dispatch(&mut pass, warp.0, warp.1, face.crop);
            let paste = (&passes.paste.pipeline, &buffers.paste_bindings);
            dispatch(&mut pass, paste.0, paste.1, face.crop);
        }
        drop(pass);
        context.queue.submit([encoder.finish()]);
        if !read.is_empty() {
            // Until then nobody may write there.
            context.queue.on_submitted_work_done(move || drop(read));
        }
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
        let width = output.width() as usize * 4;
        let first = self.rows.start as usize * width;
        context.mapped(&self.read_back, |bytes| {
            let rows = output.as_mut()[first..].chunks_exact_mut(width);
            for (to, from) in rows.zip(bytes.chunks_exact(self.stride as usize * 4)) {
                to.copy_from_slice(&from[..width]);
            }
        })
    }
}

impl FaceBuffers {
    fn upload(
        &self,
        context: &Context,
        prepare: &prepare_pass::Uniform,
        share: &Share,
        stride: u32,
    ) {
        // Crops lie in the photo: nothing is negative.
        let crop = [
            self.crop.x1.unsigned_abs(),
            self.crop.y1.unsigned_abs(),
            self.crop.width(),
            self.crop.height(),
        ];
        let warp = warp::Uniform {
            crop,
            stride,
            size: prepare.picture(),
            map_size: prepare.map_size,
            detailed: u32::from(prepare.is_detailed()),
        };
        let paste = paste_back::Uniform {
            crop,
            mask: share.mask,
            stride,
            neighbours: share.neighbours.len() as u32,
            ..Zeroable::zeroed()
        };
        let uniforms = [
            (&self.prepare_uniform, bytes_of(prepare)),
            (&self.warp_uniform, bytes_of(&warp)),
            (&self.paste_uniform, bytes_of(&paste)),
            (&self.neighbours, cast_slice(&share.neighbours)),
        ];
        for (buffer, bytes) in uniforms {
            context.queue.write_buffer(buffer, 0, bytes);
        }
    }

    /// Makes the buffers fit the prediction's sizes; it is written by us unless it lies in `shared`.
    fn fit(
        &mut self,
        context: &Context,
        passes: &Passes,
        prediction: &Prediction,
        (photo, warped): (&wgpu::Buffer, &wgpu::Buffer),
        shared: Option<&wgpu::Buffer>,
    ) -> &SizedBuffers {
        let (size, map_size) = (prediction.size, prediction.map_size);
        let fits = |s: &SizedBuffers| {
            (s.size, s.map_size) == (size, map_size) && s.prediction.is_none() == shared.is_some()
        };
        if !self.sized.as_ref().is_some_and(fits) {
            self.sized = None;
        }
        self.sized.get_or_insert_with(|| {
            let area = |side: u32| u64::from(side) * u64::from(side);
            let storage = |label, bytes| context.buffer(label, bytes, Usage::STORAGE);
            let own = storage("prediction", prepare_pass::words(size, map_size) * 4);
            let cells = storage("cells", area(prepare_pass::cells(size)) * 32);
            let picture = storage("picture", area(size) * 16);
            let field = storage("field", area(map_size) * 16);
            let prepare = prepare_pass::Bindings {
                uniform: &self.prepare_uniform,
                prediction: shared.unwrap_or(&own),
                low: &self.low,
                rims: &self.rims,
                cells: &cells,
                field: &field,
                picture: &picture,
                offset: &self.offset,
            };
            let warp = warp::Bindings {
                photo,
                picture: &picture,
                field: &field,
                warped,
            };
            SizedBuffers {
                size,
                map_size,
                prepare_bindings: passes.prepare.bind(context, &prepare),
                warp_bindings: passes.warp.bind(context, &self.warp_uniform, &warp),
                prediction: shared.is_none().then_some(own),
            }
        })
    }
}

/// Writes a prediction as `prepare.wgsl` reads it.
fn write(context: &Context, buffer: &wgpu::Buffer, prediction: &Prediction) {
    let parts = [
        prediction.rgba.as_slice(),
        cast_slice(&prediction.deformation),
        cast_slice(&prediction.occlusion),
    ];
    let mut at = 0;
    for part in parts {
        context.queue.write_buffer(buffer, at, part);
        at += part.len() as u64;
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
