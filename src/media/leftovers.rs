//! What a killed program leaves beside its results, and how it goes.
//!
//! A job's temporary file or folder is locked while it is being written. A lock ends with its process,
//! however that ends, and is seen from other machines where the folder is shared: what has the name and
//! no lock is nobody's, and the next job in that folder removes it. A live recording is not touched: what
//! there is of it can be played.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::time::Duration;

/// How the names of temporary results begin.
pub(super) const PREFIX: &str = ".mimic-job-";

/// Between being made and being locked a file looks like a leftover.
const YOUNG: Duration = Duration::from_secs(60);

/// Says that somebody is at work on a file or folder, until it is dropped.
///
/// Nothing on Windows, where a lock would keep ffmpeg from writing.
pub(super) fn hold(path: &Path) -> Option<File> {
    let file = File::open(path).ok().filter(|_| cfg!(unix))?;
    file.try_lock().is_ok().then_some(file)
}

/// Removes what killed jobs have left in a folder.
pub(super) fn clear(folder: &Path) {
    if !cfg!(unix) {
        return;
    }
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        let path = entry.path();
        let old = entry.metadata().is_ok_and(|about| {
            let age = about.modified().ok().and_then(|at| at.elapsed().ok());
            !about.is_symlink() && age.is_some_and(|age| age > YOUNG)
        });
        if !old {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        // A file system without locks answers with another error: then nothing is known.
        if let Err(TryLockError::WouldBlock | TryLockError::Error(_)) = file.try_lock() {
            continue;
        }
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        match removed {
            Ok(()) => tracing::debug!("removed {name}, left by a job that was killed"),
            Err(error) => tracing::debug!("{name} stays: {error}"),
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn only_what_nobody_holds_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let make = |name: &str| {
            let made = path(name);
            if name.ends_with("folder") {
                fs::create_dir(&made).unwrap();
                fs::write(made.join("00001.png"), "a picture").unwrap();
            } else {
                fs::write(&made, "half a film").unwrap();
            }
            let past = SystemTime::now() - 2 * YOUNG;
            File::open(made).unwrap().set_modified(past).unwrap();
        };
        let names = [
            ".mimic-job-a.mp4",
            ".mimic-job-b-folder",
            ".mimic-job-held.mp4",
            ".mimic-job-held-folder",
            ".mimic-c.mp4",
            "result.mp4",
        ];
        names.iter().for_each(|name| make(name));
        fs::write(path(".mimic-job-new.mp4"), "").unwrap();
        let held = [names[2], names[3]].map(|name| hold(&path(name)).unwrap());
        let there = || {
            let entries = fs::read_dir(folder.path()).unwrap().flatten();
            let mut names: Vec<String> = entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        clear(folder.path());
        let kept = [names[4], names[3], names[2], ".mimic-job-new.mp4", names[5]];
        assert_eq!(there(), kept);
        // As when the process that held them is killed.
        drop(held);
        clear(folder.path());
        assert_eq!(there(), [names[4], ".mimic-job-new.mp4", names[5]]);
    }
}
