//! Removing the channels of a generator and its dense motion network that count least (network slimming,
//! Liu et al., ICCV 2017).
//!
//! Channels that belong together go together: those of the residual stream with every block that reads and
//! adds to it, those of a depthwise convolution with what it reads, those of a skip connection with both of
//! its readers. Each such group has one order of importance. How many stay is decided for each size of
//! picture: by one threshold over all groups, so that a size with much to spare loses more than another.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use crate::model::ModelConfig;
use crate::model::hourglass::Shape;

/// No size keeps less than this share of its channels.
const LEAST: f64 = 0.25;

/// Widths from here on stay multiples of a block of the packed engine, which would compute the rest anyway.
const BLOCK: usize = 16;

/// A smaller model.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// Its shape: [`widths`](crate::model::config::GeneratorConfig::widths) say what is left.
    pub config: ModelConfig,
    /// Its tensors, as [`ModelConfig::expected_tensors`] lists them.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Removes about the share `ratio` (0..1) of the generator's and dense motion's channels, those that count
/// least. The keypoint detector stays. A channel counts by the scale of the batch norms that it comes from,
/// times the scale of those that read it alone; by the size of its weights where there is no norm. A ratio
/// of 0 changes nothing.
///
/// # Errors
/// When `tensors` are not those of `config`.
pub fn prune(
    config: &ModelConfig,
    tensors: &BTreeMap<String, Tensor>,
    ratio: f64,
) -> Result<Pruned> {
    let plan = Plan::of(config);
    let importance = plan
        .groups
        .iter()
        .map(|group| group.importance(tensors))
        .collect::<Result<Vec<_>>>()?;
    let slim = plan.slimmed(config, &importance, ratio);
    let small = Plan::of(&slim);
    let kept: Vec<Vec<u32>> = importance
        .iter()
        .zip(&small.groups)
        .map(|(values, group)| largest(values, group.size))
        .collect();

    let mut result = tensors.clone();
    for layer in &plan.layers {
        for (part, value) in layer.tensors(tensors) {
            let mut value = value.index_select(&plan.places(&layer.to, &kept)?, 0)?;
            if part == "weight" && !layer.from.is_empty() {
                value = value.index_select(&plan.places(&layer.from, &kept)?, 1)?;
            }
            result.insert(format!("{}.{part}", layer.name), value);
        }
    }
    Ok(Pruned {
        config: slim,
        tensors: result,
    })
}

/// Names of the scales that importance is read from: what a slimming penalty draws towards zero.
pub fn scales(config: &ModelConfig) -> Vec<String> {
    let groups = Plan::of(config).groups.into_iter();
    let gates = groups.filter(|g| g.level.is_some()).flat_map(|group| {
        let named = group.made.into_iter().chain(group.read);
        named.filter_map(|gate| gate.norm.then_some(gate.name))
    });
    let mut names: Vec<String> = gates.collect();
    names.sort();
    names.dedup();
    names
}

/// Which network a group is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Net {
    Generator,
    Motion,
}

/// Channels that are removed together.
#[derive(Debug)]
struct Group {
    size: usize,
    /// The size of picture whose width it follows; none for what stays, or follows others.
    level: Option<(Net, usize)>,
    /// What its channels come from.
    made: Vec<Gate>,
    /// Norms that take each channel alone before anything mixes them.
    read: Vec<Gate>,
}

/// A tensor that says how much channels count.
#[derive(Debug)]
struct Gate {
    name: String,
    /// Where the group's channels begin in it.
    at: usize,
    /// A norm's scale, or a convolution's weights.
    norm: bool,
}

/// Number of a group in the plan.
type Id = usize;

/// A convolution, or a batch norm (which has no `from`).
#[derive(Debug)]
struct Layer {
    name: String,
    from: Vec<Id>,
    to: Vec<Id>,
}

#[derive(Debug, Default)]
struct Plan {
    groups: Vec<Group>,
    layers: Vec<Layer>,
}

impl Plan {
    fn of(config: &ModelConfig) -> Self {
        let mut plan = Self::default();
        plan.add_motion(config);
        plan.add_generator(config);
        plan
    }

