//! The middle: the animated photo, as large as fits, and what lies over it.

use eframe::egui::{
    Align2, Color32, Event, FontId, Image, Popup, Rect, Ui, Vec2, load::SizedTexture, vec2,
};
use egui_material_icons::icons::ICON_FACE;

use super::tuning::DRAWER;
use super::{dock, driver, is_narrow, ring};
use crate::ui::app::App;
use crate::ui::reel::State;
use crate::ui::theme::{self, colours};
use crate::ui::widgets::paint_icon;

/// What lies over the picture goes after so many seconds without the mouse.
const LINGER: f64 = 3.0;

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let mut area = ui.max_rect();
    if app.open.tuning && !app.open.full_screen && is_narrow(ui.ctx()) {
        // The drawer lies over the rest.
        area.max.x = area.max.x.min(ui.ctx().content_rect().right() - DRAWER);
    }
    let swapped = app.open.swapped && app.mirror.seen;
    let texture = if swapped {
        app.mirror.picture.texture()
    } else {
        app.stage.photo().and(app.stage.picture.texture())
    };
    let shown = texture.map(|(id, size)| {
        let rect = fit(size, area);
        Image::new(SizedTexture::new(id, rect.size())).paint_at(ui, rect);
        (rect, rect.width() / size.x)
    });
    let strength = strength(app, ui);
    match shown {
        Some((rect, zoom)) if !swapped => ring::show(app, ui, rect, zoom, strength),
        Some((rect, zoom)) => driver::overlay(app, ui, rect, zoom),
        None => empty(app, ui, area),
    }
    if app.mirror.seen && !app.mirror.found {
        lost(app, ui, shown.map_or(area, |(rect, _)| rect));
    }
    if strength > 0.0 {
        ui.scope(|ui| {
            ui.set_opacity(strength);
            driver::show(app, ui, area);
            dock::show(app, ui, area);
        });
    }
}

/// How visible what lies over the picture is, 0..=1.
fn strength(app: &mut App, ui: &Ui) -> f32 {
    let (now, moved) = ui.input(|i| {
        let hand = |event: &Event| {
            matches!(
                event,
                Event::PointerMoved(_) | Event::PointerButton { .. } | Event::Key { .. }
            )
        };
        (i.time, i.pointer.any_down() || i.events.iter().any(hand))
    });
    if moved || app.touched == 0.0 {
        app.touched = now;
    }
    let linger = if app.open.full_screen { 1.0 } else { LINGER };
    let busy = ui.memory(|memory| memory.focused().is_some()) || Popup::is_any_open(ui.ctx());
    let visible = busy || now - app.touched < linger;
    ui.ctx()
        .animate_bool_with_time(ui.scope_id().with("over the picture"), visible, 0.3)
}

fn empty(app: &App, ui: &Ui, area: Rect) {
    let colours = colours(ui.ctx());
    let text = match app.reel.current().map(|photo| &photo.state) {
        None => app.words.empty_reel.to_owned(),
        Some(State::Failed(why)) => why.clone(),
        Some(_) => app.words.opening.to_owned(),
    };
    let font = FontId::proportional(14.0);
    let galley = ui
        .painter()
        .layout(text, font, colours.dim, area.width() * 0.6);
    let at = Align2::CENTER_CENTER.align_size_within_rect(galley.size(), area);
    ui.painter().galley(at.min, galley, colours.dim);
}

/// The mark that nobody drives: it does not fade, and is not part of the picture that is put out.
fn lost(app: &App, ui: &Ui, picture: Rect) {
    let text = app.words.face_lost.to_owned();
    let font = FontId::proportional(13.0);
    let galley = ui.painter().layout_no_wrap(text, font, theme::ON_PICTURE);
    let size = galley.size() + vec2(16.0 + 20.0 + 16.0, 16.0);
    let place = Rect::from_center_size(picture.center_top() + vec2(0.0, 16.0 + size.y / 2.0), size);
    card(ui, place);
    let middle = place.left_center();
    let icon = middle + vec2(24.0, 0.0);
    paint_icon(ui, icon, ICON_FACE, 16.0, theme::MARK);
    let at = middle + vec2(38.0, -galley.size().y / 2.0);
    ui.painter().galley(at, galley, theme::ON_PICTURE);
}

/// The largest place for a picture of that size.
pub(super) fn fit(size: Vec2, area: Rect) -> Rect {
    let zoom = (area.width() / size.x.max(1.0)).min(area.height() / size.y.max(1.0));
    Rect::from_center_size(area.center(), size * zoom)
}

/// The ground of what lies over a picture.
pub(super) fn card(ui: &Ui, rect: Rect) {
    ui.painter().rect(
        rect,
        theme::CARD_RADIUS,
        theme::OVER_PICTURE,
        eframe::egui::Stroke::new(1.0, Color32::from_white_alpha(22)),
        eframe::egui::StrokeKind::Inside,
    );
}
