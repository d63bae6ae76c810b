//! Bad files: each is a sentence in the window, and the rest runs on.

use super::*;

/// Waits for a notice that says this.
fn hears(harness: &mut Harness<'static, App>, part: &str) {
    let patience = Instant::now();
    loop {
        let texts = said(harness);
        if texts.iter().any(|text| text.contains(part)) {
            return;
        }
        assert!(
            patience.elapsed() < Duration::from_secs(60),
            "{part}: {texts:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
        harness.step();
    }
}

#[test]
fn broken_settings_are_set_aside_with_a_notice() {
    let config = tempfile::tempdir().unwrap();
    std::fs::write(config.path().join("settings.json"), "{ not json").unwrap();
    std::fs::write(config.path().join("jobs.json"), "[{]").unwrap();
    let mut harness = window(config.path());
    let texts = said(&mut harness);
    assert!(
        texts
            .iter()
            .any(|text| text.contains("settings.broken.json")),
        "{texts:?}"
    );
    assert!(
        texts.iter().any(|text| text.contains("jobs.broken.json")),
        "{texts:?}"
    );
}

#[test]
fn a_photo_that_is_gone_says_so_and_the_rest_runs_on() {
    let config = fresh();
    let mut harness = window(config.path());
    let gone = config.path().join("gone.png");
    harness.state_mut().want(Command::AddPhotos(vec![gone]));
    let why = wait(&mut harness, "it is said", |app| {
        match &app.reel.current()?.state {
            State::Failed(why) => Some(why.clone()),
            _ => None,
        }
    });
    assert!(why.contains("gone.png"), "{why}");
    harness.key_press(Key::Num1);
    harness.run_steps(2);
    assert!(harness.state().stage.photo().is_some());
}

#[test]
fn a_photo_deleted_while_it_is_in_the_reel_stays_until_the_end() {
    let config = fresh();
    let path = config.path().join("there.jpg");
    std::fs::copy(asset("la-donna-velata.jpg"), &path).unwrap();
    let mut harness = window(config.path());
    harness
        .state_mut()
        .want(Command::AddPhotos(vec![path.clone()]));
    harness.step();
    wait(&mut harness, "it opens", |app| {
        app.reel.current()?.opened().map(|_| ())
    });
    std::fs::remove_file(&path).unwrap();
    harness.key_press(Key::Num1);
    harness.run_steps(3);
    harness.key_press(Key::ArrowLeft);
    harness.run_steps(3);
    let app = harness.state();
    assert_eq!(app.stage.photo(), app.reel.current().map(|photo| photo.id));
    harness.state_mut().remember(true);
    drop(harness);
    // And with the next start it is said.
    let mut harness = window(config.path());
    hears(&mut harness, "there.jpg");
}

#[test]
fn pictures_that_are_none_or_too_large_are_refused_in_a_sentence() {
    let config = fresh();
    let text = config.path().join("text.png");
    std::fs::write(&text, "no picture at all").unwrap();
    // A header that promises a hundred gigabytes.
    let huge = config.path().join("huge.png");
    let mut png = std::io::Cursor::new(Vec::new());
    RgbaImage::new(1, 1)
        .write_to(&mut png, image::ImageFormat::Png)
        .unwrap();
    let mut bytes = png.into_inner();
    bytes[16..24].copy_from_slice(&[0, 2, 0, 0, 0, 2, 0, 0]);
    let crc = crc32fast::hash(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    std::fs::write(&huge, bytes).unwrap();
    let mut harness = window(config.path());
    drop_files(&mut harness, &[text, huge]);
    hears(&mut harness, "text.png");
    hears(&mut harness, "huge.png");
    harness.key_press(Key::Num2);
    harness.run_steps(2);
    assert!(harness.state().stage.photo().is_some());
}

#[test]
fn a_job_of_files_that_are_none_says_so_before_it_runs() {
    let config = fresh();
    let text = config.path().join("notes.txt");
    std::fs::write(&text, "no video").unwrap();
    let empty = config.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let cut = config.path().join("cut.mimic-take");
    std::fs::write(&cut, "mimic-take 1\n{}").unwrap();
    let mut harness = window(config.path());
    drop_files(&mut harness, &[asset("mona-lisa.jpg"), text, empty, cut]);
    let why = wait(&mut harness, "all three are known", |app| {
        let failed = |job: &RenderJob| match &job.state {
            JobState::Failed(why) => Some(why.clone()),
            _ => None,
        };
        let jobs = app.jobs.queue.jobs();
        jobs.iter().map(failed).collect::<Option<Vec<_>>>()
    });
    assert_eq!(why.len(), 3);
    for (why, name) in why.iter().zip(["notes.txt", "empty", "cut.mimic-take"]) {
        assert!(why.contains(name), "{why}");
    }
}

#[test]
fn a_file_that_cannot_drive_gives_way_to_what_drove_before() {
    let config = fresh();
    let text = config.path().join("notes.txt");
    std::fs::write(&text, "no video").unwrap();
    let mut harness = alive(config.path());
    wait(&mut harness, "the demo plays", |app| {
        (app.driver.as_ref()?.frames() > 0).then_some(())
    });
    drop_files(&mut harness, &[text]);
    hears(&mut harness, "notes.txt");
    harness.run_steps(3);
    assert_eq!(harness.state().settings.driver, Driver::Demo);
    wait(&mut harness, "the demo plays on", |app| {
        (app.driver.as_ref()?.frames() > 0).then_some(())
    });
}

#[test]
fn weights_that_are_none_are_not_kept_and_the_embedded_model_goes_on() {
    let config = fresh();
    let weights = config.path().join("broken.safetensors");
    std::fs::write(&weights, "no weights").unwrap();
    let mut harness = alive(config.path());
    drop_files(&mut harness, &[weights]);
    hears(&mut harness, "broken.safetensors");
    wait(&mut harness, "the embedded model is back", |app| {
        matches!(app.model, ModelState::Ready { .. }).then_some(())
    });
    let settings = &harness.state().settings;
    assert_eq!((&settings.model, settings.models.len()), (&None, 0));
}
