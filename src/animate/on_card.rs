//! The networks on a card: how frames get there and back.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor, bail};

use super::pictures;
use crate::device::Card;
use crate::frame::{Prediction, SharedMemory};
use crate::model::{
    KeypointTensors, Keypoints, ModelConfig, Networks, SourceFeatures, mapped, packed,
};
use crate::ops::fused::{self, Recorder, Shared, Staging};
use crate::ops::maps;
use crate::ops::threads::Workers;

/// Streams of a card that networks may have beside each other: while one's frames come and go, the other's are computed.
const STREAMS: usize = 2;

/// Networks on a card.
#[derive(Debug)]
pub(super) struct OnCard {
    /// Frames as they were recorded; they read what the networks hold, and go before them.
    recorder: Recorder,
    staging: Staging,
    networks: Form,
    pub(super) card: Card,
    /// Which of the streams they have.
    stream: usize,
    pub(super) precision: DType,
    /// Where predictions stay; none when they are read back.
    shared: Option<Shared>,
    /// How many frames it can make at once, as far as is known.
    pub(super) at_once: usize,
    /// What the CPU's engine is made of when it must take over.
    pub(super) spare: Option<(BTreeMap<String, Tensor>, Workers)>,
}

/// What computes.
#[derive(Debug)]
enum Form {
    /// Kernels of our own, on the cards that have what they need.
    Maps(Box<mapped::Networks>),
    /// candle, on others.
    Planes(Box<Networks>),
}

/// What depends on the photo alone.
#[derive(Clone, Debug)]
pub(super) struct CardSource {
    pub(super) keypoints: Keypoints,
    /// On each of the streams, as nothing waits for what another does; made when it is first asked for.
    features: [OnceLock<Features>; STREAMS],
    /// The photo, from which features are made, also by the CPU in case the card is lost.
    pub(super) rgba: Vec<u8>,
    /// What the CPU makes of it then.
    pub(super) packed: OnceLock<packed::Source>,
}

#[derive(Clone, Debug)]
enum Features {
    Maps(mapped::Source),
    Planes(Box<SourceFeatures>),
}

impl OnCard {
    pub(super) fn new(
        config: &ModelConfig,
        tensors: &BTreeMap<String, Tensor>,
        card: &Card,
        precision: DType,
        workers: Workers,
    ) -> Result<Self> {
        let card = card.with_own_stream()?;
        fused::one_stream(&card.device);
        let networks = match maps::runs_on(&card.device) {
            true => {
                let exact = Networks::new(config, tensors, &Device::Cpu)?;
                let networks = mapped::Networks::of(&exact, &card.device, precision)?;
                Form::Maps(Box::new(networks))
            }
            false => {
                let networks = Networks::in_precision(config, tensors, &card.device, precision)?;
                Form::Planes(Box::new(networks))
            }
        };
        Ok(Self {
            recorder: Recorder::default(),
            staging: Staging::default(),
            networks,
            card,
            stream: 0,
            precision,
            shared: None,
            at_once: usize::MAX,
            spare: Some((tensors.clone(), workers)),
        })
    }

    /// The same networks once more, on the card's other stream.
    pub(super) fn beside(&self) -> Result<Self> {
        let (Some((tensors, workers)), true) = (&self.spare, self.stream + 1 < STREAMS) else {
            bail!("{} has no further stream", self.card.name);
        };
        let workers = Workers::with_isa(workers.threads(), workers.isa);
        let workers = workers.map_err(candle_core::Error::wrap)?;
        let same = Self::new(self.config(), tensors, &self.card, self.precision, workers)?;
        Ok(Self {
            stream: self.stream + 1,
            at_once: self.at_once,
            ..same
        })
    }

    /// From now on predictions stay in this memory; without one they are read back.
    ///
    /// # Errors
    /// In a sentence why they cannot.
    pub(super) fn share(
        &mut self,
        memory: Option<&Arc<SharedMemory>>,
    ) -> std::result::Result<(), String> {
        let open = |memory| Shared::open(memory, &self.card.device);
        self.shared = memory.map(open).transpose()?;
        Ok(())
    }

