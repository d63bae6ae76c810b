//! What lies over everything: notices, the keys, the settings, and what a drop will do.

use std::path::Path;

use eframe::egui::{
    Align2, Area, Frame, Id, Margin, Modal, Order, RichText, Stroke, TextStyle, TextWrapMode, Ui,
    Vec2, WidgetText, vec2,
};
use egui_material_icons::icons::{ICON_CLOSE, ICON_INFO, ICON_WARNING};

use super::reel::dashed;
use super::tuning::{DRAWER, knob};
use crate::device::Choice;
use crate::settings::{Hold, Language, Theme};
use crate::ui::app::{App, ModelState};
use crate::ui::command::{Command, Place};
use crate::ui::dialogs::Pick;
use crate::ui::logic::{self, kind};
use crate::ui::notices::Kind;
use crate::ui::theme::{self, colours};
use crate::ui::widgets::{icon_button, toggle};
use crate::ui::words::brief;

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    notices(app, ui);
    if app.open.help {
        keys(app, ui);
    }
    if app.open.settings {
        settings(app, ui);
    }
    dropping(app, ui);
}

fn notices(app: &mut App, ui: &mut Ui) {
    let colours = colours(ui.ctx());
    let shown: Vec<_> = app.notices.shown().cloned().collect();
    let died = matches!(app.model, ModelState::Failed(_));
    let mut wanted = Vec::new();
    // Over the stage, not over what is tuned.
    let window = ui.ctx().content_rect().width();
    let side = match app.place {
        Place::Live if app.open.tuning && !app.open.full_screen => DRAWER,
        _ => 0.0,
    };
    let width = (window - side - 360.0).clamp(160.0, 420.0);
    Area::new(Id::unique("notices"))
        .order(Order::Foreground)
        .anchor(Align2::CENTER_TOP, vec2(-side / 2.0, 60.0))
        .show(ui.ctx(), |ui| {
            for notice in &shown {
                let frame = Frame::NONE
                    .fill(colours.panel)
                    .stroke(Stroke::new(1.0, colours.line))
                    .corner_radius(theme::CARD_RADIUS)
                    .inner_margin(Margin::symmetric(14, 10))
                    .outer_margin(Margin::symmetric(0, 4));
                frame.show(ui, |ui| {
                    ui.horizontal(|ui| {
                        let (icon, colour) = match notice.kind {
                            Kind::Info => (ICON_INFO, colours.good),
                            Kind::Problem => (ICON_WARNING, colours.bad),
                        };
                        ui.label(icon.rich_text().size(16.0).color(colour));
                        // A galley stands in the middle of the line, however high it is.
                        let text = RichText::new(&notice.text).color(colours.text);
                        let text = WidgetText::from(text).into_galley(
                            ui,
                            Some(TextWrapMode::Wrap),
                            width,
                            TextStyle::Body,
                        );
                        ui.label(text);
                        if let Some((what, command)) = &notice.offer
                            && ui.button(*what).clicked()
                        {
                            wanted.push(command.clone());
                            wanted.push(Command::Dismiss(notice.id));
                        }
                        if died
                            && notice.kind == Kind::Problem
                            && ui.button(app.words.restart).clicked()
                        {
                            wanted.push(Command::Restart);
                        }
                        if icon_button(ui, ICON_CLOSE, app.words.close).clicked() {
                            wanted.push(Command::Dismiss(notice.id));
                        }
                    });
                });
            }
        });
    app.commands.extend(wanted);
}

fn keys(app: &mut App, ui: &mut Ui) {
    let words = app.words;
    let rows = [
        ("Left  Right  1 – 9", words.key_photos),
        ("C  X", words.key_calibrate),
        ("R", words.key_record),
        ("T", words.key_take),
        ("S", words.key_screenshot),
        ("V", words.key_virtual_camera),
        ("F", words.key_full_screen),
        ("M", words.key_mirror),
        ("D", words.key_driver),
        ("W", words.key_swap),
        ("P", words.key_tuning),
        ("Ctrl V", words.key_paste),
        ("A", words.key_add_face),
        ("Left  Right  +  –", words.key_face),
        ("Delete", words.key_delete),
        ("F2  F3  F4  F5", words.key_places),
        ("?  F1", words.key_help),
        ("Esc", words.key_escape),
    ];
    let dim = colours(ui.ctx()).dim;
    let modal = Modal::new(Id::unique("keys"))
        .frame(sheet(ui))
        .show(ui.ctx(), |ui| {
            title(ui, words.help);
            let half = rows.len().div_ceil(2);
            eframe::egui::Grid::new("keys")
                .num_columns(4)
                .spacing(vec2(20.0, 6.0))
                .show(ui, |ui| {
                    for row in 0..half {
                        for (key, what) in rows.iter().skip(row).step_by(half) {
                            ui.label(RichText::new(*key).font(theme::strong(13.0)));
                            ui.label(RichText::new(*what).color(dim));
                        }
                        ui.end_row();
                    }
                });
            ui.add_space(8.0);
            ui.button(words.close).clicked()
        });
    if modal.inner || modal.should_close() {
        app.want(Command::Help);
    }
}

