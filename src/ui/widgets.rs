//! The few controls that the window is made of, beyond egui's own.

use std::ops::RangeInclusive;

use eframe::egui::{
    self, Align2, Color32, CornerRadius, FontId, Key, Pos2, Rect, Response, Role, Sense, Stroke,
    StrokeKind, Ui, Vec2, WidgetInfo, pos2, vec2,
};
use egui_material_icons::MaterialIcon;
use egui_material_icons::icons::{ICON_KEYBOARD_ARROW_DOWN, ICON_REPLAY};

use super::theme::{self, Colours, colours};

/// Radius of a slider's handle.
const HANDLE: f32 = 6.5;

/// A number to be tuned: its name, what it does, where it may be and where it usually is.
pub(super) struct Knob<'a> {
    pub(super) name: &'a str,
    pub(super) tip: &'a str,
    pub(super) range: RangeInclusive<f32>,
    pub(super) usual: f32,
    /// Name of the reset arrow.
    pub(super) reset: &'a str,
}

impl Knob<'_> {
    /// Name and value above, a thin rail with a round handle below; once the value differs from the
    /// usual one it is in the accent, with an arrow back. True when the value has changed.
    pub(super) fn show(self, ui: &mut Ui, value: &mut f32) -> bool {
        let colours = colours(ui.ctx());
        let before = *value;
        let width = ui.available_width();
        let spacing = std::mem::replace(&mut ui.spacing_mut().item_spacing.y, 2.0);
        let (head, _) = ui.allocate_exact_size(vec2(width, 18.0), Sense::hover());
        ui.painter().text(
            head.left_center(),
            Align2::LEFT_CENTER,
            self.name,
            body(),
            colours.text,
        );
        let differs = (*value - self.usual).abs() > 0.004;
        // Large numbers are whole ones.
        let places = if *self.range.end() < 10.0 { 2 } else { 0 };
        let mut right = head.right();
        if differs {
            let arrow =
                Rect::from_center_size(pos2(right - 8.0, head.center().y), Vec2::splat(18.0));
            let name = format!("{} {}", self.reset, self.name);
            if icon_button_at(ui, arrow, ICON_REPLAY, &name, colours.accent).clicked() {
                *value = self.usual;
            }
            right -= 20.0;
        }
        ui.painter().text(
            pos2(right, head.center().y),
            Align2::RIGHT_CENTER,
            format!("{value:.places$}"),
            body(),
            if differs { colours.accent } else { colours.dim },
        );
        let response = rail(ui, width, value, self.range, &colours, self.name);
        response.on_hover_text(self.tip);
        ui.spacing_mut().item_spacing.y = spacing;
        ui.add_space(4.0);
        *value != before
    }
}

