//! The Render place: the jobs at the left, the chosen one's preview and settings at the right.

use std::path::Path;

use eframe::egui::{
    Align, Align2, FontId, Frame, Image, Label, Layout, Margin, Rect, RichText, Role, Sense,
    Stroke, TextureHandle, Ui, UiBuilder, Vec2, WidgetInfo, pos2, text::LayoutJob, vec2,
};
use egui_material_icons::icons::{
    ICON_ARROW_BACK, ICON_DELETE, ICON_GESTURE, ICON_IMAGE, ICON_MOVIE, ICON_VIDEO_FILE,
};

use super::job;
use super::reel::dashed;
use crate::pipeline::queue::{RenderJob, State};
use crate::settings::{Driver, PhotoOrigin};
use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::dialogs::Pick;
use crate::ui::jobs::{JobCommand, Look};
use crate::ui::theme::{self, Colours, colours};
use crate::ui::widgets::{icon_button, paint_icon, progress};
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
        .show(ui, |ui| job::show(app, ui, &colours));
    super::page(ui, |ui| list(app, ui, &colours));
}

fn list(app: &mut App, ui: &mut Ui, colours: &Colours) {
    let words = app.words;
    ui.heading(words.renders);
    ui.add_space(4.0);
    hint(app, ui, colours);
    ui.add_space(4.0);
    if app.jobs.queue.jobs().is_empty() {
        empty(ui, words, colours);
    }
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

/// The place to drop files on; it says what waits for its other half.
fn hint(app: &mut App, ui: &mut Ui, colours: &Colours) {
    let words = app.words;
    let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), 66.0), Sense::hover());
    dashed(ui, rect, colours.line.gamma_multiply(1.8));
    let inner = UiBuilder::new()
        .max_rect(rect.shrink2(vec2(20.0, 12.0)))
        .layout(Layout::right_to_left(Align::Center));
    // A scope would move what comes next up to its own end.
    let ui = &mut ui.new_child(inner);
    ui.spacing_mut().item_spacing.x = 5.0;
    if ui.button(words.add_stage).clicked() {
        app.want(Command::Job(JobCommand::AddStage));
    }
    ui.add_space(12.0);
    let left = Layout::left_to_right(Align::Center);
    ui.with_layout(left, |ui| match app.jobs.half() {
        Some((files, has_photo)) => {
            let waits = if has_photo {
                words.waits_for_driver
            } else {
                words.waits_for_photo
            };
            let rest = ui.available_width() - 130.0;
            let text = RichText::new(format!("{files} {waits}.")).color(colours.accent);
            let size = vec2(rest.max(60.0), 20.0);
            ui.allocate_ui(size, |ui| ui.add(Label::new(text).truncate()));
            if ui.link(words.choose_files).clicked() {
                app.want(Command::Pick(Pick::Jobs));
            }
            ui.label(RichText::new("·").color(colours.dim));
            if ui.link(words.forget).clicked() {
                app.want(Command::Job(JobCommand::ForgetHalf));
            }
        }
        None => {
            ui.label(RichText::new(words.render_hint).color(colours.dim));
            if ui.link(words.choose_files).clicked() {
                app.want(Command::Pick(Pick::Jobs));
            }
            // Where there is room for it.
            if rect.width() > 720.0 {
                ui.label(RichText::new(words.render_hint_end).color(colours.dim));
            }
        }
    });
}

fn empty(ui: &mut Ui, words: &Words, colours: &Colours) {
    let area = ui.available_rect_before_wrap();
    let middle = pos2(area.center().x, area.top() + 120.0);
    paint_icon(ui, middle, ICON_VIDEO_FILE, 40.0, colours.line);
    let at = middle + vec2(0.0, 40.0);
    let font = FontId::proportional(13.0);
    ui.painter()
        .text(at, Align2::CENTER_CENTER, words.no_jobs, font, colours.dim);
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
    let name = format!("{} + {}", photo_name(job), driver_name(&job.driver, words));
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
        match job.driver {
            Driver::Take(_) => ICON_GESTURE,
            _ => ICON_MOVIE,
        },
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
    let ui = &mut ui.new_child(inner);
    if !matches!(job.state, State::Running(_))
        && icon_button(ui, ICON_DELETE, words.remove).clicked()
    {
        wanted = Some(JobCommand::Remove(job.id));
    }
    let mut button = |ui: &mut Ui, text: &str, command: JobCommand| {
        if ui.button(text).clicked() {
            wanted = Some(command);
        }
    };
    match &job.state {
        State::Running(_) => button(ui, words.cancel, JobCommand::Cancel(job.id)),
        State::Waiting => {}
        State::Failed(_) | State::Cancelled => {
            button(ui, words.retry, JobCommand::Retry(job.id));
        }
        State::Done { outputs, .. } => {
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
                Label::new(
                    RichText::new(&name)
                        .font(theme::strong(13.0))
                        .color(colours.text),
                )
                .truncate(),
            );
            let (text, colour) = state(job, look, words, colours);
            let font = FontId::proportional(12.0);
            let mut text = LayoutJob::simple(text, font, colour, width);
            text.wrap.max_rows = 2;
            ui.label(text);
            if let State::Running(step) = &job.state {
                progress(ui, width - 12.0, step.way().unwrap_or(0.0), colours.accent);
            }
        },
    );
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
                format!(" · {} {}", duration(left, words), words.left)
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
            let file = outputs.first().map_or(String::new(), |path| {
                name_of(path.file_name().map(Path::new))
            });
            let text = format!(
                "{} · {frames} {}, {} · {file}",
                words.done_job,
                words.frames,
                duration(*seconds, words)
            );
            (text, colours.good)
        }
        State::Failed(why) => (why.clone(), colours.bad),
        State::Cancelled => (words.cancelled.to_owned(), colours.dim),
    }
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

fn duration(seconds: f64, words: &Words) -> String {
    match seconds {
        seconds if seconds < 100.0 => format!("{seconds:.0} {}", words.seconds),
        seconds => format!(
            "{:.0}:{:02.0}",
            (seconds / 60.0).floor(),
            (seconds % 60.0).floor()
        ),
    }
}

fn photo_name(job: &RenderJob) -> String {
    match &job.photo {
        PhotoOrigin::Painting(name) => name.clone(),
        PhotoOrigin::File(path) => name_of(path.file_stem().map(Path::new)),
    }
}

pub(super) fn driver_name(driver: &Driver, words: &Words) -> String {
    match driver {
        Driver::Clip(path) | Driver::Take(path) => name_of(path.file_name().map(Path::new)),
        Driver::Camera(name) => name.clone(),
        Driver::Demo => words.demo_driver.to_owned(),
    }
}

fn name_of(path: Option<&Path>) -> String {
    path.map_or(String::new(), |path| path.display().to_string())
}
