//! A training run that is watched: written here as `mimic train` writes it.

use std::fs;

use super::*;
use crate::train::events::Events;
use crate::ui::training::Trouble;

/// Writes what a run has after these steps, and a grid of the last.
fn write(run: &Path, steps: impl Iterator<Item = u64>) {
    let grids = run.join("grids");
    fs::create_dir_all(&grids).unwrap();
    let mut events = Events::create(run).unwrap();
    let mut last = 0;
    for step in steps {
        let value = 60.0 / step as f32;
        events.scalar("loss/perceptual", step, value).unwrap();
        events.scalar("loss/sum", step, 2.0 * value).unwrap();
        last = step;
    }
    events.flush().unwrap();
    grid(run, last);
}

fn grid(run: &Path, step: u64) {
    let path = run.join("grids").join(format!("step-{step:07}.png"));
    RgbaImage::from_pixel(300, 80, image::Rgba([90, 120, 60, 255]))
        .save(path)
        .unwrap();
}

/// The Train place with this run chosen, as far as it is written.
fn watching(config: &Path, run: &Path) -> Harness<'static, App> {
    let mut harness = window(config);
    harness.state_mut().want(Command::Go(Place::Train));
    harness.state_mut().want(Command::WatchRun(run.to_owned()));
    harness.run_steps(2);
    wait(&mut harness, "it is looked at", |app| {
        app.training.seen.as_ref().map(|_| ())
    });
    harness
}

/// Waits until the latest step of the first curve, and the grid, are these.
fn reaches(harness: &mut Harness<'static, App>, step: u64, grid: &str) {
    wait(harness, grid, |app| {
        let seen = app.training.seen.as_ref()?;
        let there = seen.curves.first()?.latest.step == step;
        (there && app.training.grid_name.as_deref() == Some(grid)).then_some(())
    });
    harness.run_steps(2);
}

#[test]
fn a_run_that_is_chosen_shows_its_curves_and_grid_is_followed_and_remembered() {
    let config = fresh();
    let run = config.path().join("run");
    write(&run, (10..=300).step_by(10));
    let mut harness = window(config.path());
    harness.key_press(Key::F5);
    harness.run_steps(2);
    assert_eq!(harness.state().place, Place::Train);
    harness.get_by_label("mimic train -c FILE --data DIR --output RUN");
    harness.get_by_label("Choose a run's folder…");
    harness.state_mut().want(Command::WatchRun(run.clone()));
    harness.step();
    reaches(&mut harness, 300, "step-0000300.png");
    harness.get_by_label("loss/sum: 0.4000, step 300, 0.4000 – 12.00");
    harness.get_by_label("loss/perceptual: 0.2000, step 300, 0.2000 – 6.00");
    harness.get_by_label("step-0000300.png");
    harness.get_by_role_and_label(Role::Image, "Latest pictures: step-0000300.png");
    assert!(harness.query_by_label_contains("mimic train -c").is_none());

    // The pointer shows what was where it is.
    let plot = harness.get_by_label_contains("loss/sum").rect();
    harness.hover_at(plot.left_center() + vec2(60.0, 0.0));
    harness.run_steps(2);
    harness.get_by_label_contains("loss/sum: 12.00, step 10,");

    // Resumed, it does some steps again, and goes on.
    write(&run, (200..=400).step_by(20));
    reaches(&mut harness, 400, "step-0000400.png");
    let seen = harness.state().training.seen.as_ref().unwrap();
    let steps: Vec<u64> = seen.curves[0].points().iter().map(|p| p.step).collect();
    let expected: Vec<u64> = (10..200)
        .step_by(10)
        .chain((200..=400).step_by(20))
        .collect();
    assert_eq!(steps, expected);

    harness.state_mut().remember(true);
    drop(harness);
    let mut harness = window(config.path());
    assert!(harness.state().training.seen.is_none(), "nobody looks yet");
    harness.get_by_role_and_label(Role::Tab, "Train").click();
    harness.step();
    reaches(&mut harness, 400, "step-0000400.png");
}

#[test]
fn a_folder_without_a_run_says_so_and_one_that_goes_away_leaves_what_was_read() {
    let config = fresh();
    let run = config.path().join("run");
    fs::create_dir(&run).unwrap();
    let mut harness = watching(config.path(), &run);
    harness.get_by_label_contains("There is no run in this folder yet");
    write(&run, 1..=9);
    reaches(&mut harness, 9, "step-0000009.png");
    assert!(harness.query_by_label_contains("There is no run").is_none());
    fs::remove_dir_all(&run).unwrap();
    wait(&mut harness, "it is said", |app| {
        let seen = app.training.seen.as_ref()?;
        matches!(seen.trouble, Some(Trouble::Gone(_))).then_some(())
    });
    harness.run_steps(2);
    harness.get_by_label_contains("The folder cannot be read");
    harness.get_by_label_contains("loss/sum: ");
    harness.get_by_label("step-0000009.png");
}

#[test]
fn files_that_are_none_of_a_run_are_a_sentence_and_the_rest_is_shown() {
    let config = fresh();
    let run = config.path().join("run");
    write(&run, 1..=9);
    fs::write(run.join("events.out.tfevents.0.mimic"), [7; 99]).unwrap();
    let mut harness = watching(config.path(), &run);
    reaches(&mut harness, 9, "step-0000009.png");
    harness.get_by_label_contains("this is not TensorBoard's event file");
    // A picture that is being written is none yet: only what stays one is said.
    let broken = run.join("grids").join("step-0000010.png");
    fs::write(&broken, "no picture").unwrap();
    wait(&mut harness, "it is said", |app| {
        let seen = app.training.seen.as_ref()?;
        let said = |trouble: &Trouble| matches!(trouble, Trouble::Unreadable(why) if why.contains("step-0000010.png"));
        seen.trouble.as_ref().filter(|t| said(t)).map(|_| ())
    });
    harness.run_steps(2);
    harness.get_by_label("step-0000009.png");
    grid(&run, 10);
    reaches(&mut harness, 9, "step-0000010.png");
}

#[test]
fn another_run_takes_the_place_of_the_first_with_nothing_left_of_it() {
    let config = fresh();
    let (first, second) = (config.path().join("first"), config.path().join("second"));
    write(&first, 1..=9);
    fs::create_dir(&second).unwrap();
    let mut harness = watching(config.path(), &first);
    reaches(&mut harness, 9, "step-0000009.png");
    harness.state_mut().want(Command::WatchRun(second));
    harness.step();
    wait(&mut harness, "it is looked at", |app| {
        app.training.seen.as_ref().map(|_| ())
    });
    harness.run_steps(2);
    harness.get_by_label_contains("There is no run in this folder yet");
    assert!(harness.query_by_label_contains("loss/").is_none());
    assert!(harness.query_by_label_contains("step-").is_none());
}