/// A rail with a round handle, dragged, clicked, or moved by the arrow keys.
pub(super) fn rail(
    ui: &mut Ui,
    width: f32,
    value: &mut f32,
    range: RangeInclusive<f32>,
    colours: &Colours,
    name: &str,
) -> Response {
    let (rect, mut response) = ui.allocate_exact_size(vec2(width, 18.0), Sense::click_and_drag());
    let (low, high) = (*range.start(), *range.end());
    let line = Rect::from_center_size(rect.center(), vec2(rect.width(), 4.0));
    // The handle stays on the rail.
    let (first, last) = (line.left() + HANDLE, line.right() - HANDLE);
    let before = *value;
    if let Some(pointer) = response.interact_pointer_pos()
        && (response.dragged() || response.clicked())
    {
        let way = ((pointer.x - first) / (last - first).max(1.0)).clamp(0.0, 1.0);
        // Whole hundredths, as they are shown.
        *value = ((low + way * (high - low)) * 100.0).round() / 100.0;
    }
    if response.has_focus() {
        let step = ui.input(|i| {
            f32::from(i.key_pressed(Key::ArrowRight)) - f32::from(i.key_pressed(Key::ArrowLeft))
        });
        *value = (*value + step * (high - low) / 40.0).clamp(low, high);
        keep_arrows(ui, &response);
    }
    if *value != before {
        response.mark_changed();
    }
    response.widget_info(|| WidgetInfo::slider(ui.is_enabled(), f64::from(*value), name));
    let way = if high > low {
        ((*value - low) / (high - low)).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let handle = pos2(egui::lerp(first..=last, way), line.center().y);
    let painter = ui.painter();
    painter.rect_filled(line, 2.0, colours.line);
    let filled = Rect::from_min_max(line.min, pos2(handle.x, line.max.y));
    painter.rect_filled(filled, 2.0, colours.accent);
    let radius = if response.hovered() || response.dragged() {
        HANDLE + 1.0
    } else {
        HANDLE
    };
    let edge = Stroke::new(1.0, colours.handle_edge);
    painter.circle(handle, radius, colours.handle, edge);
    focus_ring(ui, &response, rect);
    response
}

/// What has the focus keeps the arrow keys, which would move the focus elsewhere.
pub(super) fn keep_arrows(ui: &Ui, response: &Response) {
    let keys = egui::EventFilter {
        horizontal_arrows: true,
        vertical_arrows: true,
        ..Default::default()
    };
    ui.memory_mut(|memory| memory.set_focus_lock_filter(response.id, keys));
}

/// A name with a switch at its right. True when it was switched.
pub(super) fn toggle(ui: &mut Ui, name: &str, tip: &str, on: &mut bool) -> bool {
    let colours = colours(ui.ctx());
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 28.0), Sense::click());
    if response.clicked() {
        *on = !*on;
    }
    response.widget_info(|| WidgetInfo::selected(Role::CheckBox, ui.is_enabled(), *on, name));
    let painter = ui.painter();
    painter.text(
        rect.left_center(),
        Align2::LEFT_CENTER,
        name,
        body(),
        colours.text,
    );
    let way = ui.ctx().animate_bool_responsive(response.id, *on);
    let body = Rect::from_center_size(pos2(rect.right() - 16.0, rect.center().y), vec2(32.0, 18.0));
    let fill = mix(colours.handle_edge, colours.accent, way);
    painter.rect_filled(body, 9.0, fill);
    let knob = pos2(
        egui::lerp(body.left() + 9.0..=body.right() - 9.0, way),
        body.center().y,
    );
    painter.circle_filled(knob, 7.0, colours.handle);
    focus_ring(ui, &response, rect);
    let clicked = response.clicked();
    response.on_hover_text(tip);
    clicked
}

/// As [`toggle`], with an arrow back while it is not as usual.
pub(super) fn switch(
    ui: &mut Ui,
    [name, tip, reset]: [&str; 3],
    usual: bool,
    on: &mut bool,
) -> bool {
    let (corner, width) = (ui.cursor().min, ui.available_width());
    let mut changed = toggle(ui, name, tip, on);
    if *on != usual {
        let middle = corner + vec2(width - 46.0, 14.0);
        let arrow = Rect::from_center_size(middle, Vec2::splat(18.0));
        let name = format!("{reset} {name}");
        let colour = colours(ui.ctx()).accent;
        if icon_button_at(ui, arrow, ICON_REPLAY, &name, colour).clicked() {
            (*on, changed) = (usual, true);
        }
    }
    changed
}

/// A quiet button: text, perhaps an icon before it and a key after it; or the icon alone.
pub(super) struct Quiet<'a> {
    name: &'a str,
    icon: Option<(MaterialIcon, Color32)>,
    key: Option<&'a str>,
    on: bool,
    minor: bool,
    icon_alone: bool,
    menu: bool,
    level: Option<f32>,
}

impl<'a> Quiet<'a> {
    pub(super) fn new(name: &'a str) -> Self {
        Self {
            name,
            icon: None,
            key: None,
            on: false,
            minor: false,
            icon_alone: false,
            menu: false,
            level: None,
        }
    }

    /// One whose name goes first where there is little room.
    pub(super) fn minor(name: &'a str) -> Self {
        Self {
            minor: true,
            ..Self::new(name)
        }
    }

    pub(super) fn icon(mut self, icon: MaterialIcon, colour: Color32) -> Self {
        self.icon = Some((icon, colour));
        self
    }

    pub(super) fn key(mut self, key: &'a str) -> Self {
        self.key = Some(key);
        self
    }

