//! `mimic animate`: a photo and a driving clip to a video.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::faces::DetectorArgs;
use super::model::Model;
use super::{Failure, stop, weights};
use crate::animate::{Animator, Engine, MotionOptions};
use crate::device::Choice as Device;
use crate::faces::{Enhancement, Restorer};
use crate::geometry::Rect;
use crate::gpu::{Choice, PasteMode, PasteSettings};
use crate::media::{self, Signer};
use crate::pipeline::offline::{
    self, Faces, Job, Progress, ReferenceFrame, Report, Role, Selection, Window,
};

/// PaddleGAN's flags are taken too, with `_` or `-`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The photo: PNG, JPEG, WebP, BMP, TIFF or GIF
    #[arg(long, value_name = "PHOTO")]
    source_image: PathBuf,
    /// The driving clip: any video ffmpeg reads, a folder of numbered pictures, a picture, or a take recorded
    /// in the window
    #[arg(long, value_name = "CLIP")]
    driving_video: PathBuf,
    /// .mp4, .webm, .gif, a pattern such as frames/%05d.png, or a folder for result.mp4 [default: output]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Name of the file when the output is a folder
    #[arg(long, value_name = "NAME")]
    filename: Option<String>,
    #[command(flatten)]
    model: Model,

    /// A face in the photo, X1,Y1,X2,Y2, as a detector gives it: the margin is added; repeatable
    /// [default: every face that is found]
    #[arg(long, value_name = "X1,Y1,X2,Y2", value_parser = Rect::from_str, conflicts_with = "crop", allow_hyphen_values = true)]
    face: Vec<Rect>,
    /// The part of the photo to animate, X1,Y1,X2,Y2 or whole, as it is; repeatable
    #[arg(long, value_name = "X1,Y1,X2,Y2", value_parser = part, allow_hyphen_values = true)]
    crop: Vec<Part>,
    #[command(flatten)]
    detector: DetectorArgs,
    /// Of the faces found those with these numbers, from left to right: see `mimic faces PHOTO`
    #[arg(long, value_name = "N,N", value_delimiter = ',', conflicts_with_all = ["face", "crop", "single", "multi_person", "map"], value_parser = number)]
    faces: Vec<usize>,
    /// Of the faces found all (the default)
    #[arg(long, conflicts_with = "single")]
    multi_person: bool,
    /// Of the faces found the first, as PaddleGAN does without --multi-person
    #[arg(long, conflicts_with_all = ["face", "crop", "map"])]
    single: bool,
    /// Let each driving face move a face of its own: DRIVER:FACE, both counted from left to right
    #[arg(long, value_name = "1:2,2:1", value_delimiter = ',', value_parser = role, conflicts_with = "driving_crop")]
    map: Vec<Role>,
    /// The part of the driving frames to look at: auto (the driver's face, which is followed), centre (the
    /// middle square), whole (squashed), or X1,Y1,X2,Y2 [default: auto; whole with --paste paddlegan]
    #[arg(long, value_name = "PART", value_parser = window, allow_hyphen_values = true)]
    driving_crop: Option<Window>,

    /// Look at the driving clip as in a mirror
    #[arg(long)]
    mirror: bool,

    /// Take over the driver's motion since the reference frame (the default)
    #[arg(long, conflicts_with = "absolute")]
    relative: bool,
    /// Take over where the driver is
    #[arg(long)]
    absolute: bool,
    /// Scale the motion by the sizes of the two faces (the default)
    #[arg(long, conflicts_with = "no_adapt_scale")]
    adapt_scale: bool,
    /// Take over the motion as large as it is
    #[arg(long)]
    no_adapt_scale: bool,
    /// Let frame N of the clip, from 0, be the reference frame
    #[arg(long, value_name = "N", conflicts_with = "find_best_frame")]
    best_frame: Option<u64>,
    /// Let the frame that resembles the photo most be the reference frame
    #[arg(long)]
    find_best_frame: bool,

    /// How faces are put back
    #[arg(long, value_enum, default_value_t = Paste::Feather)]
    paste: Paste,
    /// Size of the mask: the part of a crop's height around its middle, 0.1 to 1
    #[arg(long, value_name = "R", default_value_t = 0.4, value_parser = between::<10, 100>, allow_hyphen_values = true)]
    ratio: f32,
    /// Softness of the mask's edge, 0 to 1
    #[arg(long, value_name = "F", default_value_t = PasteSettings::default().feather, value_parser = between::<0, 100>, allow_hyphen_values = true)]
    feather: f32,
    /// Leave the face's colours as generated instead of shifting them to meet the photo's at the mask's edge
    #[arg(long)]
    no_colour_match: bool,
    /// How much of the photo's own fine detail is kept, 0 to 1
    #[arg(long, value_name = "D", default_value_t = 0.5, value_parser = between::<0, 100>, allow_hyphen_values = true)]
    detail: f32,
    /// Draw every face sharper before it is put back, by GPEN or GFPGAN; seconds a frame on a CPU
    #[arg(long)]
    face_enhancement: bool,
    /// Who draws it
    #[arg(long, value_enum, requires = "face_enhancement")]
    enhancer: Option<EnhancerName>,
    /// Its weights: GPEN-BFR-512.pth, GPEN-512.pdparams or GFPGANv1.4.pth, or the model gpen-512, gpen-512-paddle or
    /// gfpgan-1.4
    #[arg(long, value_name = "FILE|NAME", requires = "face_enhancement")]
    enhancer_weights: Option<PathBuf>,
    /// How much of it is seen, 0 to 1
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = between::<0, 100>, allow_hyphen_values = true, requires = "face_enhancement")]
    enhancement_strength: f32,
    /// Who puts the pictures together: auto, wgpu or cpu
    #[arg(long, value_name = "WHO", default_value = "auto")]
    compositor: Choice,

    /// Leave out the clip's sound
    #[arg(long)]
    no_audio: bool,
    /// Do not write into the result that it is generated
    #[arg(long)]
    no_provenance: bool,
    /// Sign that the result is generated (C2PA): a chain of certificates and its private key, PEM files
    #[arg(long, num_args = 2, value_names = ["CERT", "KEY"], conflicts_with = "no_provenance")]
    sign: Vec<PathBuf>,
    /// Frames on their way at once, 1 to 64; the result is the same for every number
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    batch_size: u8,
    /// Print one JSON object about the run instead of the files' names
    #[arg(long)]
    json: bool,

    /// Size of the model that the weights are of, for weights that do not say it
    #[arg(long, value_name = "SIZE", value_parser = ["256", "512"])]
    image_size: Option<String>,
    /// The weights are of PaddleGAN's compressed model, for weights that do not say it
    #[arg(long)]
    mobile_net: bool,
    /// Use no graphics card
    #[arg(long)]
    cpu: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Paste {
    /// With a soft edge.
    Feather,
    /// As PaddleGAN: rectangle or hard circle, its margins, the whole driving frame.
    Paddlegan,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EnhancerName {
    /// PaddleGAN's.
    Gpen,
    /// GFPGAN 1.4.
    Gfpgan,
}

/// A number from LOW to HIGH hundredths.
fn between<const LOW: i32, const HIGH: i32>(text: &str) -> Result<f32, String> {
    let (low, high) = (LOW as f32 / 100.0, HIGH as f32 / 100.0);
    match text.parse::<f32>() {
        Ok(value) if (low..=high).contains(&value) => Ok(value),
        _ => Err(format!("must be a number from {low} to {high}")),
    }
}

/// What `--crop` takes.
#[derive(Clone, Copy, Debug)]
enum Part {
    Whole,
    Of(Rect),
}

fn part(text: &str) -> Result<Part, String> {
    match text {
        "whole" => Ok(Part::Whole),
        _ => text
            .parse()
            .map(Part::Of)
            .map_err(|e| format!("{e}, nor whole")),
    }
}

fn number(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("faces have numbers from 1".to_owned()),
    }
}

