//! What is drawn, one file for each part of the window. Nothing here changes the state: a person's wish is
//! a command.

mod dock;
mod driver;
mod job;
mod models;
mod overlays;
mod reel;
mod render;
mod ring;
mod stage;
mod strip;
mod top;
mod training;
mod tuning;

use eframe::egui::{self, CentralPanel, Frame, Margin, ScrollArea, Ui};

use super::app::App;
use super::command::Place;
use super::theme::colours;

/// Narrower than this the tuning panel is a drawer over the stage.
const NARROW: f32 = 1100.0;

/// Whether the tuning panel is a drawer.
fn is_narrow(ctx: &egui::Context) -> bool {
    ctx.content_rect().width() < NARROW
}

/// A place that scrolls.
fn page(ui: &mut Ui, add: impl FnOnce(&mut Ui)) {
    ScrollArea::vertical()
        .auto_shrink([false, false])
        .show(ui, |ui| {
            Frame::NONE
                .inner_margin(Margin::symmetric(34, 22))
                .show(ui, add)
        });
}

pub(super) fn draw(app: &mut App, ui: &mut Ui) {
    let colours = colours(ui.ctx());
    if app.open.full_screen && app.place == Place::Live {
        let ground = Frame::NONE.fill(egui::Color32::BLACK);
        CentralPanel::default()
            .frame(ground)
            .show(ui, |ui| stage::show(app, ui));
        overlays::show(app, ui);
        return;
    }
    let panel = Frame::NONE.fill(colours.panel);
    egui::Panel::top("top")
        .exact_size(48.0)
        .frame(panel)
        .resizable(false)
        .show(ui, |ui| top::show(app, ui));
    egui::Panel::bottom("strip")
        .frame(panel)
        .resizable(false)
        .show(ui, |ui| strip::show(app, ui));
    let ground = Frame::NONE.fill(colours.ground);
    match app.place {
        Place::Live => {
            egui::Panel::left("reel")
                .exact_size(92.0)
                .frame(panel)
                .resizable(false)
                .show(ui, |ui| reel::show(app, ui));
            let narrow = is_narrow(ui.ctx());
            if app.open.tuning && !narrow {
                egui::Panel::right("tuning")
                    .exact_size(296.0)
                    .frame(panel)
                    .resizable(false)
                    .show(ui, |ui| tuning::show(app, ui));
            }
            CentralPanel::default()
                .frame(ground)
                .show(ui, |ui| stage::show(app, ui));
            if narrow || !app.open.tuning {
                tuning::drawer(app, ui);
            }
        }
        Place::Render => {
            CentralPanel::default()
                .frame(ground)
                .show(ui, |ui| render::show(app, ui));
        }
        Place::Models => {
            CentralPanel::default()
                .frame(ground)
                .show(ui, |ui| models::show(app, ui));
        }
        Place::Train => {
            CentralPanel::default()
                .frame(ground)
                .show(ui, |ui| training::show(app, ui));
        }
    }
    overlays::show(app, ui);
}
