//! The Models place: which models are here, how large and how fast on this machine, and which is in use.

use eframe::egui::{
    Align, Button, Color32, Frame, Layout, Margin, ProgressBar, RichText, Role, Stroke, Ui,
    WidgetInfo,
};

use crate::checkpoint::store::{Progress, Step};
use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::dialogs::Pick;
use crate::ui::models::{DownloadCard, ModelCard};
use crate::ui::theme::{self, Colours, colours};
use crate::ui::words::{Words, brief};

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let colours = colours(ui.ctx());
    super::page(ui, |ui| {
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
        let more = app.downloads.cards();
        if let Err(why) = &app.downloads.store {
            ui.label(RichText::new(why).color(colours.dim));
        }
        if !more.is_empty() {
            ui.add_space(18.0);
            ui.heading(app.words.more_models);
            ui.add_space(4.0);
        }
        for model in &more {
            download_card(app, ui, model, &more, &colours);
        }
    });
}

fn card_frame(edge: Color32, colours: &Colours) -> Frame {
    Frame::NONE
        .fill(colours.panel)
        .stroke(Stroke::new(1.0, edge))
        .corner_radius(theme::CARD_RADIUS)
        .inner_margin(Margin::symmetric(18, 14))
        .outer_margin(Margin::symmetric(0, 5))
}

/// A model that can be had, with its button, or how far it is.
fn download_card(
    app: &mut App,
    ui: &mut Ui,
    model: &DownloadCard,
    all: &[DownloadCard],
    colours: &Colours,
) {
    let words = app.words;
    let busy = all.iter().any(|model| model.progress.is_some());
    card_frame(colours.line, colours).show(ui, |ui| {
        ui.horizontal(|ui| {
            ui.vertical(|ui| {
                ui.set_width(ui.available_width() - 130.0);
                ui.label(RichText::new(&model.name).strong());
                let text = format!(
                    "{} · {} · {} {}",
                    model.title, model.size, words.licence, model.licence
                );
                ui.label(RichText::new(text).size(12.0).color(colours.dim));
                if let Some(progress) = &model.progress {
                    let way = progress.done as f32 / progress.total.max(1) as f32;
                    let bar = ProgressBar::new(way).text(progress_text(progress, words));
                    ui.add(bar.fill(colours.accent));
                }
            });
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                if model.progress.is_some() {
                    if ui.button(words.cancel).clicked() {
                        app.want(Command::Download(None));
                    }
                } else if model.here {
                    ui.label(RichText::new(words.model_here).color(colours.good));
                } else {
                    let button = ui.add_enabled(!busy, Button::new(words.download));
                    let name = format!("{} {}", words.download, model.name);
                    button.widget_info(|| WidgetInfo::labeled(Role::Button, !busy, &name));
                    if button.clicked() {
                        app.want(Command::Download(Some(model.name.clone())));
                    }
                }
            });
        });
    });
}

fn progress_text(progress: &Progress, words: &Words) -> String {
    let megabytes = format!(
        "{:.0} / {:.0} MB",
        progress.done as f64 / 1e6,
        progress.total as f64 / 1e6
    );
    match &progress.step {
        Step::Waiting => words.download_waiting.to_owned(),
        Step::Asking(host) => format!("{} {host}", words.download_asking),
        Step::Downloading(host) => format!("{} {host} · {megabytes}", words.download_from),
        Step::Checking => format!("{} · {megabytes}", words.download_checking),
        Step::Converting => words.download_converting.to_owned(),
    }
}

fn card(app: &mut App, ui: &mut Ui, model: &ModelCard, colours: &Colours) {
    let words = app.words;
    let edge = if model.in_use {
        colours.accent
    } else {
        colours.line
    };
    card_frame(edge, colours).show(ui, |ui| {
        ui.horizontal(|ui| {
            ui.vertical(|ui| {
                ui.label(RichText::new(&model.name).strong());
                let size = format!("{:.1} MB", model.bytes as f64 / 1e6);
                let place = match &model.file {
                    None => words.model_embedded.to_owned(),
                    Some(path) => brief(path),
                };
                let licence = match (&model.licence, &model.file) {
                    (Some(licence), _) => licence,
                    (None, None) => words.model_licence_note,
                    (None, Some(_)) => words.licence_unknown,
                };
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
                    .add_enabled(!model.measuring, Button::new(text))
                    .clicked()
                {
                    app.want(Command::MeasureModel(model.file.clone()));
                }
            });
        });
    });
}