fn role(text: &str) -> Result<Role, String> {
    // Followed one by one, so there is an end to them.
    const DRIVERS: usize = 16;
    let role = text.split_once(':').and_then(|(driver, face)| {
        let (driver, face) = (number(driver).ok()?, number(face).ok()?);
        (driver <= DRIVERS).then_some(Role { driver, face })
    });
    role.ok_or_else(|| {
        format!("'{text}' is not DRIVER:FACE, two numbers from 1, drivers up to {DRIVERS}")
    })
}

fn window(text: &str) -> Result<Window, String> {
    match text {
        "auto" => Ok(Window::Auto),
        "centre" | "center" => Ok(Window::Centre),
        "whole" => Ok(Window::Whole),
        _ => text
            .parse()
            .map(Window::Part)
            .map_err(|e| format!("{e}, nor auto, centre or whole")),
    }
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let job = job(&args)?;
    let motion = MotionOptions {
        relative: !args.absolute,
        adapt_scale: !args.no_adapt_scale,
        ..MotionOptions::default()
    };
    let opened = offline::open(&job).map_err(failure)?;
    let engine = engine(&args)?;
    tracing::info!(
        "motion: {}, {}",
        if motion.relative {
            "relative to the reference frame (--absolute for the driver's own pose)"
        } else {
            "absolute"
        },
        if motion.adapt_scale {
            "scaled by the faces' sizes (--no-adapt-scale to take it as it is)"
        } else {
            "not scaled"
        },
    );
    let mut animator = Animator::new(engine, motion);
    let mut bar = Bar::new();
    let result = opened.run(&mut animator, |progress| bar.show(progress), stop());
    bar.finish();
    let report = result.map_err(failure)?;
    // Where it ended; a card may have failed on the way.
    tell(&args, &report, &animator.engine().device());
    Ok(())
}