    pub(super) fn on(mut self, on: bool) -> Self {
        self.on = on;
        self
    }

    /// One that opens a list.
    pub(super) fn menu(mut self) -> Self {
        self.menu = true;
        self
    }

    /// With a small bar in it that fills from the left, 0..=1.
    pub(super) fn level(mut self, level: f32) -> Self {
        self.level = Some(level);
        self
    }

    /// With less beside it, where there is little room: first the key goes, then the name.
    pub(super) fn within(mut self, room: Room) -> Self {
        if room != Room::Full {
            self.key = None;
        }
        let bare = match room {
            Room::Full => false,
            Room::Medium => self.minor,
            Room::Small => true,
        };
        self.icon_alone = bare && self.icon.is_some();
        self
    }

    /// Over the picture, where colours do not follow the theme.
    pub(super) fn show(self, ui: &mut Ui) -> Response {
        let text = if self.icon_alone { "" } else { self.name };
        let text = ui
            .painter()
            .layout_no_wrap(text.to_owned(), body(), theme::ON_PICTURE);
        let key = self.key.map(|key| {
            let font = FontId::proportional(11.0);
            ui.painter()
                .layout_no_wrap(key.to_owned(), font, theme::DIM_ON_PICTURE)
        });
        let icon_width = if self.icon.is_some() { 20.0 } else { 0.0 };
        let key_width = key.as_ref().map_or(0.0, |key| key.size().x + 20.0);
        let menu_width = if self.menu { 18.0 } else { 0.0 };
        let width = text.size().x + icon_width + key_width + menu_width + 20.0;
        let size = vec2(width, 34.0);
        let (rect, response) = ui.allocate_exact_size(size, Sense::click());
        response.widget_info(|| {
            WidgetInfo::selected(Role::Button, ui.is_enabled(), self.on, self.name)
        });
        let painter = ui.painter();
        let fill = match (self.on, response.hovered()) {
            (true, _) => Color32::from_white_alpha(28),
            (false, true) => Color32::from_white_alpha(14),
            _ => Color32::TRANSPARENT,
        };
        painter.rect_filled(rect, theme::RADIUS, fill);
        let mut x = rect.left() + 10.0;
        if let Some((icon, colour)) = self.icon {
            paint_icon(ui, pos2(x + 8.0, rect.center().y), icon, 16.0, colour);
            x += icon_width;
        }
        let middle = |height: f32| rect.center().y - height / 2.0;
        let width = text.size().x;
        painter.galley(pos2(x, middle(text.size().y)), text, theme::ON_PICTURE);
        if let Some(key) = key {
            let at = pos2(x + width + 14.0, middle(key.size().y));
            let frame = Rect::from_min_size(at, key.size()).expand2(vec2(5.0, 2.0));
            painter.rect_stroke(
                frame,
                4.0,
                Stroke::new(1.0, Color32::from_white_alpha(40)),
                StrokeKind::Inside,
            );
            painter.galley(at, key, theme::DIM_ON_PICTURE);
        }
        if self.menu {
            let at = pos2(rect.right() - 16.0, rect.center().y);
            let colour = theme::DIM_ON_PICTURE;
            paint_icon(ui, at, ICON_KEYBOARD_ARROW_DOWN, 16.0, colour);
        }
        if let Some(level) = self.level {
            let line = pos2(rect.left() + 10.0, rect.bottom() - 5.0);
            let rail = Rect::from_min_size(line, vec2(rect.width() - 20.0, 2.0));
            let back = Color32::from_white_alpha(40);
            bar(painter, rail, level, back, theme::GOOD_ON_PICTURE);
        }
        focus_ring(ui, &response, rect);
        response
    }
}

/// How much room buttons have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Full,
    Medium,
    Small,
}

impl Room {
    /// The most first.
    pub(super) const ALL: [Self; 3] = [Self::Full, Self::Medium, Self::Small];
}

/// A button that is an icon.
pub(super) fn icon_button(ui: &mut Ui, icon: MaterialIcon, name: &str) -> Response {
    let colour = colours(ui.ctx()).dim;
    let (rect, response) = ui.allocate_exact_size(Vec2::splat(28.0), Sense::click());
    paint_icon_button(ui, response, rect, icon, name, colour)
}

