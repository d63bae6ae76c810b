//! The embedded face detector of the packed engine, for pictures of any size.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::layers::Weights;
use crate::model::face_detector::{MULTIPLE, OUTPUTS, PYRAMID, STRIDES};
use crate::ops::blocked::{Buffer, Channels, Size};
use crate::ops::conv::{Activated, Conv, Epilogue, Spec};
use crate::ops::simd::{BLOCK, Isa};
use crate::ops::threads::Workers;

/// Finds faces in one picture at a time; see [`crate::model::FaceDetector`].
#[derive(Debug)]
pub struct FaceDetector {
    workers: Workers,
    picture: Buffer,
    stem: Stage,
    /// One for each level, finest first.
    stages: [Stage; 3],
    levels: [Level; 3],
    head: Layer,
}

/// What the detector says of one level's cells, row by row; the values of [`OUTPUTS`] come first.
#[derive(Clone, Copy, Debug)]
pub struct Cells<'a> {
    /// Pixels between cells.
    pub stride: usize,
    /// Cells in a row.
    pub width: usize,
    /// Rows of cells.
    pub height: usize,
    /// The cells.
    pub values: &'a [[f32; BLOCK]],
}

impl FaceDetector {
    /// Packs the tensors of `mimic-face.safetensors`.
    ///
    /// # Errors
    /// When a tensor is missing or has another size.
    pub fn new(tensors: &BTreeMap<String, Tensor>, workers: Workers) -> candle_core::Result<Self> {
        let weights = |name: String| Weights::new(tensors, &name, workers.isa);
        let stage = |name: &str, widths: &[usize], residuals: usize, side: usize| {
            let halvings = widths.windows(2).enumerate();
            let halvings = halvings
                .map(|(i, width)| {
                    Layer::halving(&weights(format!("{name}.{i}")), width[0], width[1])
                })
                .collect::<candle_core::Result<Vec<_>>>()?;
            let first = halvings.len();
            let channels = widths.last().copied().unwrap_or(0);
            let residuals = (first..first + residuals)
                .map(|i| Residual::new(&weights(format!("{name}.{i}")), channels, side))
                .collect::<candle_core::Result<_>>()?;
            Ok::<_, candle_core::Error>(Stage {
                halvings,
                residuals,
            })
        };
        // Kernels are chosen for a picture of 640 x 480.
        let sides = STRIDES.map(|stride| 480 / stride);
        let stages = [
            stage("stage1", &[24, 48], 1, sides[0])?,
            stage("stage2", &[48, 64], 2, sides[1])?,
            stage("stage3", &[64, 80], 2, sides[2])?,
        ];
        let level = |i: usize, channels: usize| {
            Ok::<_, candle_core::Error>(Level {
                lateral: Layer::normed(
                    &weights(format!("lat.{i}")),
                    channels,
                    PYRAMID,
                    1,
                    sides[i],
                )?,
                smooth: Layer::normed(
                    &weights(format!("smooth.{i}")),
                    PYRAMID,
                    PYRAMID,
                    3,
                    sides[i],
                )?,
                cells: Buffer::default(),
                size: Size::square(0),
            })
        };
        let levels = [level(0, 48)?, level(1, 64)?, level(2, 80)?];
        let head = weights("head".to_owned()).conv(OUTPUTS, PYRAMID * 9)?;
        let head = Layer::new(&head, PYRAMID, spec(3, false), sides[0], workers.isa);
        let stem = stage("stem", &[3, 16, 24], 1, 480 / 4)?;
        Ok(Self {
            picture: Buffer::default(),
            stem,
            stages,
            levels,
            head,
            workers,
        })
    }