fn settings(app: &mut App, ui: &mut Ui) {
    let words = app.words;
    let mut wanted = Vec::new();
    let modal = Modal::new(Id::unique("settings"))
        .frame(sheet(ui))
        .show(ui.ctx(), |ui| {
            ui.set_width(340.0);
            title(ui, words.settings);
            ui.horizontal(|ui| {
                ui.label(words.language_name);
                for (language, name) in [
                    (Language::English, "English"),
                    (Language::Chinese, "简体中文"),
                ] {
                    // The name in Chinese can be read only with a font for it.
                    let name = if language == Language::Chinese && !app.has_chinese() {
                        "Chinese"
                    } else {
                        name
                    };
                    if ui
                        .selectable_label(words.language == language, name)
                        .clicked()
                    {
                        wanted.push(Command::Language(language));
                    }
                }
            });
            ui.horizontal(|ui| {
                ui.label(words.theme);
                for (theme, name) in [(Theme::Dark, words.dark), (Theme::Light, words.light)] {
                    if ui
                        .selectable_label(app.settings.theme == theme, name)
                        .clicked()
                    {
                        wanted.push(Command::Theme(theme));
                    }
                }
            });
            let mut microphone = app.settings.microphone;
            if toggle(ui, words.microphone, words.record_tip, &mut microphone) {
                wanted.push(Command::Microphone(microphone));
            }
            // Where there is something to choose.
            let cards = Choice::Auto.order();
            if !cards.is_empty() {
                ui.horizontal(|ui| {
                    ui.label(words.networks_on);
                    for device in [Choice::Auto].into_iter().chain(cards).chain([Choice::Cpu]) {
                        let chosen = app.device() == device;
                        if ui.selectable_label(chosen, device.to_string()).clicked() {
                            wanted.push(Command::Device(device));
                        }
                    }
                });
            }
            let mut hold = app.settings.hold;
            let mut changed = toggle(ui, words.hold, words.hold_tip, &mut hold.on);
            if hold.on {
                let usual = Hold::default().fps;
                changed |= knob(words, words.hold_fps, words.hold_tip, 5.0..=60.0, usual)
                    .show(ui, &mut hold.fps);
            }
            if changed {
                hold.fps = hold.fps.round();
                wanted.push(Command::Hold(hold));
            }
            ui.label(words.output_folder);
            ui.horizontal_wrapped(|ui| {
                ui.label(RichText::new(brief(&app.output_folder())).color(colours(ui.ctx()).dim));
                if ui.button(words.choose_folder).clicked() {
                    wanted.push(Command::Pick(Pick::Folder));
                }
            });
            ui.add_space(8.0);
            ui.button(words.close).clicked()
        });
    if modal.inner || modal.should_close() {
        wanted.push(Command::Settings);
    }
    app.commands.extend(wanted);
}

/// While files hover over the window: what dropping them will do.
fn dropping(app: &App, ui: &mut Ui) {
    let hovered: Vec<_> = ui.input(|i| i.raw.hovered_files.clone());
    if hovered.is_empty() {
        return;
    }
    let words = app.words;
    let kinds: Vec<_> = hovered
        .iter()
        .map(|file| kind(file.path.as_deref().unwrap_or(Path::new(""))))
        .collect();
    let has = |wanted: logic::Kind| kinds.contains(&wanted);
    let (clip, take) = (has(logic::Kind::Clip), has(logic::Kind::Take));
    let text = match (has(logic::Kind::Photo), clip || take) {
        _ if has(logic::Kind::Enhancer) => words.drop_enhancer,
        _ if has(logic::Kind::Model) => words.drop_model,
        (true, true) => words.drop_both,
        _ if app.place == Place::Render => words.drop_render,
        (true, false) => words.drop_photos,
        _ if take => words.drop_take,
        _ => words.drop_clip,
    };
    let colours = colours(ui.ctx());
    Area::new(Id::unique("dropping"))
        .order(Order::Foreground)
        .anchor(Align2::LEFT_TOP, Vec2::ZERO)
        .show(ui.ctx(), |ui| {
            let screen = ui.ctx().content_rect();
            ui.set_min_size(screen.size());
            ui.painter()
                .rect_filled(screen, 0.0, colours.ground.gamma_multiply(0.88));
            dashed(ui, screen.shrink(24.0), colours.accent);
            let mut child = ui.new_child(eframe::egui::UiBuilder::new().max_rect(screen));
            child.centered_and_justified(|ui| {
                ui.label(
                    RichText::new(text)
                        .font(theme::strong(22.0))
                        .color(colours.text),
                );
            });
        });
}

fn sheet(ui: &Ui) -> Frame {
    let colours = colours(ui.ctx());
    Frame::NONE
        .fill(colours.panel)
        .stroke(Stroke::new(1.0, colours.line))
        .corner_radius(theme::CARD_RADIUS)
        .inner_margin(Margin::same(24))
}

fn title(ui: &mut Ui, text: &str) {
    ui.label(RichText::new(text).font(theme::strong(17.0)));
    ui.add_space(8.0);
}
