//! Why a camera gives no pictures, each in one sentence with what to do.

/// Why a camera gives no pictures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not, or no longer, there.
    #[error("{name} is not connected: plug it in, it will go on by itself")]
    Unplugged {
        /// The camera.
        name: String,
    },
    /// Somebody else has it.
    #[error("{name} is in use by another program: close that program, it will go on by itself")]
    Busy {
        /// The camera.
        name: String,
    },
    /// The system does not let mimic use it.
    #[error("{name} may not be used by mimic: {cure}")]
    Denied {
        /// The camera.
        name: String,
        /// What to do on this system.
        cure: &'static str,
    },
    /// It has no format that mimic reads.
    #[error(
        "{name} offers only {offered}, and mimic reads YUYV, NV12, MJPEG, RGB, BGR and GREY: choose another camera or another mode of it"
    )]
    Format {
        /// The camera.
        name: String,
        /// What it offers.
        offered: String,
    },
    /// What it sends is not what it says.
    #[error(
        "{name} sends broken pictures ({why}): unplug it and plug it in again, or choose another camera"
    )]
    Broken {
        /// The camera.
        name: String,
        /// What is wrong with them.
        why: String,
    },
    /// Anything else the driver says.
    #[error(
        "{name} does not start ({why}): unplug it and plug it in again, or choose another camera"
    )]
    Driver {
        /// The camera.
        name: String,
        /// What the driver said.
        why: String,
    },
}

impl Error {
    /// From the text of a library that has nothing else to tell them apart.
    pub(super) fn from_text(name: &str, text: &str) -> Self {
        let lower = text.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let name = name.to_owned();
        if says(&["busy", "in use", "0xc00d3704", "0xc00d3ea3"]) {
            Self::Busy { name }
        } else if says(&["denied", "permi", "authori", "0x80070005"]) {
            Self::Denied { name, cure: CURE }
        } else if says(&[
            "no such",
            "not found",
            "no device",
            "disconnect",
            "0xc00d3ea2",
        ]) {
            Self::Unplugged { name }
        } else {
            let why = crate::media::ffmpeg::one_line(text);
            Self::Driver { name, why }
        }
    }

    /// From the system's error numbers.
    #[cfg(target_os = "linux")]
    pub(super) fn from_io(name: &str, error: &std::io::Error) -> Self {
        let owned = name.to_owned();
        match error.raw_os_error() {
            Some(libc::EBUSY) => Self::Busy { name: owned },
            Some(libc::EACCES | libc::EPERM) => Self::Denied {
                name: owned,
                cure: CURE,
            },
            Some(libc::ENODEV | libc::ENXIO | libc::ENOENT) => Self::Unplugged { name: owned },
            _ => Self::from_text(name, &crate::media::error::plain(error)),
        }
    }
}

/// How one gets leave to use a camera here.
const CURE: &str = if cfg!(target_os = "macos") {
    "allow it under System Settings, Privacy & Security, Camera, and start mimic again"
} else if cfg!(windows) {
    "allow it under Settings, Privacy & security, Camera"
} else {
    "run `sudo usermod -aG video $USER` and log in again"
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libraries_say_is_told_apart() {
        let of = |text: &str| Error::from_text("Cam", text);
        assert!(matches!(
            of("V4L2 Error: Device or resource busy (os error 16)"),
            Error::Busy { .. }
        ));
        assert!(matches!(
            of("Permission denied (os error 13)"),
            Error::Denied { .. }
        ));
        assert!(matches!(
            of("Could not open: No such file or directory"),
            Error::Unplugged { .. }
        ));
        assert!(matches!(of("something else"), Error::Driver { .. }));
        let sentence = of("two\nlines.").to_string();
        assert!(
            sentence.contains("two lines") && !sentence.contains('\n'),
            "{sentence}"
        );
    }
}
