//! The live path on real files: what goes wrong is said, the rest goes on, and nothing is lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use image::RgbaImage;
use mimic::animate::take;
use mimic::media::samples;
use mimic::model::Keypoints;
use mimic::pipeline::driver::{Driver, DriverEvent, DriverSource};
use mimic::pipeline::live::{Command, DriverCrop, Driving, Event, Live, LiveModel, Shown};
use mimic::pipeline::queue::{Queue, RenderJob, State};
use mimic::pipeline::slot::Slot;
use mimic::settings::{self, Blend, Enhance, Motion, PhotoOrigin};

/// A face of a painting, as the embedded model sees it.
fn view() -> RgbaImage {
    static VIEW: LazyLock<RgbaImage> = LazyLock::new(cut);
    VIEW.clone()
}

fn cut() -> RgbaImage {
    let painting = samples::painting("mona-lisa").unwrap();
    let face = image::imageops::crop_imm(&painting, 150, 60, 520, 520).to_image();
    image::imageops::resize(&face, 256, 256, image::imageops::FilterType::Triangle)
}

fn ready() -> Live {
    started(|| ())
}

fn started(wake: impl Fn() + Send + 'static) -> Live {
    let model = LiveModel {
        threads: 1,
        ..LiveModel::default()
    };
    let live = Live::start(model, wake).unwrap();
    wait("the model is loaded", || {
        live.events().find(|e| matches!(e, Event::Ready { .. }))
    });
    live.tell(Command::Look {
        crop: DriverCrop::Centre,
        mirror: false,
    });
    live.tell(Command::Photo {
        id: 1,
        views: vec![view()],
    });
    live.tell(Command::Show(1));
    live
}

