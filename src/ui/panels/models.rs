//! The Models place: which models are here, how large and how fast on this machine, and which is in use.

use eframe::egui::{Align, Frame, Layout, Margin, RichText, ScrollArea, Stroke, Ui};

use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::dialogs::Pick;
use crate::ui::models::ModelCard;
use crate::ui::theme::{self, Colours, colours};

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let colours = colours(ui.ctx());
    ScrollArea::vertical()
        .auto_shrink([false, false])
        .show(ui, |ui| {
            Frame::NONE
                .inner_margin(Margin::symmetric(34, 22))
                .show(ui, |ui| {
                    ui.set_max_width(860.0);
                    ui.heading(app.words.models);
                    ui.add_space(4.0);
                    let cards = app.models();
                    for model in &cards {
                        card(app, ui, model, &colours);
                    }
                    if ui.button(app.words.model_import).clicked() {
                        app.want(Command::Pick(Pick::Model));
                    }
                });
        });
}

fn card(app: &mut App, ui: &mut Ui, model: &ModelCard, colours: &Colours) {
    let words = app.words;
    let edge = if model.in_use {
        colours.accent
    } else {
        colours.line
    };
    let frame = Frame::NONE
        .fill(colours.panel)
        .stroke(Stroke::new(1.0, edge))
        .corner_radius(theme::CARD_RADIUS)
        .inner_margin(Margin::symmetric(18, 14))
        .outer_margin(Margin::symmetric(0, 5));
    frame.show(ui, |ui| {
        ui.horizontal(|ui| {
            ui.vertical(|ui| {
                ui.label(RichText::new(&model.name).strong());
                let size = format!("{:.1} MB", model.bytes as f64 / 1e6);
                let place = match &model.file {
                    None => words.model_embedded.to_owned(),
                    Some(path) => path.display().to_string(),
                };
                let licence = model
                    .file
                    .as_ref()
                    .map_or(words.model_licence_note, |_| words.licence_unknown);
                let text = format!("{size} · {} {licence} · {place}", words.licence);
                ui.label(RichText::new(text).size(12.0).color(colours.dim));
                let speed = match &model.speed {
                    Some(Ok(ms)) => format!(
                        "{ms:.0} {} · {:.1} {}",
                        words.ms_a_frame,
                        1000.0 / ms,
                        words.fps
                    ),
                    Some(Err(why)) => why.clone(),
                    None => String::new(),
                };
                if !speed.is_empty() {
                    ui.label(RichText::new(speed).size(12.0).color(colours.good));
                }
            });
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                if model.in_use {
                    ui.label(RichText::new(words.model_default).color(colours.accent));
                } else {
                    if ui.button(words.model_use).clicked() {
                        app.want(Command::UseModel(model.file.clone()));
                    }
                    if model.file.is_some() && ui.button(words.remove).clicked() {
                        app.want(Command::ForgetModel(model.file.clone()));
                    }
                }
                let text = if model.measuring {
                    words.model_measuring
                } else {
                    words.model_measure
                };
                if ui
                    .add_enabled(!model.measuring, eframe::egui::Button::new(text))
                    .clicked()
                {
                    app.want(Command::MeasureModel(model.file.clone()));
                }
            });
        });
    });
}
