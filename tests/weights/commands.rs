//! The program: `mimic weights`, names in the place of paths, and the question that a missing model is.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use md5::{Digest, Md5};

use crate::server::{Server, give, head};
use crate::setup::{Place, about, entry, exactly, fixture, fixture_path, noise, said, sha256};

#[test]
fn a_model_is_fetched_converted_verified_and_removed() {
    let file = fixture();
    let server = Server::of(file.clone());
    let place = Place::new(&[server.url("/a")], &exactly(&file));
    let list = place.works(&["weights", "list"]);
    assert!(
        list.contains("enhancer") && list.contains("3 MB") && list.contains("[MIT]"),
        "{list}"
    );
    let said = place.fails(&["weights", "path", "m"], 1);
    assert!(said.contains("`mimic weights fetch m`"), "{said}");

    let path = place.works(&["weights", "fetch", "m"]);
    assert_eq!(
        path.trim(),
        place.path("weights/m.safetensors").to_str().unwrap()
    );
    assert_eq!(
        place.files(),
        ["downloads/m.lock", "m.json", "m.safetensors"]
    );
    assert_eq!(place.works(&["weights", "path", "m"]), path);
    assert!(place.works(&["weights", "list"]).contains("here, "));
    assert_eq!(place.works(&["weights", "verify"]), "m: sound\n");
    let doctor = place.mimic(&["doctor"]).output().unwrap();
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    assert!(
        doctor.contains(&format!("models in {}: m", place.path("weights").display())),
        "{doctor}"
    );
    // The tensors are the file's, in half of its size.
    let lean = mimic::checkpoint::open(std::path::Path::new(path.trim())).unwrap();
    let original = mimic::checkpoint::open(&fixture_path()).unwrap();
    assert!(lean.tensors.keys().eq(original.tensors.keys()));
    assert!(std::fs::metadata(path.trim()).unwrap().len() < file.len() as u64 * 2 / 3);

    // A second fetch asks nobody.
    place.works(&["weights", "fetch", "m"]);
    assert_eq!(server.seen().len(), 1);
    let mut damaged = std::fs::read(path.trim()).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(path.trim(), damaged).unwrap();
    let said = place.fails(&["weights", "verify", "m"], 1);
    assert!(said.contains("damaged"), "{said}");

    place.works(&["weights", "remove", "m"]);
    assert_eq!(place.files(), ["downloads/m.lock", "m.json"]);
    assert_eq!(place.works(&["weights", "fetch", "m", "--keep"]), path);
    assert!(
        place
            .files()
            .contains(&"originals/m/model.pth.tar".to_owned())
    );
    assert_eq!(place.works(&["weights", "verify"]), "m: sound\n");
}

#[test]
fn an_animation_model_gets_the_configuration_of_the_manifest_and_runs_by_its_name() {
    let file = std::fs::read("weights/mimic-small.safetensors").unwrap();
    let server = Server::of(file.clone());
    let text = entry("m", &[server.url("/a")], &exactly(&file));
    let text = text.replace("\"enhancer\"", "\"animation\"")
        + "config = \"mimic-small\"\nborder = \"paddlegan\"\n";
    let place = Place::of(&text);
    let path = place.works(&["weights", "fetch", "m"]);
    let lean = mimic::checkpoint::open(std::path::Path::new(path.trim())).unwrap();
    assert_eq!(lean.name.as_deref(), Some("m"));
    assert!(lean.config.unwrap().contains("\"border\":\"paddlegan\""));

    let out = place.path("out.mp4");
    let printed = place.works(&[
        "animate",
        "--source-image",
        "assets/mona-lisa.jpg",
        "--driving-video",
        "assets/mona-lisa.jpg",
        "--crop",
        "150,60,670,580",
        "--weights",
        "m",
        "-o",
        out.to_str().unwrap(),
    ]);
    assert_eq!(printed.trim(), out.to_str().unwrap());
}

