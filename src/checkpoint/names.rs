//! One vocabulary of names for what the frameworks call differently, and the choice of what to keep.
//!
//! Names are PyTorch's, as first-order-model's networks have them: `generator.…` and
//! `kp_detector.…`, batch-norm statistics `running_mean` and `running_var`. PaddleGAN's networks
//! have the same names but for the statistics. A `module.` that a data-parallel wrapper put in front
//! is dropped.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::Fault;
use super::raw::Decoder;
use super::state_dict::Entry;

/// The networks of an animation model, as the keys at the top of a checkpoint.
const NETWORKS: [&str; 2] = ["generator.", "kp_detector."];

/// The encoder that GPEN has beside its generator.
const GPEN: &str = "ecd0.";

/// What BasicSR puts its networks under, the better set first.
const WRAPPERS: [&str; 2] = ["params_ema.", "params."];

/// Picks the weights among a file's entries, names them and copies them out; also returns how many
/// entries were left behind.
///
/// When the file has the animation networks, everything else at its top is left: discriminators,
/// optimisers, epochs, and the training wrapper that PaddleGAN saves as well. A file without them
/// (another network's state dictionary, plain or as BasicSR wraps it) keeps all its tensors but an
/// optimiser's; of BasicSR's two sets the averaged one.
pub(super) fn select<'a, F>(
    entries: Vec<Entry<'a>>,
    mut decoder: Decoder<F>,
) -> Result<(BTreeMap<String, Tensor>, usize), Fault>
where
    F: FnMut(&str) -> Result<&'a [u8], Fault>,
{
    let total = entries.len();
    let mut kept: Vec<_> = entries
        .into_iter()
        .filter_map(|(path, tensor)| Some((rename(&path)?, tensor?)))
        .collect();
    let in_network = |name: &str| NETWORKS.iter().any(|network| name.starts_with(network));
    // GPEN has a generator too, but nothing beside it that could be left.
    if kept.iter().any(|(name, _)| in_network(name))
        && !kept.iter().any(|(name, _)| name.starts_with(GPEN))
    {
        kept.retain(|(name, _)| in_network(name));
    }
    for wrapper in WRAPPERS {
        if kept.iter().any(|(name, _)| name.starts_with(wrapper)) {
            kept.retain_mut(|(name, _)| match name.strip_prefix(wrapper) {
                Some(inside) => {
                    *name = inside.to_owned();
                    true
                }
                None => false,
            });
        }
    }

    let skipped = total - kept.len();
    let mut tensors = BTreeMap::new();
    for (name, raw) in kept {
        // Names end up in messages and in other files.
        if !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Fault::corrupt(format!("a tensor's name is {name:?}")));
        }
        let tensor = decoder.tensor(&name, &raw)?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(Fault::corrupt(format!("it has two tensors named {name}")));
        }
    }
    Ok((tensors, skipped))
}

/// PyTorch's name for a path, or `None` for what no network computes with.
fn rename(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('.').collect();
    if parts.len() > 1 && parts[0] == "module" {
        parts.remove(0);
    }
    if parts.len() > 2 && parts[1] == "module" {
        parts.remove(1);
    }
    // Paddle's table of parameter names, and PyTorch's count of batches seen in training.
    let bookkeeping = parts.contains(&"StructuredToParameterName@@")
        || parts.last() == Some(&"num_batches_tracked");
    if bookkeeping || parts[0].starts_with("optim") {
        return None;
    }
    if let Some(last) = parts.last_mut() {
        *last = match *last {
            "_mean" => "running_mean",
            "_variance" => "running_var",
            other => other,
        };
    }
    Some(parts.join("."))
}

/// Whether a tensor is a constant that networks compute themselves: the Gaussian that PaddleGAN and
/// first-order-model keep as `down.weight` beside the weights.
pub(super) fn is_constant(name: &str) -> bool {
    name == "down.weight" || name.ends_with(".down.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_pytorchs() {
        let renamed = |path| rename(path).unwrap();
        assert_eq!(
            renamed("generator.first.norm._mean"),
            "generator.first.norm.running_mean"
        );
        assert_eq!(
            renamed("generator.first.norm._variance"),
            "generator.first.norm.running_var"
        );
        assert_eq!(
            renamed("generator.module.first.conv.weight"),
            "generator.first.conv.weight"
        );
        assert_eq!(renamed("module.kp_detector.kp.bias"), "kp_detector.kp.bias");
        assert_eq!(renamed("conv1_1.weight"), "conv1_1.weight");
        assert_eq!(renamed("weight"), "weight");
        assert_eq!(
            renamed("kp_detector.submodule.module.x"),
            "kp_detector.submodule.module.x"
        );
    }

    #[test]
    fn what_networks_do_not_compute_with_is_left() {
        for path in [
            "generator.first.norm.num_batches_tracked",
            "optimizer_generator.state.0.exp_avg",
            "optims.moment",
            "generator.StructuredToParameterName@@.first.conv.weight",
            "StructuredToParameterName@@.generator.first.conv.weight",
        ] {
            assert_eq!(rename(path), None, "{path}");
        }
    }

    #[test]
    fn the_gaussian_is_a_constant_and_the_encoder_is_not() {
        assert!(is_constant("kp_detector.down.weight"));
        assert!(!is_constant("generator.down_blocks.0.conv.weight"));
        assert!(!is_constant("generator.markdown.weight"));
    }
}