/// A button that is an icon, at a place of its own.
pub(super) fn icon_button_at(
    ui: &mut Ui,
    rect: Rect,
    icon: MaterialIcon,
    name: &str,
    colour: Color32,
) -> Response {
    let response = ui.interact(rect, ui.scope_id().with(name), Sense::click());
    paint_icon_button(ui, response, rect, icon, name, colour)
}

fn paint_icon_button(
    ui: &Ui,
    response: Response,
    rect: Rect,
    icon: MaterialIcon,
    name: &str,
    colour: Color32,
) -> Response {
    response.widget_info(|| WidgetInfo::labeled(Role::Button, ui.is_enabled(), name));
    if response.hovered() {
        let fill = colours(ui.ctx()).text.gamma_multiply(0.08);
        ui.painter().rect_filled(rect, rect.height() / 3.0, fill);
    }
    paint_icon(ui, rect.center(), icon, rect.height() * 0.64, colour);
    focus_ring(ui, &response, rect);
    response.on_hover_text(name)
}

pub(super) fn paint_icon(ui: &Ui, at: Pos2, icon: MaterialIcon, size: f32, colour: Color32) {
    let font = FontId::new(size, icon.font_family());
    ui.painter()
        .text(at, Align2::CENTER_CENTER, icon.codepoint, font, colour);
}

/// Gives the entries of a list the room that they lack by default.
pub(super) fn menu_room(ui: &mut Ui) {
    ui.spacing_mut().button_padding = vec2(10.0, 5.0);
    ui.spacing_mut().item_spacing.y = 2.0;
}

/// Small capitals over a group of controls.
pub(super) fn group(ui: &mut Ui, name: &str) {
    let colours = colours(ui.ctx());
    ui.add_space(6.0);
    ui.label(
        egui::RichText::new(name)
            .font(theme::label_font())
            .color(colours.dim)
            .extra_letter_spacing(0.8),
    );
}

/// The one loud button of a place.
pub(super) fn primary(ui: &mut Ui, text: &str, enabled: bool) -> Response {
    let colours = colours(ui.ctx());
    let text = egui::RichText::new(text).color(colours.on_accent).strong();
    let button = egui::Button::new(text)
        .fill(colours.accent)
        .stroke(Stroke::NONE)
        .min_size(vec2(ui.available_width(), 38.0));
    ui.add_enabled(enabled, button)
}

/// A line that fills from the left, 0..=1.
pub(super) fn progress(ui: &mut Ui, width: f32, way: f32, colour: Color32) -> Rect {
    let (rect, _) = ui.allocate_exact_size(vec2(width, 4.0), Sense::hover());
    bar(ui.painter(), rect, way, colours(ui.ctx()).line, colour);
    rect
}

/// Paints a line that fills from the left, 0..=1.
pub(super) fn bar(painter: &egui::Painter, rect: Rect, way: f32, back: Color32, fill: Color32) {
    painter.rect_filled(rect, 2.0, back);
    let filled = Rect::from_min_size(
        rect.min,
        vec2(rect.width() * way.clamp(0.0, 1.0), rect.height()),
    );
    painter.rect_filled(filled, 2.0, fill);
}

/// Shows who has the keyboard.
fn focus_ring(ui: &Ui, response: &Response, rect: Rect) {
    if response.has_focus() {
        let stroke = Stroke::new(1.5, colours(ui.ctx()).accent);
        let corner = CornerRadius::same(theme::RADIUS);
        ui.painter()
            .rect_stroke(rect.expand(2.0), corner, stroke, StrokeKind::Outside);
    }
}

fn body() -> FontId {
    FontId::proportional(13.0)
}

fn mix(a: Color32, b: Color32, way: f32) -> Color32 {
    let part = |a: u8, b: u8| egui::lerp(f32::from(a)..=f32::from(b), way).round() as u8;
    Color32::from_rgb(part(a.r(), b.r()), part(a.g(), b.g()), part(a.b(), b.b()))
}
