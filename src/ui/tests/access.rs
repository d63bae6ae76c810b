//! For whoever has no eyes for it, or no mouse: everything has a name, and is reached by the keyboard.

use std::collections::BTreeSet;

use eframe::egui::accesskit::Action;
use egui_kittest::kittest::NodeT as _;

use super::*;

/// What can be worked with by the keyboard, as screen readers say it.
fn controls(harness: &Harness<'static, App>) -> Vec<(Role, Option<String>)> {
    let nodes = harness.root().children_recursive();
    let named = nodes.filter_map(|node| {
        let node = node.accesskit_node();
        let usable = node.data().supports_action(Action::Focus) && !node.is_disabled();
        usable.then(|| (node.role(), node.label()))
    });
    named.collect()
}

fn names(harness: &Harness<'static, App>) -> BTreeSet<String> {
    let controls = controls(harness).into_iter();
    controls.filter_map(|(_, name)| name).collect()
}

#[test]
fn nothing_that_can_be_used_is_without_a_name() {
    for language in [Language::English, Language::Chinese] {
        let config = fresh();
        let mut harness = window(config.path());
        let app = harness.state_mut();
        app.want(Command::Language(language));
        // Every reset arrow shows.
        app.want(Command::Blend(settings::Blend {
            ratio: 0.7,
            feather: 0.9,
            colour_match: 0.0,
            detail: 0.9,
        }));
        app.want(Command::Motion(settings::Motion {
            relative: false,
            mirror: false,
            ..settings::Motion::default()
        }));
        app.want(Command::Drive(Driver::Demo));
        app.notices.warn("something is wrong".to_owned());
        harness.run_steps(3);
        draw(harness.state_mut());
        let mut seen = 0;
        let mut check = |harness: &mut Harness<'static, App>, what: &str| {
            harness.run_steps(3);
            let controls = controls(harness);
            seen += controls.len();
            for (role, name) in &controls {
                let named = name.as_ref().is_some_and(|name| !name.trim().is_empty());
                assert!(named, "{language:?}, {what}: a {role:?} of {controls:#?}");
            }
        };
        check(&mut harness, "Live");
        let picker = harness.state().words.demo_driver;
        harness.get_by_label(picker).click();
        check(&mut harness, "the list of drivers");
        harness.key_press(Key::Escape);
        harness.run_steps(2);
        let entry = harness.state().words.look_again;
        assert!(harness.query_by_label(entry).is_none(), "the list closes");
        harness.state_mut().want(Command::Go(Place::Render));
        harness.state_mut().want(Command::Job(JobCommand::AddStage));
        check(&mut harness, "Render");
        harness.state_mut().want(Command::Go(Place::Models));
        check(&mut harness, "Models");
        harness.state_mut().want(Command::Go(Place::Train));
        check(&mut harness, "Train");
        for sheet in [Command::Help, Command::Settings] {
            harness.state_mut().want(sheet.clone());
            check(&mut harness, "a sheet");
            harness.state_mut().want(sheet);
            harness.run_steps(2);
        }
        assert!(seen > 60, "only {seen} controls in all places");
    }
}

#[test]
fn every_control_of_the_stage_is_reached_by_tab() {
    let config = fresh();
    let mut harness = window(config.path());
    let all = names(&harness);
    let mut reached = BTreeSet::new();
    for _ in 0..2 * all.len() {
        harness.key_press(Key::Tab);
        harness.run_steps(2);
        let nodes = harness.root().children_recursive();
        let focused = nodes.filter(|node| node.accesskit_node().is_focused());
        reached.extend(focused.filter_map(|node| node.accesskit_node().label()));
    }
    let missed: Vec<&String> = all.difference(&reached).collect();
    assert!(missed.is_empty(), "no way to {missed:?}");
    assert!(all.len() > 30, "{all:?}");
}

