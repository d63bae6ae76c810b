//! The rules of `ARCHITECTURE.md`, read off the source text: dependencies point down, each part names only what it
//! may, files stay readable.
//!
//! Paths are found in the text with comments, strings and test modules blanked out; what a macro makes up is not seen.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules from the top down; a line may use its own and the lines below it.
const LAYERS: &[&[&str]] = &[
    &["ui", "cli"],
    &["pipeline", "train"],
    &["animate", "faces", "gpu", "media"],
    &["model", "checkpoint"],
    &["ops"],
    &["device"],
    FOUNDATION,
];

/// What everything may use.
const FOUNDATION: &[&str] = &["frame", "geometry", "error", "settings"];

/// Beside the pictures' vocabulary, these know themselves alone.
const SELF_CONTAINED: &[&str] = &["gpu", "media"];

/// Names that a module must not say, and why.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "ui",
        &["candle_core", "candle_nn"],
        "tensors stay below the pipeline",
    ),
    (
        "cli",
        &["candle_core", "candle_nn"],
        "tensors stay below the pipeline",
    ),
    (
        "gpu",
        &["candle_core", "candle_nn"],
        "pictures and maps cross as plain numbers",
    ),
    (
        "media",
        &["candle_core", "candle_nn"],
        "pictures cross as image::RgbaImage",
    ),
    (
        "model",
        &["wgpu", "std::fs", "std::thread"],
        "networks are pure: no shaders, files or threads",
    ),
];

/// Where `unsafe` may be written: the kernels, the memory map of a weights file, and the environment before
/// any thread runs.
const UNSAFE: &[&str] = &["ops", "checkpoint", "main"];

/// And the one file that asks Vulkan itself for memory.
const UNSAFE_FILE: &str = "src/gpu/interop.rs";

/// Only these talk to standard output.
const PRINTERS: &[&str] = &["cli", "main"];

/// A file that one reads from top to bottom has an end.
const LARGEST: usize = 32 * 1024;

#[test]
fn dependencies_point_down() {
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        wrong.extend(check(&file, &text));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_file_is_too_long_to_read() {
    let folders = ["src", "tests", "benches", "shaders", "examples"];
    let long: Vec<String> = folders
        .iter()
        .flat_map(|folder| sources(folder))
        .filter(|(_, text)| text.len() >= LARGEST)
        .map(|(file, text)| format!("{}: {} bytes", file.display(), text.len()))
        .collect();
    assert!(
        long.is_empty(),
        "split what has {LARGEST} bytes and more: {long:?}"
    );
}

#[test]
fn the_code_map_names_every_module() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    for (file, _) in sources("src") {
        let module = module_of(&file);
        let named =
            map.contains(&format!("`{module}/`")) || map.contains(&format!("`{module}.rs`"));
        assert!(
            named,
            "the code map of ARCHITECTURE.md lacks {module}, of {}",
            file.display()
        );
    }
}

/// Everything that one file of `src/` does against the rules, a sentence each.
fn check(file: &Path, text: &str) -> Vec<String> {
    let module = module_of(file);
    let code = without_tests(&without_comments_and_strings(text));
    let mut wrong = Vec::new();
    let mut complain = |what: String| wrong.push(format!("{}: {what}", file.display()));

    if !PRINTERS.contains(&module.as_str()) && words(&code).any(|w| w == "println" || w == "print")
    {
        complain("prints; only the commands do, a library logs or returns".into());
    }
    let unsafe_is_for = UNSAFE.contains(&module.as_str()) || file == Path::new(UNSAFE_FILE);
    if !unsafe_is_for && words(&code).any(|w| w == "unsafe") {
        complain(format!(
            "writes unsafe; that is for {UNSAFE:?} and {UNSAFE_FILE}"
        ));
    }
    if ["lib", "main"].contains(&module.as_str()) {
        return wrong; // the crate's contents, not a part of them
    }
    let Some(layer) = layer_of(&module) else {
        complain(format!(
            "module {module} has no layer; give it one here and in ARCHITECTURE.md"
        ));
        return wrong;
    };
    for path in paths(&code) {
        let mut parts = path.split("::");
        let (first, second) = (parts.next(), parts.next().unwrap_or_default());
        if first == Some("super") && second == "super" {
            complain(format!(
                "{path}: say crate::, so that the layers can be read"
            ));
        }
        for (of, names, why) in FORBIDDEN {
            let named = |name: &&&str| path == **name || path.starts_with(&format!("{name}::"));
            if let Some(name) = names.iter().find(named).filter(|_| module == *of) {
                complain(format!("{path}: {of} never names {name} ({why})"));
            }
        }
        if first != Some("crate") || second == module {
            continue;
        }
        match layer_of(second) {
            Some(used) if used < layer => complain(format!("{path}: {module} is below {second}")),
            Some(_)
                if SELF_CONTAINED.contains(&module.as_str()) && !FOUNDATION.contains(&second) =>
            {
                complain(format!("{path}: {module} knows only {FOUNDATION:?}"));
            }
            _ => {} // a name that is no module is an item of lib.rs
        }
    }
    wrong
}

