//! Networks that a user brings as ONNX files to measure by: landmarks for AKD, identities for AED.
//!
//! They run in tract, on the CPU, and are strangers: sizes are checked before and after they are read, a panic
//! in there is one more way to fail.

use std::fmt;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use image::{RgbaImage, imageops};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::DimLike;

use super::error::Error;

/// Largest file in bytes.
const LARGEST: u64 = 1 << 30;

/// Most operations.
const MOST_NODES: usize = 20_000;

/// Sides of the picture that it may want.
const SIDES: std::ops::RangeInclusive<usize> = 8..=1024;

/// Most numbers that it may give.
const MOST_NUMBERS: usize = 1 << 24;

/// How a network wants its pictures; they have 0 to 255 in files.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scaling {
    /// 0 to 1.
    #[default]
    Unit,
    /// -1 to 1.
    Signed,
    /// By mean and deviation of ImageNet's pictures.
    ImageNet,
    /// As they are.
    Bytes,
}

impl FromStr for Scaling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "unit" => Ok(Self::Unit),
            "signed" => Ok(Self::Signed),
            "imagenet" => Ok(Self::ImageNet),
            "bytes" => Ok(Self::Bytes),
            _ => Err(
                "it is unit (0 to 1), signed (-1 to 1), imagenet (mean and deviation) or bytes (0 to 255)"
                    .to_owned(),
            ),
        }
    }
}

impl Scaling {
    fn of(self, byte: u8, channel: usize) -> f32 {
        let unit = f32::from(byte) / 255.0;
        match self {
            Self::Unit => unit,
            Self::Signed => 2.0 * unit - 1.0,
            Self::ImageNet => {
                (unit - [0.485, 0.456, 0.406][channel]) / [0.229, 0.224, 0.225][channel]
            }
            Self::Bytes => f32::from(byte),
        }
    }
}

/// A network whose input is one RGB picture.
struct Network {
    path: PathBuf,
    plan: Arc<TypedRunnableModel>,
    height: usize,
    width: usize,
    /// (1, h, w, 3) instead of (1, 3, h, w).
    channels_last: bool,
    scaling: Scaling,
}

/// One output: its shape without the batch, and its numbers.
type Output = (Vec<usize>, Vec<f32>);

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {}x{}",
            self.path.display(),
            self.width,
            self.height
        )
    }
}

impl Network {
    fn open(path: &Path, scaling: Scaling) -> Result<Self, Error> {
        let length = fs::metadata(path).map_err(|e| Error::read(path, e))?.len();
        if length > LARGEST {
            let what = format!(
                "{} MB are more than a network of landmarks or faces has",
                length >> 20
            );
            return Err(Error::data(path, what));
        }
        let bytes = fs::read(path).map_err(|e| Error::read(path, e))?;
        let built = catch_unwind(AssertUnwindSafe(|| build(&bytes)));
        let built = built.unwrap_or_else(|_| Err("its contents contradict themselves".to_owned()));
        let (plan, height, width, channels_last) = built.map_err(|what| Error::data(path, what))?;
        Ok(Self {
            path: path.to_owned(),
            plan,
            height,
            width,
            channels_last,
            scaling,
        })
    }

    fn run(&self, picture: &RgbaImage) -> Result<Vec<Output>, Error> {
        let (width, height) = (self.width as u32, self.height as u32);
        let resized;
        let picture = if picture.dimensions() == (width, height) {
            picture
        } else {
            resized = imageops::resize(picture, width, height, imageops::FilterType::Triangle);
            &resized
        };
        let value =
            |channel: usize, pixel: &image::Rgba<u8>| self.scaling.of(pixel.0[channel], channel);
        let (shape, values): (_, Vec<f32>) = if self.channels_last {
            let values = picture
                .pixels()
                .flat_map(|p| (0..3).map(move |c| value(c, p)));
            ([1, self.height, self.width, 3], values.collect())
        } else {
            let values = (0..3).flat_map(|c| picture.pixels().map(move |p| value(c, p)));
            ([1, 3, self.height, self.width], values.collect())
        };
        let outputs = catch_unwind(AssertUnwindSafe(|| -> TractResult<Vec<Output>> {
            let input = Tensor::from_shape(&shape, &values)?;
            let outputs = self.plan.run(tvec!(input.into()))?;
            outputs.iter().map(output).collect()
        }));
        let failed = |what: String| Error::data(&self.path, what);
        match outputs {
            Ok(Ok(outputs)) => Ok(outputs),
            Ok(Err(error)) => Err(failed(sentence(&error))),
            Err(_) => Err(failed("it fails on a picture".to_owned())),
        }
    }
}

