//! The dock at the bottom of the stage: who drives, calibrate, record, virtual camera, full screen.

use eframe::egui::{
    Align, Layout, Popup, PopupCloseBehavior, Rect, RichText, Ui, UiBuilder, pos2, vec2,
};
use egui_material_icons::icons::{
    ICON_CAST, ICON_CENTER_FOCUS_STRONG, ICON_FIBER_MANUAL_RECORD, ICON_FULLSCREEN, ICON_GESTURE,
    ICON_VIDEOCAM,
};

use super::stage::card;
use crate::settings::Driver;
use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::dialogs::Pick;
use crate::ui::theme::{self, colours};
use crate::ui::widgets::{Quiet, Room, menu_room};

pub(super) fn show(app: &mut App, ui: &mut Ui, area: Rect) {
    // Buttons say how wide they are only when drawn: what they took when last drawn with as much beside them decides how much
    // there is now, and places them. It differs with what they say.
    let id = (ui.scope_id()).with(("dock widths", driver_name(app), app.words.calibrate));
    let mut widths: [f32; 3] = ui
        .data(|data| data.get_temp(id))
        .unwrap_or([780.0, 560.0, 300.0]);
    let corner = if app.settings.show.driver {
        238.0
    } else {
        68.0
    };
    let left = area.left() + corner;
    let right = area.right() - 16.0;
    let fits = widths.iter().position(|width| *width <= right - left);
    let level = fits.unwrap_or(widths.len() - 1);
    let (room, width) = (Room::ALL[level], widths[level]);
    let centre = area
        .center()
        .x
        .min(right - width / 2.0)
        .max(left + width / 2.0);
    let dock = Rect::from_min_size(
        pos2(centre - width / 2.0, area.bottom() - 16.0 - 50.0),
        vec2(width, 50.0),
    );
    card(ui, dock);
    let inner = UiBuilder::new()
        .max_rect(dock.shrink2(vec2(8.0, 8.0)))
        .layout(Layout::left_to_right(Align::Center));
    let used = ui.scope_builder(inner, |ui| {
        ui.spacing_mut().item_spacing.x = 4.0;
        buttons(app, ui, room);
        ui.min_rect().width()
    });
    if widths[level] != used.inner + 16.0 {
        widths[level] = used.inner + 16.0;
        ui.data_mut(|data| data.insert_temp(id, widths));
        ui.ctx().request_repaint();
    }
}

