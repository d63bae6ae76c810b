//! Finding the faces in a picture.
//!
//! Two networks behind one [`Detector`]: the embedded `mimic-face`, which is there at first start,
//! and S3FD, PaddleGAN's, whose weights are downloaded. Both look at the picture at a limited size and
//! give boxes in pixels of the whole picture, sorted left to right.
//!
//! Left out: margins (see [`square_crop`](super::square_crop)).

mod boxes;
mod mimic;
mod s3fd;

use std::path::Path;

use image::RgbaImage;

use crate::checkpoint;
use crate::geometry::Rect;
use crate::ops::threads::available_threads;
use boxes::Candidate;
pub(super) use mimic::Mimic;

/// A face as a detector gives it: forehead to chin, without margin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Face {
    /// Where it is, in pixels of the picture; at its edge a little may lie outside.
    pub rect: Rect,
    /// How sure the detector is, over 0.5 and up to 1.
    pub score: f32,
}

/// Why faces could not be looked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The weights cannot be read, or are another network's.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// S3FD without its weights.
    #[error(
        "S3FD needs its weights: give --detector-weights s3fd-619a316812.pth (PyTorch's) or s3fd_paddle.pdparams, or take --face-detector mimic"
    )]
    NoWeights,
    /// The tensors do not make the network, or it failed.
    #[error("the face detector failed: {0}; give the face by hand with --face X1,Y1,X2,Y2")]
    Network(#[from] candle_core::Error),
    /// The system gives no threads.
    #[error("cannot start the threads of the face detector: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The picture could not be brought to the network's size.
    #[error("the picture could not be made ready for the face detector: {0}")]
    Picture(#[from] crate::frame::ViewError),
}

/// Which network finds faces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectorChoice {
    /// S3FD where its weights are given, else the embedded one.
    #[default]
    Auto,
    /// PaddleGAN's.
    S3fd,
    /// The embedded one.
    Mimic,
}

/// Finds faces.
#[derive(Debug)]
pub struct Detector(Network);

#[derive(Debug)]
enum Network {
    Mimic(Box<Mimic>),
    S3fd(Box<s3fd::Finder>),
}

impl Detector {
    /// The detector of a choice; `weights` are S3FD's.
    ///
    /// # Errors
    /// When S3FD is asked for without weights; as [`Detector::s3fd`].
    pub fn open(choice: DetectorChoice, weights: Option<&Path>) -> Result<Self, Error> {
        match (choice, weights) {
            (DetectorChoice::Mimic, _) | (DetectorChoice::Auto, None) => Self::embedded(),
            (_, Some(weights)) => Self::s3fd(weights),
            (DetectorChoice::S3fd, None) => Err(Error::NoWeights),
        }
    }

    /// The detector that is built into the program.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn embedded() -> Result<Self, Error> {
        let threads = available_threads();
        Ok(Self(Network::Mimic(Box::new(Mimic::new(threads)?))))
    }

    /// S3FD from PyTorch's or Paddle's weights.
    ///
    /// # Errors
    /// When the weights cannot be read, are damaged or are another network's.
    pub fn s3fd(weights: &Path) -> Result<Self, Error> {
        Ok(Self(Network::S3fd(Box::new(s3fd::Finder::new(weights)?))))
    }

    /// Every face of a picture, from left to right; none is no error.
    ///
    /// # Errors
    /// When the picture has no pixels or memory is short.
    pub fn detect(&mut self, picture: &RgbaImage) -> Result<Vec<Face>, Error> {
        let found = match &mut self.0 {
            Network::Mimic(network) => network.detect_all(picture)?,
            Network::S3fd(network) => network.detect(picture)?,
        };
        let mut faces: Vec<Face> = found.iter().filter_map(Candidate::face).collect();
        faces.sort_by_key(|face| (face.rect.x1, face.rect.y1));
        Ok(faces)
    }
}