/// What the command line says is wrong whatever the files hold.
fn failure(error: offline::Error) -> Failure {
    use media::Error::{Overwrites, UnknownOutput};
    match error {
        offline::Error::Media(error @ (UnknownOutput { .. } | Overwrites { .. })) => {
            Failure::Usage(error.to_string())
        }
        error => error.into(),
    }
}

/// The enhancement that is asked for, with its weights: those given, else a model's.
fn enhancement(args: &Args) -> Result<Enhancement, Failure> {
    let restorer = args.enhancer.map(|name| match name {
        EnhancerName::Gpen => Restorer::Gpen,
        EnhancerName::Gfpgan => Restorer::Gfpgan,
    });
    let weights = match &args.enhancer_weights {
        Some(given) => weights::find(given)?,
        None => weights::find_any(Restorer::models(restorer))?,
    };
    Ok(Enhancement {
        restorer,
        weights: Some(weights),
        strength: args.enhancement_strength,
    })
}

fn job(args: &Args) -> Result<Job, Failure> {
    let parts = |part: &Part| match *part {
        Part::Whole => None,
        Part::Of(rect) => Some(rect),
    };
    let faces = match (&args.face[..], &args.crop[..]) {
        ([], []) => Faces::Found {
            detector: args.detector.choice(),
            weights: args.detector.weights()?,
            selection: match (&args.faces[..], args.single) {
                ([], false) => Selection::All,
                ([], true) => Selection::Numbers(vec![1]),
                (numbers, _) => Selection::Numbers(numbers.to_vec()),
            },
        },
        // One that is the whole leaves nothing for others.
        ([], crops) => match crops.iter().map(parts).collect() {
            Some(crops) => Faces::Crops(crops),
            None => Faces::Whole,
        },
        (faces, _) => Faces::Boxes(faces.to_vec()),
    };
    let output = media::resolve_output(args.output.as_deref(), args.filename.as_deref());
    let signer = match &args.sign[..] {
        [certificate, key] => {
            if !Signer::can_sign(&output) {
                return Err(Failure::Usage(format!(
                    "{} cannot be signed: --sign is for mp4, gif, PNG and JPEG",
                    output.display()
                )));
            }
            Some(Arc::new(Signer::open(certificate, key)?))
        }
        _ => None,
    };
    let (mode, usual) = match args.paste {
        Paste::Feather => (PasteMode::Feather, Window::Auto),
        Paste::Paddlegan => (PasteMode::PaddleGan, Window::Whole),
    };
    Ok(Job {
        photo: args.source_image.clone(),
        faces,
        roles: args.map.clone(),
        clip: args.driving_video.clone(),
        window: match (&args.map[..], args.driving_crop) {
            (_, Some(window)) => window,
            ([], None) => usual,
            // There are several to be told apart.
            (_, None) => Window::Auto,
        },
        mirror: args.mirror,
        reference: match (args.find_best_frame, args.best_frame) {
            (true, _) => ReferenceFrame::Best,
            (false, number) => ReferenceFrame::Number(number.unwrap_or(0)),
        },
        output,
        audio: !args.no_audio,
        provenance: !args.no_provenance,
        signer,
        paste: PasteSettings {
            mode,
            ratio: args.ratio,
            feather: args.feather,
            colour_match: if args.no_colour_match { 0.0 } else { 1.0 },
            detail: args.detail,
        },
        ratios: Vec::new(),
        smoothing: 0.0,
        enhancement: args
            .face_enhancement
            .then(|| enhancement(args))
            .transpose()?,
        compositor: if args.cpu {
            Choice::Cpu
        } else {
            args.compositor
        },
        batch: usize::from(args.batch_size),
    })
}

