//! What results say of themselves, as other programs read it: exiftool, ffprobe, and C2PA's own reader.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbaImage;
use mimic::media::provenance::DIGITAL_SOURCE_TYPE;
use mimic::media::record::{Microphone, Recorder};
use mimic::media::{Fps, Provenance, Signer, WriteOptions, save_picture, sink};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use crate::helpers::{
    Folder, H264, assert_sentence, frames, largest_difference, open, probe, quarters,
};

const PHOTO: &str = "assets/mona-lisa.jpg";

/// `sha256sum assets/mona-lisa.jpg`, by another program.
fn hash_of_photo() -> String {
    let output = Command::new("sha256sum").arg(PHOTO).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

fn said() -> Provenance {
    Provenance::of_photo(Path::new(PHOTO)).unwrap()
}

/// What exiftool knows of a file: the name of a tag with its group, and its value.
fn exiftool(file: &Path) -> serde_json::Value {
    let output = Command::new("exiftool")
        .args(["-j", "-G1"])
        .arg(file)
        .output()
        .expect("scripts/packages.sh installs exiftool");
    serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()[0].take()
}

/// One tag of a container.
fn tag(file: &Path, name: &str) -> String {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-of", "default=nw=1:nk=1"])
        .args(["-show_entries", &format!("format_tags={name}")])
        .arg(file)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Writes three frames; gives the files.
fn write(path: &Path, provenance: Option<Provenance>, audio_from: Option<PathBuf>) -> Vec<PathBuf> {
    let options = WriteOptions {
        width: 64,
        height: 48,
        fps: Fps::new(25, 1).unwrap(),
        audio_from,
        inputs: Vec::new(),
        provenance,
    };
    let mut sink = sink::create(path, &options).unwrap_or_else(|e| panic!("{e}"));
    for _ in 0..3 {
        sink.write(&quarters(64, 48)).unwrap();
    }
    sink.finish().unwrap_or_else(|e| panic!("{e}"))
}

fn assert_says(file: &Path) {
    let known = exiftool(file);
    let name = file.display();
    assert_eq!(
        known["XMP-iptcExt:DigitalSourceType"], DIGITAL_SOURCE_TYPE,
        "{name}: {known:#}"
    );
    assert_eq!(
        known["XMP-dc:Source"],
        format!("sha256:{}", hash_of_photo()),
        "{name}"
    );
    let tool = format!("mimic {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(known["XMP-xmp:CreatorTool"], tool, "{name}");
    assert!(known.get("ExifTool:Warning").is_none(), "{name}: {known:#}");
}

/// The kinds of an mp4's outermost boxes, in order.
fn boxes(file: &Path) -> Vec<String> {
    let bytes = std::fs::read(file).unwrap();
    let mut at = 0;
    let mut kinds = Vec::new();
    while at < bytes.len() {
        let size = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        kinds.push(String::from_utf8_lossy(&bytes[at + 4..at + 8]).into_owned());
        assert!(size >= 8, "{kinds:?}");
        at += size;
    }
    assert_eq!(at, bytes.len());
    kinds
}

#[test]
fn pictures_and_videos_say_that_they_are_generated() {
    let folder = Folder::new();
    let clip = folder.ffmpeg(
        &format!(
            "-f lavfi -i testsrc2=s=64x48:r=25:d=1 -f lavfi -i sine=d=1 -shortest {H264} -c:a aac"
        ),
        "clip.mp4",
    );
    for name in ["a.mp4", "a.gif", "%03d.png", "%03d.jpg"] {
        let path = folder.path(name);
        for file in write(&path, Some(said()), Some(clip.clone())) {
            assert_says(&file);
            // And are what they were.
            let plain = folder.path(&format!("plain/{name}"));
            let plain = write(&plain, None, None).remove(0);
            let (with, without) = (frames(open(&file).as_mut()), frames(open(&plain).as_mut()));
            assert_eq!(with.len(), without.len(), "{name}");
            assert_eq!(largest_difference(&with[0], &without[0]), 0, "{name}");
        }
    }
    let mp4 = folder.path("a.mp4");
    assert_eq!(
        boxes(&mp4),
        ["ftyp", "moov", "free", "mdat", "uuid"],
        "the index stays in front"
    );
    assert_eq!(tag(&mp4, "comment"), said().comment());
    assert_eq!(probe(&mp4, "a:0", "codec_name"), "aac");
    assert_eq!(probe(&mp4, "v:0", "nb_read_frames"), "3");
    assert_eq!(
        folder
            .list()
            .iter()
            .filter(|name| name.starts_with('.'))
            .count(),
        0
    );
}

#[test]
fn webm_says_it_in_tags() {
    let folder = Folder::new();
    let webm = folder.path("a.webm");
    write(&webm, Some(said()), None);
    assert_eq!(tag(&webm, "COMMENT"), said().comment());
    assert_eq!(tag(&webm, "DIGITAL_SOURCE_TYPE"), DIGITAL_SOURCE_TYPE);
    assert!(tag(&webm, "XMP").contains(&hash_of_photo()));
    assert_eq!(exiftool(&webm)["Matroska:Comment"], said().comment());
}

#[test]
fn nothing_is_said_where_it_is_not_wanted() {
    let folder = Folder::new();
    for name in ["a.mp4", "a.webm", "a.gif", "%03d.png", "%03d.jpg"] {
        for file in write(&folder.path(name), None, None) {
            let bytes = std::fs::read(&file).unwrap();
            for word in ["digitalsourcetype", "mimic", "xpacket"] {
                assert!(
                    !bytes.windows(word.len()).any(|w| w == word.as_bytes()),
                    "{name}: {word}"
                );
            }
        }
    }
}

#[test]
fn screenshots_and_live_recordings_say_it_too() {
    let folder = Folder::new();
    let shot = folder.path("new folder/shot.png");
    save_picture(&shot, &quarters(64, 48), Some(&said())).unwrap();
    assert_says(&shot);
    assert_eq!(image::open(&shot).unwrap().into_rgba8(), quarters(64, 48));
    let error = save_picture(&folder.path("shot.xyz"), &quarters(8, 8), None).unwrap_err();
    assert_sentence(&error, &folder.path("shot.xyz"));

    let path = folder.path("live.mp4");
    let fps = Fps::new(25, 1).unwrap();
    let mut recorder = Recorder::start(&path, 64, 48, fps, Microphone::Off, Some(said())).unwrap();
    let start = Instant::now();
    for i in 0..5 {
        recorder.push(&quarters(64, 48), start + Duration::from_millis(40 * i));
    }
    recorder.finish().unwrap();
    assert_says(&path);
    assert_eq!(tag(&path, "comment"), said().comment());

    // Of another photo too, that came later.
    let path = folder.path("two.mp4");
    let mut recorder = Recorder::start(&path, 64, 48, fps, Microphone::Off, Some(said())).unwrap();
    recorder.push(&quarters(64, 48), Instant::now());
    let mut both = said();
    both.add_photo(Path::new("assets/american-gothic.jpg"))
        .unwrap();
    recorder.sayer()(both.clone());
    recorder.finish().unwrap();
    assert_eq!(tag(&path, "comment"), both.comment());
    let known = exiftool(&path);
    let source = known["XMP-dc:Source"].as_str().unwrap();
    assert!(
        source.starts_with(&format!("sha256:{}, sha256:", hash_of_photo())),
        "{source}"
    );
}

/// What C2PA's own reader makes of a file.
fn manifest(file: &Path) -> c2pa::Result<c2pa::Reader> {
    c2pa::Reader::from_context(c2pa::Context::new()).with_file(file)
}

/// A certificate authority.
fn authority() -> (Certificate, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params
        .distinguished_name
        .push(DnType::OrganizationName, "A test");
    params
        .distinguished_name
        .push(DnType::CommonName, "A test's root");
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate, Issuer::new(params, key))
}

/// A certificate as C2PA wants it, changed by `change`; the chain and the key as files.
fn certificate(folder: &Folder, change: impl FnOnce(&mut CertificateParams)) -> (PathBuf, PathBuf) {
    let (root, issuer) = authority();
    let mut params = CertificateParams::default();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    params.use_authority_key_identifier_extension = true;
    params
        .distinguished_name
        .push(DnType::OrganizationName, "A test");
    params
        .distinguished_name
        .push(DnType::CommonName, "A tester");
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    (
        folder.file("chain.pem", leaf.pem() + &root.pem()),
        folder.file("key.pem", key.serialize_pem()),
    )
}

#[test]
fn a_result_is_signed_and_c2pas_own_reader_takes_it() {
    let folder = Folder::new();
    let (chain, key) = certificate(&folder, |_| ());
    let signer = Arc::new(Signer::open(&chain, &key).unwrap_or_else(|e| panic!("{e}")));
    let signed = said().signed_by(Some(signer));
    for name in ["a.mp4", "a.gif", "%03d.png", "%03d.jpg"] {
        for file in write(&folder.path(name), Some(signed.clone()), None) {
            let reader = manifest(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_ne!(
                reader.validation_state(),
                c2pa::ValidationState::Invalid,
                "{name}: {reader}"
            );
            let text = reader.json();
            assert!(
                text.contains(DIGITAL_SOURCE_TYPE) && text.contains("c2pa.created"),
                "{text}"
            );
            assert!(
                text.contains(&hash_of_photo()) && text.contains("A test"),
                "{text}"
            );
            assert_says(&file);
            assert_eq!(
                frames(open(&file).as_mut()).len(),
                if name.starts_with('a') { 3 } else { 1 }
            );

            // One changed pixel, and it is not valid any more.
            let mut bytes = std::fs::read(&file).unwrap();
            let start = match name {
                "a.mp4" => bytes.windows(4).position(|w| w == b"mdat").unwrap() + 100,
                "%03d.png" => bytes.windows(4).position(|w| w == b"IDAT").unwrap() + 10,
                _ => bytes.len() - 20,
            };
            bytes[start] ^= 0x10;
            let forged = folder.file(&format!("forged{}", name.replace('%', "")), bytes);
            let state = manifest(&forged).map(|reader| reader.validation_state());
            assert!(
                !matches!(
                    state,
                    Ok(c2pa::ValidationState::Valid | c2pa::ValidationState::Trusted)
                ),
                "{name}"
            );
        }
    }
    assert_eq!(boxes(&folder.path("a.mp4"))[0], "ftyp");
    assert!(!Signer::can_sign(Path::new("a.webm")));
    let shot = folder.path("shot.png");
    save_picture(&shot, &RgbaImage::new(8, 8), Some(&signed)).unwrap();
    assert!(manifest(&shot).is_ok());
}

#[test]
fn a_certificate_that_does_not_sign_is_one_sentence_before_anything_is_done() {
    let folder = Folder::new();
    let other = KeyPair::generate().unwrap().serialize_pem();
    let other = folder.file("other.pem", other);
    let rubbish = folder.file("rubbish.pem", "not a certificate");
    let broken = folder.file(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let empty = folder.file("empty.pem", "");
    let (chain, key) = certificate(&folder, |_| ());
    for (certificate, key, named) in [
        (&rubbish, &key, &rubbish),
        (&broken, &key, &broken),
        (&empty, &key, &empty),
        (&chain, &rubbish, &rubbish),
        (&chain, &chain, &chain),
        (&key, &key, &key),
        (&chain, &other, &other),
        (&folder.path("none.pem"), &key, &folder.path("none.pem")),
    ] {
        let error = Signer::open(certificate, key).unwrap_err();
        assert_sentence(&error, named);
    }
    // Of the past, and for another purpose.
    for change in [
        |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1),
        |params: &mut CertificateParams| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        },
    ] {
        let (chain, key) = certificate(&folder, change);
        let error = Signer::open(&chain, &key).unwrap_err();
        assert_sentence(&error, &chain);
    }
}
