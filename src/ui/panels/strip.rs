//! The line at the bottom: what is measured, and on what it truly runs. A click shows the last minute.

use eframe::egui::{
    Align, Align2, Color32, FontId, Frame, Layout, Margin, Pos2, Rect, RichText, Role, Sense,
    Shape, Stroke, Ui, WidgetInfo, pos2, vec2,
};

use crate::ui::app::{App, ModelState};
use crate::ui::command::{Command, Place};
use crate::ui::theme::{self, Colours, colours};

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let colours = colours(ui.ctx());
    if app.settings.show.plot && app.place == Place::Live {
        plot(app, ui, &colours);
    }
    Frame::NONE
        .inner_margin(Margin::symmetric(theme::PADDING as i8, 8))
        .show(ui, |ui| {
            ui.horizontal(|ui| {
                ui.spacing_mut().item_spacing.x = 22.0;
                match app.place {
                    Place::Live => measured(app, ui, &colours),
                    Place::Render => render(app, ui, &colours),
                    Place::Models => {}
                }
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    device(app, ui, &colours);
                });
            });
        });
    let response = ui.interact(ui.min_rect(), ui.scope_id().with("strip"), Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Button, true, app.words.last_minute));
    if response.clicked() {
        let mut show = app.settings.show;
        show.plot = !show.plot;
        app.want(Command::Show(show));
    }
    response.on_hover_text(app.words.strip_tip);
}

fn measured(app: &App, ui: &mut Ui, colours: &Colours) {
    let (words, stats) = (app.words, &app.stats);
    let part =
        |ui: &mut Ui, text: String| ui.label(RichText::new(text).size(12.5).color(colours.text));
    part(
        ui,
        format!("{} {:.0} {}", words.camera, stats.driver_fps(), words.fps),
    );
    let inference = part(
        ui,
        format!(
            "{} {:.1} {} · {:.0} ms",
            words.inference,
            stats.inference_fps(),
            words.fps,
            stats.stages.total()
        ),
    );
    inference.on_hover_text(format!(
        "{:.1} + {:.1} + {:.1} ms, {} {:.1} ms ({})",
        stats.stages.crop,
        stats.stages.keypoints,
        stats.stages.generate,
        words.composing,
        stats.compose,
        app.stage.device(),
    ));
    part(ui, format!("{} {:.0} ms", words.latency, stats.latency));
    part(ui, format!("{} {}", words.dropped, stats.dropped));
    if let Some(every) = stats.enhanced_every {
        let text = match every {
            ..1.5 => words.enhanced_all.to_owned(),
            _ => format!("{} {every:.0} {}", words.enhanced_every, words.frames),
        };
        part(ui, text).on_hover_text(words.enhance_tip);
    }
    if let Some(text) = app.quality_text() {
        let colour = if app.quality.holds {
            colours.accent
        } else {
            colours.bad
        };
        let label = ui.label(RichText::new(text).size(12.5).color(colour));
        label.on_hover_text(words.hold_tip);
    }
}

fn render(app: &App, ui: &mut Ui, colours: &Colours) {
    let text = format!("{} {}", app.words.writes_to, app.output_folder().display());
    ui.label(RichText::new(text).size(12.5).color(colours.dim));
}

fn device(app: &App, ui: &mut Ui, colours: &Colours) {
    let (text, colour) = match &app.model {
        ModelState::Loading => (app.words.loading_model.to_owned(), colours.dim),
        ModelState::Failed(why) => (why.clone(), colours.bad),
        ModelState::Ready { device, .. } => {
            let text = if cfg!(feature = "cuda") {
                device.clone()
            } else {
                format!("{} {device}", app.words.no_cuda)
            };
            (text, colours.accent)
        }
    };
    ui.label(RichText::new(text).size(12.5).color(colours.text));
    let (dot, _) = ui.allocate_exact_size(vec2(8.0, 8.0), Sense::hover());
    ui.painter()
        .circle_filled(pos2(dot.center().x + 8.0, dot.center().y), 4.0, colour);
}

/// Frames per second and latency over the last minute.
fn plot(app: &App, ui: &mut Ui, colours: &Colours) {
    let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), 96.0), Sense::hover());
    let inner = rect.shrink2(vec2(theme::PADDING, 12.0));
    let minute = &app.stats.minute;
    let font = FontId::proportional(11.0);
    let line = |values: Vec<f32>, colour: Color32, unit: &str, row: f32| {
        let most = values.iter().fold(1f32, |most, v| most.max(*v)) * 1.15;
        let at = |(i, value): (usize, &f32)| -> Pos2 {
            let x = inner.right() - inner.width() * (values.len() - 1 - i) as f32 / 600.0;
            pos2(x, inner.bottom() - inner.height() * value / most)
        };
        let points: Vec<Pos2> = values.iter().enumerate().map(at).collect();
        ui.painter()
            .add(Shape::line(points, Stroke::new(1.5, colour)));
        if let Some(last) = values.last() {
            let text = format!("{last:.0} {unit}");
            let place = pos2(inner.left(), inner.top() + row);
            ui.painter()
                .text(place, Align2::LEFT_TOP, text, font.clone(), colour);
        }
    };
    let ground = Rect::from_min_max(inner.left_bottom(), inner.right_bottom());
    ui.painter()
        .line_segment([ground.min, ground.max], Stroke::new(1.0, colours.line));
    line(
        minute.iter().map(|s| s.fps).collect(),
        colours.good,
        app.words.fps,
        0.0,
    );
    let latency = format!("ms {}", app.words.latency);
    line(
        minute.iter().map(|s| s.latency).collect(),
        colours.accent,
        &latency,
        14.0,
    );
}
