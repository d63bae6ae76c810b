//! Colours, measures and fonts of the window: nothing else names a colour or a size twice.

use eframe::egui::{
    self, Color32, Context, CornerRadius, FontFamily, FontId, Stroke, TextStyle, Visuals,
};

use crate::settings;

/// Colours of one theme.
#[derive(Clone, Copy, Debug)]
pub(super) struct Colours {
    /// Behind the picture.
    pub(super) ground: Color32,
    pub(super) panel: Color32,
    /// Hairlines, rails, quiet buttons.
    pub(super) line: Color32,
    pub(super) text: Color32,
    pub(super) dim: Color32,
    pub(super) accent: Color32,
    /// Text on the accent.
    pub(super) on_accent: Color32,
    pub(super) good: Color32,
    /// Recording, and errors.
    pub(super) bad: Color32,
    /// Of sliders and toggles.
    pub(super) handle: Color32,
    pub(super) handle_edge: Color32,
}

const DARK: Colours = Colours {
    ground: Color32::from_rgb(0x0f, 0x10, 0x12),
    panel: Color32::from_rgb(0x17, 0x18, 0x1b),
    line: Color32::from_rgb(0x26, 0x28, 0x2d),
    text: Color32::from_rgb(0xe8, 0xe6, 0xe1),
    dim: Color32::from_rgb(0x8d, 0x90, 0x97),
    accent: Color32::from_rgb(0xf0, 0xa1, 0x5a),
    on_accent: Color32::from_rgb(0x1c, 0x12, 0x08),
    good: Color32::from_rgb(0x7c, 0xc4, 0x8a),
    bad: Color32::from_rgb(0xe5, 0x53, 0x4b),
    handle: Color32::from_rgb(0xf4, 0xf2, 0xee),
    handle_edge: Color32::from_rgb(0x26, 0x28, 0x2d),
};

const LIGHT: Colours = Colours {
    ground: Color32::from_rgb(0xf4, 0xf3, 0xf0),
    panel: Color32::WHITE,
    line: Color32::from_rgb(0xe2, 0xe0, 0xdb),
    text: Color32::from_rgb(0x1c, 0x1d, 0x20),
    dim: Color32::from_rgb(0x6c, 0x6f, 0x76),
    accent: Color32::from_rgb(0xc2, 0x6a, 0x1b),
    on_accent: Color32::WHITE,
    good: Color32::from_rgb(0x2f, 0x7d, 0x42),
    bad: Color32::from_rgb(0xc2, 0x36, 0x2f),
    handle: Color32::WHITE,
    handle_edge: Color32::from_rgb(0xb9, 0xb6, 0xae),
};

/// What lies over the picture is the same in both themes: pictures are neither dark nor light.
pub(super) const OVER_PICTURE: Color32 = Color32::from_rgba_premultiplied(0x12, 0x13, 0x15, 0xd8);
/// Text over the picture.
pub(super) const ON_PICTURE: Color32 = DARK.text;
/// Quiet text over the picture.
pub(super) const DIM_ON_PICTURE: Color32 = Color32::from_rgb(0xa6, 0xa9, 0xb0);
/// What goes well, over the picture.
pub(super) const GOOD_ON_PICTURE: Color32 = DARK.good;
/// The mark of what is chosen or dragged, over the picture.
pub(super) const MARK: Color32 = DARK.accent;

/// Between parts of a panel, and around them.
pub(super) const PADDING: f32 = 16.0;
/// Corners of buttons.
pub(super) const RADIUS: u8 = 9;
/// Corners of cards.
pub(super) const CARD_RADIUS: u8 = 12;

pub(super) fn colours(ctx: &Context) -> Colours {
    if ctx.theme() == egui::Theme::Dark {
        DARK
    } else {
        LIGHT
    }
}

/// The heavier weight.
pub(super) fn strong_family() -> FontFamily {
    FontFamily::Name("strong".into())
}

/// Headings and names.
pub(super) fn strong(size: f32) -> FontId {
    FontId::new(size, strong_family())
}

/// Small capitals over a group.
pub(super) fn label_font() -> FontId {
    strong(11.0)
}

/// Gives the context its look in both themes, and chooses one.
pub(super) fn apply(ctx: &Context, theme: settings::Theme) {
    ctx.set_theme(match theme {
        settings::Theme::Dark => egui::Theme::Dark,
        settings::Theme::Light => egui::Theme::Light,
    });
    for (theme, base, colours) in [
        (egui::Theme::Dark, Visuals::dark(), DARK),
        (egui::Theme::Light, Visuals::light(), LIGHT),
    ] {
        ctx.set_visuals_of(theme, visuals(base, colours));
    }
    ctx.all_styles_mut(|style| {
        for (text, size) in [
            (TextStyle::Body, 13.0),
            (TextStyle::Button, 13.0),
            (TextStyle::Small, 11.0),
            (TextStyle::Monospace, 12.0),
        ] {
            if let Some(font) = style.text_styles.get_mut(&text) {
                font.size = size;
            }
        }
        style.text_styles.insert(TextStyle::Heading, strong(20.0));
        style.spacing.item_spacing = egui::vec2(8.0, 8.0);
        style.spacing.button_padding = egui::vec2(12.0, 6.0);
        style.spacing.interact_size.y = 28.0;
        style.spacing.tooltip_width = 280.0;
        style.interaction.tooltip_delay = 0.4;
        style.interaction.selectable_labels = false;
    });
}

fn visuals(mut visuals: Visuals, colours: Colours) -> Visuals {
    let corner = CornerRadius::same(RADIUS);
    visuals.panel_fill = colours.panel;
    visuals.window_fill = colours.panel;
    visuals.window_stroke = Stroke::new(1.0, colours.line);
    visuals.window_corner_radius = CornerRadius::same(CARD_RADIUS);
    visuals.menu_corner_radius = corner;
    visuals.extreme_bg_color = colours.ground;
    visuals.faint_bg_color = colours.ground;
    visuals.hyperlink_color = colours.accent;
    visuals.error_fg_color = colours.bad;
    visuals.warn_fg_color = colours.accent;
    visuals.weak_text_color = Some(colours.dim);
    visuals.selection.bg_fill = colours.accent.gamma_multiply(0.35);
    visuals.selection.stroke = Stroke::new(1.0, colours.accent);
    let widgets = &mut visuals.widgets;
    widgets.noninteractive.bg_stroke = Stroke::new(1.0, colours.line);
    widgets.noninteractive.fg_stroke = Stroke::new(1.0, colours.text);
    widgets.noninteractive.corner_radius = corner;
    for (state, fill, stroke) in [
        (&mut widgets.inactive, colours.panel, colours.line),
        (&mut widgets.hovered, colours.line, colours.line),
        (&mut widgets.active, colours.line, colours.accent),
        (&mut widgets.open, colours.line, colours.line),
    ] {
        state.weak_bg_fill = fill;
        state.bg_fill = colours.line;
        state.bg_stroke = Stroke::new(1.0, stroke);
        state.fg_stroke = Stroke::new(1.0, colours.text);
        state.corner_radius = corner;
        state.expansion = 0.0;
    }
    visuals
}
