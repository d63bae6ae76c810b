//! What disks and folders do.

use std::path::Path;
use std::process::Command;

use mimic::checkpoint::store::Error;

use crate::server::Server;
use crate::setup::{Place, exactly, noise};

/// A small file system of its own over a folder, unmounted in the end. None, said loudly, where that may not be made.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(folder: &'a Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let made = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder)
            .output();
        match made {
            Ok(output) if output.status.success() => Some(Self(folder)),
            _ => {
                eprintln!(
                    "SKIPPED: a file system for the test may be mounted by root on Linux only"
                );
                None
            }
        }
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_and_the_download_goes_on_when_there_is_room() {
    let file = noise(900_000);
    let server = Server::of(file.clone());
    let place = Place::new(&[server.url("/a")], &exactly(&file));
    let folder = place.path("weights");
    let Some(mount) = Mount::new(&folder, "size=512k") else {
        return;
    };
    let error = place.download().unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
    let said = error.to_string();
    assert!(
        said.contains("full") && said.contains(folder.to_str().unwrap()),
        "{said}"
    );
    // One mirror, asked once: a full disk is not its fault.
    assert_eq!(server.seen().len(), 1);

    let more = Command::new("mount")
        .args(["-o", "remount,size=4m"])
        .arg(&folder)
        .status();
    assert!(more.unwrap().success());
    assert_eq!(place.download().unwrap(), file);
    assert!(server.seen()[1].from().unwrap() > 100_000);
    drop(mount);
}

#[test]
fn a_folder_that_may_not_be_written_to_is_one_sentence() {
    let file = noise(1000);
    let server = Server::of(file.clone());
    let place = Place::new(&[server.url("/a")], &exactly(&file));
    let folder = place.path("weights");
    // Root may write anywhere but where nobody may.
    let mount = Mount::new(&folder, "ro");
    if mount.is_none() {
        let mut rights = std::fs::metadata(&folder).unwrap().permissions();
        rights.set_readonly(true);
        std::fs::set_permissions(&folder, rights).unwrap();
    }
    let said = place.fails(&["weights", "fetch", "m"], 1);
    assert!(
        said.contains("MIMIC_WEIGHTS") && said.contains(folder.to_str().unwrap()),
        "{said}"
    );
    assert_eq!(server.seen().len(), 0);
    // Looking is allowed.
    assert!(place.works(&["weights", "list"]).starts_with("m "));
}

#[test]
fn a_file_in_the_place_of_the_folder_is_one_sentence() {
    let file = noise(1000);
    let server = Server::of(file.clone());
    let place = Place::new(&[server.url("/a")], &exactly(&file));
    std::fs::write(place.path("weights"), "no folder").unwrap();
    let said = place.fails(&["weights", "fetch", "m"], 1);
    assert!(said.contains("MIMIC_WEIGHTS"), "{said}");
}