    fn add_motion(&mut self, config: &ModelConfig) {
        let shape = Shape::of_motion(config);
        let prefix = "generator.dense_motion_network";
        let level = |level: usize| Some((Net::Motion, level));
        let input = self.group(shape.c_in, None);
        let depth = shape.num_blocks();
        let mut encoder = vec![input];
        for i in 0..depth {
            let out = self.group(shape.widths[i + 1], level(i + 1));
            let name = format!("{prefix}.hourglass.encoder.down_blocks.{i}");
            self.block(&name, &[encoder[i]], out, shape.mobile);
            encoder.push(out);
        }
        let mut from = vec![encoder[depth]];
        for (i, at) in (0..depth).rev().enumerate() {
            let out = self.group(shape.widths[at], level(at));
            let name = format!("{prefix}.hourglass.decoder.up_blocks.{i}");
            self.block(&name, &from, out, shape.mobile);
            from = vec![out, encoder[at]];
        }
        let mut heads = vec![("mask", config.num_kp + 1)];
        if config.generator.estimate_occlusion_map {
            heads.push(("occlusion", 1));
        }
        for (head, c_out) in heads {
            self.head(&format!("{prefix}.{head}"), &from, c_out, shape.mobile);
        }
    }

    fn add_generator(&mut self, config: &ModelConfig) {
        let generator = &config.generator;
        let (levels, mobile) = (generator.num_down_blocks, generator.mobile);
        let width = |level| generator.width(level);
        let level = |level: usize| Some((Net::Generator, level));
        let picture = self.group(config.num_channels, None);
        let full = self.group(width(0), level(0));
        if mobile {
            let mut from = picture;
            for i in 0..3 {
                let to = match i {
                    2 => full,
                    _ => self.group(config.num_channels, None),
                };
                self.normed(
                    &format!("generator.first.{i}"),
                    ("conv", "norm"),
                    &[from],
                    to,
                );
                from = to;
            }
        } else {
            self.normed("generator.first", ("conv", "norm"), &[picture], full);
        }
        let mut stream = full;
        for i in 0..levels {
            let out = self.group(width(i + 1), level(i + 1));
            self.block(
                &format!("generator.down_blocks.{i}"),
                &[stream],
                out,
                mobile,
            );
            stream = out;
        }
        for i in 0..generator.num_bottleneck_blocks {
            self.residual(
                &format!("generator.bottleneck.r{i}"),
                stream,
                level(levels),
                mobile,
            );
        }
        for i in 0..levels {
            let at = levels - i - 1;
            let out = self.group(width(at), level(at));
            self.block(&format!("generator.up_blocks.{i}"), &[stream], out, mobile);
            stream = out;
        }
        self.head("generator.final", &[stream], config.num_channels, mobile);
    }

    fn group(&mut self, size: usize, level: Option<(Net, usize)>) -> Id {
        self.groups.push(Group {
            size,
            level,
            made: Vec::new(),
            read: Vec::new(),
        });
        self.groups.len() - 1
    }

    fn layer(&mut self, name: String, from: &[Id], to: &[Id]) {
        self.layers.push(Layer {
            name,
            from: from.to_vec(),
            to: to.to_vec(),
        });
    }

    /// A convolution and the norm that its channels come from.
    fn normed(&mut self, prefix: &str, (conv, norm): (&str, &str), from: &[Id], to: Id) {
        self.layer(format!("{prefix}.{conv}"), from, &[to]);
        self.layer(format!("{prefix}.{norm}"), &[], &[to]);
        self.groups[to].made.push(Gate {
            name: format!("{prefix}.{norm}.weight"),
            at: 0,
            norm: true,
        });
    }

    /// A convolution without a norm.
    fn bare(&mut self, name: &str, from: &[Id], to: Id) {
        self.layer(name.to_owned(), from, &[to]);
        self.groups[to].made.push(Gate {
            name: format!("{name}.weight"),
            at: 0,
            norm: false,
        });
    }

    /// A norm that reads channels one by one.
    fn reader(&mut self, name: String, of: &[Id]) {
        let mut at = 0;
        for &id in of {
            let group = &mut self.groups[id];
            group.read.push(Gate {
                name: format!("{name}.weight"),
                at,
                norm: true,
            });
            at += group.size;
        }
        self.layer(name, &[], of);
    }

