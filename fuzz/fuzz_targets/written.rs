//! What people write, or get from others as text: training files, configurations of models, lists of models.
#![no_main]

use mimic::checkpoint::manifest::Manifest;
use mimic::model::ModelConfig;
use mimic::train::TrainConfig;

libfuzzer_sys::fuzz_target!(|text: &str| {
    said(TrainConfig::from_yaml(text, &[]));
    said(ModelConfig::from_yaml(text));
    said(Manifest::parse(text, "fuzz"));
    if let Some(config) = said(ModelConfig::from_json(text, None)) {
        // What was read is written so that it is read again.
        let again = ModelConfig::from_json(&config.to_json(), None);
        assert!(again.is_ok_and(|again| again == config));
    }
});

/// What it says, unless that is an error, which is a sentence.
fn said<T, E: std::fmt::Display>(result: Result<T, E>) -> Option<T> {
    result
        .map_err(|error| assert!(!error.to_string().trim().is_empty()))
        .ok()
}
