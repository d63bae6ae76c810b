//! The Render place: the jobs at the left, the chosen one's preview and settings at the right.

use eframe::egui::{
    Align, Frame, Image, Layout, Margin, Rect, RichText, Role, ScrollArea, Sense, Stroke,
    TextureHandle, Ui, UiBuilder, Vec2, WidgetInfo, load::SizedTexture, pos2, vec2,
};
use egui_material_icons::icons::{ICON_ARROW_BACK, ICON_IMAGE, ICON_MOVIE};

use super::reel::dashed;
use super::stage::fit;
use super::tuning::knob;
use crate::pipeline::queue::{RenderJob, State};
use crate::settings::{Driver, PhotoOrigin};
use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::dialogs::Pick;
use crate::ui::jobs::{JobCommand, Look};
use crate::ui::theme::{self, Colours, colours};
use crate::ui::widgets::{paint_icon, primary, progress, rail};
use crate::ui::words::Words;

const ROW: f32 = 90.0;

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let colours = colours(ui.ctx());
    let side = (ui.available_width() * 0.3).clamp(280.0, 430.0);
    eframe::egui::Panel::right("preview")
        .exact_size(side)
        .resizable(false)
        .frame(
            Frame::NONE
                .fill(colours.panel)
                .inner_margin(Margin::same(22)),
        )
        .show(ui, |ui| preview(app, ui, &colours));
    ScrollArea::vertical()
        .auto_shrink([false, false])
        .show(ui, |ui| {
            Frame::NONE
                .inner_margin(Margin::symmetric(34, 22))
                .show(ui, |ui| list(app, ui, &colours));
        });
}

fn list(app: &mut App, ui: &mut Ui, colours: &Colours) {
    let words = app.words;
    ui.heading(words.renders);
    ui.add_space(4.0);
    hint(app, ui, colours);
    ui.add_space(4.0);
    let mut wanted = None;
    for job in app.jobs.queue.jobs() {
        let chosen = app.jobs.chosen == Some(job.id);
        let look = app.jobs.looks.get(&job.id);
        wanted = row(ui, job, look, chosen, words, colours).or(wanted);
        ui.add_space(4.0);
    }
    if let Some(command) = wanted {
        app.want(Command::Job(command));
    }
}

/// The place to drop files on.
fn hint(app: &mut App, ui: &mut Ui, colours: &Colours) {
    let words = app.words;
    let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), 66.0), Sense::hover());
    dashed(ui, rect, colours.line.gamma_multiply(1.8));
    let inner = UiBuilder::new()
        .max_rect(rect.shrink(12.0))
        .layout(Layout::left_to_right(Align::Center));
    ui.scope_builder(inner, |ui| {
        ui.spacing_mut().item_spacing.x = 5.0;
        ui.add_space(8.0);
        ui.label(RichText::new(words.render_hint).color(colours.dim));
        if ui
            .link(RichText::new(words.choose_files).color(colours.accent))
            .clicked()
        {
            app.want(Command::Pick(Pick::Jobs));
        }
        ui.label(RichText::new(words.render_hint_end).color(colours.dim));
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            if ui.button(words.add_stage).clicked() {
                app.want(Command::Job(JobCommand::AddStage));
            }
        });
    });
}