    fn block(&mut self, prefix: &str, from: &[Id], to: Id, mobile: bool) {
        if !mobile {
            return self.normed(prefix, ("conv", "norm"), from, to);
        }
        self.layer(format!("{prefix}.conv"), &[], from);
        self.reader(format!("{prefix}.norm"), from);
        self.normed(prefix, ("conv1", "norm1"), from, to);
    }

    fn residual(&mut self, prefix: &str, stream: Id, level: Option<(Net, usize)>, mobile: bool) {
        self.reader(format!("{prefix}.norm1"), &[stream]);
        let times = if mobile { 2 } else { 1 };
        let inner = self.group(times * self.groups[stream].size, level);
        if mobile {
            self.normed(prefix, ("conv_pw", "norm_pw"), &[stream], inner);
            self.layer(format!("{prefix}.conv_dw"), &[], &[inner]);
            self.reader(format!("{prefix}.norm_dw"), &[inner]);
            self.normed(
                prefix,
                ("conv_pw_linear", "norm_pw_linear"),
                &[inner],
                stream,
            );
        } else {
            self.normed(prefix, ("conv1", "norm2"), &[stream], inner);
            self.bare(&format!("{prefix}.conv2"), &[inner], stream);
        }
    }

    fn head(&mut self, prefix: &str, from: &[Id], c_out: usize, mobile: bool) {
        let out = self.group(c_out, None);
        if !mobile {
            return self.bare(prefix, from, out);
        }
        // The convolutions between are as wide as what the head reads, part by part.
        let mut from = from.to_vec();
        for place in ["0", "2"] {
            let size = from.iter().map(|&id| self.groups[id].size).sum();
            let inner = self.group(size, None);
            self.bare(&format!("{prefix}.{place}"), &from, inner);
            from = vec![inner];
        }
        self.bare(&format!("{prefix}.4"), &from, out);
    }

    /// The configuration that is left when what lies under the threshold goes.
    fn slimmed(&self, config: &ModelConfig, importance: &[Vec<f64>], ratio: f64) -> ModelConfig {
        // Groups are compared by how far a channel is from its group's mean.
        let mut levels: BTreeMap<(Net, usize), Vec<f64>> = BTreeMap::new();
        for (group, values) in self.groups.iter().zip(importance) {
            let Some(level) = group.level else { continue };
            let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
            let relative = values.iter().map(|v| v / mean.max(1e-12));
            levels.entry(level).or_default().extend(relative);
        }
        let mut all: Vec<f64> = levels.values().flatten().copied().collect();
        all.sort_by(f64::total_cmp);
        let removed = (ratio.clamp(0.0, 1.0) * all.len() as f64) as usize;
        let threshold = match removed {
            0 => f64::NEG_INFINITY,
            n => all[n.min(all.len()) - 1],
        };
        let left = |net: Net, level: usize, width: usize| {
            let Some(values) = levels.get(&(net, level)) else {
                return width;
            };
            let share = values.iter().filter(|v| **v > threshold).count() as f64;
            let share = (share / values.len() as f64).max(LEAST);
            let wanted = ((share * width as f64).ceil() as usize).max(1);
            match width < 2 * BLOCK {
                true => wanted,
                false => wanted.next_multiple_of(BLOCK).min(width),
            }
        };
        let mut slim = config.clone();
        let generator = &config.generator;
        let widths = (0..=generator.num_down_blocks)
            .map(|level| left(Net::Generator, level, generator.width(level)));
        slim.generator.widths = Some(widths.collect());
        let motion = &generator.dense_motion;
        let widths =
            (0..=motion.num_blocks).map(|level| left(Net::Motion, level, motion.width(level)));
        slim.generator.dense_motion.widths = Some(widths.collect());
        if slim.expected_tensors() == config.expected_tensors() {
            return config.clone();
        }
        slim
    }

    /// Which channels of groups beside each other are kept.
    fn places(&self, groups: &[Id], kept: &[Vec<u32>]) -> Result<Tensor> {
        let mut places = Vec::new();
        let mut at = 0;
        for &id in groups {
            places.extend(kept[id].iter().map(|place| at + place));
            at += self.groups[id].size as u32;
        }
        Tensor::new(places, &Device::Cpu)
    }
}

