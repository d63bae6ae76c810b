//! The driver's picture in the corner: what the networks see, and how well the pose matches.

use eframe::egui::{
    Align2, Color32, FontId, Image, Rect, Role, Sense, Stroke, StrokeKind, Ui, Vec2, WidgetInfo,
    load::SizedTexture, pos2, vec2,
};
use egui_material_icons::icons::{ICON_CLOSE, ICON_FACE};

use super::stage::card;
use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::theme;
use crate::ui::widgets::{bar, icon_button_at, paint_icon};

const WIDTH: f32 = 206.0;
const FOOT: f32 = 34.0;

pub(super) fn show(app: &mut App, ui: &mut Ui, area: Rect) {
    if !app.settings.show.driver {
        let at = Rect::from_min_size(area.left_bottom() + vec2(16.0, -52.0), Vec2::splat(36.0));
        card(ui, at);
        let button = icon_button_at(ui, at, ICON_FACE, app.words.show_driver, theme::ON_PICTURE);
        if button.clicked() {
            toggle(app);
        }
        return;
    }
    // In the corner is whichever is not the big one.
    let texture = if app.open.swapped && app.mirror.seen {
        app.stage.picture.texture()
    } else {
        app.mirror.picture.texture().filter(|_| app.mirror.seen)
    };
    let size = texture.map_or(vec2(4.0, 3.0), |(_, size)| size);
    let width = WIDTH.min(area.width() * 0.35);
    let height = (width * size.y / size.x).min(area.height() * 0.4);
    let whole = Rect::from_min_size(
        pos2(area.left() + 16.0, area.bottom() - 16.0 - height - FOOT),
        vec2(width, height + FOOT),
    );
    card(ui, whole);
    let picture = Rect::from_min_size(whole.min, vec2(width, height));
    let response = ui.interact(picture, ui.scope_id().with("driver"), Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Button, true, app.words.swap));
    match texture {
        Some((id, size)) => {
            let corner = eframe::egui::CornerRadius {
                nw: theme::CARD_RADIUS,
                ne: theme::CARD_RADIUS,
                sw: 0,
                se: 0,
            };
            let fitted = super::stage::fit(size, picture);
            Image::new(SizedTexture::new(id, fitted.size()))
                .corner_radius(corner)
                .paint_at(ui, fitted);
            if !app.open.swapped {
                overlay(app, ui, fitted, fitted.width() / size.x);
            }
        }
        None => {
            let text = app.words.waiting;
            let font = FontId::proportional(12.0);
            ui.painter().text(
                picture.center(),
                Align2::CENTER_CENTER,
                text,
                font,
                theme::DIM_ON_PICTURE,
            );
        }
    }
    if response.clicked() {
        app.want(Command::Swap);
    }
    let hovered = response.hovered();
    response.on_hover_text(app.words.swap);
    if hovered || ui.rect_contains_pointer(whole) {
        let at = Rect::from_center_size(picture.right_top() + vec2(-16.0, 16.0), Vec2::splat(22.0));
        ui.painter()
            .circle_filled(at.center(), 12.0, theme::OVER_PICTURE);
        if icon_button_at(ui, at, ICON_CLOSE, app.words.hide_driver, theme::ON_PICTURE).clicked() {
            toggle(app);
        }
    }
    foot(
        app,
        ui,
        Rect::from_min_max(picture.left_bottom(), whole.max),
    );
}

/// The crop that the networks see, and the keypoints, over the driver's picture.
pub(super) fn overlay(app: &App, ui: &Ui, picture: Rect, zoom: f32) {
    let mirror = &app.mirror;
    if mirror.crop.is_empty() {
        return;
    }
    let at = |x: f32, y: f32| picture.min + zoom * vec2(x, y);
    let crop = Rect::from_min_max(
        at(mirror.crop.x1 as f32, mirror.crop.y1 as f32),
        at(mirror.crop.x2 as f32, mirror.crop.y2 as f32),
    );
    let stroke = Stroke::new(1.0, Color32::from_white_alpha(150));
    let painter = ui.painter_at(picture);
    painter.rect_stroke(crop.shrink(1.0), 6.0, stroke, StrokeKind::Inside);
    if let (true, Some(keypoints)) = (app.settings.show.keypoints, &mirror.keypoints) {
        for [x, y] in &keypoints.value {
            let place = crop.min + crop.size() * vec2(x + 1.0, y + 1.0) / 2.0;
            painter.circle(
                place,
                3.0,
                theme::MARK,
                Stroke::new(1.0, theme::OVER_PICTURE),
            );
        }
    }
}

fn foot(app: &App, ui: &mut Ui, rect: Rect) {
    let font = FontId::proportional(12.0);
    let middle = rect.center().y;
    if app.mirror.seen && !app.mirror.found {
        paint_icon(
            ui,
            pos2(rect.left() + 18.0, middle),
            ICON_FACE,
            16.0,
            theme::MARK,
        );
        let at = pos2(rect.left() + 32.0, middle);
        ui.painter().text(
            at,
            Align2::LEFT_CENTER,
            app.words.face_lost,
            font,
            theme::ON_PICTURE,
        );
        return;
    }
    let score = app.mirror.match_score;
    let text = app.words.matching;
    let label = ui.painter().text(
        pos2(rect.left() + 12.0, middle),
        Align2::LEFT_CENTER,
        text,
        font.clone(),
        theme::DIM_ON_PICTURE,
    );
    let rail = Rect::from_min_max(
        pos2(label.right() + 10.0, middle - 2.0),
        pos2(rect.right() - 44.0, middle + 2.0),
    );
    let good = theme::GOOD_ON_PICTURE;
    bar(
        ui.painter(),
        rail,
        score,
        Color32::from_white_alpha(40),
        good,
    );
    let number = match app.mirror.seen {
        true => format!("{:.0}", score * 100.0),
        false => String::new(),
    };
    ui.painter().text(
        pos2(rect.right() - 12.0, middle),
        Align2::RIGHT_CENTER,
        number,
        font,
        theme::ON_PICTURE,
    );
    ui.interact(rect, ui.scope_id().with("match"), Sense::hover())
        .on_hover_text(app.words.match_tip);
}

fn toggle(app: &mut App) {
    let mut show = app.settings.show;
    show.driver = !show.driver;
    app.want(Command::Show(show));
}
