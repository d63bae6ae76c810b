//! S3FD on the packed engine: see [`crate::model::S3fd`].

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::face_detector::Cells;
use super::layers::Weights;
use super::styled::{Line, each_pixel, line, padded};
use crate::model::s3fd::{HEADS, MEAN_BGR, NORMED, POOLED, SCALES, TRUNK, classes};
use crate::ops::blocked::{Buffer, Channels, Size};
use crate::ops::conv::{Conv, Epilogue, Spec};
use crate::ops::simd::BLOCK;
use crate::ops::threads::Workers;

/// Shortest side of a picture: five halvings leave a pixel.
const SHORTEST: usize = 32;

/// Pixels between the cells of the first scale.
const STRIDE: usize = 4;

/// Finds faces in one picture at a time.
#[derive(Debug)]
pub struct S3fd {
    workers: Workers,
    trunk: Vec<Layer>,
    heads: Vec<Head>,
    picture: Buffer,
    /// What went into the layer at work, and what comes out.
    maps: [Buffer; 2],
    normed: Buffer,
}

#[derive(Debug)]
struct Layer {
    name: &'static str,
    conv: Conv,
    channels: Channels,
}

/// Both convolutions of a scale as one: first what says whether there is a face, then its box.
#[derive(Debug)]
struct Head {
    conv: Conv,
    /// What features are multiplied by once their length is 1; empty where they stay as they are.
    norm: Buffer,
    cells: Buffer,
    size: Size,
}

impl S3fd {
    /// Packs the tensors of a checkpoint.
    ///
    /// # Errors
    /// When a tensor is missing or has another size.
    pub fn new(tensors: &BTreeMap<String, Tensor>, workers: Workers) -> Result<Self> {
        let weights = |name: &str| Weights::new(tensors, name, workers.isa);
        let mut c_in = 3;
        // Kernels are chosen for a picture of 1280 x 960.
        let mut side = 960;
        let mut trunk = Vec::with_capacity(TRUNK.len());
        let mut heads = Vec::with_capacity(SCALES);
        for (name, c_out, kernel, padding, stride) in TRUNK {
            let weights_of = weights(name);
            let (weight, bias) = weights_of.conv(c_out, c_in * kernel * kernel)?;
            let spec = Spec {
                kernel,
                padding,
                upsample: false,
                relu: true,
            };
            let (input, isa) = (Channels::new(c_in), workers.isa);
            let conv = match stride {
                1 => Conv::new(spec, &weight, &bias, &input, Size::square(side), isa),
                _ => Conv::with_stride(spec, stride, &weight, &bias, &input, isa),
            };
            let channels = Channels::new(c_out);
            trunk.push(Layer {
                name,
                conv,
                channels,
            });
            side /= stride;
            if POOLED.contains(&name) {
                side /= 2;
            }
            c_in = c_out;
            if let Some(scale) = HEADS.iter().position(|(at, _)| *at == name) {
                heads.push(Head::new(scale, c_out, side, &weights)?);
            }
        }
        Ok(Self {
            workers,
            trunk,
            heads,
            picture: Buffer::default(),
            maps: <[Buffer; 2]>::default(),
            normed: Buffer::default(),
        })
    }

    /// What each scale says of a picture of `width * height` RGBA pixels, at least 32 each: of each cell
    /// [`classes`] values, then its box.
    ///
    /// # Panics
    /// When the picture has another size: a fault of the program.
    pub fn run(&mut self, rgba: &[u8], width: usize, height: usize) -> Vec<Cells<'_>> {
        assert!(width >= SHORTEST && height >= SHORTEST);
        assert_eq!(rgba.len(), width * height * 4);
        let Self {
            workers,
            trunk,
            heads,
            picture,
            maps,
            normed,
        } = self;
        workers.install(|| {
            let mut size = Size { height, width };
            prepare(workers, rgba, picture, size);
            let [before, after] = maps;
            let mut scale = 0;
            for (i, layer) in trunk.iter().enumerate() {
                let input = if i == 0 { &*picture } else { &*before };
                let blocks = match i.checked_sub(1) {
                    Some(i) => trunk[i].channels.blocks(),
                    None => 1,
                };
                let out_size = layer.conv.output_size(size, false);
                let len = out_size.values(layer.channels.blocks());
                after.grow(len);
                let (input, out) = (&input[..size.values(blocks)], &mut after[..len]);
                let algorithm = layer.conv.algorithm();
                workers.meter.time(layer.name, algorithm, 0, || {
                    let epilogue = Epilogue::default();
                    layer.conv.run(workers, input, size, out, epilogue);
                });
                size = out_size;
                std::mem::swap(before, after);
                if HEADS.get(scale).is_some_and(|(at, _)| *at == layer.name) {
                    heads[scale].run(workers, &before[..len], size, normed);
                    scale += 1;
                }
                if POOLED.contains(&layer.name) {
                    size = halve(workers, before, size, layer.channels.blocks(), after);
                    std::mem::swap(before, after);
                }
            }
        });
        let cells = heads.iter().enumerate();
        cells
            .map(|(i, head)| Cells {
                stride: STRIDE << i,
                width: head.size.width,
                height: head.size.height,
                values: head.cells[..head.size.values(1)].as_chunks().0,
            })
            .collect()
    }
}

