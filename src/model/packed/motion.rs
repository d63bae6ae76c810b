//! Dense motion of the packed engine (paper section 3.2, equations 4, 6 and 7).

use super::hourglass::Hourglass;
use super::keypoints::position;
use super::layers::{Heads, Weights, channel};
use super::picture::Reduction;
use crate::model::hourglass::Shape;
use crate::model::{Keypoints, ModelConfig};
use crate::ops::activation::exp;
use crate::ops::blocked::Size;
use crate::ops::conv::Spec;
use crate::ops::matrix::{inverse_or_large, narrow, product, widen};
use crate::ops::simd::BLOCK;
use crate::ops::threads::Workers;
use crate::ops::warp::Tap;

/// Where a pixel comes from, and whether it can be seen there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Flow {
    /// (x, y) in -1..1.
    pub(super) from: [f32; 2],
    /// 0..1.
    pub(super) occlusion: f32,
}

/// The dense motion network with the flow it last gave.
#[derive(Clone, Debug)]
pub(super) struct DenseMotion {
    reduction: Reduction,
    hourglass: Hourglass,
    heads: Heads,
    has_occlusion: bool,
    kp_variance: f32,
    flow: Vec<Flow>,
}

/// z to A z + b: the motion around one keypoint.
#[derive(Clone, Copy)]
struct Affine {
    matrix: [[f32; 2]; 2],
    shift: [f32; 2],
}

impl Affine {
    const IDENTITY: Self = Self {
        matrix: [[1.0, 0.0], [0.0, 1.0]],
        shift: [0.0; 2],
    };

    fn at(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        [0, 1].map(|i| self.matrix[i][0] * x + self.matrix[i][1] * y + self.shift[i])
    }
}

impl DenseMotion {
    pub(super) fn new(config: &ModelConfig, weights: &Weights<'_>) -> candle_core::Result<Self> {
        let (motion, mobile) = (&config.generator.dense_motion, config.generator.mobile);
        let reduction = Reduction::new(config.image_size as usize, motion.factor(), mobile);
        let (shape, size) = (Shape::of_motion(config), reduction.size());
        let hourglass = Hourglass::new(&weights.at("hourglass"), &shape, size)?;
        let mut names = vec![("mask", config.num_kp + 1)];
        if config.generator.estimate_occlusion_map {
            names.push(("occlusion", 1));
        }
        let kernel = if mobile { 3 } else { 7 };
        let spec = Spec {
            kernel,
            padding: kernel / 2,
            upsample: false,
            relu: mobile,
        };
        let places = mobile.then_some(&["0", "2", "4"][..]);
        let heads = Heads::new(weights, &names, spec, places, hourglass.out())?;
        Ok(Self {
            reduction,
            hourglass,
            heads,
            has_occlusion: config.generator.estimate_occlusion_map,
            kp_variance: motion.kp_variance as f32,
            flow: vec![Flow::default(); size.pixels()],
        })
    }

    /// Of the flow.
    pub(super) fn size(&self) -> Size {
        self.reduction.size()
    }

    /// The source as [`DenseMotion::run`] wants it.
    pub(super) fn reduce(&mut self, workers: &Workers, rgba: &[u8]) -> Vec<[f32; 4]> {
        self.reduction.run(workers, rgba)
    }

