//! Sharper faces: a generated face through a face restorer, GPEN (PaddleGAN's) or GFPGAN.
//!
//! What the restorer draws is blended over the face by a soft mask, since it knows faces and not what is
//! around them, times a strength. The result is as large as the restorer's picture, whatever the model's
//! size.
//!
//! Live, where a restorer takes longer than a frame, [`Carried`] takes what it added to one face over to
//! the faces after it, along their motion.

mod carried;

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::Tensor;

use crate::checkpoint::store::{self, Store};
use crate::checkpoint::{self, Checkpoint};
use crate::frame::{self, Prediction};
use crate::geometry::Rect;
use crate::model::{gfpgan, gpen, packed};
use crate::ops::threads::Workers;
pub use carried::Carried;

/// Why faces cannot be enhanced.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The weights cannot be read, or do not fit.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The weights folder cannot be looked at.
    #[error(transparent)]
    Store(#[from] Box<store::Error>),
    /// No weights.
    #[error(
        "face enhancement needs weights: fetch them by `mimic weights fetch {0}`, or choose a file of GPEN's or GFPGAN's"
    )]
    NoWeights(&'static str),
    /// The weights are of something else.
    #[error(
        "{what} holds no weights of {wanted} that mimic can run: give {files}, of pictures from {least} to {most} pixels",
        least = gpen::SIZES.start(), most = gpen::SIZES.end()
    )]
    Other {
        /// The file.
        what: String,
        /// The restorer asked for, or both.
        wanted: &'static str,
        /// What its files are called.
        files: &'static str,
    },
    /// The network failed.
    #[error("enhancing a face failed: {0}; leave --face-enhancement out")]
    Network(#[from] candle_core::Error),
    /// The system gives no threads.
    #[error("cannot start the threads of the face enhancement: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The face could not be brought to the network's size.
    #[error("a face could not be made ready for the enhancement: {0}")]
    Picture(#[from] frame::ViewError),
}

/// A network that restores faces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restorer {
    /// PaddleGAN's.
    Gpen,
    /// GFPGAN 1.2 to 1.4, the "clean" architecture.
    Gfpgan,
}

impl Restorer {
    /// Names of the published models that are of a restorer, or of any, the one to be asked for first.
    pub fn models(wanted: Option<Self>) -> &'static [&'static str] {
        match wanted {
            Some(Self::Gpen) => &["gpen-512", "gpen-512-paddle"],
            Some(Self::Gfpgan) => &["gfpgan-1.4"],
            None => &["gpen-512", "gpen-512-paddle", "gfpgan-1.4"],
        }
    }
}

/// What is to be done to every generated face.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Enhancement {
    /// By whom; by whomever the weights are of when none.
    pub restorer: Option<Restorer>,
    /// The restorer's weights; where they are found by name when none.
    pub weights: Option<PathBuf>,
    /// How much of it, 0..=1.
    pub strength: f32,
}

/// Enhances faces, one at a time.
#[derive(Debug)]
pub struct Enhancer {
    network: Network,
    size: usize,
    mask: Vec<f32>,
    strength: f32,
}

#[derive(Debug)]
enum Network {
    Gpen(Box<packed::Gpen>),
    Gfpgan(Box<packed::Gfpgan>),
}

impl Enhancer {
    /// Loads a restorer's weights: PyTorch's, Paddle's or safetensors; of any size of its architecture.
    /// `threads` are those that it runs on.
    ///
    /// # Errors
    /// When there are no weights, they cannot be read, are damaged or another network's.
    pub fn open(wanted: &Enhancement, threads: usize) -> Result<Self, Error> {
        let file = find(wanted)?;
        let checkpoint = checkpoint::open(&file)?;
        checkpoint::check_values(&checkpoint)?;
        let network = load(checkpoint, wanted.restorer, Workers::new(threads)?)?;
        Ok(Self::of(network, wanted.strength))
    }

    fn of((network, size): (Network, usize), strength: f32) -> Self {
        Self {
            network,
            size,
            mask: mask(size),
            strength: strength.clamp(0.0, 1.0),
        }
    }

    /// Side of the pictures it gives.
    pub fn size(&self) -> u32 {
        self.size as u32
    }