    /// What the network says of a picture of `width * height` RGBA pixels, both multiples of
    /// [`MULTIPLE`]; finest level first.
    ///
    /// # Panics
    /// When the picture has another size: a fault of the program.
    pub fn run(&mut self, rgba: &[u8], width: usize, height: usize) -> [Cells<'_>; 3] {
        assert!(width.is_multiple_of(MULTIPLE) && height.is_multiple_of(MULTIPLE));
        assert_eq!(rgba.len(), width * height * 4);
        let Self {
            workers,
            picture,
            stem,
            stages,
            levels,
            head,
        } = self;
        workers.install(|| {
            let size = Size { height, width };
            normalise(workers, rgba, picture, size);
            let mut size = stem.run(workers, &picture[..size.values(1)], size);
            let mut from = stem.output(size);
            let mut sizes = [size; 3];
            for (stage, of_stage) in stages.iter_mut().zip(&mut sizes) {
                size = stage.run(workers, from, size);
                *of_stage = size;
                from = stage.output(size);
            }
            // From the coarsest: each level's features get those of the next.
            for i in (0..levels.len()).rev() {
                let (upper, lower) = levels.split_at_mut(i + 1);
                let level = &mut upper[i];
                level.size = sizes[i];
                level.lateral.run(
                    workers,
                    stages[i].output(sizes[i]),
                    sizes[i],
                    Epilogue::default(),
                );
                if let Some(coarser) = lower.first() {
                    let coarse = coarser.lateral.output(coarser.size);
                    add_doubled(
                        workers,
                        level.lateral.output_mut(sizes[i]),
                        coarse,
                        sizes[i],
                    );
                }
            }
            for level in levels.iter_mut() {
                level.run(workers, head);
            }
        });
        let [fine, middle, coarse] = &*levels;
        [
            fine.read(STRIDES[0]),
            middle.read(STRIDES[1]),
            coarse.read(STRIDES[2]),
        ]
    }
}

/// A convolution with the buffer for its result, as large as the largest picture so far asked for.
#[derive(Debug)]
struct Layer {
    conv: Conv,
    channels: Channels,
    out: Buffer,
}

impl Layer {
    /// `side` is that of the maps a kernel is chosen for.
    fn new(
        (weight, bias): &(Vec<f32>, Vec<f32>),
        c_in: usize,
        spec: Spec,
        side: usize,
        isa: Isa,
    ) -> Self {
        let (input, size) = (Channels::new(c_in), Size::square(side));
        Self {
            conv: Conv::new(spec, weight, bias, &input, size, isa),
            channels: Channels::new(bias.len()),
            out: Buffer::default(),
        }
    }

    /// With the batch norm after it, and a relu.
    fn normed(
        weights: &Weights<'_>,
        c_in: usize,
        c_out: usize,
        kernel: usize,
        side: usize,
    ) -> candle_core::Result<Self> {
        let folded = weights.folded("conv", "norm", c_out, c_in * kernel * kernel)?;
        Ok(Self::new(
            &folded,
            c_in,
            spec(kernel, true),
            side,
            weights.isa,
        ))
    }

    fn halving(weights: &Weights<'_>, c_in: usize, c_out: usize) -> candle_core::Result<Self> {
        let (weight, bias) = weights.folded("conv", "norm", c_out, c_in * 9)?;
        let input = Channels::new(c_in);
        Ok(Self {
            conv: Conv::with_stride(spec(3, true), 2, &weight, &bias, &input, weights.isa),
            channels: Channels::new(c_out),
            out: Buffer::default(),
        })
    }

    fn run(&mut self, workers: &Workers, input: &[f32], size: Size, epilogue: Epilogue<'_>) {
        let out_size = self.conv.output_size(size, false);
        let len = out_size.values(self.channels.blocks());
        self.out.grow(len);
        self.conv
            .run(workers, input, size, &mut self.out[..len], epilogue);
    }

    /// The last result, which was of `size`.
    fn output(&self, size: Size) -> &[f32] {
        &self.out[..size.values(self.channels.blocks())]
    }

    fn output_mut(&mut self, size: Size) -> &mut [f32] {
        let len = size.values(self.channels.blocks());
        &mut self.out[..len]
    }
}

/// Convolutions that halve the map, then residual blocks.
#[derive(Debug)]
struct Stage {
    halvings: Vec<Layer>,
    residuals: Vec<Residual>,
}

impl Stage {
    /// Gives the size of the output.
    fn run(&mut self, workers: &Workers, input: &[f32], mut size: Size) -> Size {
        for i in 0..self.halvings.len() {
            let (before, rest) = self.halvings.split_at_mut(i);
            let from = before.last().map_or(input, |layer| layer.output(size));
            rest[0].run(workers, from, size, Epilogue::default());
            size = rest[0].conv.output_size(size, false);
        }
        for i in 0..self.residuals.len() {
            let (before, rest) = self.residuals.split_at_mut(i);
            let Some(from) = before
                .last_mut()
                .map(|block| &mut block.out)
                .or(self.halvings.last_mut().map(|layer| &mut layer.out))
            else {
                continue;
            };
            rest[0].run(workers, from, size);
        }
        size
    }