/// Position from the top; `None` for what is no module of the table.
fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// `src/model/blocks.rs` is of `model`, `src/frame.rs` of `frame`.
fn module_of(file: &Path) -> String {
    let inside = file.strip_prefix("src").unwrap_or(file);
    let first = inside
        .components()
        .next()
        .map(|c| c.as_os_str().to_string_lossy().into_owned());
    first.unwrap_or_default().trim_end_matches(".rs").to_owned()
}

/// Every path of two names and more, and every path of a `use`, braces multiplied out.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find(is_name) {
        let imported = rest[start..].starts_with("use ");
        rest = &rest[start + if imported { "use ".len() } else { 0 }..];
        let before = found.len();
        rest = path(rest, "", &mut found);
        if !imported && found.len() == before + 1 && !found[before].contains("::") {
            found.pop();
        }
    }
    found
}

/// Reads one path, or tree of paths, behind `prefix`; gives back what follows it.
fn path<'a>(code: &'a str, prefix: &str, found: &mut Vec<String>) -> &'a str {
    let code = code.trim_start().trim_start_matches("::").trim_start();
    if let Some(mut rest) = code.strip_prefix('{').filter(|_| !prefix.is_empty()) {
        loop {
            rest = path(rest, prefix, found).trim_start();
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = code.find(|c| !is_name(c)).unwrap_or(code.len());
    let (name, rest) = code.split_at(end);
    let whole = match prefix {
        "" => name.to_owned(),
        _ => format!("{prefix}::{name}"),
    };
    match rest.trim_start().strip_prefix("::") {
        Some(deeper) if !name.is_empty() => path(deeper, &whole, found),
        _ => {
            found.push(whole.trim_end_matches("::").to_owned());
            let rest = rest
                .trim_start()
                .strip_prefix("as ")
                .map_or(rest, |alias| alias.trim_start_matches(is_name));
            rest.strip_prefix('*').unwrap_or(rest)
        }
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c| !is_name(c))
}

/// The text with comments (and so the documentation) dropped and strings and characters emptied.
fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let raw = rest
            .strip_prefix('r')
            .map(|r| r.len() - r.trim_start_matches('#').len());
        let raw =
            raw.filter(|hashes| rest[1 + hashes..].starts_with('"') && !code.ends_with(is_name));
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(hashes) = raw {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = 1 + close.len();
            rest[open..]
                .find(&close)
                .map_or(rest.len(), |at| open + at + close.len())
        } else if c == '"' {
            quoted(rest, '"')
        } else if c == '\'' && is_character(rest) {
            quoted(rest, '\'')
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[length..];
    }
    code
}

/// Length of a nested `/* */`.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let here = &text.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Length of a literal between two of `quote`, escapes minded.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Whether a `'` begins a character and not a lifetime.
fn is_character(text: &str) -> bool {
    let mut next = text.chars().skip(1);
    matches!(
        (next.next(), next.next()),
        (Some('\\'), _) | (Some(_), Some('\''))
    )
}

/// The code without its `#[cfg(test)]` items: tests may use what they like.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find(['{', ';']).unwrap_or(rest.len());
        let mut depth = 0;
        let length = rest[end..].char_indices().find_map(|(i, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            (depth == 0).then_some(end + i + 1)
        });
        rest = &rest[length.unwrap_or(rest.len())..];
    }
    kept + rest
}

/// The text of every Rust file and shader in a folder of the project, and its path from the project's root.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs" || e == "wgsl") {
                let text = fs::read_to_string(&path).expect("source is text");
                files.push((
                    path.strip_prefix(root())
                        .expect("inside the project")
                        .to_owned(),
                    text,
                ));
            }
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// The checker itself: it must be able to fail.