fn row(
    ui: &mut Ui,
    job: &RenderJob,
    look: Option<&Look>,
    chosen: bool,
    words: &Words,
    colours: &Colours,
) -> Option<JobCommand> {
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), ROW), Sense::click());
    let name = format!("{} + {}", photo_name(job), driver_name(job, words));
    response.widget_info(|| WidgetInfo::selected(Role::Button, true, chosen, &name));
    let edge = if chosen { colours.accent } else { colours.line };
    ui.painter().rect(
        rect,
        theme::CARD_RADIUS,
        colours.panel,
        Stroke::new(1.0, edge),
        eframe::egui::StrokeKind::Inside,
    );
    let middle = rect.center().y;
    let square = |x: f32| Rect::from_center_size(pos2(x, middle), Vec2::splat(60.0));
    thumb(
        ui,
        square(rect.left() + 46.0),
        look.and_then(|look| look.photo.as_ref()),
        ICON_IMAGE,
        colours,
    );
    paint_icon(
        ui,
        pos2(rect.left() + 98.0, middle),
        ICON_ARROW_BACK,
        16.0,
        colours.dim,
    );
    thumb(
        ui,
        square(rect.left() + 150.0),
        look.and_then(|look| look.driver.as_ref()),
        ICON_MOVIE,
        colours,
    );

    let mut wanted = response.clicked().then_some(JobCommand::Choose(job.id));
    let body = Rect::from_min_max(
        pos2(rect.left() + 196.0, rect.top() + 10.0),
        rect.max - vec2(16.0, 10.0),
    );
    let inner = UiBuilder::new()
        .max_rect(body)
        .layout(Layout::right_to_left(Align::Center));
    ui.scope_builder(inner, |ui| {
        let mut button = |ui: &mut Ui, text: &str, command: JobCommand| {
            if ui.button(text).clicked() {
                wanted = Some(command);
            }
        };
        match &job.state {
            State::Running(_) => button(ui, words.cancel, JobCommand::Cancel(job.id)),
            State::Waiting => button(ui, words.remove, JobCommand::Remove(job.id)),
            State::Failed(_) | State::Cancelled => {
                button(ui, words.remove, JobCommand::Remove(job.id));
                button(ui, words.retry, JobCommand::Retry(job.id));
            }
            State::Done { outputs, .. } => {
                button(ui, words.remove, JobCommand::Remove(job.id));
                if let Some(output) = outputs.first() {
                    button(ui, words.show_in_folder, JobCommand::Reveal(output.clone()));
                    button(ui, words.open, JobCommand::Open(output.clone()));
                }
            }
        }
        let width = ui.available_width() - 8.0;
        ui.allocate_ui_with_layout(
            vec2(width, ui.available_height()),
            Layout::top_down(Align::Min),
            |ui| {
                ui.add_space(8.0);
                ui.add(
                    eframe::egui::Label::new(RichText::new(&name).strong().color(colours.text))
                        .truncate(),
                );
                let (text, colour) = state(job, look, words, colours);
                ui.add(
                    eframe::egui::Label::new(RichText::new(text).size(12.0).color(colour))
                        .truncate(),
                );
                if let State::Running(step) = &job.state {
                    progress(ui, width - 12.0, step.way().unwrap_or(0.0), colours.accent);
                }
            },
        );
    });
    if let State::Failed(why) = &job.state {
        response.on_hover_text(why);
    }
    wanted
}

fn state(
    job: &RenderJob,
    look: Option<&Look>,
    words: &Words,
    colours: &Colours,
) -> (String, eframe::egui::Color32) {
    match &job.state {
        State::Waiting => {
            let frames = look.and_then(|look| look.frames);
            let frames = frames.map_or(String::new(), |(count, _)| {
                format!(" · {count} {}", words.frames)
            });
            let ratio = format!("{} {:.2}", words.ratio.to_lowercase(), job.blend.ratio);
            (
                format!("{}{frames} · {ratio}", words.waiting_job),
                colours.dim,
            )
        }
        State::Running(step) => {
            let of = step
                .total
                .map_or(String::new(), |total| format!(" {} {total}", words.of));
            let left = step.left().map_or(String::new(), |left| {
                format!(" · {left:.0} s {}", words.left)
            });
            let text = format!(
                "{} {}{of} · {:.1} {}{left}",
                words.frame, step.done, step.fps, words.fps
            );
            (text, colours.dim)
        }
        State::Done {
            outputs,
            frames,
            seconds,
        } => {
            let file = outputs
                .first()
                .map_or(String::new(), |path| path.display().to_string());
            let text = format!(
                "{} · {frames} {}, {seconds:.0} s · {file}",
                words.done_job, words.frames
            );
            (text, colours.good)
        }
        State::Failed(why) => (why.clone(), colours.bad),
        State::Cancelled => (words.cancelled.to_owned(), colours.dim),
    }
}

