//! `mimic bench`: how long the networks take on this machine, and the whole program.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Failure;
use super::model::{PrecisionName, wrong_precision};
use crate::animate::load::{self, ModelOptions};
use crate::animate::{Animator, Engine, MotionOptions, Source};
use crate::device::Choice as Device;
use crate::frame::Prediction;
use crate::geometry::Rect;
use crate::gpu::{Choice, PasteSettings};
use crate::media;
use crate::model::config::PRESETS;
use crate::model::{Keypoints, gfpgan, gpen, packed, procedural};
use crate::ops::simd::Isa;
use crate::ops::threads::{Record, Workers, available_threads};
use crate::pipeline::offline::{self, Faces, Job, ReferenceFrame, Report, Window};
use crate::settings::Driver;
use crate::ui::{self, Start};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A preset; repeatable [default: vox-256, vox-mobile, mimic-small]
    #[arg(long, value_name = "NAME", value_parser = PRESETS)]
    network: Vec<String>,
    /// Timed frames
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    frames: u32,
    /// Frames before them
    #[arg(long, value_name = "N", default_value_t = 5)]
    warm_up: u32,
    /// Threads of the networks [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// What the networks multiply; repeatable [default: f32, and what is shorter and quick on this machine]
    #[arg(long, value_enum)]
    precision: Vec<PrecisionName>,
    /// What the networks run on: auto, cpu, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,
    /// Frames at once; repeatable, times are those of one frame [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    batch: Vec<u16>,
    /// The face detector and the face restorers too, of the sizes that PaddleGAN and GFPGAN publish
    #[arg(long, conflicts_with = "window")]
    faces: bool,
    /// A table of every layer: milliseconds, and GFLOP/s of the layer as defined
    #[arg(long)]
    layers: bool,
    /// Time the window instead: the demo in it, drawn without a display
    #[arg(long, conflicts_with_all = ["network", "layers", "precision"])]
    window: bool,
    /// How long the window runs
    #[arg(long, value_name = "SECONDS", default_value_t = 20, requires = "window", value_parser = clap::value_parser!(u64).range(5..=86400))]
    seconds: u64,
    /// Leave what the networks make on the graphics card that draws the window
    #[arg(long, requires = "window")]
    zero_copy: bool,
    /// Print the numbers as JSON
    #[arg(long)]
    json: bool,
}

/// Memory may grow by so many bytes while the window runs.
const GROWTH: u64 = 20_000_000;
/// The first picture comes within so many seconds.
const FIRST: f64 = 1.0;

/// What the whole program is timed on: the demo's photo, crop and clip, where it is run beside them.
const PHOTO: &str = "assets/mona-lisa.jpg";
const CROP: Rect = Rect {
    x1: 150,
    y1: 60,
    x2: 670,
    y2: 580,
};
const CLIP: &str = "assets/driver.mp4";
/// How often.
const RUNS: usize = 3;
/// Most runs of what takes a second and more.
const FACES: u32 = 5;

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.window {
        return window(args);
    }
    let usual = ["vox-256", "vox-mobile", "mimic-small"].map(str::to_owned);
    let networks = if args.network.is_empty() {
        &usual[..]
    } else {
        &args.network
    };
    let precisions = match &args.precision[..] {
        [] if !args.device.order().is_empty() => &[PrecisionName::F32, PrecisionName::Auto],
        [] if Isa::bf16().is_some() => &[PrecisionName::F32, PrecisionName::Bf16],
        [] => &[PrecisionName::F32][..],
        asked => asked,
    };
    let batches = match &args.batch[..] {
        [] => &[1][..],
        asked => asked,
    };
    let threads = args.threads.map_or_else(available_threads, usize::from);
    let mut table = Table {
        quiet: args.json,
        rows: Vec::new(),
    };
    for name in networks {
        for precision in precisions {
            let options = ModelOptions {
                threads,
                precision: (*precision).into(),
                device: args.device,
                ..ModelOptions::default()
            };
            let mut engine = load::procedural(name, &options).map_err(wrong_precision)?;
            let label = match engine.packed() {
                Some(packed) => format!("mimic {precision} ({})", packed.workers().isa.name()),
                None => format!("mimic on {}", engine.device()),
            };
            for &batch in batches {
                for (photo, each) in [("each frame", true), ("cached", false)] {
                    let seconds = time(&mut engine, args, each, usize::from(batch));
                    let more = json!({ "batch": batch, "device": engine.device() });
                    table.add(name, &label, photo, &seconds, more);
                }
            }
            if args.layers {
                match engine.packed() {
                    Some(_) => table.layers(name, &label, layers(&mut engine, args)),
                    None => eprintln!(
                        "no table of layers: those on a card are timed by its maker's tools (nsys, ncu)"
                    ),
                }
            }
            // Of a model that means something: others' faces would not move.
            if name == "mimic-small" {
                end_to_end(&mut table, engine, &label)?;
            }
        }
    }
    if args.faces {
        faces(&mut table, args, threads)?;
    }
    table.finish(threads);
    Ok(())
}

