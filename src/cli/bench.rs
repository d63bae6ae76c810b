//! `mimic bench`: how long the networks take on this machine.

use std::time::Instant;

use serde_json::{Value, json};

use super::Failure;
use super::model::available_threads;
use crate::animate::load;
use crate::frame::Prediction;
use crate::model::config::PRESETS;
use crate::model::packed::Engine;
use crate::ops::threads::Record;

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
    /// A table of every layer: milliseconds, and GFLOP/s of the layer as defined
    #[arg(long)]
    layers: bool,
    /// Print the numbers as JSON
    #[arg(long)]
    json: bool,
}

#[allow(clippy::print_stdout, reason = "this is the result")]
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let usual = ["vox-256", "vox-mobile", "mimic-small"].map(str::to_owned);
    let networks = if args.network.is_empty() {
        &usual[..]
    } else {
        &args.network
    };
    let threads = args.threads.map_or_else(available_threads, usize::from);
    let mut rows = Vec::new();
    for name in networks {
        let mut engine = load::procedural(name, threads)?;
        let isa = engine.workers().isa.name();
        for (photo, each) in [("each frame", true), ("cached", false)] {
            let seconds = time(&mut engine, args, each);
            let median = seconds[seconds.len() / 2];
            if !args.json {
                println!(
                    "{name:12} photo {photo:10} median {:7.2} ms, min {:7.2} ms ({isa}, {threads} threads)",
                    median * 1e3,
                    seconds[0] * 1e3
                );
            }
            rows.push(json!({
                "network": name, "engine": format!("mimic f32 ({isa})"), "photo": photo,
                "median_s": median, "min_s": seconds[0], "frames": seconds.len(),
            }));
        }
        if args.layers {
            let layers = layers(&mut engine, args);
            if !args.json {
                print(&layers);
            }
            rows.extend(layers.iter().map(|layer| to_json(name, layer)));
        }
    }
    if args.json {
        println!("{:#}", json!({ "threads": threads, "rows": rows }));
    }
    Ok(())
}

/// Seconds of whole frames (driving keypoints, motion, generator), sorted.
fn time(engine: &mut Engine, args: &Args, encode_each: bool) -> Vec<f64> {
    let pictures = pictures(engine.config().image_size);
    let mut source = engine.encode(&pictures[0]);
    let mut out = Prediction::default();
    let mut seconds = Vec::new();
    for i in 0..args.warm_up + args.frames {
        let start = Instant::now();
        if encode_each {
            source = engine.encode(&pictures[0]);
        }
        let driving = engine.keypoints(&pictures[1 + i as usize % 2]);
        engine.generate(&source, &driving, &mut out);
        if i >= args.warm_up {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    seconds
}

/// The median time of each layer of a frame, in order.
fn layers(engine: &mut Engine, args: &Args) -> Vec<Record> {
    let pictures = pictures(engine.config().image_size);
    let source = engine.encode(&pictures[0]);
    let mut out = Prediction::default();
    let mut runs: Vec<Vec<Record>> = Vec::new();
    for _ in 0..args.frames {
        engine.workers().meter.switch(true);
        let driving = engine.keypoints(&pictures[1]);
        engine.generate(&source, &driving, &mut out);
        engine.workers().meter.switch(false);
        runs.push(engine.workers().meter.take());
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

fn to_json(network: &str, layer: &Record) -> Value {
    json!({
        "network": network, "layer": layer.name, "algorithm": layer.algorithm,
        "seconds": layer.seconds, "flops": layer.flops,
    })
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
