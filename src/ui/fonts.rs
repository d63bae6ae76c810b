//! Fonts: the program's own for Latin, the icons, and a font of the system for Chinese.
//!
//! A Chinese font has 15 MB and more, so none is embedded: the system's fonts are searched through their
//! tables. That takes a moment and is done once, when Chinese characters are to be shown.

use std::sync::Arc;

use eframe::egui::epaint::text::{FontInsert, FontPriority, InsertFontFamily};
use eframe::egui::{Context, FontData, FontDefinitions, FontFamily};

use super::theme;

const REGULAR: &[u8] = include_bytes!("../../assets/fonts/Inter-Regular.ttf");
const STRONG: &[u8] = include_bytes!("../../assets/fonts/Inter-SemiBold.ttf");

/// Families that have simplified Chinese, the calmest first.
const CHINESE: &[&str] = &[
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "SimHei",
];

/// Sets the program's own fonts, and the icons.
pub(super) fn own(ctx: &Context) {
    let mut fonts = FontDefinitions::default();
    // What Inter's Latin lacks is egui's, in both weights.
    let others = fonts.families.entry(FontFamily::Proportional).or_default();
    let with = |first: &str| [&[first.to_owned()][..], &others[..]].concat();
    let families = [
        (FontFamily::Proportional, with("Inter")),
        (theme::strong_family(), with("Inter SemiBold")),
    ];
    fonts.families.extend(families);
    for (name, bytes) in [("Inter", REGULAR), ("Inter SemiBold", STRONG)] {
        let data = Arc::new(FontData::from_static(bytes));
        fonts.font_data.insert(name.to_owned(), data);
    }
    ctx.set_fonts(fonts);
    ctx.add_font(egui_material_icons::font_insert());
}

/// Adds a font with Chinese characters; false when the system has none.
pub(super) fn chinese(ctx: &Context) -> bool {
    let found = find();
    let there = found.is_some();
    if let Some(font) = found {
        add_chinese(ctx, font);
    }
    there
}

/// Adds a font, the bytes and number within them, for what the others lack.
pub(super) fn add_chinese(ctx: &Context, (bytes, index): (Vec<u8>, u32)) {
    let mut data = FontData::from_owned(bytes);
    data.index = index;
    ctx.add_font(FontInsert::new(
        "chinese",
        data,
        [
            FontFamily::Proportional,
            FontFamily::Monospace,
            theme::strong_family(),
        ]
        .map(|family| InsertFontFamily {
            family,
            priority: FontPriority::Lowest,
        })
        .to_vec(),
    ));
}

/// The font of that family, if the system has it.
#[cfg(test)]
pub(super) fn named(family: &str) -> Option<(Vec<u8>, u32)> {
    let mut fonts = fontdb::Database::new();
    fonts.load_system_fonts();
    let id = fonts.query(&fontdb::Query {
        families: &[fontdb::Family::Name(family)],
        ..fontdb::Query::default()
    })?;
    fonts.with_face_data(id, |bytes, index| (bytes.to_vec(), index))
}

fn find() -> Option<(Vec<u8>, u32)> {
    let mut fonts = fontdb::Database::new();
    fonts.load_system_fonts();
    let named = CHINESE.iter().find_map(|family| {
        fonts.query(&fontdb::Query {
            families: &[fontdb::Family::Name(family)],
            ..fontdb::Query::default()
        })
    });
    let id = named.or_else(|| {
        // None of the known: any face whose name says Chinese, Japanese or Korean.
        let cjk = |face: &&fontdb::FaceInfo| {
            let says = |name: &str| {
                ["CJK", "Han Sans", "Hei", "Song", "Ming"]
                    .iter()
                    .any(|part| name.contains(part))
            };
            face.families.iter().any(|(name, _)| says(name))
        };
        fonts.faces().find(cjk).map(|face| face.id)
    })?;
    fonts.with_face_data(id, |bytes, index| (bytes.to_vec(), index))
}