/// What is done to whole faces, with weights that mean nothing: S3FD on a photo whose longer side is 1280,
/// GPEN and GFPGAN on 512 pixels.
fn faces(table: &mut Table, args: &Args, threads: usize) -> Result<(), Failure> {
    let workers = || Workers::new(threads);
    let label = format!("mimic f32 ({})", Isa::detected().name());
    let wrong = |error| Failure::Job(format!("the weights for measuring: {error}"));
    let picture = pictures(1280)[0][..1280 * 960 * 4].to_vec();
    let tensors = procedural::s3fd("s3fd").map_err(wrong)?;
    let mut network = packed::S3fd::new(&tensors, workers()?).map_err(wrong)?;
    let found = seconds(args, || {
        network.run(&picture, 1280, 960);
    });
    table.add("s3fd-1280", &label, "each frame", &found, json!({}));
    drop((network, tensors));

    let planar: Vec<f32> = (0..3 * 512 * 512)
        .map(|i| (i as f32 * 0.01).sin())
        .collect();
    let shape = gpen::Shape::published(512);
    let tensors = procedural::gpen(&shape, "gpen512").map_err(wrong)?;
    let mut network = packed::Gpen::new(&shape, &tensors, workers()?).map_err(wrong)?;
    let restored = seconds(args, || {
        network.run(&planar);
    });
    table.add("gpen-512", &label, "each frame", &restored, json!({}));
    if args.layers {
        network.workers().meter.switch(true);
        network.run(&planar);
        network.workers().meter.switch(false);
        table.layers("gpen-512", &label, network.workers().meter.take());
    }
    drop((network, tensors));

    let shape = gfpgan::Shape::published(512);
    let tensors = procedural::gfpgan(&shape, "gfpgan512").map_err(wrong)?;
    let mut network = packed::Gfpgan::new(&shape, &tensors, workers()?).map_err(wrong)?;
    let restored = seconds(args, || {
        network.run(&planar);
    });
    table.add("gfpgan-512", &label, "each frame", &restored, json!({}));
    Ok(())
}

