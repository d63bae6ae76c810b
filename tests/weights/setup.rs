//! Manifests, folders and the program for the tests.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use mimic::checkpoint::download::{self, Patience};
use mimic::checkpoint::manifest::Manifest;
use mimic::checkpoint::store::{self, Progress, Store};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Bytes that are no model, for tests that do not come so far.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A small model as first-order-model publishes its own; an enhancer's weights for all the manifest knows.
pub(crate) fn fixture() -> Vec<u8> {
    std::fs::read(fixture_path()).unwrap()
}

pub(crate) fn fixture_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vox_tiny_zip.pth.tar")
}

/// One model of a manifest.
pub(crate) fn entry(name: &str, mirrors: &[String], more: &str) -> String {
    format!(
        "[[model]]\nname = \"{name}\"\nkind = \"enhancer\"\ntitle = \"a test\"\nfile = \"model.pth.tar\"\n\
         mirrors = {mirrors:?}\nlicence = \"MIT\"\n{more}\n"
    )
}

/// Size and hash of a file, for [`entry`].
pub(crate) fn exactly(bytes: &[u8]) -> String {
    format!("bytes = {}\nsha256 = \"{}\"", bytes.len(), sha256(bytes))
}

/// Size alone: the hash is not published.
pub(crate) fn about(bytes: &[u8]) -> String {
    format!("about_bytes = {}", bytes.len())
}

/// A weights folder that goes when the test ends.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) manifest: String,
}

impl Place {
    /// A folder for one model, "m".
    pub(crate) fn new(mirrors: &[String], more: &str) -> Self {
        Self::of(&entry("m", mirrors, more))
    }

    pub(crate) fn of(entries: &str) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            manifest: format!("version = 1\n{entries}"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn store(&self) -> Store {
        let manifest = Manifest::parse(&self.manifest, "test").unwrap();
        Store::new(self.path("weights"), manifest)
    }

    /// Downloads the publisher's file of "m", and gives its bytes.
    pub(crate) fn download(&self) -> Result<Vec<u8>, store::Error> {
        self.download_with(&quick(), &mut |_| ControlFlow::Continue(()))
    }

    pub(crate) fn download_with(
        &self,
        patience: &Patience,
        tell: &mut store::Tell<'_>,
    ) -> Result<Vec<u8>, store::Error> {
        let store = self.store();
        let model = store.model("m")?;
        let (path, hash) = download::original(&store, model, patience, tell)?;
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(hash, sha256(&bytes));
        Ok(bytes)
    }

    /// Every file under the weights folder, without its own path.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let root = self.path("weights");
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let inside = path.strip_prefix(&root).unwrap();
                    files.push(inside.to_str().unwrap().replace('\\', "/"));
                }
            }
        }
        files.sort();
        files
    }

    /// The program, with this folder and manifest.
    pub(crate) fn mimic(&self, args: &[&str]) -> Command {
        let manifest = self.path("manifest.toml");
        std::fs::write(&manifest, &self.manifest).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mimic"));
        command
            .args(args)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("MIMIC_WEIGHTS", self.path("weights"))
            .env("MIMIC_MANIFEST", manifest)
            .env_remove("MIMIC_LOG");
        for proxy in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
            command.env_remove(proxy).env_remove(proxy.to_lowercase());
        }
        command
    }

    /// Runs what must work; gives what it printed.
    pub(crate) fn works(&self, args: &[&str]) -> String {
        let output = self.mimic(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must fail with `code` and one sentence; gives it.
    pub(crate) fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.mimic(args).output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        let complaints = said.lines().filter(|line| line.starts_with("mimic: "));
        assert_eq!(complaints.count(), 1, "{args:?}: {said}");
        assert!(
            !said.contains("panicked") && !said.contains("Error("),
            "{said}"
        );
        said
    }
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits for servers no longer than a test should.
pub(crate) fn quick() -> Patience {
    Patience {
        silence: Duration::from_millis(700),
        span: Duration::from_millis(300),
        bytes: 20_000,
        tries: 3,
        pause: Duration::from_millis(20),
    }
}

/// Stops a download when it has so many bytes.
pub(crate) fn until(bytes: u64) -> impl FnMut(&Progress) -> ControlFlow<()> {
    move |progress| match progress.done >= bytes {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}
