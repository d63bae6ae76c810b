//! `mimic doctor`: what this machine has, and what is missing.

use super::Failure;
use crate::animate::load::{self, ConfigSource};
use crate::checkpoint::store::Store;
use crate::device::{self, Choice};
use crate::ops::simd::Isa;
use crate::ops::threads::available_threads;
use crate::{gpu, media};

#[allow(clippy::print_stdout, reason = "this is what was asked for")]
pub(super) fn run() -> Result<(), Failure> {
    let mut missing = Vec::new();
    println!("mimic {}", env!("CARGO_PKG_VERSION"));

    let units: Vec<_> = (Isa::available().into_iter().chain(Isa::bf16()))
        .map(Isa::name)
        .collect();
    println!(
        "processor    {} threads, {}",
        available_threads(),
        std::env::consts::ARCH
    );
    println!(
        "             networks run on {} (this machine has {})",
        Isa::detected().name(),
        units.join(", ")
    );

    let cards: Vec<_> = Choice::Auto.order().into_iter().map(device::open).collect();
    for card in &cards {
        match card {
            Ok(card) => println!("             and on {}", card.name),
            Err(why) => println!("             not on a card: {why}"),
        }
    }
    if cards.is_empty() {
        println!("             this mimic was built without CUDA and Metal");
    }

    let adapters = gpu::adapters();
    if adapters.is_empty() {
        println!("graphics     no adapter: pictures are composed on the CPU");
    }
    for (i, adapter) in adapters.iter().enumerate() {
        println!(
            "{}{} ({}, {}, {})",
            if i == 0 {
                "graphics     "
            } else {
                "             "
            },
            adapter.name,
            adapter.kind,
            adapter.backend,
            adapter.driver
        );
    }

    match media::ffmpeg::version() {
        Ok(version) => println!("ffmpeg       {version}"),
        Err(error) => {
            println!("ffmpeg       missing");
            missing.push(error.to_string());
        }
    }
    match load::checkpoint(None, ConfigSource::Found) {
        Ok((checkpoint, config)) => println!(
            "weights      embedded {} ({} tensors, {size}x{size})",
            checkpoint.name.as_deref().unwrap_or("model"),
            checkpoint.tensors.len(),
            size = config.image_size,
        ),
        Err(error) => missing.push(error.to_string()),
    }
    match Store::of_environment() {
        Ok(store) => {
            let here: Vec<_> = (store.models().iter())
                .filter(|model| store.has(model))
                .map(|model| model.name.as_str())
                .collect();
            let here = match here.is_empty() {
                true => "none yet, `mimic weights list` says which there are".to_owned(),
                false => here.join(", "),
            };
            println!(
                "             models in {}: {here}",
                store.folder().display()
            );
        }
        Err(error) => missing.push(error.to_string()),
    }
    if missing.is_empty() {
        println!("Nothing is missing.");
        return Ok(());
    }
    Err(Failure::Job(missing.join("\nmimic: ")))
}