    /// Enhances a face in place: its picture gets the enhancer's size.
    ///
    /// # Errors
    /// When the picture has no pixels or memory is short.
    pub fn enhance(&mut self, face: &mut Prediction) -> Result<(), Error> {
        if self.strength == 0.0 {
            return Ok(());
        }
        let enlarged = enlarge(face, self.size())?;
        let side = self.size;
        let planar: Vec<f32> = (0..3)
            .flat_map(|channel| {
                let levels = enlarged.chunks_exact(4).map(move |pixel| pixel[channel]);
                levels.map(|level| f32::from(level) / 127.5 - 1.0)
            })
            .collect();
        let restored = match &mut self.network {
            Network::Gpen(network) => network.run(&planar),
            Network::Gfpgan(network) => network.run(&planar),
        };
        face.size = self.size();
        face.rgba = enlarged;
        for (i, (pixel, mask)) in face.rgba.chunks_exact_mut(4).zip(&self.mask).enumerate() {
            let amount = mask * self.strength;
            for (channel, level) in pixel.iter_mut().take(3).enumerate() {
                let drawn = restored[channel * side * side + i].clamp(-1.0, 1.0) * 127.5 + 127.5;
                let before = f32::from(*level);
                *level = (before + amount * (drawn - before)).round() as u8;
            }
        }
        Ok(())
    }
}

/// Where a restorer's weights are: those given, else a published model's that is here.
fn find(wanted: &Enhancement) -> Result<PathBuf, Error> {
    if let Some(given) = &wanted.weights {
        return Ok(given.clone());
    }
    let names = Restorer::models(wanted.restorer);
    let store = Store::of_environment().map_err(Box::new)?;
    let here = store.first_here(names);
    here.ok_or(Error::NoWeights(names[0]))
}

/// The network that a checkpoint's tensors make, and the side of its pictures.
fn load(
    checkpoint: Checkpoint,
    wanted: Option<Restorer>,
    workers: Workers,
) -> Result<(Network, usize), Error> {
    let restorer = wanted.unwrap_or_else(|| {
        let clean = checkpoint.tensors.contains_key("conv_body_first.weight");
        if clean {
            Restorer::Gfpgan
        } else {
            Restorer::Gpen
        }
    });
    let other = |what: &str| Error::Other {
        what: what.to_owned(),
        wanted: match wanted {
            Some(Restorer::Gpen) => "GPEN",
            Some(Restorer::Gfpgan) => "GFPGAN's clean form",
            None => "GPEN or GFPGAN",
        },
        files: match wanted {
            Some(Restorer::Gpen) => "GPEN-BFR-512.pth",
            Some(Restorer::Gfpgan) => "GFPGANv1.4.pth",
            None => "GPEN-BFR-512.pth, GPEN-512.pdparams or GFPGANv1.4.pth",
        },
    };
    let fitting = |tensors: BTreeMap<String, Tensor>, expected| -> Result<_, Error> {
        let tidy = Checkpoint {
            tensors,
            ..checkpoint.clone()
        };
        checkpoint::check(&tidy, &expected)?;
        Ok(tidy.tensors)
    };
    match restorer {
        Restorer::Gpen => {
            let tensors = gpen::tidy(checkpoint.tensors.clone())?;
            let shape = gpen::Shape::of(&tensors).ok_or_else(|| other(&checkpoint.what))?;
            let tensors = fitting(tensors, shape.expected_tensors())?;
            let network = packed::Gpen::new(&shape, &tensors, workers)?;
            Ok((Network::Gpen(Box::new(network)), shape.size()))
        }
        Restorer::Gfpgan => {
            let tensors = gfpgan::tidy(checkpoint.tensors.clone());
            let shape = gfpgan::Shape::of(&tensors).ok_or_else(|| other(&checkpoint.what))?;
            let tensors = fitting(tensors, shape.expected_tensors())?;
            let network = packed::Gfpgan::new(&shape, &tensors, workers)?;
            Ok((Network::Gfpgan(Box::new(network)), shape.size()))
        }
    }
}

/// A face's pixels at another size.
fn enlarge(face: &Prediction, size: u32) -> Result<Vec<u8>, Error> {
    if face.size == size {
        return Ok(face.rgba.clone());
    }
    let whole = Rect::of_size(face.size, face.size);
    let picture = image::RgbaImage::from_raw(face.size, face.size, face.rgba.clone());
    let picture = picture.unwrap_or_default();
    Ok(frame::view(&picture, whole, size, size)?.into_raw())
}