#[test]
fn a_missing_model_is_one_sentence_with_the_command_in_a_script() {
    let place = Place::new(&["http://127.0.0.1:9/a".to_owned()], "bytes = 5000000");
    let photo = "assets/mona-lisa.jpg";
    for args in [
        &[
            "animate",
            "--source-image",
            photo,
            "--driving-video",
            photo,
            "--crop",
            "whole",
            "--weights",
            "m",
        ][..],
        &[
            "faces",
            photo,
            "--face-detector",
            "s3fd",
            "--detector-weights",
            "m",
        ],
        &["weights", "path", "m"],
    ] {
        let said = place.fails(args, 1);
        assert!(
            said.contains("`mimic weights fetch m`")
                && said.contains("5 MB")
                && said.contains("MIT"),
            "{said}"
        );
    }
    let said = place.fails(&["weights", "fetch", "n"], 1);
    assert!(
        said.contains("no model n") && said.contains("there are m"),
        "{said}"
    );
    // What is no model is a path, and the sentence is the one of paths.
    let said = place.fails(
        &[
            "animate",
            "--source-image",
            photo,
            "--driving-video",
            photo,
            "--crop",
            "whole",
            "--weights",
            "n",
        ],
        1,
    );
    assert!(said.contains("cannot read the weights n"), "{said}");
}

