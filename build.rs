//! With the feature `cuda`: the kernels of `shaders/cuda` to PTX, by NVIDIA's compiler. Without it: nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The oldest card that they are made for; a driver makes code for newer ones of the same text.
const OLDEST: u32 = 75;

/// The same of files whose instructions older cards have not; `a`: and neither have newer ones.
const NEWER: [(&str, &str); 3] = [
    ("tensor_cores", "80"),
    ("narrow", "90a"),
    ("warpgroups", "90a"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let folder = Path::new("shaders/cuda");
    println!("cargo::rerun-if-changed={}", folder.display());
    for name in ["NVCC", "CUDA_HOME", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(why) = compile(folder) {
        println!("cargo::error={why}");
    }
}

fn compile(folder: &Path) -> Result<(), String> {
    let oldest = match env::var("CUDA_COMPUTE_CAP") {
        Ok(asked) => asked.parse().unwrap_or(OLDEST).min(OLDEST),
        Err(_) => OLDEST,
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo says no OUT_DIR")?);
    let files = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for file in files.filter_map(|file| Some(file.ok()?.path())) {
        let Some(stem) = file
            .file_stem()
            .filter(|_| file.extension().is_some_and(|e| e == "cu"))
        else {
            continue;
        };
        let ptx = out.join(stem).with_extension("ptx");
        let mut nvcc = Command::new(nvcc());
        nvcc.args(["-ptx", "-O3", "-std=c++17", "-o"])
            .arg(ptx)
            .arg(&file);
        let newer = NEWER.iter().find(|(name, _)| stem.to_str() == Some(name));
        nvcc.arg(match newer {
            Some((_, card)) => format!("-arch=compute_{card}"),
            None => format!("-arch=compute_{oldest}"),
        });
        let said = nvcc.output().map_err(|e| {
            format!("cannot run NVIDIA's compiler {:?} ({e}): set NVCC or CUDA_HOME, or get it by scripts/cuda-toolkit.sh", nvcc.get_program())
        })?;
        if !said.status.success() {
            let text = String::from_utf8_lossy(&said.stderr).replace('\n', " ");
            return Err(format!("{}: {text}", file.display()));
        }
    }
    Ok(())
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    match env::var_os("CUDA_HOME") {
        Some(home) => PathBuf::from(home).join("bin/nvcc"),
        None => "nvcc".into(),
    }
}