/// How much of the restored picture is seen: PaddleGAN's, of 512 pixels, at the size asked for. A square up
/// to 26 pixels from the edge, blurred twice by a Gaussian of 11 pixels that is cut off at 50.
fn mask(size: usize) -> Vec<f32> {
    let scale = size as f64 / 512.0;
    let (first, last) = ((26.0 * scale).round(), (486.0 * scale).round());
    let (sigma, radius) = (11.0 * scale, (50.0 * scale).round() as i64);
    let weights: Vec<f64> = (-radius..=radius)
        .map(|x| (-(x * x) as f64 / (2.0 * sigma * sigma)).exp())
        .collect();
    let sum: f64 = weights.iter().sum();
    let mut profile: Vec<f64> = (0..size)
        .map(|x| f64::from(u8::from((first..=last).contains(&(x as f64)))))
        .collect();
    for _ in 0..2 {
        let blurred = |x: i64| {
            let taps = (-radius..=radius).zip(&weights);
            let value = taps.map(|(d, weight)| weight * profile[reflect(x + d, size)]);
            value.sum::<f64>() / sum
        };
        profile = (0..size as i64).map(blurred).collect();
    }
    let rows = profile.iter();
    rows.flat_map(|y| profile.iter().map(move |x| (x * y) as f32))
        .collect()
}

/// A place beyond the edge is seen in the mirror of the outermost pixel.
fn reflect(at: i64, size: usize) -> usize {
    let last = size as i64 - 1;
    let inside = if at < 0 { -at } else { at };
    (if inside > last {
        2 * last - inside
    } else {
        inside
    })
    .clamp(0, last) as usize
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::procedural;

    #[test]
    fn the_mask_is_paddlegans() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/gpen64_procedural.safetensors"
        );
        let recorded = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let recorded: Vec<f32> = recorded["mask512"]
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let ours = mask(512);
        for (i, (ours, theirs)) in ours.iter().zip(&recorded).enumerate() {
            let place = (i % 512, i / 512);
            assert!((ours - theirs).abs() < 1e-5, "{place:?}: {ours} {theirs}");
        }
    }

    /// A restorer of 64 pixels with few features.
    fn small(strength: f32) -> Enhancer {
        let shape = gpen::Shape {
            widths: vec![16; 5],
            style: 16,
            mapping: 2,
        };
        let tensors = procedural::gpen(&shape, "small").unwrap();
        let workers = Workers::new(1).unwrap();
        let network = packed::Gpen::new(&shape, &tensors, workers).unwrap();
        Enhancer::of((Network::Gpen(Box::new(network)), shape.size()), strength)
    }

    fn face(side: u32) -> Prediction {
        Prediction {
            size: side,
            rgba: (0..side * side)
                .flat_map(|i| [i as u8, 90, 200, 255])
                .collect(),
            ..Prediction::default()
        }
    }

    #[test]
    fn strength_goes_from_nothing_to_all_of_it_and_never_to_the_edge() {
        let plain = face(64);
        let made = [0.0, 0.5, 1.0].map(|strength| {
            let mut face = plain.clone();
            small(strength).enhance(&mut face).unwrap();
            face
        });
        assert_eq!(made[0].rgba, plain.rgba);
        assert_ne!(made[2].rgba, plain.rgba);
        for i in 0..plain.rgba.len() {
            let [none, half, all] = [0, 1, 2].map(|k| i32::from(made[k].rgba[i]));
            assert!((2 * half - none - all).abs() <= 2, "{none} {half} {all}");
        }
        // At the corner hardly anything of the mask is left.
        let corner = made[2].rgba.iter().zip(&plain.rgba).take(3);
        assert!(corner.into_iter().all(|(a, b)| a.abs_diff(*b) < 8));
        assert!(made[2].rgba.chunks(4).all(|pixel| pixel[3] == 255));
    }

    #[test]
    fn a_face_of_another_size_gets_the_restorers() {
        for side in [1, 16, 48, 200] {
            let mut made = face(side);
            small(1.0).enhance(&mut made).unwrap();
            assert_eq!((made.size, made.rgba.len()), (64, 64 * 64 * 4));
        }
    }
}