    /// The flow that takes `source`, reduced, from its keypoints to the driving ones.
    pub(super) fn run(
        &mut self,
        workers: &Workers,
        source: &[[f32; 4]],
        kp_source: &Keypoints,
        kp_driving: &Keypoints,
    ) -> &[Flow] {
        let motions = motions(kp_source, kp_driving);
        let size = self.size();
        workers.meter.time("dense_motion input", "bilinear", 0, || {
            let gaussians = [kp_driving, kp_source].map(|kp| self.gaussians(kp));
            workers.rows(self.hourglass.input(), size.width * BLOCK, |row, line| {
                let (block, y) = (row / size.height, row % size.height);
                // Four channels for each motion, four motions in a block.
                for (slot, motion) in motions.iter().skip(4 * block).take(4).enumerate() {
                    let keypoint = (4 * block + slot).checked_sub(1);
                    for (x, pixel) in line.chunks_exact_mut(BLOCK).enumerate() {
                        let z = [position(x, size.width), position(y, size.height)];
                        let heat = keypoint.map_or(0.0, |k| {
                            let [driving, source] = gaussians.each_ref().map(|(columns, rows)| {
                                columns[k * size.width + x] * rows[k * size.height + y]
                            });
                            driving - source
                        });
                        let [r, g, b, _] = match keypoint {
                            None => source[y * size.width + x],
                            Some(_) => Tap::at(motion.at(z), size, 1.0).sample4(source),
                        };
                        pixel[4 * slot..4 * slot + 4].copy_from_slice(&[heat, r, g, b]);
                    }
                }
            });
        });
        let features = self.hourglass.run(workers);
        self.heads.run(workers, features);
        workers.meter.time("dense_motion softmax", "scalar", 0, || {
            self.mix(workers, &motions);
        });
        &self.flow
    }

    /// The gaussians around keypoints on the pixels, as a product of columns and rows.
    fn gaussians(&self, kp: &Keypoints) -> (Vec<f32>, Vec<f32>) {
        let size = self.size();
        let along = |axis: usize, pixels: usize| -> Vec<f32> {
            let centres = kp.value.iter().map(|value| value[axis]);
            centres
                .flat_map(|c| (0..pixels).map(move |i| position(i, pixels) - c))
                .map(|d| (-0.5 * d * d / self.kp_variance).exp())
                .collect()
        };
        (along(0, size.width), along(1, size.height))
    }

    /// Softmax of the masks, the mean of the motions by it, and the occlusion's sigmoid.
    fn mix(&mut self, workers: &Workers, motions: &[Affine]) {
        let size = self.size();
        let (logits, _) = self.heads.output(0);
        let occlusion = self.has_occlusion.then(|| self.heads.output(1));
        workers.rows(&mut self.flow, size.width, |y, row| {
            for (x, flow) in row.iter_mut().enumerate() {
                let read = |(values, first): (&[f32], usize), c: usize| {
                    let (plane, stride) = channel(size, first + c);
                    values[plane + (y * size.width + x) * stride]
                };
                let mask = |k| read((logits, 0), k);
                let highest = (0..motions.len())
                    .map(mask)
                    .fold(f32::NEG_INFINITY, f32::max);
                let z = [position(x, size.width), position(y, size.height)];
                let (mut sum, mut from) = (0.0, [0.0; 2]);
                for (k, motion) in motions.iter().enumerate() {
                    let weight = exp(mask(k) - highest);
                    let to = motion.at(z);
                    sum += weight;
                    from = [from[0] + weight * to[0], from[1] + weight * to[1]];
                }
                *flow = Flow {
                    from: from.map(|v| v / sum),
                    occlusion: occlusion.map_or(1.0, |map| 1.0 / (1.0 + exp(-read(map, 0)))),
                };
            }
        });
    }
}

/// The background's motion (none), then each keypoint's: J_s J_d^-1 (z - d) + s. A singular jacobian
/// of the driver moves its surroundings far away, and leaves numbers.
fn motions(kp_source: &Keypoints, kp_driving: &Keypoints) -> Vec<Affine> {
    let around = |k: usize| {
        let matrix = match (&kp_source.jacobian, &kp_driving.jacobian) {
            (Some(source), Some(driving)) => {
                let undone = inverse_or_large(widen(driving[k]));
                narrow(product(widen(source[k]), undone))
            }
            _ => Affine::IDENTITY.matrix,
        };
        let (from, to) = (kp_driving.value[k], kp_source.value[k]);
        let shift = [0, 1].map(|i| to[i] - matrix[i][0] * from[0] - matrix[i][1] * from[1]);
        Affine { matrix, shift }
    };
    std::iter::once(Affine::IDENTITY)
        .chain((0..kp_driving.value.len()).map(around))
        .collect()
}