/// Asks again and again.
fn wait<T>(what: &str, mut is: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(it) = is() {
            return it;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn frame() -> Driving {
    Driving::Frame {
        image: view(),
        captured: Instant::now(),
    }
}

/// One frame in, one animated frame out.
fn animated(live: &Live) -> Shown {
    live.frames().put(frame());
    wait("a frame is animated", || live.take())
}

fn play(source: DriverSource) -> (Driver, Arc<Slot<Driving>>) {
    let slot = Arc::new(Slot::default());
    let driver = Driver::start(source, Arc::clone(&slot), || ()).unwrap();
    (driver, slot)
}

#[test]
fn a_panic_of_the_networks_is_said_keeps_the_take_and_another_thread_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.mimic-take");
    // What wakes the window runs on the thread of the networks.
    let poison = Arc::new(AtomicBool::new(false));
    let poisoned = Arc::clone(&poison);
    let live = started(move || assert!(!poisoned.swap(false, Ordering::Relaxed), "poisoned"));
    live.tell(Command::RecordTake(path.clone()));
    for _ in 0..3 {
        animated(&live);
    }
    poison.store(true, Ordering::Relaxed);
    live.frames().put(frame());
    let why = wait("the thread says that it died", || {
        live.events().find_map(|event| match event {
            Event::Died(why) => Some(why),
            _ => None,
        })
    });
    assert!(why.contains("poisoned"), "{why}");
    let mut reader = take::Reader::open(&path).unwrap();
    assert!(reader.records() >= 3, "{}", reader.records());
    assert!(reader.read().unwrap().is_some());
    let shown = animated(&ready());
    assert_eq!(shown.photo, 1);
}

#[test]
fn a_slow_window_always_finds_the_newest_frame() {
    let made = Arc::new(AtomicUsize::default());
    let count = Arc::clone(&made);
    let live = started(move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    animated(&live);
    for tenth in 0..10 {
        let before = made.load(Ordering::Relaxed);
        live.frames().put(frame());
        wait("a frame is made", || {
            (made.load(Ordering::Relaxed) > before).then_some(())
        });
        // The window comes while the networks are at the next one, sooner or later.
        live.frames().put(frame());
        wait("the next is begun", || {
            (!live.frames().is_full()).then_some(())
        });
        std::thread::sleep(Duration::from_millis(6 * tenth));
        assert!(live.take().is_some(), "after {} ms", 6 * tenth);
    }
}

#[test]
fn a_take_of_another_model_is_refused_in_a_sentence_and_the_photo_rests() {
    let live = ready();
    let few = Keypoints {
        value: vec![[0.0, 0.0]; 4],
        jacobian: None,
    };
    for _ in 0..3 {
        live.frames().put(Driving::Pose {
            keypoints: few.clone(),
            captured: Instant::now(),
        });
        let shown = wait("a frame is animated", || live.take());
        assert!(!shown.found);
    }
    let said: Vec<Event> = live
        .events()
        .filter(|event| matches!(event, Event::Notice(_)))
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(animated(&live).found, "it goes on");
}

#[test]
fn quality_gives_way_to_the_frame_rate_step_by_step_and_comes_back() {
    let live = ready();
    let quality = |live: &Live| {
        live.events().find_map(|event| match event {
            Event::Quality(quality) => Some(quality),
            _ => None,
        })
    };
    let full = animated(&live).predictions.remove(0);
    assert_eq!(full.size, 256);
    // A driver that is faster than the networks, and a target that no machine reaches.
    let driver = Arc::new(AtomicBool::new(true));
    let (on, slot) = (Arc::clone(&driver), live.frames());
    let give = move || {
        while on.load(Ordering::Relaxed) {
            slot.put(frame());
            std::thread::sleep(Duration::from_millis(8));
        }
    };
    let named = std::thread::Builder::new().name("driver".to_owned());
    let gives = named.spawn(give).unwrap();
    live.tell(Command::Hold(Some(100_000.0)));
    let lowered = wait("it runs at half the size", || {
        quality(&live).filter(|quality| quality.half)
    });
    assert!(lowered.lowered && lowered.model.is_none());
    live.take();
    let half = wait("a frame of half the size", || {
        live.take().filter(|shown| shown.predictions[0].size == 128)
    });
    let half = &half.predictions[0];
    let small = image::imageops::resize(
        &RgbaImage::from_raw(256, 256, full.rgba).unwrap(),
        128,
        128,
        image::imageops::FilterType::Triangle,
    );
    let difference: u64 = small
        .iter()
        .zip(&half.rgba)
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    let difference = difference as f64 / half.rgba.len() as f64;
    assert!(
        difference < 12.0,
        "half the size is another picture: {difference}"
    );

    live.tell(Command::Hold(None));
    let back = wait("it is as good as it can be", || {
        quality(&live).filter(|quality| !quality.lowered)
    });
    assert!(!back.half && !back.bf16);
    wait("a frame of the full size", || {
        live.take().filter(|shown| shown.predictions[0].size == 256)
    });
    driver.store(false, Ordering::Relaxed);
    gives.join().unwrap();
}

#[test]
fn a_camera_that_is_not_there_is_said_and_waited_for() {
    let (driver, _) = play(DriverSource::Camera("No such camera".to_owned()));
    let text = wait("it is said", || {
        driver.events().find_map(|event| match event {
            DriverEvent::Lost(text) => Some(text),
            _ => None,
        })
    });
    assert!(text.contains("No such camera is not connected"), "{text}");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(driver.events().count(), 0, "once is enough");
}

#[test]
fn a_clip_that_is_gone_or_no_clip_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.mp4");
    std::fs::write(&broken, b"this is no video").unwrap();
    for path in [folder.path().join("gone.mp4"), broken] {
        let (driver, _) = play(DriverSource::Clip(path.clone()));
        let text = wait("it is said", || {
            driver.events().find_map(|event| match event {
                DriverEvent::Failed(text) => Some(text),
                _ => None,
            })
        });
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_clip_that_is_deleted_while_it_plays_ends_with_a_sentence() {
    let clip = samples::driver_file().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    std::fs::copy(clip.path(), &path).unwrap();
    let (driver, slot) = play(DriverSource::Clip(path.clone()));
    wait("it plays", || slot.take());
    std::fs::remove_file(&path).unwrap();
    let (mut said, mut frames) = (None, driver.frames());
    // Longer than the clip: it has to be opened again.
    let until = Instant::now() + Duration::from_secs(12);
    while said.is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
        said = driver.events().find_map(|event| match event {
            DriverEvent::Failed(text) => Some(text),
            _ => None,
        });
        frames = driver.frames();
    }
    let text = said.unwrap_or_else(|| panic!("silence after {frames} frames"));
    assert!(text.contains("clip.mp4"), "{text}");
}

#[test]
fn a_take_that_was_cut_short_says_so_and_plays_up_to_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.mimic-take");
    record_take(&path);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
    let (driver, slot) = play(DriverSource::Take(path));
    let text = wait("it is said", || {
        driver.events().find_map(|event| match event {
            DriverEvent::Notice(text) => Some(text),
            _ => None,
        })
    });
    assert!(text.contains("cut short"), "{text}");
    wait("it plays", || slot.take());
}

fn record_take(path: &Path) {
    let live = ready();
    live.tell(Command::RecordTake(path.to_owned()));
    for _ in 0..4 {
        animated(&live);
    }
    live.tell(Command::EndTake);
    wait("the take is written", || {
        live.events()
            .find(|event| matches!(event, Event::TakeWritten { .. }))
    });
}

#[test]
fn a_job_whose_files_are_gone_fails_alone_and_is_rendered_when_they_are_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    view().save(file("photo.png")).unwrap();
    view().save(file("pose.png")).unwrap();
    let job = |photo: &str, clip: &str, output: &str| RenderJob {
        id: 0,
        photo: PhotoOrigin::File(file(photo)),
        faces: None,
        driver: settings::Driver::Clip(file(clip)),
        blend: Blend::default(),
        motion: Motion::default(),
        enhance: Enhance::default(),
        model: None,
        device: "auto".to_owned(),
        output: file(output),
        state: State::Waiting,
    };
    let (mut queue, trouble) = Queue::load(Some(folder.path()));
    assert_eq!(trouble, None);
    let gone = queue.add(job("gone.png", "pose.png", "one.mp4")).unwrap();
    queue.add(job("photo.png", "gone.mp4", "two.mp4")).unwrap();
    queue
        .add(job("photo.png", "pose.png", "three.mp4"))
        .unwrap();
    let run = |queue: &mut Queue| {
        queue.go();
        wait("the jobs have ended", || {
            queue.work(|| ());
            (!queue.is_running() && queue.waiting() == 0).then_some(())
        });
    };
    run(&mut queue);
    let why = |queue: &Queue, index: usize| match &queue.jobs()[index].state {
        State::Failed(why) => why.clone(),
        other => panic!("{other:?}"),
    };
    assert!(why(&queue, 0).contains("gone.png"), "{}", why(&queue, 0));
    assert!(why(&queue, 1).contains("gone.mp4"), "{}", why(&queue, 1));
    assert!(matches!(queue.jobs()[2].state, State::Done { .. }));
    assert!(file("three.mp4").exists() && !file("one.mp4").exists());

    view().save(file("gone.png")).unwrap();
    queue.retry(gone);
    run(&mut queue);
    assert!(matches!(queue.jobs()[0].state, State::Done { .. }));
    // As the next start of the program finds it.
    let (again, _) = Queue::load(Some(folder.path()));
    assert_eq!(again.jobs(), queue.jobs());
}
