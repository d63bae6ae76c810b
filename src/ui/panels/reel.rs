//! The reel of source photos at the left.

use eframe::egui::{
    Align2, Color32, FontId, Image, Rect, Role, ScrollArea, Sense, Stroke, StrokeKind, Ui, Vec2,
    WidgetInfo, pos2, vec2,
};
use egui_material_icons::icons::{ICON_ADD, ICON_BROKEN_IMAGE, ICON_CLOSE};

use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::dialogs::Pick;
use crate::ui::reel::State;
use crate::ui::theme::{self, colours};
use crate::ui::widgets::{icon_button_at, paint_icon};

const SIDE: f32 = 70.0;
const CROSS: Vec2 = Vec2::splat(18.0);

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let colours = colours(ui.ctx());
    let mut wanted = None;
    ScrollArea::vertical()
        .auto_shrink([false, false])
        .show(ui, |ui| {
            ui.spacing_mut().item_spacing = vec2(0.0, 10.0);
            ui.add_space(10.0);
            for (index, photo) in app.reel.photos.iter().enumerate() {
                let (rect, response) = tile(ui);
                let on_stage = index == app.reel.on_stage;
                let name = format!("{} {}: {}", app.words.photo_number, index + 1, photo.name());
                response.widget_info(|| WidgetInfo::selected(Role::Button, true, on_stage, &name));
                match &photo.state {
                    State::Ready(opened) => {
                        Image::new(&opened.thumb)
                            .corner_radius(theme::RADIUS)
                            .paint_at(ui, rect);
                    }
                    State::Loading => {
                        ui.painter().rect_filled(rect, theme::RADIUS, colours.line);
                    }
                    State::Failed(_) => {
                        ui.painter().rect_filled(rect, theme::RADIUS, colours.line);
                        paint_icon(ui, rect.center(), ICON_BROKEN_IMAGE, 24.0, colours.bad);
                    }
                }
                if index < 9 {
                    let corner =
                        Rect::from_center_size(rect.max - vec2(12.0, 12.0), vec2(16.0, 16.0));
                    ui.painter().rect_filled(corner, 5.0, theme::OVER_PICTURE);
                    ui.painter().text(
                        corner.center(),
                        Align2::CENTER_CENTER,
                        index + 1,
                        FontId::proportional(11.0),
                        theme::ON_PICTURE,
                    );
                }
                let ring = match (on_stage, response.hovered() || response.has_focus()) {
                    (true, _) => Some((2.0, colours.accent)),
                    (false, true) => Some((1.0, colours.dim)),
                    _ => None,
                };
                if let Some((width, colour)) = ring {
                    let corner = theme::RADIUS + 3;
                    ui.painter().rect_stroke(
                        rect.expand(3.0),
                        corner,
                        Stroke::new(width, colour),
                        StrokeKind::Middle,
                    );
                }
                if response.clicked() {
                    wanted = Some(Command::ShowPhoto(index));
                }
                let cross = Rect::from_center_size(rect.right_top() + vec2(-10.0, 10.0), CROSS);
                if response.contains_pointer() || ui.rect_contains_pointer(cross) {
                    ui.painter()
                        .circle_filled(cross.center(), 9.0, theme::OVER_PICTURE);
                    let what = format!("{}: {}", app.words.remove_photo, photo.name());
                    let cross = icon_button_at(ui, cross, ICON_CLOSE, &what, theme::ON_PICTURE);
                    if cross.clicked() {
                        wanted = Some(Command::RemovePhoto(index));
                    }
                }
                response.context_menu(|ui| {
                    if ui.button(app.words.remove_photo).clicked() {
                        wanted = Some(Command::RemovePhoto(index));
                    }
                    if ui.button(app.words.paste_photo).clicked() {
                        wanted = Some(Command::PastePhoto);
                    }
                });
                match &photo.state {
                    State::Failed(why) => response.on_hover_text(why),
                    _ => response.on_hover_text(photo.name()),
                };
            }
            let (rect, response) = tile(ui);
            response.widget_info(|| WidgetInfo::labeled(Role::Button, true, app.words.add_photo));
            let strong = response.hovered() || response.has_focus();
            let colour = if strong { colours.accent } else { colours.dim };
            dashed(ui, rect, colour);
            paint_icon(ui, rect.center(), ICON_ADD, 22.0, colour);
            if response.clicked() {
                wanted = Some(Command::Pick(Pick::Photos));
            }
            response.context_menu(|ui| {
                if ui.button(app.words.paste_photo).clicked() {
                    wanted = Some(Command::PastePhoto);
                }
            });
            response.on_hover_text(app.words.add_photo);
            ui.add_space(10.0);
        });
    if let Some(command) = wanted {
        app.want(command);
    }
}

fn tile(ui: &mut Ui) -> (Rect, eframe::egui::Response) {
    let (row, response) = ui.allocate_exact_size(vec2(ui.available_width(), SIDE), Sense::click());
    (
        Rect::from_center_size(row.center(), Vec2::splat(SIDE)),
        response,
    )
}

/// A rounded frame of dashes.
pub(super) fn dashed(ui: &Ui, rect: Rect, colour: Color32) {
    let corner = f32::from(theme::RADIUS);
    let (l, r, t, b) = (rect.left(), rect.right(), rect.top(), rect.bottom());
    let mut outline = Vec::new();
    let corners = [
        (pos2(r - corner, t + corner), -90.0f32),
        (pos2(r - corner, b - corner), 0.0),
        (pos2(l + corner, b - corner), 90.0),
        (pos2(l + corner, t + corner), 180.0),
    ];
    for (middle, from) in corners {
        for step in 0..=6 {
            let angle = (from + 15.0 * step as f32).to_radians();
            outline.push(middle + corner * Vec2::angled(angle));
        }
    }
    outline.push(outline[0]);
    let stroke = Stroke::new(1.0, colour);
    ui.painter()
        .extend(eframe::egui::Shape::dashed_line(&outline, stroke, 5.0, 4.0));
}
