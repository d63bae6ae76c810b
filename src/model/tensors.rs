//! Which tensors a checkpoint must hold for a configuration: names as PyTorch gives them, shapes.
//!
//! The fixed gaussians (`down.weight`) and the step counters of batch norm
//! (`num_batches_tracked`), which some checkpoints hold too, are left out.

use std::collections::BTreeMap;

use super::config::ModelConfig;
use super::hourglass::Shape;

impl ModelConfig {
    /// Name and shape of every tensor of the keypoint detector (`kp_detector.`) and the generator
    /// (`generator.`).
    pub fn expected_tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let mut list = List::default();
        self.list_keypoint_detector(&mut list);
        self.list_dense_motion(&mut list);
        self.list_generator(&mut list);
        list.0
    }

    fn list_keypoint_detector(&self, list: &mut List) {
        let kp = &self.kp;
        let features = list.hourglass("kp_detector.predictor", &Shape::of_keypoints(self));
        let places = if kp.mobile { &[0, 1, 2][..] } else { &[] };
        list.head("kp_detector.kp", features, self.num_kp, places);
        if self.estimate_jacobian {
            let maps = if kp.single_jacobian_map {
                1
            } else {
                self.num_kp
            };
            list.head("kp_detector.jacobian", features, 4 * maps, places);
        }
    }

    fn list_dense_motion(&self, list: &mut List) {
        let prefix = "generator.dense_motion_network";
        let features = list.hourglass(&format!("{prefix}.hourglass"), &Shape::of_motion(self));
        let places = if self.generator.mobile {
            &[0, 2, 4][..]
        } else {
            &[]
        };
        list.head(&format!("{prefix}.mask"), features, self.num_kp + 1, places);
        if self.generator.estimate_occlusion_map {
            list.head(&format!("{prefix}.occlusion"), features, 1, places);
        }
    }

    fn list_generator(&self, list: &mut List) {
        let generator = &self.generator;
        let (full, channels) = (generator.width(0), self.num_channels);
        let width = |level: usize| generator.width(level);
        if generator.mobile {
            for (i, c_out) in [channels, channels, full].into_iter().enumerate() {
                let prefix = format!("generator.first.{i}");
                list.conv(&format!("{prefix}.conv"), &[c_out, channels, 3, 3], false);
                list.norm(&format!("{prefix}.norm"), c_out);
            }
        } else {
            list.conv("generator.first.conv", &[full, channels, 7, 7], true);
            list.norm("generator.first.norm", full);
        }
        let levels = generator.num_down_blocks;
        for i in 0..levels {
            let down = format!("generator.down_blocks.{i}");
            list.block(&down, width(i), width(i + 1), generator.mobile);
            let up = format!("generator.up_blocks.{i}");
            list.block(
                &up,
                width(levels - i),
                width(levels - i - 1),
                generator.mobile,
            );
        }
        for i in 0..generator.num_bottleneck_blocks {
            list.residual(
                &format!("generator.bottleneck.r{i}"),
                width(levels),
                generator.mobile,
            );
        }
        let places = if generator.mobile {
            &[0, 2, 4][..]
        } else {
            &[]
        };
        list.head("generator.final", width(0), channels, places);
    }
}

#[derive(Default)]
struct List(BTreeMap<String, Vec<usize>>);

impl List {
    fn add(&mut self, name: String, shape: &[usize]) {
        self.0.insert(name, shape.to_vec());
    }

    fn conv(&mut self, prefix: &str, shape: &[usize], bias: bool) {
        self.add(format!("{prefix}.weight"), shape);
        if bias {
            self.add(format!("{prefix}.bias"), &shape[..1]);
        }
    }