fn output(value: &TValue) -> TractResult<Output> {
    if value.len() > MOST_NUMBERS {
        return Ok((Vec::new(), Vec::new()));
    }
    let numbers = value.cast_to::<f32>()?;
    let numbers = numbers
        .to_plain_array_view::<f32>()?
        .iter()
        .copied()
        .collect();
    let shape = value.shape();
    let batch = usize::from(shape.len() > 1 && shape[0] == 1);
    Ok((shape[batch..].to_vec(), numbers))
}

type Built = (Arc<TypedRunnableModel>, usize, usize, bool);

fn build(mut bytes: &[u8]) -> Result<Built, String> {
    let onnx = tract_onnx::onnx();
    let none = |_| "this is no ONNX file, or a part of one".to_owned();
    let proto = onnx.proto_model_for_read(&mut bytes).map_err(none)?;
    let nodes = proto.graph.as_ref().map_or(&[][..], |graph| &graph.node);
    if nodes.is_empty() || nodes.len() > MOST_NODES {
        return Err(format!(
            "a network of {} operations cannot be used",
            nodes.len()
        ));
    }
    let known = |op: &str| onnx.op_register.0.contains_key(op);
    if let Some(node) = nodes.iter().find(|node| !known(&node.op_type)) {
        return Err(format!(
            "it has an operation '{}', which is not supported here",
            node.op_type
        ));
    }
    let mut model = onnx
        .model_for_proto_model(&proto)
        .map_err(|e| sentence(&e))?;
    let inputs = model.input_outlets().map_err(|e| sentence(&e))?.len();
    if inputs != 1 {
        return Err(format!(
            "it has {inputs} inputs, but one picture is all there is"
        ));
    }
    let fact = model.input_fact(0).map_err(|e| sentence(&e))?;
    let dims: Vec<Option<usize>> = fact
        .shape
        .dims()
        .map(|dim| dim.concretize().and_then(|dim| dim.to_usize().ok()))
        .collect();
    let (height, width, channels_last) = match dims[..] {
        [None | Some(1), Some(3), height, width] => (height, width, false),
        [None | Some(1), height, width, Some(3)] => (height, width, true),
        _ => {
            let shown = |dim: &Option<usize>| dim.map_or("?".to_owned(), |dim| dim.to_string());
            let shown: Vec<String> = dims.iter().map(shown).collect();
            return Err(format!(
                "its input is ({}), but a picture is (1, 3, height, width)",
                shown.join(", ")
            ));
        }
    };
    let (Some(height), Some(width)) = (height, width) else {
        return Err(
            "it does not say how large pictures are to be: export it with a fixed size".to_owned(),
        );
    };
    if !SIDES.contains(&height) || !SIDES.contains(&width) {
        return Err(format!(
            "it wants pictures of {width}x{height}, but {} to {} are possible",
            SIDES.start(),
            SIDES.end()
        ));
    }
    let shape: [usize; 4] = if channels_last {
        [1, height, width, 3]
    } else {
        [1, 3, height, width]
    };
    let plan = model
        .set_input_fact(0, f32::fact(shape).into())
        .and_then(|()| model.into_optimized()?.into_runnable())
        .map_err(|e| sentence(&e))?;
    Ok((plan, height, width, channels_last))
}

/// What lies at the bottom of an error, in one line.
fn sentence(error: &TractError) -> String {
    let cause = error.root_cause().to_string();
    let line = cause.lines().next().unwrap_or_default();
    let short: String = line.chars().take(200).collect();
    format!("this network cannot be run: {short}")
}

/// A network that finds landmarks. Its output is (1, 2n), (1, n, 2), (1, n, 3) with x and y in front, or
/// heat-maps (1, n, h, w).
#[derive(Debug)]
pub struct LandmarkNetwork(Network);

/// Points in 0..1 of the picture's width and height.
pub type Points = Vec<[f64; 2]>;

impl LandmarkNetwork {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or used: its input or output is another, or it has operations that are not
    /// supported.
    pub fn open(path: &Path, scaling: Scaling) -> Result<Self, Error> {
        let network = Self(Network::open(path, scaling)?);
        let (width, height) = (network.0.width as u32, network.0.height as u32);
        network.points(&RgbaImage::new(width, height))?;
        Ok(network)
    }

    /// The landmarks of a picture. What plain coordinates count is seen from themselves: beyond 2 it is
    /// pixels of the network's picture; -1 to 1 where some are below 0; else 0 to 1.
    ///
    /// # Errors
    /// When the network fails.
    pub fn points(&self, picture: &RgbaImage) -> Result<Points, Error> {
        let outputs = self.0.run(picture)?;
        let found = outputs.iter().find_map(|output| self.read(output));
        found.ok_or_else(|| {
            let shapes: Vec<&Vec<usize>> = outputs.iter().map(|(shape, _)| shape).collect();
            let what = format!("its outputs are {shapes:?} for a picture, but landmarks are (2n), (n, 2) or heat-maps (n, h, w)");
            Error::data(&self.0.path, what)
        })
    }

