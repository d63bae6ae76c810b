//! Every shader is valid WGSL and has a twin in Rust: what a driver would only say at run time is
//! said here.

use std::fs;
use std::path::Path;

use naga::valid::{Capabilities, ValidationFlags, Validator};

#[test]
fn every_shader_passes_validation_and_starts_at_main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut failures = Vec::new();
    let mut checked = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "wgsl") {
            continue;
        }
        checked += 1;
        let source = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match naga::front::wgsl::parse_str(&source) {
            Err(error) => failures.push(error.emit_to_string_with_path(&source, &name)),
            Ok(module) => {
                if !module.entry_points.iter().any(|entry| entry.name == "main") {
                    failures.push(format!("{name} has no entry point 'main'"));
                }
                // No capabilities: what every adapter has must be enough.
                let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
                if let Err(error) = validator.validate(&module) {
                    failures.push(error.emit_to_string_with_path(&source, &name));
                }
            }
        }
    }
    assert!(checked >= 2, "only {checked} shaders found");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
