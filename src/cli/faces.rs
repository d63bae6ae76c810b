//! `mimic faces`: the faces that a detector finds in a photo, with their numbers.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use super::{Failure, weights};
use crate::faces::{Detector, DetectorChoice};
use crate::media;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The photo: PNG, JPEG, WebP, BMP, TIFF or GIF
    #[arg(value_name = "PHOTO")]
    photo: PathBuf,
    #[command(flatten)]
    detector: DetectorArgs,
    /// Print a JSON array instead of lines
    #[arg(long)]
    json: bool,
}

/// The flags that choose a detector; `animate` has them too.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct DetectorArgs {
    /// Who finds the faces in the photo
    #[arg(long, value_enum, default_value_t = Name::Auto)]
    face_detector: Name,
    /// S3FD's weights: s3fd-619a316812.pth (PyTorch) or s3fd_paddle.pdparams, or the model s3fd or s3fd-paddle
    #[arg(long, value_name = "FILE|NAME")]
    detector_weights: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// S3FD where its weights are given, else mimic's own.
    Auto,
    /// S3FD, as PaddleGAN.
    S3fd,
    /// The embedded one.
    Mimic,
}

impl DetectorArgs {
    pub(super) fn choice(&self) -> DetectorChoice {
        match self.face_detector {
            Name::Auto => DetectorChoice::Auto,
            Name::S3fd => DetectorChoice::S3fd,
            Name::Mimic => DetectorChoice::Mimic,
        }
    }

    /// S3FD's weights, where it is asked for: those given, else the model of that name.
    pub(super) fn weights(&self) -> Result<Option<PathBuf>, Failure> {
        match (self.face_detector, &self.detector_weights) {
            (Name::Mimic, _) | (Name::Auto, None) => Ok(None),
            (_, Some(given)) => weights::find(given).map(Some),
            (Name::S3fd, None) => weights::find_any(&["s3fd", "s3fd-paddle"]).map(Some),
        }
    }
}

#[allow(clippy::print_stdout, reason = "this is the result")]
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let photo = media::open_photo(&args.photo)?;
    let weights = args.detector.weights()?;
    let mut detector = Detector::open(args.detector.choice(), weights.as_deref())?;
    let faces = detector.detect(&photo)?;
    if args.json {
        let list: Vec<_> = faces
            .iter()
            .enumerate()
            .map(|(i, face)| {
                let rect = face.rect;
                json!({
                    "number": i + 1,
                    "face": [rect.x1, rect.y1, rect.x2, rect.y2],
                    "score": face.score,
                })
            })
            .collect();
        println!("{}", json!(list));
        return Ok(());
    }
    for (i, face) in faces.iter().enumerate() {
        println!("{}: {} (score {:.2})", i + 1, face.rect, face.score);
    }
    if faces.is_empty() {
        eprintln!("no face was found in {}", args.photo.display());
    }
    Ok(())
}