    fn read(&self, (shape, numbers): &Output) -> Option<Points> {
        let pairs = |width: usize| -> Points {
            let point = |of: &[f32]| [f64::from(of[0]), f64::from(of[1])];
            numbers.chunks_exact(width).map(point).collect()
        };
        let mut points = match shape[..] {
            [n] if n >= 2 && n % 2 == 0 => pairs(2),
            [n, 2 | 3] if n > 0 => pairs(shape[1]),
            [n, h, w] if n > 0 && h > 1 && w > 1 => {
                return Some(
                    numbers
                        .chunks_exact(h * w)
                        .map(|map| peak(map, w))
                        .collect(),
                );
            }
            _ => return None,
        };
        let all = || points.iter().flatten();
        if all().any(|v| v.abs() > 2.0) {
            let (width, height) = (self.0.width as f64, self.0.height as f64);
            points
                .iter_mut()
                .for_each(|p| *p = [p[0] / width, p[1] / height]);
        } else if all().any(|v| *v < 0.0) {
            points
                .iter_mut()
                .flatten()
                .for_each(|v| *v = (*v + 1.0) / 2.0);
        }
        Some(points)
    }
}

/// Where a heat-map is highest, between its cells by the weight of those around.
fn peak(map: &[f32], width: usize) -> [f64; 2] {
    let height = map.len() / width;
    let top = (0..map.len()).max_by(|a, b| map[*a].total_cmp(&map[*b]));
    let (x, y) = top.map_or((0, 0), |at| (at % width, at / width));
    let (mut sum, mut of_x, mut of_y) = (0.0, 0.0, 0.0);
    for row in y.saturating_sub(1)..(y + 2).min(height) {
        for column in x.saturating_sub(1)..(x + 2).min(width) {
            let weight = f64::from(map[row * width + column]).max(0.0);
            sum += weight;
            of_x += weight * (column as f64 + 0.5);
            of_y += weight * (row as f64 + 0.5);
        }
    }
    let (x, y) = if sum > 0.0 && sum.is_finite() {
        (of_x / sum, of_y / sum)
    } else {
        (x as f64 + 0.5, y as f64 + 0.5)
    };
    [x / width as f64, y / height as f64]
}

/// The mean distance between landmarks along x and y (AKD), of 0..1; `None` where one of them is no number.
pub fn keypoint_distance(a: &Points, b: &Points) -> Option<f64> {
    let all = a.iter().flatten().zip(b.iter().flatten());
    let sum: f64 = all.map(|(a, b)| (a - b).abs()).sum();
    let mean = sum / (2 * a.len().max(1)) as f64;
    (a.len() == b.len() && mean.is_finite()).then_some(mean)
}

/// A network that tells people apart by a vector (1, n).
#[derive(Debug)]
pub struct IdentityNetwork(Network);

impl IdentityNetwork {
    /// Reads a file.
    ///
    /// # Errors
    /// As [`LandmarkNetwork::open`].
    pub fn open(path: &Path, scaling: Scaling) -> Result<Self, Error> {
        let network = Self(Network::open(path, scaling)?);
        let (width, height) = (network.0.width as u32, network.0.height as u32);
        network.vector(&RgbaImage::new(width, height))?;
        Ok(network)
    }

    /// Who is to be seen: a vector of length 1.
    ///
    /// # Errors
    /// When the network fails, or gives no vector.
    pub fn vector(&self, picture: &RgbaImage) -> Result<Vec<f64>, Error> {
        let outputs = self.0.run(picture)?;
        // (n), or (n, 1, 1) of a pooling at the end.
        let vector = outputs.iter().find(|(shape, numbers)| {
            let longest = shape.iter().copied().max().unwrap_or(0);
            numbers.len() > 1 && longest == numbers.len()
        });
        let (_, numbers) = vector.ok_or_else(|| {
            let shapes: Vec<&Vec<usize>> = outputs.iter().map(|(shape, _)| shape).collect();
            let what =
                format!("its outputs are {shapes:?} for a picture, but an identity is one vector");
            Error::data(&self.0.path, what)
        })?;
        let squares: f64 = numbers.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        let length = squares.sqrt().max(1e-12);
        Ok(numbers.iter().map(|v| f64::from(*v) / length).collect())
    }
}

/// The Euclidean distance of identities (AED), 0 to 2; `None` where one of them is no number.
pub fn identity_distance(a: &[f64], b: &[f64]) -> Option<f64> {
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    (a.len() == b.len() && squares.is_finite()).then(|| squares.sqrt())
}

#[cfg(test)]
mod tests;