    pub(super) fn config(&self) -> &ModelConfig {
        match &self.networks {
            Form::Maps(networks) => networks.config(),
            Form::Planes(networks) => &networks.config,
        }
    }

    pub(super) fn keypoints(&mut self, pictures: &[&[u8]]) -> Result<Vec<Keypoints>> {
        pooled(|| {
            let pixels = self.upload(pictures)?;
            self.keypoints_on_card(&pixels)
        })
    }

    pub(super) fn encode(&mut self, rgba: &[u8]) -> Result<CardSource> {
        let Some(keypoints) = self.keypoints(&[rgba])?.pop() else {
            bail!("no keypoints of a picture");
        };
        let source = CardSource {
            keypoints,
            features: Default::default(),
            rgba: rgba.to_vec(),
            packed: OnceLock::new(),
        };
        pooled(|| self.prepare(&source))?;
        Ok(source)
    }

    /// Makes a photo's features on this stream, if they have not been asked for before.
    fn prepare(&mut self, source: &CardSource) -> Result<()> {
        let features = &source.features[self.stream];
        if features.get().is_some() {
            return Ok(());
        }
        let pixels = self.upload(&[&source.rgba])?;
        let made = match &self.networks {
            Form::Maps(networks) => Features::Maps(networks.encode(&pixels)?),
            Form::Planes(networks) => {
                let picture = pictures::planes(&pixels)?;
                Features::Planes(Box::new(networks.generator.encode_source(&picture)?))
            }
        };
        // Nobody else has this stream.
        let _ = features.set(made);
        Ok(())
    }

    pub(super) fn generate(
        &mut self,
        moves: &[(&CardSource, &Keypoints)],
        out: &mut [Prediction],
    ) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        for out in out.iter_mut() {
            // Its place may be what this frame gets.
            out.lent = None;
        }
        pooled(|| {
            for (source, _) in moves {
                self.prepare(source)?;
            }
            match self.networks {
                Form::Maps(_) => self.generate_maps(moves, out),
                Form::Planes(_) => self.generate_planes(moves, out),
            }
        })
    }

    fn keypoints_on_card(&mut self, pixels: &Tensor) -> Result<Vec<Keypoints>> {
        let count = self.config().num_kp;
        let networks = &self.networks;
        let found = self.recorder.run("keypoints", &[pixels], |inputs| {
            Ok(vec![match networks {
                Form::Maps(networks) => networks.numbers(&inputs[0])?,
                Form::Planes(networks) => networks
                    .keypoint_detector
                    .numbers(&pictures::planes(&inputs[0])?)?,
            }])
        })?;
        let numbers = found.first().map(|bytes| fused::floats(bytes));
        let numbers = numbers.unwrap_or_default();
        let jacobians = match &self.networks {
            Form::Maps(networks) => networks.has_jacobians(),
            Form::Planes(networks) => networks.keypoint_detector.has_jacobians(),
        };
        Ok(Keypoints::from_numbers(&numbers, count, jacobians))
    }

    fn generate_maps(
        &mut self,
        moves: &[(&CardSource, &Keypoints)],
        out: &mut [Prediction],
    ) -> Result<()> {
        let Form::Maps(networks) = &self.networks else {
            bail!("networks of another form");
        };
        let source = of_photos(
            moves,
            self.stream,
            |features| match features {
                Features::Maps(source) => Some(source),
                Features::Planes(_) => None,
            },
            mapped::Source::batch,
        )?;
        let pairs = Keypoints::pairs(
            moves
                .iter()
                .map(|(source, driving)| (&source.keypoints, *driving)),
            &self.card.device,
        )?;
        let side = networks.config().image_size as usize;
        let [features, small] = source.tensors();
        let inputs = [&pairs, features, small];
        let work = |inputs: &[Tensor]| {
            let source = source.with_tensors([&inputs[1], &inputs[2]])?;
            networks.animate(&source, &inputs[0])
        };
        show(
            &mut self.recorder,
            &mut self.shared,
            &inputs,
            work,
            side,
            out,
        )
    }

    fn generate_planes(
        &mut self,
        moves: &[(&CardSource, &Keypoints)],
        out: &mut [Prediction],
    ) -> Result<()> {
        let Form::Planes(networks) = &self.networks else {
            bail!("networks of another form");
        };
        let features = of_photos(
            moves,
            self.stream,
            |features| match features {
                Features::Planes(source) => Some(&**source),
                Features::Maps(_) => None,
            },
            SourceFeatures::batch,
        )?;
        // As many of the photo's as of the driver's: those of one would be spread by strides, which are not recorded.
        let keypoints = |of: fn(&(&CardSource, &Keypoints)) -> Keypoints| {
            let all: Vec<Keypoints> = moves.iter().map(of).collect();
            Keypoints::to_tensors(&all, &self.card.device)
        };
        let of_sources = keypoints(|(source, _)| source.keypoints.clone())?;
        let driving = keypoints(|(_, driving)| (*driving).clone())?;

        let mut inputs = vec![&of_sources.value, &driving.value];
        let jacobians = [&of_sources.jacobian, &driving.jacobian];
        inputs.extend(jacobians.into_iter().flatten());
        let numbers = inputs.len();
        inputs.extend(features.tensors());
        let side = networks.config.image_size as usize;
        let generator = &networks.generator;
        let work = |inputs: &[Tensor]| {
            let (numbers, of_source) = inputs.split_at(numbers);
            let keypoints = |i: usize| KeypointTensors {
                value: numbers[i].clone(),
                jacobian: numbers.get(2 + i).cloned(),
            };
            let features = features.with_tensors(of_source)?;
            let moved = generator.animate(&features, &keypoints(0), &keypoints(1))?;
            pictures::shown(&moved)
        };
        show(
            &mut self.recorder,
            &mut self.shared,
            &inputs,
            work,
            side,
            out,
        )
    }

    fn upload(&mut self, pictures: &[&[u8]]) -> Result<Tensor> {
        let side = self.config().image_size as usize;
        pictures::upload(&mut self.staging, pictures, side, &self.card.device)
    }
}

