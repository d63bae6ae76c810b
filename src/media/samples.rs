//! What mimic brings to begin with: paintings, and a drawn driver. `assets/README.md` says whose they are.

use std::io::Write;

use image::RgbaImage;
use tempfile::NamedTempFile;

/// Names of the paintings, the first for the first start.
pub fn paintings() -> impl Iterator<Item = &'static str> {
    PAINTINGS.iter().map(|(name, _)| *name)
}

/// A painting's pixels; None for a name that is none.
pub fn painting(name: &str) -> Option<RgbaImage> {
    let picture = image::load_from_memory(painting_bytes(name)?).ok()?;
    Some(picture.to_rgba8())
}

/// A painting as a file, for what wants one; it is gone with the value.
///
/// # Errors
/// When there is no place for it.
pub fn painting_file(name: &str) -> std::io::Result<NamedTempFile> {
    let bytes = painting_bytes(name)
        .ok_or_else(|| std::io::Error::other(format!("mimic brings no painting called {name}")))?;
    file(bytes, ".jpg")
}

/// The drawn driver as a file that ffmpeg can open; it is gone with the value.
///
/// # Errors
/// When there is no place for it.
pub fn driver_file() -> std::io::Result<NamedTempFile> {
    file(include_bytes!("../../assets/driver.mp4"), ".mp4")
}

const PAINTINGS: &[(&str, &[u8])] = &[
    ("mona-lisa", include_bytes!("../../assets/mona-lisa.jpg")),
    (
        "girl-with-a-pearl-earring",
        include_bytes!("../../assets/girl-with-a-pearl-earring.jpg"),
    ),
    (
        "rembrandt-self-portrait",
        include_bytes!("../../assets/rembrandt-self-portrait.jpg"),
    ),
    (
        "american-gothic",
        include_bytes!("../../assets/american-gothic.jpg"),
    ),
    (
        "la-donna-velata",
        include_bytes!("../../assets/la-donna-velata.jpg"),
    ),
];

fn painting_bytes(name: &str) -> Option<&'static [u8]> {
    let found = PAINTINGS.iter().find(|(painting, _)| *painting == name);
    found.map(|(_, bytes)| *bytes)
}

fn file(bytes: &[u8], suffix: &str) -> std::io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix("mimic-")
        .suffix(suffix)
        .tempfile()?;
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_painting_opens_and_others_do_not() {
        for name in paintings() {
            assert!(painting(name).is_some_and(|p| p.width() > 300), "{name}");
        }
        assert!(painting("guernica").is_none() && painting_file("guernica").is_err());
    }
}
