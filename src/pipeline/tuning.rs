//! From what the window remembers of its sliders to what compositor and motion take: in one place, so that
//! what is tuned live is what a render job makes.

use crate::animate::MotionOptions;
use crate::faces::Enhancement;
use crate::gpu::{PasteMode, PasteSettings};
use crate::settings::{Blend, Enhance, Motion};

/// How faces are put back.
pub fn paste(blend: &Blend) -> PasteSettings {
    PasteSettings {
        mode: PasteMode::Feather,
        ratio: blend.ratio,
        feather: blend.feather,
        colour_match: blend.colour_match,
        detail: blend.detail,
    }
}

/// How motion is taken over.
pub fn motion(motion: &Motion) -> MotionOptions {
    MotionOptions {
        relative: motion.relative,
        adapt_scale: motion.adapt_scale,
        gain: motion.scale,
    }
}

/// How faces are made sharper, if they are.
pub fn enhancement(enhance: &Enhance) -> Option<Enhancement> {
    enhance.on.then(|| Enhancement {
        restorer: None,
        weights: enhance.weights.clone(),
        strength: enhance.strength,
    })
}