impl Layer {
    /// What the layer has, by its last name.
    fn tensors<'a>(
        &'a self,
        all: &'a BTreeMap<String, Tensor>,
    ) -> impl Iterator<Item = (&'static str, &'a Tensor)> {
        ["weight", "bias", "running_mean", "running_var"]
            .into_iter()
            .filter_map(|part| Some((part, all.get(&format!("{}.{part}", self.name))?)))
    }
}

impl Group {
    /// How much each channel counts.
    fn importance(&self, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<f64>> {
        let sum = |gates: &[Gate]| -> Result<Option<Vec<f64>>> {
            let mut sum: Option<Vec<f64>> = None;
            for gate in gates {
                let values = gate.values(tensors, self.size)?;
                sum = Some(match sum {
                    None => values,
                    Some(sum) => sum.iter().zip(&values).map(|(a, b)| a + b).collect(),
                });
            }
            Ok(sum)
        };
        let (made, read) = (sum(&self.made)?, sum(&self.read)?);
        Ok(match (made, read) {
            (Some(made), Some(read)) => made.iter().zip(&read).map(|(a, b)| a * b).collect(),
            (Some(values), None) | (None, Some(values)) => values,
            (None, None) => vec![1.0; self.size],
        })
    }
}

impl Gate {
    /// Absolute values for each of `size` channels, their mean 1.
    fn values(&self, tensors: &BTreeMap<String, Tensor>, size: usize) -> Result<Vec<f64>> {
        let Some(tensor) = tensors.get(&self.name) else {
            candle_core::bail!("there is no tensor {}", self.name);
        };
        let tensor = tensor.to_dtype(DType::F64)?.abs()?;
        let rows = match self.norm {
            true => tensor.narrow(0, self.at, size)?,
            false => tensor.flatten_from(1)?.mean(1)?.narrow(0, self.at, size)?,
        };
        let values: Vec<f64> = rows.to_vec1()?;
        let mean = values.iter().sum::<f64>() / size.max(1) as f64;
        Ok(values.iter().map(|v| v / mean.max(1e-12)).collect())
    }
}

/// Places of the `count` largest values, in their order; of equal ones the first.
fn largest(values: &[f64], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]));
    order.truncate(count);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{KeypointTensors, Networks, procedural};

    fn config(mobile: bool) -> ModelConfig {
        let mut config = ModelConfig::preset("vox-256").unwrap();
        config.image_size = 64;
        config.num_kp = 3;
        (config.kp.block_expansion, config.kp.max_features) = (2, 4);
        config.kp.num_blocks = 2;
        let generator = &mut config.generator;
        generator.mobile = mobile;
        (generator.block_expansion, generator.max_features) = (4, 8);
        generator.num_bottleneck_blocks = 2;
        let motion = &mut generator.dense_motion;
        (motion.block_expansion, motion.max_features) = (4, 8);
        motion.num_blocks = 2;
        config
    }

    /// Silences half of the channels of every group, every second one.
    fn silenced(config: &ModelConfig) -> BTreeMap<String, Tensor> {
        let mut tensors = procedural::tensors(config, "prune").unwrap();
        let plan = Plan::of(config);
        for (id, group) in plan.groups.iter().enumerate() {
            // What lies between the convolutions of a mobile head shrinks with the widest size.
            let between = group
                .made
                .iter()
                .any(|gate| gate.name.ends_with(".0.weight") || gate.name.ends_with(".2.weight"));
            let silent: Vec<usize> = match group.level {
                Some(_) => (0..group.size).step_by(2).collect(),
                None if between => vec![0, 2],
                None => continue,
            };
            for layer in plan.layers.iter().filter(|layer| layer.to.contains(&id)) {
                let before = layer.to.iter().take_while(|&&other| other != id);
                let at: usize = before.map(|&other| plan.groups[other].size).sum();
                for part in ["weight", "bias", "running_mean"] {
                    let name = format!("{}.{part}", layer.name);
                    let Some(value) = tensors.get(&name) else {
                        continue;
                    };
                    let rows = value.dim(0).unwrap();
                    let keep: Vec<f32> = (0..rows)
                        .map(|row| f32::from(u8::from(!silent.iter().any(|s| at + s == row))))
                        .collect();
                    let mut shape = vec![1; value.rank()];
                    shape[0] = rows;
                    let keep = Tensor::from_vec(keep, shape, &Device::Cpu).unwrap();
                    let value = value.broadcast_mul(&keep).unwrap();
                    tensors.insert(name, value);
                }
            }
        }
        tensors
    }

    fn drawn(config: &ModelConfig, tensors: &BTreeMap<String, Tensor>) -> Vec<f32> {
        let networks = Networks::new(config, tensors, &Device::Cpu).unwrap();
        let ramp: Vec<f32> = (0..3 * 64 * 64)
            .map(|i| (i as f32 * 0.013).sin() * 0.5 + 0.5)
            .collect();
        let picture = Tensor::from_vec(ramp, (1, 3, 64, 64), &Device::Cpu).unwrap();
        let detector = &networks.keypoint_detector;
        let source: KeypointTensors = detector.forward(&picture).unwrap();
        let driving = detector
            .forward(&picture.affine(-1.0, 1.0).unwrap())
            .unwrap();
        let features = networks.generator.encode_source(&picture).unwrap();
        let output = networks
            .generator
            .forward(&features, &source, &driving)
            .unwrap();
        let all = [output.prediction, output.deformation];
        all.iter()
            .flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .collect()
    }

    #[test]
    fn channels_that_say_nothing_go_without_a_trace() {
        for mobile in [false, true] {
            let config = config(mobile);
            let tensors = silenced(&config);
            let pruned = prune(&config, &tensors, 0.5).unwrap();
            assert_eq!(pruned.config.generator.widths, Some(vec![2, 4, 4]));
            let motion = &pruned.config.generator.dense_motion;
            assert_eq!(motion.widths, Some(vec![2, 4, 4]));
            let expected = pruned.config.expected_tensors();
            assert_eq!(expected.len(), pruned.tensors.len());
            for (name, shape) in expected {
                assert_eq!(pruned.tensors[&name].dims(), shape, "{name}");
            }
            let (before, after) = (
                drawn(&config, &tensors),
                drawn(&pruned.config, &pruned.tensors),
            );
            let off = before.iter().zip(&after).map(|(a, b)| (a - b).abs());
            let off = off.fold(0f32, f32::max);
            assert!(off < 1e-5, "mobile {mobile}: {off}");
        }
    }

    #[test]
    fn nothing_is_pruned_when_nothing_is_asked_for() {
        let config = config(true);
        let tensors = procedural::tensors(&config, "prune").unwrap();
        let pruned = prune(&config, &tensors, 0.0).unwrap();
        assert_eq!(pruned.config, config);
        for (name, tensor) in &tensors {
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(tensor), flat(&pruned.tensors[name]), "{name}");
        }
    }

    #[test]
    fn no_size_loses_more_than_three_quarters_and_wide_ones_stay_in_blocks() {
        let config = ModelConfig::preset("vox-mobile").unwrap();
        let tensors = procedural::tensors(&config, "prune").unwrap();
        for ratio in [0.3, 0.95] {
            let pruned = prune(&config, &tensors, ratio).unwrap().config;
            pruned.check().unwrap();
            let generator = &pruned.generator;
            for level in 0..=2 {
                let (left, all) = (generator.width(level), config.generator.width(level));
                assert!(
                    4 * left >= all && left <= all && left % 16 == 0,
                    "{left} of {all}"
                );
            }
            // The shape survives the header of a weights file.
            assert_eq!(
                ModelConfig::from_json(&pruned.to_json(), None).unwrap(),
                pruned
            );
        }
    }

    #[test]
    fn every_channel_of_every_tensor_belongs_to_a_group() {
        for mobile in [false, true] {
            let config = config(mobile);
            let plan = Plan::of(&config);
            let tensors = procedural::tensors(&config, "prune").unwrap();
            let mut seen = 0;
            for layer in &plan.layers {
                let channels: usize = layer.to.iter().map(|&id| plan.groups[id].size).sum();
                for (_, tensor) in layer.tensors(&tensors) {
                    assert_eq!(tensor.dim(0).unwrap(), channels, "{}", layer.name);
                    seen += 1;
                }
            }
            let all = tensors.keys().filter(|name| name.starts_with("generator."));
            assert_eq!(seen, all.count());
        }
    }
}