/// Runs the program on a terminal of its own, and types `answer`.
#[cfg(target_os = "linux")]
fn on_a_terminal(place: &Place, args: &[&str], answer: &str) -> String {
    let mut command = place.mimic(args);
    let line: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut script = Command::new("script");
    script.args(["-qec", &line.join(" "), "/dev/null"]);
    script.current_dir(env!("CARGO_MANIFEST_DIR"));
    for (name, value) in command.env("TERM", "dumb").get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let mut child = script
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("util-linux has script");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(answer.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal_a_missing_model_is_a_question() {
    let file = fixture();
    let server = Server::of(file.clone());
    let place = Place::new(&[server.url("/a")], &exactly(&file));
    let photo = "assets/mona-lisa.jpg";
    let args = [
        "faces",
        photo,
        "--face-detector",
        "s3fd",
        "--detector-weights",
        "m",
    ];
    let said = on_a_terminal(&place, &args, "n\n");
    assert!(
        said.contains("a test") && said.contains("3 MB") && said.contains("licence: MIT? [y/N]"),
        "{said}"
    );
    assert!(said.contains("`mimic weights fetch m`"), "{said}");
    assert_eq!(server.seen().len(), 0);
    let said = on_a_terminal(&place, &args, "y\n");
    assert_eq!(server.seen().len(), 1);
    // It came; that it is no detector is said afterwards.
    assert!(said.contains("do not fit"), "{said}");
}

#[test]
fn a_manifest_with_an_unknown_field_names_it_and_its_line() {
    let place = Place::new(
        &["http://127.0.0.1:9/a".to_owned()],
        "bytes = 5\nchecksum = \"1\"",
    );
    for args in [&["weights", "list"][..], &["weights", "fetch", "m"]] {
        let said = place.fails(args, 1);
        assert!(
            said.contains("checksum") && said.contains("line 10") && said.contains("manifest.toml"),
            "{said}"
        );
    }
}

#[test]
fn two_processes_fetch_the_same_file_once() {
    let file = fixture();
    let serve = file.clone();
    let server = Server::start(move |_, _, stream| {
        head(stream, "200 OK", &[], serve.len())?;
        for piece in serve.chunks(serve.len() / 20) {
            stream.write_all(piece)?;
            std::thread::sleep(Duration::from_millis(40));
        }
        Ok(())
    });
    let place = Place::new(&[server.url("/a")], &exactly(&file));
    let run = || {
        let mut command = place.mimic(&["weights", "fetch", "m"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let both = [run(), run()].map(|child| child.wait_with_output().unwrap());
    for output in &both {
        assert!(output.status.success(), "{}", said(output));
    }
    assert_eq!(server.seen().len(), 1, "it was downloaded twice");
    let all = both.iter().map(said).collect::<String>();
    assert!(
        all.contains("another mimic") && all.contains("here already"),
        "{all}"
    );
    assert_eq!(place.works(&["weights", "verify"]), "m: sound\n");
}

#[test]
fn proxies_are_honoured() {
    let file = fixture();
    let serve = file.clone();
    // A proxy that is asked to connect is the server itself from there on.
    let proxy = Server::start(move |_, request, stream| {
        if request.line.starts_with("CONNECT ") {
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
            let mut text = Vec::new();
            let mut byte = [0];
            while !text.ends_with(b"\r\n\r\n") {
                std::io::Read::read_exact(stream, &mut byte)?;
                text.push(byte[0]);
            }
        }
        head(stream, "200 OK", &[], serve.len())?;
        stream.write_all(&serve)
    });
    let place = Place::new(&["http://weights.invalid/a".to_owned()], &exactly(&file));
    let address = format!("http://127.0.0.1:{}", proxy.port());
    let output = place
        .mimic(&["weights", "fetch", "m"])
        .env("HTTP_PROXY", &address)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        proxy.seen()[0].line.contains("weights.invalid"),
        "{:?}",
        proxy.seen()
    );

    // Not for hosts that are excepted.
    let direct = Server::of(file.clone());
    let place = Place::new(&[direct.url("/a")], &exactly(&file));
    let output = place
        .mimic(&["weights", "fetch", "m"])
        .env("HTTPS_PROXY", &address)
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((proxy.seen().len(), direct.seen().len()), (1, 1));
}

#[test]
fn an_offline_copy_is_found_by_its_name_or_its_hash() {
    let file = fixture();
    let place = Place::new(&["http://127.0.0.1:9/a".to_owned()], &exactly(&file));
    let copies = place.path("copies");
    std::fs::create_dir(&copies).unwrap();
    let from = ["weights", "fetch", "m", "--from", copies.to_str().unwrap()];
    let said = place.fails(&from, 1);
    assert!(
        said.contains("model.pth.tar") && said.contains("--from"),
        "{said}"
    );
    // Of the right name and the wrong bytes, and of another name and the right ones.
    std::fs::write(copies.join("model.pth.tar"), noise(file.len())).unwrap();
    std::fs::write(copies.join("downloaded (1).tar"), &file).unwrap();
    place.works(&from);
    assert_eq!(place.works(&["weights", "verify"]), "m: sound\n");
    assert_eq!(
        std::fs::read(copies.join("downloaded (1).tar")).unwrap(),
        file,
        "the copy is its owner's"
    );
}

#[test]
fn files_of_one_name_are_told_apart_by_their_hash() {
    let full = fixture();
    let slim = std::fs::read("tests/fixtures/vox_tiny_legacy.pth.tar").unwrap();
    let nowhere = ["http://127.0.0.1:9/a".to_owned()];
    // As with avatarify's, of one only the older hash is known.
    let md5 = Md5::digest(&slim);
    let md5: String = md5.iter().map(|byte| format!("{byte:02x}")).collect();
    let place = Place::of(&format!(
        "{}{}",
        entry("full", &nowhere, &exactly(&full)),
        entry(
            "slim",
            &nowhere,
            &format!("{}\nmd5 = \"{md5}\"", about(&slim))
        ),
    ));
    for (name, bytes) in [("slim", &slim), ("full", &full)] {
        let file = place.path("model.pth.tar");
        std::fs::write(&file, bytes).unwrap();
        let path = place.works(&["weights", "import", file.to_str().unwrap()]);
        assert!(
            path.trim().ends_with(&format!("{name}.safetensors")),
            "{path}"
        );
        let other = if name == "slim" { "full" } else { "slim" };
        let said = place.fails(
            &["weights", "import", file.to_str().unwrap(), "--as", other],
            1,
        );
        assert!(said.contains("is not") && said.contains(other), "{said}");
    }
    let stranger = place.path("stranger.pth");
    std::fs::write(&stranger, noise(full.len())).unwrap();
    let said = place.fails(&["weights", "import", stranger.to_str().unwrap()], 1);
    assert!(said.contains("--as") && said.contains("-o"), "{said}");
}

#[test]
fn a_first_download_without_a_hash_is_pinned_if_it_is_a_model() {
    let file = fixture();
    let page = noise(file.len());
    let (first, second) = (file.clone(), page.clone());
    let server = Server::start(move |number, request, stream| match number {
        // What a portal may send in its place.
        0 | 2 => give(&second, "\"p\"", request, stream),
        _ => give(&first, "\"v1\"", request, stream),
    });
    let place = Place::new(&[server.url("/a")], &about(&file));
    let said = place.fails(&["weights", "fetch", "m"], 1);
    assert!(said.contains("cannot be used"), "{said}");
    assert_eq!(
        place.files(),
        ["downloads/m.lock"],
        "it was neither kept nor pinned"
    );
    place.works(&["weights", "fetch", "m"]);
    place.works(&["weights", "remove", "m"]);
    let said = place.fails(&["weights", "fetch", "m"], 1);
    assert!(
        said.contains(&sha256(&file)) && said.contains(&sha256(&page)),
        "{said}"
    );
    place.works(&["weights", "fetch", "m"]);
}
