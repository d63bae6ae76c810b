//! The faces on the photo: the ring of each mask and the box of each crop, both dragged with the mouse.

use eframe::egui::{
    Align2, Color32, CursorIcon, FontId, Key, PointerButton, Pos2, Rect, Role, Sense, Shape,
    Stroke, StrokeKind, Ui, Vec2, WidgetInfo, pos2, vec2,
};

use crate::geometry;
use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::theme;
use crate::ui::widgets::keep_arrows;

/// Where on the ring the handle sits, in degrees from the right, upwards.
const HANDLE_AT: f32 = 45.0;
/// Corners of a box are taken within so many points.
const REACH: f32 = 9.0;

pub(super) fn show(app: &mut App, ui: &mut Ui, photo: Rect, zoom: f32, strength: f32) {
    if !app.settings.show.faces {
        return;
    }
    let faces = match app.reel.current() {
        Some(photo) => photo.faces.clone(),
        None => return,
    };
    // Under the faces: a double click makes a new one, as the key A does in the middle.
    let under = ui.interact(photo, ui.scope_id().with("photo"), Sense::CLICK);
    if under.double_clicked()
        && let Some(at) = under.interact_pointer_pos()
    {
        let at = (at - photo.min) / zoom;
        app.want(Command::AddFace(Some([at.x as i32, at.y as i32])));
    } else if under.clicked() {
        app.face = None;
    }
    for (index, face) in faces.iter().enumerate() {
        let crop = face.crop;
        let on_screen = Rect::from_min_max(
            photo.min + zoom * vec2(crop.x1 as f32, crop.y1 as f32),
            photo.min + zoom * vec2(crop.x2 as f32, crop.y2 as f32),
        );
        frame(app, ui, index, on_screen, photo, zoom, strength);
        handle(app, ui, index, face.ratio, on_screen, strength);
    }
}

/// The crop's box: moved by its edge, resized by its corners.
fn frame(
    app: &mut App,
    ui: &mut Ui,
    index: usize,
    rect: Rect,
    photo: Rect,
    zoom: f32,
    strength: f32,
) {
    let name = format!("{} {}", app.words.face, index + 1);
    let chosen = app.face == Some(index);
    let pointer = ui.input(|i| i.pointer.hover_pos());
    let near_edge =
        pointer.is_some_and(|p| rect.expand(REACH).contains(p) && !rect.shrink(REACH).contains(p));
    let id = ui.scope_id().with(("box", index));
    let dragging = ui.ctx().is_being_dragged(id);
    // Only the rim takes the mouse: the middle belongs to the photo.
    let sense = if near_edge || dragging {
        Sense::click_and_drag()
    } else {
        Sense::focusable_noninteractive()
    };
    let response = ui.interact(rect.expand(REACH), id, sense);
    response.widget_info(|| WidgetInfo::selected(Role::Button, true, chosen, &name));
    if response.clicked() || response.drag_started() || response.gained_focus() {
        app.face = Some(index);
    }
    let corner = |p: Pos2| {
        let close = |a: f32, b: f32| (a - b).abs() <= 1.5 * REACH;
        let side = |at, low, high| {
            if close(at, low) {
                -1i32
            } else {
                i32::from(close(at, high))
            }
        };
        (
            side(p.x, rect.left(), rect.right()),
            side(p.y, rect.top(), rect.bottom()),
        )
    };
    let grip = ui.scope_id().with(("grip", index));
    if response.drag_started_by(PointerButton::Primary) {
        let at = ui
            .input(|i| i.pointer.press_origin())
            .unwrap_or(rect.center());
        ui.data_mut(|data| data.insert_temp(grip, (corner(at), rect)));
    }
    let gripped: Option<((i32, i32), Rect)> = ui.data(|data| data.get_temp(grip));
    if response.dragged()
        && let (Some(((x, y), before)), Some(delta)) = (gripped, response.total_drag_delta())
    {
        // From where it was when the drag began: what is less than a pixel is not lost on the way.
        let mut moved = before;
        if x != 0 && y != 0 {
            // Corners keep the crop square: the models know squares.
            let grow = (delta.x * x as f32 + delta.y * y as f32) / 2.0;
            let side = vec2(x as f32, y as f32) * grow;
            if x < 0 {
                moved.min.x += side.x;
            } else {
                moved.max.x += side.x;
            }
            if y < 0 {
                moved.min.y += side.y;
            } else {
                moved.max.y += side.y;
            }
        } else {
            moved = moved.translate(delta);
            moved = moved.translate((photo.min - moved.min).max(Vec2::ZERO));
            moved = moved.translate((photo.max - moved.max).min(Vec2::ZERO));
        }
        let to_photo = |p: Pos2| ((p - photo.min) / zoom).round();
        let (min, max) = (to_photo(moved.min), to_photo(moved.max));
        let crop = geometry::Rect::new(min.x as i32, min.y as i32, max.x as i32, max.y as i32);
        app.want(Command::MoveFace(index, crop));
    }
    if chosen && response.has_focus() {
        keep_arrows(ui, &response);
        let (x, y, grow) = ui.input(|i| {
            let pressed = |key| 4 * i32::from(i.key_pressed(key));
            (
                pressed(Key::ArrowRight) - pressed(Key::ArrowLeft),
                pressed(Key::ArrowDown) - pressed(Key::ArrowUp),
                pressed(Key::Plus) + pressed(Key::Equals) - pressed(Key::Minus),
            )
        });
        let face = app.reel.current().and_then(|photo| photo.faces.get(index));
        if let Some(c) = face.map(|face| face.crop)
            && (x, y, grow) != (0, 0, 0)
        {
            let moved = geometry::Rect::new(
                c.x1 + x - grow,
                c.y1 + y - grow,
                c.x2 + x + grow,
                c.y2 + y + grow,
            );
            app.want(Command::MoveFace(index, moved));
        }
    }
    if near_edge {
        let cursor = pointer.map(corner).map_or(CursorIcon::Grab, |at| match at {
            (1, 1) | (-1, -1) => CursorIcon::ResizeNwSe,
            (0, _) | (_, 0) => CursorIcon::Grab,
            _ => CursorIcon::ResizeNeSw,
        });
        ui.ctx().set_cursor_icon(cursor);
    }
    let visible = if chosen || near_edge || dragging {
        1.0
    } else {
        0.35
    };
    let colour = Color32::WHITE.gamma_multiply(visible * strength * 0.8);
    ui.painter()
        .rect_stroke(rect, 6.0, Stroke::new(1.0, colour), StrokeKind::Middle);
    if chosen || near_edge {
        for at in [
            rect.left_top(),
            rect.right_top(),
            rect.left_bottom(),
            rect.right_bottom(),
        ] {
            ui.painter().circle_filled(at, 4.0, colour);
        }
    }
}

