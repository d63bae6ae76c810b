//! Published models: a card, a download, what it is used for.

use super::*;
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::store::Store;

#[allow(dead_code, reason = "the tests of downloads need more of it")]
#[path = "../../../tests/weights/server.rs"]
mod server;
use server::{Server, give, head};

/// Runs frames until something is so.
fn wait_until(
    harness: &mut Harness<'static, App>,
    what: &str,
    so: impl Fn(&Harness<'static, App>) -> bool,
) {
    let patience = Instant::now();
    while !so(harness) {
        assert!(patience.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
        harness.step();
    }
}

#[test]
fn a_missing_model_has_a_card_is_downloaded_stopped_taken_up_used_and_removed() {
    let file = std::fs::read("weights/mimic-small.safetensors").unwrap();
    let serve = file.clone();
    let server = Server::start(move |_, request, stream| {
        if request.from().is_some() {
            return give(&serve, "\"v1\"", request, stream);
        }
        head(stream, "200 OK", &[("ETag", "\"v1\"")], serve.len())?;
        for piece in serve.chunks(serve.len() / 100) {
            std::io::Write::write_all(stream, piece)?;
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(())
    });
    let config = tempfile::tempdir().unwrap();
    let photo = config.path().join("photo.png");
    RgbaImage::new(96, 96).save(&photo).unwrap();
    let settings = Settings {
        language: Some(Language::English),
        reel: vec![settings::Photo {
            origin: settings::PhotoOrigin::File(photo),
            faces: None,
        }],
        ..Settings::default()
    };
    settings::save(config.path(), &settings).unwrap();
    let mut harness = window(config.path());
    let manifest = format!(
        "version = 1\n[[model]]\nname = \"m\"\nkind = \"animation\"\ntitle = \"a test\"\nfile = \"m.pth\"\n\
         mirrors = [\"{}\"]\nabout_bytes = {}\nlicence = \"its own\"\nconfig = \"mimic-small\"",
        server.url("/m"),
        file.len()
    );
    let manifest = Manifest::parse(&manifest, "test").unwrap();
    let weights = config.path().join("weights");
    harness.state_mut().downloads.store = Ok(Store::new(weights.clone(), manifest));
    harness.state_mut().want(Command::Go(Place::Models));
    harness.run_steps(3);
    harness.get_by_label("Download m").click();
    wait_until(&mut harness, "it does not begin", |h| {
        h.query_by_label("Cancel").is_some()
            && h.state().downloads.cards()[0]
                .progress
                .as_ref()
                .is_some_and(|p| p.done > 500_000)
    });
    harness.get_by_label("Cancel").click();
    wait_until(&mut harness, "it does not stop", |h| {
        h.query_by_label("Download m").is_some()
    });
    assert!(!weights.join("m.safetensors").exists());
    harness.get_by_label("Download m").click();
    wait_until(&mut harness, "it does not come", |h| {
        h.query_by_label("Use this one").is_some()
    });
    assert!(server.seen()[1].from().unwrap() > 500_000);
    assert!(harness.state().downloads.cards().is_empty());
    harness.get_by_label("Use this one").click();
    harness.run_steps(3);
    let path = weights.join("m.safetensors");
    assert_eq!(harness.state().settings.model.as_ref(), Some(&path));
    // The embedded one again, and the card comes back when it is removed.
    harness.get_by_label("Use this one").click();
    harness.run_steps(3);
    harness.get_by_label("Remove").click();
    harness.run_steps(3);
    assert!(!path.exists());
    // The thread of the download may need a moment to end.
    wait_until(&mut harness, "the card does not come back", |h| {
        h.query_by_label("Download m").is_some()
    });
}
