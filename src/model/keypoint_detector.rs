//! The keypoint detector: a picture to K keypoints with 2x2 jacobians (paper section 3.1).
//!
//! Each keypoint is the centre of mass of a heatmap, its jacobian the heatmap's mean of a map of
//! jacobians. Nobody says what the keypoints are: they are learnt.

use candle_core::{D, Result, Tensor};
use candle_nn::{VarBuilder, ops};

use super::blocks::Head;
use super::config::ModelConfig;
use super::coordinate_grid;
use super::hourglass::{Hourglass, Shape};
use crate::ops::fused;
use crate::ops::resample::AntiAlias;

/// Keypoints of a batch of pictures.
#[derive(Clone, Debug)]
pub struct KeypointTensors {
    /// Places (b, K, 2) as (x, y) in -1..1, the outermost pixels' centres being -1 and 1.
    pub value: Tensor,
    /// How the picture is locally turned and stretched there (b, K, 2, 2); none for zeroth-order
    /// models.
    pub jacobian: Option<Tensor>,
}

impl KeypointTensors {
    /// As one tensor (b, K, 6), to be read back at once: each keypoint's place, and its jacobian by rows or zeros.
    pub fn numbers(&self) -> Result<Tensor> {
        let (b, k, _) = self.value.dims3()?;
        let jacobian = match &self.jacobian {
            Some(jacobian) => jacobian.reshape((b, k, 4))?,
            None => self.value.zeros_like()?.repeat((1, 1, 2))?,
        };
        Tensor::cat(&[&self.value, &jacobian], 2)
    }
}

/// `KPDetector` of the reference.
#[derive(Clone, Debug)]
pub struct KeypointDetector {
    pub(super) down: AntiAlias,
    pub(super) predictor: Hourglass,
    pub(super) kp: Head,
    pub(super) jacobian: Option<Head>,
    pub(super) temperature: f64,
    pub(super) num_kp: usize,
}

impl KeypointDetector {
    /// Reads the tensors of a checkpoint under `kp_detector`.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let kp = &config.kp;
        let shape = Shape::of_keypoints(config);
        let predictor = Hourglass::new(&shape, vb.pp("predictor"))?;
        let features = shape.c_out();
        let head =
            |c_out, name| Head::for_keypoints(features, c_out, kp.pad, kp.mobile, vb.pp(name));
        let maps = if kp.single_jacobian_map {
            1
        } else {
            config.num_kp
        };
        let jacobian = if config.estimate_jacobian {
            Some(head(4 * maps, "jacobian")?)
        } else {
            None
        };
        Ok(Self {
            down: super::reduction(kp.factor(), kp.mobile, vb.device())?,
            predictor,
            kp: head(config.num_kp, "kp")?,
            jacobian,
            temperature: kp.temperature,
            num_kp: config.num_kp,
        })
    }

    /// Pictures (b, 3, h, w) in 0..1 to their keypoints.
    pub fn forward(&self, pictures: &Tensor) -> Result<KeypointTensors> {
        let features = self.features(pictures)?;
        let prediction = self.kp.forward(&features)?;
        let (b, k, h, w) = prediction.dims4()?;
        if fused::fuses(&prediction) {
            let found = self.fused(&features, &prediction)?;
            let jacobian = found.narrow(2, 2, 4)?.reshape((b, k, 2, 2))?;
            return Ok(KeypointTensors {
                value: found.narrow(2, 0, 2)?,
                jacobian: self.jacobian.is_some().then_some(jacobian),
            });
        }
        let logits = (prediction.reshape((b, k, h * w))? / self.temperature)?;
        let heatmap = ops::softmax(&logits, D::Minus1)?;

        let grid = coordinate_grid(h, w, heatmap.dtype(), heatmap.device())?;
        let value = heatmap.broadcast_matmul(&grid.reshape((1, h * w, 2))?)?;
        let jacobian = match &self.jacobian {
            Some(head) => {
                // One map for all keypoints, or one for each.
                let maps = head.forward(&features)?.reshape((b, (), 4, h * w))?;
                let mean = maps.broadcast_mul(&heatmap.unsqueeze(2)?)?.sum(D::Minus1)?;
                Some(mean.reshape((b, self.num_kp, 2, 2))?)
            }
            None => None,
        };
        Ok(KeypointTensors { value, jacobian })
    }

    /// [`KeypointTensors::numbers`] of them.
    pub fn numbers(&self, pictures: &Tensor) -> Result<Tensor> {
        if fused::fuses(pictures) {
            let features = self.features(pictures)?;
            return self.fused(&features, &self.kp.forward(&features)?);
        }
        self.forward(pictures)?.numbers()
    }

    /// Whether keypoints have jacobians.
    pub fn has_jacobians(&self) -> bool {
        self.jacobian.is_some()
    }

    fn features(&self, pictures: &Tensor) -> Result<Tensor> {
        self.predictor.forward(&self.down.forward(pictures)?)
    }

    fn fused(&self, features: &Tensor, prediction: &Tensor) -> Result<Tensor> {
        let maps = self.jacobian.as_ref();
        let maps = maps.map(|head| head.forward(features)).transpose()?;
        fused::keypoints(prediction, maps.as_ref(), self.temperature)
    }
}