#[test]
fn a_face_is_added_moved_enlarged_and_removed_without_a_mouse() {
    let config = fresh();
    let mut harness = window(config.path());
    let faces = |harness: &Harness<'static, App>| -> Vec<Rect> {
        let photo = harness.state().reel.current().unwrap();
        photo.faces.iter().map(|face| face.crop).collect()
    };
    let before = faces(&harness);
    harness.key_press(Key::A);
    harness.run_steps(3);
    let added = faces(&harness);
    assert_eq!(added.len(), before.len() + 1);
    let c = *added.last().unwrap();
    let name = format!("Face {}", added.len());
    harness.get_by_role_and_label(Role::Button, &name).focus();
    harness.run_steps(3);
    for key in [Key::ArrowRight, Key::ArrowRight, Key::ArrowUp, Key::Plus] {
        harness.key_press(key);
        harness.run_steps(2);
    }
    let there = Rect::new(c.x1 + 8 - 4, c.y1 - 4 - 4, c.x2 + 8 + 4, c.y2 - 4 + 4);
    assert_eq!(faces(&harness).last(), Some(&there));
    harness.key_press(Key::Delete);
    harness.run_steps(3);
    assert_eq!(faces(&harness), before);
}

#[test]
fn a_face_is_added_moved_and_enlarged_with_the_mouse() {
    let config = fresh();
    let mut harness = window(config.path());
    let crop = |harness: &Harness<'static, App>, index: usize| {
        harness.state().reel.current().unwrap().faces[index].crop
    };
    // What takes the mouse reaches beyond the box.
    let outline = |harness: &Harness<'static, App>| {
        let hit = harness.get_by_role_and_label(Role::Button, "Face 1").rect();
        hit.shrink(9.0)
    };
    let (before, seen) = (crop(&harness, 0), outline(&harness));
    let zoom = seen.width() / before.width() as f32;
    let far = |v: i32, points: f32| (v as f32 - points / zoom).abs() < 3.0;
    let edge = seen.left_center();
    drag(&mut harness, edge, edge + vec2(30.0, 20.0));
    let moved = crop(&harness, 0);
    assert!(far(moved.x1 - before.x1, 30.0) && far(moved.y1 - before.y1, 20.0));
    assert!(moved.width().abs_diff(before.width()) < 3);
    let corner = outline(&harness).right_bottom();
    drag(&mut harness, corner, corner + vec2(24.0, 24.0));
    let grown = crop(&harness, 0);
    assert!(far(grown.x2 - moved.x2, 24.0) && far(grown.y2 - moved.y2, 24.0));
    assert!((grown.x1 - moved.x1).abs() < 3);

    let count = harness.state().reel.current().unwrap().faces.len();
    let at = outline(&harness).left_bottom() + vec2(40.0, 60.0);
    harness.event(Event::PointerMoved(at));
    for pressed in [true, false, true, false] {
        harness.event(Event::PointerButton {
            pos: at,
            button: PointerButton::Primary,
            pressed,
            modifiers: Modifiers::NONE,
        });
        harness.step();
    }
    harness.run_steps(2);
    assert_eq!(
        harness.state().reel.current().unwrap().faces.len(),
        count + 1
    );
    let there = crop(&harness, count);
    let middle = (at - seen.left_top()) / zoom;
    let middle = [before.x1 as f32 + middle.x, before.y1 as f32 + middle.y];
    let off = [
        (there.x1 + there.x2) as f32 / 2.0 - middle[0],
        (there.y1 + there.y2) as f32 / 2.0 - middle[1],
    ];
    assert!(off.iter().all(|v| v.abs() < 4.0), "{off:?}");
}

#[test]
fn driver_and_photo_change_places_by_a_click_and_the_driver_hides() {
    let config = fresh();
    let mut harness = window(config.path());
    harness.get_by_label("Swap driver and photo").click();
    harness.run_steps(3);
    assert!(harness.state().open.swapped);
    harness.get_by_label("Swap driver and photo").click();
    harness.run_steps(3);
    assert!(!harness.state().open.swapped);
    harness.key_press(Key::D);
    harness.run_steps(3);
    assert!(harness.query_by_label("Swap driver and photo").is_none());
    harness.get_by_label("Show the driver").click();
    harness.run_steps(3);
    harness.get_by_label("Swap driver and photo");
}