/// Makes frames, for the compositor to find them on the card or read back into buffers that are reused.
fn show(
    recorder: &mut Recorder,
    shared: &mut Option<Shared>,
    inputs: &[&Tensor],
    work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    side: usize,
    out: &mut [Prediction],
) -> Result<()> {
    if let Some(memory) = shared
        && let Some(places) = memory.lend(out.len())
    {
        let whole = |inputs: &[Tensor]| pictures::with_occlusion(work(inputs)?);
        match recorder.hand_over("frame", inputs, whole, (memory, &places))? {
            Some(parts) => return pictures::fill_lent(&parts, side, places, out),
            None => {
                tracing::info!("frames of this model are too large to stay on the card");
                *shared = None;
            }
        }
    }
    let shown = recorder.run("frame", inputs, work)?;
    pictures::fill(&shown, side, out)
}

/// What is kept of the photos on a stream in the form that `of` takes: one photo's, which serves the whole batch, or a batch of them.
fn of_photos<'a, S: Clone>(
    moves: &[(&'a CardSource, &Keypoints)],
    stream: usize,
    of: impl Fn(&'a Features) -> Option<&'a S>,
    batch: impl FnOnce(&[&S]) -> Result<S>,
) -> Result<Cow<'a, S>> {
    let kept = |source: &'a CardSource| source.features[stream].get().and_then(&of);
    let all = moves.iter().map(|(source, _)| kept(source));
    let (Some(all), Some((first, _))) = (all.collect::<Option<Vec<_>>>(), moves.first()) else {
        bail!("a photo that was prepared by other networks");
    };
    let same = moves
        .iter()
        .all(|(source, _)| std::ptr::eq(*source, *first));
    Ok(match same {
        true => Cow::Borrowed(all[0]),
        false => Cow::Owned(batch(&all)?),
    })
}

/// What Metal leaves to be freed at some time is freed after `work`: the threads of the networks have no loop that does it.
fn pooled<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(all(feature = "metal", target_os = "macos"))]
    return objc2::rc::autoreleasepool(|_| work());
    #[cfg(not(all(feature = "metal", target_os = "macos")))]
    work()
}