/// The chosen job: one frame of its result, a slider over the clip, its settings.
fn preview(app: &mut App, ui: &mut Ui, colours: &Colours) {
    let words = app.words;
    ui.label(RichText::new(words.preview).strong());
    ui.add_space(4.0);
    let waiting = app.jobs.queue.waiting();
    let foot = 56.0;
    let height = (ui.available_height() - 250.0 - foot).max(120.0);
    let (area, _) = ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::hover());
    let shown = matches!(app.jobs.shown, Some(Ok(_)));
    match app.jobs.preview.texture().filter(|_| shown) {
        Some((id, size)) => {
            let rect = fit(size, area);
            Image::new(SizedTexture::new(id, rect.size()))
                .corner_radius(theme::CARD_RADIUS)
                .paint_at(ui, rect);
        }
        None => {
            ui.painter()
                .rect_filled(area, theme::CARD_RADIUS, colours.ground);
            let text = match &app.jobs.shown {
                Some(Err(why)) => why.as_str(),
                _ if app.jobs.asked => words.preview_coming,
                _ => words.nothing_yet,
            };
            let inner = UiBuilder::new().max_rect(area.shrink(16.0));
            ui.scope_builder(inner, |ui| {
                ui.centered_and_justified(|ui| ui.label(RichText::new(text).color(colours.dim)));
            });
        }
    }
    if let Some(job) = app.jobs.chosen().cloned() {
        let frames = app.jobs.looks.get(&job.id).and_then(|look| look.frames);
        if let Some((count, fps)) = frames.filter(|(count, _)| *count > 1) {
            let last = count.saturating_sub(1);
            let time = |frame: u64| {
                let seconds = frame as f64 / fps.max(1.0);
                format!("{:02}:{:04.1}", (seconds / 60.0) as u64, seconds % 60.0)
            };
            ui.horizontal(|ui| {
                ui.label(time(app.jobs.frame));
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    ui.label(time(last));
                    ui.label(
                        RichText::new(format!("{} {}", words.frame, app.jobs.frame))
                            .color(colours.dim),
                    );
                });
            });
            let mut way = app.jobs.frame as f32 / last as f32;
            let before = way;
            rail(
                ui,
                ui.available_width(),
                &mut way,
                0.0..=1.0,
                colours,
                words.frame,
            );
            if way != before {
                let frame = (f64::from(way) * last as f64).round() as u64;
                app.want(Command::Job(JobCommand::Seek(frame)));
            }
        }
        let (mut blend, mut motion) = (job.blend, job.motion);
        let knob = |name, tip, range, usual| knob(words, name, tip, range, usual);
        let mut changed =
            knob(words.ratio, words.ratio_tip, 0.1..=1.0, 0.4).show(ui, &mut blend.ratio);
        changed |= knob(words.detail, words.detail_tip, 0.0..=1.0, 0.5).show(ui, &mut blend.detail);
        changed |= knob(words.scale, words.scale_tip, 0.0..=2.0, 1.0).show(ui, &mut motion.scale);
        if changed {
            app.want(Command::Job(JobCommand::Tune(job.id, blend, motion)));
        }
    }
    ui.with_layout(Layout::bottom_up(Align::Center), |ui| {
        let text = format!("{} ({waiting})", words.render_waiting);
        if primary(ui, &text, waiting > 0 && !app.jobs.queue.is_running()).clicked() {
            app.want(Command::Job(JobCommand::Go));
        }
    });
}

fn thumb(
    ui: &Ui,
    rect: Rect,
    texture: Option<&TextureHandle>,
    icon: egui_material_icons::MaterialIcon,
    colours: &Colours,
) {
    match texture {
        Some(texture) => {
            // The middle of it, as a square.
            let size = texture.size_vec2();
            let part = Vec2::splat(size.min_elem()) / size;
            let uv = Rect::from_center_size(pos2(0.5, 0.5), part);
            Image::new(texture)
                .uv(uv)
                .corner_radius(theme::RADIUS)
                .paint_at(ui, rect);
        }
        None => {
            ui.painter().rect_filled(rect, theme::RADIUS, colours.line);
            paint_icon(ui, rect.center(), icon, 22.0, colours.dim);
        }
    }
}

fn photo_name(job: &RenderJob) -> String {
    match &job.photo {
        PhotoOrigin::Painting(name) => name.clone(),
        PhotoOrigin::File(path) => path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    }
}

fn driver_name(job: &RenderJob, words: &Words) -> String {
    match &job.driver {
        Driver::Clip(path) | Driver::Take(path) => path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        _ => words.demo_driver.to_owned(),
    }
}