impl Head {
    fn new<'a>(
        scale: usize,
        channels: usize,
        side: usize,
        weights: &impl Fn(&str) -> Weights<'a>,
    ) -> Result<Self> {
        let name = HEADS[scale].1;
        let conf = weights(&format!("{name}_mbox_conf"));
        let (mut weight, mut bias) = conf.conv(classes(scale), channels * 9)?;
        let (boxes, box_bias) = weights(&format!("{name}_mbox_loc")).conv(4, channels * 9)?;
        weight.extend(boxes);
        bias.extend(box_bias);
        let input = Channels::new(channels);
        let norm = match scale < NORMED {
            true => padded(&weights(name).get("weight", channels)?, &input),
            false => Buffer::default(),
        };
        let spec = Spec {
            kernel: 3,
            padding: 1,
            upsample: false,
            relu: false,
        };
        Ok(Self {
            conv: Conv::new(spec, &weight, &bias, &input, Size::square(side), conf.isa),
            norm,
            cells: Buffer::default(),
            size: Size::square(0),
        })
    }

    fn run(&mut self, workers: &Workers, features: &[f32], size: Size, normed: &mut Buffer) {
        self.size = size;
        self.cells.grow(size.values(1));
        let input = if self.norm.is_empty() {
            features
        } else {
            normed.grow(features.len());
            let out = &mut normed[..features.len()];
            out.copy_from_slice(features);
            normalise(workers, out, size, &self.norm);
            &*out
        };
        let cells = &mut self.cells[..size.values(1)];
        self.conv
            .run(workers, input, size, cells, Epilogue::default());
    }
}

/// Divides each pixel's features by their length, and multiplies them by `scale`.
fn normalise(workers: &Workers, map: &mut [f32], size: Size, scale: &[f32]) {
    let mut lengths = vec![0f32; size.pixels()];
    let features: &[Line] = map.as_chunks().0;
    workers.rows(&mut lengths, size.width, |y, row| {
        for (x, length) in row.iter_mut().enumerate() {
            let at = y * size.width + x;
            let blocks = features[at..].iter().step_by(size.pixels());
            let squares = blocks.map(|pixel| pixel.iter().map(|v| v * v).sum::<f32>());
            *length = 1.0 / (squares.sum::<f32>().sqrt() + 1e-10);
        }
    });
    each_pixel(workers, map, size, |block, at, pixel| {
        let scale = line(scale, block);
        for lane in 0..BLOCK {
            pixel[lane] *= lengths[at] * scale[lane];
        }
    });
}

/// The largest of 2x2; an odd last row or column is left out.
fn halve(workers: &Workers, from: &[f32], size: Size, blocks: usize, to: &mut Buffer) -> Size {
    let half = Size {
        height: size.height / 2,
        width: size.width / 2,
    };
    let len = half.values(blocks);
    to.grow(len);
    let from: &[Line] = from.as_chunks().0;
    each_pixel(workers, &mut to[..len], half, |block, at, pixel| {
        let (y, x) = (at / half.width * 2, at % half.width * 2);
        let first = block * size.pixels() + y * size.width + x;
        let below = first + size.width;
        for lane in 0..BLOCK {
            let upper = from[first][lane].max(from[first + 1][lane]);
            pixel[lane] = upper.max(from[below][lane].max(from[below + 1][lane]));
        }
    });
    half
}

/// Bytes to blue, green and red less their means, in the first lanes.
fn prepare(workers: &Workers, rgba: &[u8], picture: &mut Buffer, size: Size) {
    picture.grow(size.values(1));
    let pixels: &[[u8; 4]] = rgba.as_chunks().0;
    each_pixel(
        workers,
        &mut picture[..size.values(1)],
        size,
        |_, at, out| {
            for c in 0..3 {
                out[c] = f32::from(pixels[at][2 - c]) - MEAN_BGR[c];
            }
        },
    );
}