/// PaddleGAN's flags name a model; they say what the weights are where these are silent.
fn engine(args: &Args) -> Result<Engine, Failure> {
    let large = args.image_size.as_deref() == Some("512");
    let preset = match (args.mobile_net, large) {
        (true, true) => {
            return Err(Failure::Usage(
                "there is no compressed model of 512: give --mobile-net or --image-size 512"
                    .to_owned(),
            ));
        }
        (true, false) => Some("vox-mobile"),
        (false, true) => Some("vox-512"),
        (false, false) => None,
    };
    let mut model = args.model.clone();
    if args.cpu {
        model.device = Device::Cpu;
    }
    if let (Some(preset), None) = (preset, &model.weights) {
        match weights::offer(Path::new(preset))? {
            Ok(path) => model.weights = Some(path),
            Err(missing) => {
                tracing::warn!("{missing}; until then the embedded model is used");
                return model.engine(None);
            }
        }
    }
    model.engine(preset)
}

#[allow(clippy::print_stdout, reason = "this is the result")]
fn tell(args: &Args, report: &Report, device: &str) {
    let seconds = &report.seconds;
    if !args.json {
        for output in &report.outputs {
            // A long list of numbered pictures says no more than its ends.
            if report.outputs.len() <= 2
                || Some(output) == report.outputs.first()
                || Some(output) == report.outputs.last()
            {
                println!("{}", output.display());
            }
        }
        return;
    }
    let report = json!({
        "frames": report.frames,
        "fps": report.frames as f64 / (seconds.total - seconds.prepare - seconds.search).max(1e-9),
        "seconds": {
            "prepare": seconds.prepare,
            "search": seconds.search,
            "decode": seconds.decode,
            "keypoints": seconds.keypoints,
            "generate": seconds.generate,
            "enhance": seconds.enhance,
            "compose": seconds.compose,
            "encode": seconds.encode,
            "total": seconds.total,
        },
        "peak_memory_bytes": super::memory::peak(),
        "device": { "networks": device, "compositor": report.compositor },
        "outputs": report.outputs,
    });
    println!("{report:#}");
}

/// A bar on a terminal, a line every second elsewhere.
struct Bar {
    bar: ProgressBar,
    plain: bool,
    last: Option<std::time::Instant>,
    started: std::time::Instant,
    searching: bool,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let plain = bar.is_hidden();
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            bar,
            plain,
            last: None,
            started: std::time::Instant::now(),
            searching: false,
        }
    }

    fn show(&mut self, progress: Progress) {
        let what = if progress.searching {
            "looking for the best frame"
        } else {
            "animating"
        };
        if self.last.is_none() || self.searching != progress.searching {
            (self.searching, self.started) = (progress.searching, std::time::Instant::now());
            let style = "{msg} {bar:30} {pos}/{len} frames, {per_sec}, {eta} left";
            let endless = "{msg} {spinner} {pos} frames, {per_sec}";
            let template = if progress.total.is_some() {
                style
            } else {
                endless
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style.with_key("per_sec", fps));
            }
            self.bar.set_message(what);
            self.bar.reset();
            self.last = Some(self.started);
        }
        // The clip's own count is an estimate.
        self.bar
            .set_length(progress.total.unwrap_or(0).max(progress.done));
        self.bar.set_position(progress.done);
        if self.plain
            && self
                .last
                .is_some_and(|last| last.elapsed() >= Duration::from_secs(1))
        {
            self.last = Some(std::time::Instant::now());
            let rate = progress.done as f64 / self.started.elapsed().as_secs_f64();
            match progress.total.filter(|&total| total >= progress.done) {
                Some(total) => eprintln!(
                    "{what}: {}/{total} frames, {rate:.1} fps, {:.0} s left",
                    progress.done,
                    (total - progress.done) as f64 / rate
                ),
                None => eprintln!("{what}: {} frames, {rate:.1} fps", progress.done),
            }
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn fps(state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write) {
    let _ = write!(out, "{:.1} fps", state.per_sec());
}
