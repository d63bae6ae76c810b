//! The compositor: a face's prediction, 256 pixels wide, back into the photo at the photo's own
//! resolution.
//!
//! ```text
//! prediction, deformation, occlusion --prepare, at the model's size--> picture + field
//! photo, low --------------------------warp--> the face at the crop's size --paste_back--> frame
//! ```
//!
//! - `prepare.wgsl` compares the prediction with the source moved by the same deformation: where
//!   they agree, the sharpness that the generator lost comes back from the photo.
//! - `warp.wgsl` adds what is finer than the model's size: the photo at full resolution less its
//!   version of the model's size, both moved by the deformation.
//! - `paste_back.wgsl` mixes the face into the photo by a mask.
//!
//! The shaders have twins in `prepare.rs` and `reference.rs`, which are their oracle in the tests and do the work
//! where there is no graphics card ([`Choice::Auto`] takes a software adapter for none: the twin is
//! faster). All arithmetic is on sRGB values as they are, as the network's.
//!
//! Apart from that, [`YuvToRgb`] makes pictures of a camera's frames by `yuv_to_rgb.wgsl`; its twin is
//! `media::pixels`, where frames are converted without a graphics card.
//!
//! Left out: networks, crops and threads. Everything here runs on the thread that calls; wgpu queues
//! want to be used from one thread only, so keep a [`Compositor`] on one.

mod canvas;
mod compositor;
mod context;
mod interop;
mod mask;
mod neighbours;
mod paste_back;
mod prepare;
mod prepare_pass;
mod reference;
mod sample;
mod scene;
mod warp;
mod yuv;

pub use canvas::Canvas;
pub use compositor::{Choice, Compositor};
pub use context::{AdapterReport, Device, adapters, limits};
pub use mask::{PasteMode, PasteSettings};
pub use prepare::model_view;
pub use yuv::YuvToRgb;

use crate::frame::{Malformed, ViewError};
use crate::geometry::Rect;

/// Why a frame could not be composed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// wgpu was asked for by name and there is nothing to run it.
    #[error(
        "no graphics adapter that wgpu can use ({reason}): install the graphics card's Vulkan driver or use --compositor cpu"
    )]
    NoAdapter {
        /// What wgpu said.
        reason: String,
    },
    /// The graphics driver failed or took too long.
    #[error("the graphics adapter {adapter} failed ({reason}): use --compositor cpu")]
    Adapter {
        /// Name of the adapter.
        adapter: String,
        /// What wgpu said.
        reason: String,
    },
    /// Predictions cannot stay on the card.
    #[error("no memory can be shared with {adapter} ({reason}): leave --zero-copy out")]
    Sharing {
        /// Name of the adapter.
        adapter: String,
        /// Why.
        reason: String,
    },
    /// A prediction that lies on another card, or on one that is gone.
    #[error(
        "face {index} lies on a graphics card that is not the compositor's: leave --zero-copy out"
    )]
    Elsewhere {
        /// Index of the face, from 0.
        index: usize,
    },
    /// The photo has no pixels.
    #[error("the photo is empty ({width}x{height} pixels): choose another picture")]
    EmptyPhoto {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// A crop that is empty or not wholly inside the photo.
    #[error(
        "the crop {crop} is not inside the {width}x{height} photo: give X1,Y1,X2,Y2 in pixels of the photo"
    )]
    Crop {
        /// The crop as given.
        crop: Rect,
        /// The photo's width in pixels.
        width: u32,
        /// The photo's height in pixels.
        height: u32,
    },
    /// A model size that no model has.
    #[error("a model size of {0} pixels is out of range: it must be from 1 to {max}", max = MAX_SIZE)]
    ModelSize(u32),
    /// There must be one prediction for each crop.
    #[error("{predictions} predictions for {crops} crops: there must be one for each")]
    Count {
        /// Number of predictions given.
        predictions: usize,
        /// Number of crops set.
        crops: usize,
    },
    /// A prediction whose parts do not have the sizes it states.
    #[error(
        "face {index} has a prediction of the wrong size: {part} has {found} elements in place of {expected}"
    )]
    Prediction {
        /// Index of the face, from 0.
        index: usize,
        /// Which part: "picture", "deformation" or "occlusion".
        part: &'static str,
        /// Number of elements given.
        found: usize,
        /// Number of elements that its size asks for.
        expected: usize,
    },
    /// A setting that is out of its range or not a number.
    #[error("{name} {value} is out of range: it must be from {low} to {high}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// The value given.
        value: f32,
        /// Smallest value allowed.
        low: f32,
        /// Largest value allowed.
        high: f32,
    },
    /// A camera's frame whose numbers do not agree.
    #[error(transparent)]
    Frame(#[from] Malformed),
    /// The photo could not be brought to the model's size.
    #[error(transparent)]
    Resize(#[from] ViewError),
}

/// Largest side of predictions, maps and model inputs that is taken: four times the largest model.
const MAX_SIZE: u32 = 4096;

#[cfg(test)]
mod layout {
    //! The shaders' structs against their mirrors.

    use naga::TypeInner;

    /// Size in bytes of a struct of a shader, and the offset of each of its members.
    pub(super) fn of(shader: &str, name: &str) -> (usize, Vec<(String, usize)>) {
        let module = naga::front::wgsl::parse_str(shader).unwrap();
        let found = module
            .types
            .iter()
            .find(|(_, t)| t.name.as_deref() == Some(name));
        let (_, found) = found.unwrap_or_else(|| panic!("the shader has no struct {name}"));
        let TypeInner::Struct { members, span } = &found.inner else {
            panic!("{name} is no struct");
        };
        let offsets = members
            .iter()
            .map(|m| (m.name.clone().unwrap(), m.offset as usize));
        (*span as usize, offsets.collect())
    }

    /// Asserts that a mirror has the struct's size and, for the members named, its offsets.
    pub(super) fn check(shader: &str, name: &str, size: usize, offsets: &[(&str, usize)]) {
        let (span, members) = of(shader, name);
        assert_eq!(span, size, "size of {name}");
        for &(member, offset) in offsets {
            let found = members
                .iter()
                .find(|(m, _)| m == member)
                .map(|&(_, offset)| offset);
            assert_eq!(found, Some(offset), "{name}.{member}");
        }
    }
}
