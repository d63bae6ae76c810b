//! The chosen render job: one frame of its result, and its settings.

use eframe::egui::{
    Align, Align2, Button, FontId, Image, Layout, Popup, RichText, Role, ScrollArea, Sense, Ui,
    UiBuilder, WidgetInfo, load::SizedTexture, vec2,
};

use super::render::driver_name;
use super::stage::fit;
use super::tuning::{blending, enhancing, moving};
use crate::pipeline::queue::{RenderJob, State};
use crate::settings::Driver;
use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::dialogs::Pick;
use crate::ui::jobs::JobCommand;
use crate::ui::theme::{self, Colours};
use crate::ui::widgets::{group, menu_room, primary, rail};

/// The chosen job: one frame of its result, a slider over the clip, its settings.
pub(super) fn show(app: &mut App, ui: &mut Ui, colours: &Colours) {
    let words = app.words;
    ui.label(RichText::new(words.preview).font(theme::strong(13.0)));
    ui.add_space(4.0);
    let height = (ui.available_height() * 0.44).max(120.0);
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
                _ => words.needs_choice,
            };
            let inner = UiBuilder::new().max_rect(area.shrink(16.0));
            ui.scope_builder(inner, |ui| {
                ui.centered_and_justified(|ui| ui.label(RichText::new(text).color(colours.dim)));
            });
        }
    }
    let foot = 50.0;
    if let Some(job) = app.jobs.chosen().cloned() {
        if app.jobs.shown.is_none() && !app.jobs.asked {
            app.want(Command::Job(JobCommand::Seek(app.jobs.frame)));
        }
        seek(app, ui, &job, colours);
        ScrollArea::vertical()
            .auto_shrink([false, true])
            .max_height((ui.available_height() - foot).max(0.0))
            .show(ui, |ui| {
                // Room for the scroll bar, which would lie over the switches.
                ui.set_max_width(ui.available_width() - 8.0);
                ui.add_enabled_ui(!matches!(job.state, State::Running(_)), |ui| {
                    tune(app, ui, &job);
                });
            });
    }
    let waiting = app.jobs.queue.waiting();
    ui.with_layout(Layout::bottom_up(Align::Center), |ui| {
        let text = format!("{} ({waiting})", words.render_waiting);
        if primary(ui, &text, waiting > 0 && !app.jobs.queue.is_running()).clicked() {
            app.want(Command::Job(JobCommand::Go));
        }
    });
}

/// A slider over the clip.
fn seek(app: &mut App, ui: &mut Ui, job: &RenderJob, colours: &Colours) {
    let words = app.words;
    let frames = app.jobs.looks.get(&job.id).and_then(|look| look.frames);
    let Some((count, fps)) = frames.filter(|(count, _)| *count > 1) else {
        return;
    };
    let last = count - 1;
    let time = |frame: u64| {
        let seconds = frame as f64 / fps.max(1.0);
        format!("{:02}:{:04.1}", (seconds / 60.0) as u64, seconds % 60.0)
    };
    let (line, _) = ui.allocate_exact_size(vec2(ui.available_width(), 18.0), Sense::hover());
    let present = format!("{} {}", words.frame, app.jobs.frame);
    for (at, align, text, colour) in [
        (
            line.left_center(),
            Align2::LEFT_CENTER,
            time(app.jobs.frame),
            colours.text,
        ),
        (line.center(), Align2::CENTER_CENTER, present, colours.dim),
        (
            line.right_center(),
            Align2::RIGHT_CENTER,
            time(last),
            colours.text,
        ),
    ] {
        let font = FontId::proportional(12.0);
        ui.painter().text(at, align, text, font, colour);
    }
    let mut frame = app.jobs.frame as f32;
    let width = ui.available_width();
    rail(
        ui,
        width,
        &mut frame,
        0.0..=last as f32,
        colours,
        words.frame,
    );
    let frame = frame.round() as u64;
    if frame != app.jobs.frame {
        app.want(Command::Job(JobCommand::Seek(frame)));
    }
}

/// What drives the job, and the same settings as on the stage.
fn tune(app: &mut App, ui: &mut Ui, job: &RenderJob) {
    let words = app.words;
    group(ui, words.driver_group);
    let width = ui.available_width();
    let name = format!("{}: {}", words.driver, driver_name(&job.driver, words));
    let picker = Button::new(driver_name(&job.driver, words))
        .truncate()
        .min_size(vec2(width, 28.0));
    let picker = ui.add(picker);
    picker.widget_info(|| WidgetInfo::labeled(Role::Button, ui.is_enabled(), &name));
    // What drives on stage may drive here too, unless it is a camera.
    let mut drivers = vec![Driver::Demo];
    for driver in [&job.driver, &app.settings.driver] {
        if !matches!(driver, Driver::Camera(_)) && !drivers.contains(driver) {
            drivers.push(driver.clone());
        }
    }
    Popup::menu(&picker).show(|ui| {
        menu_room(ui);
        for driver in drivers {
            let chosen = driver == job.driver;
            if ui
                .selectable_label(chosen, driver_name(&driver, words))
                .clicked()
            {
                app.want(Command::Job(JobCommand::Drive(job.id, driver)));
            }
        }
        if ui.selectable_label(false, words.other_driver).clicked() {
            app.want(Command::Pick(Pick::JobDriver(job.id)));
        }
    });
    let (mut blend, mut motion, mut enhance) = (job.blend, job.motion, job.enhance.clone());
    let changed = blending(ui, words, &mut blend)
        | enhancing(app, ui, &mut enhance)
        | moving(ui, words, &mut motion);
    if changed {
        app.want(Command::Job(JobCommand::Tune(
            job.id, blend, motion, enhance,
        )));
    }
}
