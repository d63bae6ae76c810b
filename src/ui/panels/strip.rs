//! The line at the bottom: what is measured, and on what it truly runs. A click shows the last minute.

use eframe::egui::{
    Align, Align2, Color32, FontId, Frame, Label, Layout, Margin, Pos2, Rect, RichText, Role,
    Sense, Shape, Stroke, Ui, WidgetInfo, pos2, vec2,
};

use crate::device::Choice;
use crate::pipeline::live::Stages;
use crate::settings::Driver;
use crate::ui::app::{App, ModelState};
use crate::ui::command::{Command, Place};
use crate::ui::theme::{self, Colours, colours};
use crate::ui::words::brief;

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
                    Place::Models | Place::Train => {}
                }
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| match app.place {
                    Place::Render => writes_to(app, ui, &colours),
                    _ => device(app, ui, &colours),
                });
            });
        });
    if app.place != Place::Live {
        return;
    }
    let response = ui.interact(ui.min_rect(), ui.scope_id().with("strip"), Sense::click());
    response.widget_info(|| WidgetInfo::labeled(Role::Button, true, app.words.last_minute));
    if response.clicked() {
        let mut show = app.settings.show;
        show.plot = !show.plot;
        app.want(Command::Show(show));
    }
    response.on_hover_ui(|ui| {
        for (stage, ms, device) in stages(app) {
            ui.label(format!(
                "{stage}: {ms:.1} ms {} {device}",
                app.words.on_device
            ));
        }
        ui.label(RichText::new(app.words.strip_tip).color(colours.dim));
    });
}

/// What each stage takes, and on what it truly runs.
fn stages(app: &App) -> [(&'static str, f32, String); 4] {
    let (words, stats) = (app.words, &app.stats);
    let networks = match &app.model {
        ModelState::Ready { device, .. } => device.clone(),
        _ => String::new(),
    };
    let Stages {
        crop,
        keypoints,
        generate,
    } = stats.stages;
    [
        (words.stage_face, crop, networks.clone()),
        (words.stage_keypoints, keypoints, networks.clone()),
        (words.stage_generator, generate, networks),
        (words.stage_composing, stats.compose, app.stage.device()),
    ]
}

fn measured(app: &App, ui: &mut Ui, colours: &Colours) {
    let (words, stats) = (app.words, &app.stats);
    let part =
        |ui: &mut Ui, text: String| ui.label(RichText::new(text).size(12.5).color(colours.text));
    let source = match app.settings.driver {
        Driver::Camera(_) => words.camera,
        _ => words.driver_rate,
    };
    part(
        ui,
        format!("{source} {:.0} {}", stats.driver_fps(), words.fps),
    );
    part(
        ui,
        format!(
            "{} {:.1} {} · {:.0} ms",
            words.inference,
            stats.inference_fps(),
            words.fps,
            stats.stages.total()
        ),
    );
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
    let (queue, words) = (&app.jobs.queue, app.words);
    let mut parts = Vec::new();
    if queue.is_running() {
        parts.push(format!("1 {}", words.running_jobs));
    }
    if queue.waiting() > 0 {
        parts.push(format!("{} {}", queue.waiting(), words.waiting_jobs));
    }
    ui.label(
        RichText::new(parts.join(" · "))
            .size(12.5)
            .color(colours.text),
    );
}

fn writes_to(app: &App, ui: &mut Ui, colours: &Colours) {
    let text = format!("{} {}", app.words.writes_to, brief(&app.output_folder()));
    ui.label(RichText::new(text).size(12.5).color(colours.dim));
}

fn device(app: &App, ui: &mut Ui, colours: &Colours) {
    let (text, colour) = match &app.model {
        ModelState::Loading => (app.words.loading_model.to_owned(), colours.dim),
        ModelState::Failed(why) => (why.clone(), colours.bad),
        ModelState::Ready { device, .. } => {
            let text = if Choice::Auto.order().is_empty() {
                format!("{} {device}", app.words.no_cuda)
            } else {
                device.clone()
            };
            (text, colours.accent)
        }
    };
    let text = RichText::new(text).size(12.5).color(colours.text);
    ui.add(Label::new(text).truncate());
    let (dot, _) = ui.allocate_exact_size(vec2(8.0, 8.0), Sense::hover());
    ui.painter()
        .circle_filled(pos2(dot.center().x + 8.0, dot.center().y), 4.0, colour);
}

/// What each stage takes, and frames per second and latency over the last minute.
fn plot(app: &App, ui: &mut Ui, colours: &Colours) {
    let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), 112.0), Sense::hover());
    let mut inner = rect.shrink2(vec2(theme::PADDING, 14.0));
    let small = FontId::proportional(12.0);
    for (i, (stage, ms, device)) in stages(app).into_iter().enumerate() {
        let y = inner.top() + 20.0 * i as f32;
        let painter = ui.painter();
        let column = |x: f32, align: Align2, text: String, colour: Color32| {
            painter.text(
                pos2(inner.left() + x, y),
                align,
                text,
                small.clone(),
                colour,
            );
        };
        column(0.0, Align2::LEFT_TOP, stage.to_owned(), colours.dim);
        column(
            176.0,
            Align2::RIGHT_TOP,
            format!("{ms:.1} ms"),
            colours.text,
        );
        column(192.0, Align2::LEFT_TOP, device, colours.dim);
    }
    inner.min.x += (inner.width() * 0.4).clamp(360.0, 520.0);
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