#[test]
fn sources_are_found() {
    assert!(sources("src").len() > 2);
}

#[test]
fn a_use_upwards_is_found_however_it_is_written() {
    for code in [
        "use crate::pipeline::Event;",
        "use crate::{frame::Prediction, pipeline::{self, Event}};",
        "use crate::{\n    geometry,\n    cli,\n};",
        "pub(crate) use crate::ui as window;",
        "fn f() { let x: crate::pipeline::Event = todo(); }",
        "fn f() -> Option<crate :: cli :: X> { None }",
        "let c = '{'; let s = \"// \\\" \"; use crate::cli;",
        "fn f<'a>(x: &'a str) { crate::cli::go(x) }",
        "/* /* */ */ use crate::cli::X;",
        "let s = r#\" \" // \"#; use crate::cli::X;",
        "use super::super::pipeline::Event;",
    ] {
        assert!(
            !check(Path::new("src/model/blocks.rs"), code).is_empty(),
            "{code}"
        );
    }
}

#[test]
fn what_is_below_or_beside_may_be_used() {
    let code = "//! crate::cli::X is above.\n\
        use crate::ops::{self, conv};\nuse crate::checkpoint::Checkpoint;\nuse crate::geometry::Rect;\nuse super::blocks;\n\
        use candle_core::Tensor;\nuse std::collections::BTreeMap;\n\
        /// `crate::pipeline` uses this.\nfn f() { let s = \"crate::cli\"; }\n\
        #[cfg(test)]\nmod tests { use crate::cli::X; fn g() { println!(\"}\"); } }\n";
    let wrong = check(Path::new("src/model/mod.rs"), code);
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn code_behind_the_tests_is_still_read() {
    let code = "#[cfg(test)]\nmod tests { fn g() {} }\nuse crate::cli::X;";
    assert_eq!(check(Path::new("src/ops/conv.rs"), code).len(), 1);
}

#[test]
fn pictures_in_and_out_know_only_the_vocabulary() {
    assert!(
        check(
            Path::new("src/gpu/mod.rs"),
            "use crate::frame::Prediction; use crate::gpu::scene;"
        )
        .is_empty()
    );
    assert_eq!(
        check(Path::new("src/gpu/mod.rs"), "use crate::media::Clip;").len(),
        1
    );
    assert_eq!(
        check(Path::new("src/media/mod.rs"), "use crate::ops::conv;").len(),
        1
    );
}

#[test]
fn forbidden_names_are_found() {
    for (file, code) in [
        ("src/cli/animate.rs", "use candle_core::Tensor;"),
        ("src/ui.rs", "fn f(x: &candle_core::Tensor) {}"),
        ("src/gpu/mod.rs", "use candle_nn as nn;"),
        ("src/model/mod.rs", "use std::{collections::BTreeMap, fs};"),
        ("src/model/mod.rs", "use std::fs::File;"),
        ("src/model/mod.rs", "fn f() { std::thread::yield_now() }"),
        ("src/model/mod.rs", "fn f(d: &wgpu::Device) {}"),
        ("src/media/mod.rs", "fn f() { println!(\"x\") }"),
        ("src/lib.rs", "fn f() { print!(\"x\") }"),
        ("src/gpu/mod.rs", "fn f() { unsafe { g() } }"),
        ("src/unheard_of.rs", "fn f() {}"),
    ] {
        assert_eq!(check(Path::new(file), code).len(), 1, "{file}: {code}");
    }
    for (file, code) in [
        ("src/cli/animate.rs", "fn f() { println!(\"x\") }"),
        (
            "src/main.rs",
            "use mimic::cli; fn main() { println!(\"x\") }",
        ),
        ("src/ops/conv.rs", "fn f() { unsafe { g() } }"),
        ("src/checkpoint/mod.rs", "use std::fs::File;"),
        ("src/gpu/interop.rs", "fn f() { unsafe { g() } }"),
        (
            "src/gpu/mod.rs",
            "use std::fs::File; fn fs() { eprintln!(\"x\") }",
        ),
    ] {
        assert_eq!(
            check(Path::new(file), code),
            Vec::<String>::new(),
            "{file}: {code}"
        );
    }
}
