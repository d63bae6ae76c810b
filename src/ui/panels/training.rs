//! The Train place: a run of `mimic train`, by a plot for each curve and its latest grid of pictures.

use eframe::egui::{
    Align2, Color32, FontId, Image, Label, Painter, Pos2, Rect, RichText, Role, Sense, Shape,
    Stroke, StrokeKind, Ui, WidgetInfo,
    load::SizedTexture,
    pos2,
    text::{LayoutJob, TextWrapping},
    vec2,
};

use crate::ui::app::App;
use crate::ui::command::Command;
use crate::ui::dialogs::Pick;
use crate::ui::theme::{self, Colours, colours};
use crate::ui::training::{Curve, Point, Trouble};
use crate::ui::words::{Words, brief};

/// How a run is started.
const START: &str = "mimic train -c FILE --data DIR --output RUN";
/// Wider, curves would be far from their numbers.
const WIDEST: f32 = 1160.0;
/// A plot, at least so wide.
const PLOT: [f32; 2] = [270.0, 132.0];
/// Plots beside each other.
const MOST_COLUMNS: usize = 3;
/// Between plots.
const GAP: f32 = 10.0;

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let colours = colours(ui.ctx());
    super::page(ui, |ui| {
        ui.set_max_width(ui.available_width().min(WIDEST));
        ui.heading(app.words.train);
        ui.add_space(4.0);
        folder(app, ui, &colours);
        let Some(seen) = &app.training.seen else {
            return;
        };
        if let Some(trouble) = &seen.trouble {
            say(ui, trouble, app.words, &colours);
        }
        ui.add_space(4.0);
        plots(ui, &seen.curves, app.words, &colours);
        grid(app, ui, &colours);
    });
}

/// Which run is shown, or how to have one, and the button to choose another.
fn folder(app: &mut App, ui: &mut Ui, colours: &Colours) {
    let words = app.words;
    if app.settings.run.is_none() {
        ui.label(RichText::new(words.train_hint).color(colours.dim));
        ui.horizontal_wrapped(|ui| {
            ui.label(RichText::new(words.train_start).color(colours.dim));
            let start = RichText::new(START).monospace().color(colours.text);
            ui.add(Label::new(start).selectable(true));
        });
    }
    ui.horizontal(|ui| {
        if ui.button(words.choose_run).clicked() {
            app.want(Command::Pick(Pick::Run));
        }
        if let Some(run) = &app.settings.run {
            let path = RichText::new(brief(run)).color(colours.dim);
            ui.add(Label::new(path).truncate());
        }
    });
}

fn say(ui: &mut Ui, trouble: &Trouble, words: &Words, colours: &Colours) {
    let (text, colour) = match trouble {
        Trouble::NoRun => (words.no_run.to_owned(), colours.dim),
        Trouble::Gone(why) => (format!("{} {why}", words.run_gone), colours.bad),
        Trouble::Unreadable(why) => (format!("{} {why}", words.run_unreadable), colours.bad),
    };
    ui.label(RichText::new(text).color(colour));
}

fn plots(ui: &mut Ui, curves: &[Curve], words: &Words, colours: &Colours) {
    let [least, height] = PLOT;
    let room = ui.available_width();
    let columns = ((room / least) as usize).clamp(1, MOST_COLUMNS);
    let width = (room - GAP * (columns - 1) as f32) / columns as f32;
    ui.spacing_mut().item_spacing = vec2(GAP, GAP);
    for row in curves.chunks(columns) {
        ui.horizontal(|ui| {
            for curve in row {
                let (rect, response) = ui.allocate_exact_size(vec2(width, height), Sense::hover());
                let plot = Plot::of(curve, rect);
                let pointer = response.hover_pos();
                let shown = pointer.and_then(|at| plot.nearest(at.x));
                response.widget_info(|| {
                    let name = plot.name(shown, words);
                    WidgetInfo::labeled(Role::Image, true, name)
                });
                if ui.is_rect_visible(rect) {
                    plot.paint(ui, shown, words, colours);
                }
            }
        });
    }
}

/// Fitted to the width, and not much larger than it is.
fn grid(app: &App, ui: &mut Ui, colours: &Colours) {
    let (Some(name), Some((id, size))) = (&app.training.grid_name, app.training.grid.texture())
    else {
        return;
    };
    let zoom = (ui.available_width() / size.x).min(2.0);
    let picture = Image::new(SizedTexture::new(id, size * zoom));
    ui.add(picture.alt_text(format!("{} {name}", app.words.latest_grid)));
    ui.label(RichText::new(name).size(12.0).color(colours.dim));
}

/// A curve and where it is drawn.
struct Plot<'a> {
    curve: &'a Curve,
    card: Rect,
    /// The line's part of the card.
    area: Rect,
    points: Vec<Point>,
    low: f32,
    high: f32,
}

impl<'a> Plot<'a> {
    fn of(curve: &'a Curve, card: Rect) -> Self {
        let points = curve.points();
        let values = || points.iter().map(|point| point.value);
        Self {
            curve,
            card,
            area: Rect::from_min_max(card.min + vec2(66.0, 40.0), card.max - vec2(16.0, 30.0)),
            low: values().fold(f32::INFINITY, f32::min),
            high: values().fold(f32::NEG_INFINITY, f32::max),
            points,
        }
    }

    /// What a screen reader says: the point under the pointer, or the latest.
    fn name(&self, shown: Option<Point>, words: &Words) -> String {
        let Point { step, value } = shown.unwrap_or(self.curve.latest);
        let (low, high) = (number(self.low), number(self.high));
        let (tag, value) = (&self.curve.tag, number(value));
        format!("{tag}: {value}, {} {step}, {low} – {high}", words.step)
    }