    fn norm(&mut self, prefix: &str, channels: usize) {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            self.add(format!("{prefix}.{part}"), &[channels]);
        }
    }

    /// A block that halves or doubles the picture.
    fn block(&mut self, prefix: &str, c_in: usize, c_out: usize, mobile: bool) {
        if mobile {
            self.conv(&format!("{prefix}.conv"), &[c_in, 1, 3, 3], false);
            self.norm(&format!("{prefix}.norm"), c_in);
            self.conv(&format!("{prefix}.conv1"), &[c_out, c_in, 1, 1], false);
            self.norm(&format!("{prefix}.norm1"), c_out);
        } else {
            self.conv(&format!("{prefix}.conv"), &[c_out, c_in, 3, 3], true);
            self.norm(&format!("{prefix}.norm"), c_out);
        }
    }

    fn residual(&mut self, prefix: &str, channels: usize, mobile: bool) {
        self.norm(&format!("{prefix}.norm1"), channels);
        if mobile {
            let inner = 2 * channels;
            self.conv(
                &format!("{prefix}.conv_pw"),
                &[inner, channels, 1, 1],
                false,
            );
            self.norm(&format!("{prefix}.norm_pw"), inner);
            self.conv(&format!("{prefix}.conv_dw"), &[inner, 1, 3, 3], false);
            self.norm(&format!("{prefix}.norm_dw"), inner);
            self.conv(
                &format!("{prefix}.conv_pw_linear"),
                &[channels, inner, 1, 1],
                false,
            );
            self.norm(&format!("{prefix}.norm_pw_linear"), channels);
        } else {
            self.conv(
                &format!("{prefix}.conv1"),
                &[channels, channels, 3, 3],
                true,
            );
            self.norm(&format!("{prefix}.norm2"), channels);
            self.conv(
                &format!("{prefix}.conv2"),
                &[channels, channels, 3, 3],
                true,
            );
        }
    }

    /// The last convolutions: one of 7x7, or of 3x3 at the given places of a sequence.
    fn head(&mut self, prefix: &str, c_in: usize, c_out: usize, places: &[usize]) {
        if places.is_empty() {
            self.conv(prefix, &[c_out, c_in, 7, 7], true);
        }
        for (i, place) in places.iter().enumerate() {
            let c_out = if i + 1 == places.len() { c_out } else { c_in };
            self.conv(&format!("{prefix}.{place}"), &[c_out, c_in, 3, 3], true);
        }
    }

    /// Gives back the number of features that come out.
    fn hourglass(&mut self, prefix: &str, shape: &Shape) -> usize {
        for (part, widths) in [
            ("encoder.down_blocks", shape.encoder_widths()),
            ("decoder.up_blocks", shape.decoder_widths()),
        ] {
            for (i, (from, to)) in widths.into_iter().enumerate() {
                self.block(&format!("{prefix}.{part}.{i}"), from, to, shape.mobile);
            }
        }
        shape.c_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(mobile: bool) -> ModelConfig {
        let mut config = ModelConfig::preset("vox-256").unwrap();
        config.kp.block_expansion = 8;
        config.kp.max_features = 64;
        config.kp.mobile = mobile;
        config.generator.block_expansion = 8;
        config.generator.max_features = 64;
        config.generator.mobile = mobile;
        config.generator.dense_motion.block_expansion = 8;
        config.generator.dense_motion.max_features = 64;
        config
    }

    #[test]
    fn the_list_is_what_the_reference_saves() {
        for (name, mobile) in [("vox_tiny", false), ("mobile_tiny", true)] {
            let path = format!(
                "{}/tests/fixtures/{name}.keys.json",
                env!("CARGO_MANIFEST_DIR")
            );
            let saved = std::fs::read_to_string(path).unwrap();
            let saved: BTreeMap<String, Vec<usize>> = serde_json::from_str(&saved).unwrap();
            let saved: BTreeMap<String, Vec<usize>> = saved
                .into_iter()
                .filter(|(name, _)| !name.ends_with("down.weight"))
                .map(|(name, shape)| {
                    let name = name.replace("._mean", ".running_mean");
                    (name.replace("._variance", ".running_var"), shape)
                })
                .collect();
            assert_eq!(tiny(mobile).expected_tensors(), saved, "{name}");
        }
    }

    #[test]
    fn what_a_model_does_not_estimate_has_no_tensors() {
        let mut config = tiny(false);
        config.estimate_jacobian = false;
        config.generator.estimate_occlusion_map = false;
        let names = config.expected_tensors();
        assert!(
            !names
                .keys()
                .any(|n| n.contains("jacobian") || n.contains("occlusion"))
        );
        config.estimate_jacobian = true;
        config.kp.single_jacobian_map = true;
        assert_eq!(config.expected_tensors()["kp_detector.jacobian.bias"], [4]);
    }

    #[test]
    fn the_published_model_has_sixty_million_parameters() {
        let tensors = ModelConfig::preset("vox-256").unwrap().expected_tensors();
        let parameters: usize = tensors
            .iter()
            .filter(|(name, _)| !name.contains("running"))
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        assert_eq!(parameters / 100_000, 597);
    }
}