    /// The last result, which was of `size`.
    fn output(&self, size: Size) -> &[f32] {
        self.residuals.last().map_or(&[], |block| {
            &block.out[..size.values(block.channels.blocks())]
        })
    }
}

/// relu(x + second(relu(first(x)))).
#[derive(Debug)]
struct Residual {
    first: Layer,
    second: Conv,
    channels: Channels,
    ones: Buffer,
    zeros: Buffer,
    out: Buffer,
}

impl Residual {
    fn new(weights: &Weights<'_>, channels: usize, side: usize) -> candle_core::Result<Self> {
        let folded = weights
            .at("conv2")
            .folded("conv", "norm", channels, channels * 9)?;
        let second = Layer::new(&folded, channels, spec(3, false), side, weights.isa);
        let padded = second.channels.blocks() * BLOCK;
        Ok(Self {
            first: Layer::normed(&weights.at("conv1"), channels, channels, 3, side)?,
            ones: Buffer::from_slice(&vec![1.0; padded]),
            zeros: Buffer::zeroed(padded),
            channels: second.channels,
            second: second.conv,
            out: Buffer::default(),
        })
    }

    /// Spoils `x`: the sum before the last relu is left in it.
    fn run(&mut self, workers: &Workers, x: &mut Buffer, size: Size) {
        let len = size.values(self.channels.blocks());
        self.first
            .run(workers, &x[..len], size, Epilogue::default());
        self.out.grow(len);
        let epilogue = Epilogue {
            residual: true,
            activated: Some(Activated {
                out: &mut self.out[..len],
                scale: &self.ones,
                shift: &self.zeros,
            }),
            ..Epilogue::default()
        };
        let between = self.first.output(size);
        self.second
            .run(workers, between, size, &mut x[..len], epilogue);
    }
}

/// One level of the pyramid.
#[derive(Debug)]
struct Level {
    lateral: Layer,
    smooth: Layer,
    cells: Buffer,
    size: Size,
}

impl Level {
    fn run(&mut self, workers: &Workers, head: &Layer) {
        let from = self.lateral.output(self.size);
        self.smooth
            .run(workers, from, self.size, Epilogue::default());
        let len = self.size.values(head.channels.blocks());
        self.cells.grow(len);
        head.conv.run(
            workers,
            self.smooth.output(self.size),
            self.size,
            &mut self.cells[..len],
            Epilogue::default(),
        );
    }

    fn read(&self, stride: usize) -> Cells<'_> {
        Cells {
            stride,
            width: self.size.width,
            height: self.size.height,
            values: self.cells[..self.size.values(1)].as_chunks().0,
        }
    }
}

fn spec(kernel: usize, relu: bool) -> Spec {
    Spec {
        kernel,
        padding: kernel / 2,
        upsample: false,
        relu,
    }
}

/// Bytes to what the network was trained on, (x - 0.5) / 0.25 of 0..1, in the first lanes.
fn normalise(workers: &Workers, rgba: &[u8], picture: &mut Buffer, size: Size) {
    picture.grow(size.values(1));
    let lines: &mut [[f32; BLOCK]] = picture[..size.values(1)].as_chunks_mut().0;
    let pixels: &[[u8; 4]] = rgba.as_chunks().0;
    workers.rows(lines, size.width, |y, row| {
        for (line, pixel) in row.iter_mut().zip(&pixels[y * size.width..]) {
            for c in 0..3 {
                line[c] = (f32::from(pixel[c]) / 255.0 - 0.5) / 0.25;
            }
        }
    });
}

/// Adds a map of half the size, each value to four.
fn add_doubled(workers: &Workers, fine: &mut [f32], coarse: &[f32], size: Size) {
    let fine: &mut [[f32; BLOCK]] = fine.as_chunks_mut().0;
    let coarse: &[[f32; BLOCK]] = coarse.as_chunks().0;
    // Blocks lie behind each other and have an even number of rows, so rows can be counted through.
    workers.rows(fine, size.width, |y, row| {
        let from = &coarse[y / 2 * (size.width / 2)..];
        for (pair, add) in row.chunks_mut(2).zip(from) {
            for line in pair {
                for (value, add) in line.iter_mut().zip(add) {
                    *value += add;
                }
            }
        }
    });
}
