//! The bar at the top: the name, the four places, help and settings.

use eframe::egui::{
    Align2, FontId, Rect, RichText, Role, Sense, Ui, UiBuilder, WidgetInfo, pos2, vec2,
};
use egui_material_icons::icons::{ICON_HELP, ICON_SETTINGS};

use crate::ui::app::App;
use crate::ui::command::{Command, Place};
use crate::ui::theme::{self, colours};
use crate::ui::widgets::icon_button_at;

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let colours = colours(ui.ctx());
    let rect = ui.max_rect();
    let middle = rect.center();
    let name = Rect::from_min_size(
        pos2(rect.left() + theme::PADDING, rect.top()),
        vec2(120.0, rect.height()),
    );
    ui.scope_builder(UiBuilder::new().max_rect(name), |ui| {
        ui.horizontal_centered(|ui| {
            ui.label(
                RichText::new("mimic")
                    .font(theme::strong(16.0))
                    .color(colours.text),
            )
        });
    });

    let places = [
        (Place::Live, app.words.live),
        (Place::Render, app.words.render),
        (Place::Models, app.words.models),
        (Place::Train, app.words.train),
    ];
    let width = 82.0;
    let frame = Rect::from_center_size(middle, vec2(width * places.len() as f32 + 8.0, 34.0));
    ui.painter()
        .rect_filled(frame, theme::RADIUS, colours.ground);
    for (i, (place, text)) in places.into_iter().enumerate() {
        let at = Rect::from_min_size(
            pos2(frame.left() + 4.0 + width * i as f32, frame.top() + 4.0),
            vec2(width, 26.0),
        );
        let response = ui.interact(at, ui.scope_id().with(text), Sense::click());
        let chosen = app.place == place;
        response.widget_info(|| WidgetInfo::selected(Role::Tab, true, chosen, text));
        if chosen || response.has_focus() {
            ui.painter()
                .rect_filled(at, theme::RADIUS - 2, colours.line);
        }
        let colour = if chosen || response.hovered() {
            colours.text
        } else {
            colours.dim
        };
        ui.painter().text(
            at.center(),
            Align2::CENTER_CENTER,
            text,
            FontId::proportional(13.0),
            colour,
        );
        if response.clicked() {
            app.want(Command::Go(place));
        }
    }

    let mut right = rect.right() - theme::PADDING;
    for (icon, name, command) in [
        (ICON_SETTINGS, app.words.settings, Command::Settings),
        (ICON_HELP, app.words.help, Command::Help),
    ] {
        let at = Rect::from_center_size(pos2(right - 14.0, middle.y), vec2(28.0, 28.0));
        if icon_button_at(ui, at, icon, name, colours.dim).clicked() {
            app.want(command);
        }
        right -= 34.0;
    }
}