    fn paint(&self, ui: &Ui, shown: Option<Point>, words: &Words, colours: &Colours) {
        let painter = ui.painter_at(self.card.intersect(ui.clip_rect()));
        let edge = Stroke::new(1.0, colours.line);
        let card = self.card.shrink(0.5);
        painter.rect(
            card,
            theme::CARD_RADIUS,
            colours.panel,
            edge,
            StrokeKind::Inside,
        );
        let ground = [self.area.left_bottom(), self.area.right_bottom()];
        painter.line_segment(ground, edge);
        self.texts(&painter, shown, words, colours);
        let line: Vec<Pos2> = self.points.iter().map(|point| self.at(*point)).collect();
        if let [alone] = line.as_slice() {
            painter.circle_filled(*alone, 2.5, colours.accent);
        }
        painter.add(Shape::line(line, Stroke::new(1.5, colours.accent)));
        if let Some(point) = shown {
            let at = self.at(point);
            painter.vline(at.x, self.area.y_range(), edge);
            painter.circle_filled(at, 3.5, colours.text);
        }
    }

    /// Its name, the value and step that are shown, and between which values it lies.
    fn texts(&self, painter: &Painter, shown: Option<Point>, words: &Words, colours: &Colours) {
        let small = FontId::proportional(11.0);
        let text = |at: Pos2, align: Align2, text: String, font: FontId, colour: Color32| {
            painter.text(at, align, text, font, colour)
        };
        let corner = self.card.right_top() + vec2(-16.0, 12.0);
        let Point { step, value } = shown.unwrap_or(self.curve.latest);
        let colour = if shown.is_some() {
            colours.text
        } else {
            colours.accent
        };
        let value = number(value);
        let value = text(
            corner,
            Align2::RIGHT_TOP,
            value,
            theme::strong(13.0),
            colour,
        );
        let left = self.card.left() + 16.0;
        let mut tag =
            LayoutJob::simple_singleline(self.curve.tag.clone(), theme::strong(13.0), colours.text);
        tag.wrap = TextWrapping::truncate_at_width(value.left() - 8.0 - left);
        let tag = painter.layout_job(tag);
        painter.galley(pos2(left, corner.y), tag, colours.text);
        let step = format!("{} {step}", words.step);
        let below = self.area.right_bottom() + vec2(0.0, 6.0);
        let dim = if shown.is_some() {
            colours.text
        } else {
            colours.dim
        };
        text(below, Align2::RIGHT_TOP, step, small.clone(), dim);
        if self.points.is_empty() {
            return;
        }
        for (value, y) in [(self.high, self.area.top()), (self.low, self.area.bottom())] {
            let at = pos2(self.area.left() - 8.0, y);
            let value = number(value);
            text(at, Align2::RIGHT_CENTER, value, small.clone(), colours.dim);
        }
    }

    /// First and last step.
    fn steps(&self) -> (u64, u64) {
        let step = |point: Option<&Point>| point.map_or(0, |point| point.step);
        (step(self.points.first()), step(self.points.last()))
    }

    /// The highest value is at the top, the lowest at the bottom; a single one in the middle.
    fn at(&self, point: Point) -> Pos2 {
        let part = |value: f64, from: f64, to: f64| {
            if to > from {
                ((value - from) / (to - from)) as f32
            } else {
                0.5
            }
        };
        let (first, last) = self.steps();
        let x = part(point.step as f64, first as f64, last as f64);
        let y = part(point.value.into(), self.low.into(), self.high.into());
        let area = self.area;
        pos2(
            area.left() + area.width() * x,
            area.bottom() - area.height() * y,
        )
    }

    fn nearest(&self, x: f32) -> Option<Point> {
        let distance = |point: &&Point| (self.at(**point).x - x).abs();
        let points = self.points.iter();
        let nearest = points.min_by(|a, b| distance(a).total_cmp(&distance(b)));
        nearest.copied()
    }
}

/// Some four digits of it.
fn number(value: f32) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.2e}"),
        ..1.0 => format!("{value:.4}"),
        ..100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.041_812, "0.0418"),
            (-3.25, "-3.25"),
            (57.431, "57.43"),
            (2400.4, "2400"),
            (1e-6, "1.00e-6"),
            (f32::MAX, "3.40e38"),
            (f32::NAN, "NaN"),
            (f32::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn points_lie_inside_whatever_they_are_and_are_found_again() {
        let card = Rect::from_min_size(pos2(10.0, 20.0), PLOT.into());
        let far = [(1, f32::MIN), (2, 0.0), (u64::MAX, f32::MAX)];
        for values in [&[][..], &[(7, 3.0)], &[(1, 2.0), (2, 2.0)], &far] {
            let mut curve = Curve::new("loss".to_owned());
            for (step, value) in values {
                curve.push(*step, *value);
            }
            let plot = Plot::of(&curve, card);
            assert_eq!(plot.points.len(), values.len());
            assert_eq!(plot.nearest(0.0), plot.points.first().copied());
            for point in &plot.points {
                assert!(plot.area.contains(plot.at(*point)), "{point:?}");
            }
        }
        let mut curve = Curve::new("loss".to_owned());
        for step in 0..=100 {
            curve.push(step, 1.0);
        }
        let plot = Plot::of(&curve, card);
        let middle = plot.nearest(plot.area.center().x);
        assert_eq!(middle.map(|point| point.step), Some(50));
    }
}
