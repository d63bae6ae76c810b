//! Fonts: the program's own for Latin, the icons, and a font of the system for Chinese.
//!
//! A Chinese font has 15 MB and more, so none is embedded: the system's fonts are searched through their
//! tables. That takes a moment and is done once, when Chinese characters are to be shown.

use eframe::egui::epaint::text::{FontInsert, FontPriority, InsertFontFamily};
use eframe::egui::{Context, FontData, FontFamily};

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

/// Adds the icons.
pub(super) fn icons(ctx: &Context) {
    ctx.add_font(egui_material_icons::font_insert());
}

/// Adds a font with Chinese characters; false when the system has none.
pub(super) fn chinese(ctx: &Context) -> bool {
    let Some((bytes, index)) = find() else {
        return false;
    };
    let mut data = FontData::from_owned(bytes);
    data.index = index;
    ctx.add_font(FontInsert::new(
        "chinese",
        data,
        [FontFamily::Proportional, FontFamily::Monospace]
            .map(|family| InsertFontFamily {
                family,
                priority: FontPriority::Lowest,
            })
            .to_vec(),
    ));
    true
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