/// The mask's ring: a rounded square, as the mask is, with one round handle.
fn handle(app: &mut App, ui: &mut Ui, index: usize, own: Option<f32>, crop: Rect, strength: f32) {
    let ratio = own.unwrap_or(app.settings.blend.ratio);
    let at = on_ring(crop, ratio, HANDLE_AT);
    let hit = Rect::from_center_size(at, Vec2::splat(24.0));
    let response = ui.interact(
        hit,
        ui.scope_id().with(("ring", index)),
        Sense::click_and_drag(),
    );
    let name = format!("{} {} {}", app.words.ratio, app.words.face, index + 1);
    response.widget_info(|| WidgetInfo::slider(true, f64::from(ratio), &name));
    let mut changed = None;
    if response.dragged()
        && let Some(pointer) = ui.input(|i| i.pointer.interact_pos())
    {
        let from = (pointer - crop.center()) / crop.size();
        // The fourth-power norm, as the mask has it.
        changed = Some((from.x.powi(4) + from.y.powi(4)).powf(0.25));
    }
    if response.has_focus() {
        let step = ui.input(|i| {
            f32::from(i.key_pressed(Key::ArrowRight)) - f32::from(i.key_pressed(Key::ArrowLeft))
        });
        changed = (step != 0.0).then_some(ratio + 0.02 * step).or(changed);
        keep_arrows(ui, &response);
    }
    if let Some(ratio) = changed {
        let ratio = (ratio.clamp(0.1, 1.0) * 100.0).round() / 100.0;
        app.want(Command::FaceRatio(index, Some(ratio)));
    } else if response.double_clicked() {
        app.want(Command::FaceRatio(index, None));
    }
    let colour = theme::MARK.gamma_multiply(strength);
    let outline: Vec<Pos2> = (0..=96)
        .map(|step| on_ring(crop, ratio, 3.75 * step as f32))
        .collect();
    let clipped = ui.painter_at(crop.intersect(ui.clip_rect()));
    clipped.extend(Shape::dashed_line(
        &outline,
        Stroke::new(1.5, colour),
        5.0,
        4.0,
    ));
    let radius = if response.hovered() || response.dragged() {
        8.0
    } else {
        6.5
    };
    ui.painter().circle(
        at,
        radius,
        Color32::WHITE.gamma_multiply(strength),
        Stroke::new(2.0, colour),
    );
    if response.dragged() || response.has_focus() {
        let text = format!("{} {ratio:.2}", app.words.ratio.to_lowercase());
        let galley =
            ui.painter()
                .layout_no_wrap(text, FontId::proportional(13.0), theme::ON_PICTURE);
        let label = Rect::from_min_size(at + vec2(14.0, -26.0), galley.size() + vec2(16.0, 10.0));
        ui.painter().rect_filled(label, 7.0, theme::OVER_PICTURE);
        let place = Align2::CENTER_CENTER.align_size_within_rect(galley.size(), label);
        ui.painter().galley(place.min, galley, theme::ON_PICTURE);
    }
    response.on_hover_cursor(CursorIcon::Grab);
}

/// The point of the ring at `degrees` from the right, upwards.
fn on_ring(crop: Rect, ratio: f32, degrees: f32) -> Pos2 {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let norm = (cos.powi(4) + sin.powi(4)).powf(0.25);
    let reach = ratio.min(0.5 * norm.max(1.0) / cos.abs().max(sin.abs()).max(0.5)) / norm;
    pos2(
        crop.center().x + crop.width() * reach * cos,
        crop.center().y - crop.height() * reach * sin,
    )
}
