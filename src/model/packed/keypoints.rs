//! The keypoint detector of the packed engine (paper section 3.1).

use super::hourglass::Hourglass;
use super::layers::{Heads, Weights, channel};
use super::picture::Reduction;
use crate::model::hourglass::Shape;
use crate::model::{Keypoints, ModelConfig};
use crate::ops::activation::exponentials;
use crate::ops::blocked::Size;
use crate::ops::conv::Spec;
use crate::ops::threads::Workers;

/// Finds the keypoints of one picture.
#[derive(Clone, Debug)]
pub(super) struct KeypointDetector {
    reduction: Reduction,
    hourglass: Hourglass,
    heads: Heads,
    temperature: f32,
    num_kp: usize,
    /// Jacobian maps: none, one for all keypoints, or one each.
    maps: usize,
    heatmap: Vec<f32>,
}

impl KeypointDetector {
    pub(super) fn new(config: &ModelConfig, weights: &Weights<'_>) -> candle_core::Result<Self> {
        let kp = &config.kp;
        let reduction = Reduction::new(config.image_size as usize, kp.factor(), kp.mobile);
        let shape = Shape::of_keypoints(config);
        let hourglass = Hourglass::new(&weights.at("predictor"), &shape, reduction.size())?;
        let maps = match (config.estimate_jacobian, kp.single_jacobian_map) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => config.num_kp,
        };
        let mut names = vec![("kp", config.num_kp)];
        if maps > 0 {
            names.push(("jacobian", 4 * maps));
        }
        let kernel = if kp.mobile { 3 } else { 7 };
        let spec = Spec {
            kernel,
            padding: kp.pad,
            upsample: false,
            relu: false,
        };
        let mobile = kp.mobile.then_some(&["0", "1", "2"][..]);
        let heads = Heads::new(weights, &names, spec, mobile, hourglass.out())?;
        Ok(Self {
            reduction,
            hourglass,
            temperature: kp.temperature as f32,
            num_kp: config.num_kp,
            maps,
            heatmap: vec![0.0; heads.output_size().pixels()],
            heads,
        })
    }

    /// `rgba` is a square picture of the model's size.
    pub(super) fn run(&mut self, workers: &Workers, rgba: &[u8]) -> Keypoints {
        workers.meter.time("kp_detector.down", "separable", 0, || {
            self.reduction
                .run_packed(workers, rgba, self.hourglass.input());
        });
        let features = self.hourglass.run(workers);
        self.heads.run(workers, features);
        workers
            .meter
            .time("kp_detector softmax", "vector", 0, || self.read(workers))
    }

    /// Softmax of each heatmap, its centre of mass, and its mean of the jacobian maps.
    fn read(&mut self, workers: &Workers) -> Keypoints {
        let size = self.heads.output_size();
        let mut value = Vec::with_capacity(self.num_kp);
        let mut jacobian = Vec::with_capacity(self.num_kp);
        let (logits, _) = self.heads.output(0);
        for k in 0..self.num_kp {
            let (first, stride) = channel(size, k);
            let plane = logits[first..].iter().step_by(stride);
            for (heat, logit) in self.heatmap.iter_mut().zip(plane) {
                *heat = *logit;
            }
            let sum = exponentials(workers.isa, &mut self.heatmap, 1.0 / self.temperature);
            value.push(centre(&self.heatmap, size).map(|v| v / sum));
            if self.maps > 0 {
                let (map, start) = self.heads.output(1);
                let map_of = if self.maps == 1 { 0 } else { k };
                jacobian.push([0, 1].map(|row| {
                    [0, 1].map(|column| {
                        let (first, stride) = channel(size, start + 4 * map_of + 2 * row + column);
                        let values = map[first..].iter().step_by(stride);
                        self.heatmap
                            .iter()
                            .zip(values)
                            .map(|(h, v)| h * v)
                            .sum::<f32>()
                            / sum
                    })
                }));
            }
        }
        Keypoints {
            value,
            jacobian: (self.maps > 0).then_some(jacobian),
        }
    }
}

/// The sum of x and y in -1..1 over a map, weighted by it; summed by rows, which keeps f32 exact enough.
fn centre(weights: &[f32], size: Size) -> [f32; 2] {
    let mut total = [0.0; 2];
    for (y, row) in weights.chunks_exact(size.width).enumerate() {
        let along = row
            .iter()
            .enumerate()
            .map(|(x, w)| w * position(x, size.width))
            .sum::<f32>();
        total[0] += along;
        total[1] += row.iter().sum::<f32>() * position(y, size.height);
    }
    total
}

/// The place of a pixel's centre, -1 and 1 being those of the outermost pixels.
pub(super) fn position(pixel: usize, pixels: usize) -> f32 {
    2.0 * (pixel as f32 / (pixels.max(2) - 1) as f32) - 1.0
}