/// Seconds of each run, sorted: a few, since each takes long.
fn seconds(args: &Args, mut run: impl FnMut()) -> Vec<f64> {
    let mut seconds = Vec::new();
    let (warm_up, frames) = (args.warm_up.min(1), args.frames.min(FACES));
    for i in 0..warm_up + frames {
        let start = Instant::now();
        run();
        if i >= warm_up {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    seconds
}

/// The rows, printed as they come or at the end as JSON.
struct Table {
    quiet: bool,
    rows: Vec<Value>,
}

#[allow(clippy::print_stdout, reason = "this is the result")]
impl Table {
    /// `seconds` of frames are sorted.
    fn add(&mut self, network: &str, engine: &str, photo: &str, seconds: &[f64], more: Value) {
        let (median, least) = (seconds[seconds.len() / 2], seconds[0]);
        if !self.quiet {
            println!(
                "{network:12} {engine:34} photo {photo:10} median {:7.2} ms, min {:7.2} ms{}",
                median * 1e3,
                least * 1e3,
                match more["batch"].as_u64() {
                    Some(batch @ 2..) => format!(", {batch} at once"),
                    _ => String::new(),
                }
            );
        }
        let mut row = json!({
            "network": network, "engine": engine, "photo": photo,
            "median_s": median, "min_s": least, "frames": seconds.len(),
        });
        if let (Value::Object(row), Value::Object(more)) = (&mut row, more) {
            row.extend(more);
        }
        self.rows.push(row);
    }

    fn layers(&mut self, network: &str, engine: &str, layers: Vec<Record>) {
        if !self.quiet {
            print(&layers);
        }
        self.rows.extend(layers.iter().map(|layer| {
            json!({
                "network": network, "engine": engine, "layer": layer.name,
                "algorithm": layer.algorithm, "seconds": layer.seconds, "flops": layer.flops,
            })
        }));
    }

    fn finish(&self, threads: usize) {
        if self.quiet {
            let peak = super::memory::peak();
            println!(
                "{:#}",
                json!({ "threads": threads, "peak_memory_bytes": peak, "rows": self.rows })
            );
        }
    }
}

/// Runs the demo in the window, without a display, and says how fast it was. It is held against what the window
/// promises: a first picture within a second, no more latency than an interval of the driver and one inference,
/// and memory that stays flat.
#[allow(clippy::print_stdout, reason = "this is the result")]
fn window(args: &Args) -> Result<(), Failure> {
    let start = Start {
        driver: Some(Driver::Demo),
        threads: args.threads.map_or(0, usize::from),
        device: Some(args.device),
        zero_copy: args.zero_copy,
        ..Start::default()
    };
    let mut memory = Vec::new();
    let long = Duration::from_secs(args.seconds);
    let measured = ui::measure(start, [1280.0, 800.0], long, || {
        memory.extend(super::memory::now());
    })?;
    // Buffers and caches fill in the first quarter; models come and go for a moment.
    let quarter = memory.len() / 4;
    let settled = median(memory.get(quarter..2 * quarter));
    let growth = median(memory.get(3 * quarter..)).saturating_sub(settled);
    let most = measured.interval + measured.inference;
    if args.json {
        let numbers = json!({
            "first_picture_s": measured.first_picture, "first_animated_s": measured.first_animated,
            "fps": measured.fps, "driver_fps": measured.interval.recip() * 1e3,
            "latency_ms": measured.latency, "inference_ms": measured.inference,
            "compose_ms": measured.composing, "zero_copy": measured.zero_copy,
            "slowest_frame_ms": measured.slowest, "quality": measured.quality,
            "memory_bytes": settled, "memory_growth_bytes": growth,
        });
        println!("{numbers:#}");
    } else {
        println!(
            "first picture      {:.2} s after start",
            measured.first_picture
        );
        println!(
            "first animated     {:.2} s after start",
            measured.first_animated
        );
        println!(
            "animated           {:.1} fps, networks {:.0} ms a frame, {}",
            measured.fps, measured.inference, measured.quality
        );
        println!(
            "latency            {:.0} ms from the driver's frame, of {most:.0} ms",
            measured.latency
        );
        println!(
            "composing          {:.2} ms a frame, predictions {}",
            measured.composing,
            match measured.zero_copy {
                true => "stay on the card",
                false => "are uploaded or composed on the CPU",
            }
        );
        println!(
            "slowest frame      {:.0} ms of the window's own",
            measured.slowest
        );
        println!(
            "memory             {:.0} MB, grown by {:.1} MB",
            settled as f64 / 1e6,
            growth as f64 / 1e6
        );
    }
    let mut broken = Vec::new();
    // Times are promised of a release; memory of any build.
    let timed = !cfg!(debug_assertions);
    if timed && measured.first_picture > FIRST {
        broken.push(format!(
            "the first picture came after {:.2} s and not within {FIRST} s",
            measured.first_picture
        ));
    }
    if timed && measured.latency > most {
        broken.push(format!(
            "the latency is {:.0} ms and not {most:.0} ms",
            measured.latency
        ));
    }
    if growth > GROWTH {
        broken.push(format!(
            "memory has grown by {:.1} MB in {} s and should stay flat",
            growth as f64 / 1e6,
            args.seconds
        ));
    }
    match broken.is_empty() {
        true => Ok(()),
        false => Err(Failure::Job(broken.join("; "))),
    }
}

fn median(values: Option<&[u64]>) -> u64 {
    let mut values = values.unwrap_or_default().to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// The whole program on the demo: seconds of each frame from the first to the last that is written,
/// reading, networks, compositor and encoder beside each other.
fn end_to_end(table: &mut Table, engine: Engine, label: &str) -> Result<(), Failure> {
    if !(Path::new(PHOTO).exists() && Path::new(CLIP).exists()) {
        eprintln!("no row from end to end: {PHOTO} and {CLIP} are not here");
        return Ok(());
    }
    if let Err(why) = media::ffmpeg::version() {
        eprintln!("no row from end to end: {why}");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let job = Job {
        photo: PHOTO.into(),
        faces: Faces::Crops(vec![CROP]),
        roles: Vec::new(),
        clip: CLIP.into(),
        window: Window::Centre,
        mirror: false,
        reference: ReferenceFrame::Number(0),
        output: folder.path().join("result.mp4"),
        audio: true,
        provenance: true,
        signer: None,
        paste: PasteSettings::default(),
        ratios: Vec::new(),
        smoothing: 0.0,
        enhancement: None,
        compositor: Choice::Auto,
        batch: 4,
    };
    let mut animator = Animator::new(engine, MotionOptions::default());
    let mut reports = Vec::new();
    for _ in 0..RUNS {
        reports.push(offline::run(
            &job,
            &mut animator,
            |_| {},
            &AtomicBool::new(false),
        )?);
    }
    let each = |report: &Report| {
        (report.seconds.total - report.seconds.prepare) / report.frames.max(1) as f64
    };
    reports.sort_by(|a, b| each(a).total_cmp(&each(b)));
    let seconds: Vec<f64> = reports.iter().map(each).collect();
    let report = &reports[RUNS / 2];
    let stages = report.seconds;
    let stage = |seconds: f64| seconds / report.frames.max(1) as f64;
    table.add(
        "mimic-small",
        &format!("{label}, end to end"),
        "cached",
        &seconds,
        json!({
            "fps": 1.0 / seconds[RUNS / 2], "frames": report.frames, "compositor": report.compositor,
            "stages_s": {
                "decode": stage(stages.decode), "keypoints": stage(stages.keypoints),
                "generate": stage(stages.generate), "compose": stage(stages.compose),
                "encode": stage(stages.encode),
            },
        }),
    );
    Ok(())
}

/// Seconds of whole frames (driving keypoints, motion, generator), sorted.
fn time(engine: &mut Engine, args: &Args, encode_each: bool, batch: usize) -> Vec<f64> {
    let pictures = pictures(engine.config().image_size);
    let mut source = engine.encode(&pictures[0]);
    let mut out = vec![Prediction::default(); batch];
    let mut seconds = Vec::new();
    for i in 0..args.warm_up + args.frames {
        let start = Instant::now();
        if encode_each {
            source = engine.encode(&pictures[0]);
        }
        let frames: Vec<&[u8]> = (0..batch)
            .map(|frame| &pictures[1 + (i as usize + frame) % 2][..])
            .collect();
        let driving = engine.keypoints_of(&frames);
        let moves: Vec<(&Source, &Keypoints)> = driving.iter().map(|to| (&source, to)).collect();
        engine.generate_all(&moves, &mut out);
        if i >= args.warm_up {
            seconds.push(start.elapsed().as_secs_f64() / batch as f64);
        }
    }
    seconds.sort_by(f64::total_cmp);
    seconds
}

/// The median time of each layer of a frame on the CPU, in order.
fn layers(engine: &mut Engine, args: &Args) -> Vec<Record> {
    let pictures = pictures(engine.config().image_size);
    let source = engine.encode(&pictures[0]);
    let mut out = Prediction::default();
    let mut runs: Vec<Vec<Record>> = Vec::new();
    for _ in 0..args.frames {
        metered(engine, true);
        let driving = engine.keypoints(&pictures[1]);
        engine.generate(&source, &driving, &mut out);
        metered(engine, false);
        runs.extend(engine.packed().map(|packed| packed.workers().meter.take()));
    }
    let Some(first) = runs.first() else {
        return Vec::new();
    };
    let mut layers = first.clone();
    for (i, layer) in layers.iter_mut().enumerate() {
        let mut seconds: Vec<f64> = runs
            .iter()
            .filter_map(|run| run.get(i))
            .map(|record| record.seconds)
            .collect();
        seconds.sort_by(f64::total_cmp);
        layer.seconds = seconds[seconds.len() / 2];
    }
    layers
}

fn metered(engine: &Engine, on: bool) {
    if let Some(packed) = engine.packed() {
        packed.workers().meter.switch(on);
    }
}

#[allow(clippy::print_stdout, reason = "this is the result")]
fn print(layers: &[Record]) {
    let total: f64 = layers.iter().map(|layer| layer.seconds).sum();
    println!(
        "{:60} {:>10} {:>8} {:>9} {:>6}",
        "layer", "by", "ms", "GFLOP/s", "%"
    );
    for layer in layers {
        let rate = match layer.flops {
            0 => String::new(),
            flops => format!("{:.0}", flops as f64 / layer.seconds / 1e9),
        };
        let share = 100.0 * layer.seconds / total;
        println!(
            "{:60} {:>10} {:8.3} {rate:>9} {share:6.1}",
            layer.name,
            layer.algorithm,
            layer.seconds * 1e3
        );
    }
    println!("{:60} {:>10} {:8.3}", "sum", "", total * 1e3);
}

/// Three pictures that are neither flat nor noise.
fn pictures(size: u32) -> [Vec<u8>; 3] {
    [0.0, 0.4, 0.8].map(|phase| {
        let wave = |x: f32| (x.sin() * 100.0 + 128.0) as u8;
        (0..size * size)
            .flat_map(|i| {
                let (x, y) = (
                    (i % size) as f32 / size as f32,
                    (i / size) as f32 / size as f32,
                );
                [
                    wave(9.0 * x + phase),
                    wave(7.0 * y - phase),
                    wave(11.0 * (x + y) + 2.0 * phase),
                    255,
                ]
            })
            .collect()
    })
}
