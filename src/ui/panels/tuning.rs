//! The panel at the right: few controls, each with what it does and a way back.

use std::ops::RangeInclusive;

use eframe::egui::{
    Align, Align2, Area, Frame, Id, Layout, Margin, Order, RichText, ScrollArea, Stroke, Ui, vec2,
};
use egui_material_icons::icons::ICON_CLOSE;

use crate::settings::{Blend, Enhance, Motion, Show};
use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::dialogs::Pick;
use crate::ui::theme::{self, colours};
use crate::ui::widgets::{Knob, Quiet, group, icon_button, switch, toggle};
use crate::ui::words::Words;

/// Width of the drawer on a narrow window.
pub(super) const DRAWER: f32 = 282.0;

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    ScrollArea::vertical()
        .auto_shrink([false, false])
        .show(ui, |ui| {
            Frame::NONE
                .inner_margin(Margin::same(theme::PADDING as i8))
                .show(ui, |ui| controls(app, ui));
        });
}

/// On a narrow window: a drawer over the stage, with its handle.
pub(super) fn drawer(app: &mut App, ui: &mut Ui) {
    let ctx = ui.ctx().clone();
    let colours = colours(&ctx);
    let height = ctx.content_rect().height() - 48.0 - 46.0;
    Area::new(Id::unique("drawer"))
        .order(Order::Middle)
        .anchor(Align2::RIGHT_TOP, vec2(0.0, 48.0))
        .show(&ctx, |ui| {
            if !app.open.tuning {
                Frame::NONE
                    .fill(theme::OVER_PICTURE)
                    .corner_radius(theme::RADIUS)
                    .outer_margin(8)
                    .show(ui, |ui| {
                        if Quiet::new(app.words.tuning).key("P").show(ui).clicked() {
                            app.want(Command::Tuning);
                        }
                    });
                return;
            }
            let frame = Frame::NONE
                .fill(colours.panel)
                .stroke(Stroke::new(1.0, colours.line))
                .inner_margin(Margin::same(theme::PADDING as i8));
            frame.show(ui, |ui| {
                ui.set_width(DRAWER - 2.0 * theme::PADDING - 2.0);
                ui.set_height(height - 2.0 * theme::PADDING);
                ui.horizontal(|ui| {
                    ui.label(RichText::new(app.words.tuning).font(theme::strong(14.0)));
                    ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                        if icon_button(ui, ICON_CLOSE, app.words.close).clicked() {
                            app.want(Command::Tuning);
                        }
                    });
                });
                ScrollArea::vertical().show(ui, |ui| controls(app, ui));
            });
        });
}

/// A slider that is said in `words`.
pub(super) fn knob<'a>(
    words: &'a Words,
    name: &'a str,
    tip: &'a str,
    range: RangeInclusive<f32>,
    usual: f32,
) -> Knob<'a> {
    Knob {
        name,
        tip,
        range,
        usual,
        reset: words.reset,
    }
}

fn controls(app: &mut App, ui: &mut Ui) {
    let words = app.words;
    let mut blend = app.settings.blend;
    if blending(ui, words, &mut blend) {
        app.want(Command::Blend(blend));
    }
    let mut enhance = app.settings.enhance.clone();
    if enhancing(app, ui, &mut enhance) {
        app.want(Command::Enhance(enhance));
    }
    let mut motion = app.settings.motion;
    if moving(ui, words, &mut motion) {
        app.want(Command::Motion(motion));
    }
    let mut show = app.settings.show;
    group(ui, words.show);
    let usual = Show::default();
    let texts = [words.face_boxes, words.face_boxes_tip, words.reset];
    let mut changed = switch(ui, texts, usual.faces, &mut show.faces);
    let texts = [words.keypoints, words.keypoints_tip, words.reset];
    changed |= switch(ui, texts, usual.keypoints, &mut show.keypoints);
    if changed {
        app.want(Command::Show(show));
    }
}

/// How faces are put back; true when that has changed.
pub(super) fn blending(ui: &mut Ui, words: &Words, blend: &mut Blend) -> bool {
    let knob = |name, tip, range, usual| knob(words, name, tip, range, usual);
    let usual = Blend::default();
    group(ui, words.blend);
    let mut changed =
        knob(words.ratio, words.ratio_tip, 0.1..=1.0, usual.ratio).show(ui, &mut blend.ratio);
    changed |= knob(words.feather, words.feather_tip, 0.0..=1.0, usual.feather)
        .show(ui, &mut blend.feather);
    changed |= knob(
        words.colour_match,
        words.colour_match_tip,
        0.0..=1.0,
        usual.colour_match,
    )
    .show(ui, &mut blend.colour_match);
    changed
        | knob(words.detail, words.detail_tip, 0.0..=1.0, usual.detail).show(ui, &mut blend.detail)
}

/// How motion is taken over; true when that has changed.
pub(super) fn moving(ui: &mut Ui, words: &Words, motion: &mut Motion) -> bool {
    let knob = |name, tip, range, usual| knob(words, name, tip, range, usual);
    let usual = Motion::default();
    group(ui, words.motion);
    let mut changed =
        knob(words.scale, words.scale_tip, 0.0..=2.0, usual.scale).show(ui, &mut motion.scale);
    changed |= knob(
        words.smoothing,
        words.smoothing_tip,
        0.0..=1.0,
        usual.smoothing,
    )
    .show(ui, &mut motion.smoothing);
    let texts = [words.relative, words.relative_tip, words.reset];
    changed |= switch(ui, texts, usual.relative, &mut motion.relative);
    let texts = [words.adapt, words.adapt_tip, words.reset];
    changed |= switch(ui, texts, usual.adapt_scale, &mut motion.adapt_scale);
    let texts = [words.mirror, words.mirror_tip, words.reset];
    changed | switch(ui, texts, usual.mirror, &mut motion.mirror)
}

/// Whether faces are made sharper, or what that lacks; true when it has changed.
pub(super) fn enhancing(app: &mut App, ui: &mut Ui, enhance: &mut Enhance) -> bool {
    let words = app.words;
    let usual = Enhance::default();
    group(ui, words.enhancement);
    let there = enhance.weights.is_some() || app.downloads.has_enhancer();
    let mut changed = false;
    ui.add_enabled_ui(there, |ui| {
        changed |= toggle(ui, words.enhance, words.enhance_tip, &mut enhance.on);
        ui.add_enabled_ui(enhance.on, |ui| {
            changed |= knob(
                words,
                words.enhance_strength,
                words.enhance_strength_tip,
                0.0..=1.0,
                usual.strength,
            )
            .show(ui, &mut enhance.strength);
        });
    });
    if !there {
        let colour = colours(ui.ctx()).dim;
        ui.label(RichText::new(words.enhance_needs).size(12.5).color(colour));
        if ui.button(words.enhance_choose).clicked() {
            app.want(Command::Pick(Pick::Enhancer));
        }
    }
    changed
}