fn buttons(app: &mut App, ui: &mut Ui, room: Room) {
    let colours = colours(ui.ctx());
    let words = app.words;
    let dot = if app.driver.is_some() {
        theme::GOOD_ON_PICTURE
    } else {
        theme::DIM_ON_PICTURE
    };
    let name = driver_name(app);
    let picker = Quiet::new(&name)
        .icon(ICON_VIDEOCAM, dot)
        .on(true)
        .menu()
        .within(room)
        .show(ui);
    Popup::menu(&picker)
        .close_behavior(PopupCloseBehavior::CloseOnClick)
        .show(|ui| drivers(app, ui));
    let tip = match app.driver_what.as_str() {
        "" => name.clone(),
        what => format!("{}: {name}, {what}", words.driver),
    };
    picker.on_hover_text(tip);

    let (recording, taking, put_out) = (app.recording(), app.taking, app.virtual_camera_on());
    let flash = app
        .calibrated
        .is_some_and(|at| ui.input(|i| i.time - at < 0.4));
    let mut motion = app.settings.motion;
    let score = app.mirror.match_score;
    let commands = &mut app.commands;
    let mut button = |ui: &mut Ui, button: Quiet<'_>, tip: &str, command: Command| {
        let response = button.within(room).show(ui);
        if response.clicked() {
            commands.push(command);
        }
        response.on_hover_text(tip);
    };
    let calibrate = Quiet::new(words.calibrate).icon(ICON_CENTER_FOCUS_STRONG, theme::ON_PICTURE);
    let tip = format!(
        "{}\n{} {:.0} %",
        words.calibrate_tip,
        words.matching,
        score * 100.0
    );
    button(
        ui,
        calibrate.key("C").on(flash).level(score),
        &tip,
        Command::Calibrate,
    );
    let auto = Quiet::new(words.auto).on(motion.auto_reference);
    motion.auto_reference = !motion.auto_reference;
    button(ui, auto, words.auto_tip, Command::Motion(motion));
    let text = recording.map_or(words.record.to_owned(), |seconds| {
        format!("{:02}:{:02}", seconds / 60, seconds % 60)
    });
    let record = Quiet::new(&text).icon(ICON_FIBER_MANUAL_RECORD, colours.bad);
    button(
        ui,
        record.key("R").on(recording.is_some()),
        words.record_tip,
        Command::Record,
    );
    let colour = if taking {
        colours.bad
    } else {
        theme::ON_PICTURE
    };
    let take = Quiet::minor(words.take).icon(ICON_GESTURE, colour);
    button(
        ui,
        take.key("T").on(taking),
        words.take_tip,
        Command::RecordTake,
    );
    let camera = Quiet::minor(words.virtual_camera).icon(ICON_CAST, theme::ON_PICTURE);
    button(
        ui,
        camera.on(put_out),
        words.virtual_camera_tip,
        Command::VirtualCamera,
    );
    let full = Quiet::minor(words.full_screen).icon(ICON_FULLSCREEN, theme::ON_PICTURE);
    button(ui, full.key("F"), words.full_screen, Command::FullScreen);
}

/// The list of drivers.
fn drivers(app: &mut App, ui: &mut Ui) {
    let dim = colours(ui.ctx()).dim;
    let words = app.words;
    ui.set_min_width(220.0);
    menu_room(ui);
    let mut wanted = None;
    let mut driver = |ui: &mut Ui, name: &str, driver: Driver, current: &Driver| {
        if ui.selectable_label(driver == *current, name).clicked() {
            wanted = Some(Command::Drive(driver));
        }
    };
    let current = app.settings.driver.clone();
    let quiet = |ui: &mut Ui, text: RichText| {
        ui.horizontal(|ui| {
            ui.add_space(10.0);
            ui.label(text.color(dim));
        });
    };
    quiet(ui, RichText::new(words.cameras).small());
    for camera in app.cameras() {
        let name = format!("{} · {}", camera.name, camera.formats);
        driver(ui, &name, Driver::Camera(camera.name.clone()), &current);
    }
    if app.cameras().is_empty() {
        quiet(ui, RichText::new(words.no_camera));
    }
    if ui.selectable_label(false, words.look_again).clicked() {
        app.commands.push(Command::FindCameras);
    }
    ui.separator();
    driver(ui, words.demo_driver, Driver::Demo, &current);
    if let Driver::Clip(path) | Driver::Take(path) = &current {
        driver(ui, &file_name(path), current.clone(), &current);
    }
    for (text, command) in [
        (words.choose_clip, Command::Pick(Pick::Clip)),
        (words.choose_take, Command::Pick(Pick::Take)),
    ] {
        if ui.selectable_label(false, text).clicked() {
            wanted = Some(command);
        }
    }
    if let Some(command) = wanted {
        app.want(command);
    }
}

fn driver_name(app: &App) -> String {
    match &app.settings.driver {
        Driver::Demo => app.words.demo_driver.to_owned(),
        Driver::Camera(name) => name.clone(),
        Driver::Clip(path) | Driver::Take(path) => file_name(path),
    }
}

fn file_name(path: &std::path::Path) -> String {
    let name = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy();
    // A long name would push the dock off the window.
    match name.char_indices().nth(24) {
        Some((cut, _)) => format!("{}…", &name[..cut]),
        None => name.into_owned(),
    }
}
