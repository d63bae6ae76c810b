//! The `ffmpeg` and `ffprobe` programs: where they are, how they are run, what they say.
//!
//! `MIMIC_FFMPEG` names another ffmpeg; its ffprobe is looked for beside it, then on the path. No shell is
//! involved. Inputs are local files in containers that hold their own pictures: playlists and scripts,
//! which could make ffmpeg open other files or run code, are not on the list. Children have no terminal,
//! die with the value that holds them, and what they say is kept in bounded memory.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

use super::MAX_PIXELS;
use super::error::{Error, plain};

/// The variable that names another ffmpeg program.
pub const VARIABLE: &str = "MIMIC_FFMPEG";

/// The version of the ffmpeg that will be used, as it writes it ("5.1.9-0+deb12u1").
pub fn version() -> Result<String, Error> {
    let program = ffmpeg();
    let mut command = Command::new(&program);
    command.arg("-version");
    let answer = run(command, 64 << 10)?;
    let text = String::from_utf8_lossy(&answer.stdout);
    match text
        .strip_prefix("ffmpeg version ")
        .and_then(|rest| rest.split_whitespace().next())
    {
        Some(version) => Ok(version.to_owned()),
        None => Err(Error::BrokenFfmpeg {
            program: program.to_string_lossy().into_owned(),
            why: "it does not say its version".to_owned(),
        }),
    }
}

/// The names of all encoders this ffmpeg was built with; asked once.
pub fn encoders() -> Result<&'static BTreeSet<String>, Error> {
    static KNOWN: OnceLock<BTreeSet<String>> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known);
    }
    let mut command = quiet(ffmpeg());
    command.arg("-encoders");
    let answer = run(command, 1 << 20)?;
    let text = String::from_utf8_lossy(&answer.stdout);
    // " V....D libx264    libx264 H.264 …": six flags, then the name.
    let names = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let flags = words.next()?;
        // The legend has the same form: " V..... = Video".
        words
            .next()
            .filter(|name| flags.len() == 6 && *name != "=")
            .map(str::to_owned)
    });
    Ok(KNOWN.get_or_init(|| names.collect()))
}

/// Whether this ffmpeg can record from a kind of device, by its name ("pulse").
pub(super) fn records_from(device: &str) -> Result<bool, Error> {
    let mut command = quiet(ffmpeg());
    command.arg("-devices");
    let answer = run(command, 1 << 20)?;
    let text = String::from_utf8_lossy(&answer.stdout);
    // " DE alsa            ALSA audio output": D for reading from it, E for playing to it.
    Ok(text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|flags| flags.starts_with('D'))
            && words
                .next()
                .is_some_and(|names| names.split(',').any(|n| n == device))
    }))
}

/// The ffmpeg program: `MIMIC_FFMPEG`, or the one on the path.
pub(super) fn ffmpeg() -> OsString {
    chosen().unwrap_or_else(|| "ffmpeg".into())
}

/// The ffprobe program: beside the ffmpeg of `MIMIC_FFMPEG`, or the one on the path.
pub(super) fn ffprobe() -> OsString {
    chosen()
        .and_then(|ffmpeg| beside(Path::new(&ffmpeg)))
        .map_or_else(|| "ffprobe".into(), PathBuf::into_os_string)
}

fn chosen() -> Option<OsString> {
    env::var_os(VARIABLE).filter(|value| !value.is_empty())
}

fn beside(ffmpeg: &Path) -> Option<PathBuf> {
    let name = ffmpeg.file_name()?.to_str()?.replace("ffmpeg", "ffprobe");
    let ffprobe = ffmpeg.with_file_name(name);
    (ffprobe != ffmpeg && ffprobe.is_file()).then_some(ffprobe)
}

/// Containers that hold their own pictures or sound, by the names of ffmpeg's demuxers.
///
/// Not here: playlists (hls, dash, concat, imf), descriptions of streams (sdp, rtsp), scripts (avisynth,
/// vapoursynth), devices, numbered pictures (read without ffmpeg), subtitles and text made into pictures (tty).
const CONTAINERS: &str = "3dostr,4xm,aac,ac3,aiff,amr,apng,asf,asf_o,au,av1,avi,avs2,avs3,bink,caf,cavsvideo,\
dhav,dirac,dnxhd,dv,eac3,evc,film_cpk,flac,flic,flv,gif,gxf,h261,h263,h264,hevc,idcin,iff,ipmovie,ivf,kux,\
live_flv,lmlm4,lxf,m4v,matroska,mjpeg,mjpeg_2000,mlv,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mpegtsraw,mpegvideo,mpjpeg,\
msnwctcp,mtv,mv,mxf,mxg,nsv,nut,nuv,obu,ogg,oma,pmp,psxstr,pva,r3d,rl2,rm,roq,rpl,sga,smjpeg,smk,sol,swf,thp,\
tta,ty,vc1,vc1test,vivo,vividas,vmd,vvc,w64,wav,wc3movie,webm,wtv,wv,xmv,yuv4mpegpipe";

/// Adds a file as the next input, read as data and never as an option, an address or a pattern.
pub(super) fn add_input(command: &mut Command, file: &Path) {
    command.args([
        "-protocol_whitelist",
        "file",
        "-format_whitelist",
        CONTAINERS,
    ]);
    command.args(["-max_pixels", &MAX_PIXELS.to_string()]);
    if is_gif(file) {
        // Otherwise a '%' in its name would be taken for a pattern of numbered pictures.
        command.args(["-f", "gif"]);
    }
    command.arg("-i").arg(local(file));
}

fn is_gif(file: &Path) -> bool {
    let mut start = [0; 4];
    File::open(file)
        .and_then(|mut f| f.read_exact(&mut start))
        .is_ok()
        && start == *b"GIF8"
}

/// A path as ffmpeg takes it whatever characters are in it.
pub(super) fn local(file: &Path) -> OsString {
    let mut address = OsString::from("file:");
    address.push(file);
    address
}

/// A finished program.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    /// The last of what it said, in one line.
    pub(super) said: String,
}

/// Runs a program to its end, reading no more than `limit` bytes of its output.
pub(super) fn run(mut command: Command, limit: u64) -> Result<Answer, Error> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut running = Running::start(command)?;
    let mut stdout = Vec::new();
    if let Some(pipe) = running.stdout() {
        pipe.take(limit)
            .read_to_end(&mut stdout)
            .map_err(|e| running.broken(&e))?;
    }
    // Dropping the pipe ends a program that has more to say.
    let (status, said) = running.wait()?;
    Ok(Answer {
        status,
        stdout,
        said,
    })
}

/// A program at work. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Running {
    program: String,
    child: Child,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    /// Starts a program whose stdin and stdout have been chosen; stderr is always listened to.
    pub(super) fn start(mut command: Command) -> Result<Self, Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        command
            .stderr(Stdio::piped())
            .env("AV_LOG_FORCE_NOCOLOR", "1")
            .env_remove("FFREPORT");
        detach(&mut command);
        let mut child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NoFfmpeg {
                program: program.clone(),
                install: install_command(),
            },
            _ => Error::BrokenFfmpeg {
                program: program.clone(),
                why: plain(&e),
            },
        })?;
        let pipe = child.stderr.take();
        let mut running = Self {
            program,
            child,
            stderr: None,
        };
        if let Some(pipe) = pipe {
            let listener = Builder::new()
                .name("ffmpeg-stderr".to_owned())
                .spawn(move || last_words(pipe));
            running.stderr = Some(listener.map_err(|e| running.broken(&e))?);
        }
        Ok(running)
    }

    pub(super) fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub(super) fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for the end; gives the status and the last of what the program said, in one line.
    pub(super) fn wait(&mut self) -> Result<(ExitStatus, String), Error> {
        let (status, said) = self.wait_for_all()?;
        Ok((status, summary(&said)))
    }

    /// Waits for the end; gives the status and the last of what the program said as it said it.
    pub(super) fn wait_for_all(&mut self) -> Result<(ExitStatus, String), Error> {
        // A child that still waits for input or for a reader would wait for ever.
        drop(self.child.stdin.take());
        drop(self.child.stdout.take());
        let status = self.child.wait().map_err(|e| self.broken(&e))?;
        let said = self
            .stderr
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        Ok((status, said))
    }

    fn broken(&self, error: &io::Error) -> Error {
        Error::BrokenFfmpeg {
            program: self.program.clone(),
            why: plain(error),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when the child has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(thread) = self.stderr.take() {
            let _ = thread.join();
        }
    }
}

/// Ctrl-C in the terminal is for mimic, which then ends its children in its own order.
fn detach(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(windows)]
    {
        const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;
        const CREATE_NO_WINDOW: u32 = 0x0800_0000;
        std::os::windows::process::CommandExt::creation_flags(
            command,
            CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW,
        );
    }
    #[cfg(not(any(unix, windows)))]
    let _ = command;
}

/// How much of what a program says is kept: the end, where the reason is.
const KEPT: usize = 8 << 10;

fn last_words(mut pipe: impl Read) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(read) = pipe.read(&mut chunk) {
        if read == 0 {
            break;
        }
        kept.extend_from_slice(&chunk[..read]);
        if kept.len() > KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The reason in what ffmpeg said: a known cause in plain words, or its last telling line.
fn summary(said: &str) -> String {
    for (sign, meaning) in [
        ("No space left on device", "the disk is full"),
        (
            "moov atom not found",
            "it is cut short, or no video at all: its index is missing",
        ),
        (
            "not on whitelist",
            "it is a playlist, a script or a kind of picture that mimic does not read",
        ),
    ] {
        if said.contains(sign) {
            return meaning.to_owned();
        }
    }
    let telling = said.lines().map(without_origin).rfind(|line| {
        !(line.is_empty()
            || line.starts_with("Conversion failed")
            || line.starts_with("Last message repeated"))
    });
    one_line(telling.unwrap_or_default())
}

/// A line without the "[h264 @ 0x55d0…]" or "file:name.mp4:" in front.
fn without_origin(line: &str) -> &str {
    let mut line = line.trim();
    while let Some(rest) = line.strip_prefix('[').and_then(|l| l.split_once("] ")) {
        line = rest.1.trim();
    }
    match line.strip_prefix("file:").and_then(|l| l.rsplit_once(": ")) {
        Some((_, reason)) => reason,
        None => line,
    }
}

/// Text of a stranger fit for a sentence: one line, no control characters, not endless, no full stop.
pub(super) fn one_line(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    clean.trim().trim_end_matches('.').to_owned()
}

/// The command that installs ffmpeg on this system.
fn install_command() -> &'static str {
    if cfg!(target_os = "macos") {
        return "brew install ffmpeg";
    }
    if cfg!(windows) {
        return "winget install ffmpeg";
    }
    let managers = [
        ("apt-get", "sudo apt install ffmpeg"),
        ("dnf", "sudo dnf install ffmpeg-free"),
        ("pacman", "sudo pacman -S ffmpeg"),
        ("zypper", "sudo zypper install ffmpeg"),
        ("apk", "sudo apk add ffmpeg"),
    ];
    let there = |name: &&(&str, &str)| {
        Path::new("/usr/bin").join(name.0).exists() || Path::new("/sbin").join(name.0).exists()
    };
    managers
        .iter()
        .find(there)
        .map_or("sudo apt install ffmpeg", |found| found.1)
}

/// A command with the options every run of ffmpeg has.
pub(super) fn quiet(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.args(["-hide_banner", "-v", "error"]);
    command
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_program_says_its_version_and_encoders() {
        assert!(!version().unwrap().is_empty());
        let known = encoders().unwrap();
        assert!(known.contains("gif") && known.contains("aac") && !known.contains("="));
    }

    #[test]
    fn a_missing_program_is_one_sentence_with_the_cure() {
        let error = Running::start(quiet("/nowhere/ffmpeg"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nowhere/ffmpeg") && error.contains(" install "),
            "{error}"
        );
        assert!(error.contains(VARIABLE) && !error.contains('\n'), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_does_not_start_is_one_sentence() {
        // A folder can be found and not be run.
        let error = Running::start(quiet("/tmp")).unwrap_err();
        assert!(matches!(error, Error::BrokenFfmpeg { .. }), "{error}");
    }

    #[test]
    fn ffprobe_is_looked_for_beside_a_chosen_ffmpeg() {
        let folder = tempfile::tempdir().unwrap();
        let ffmpeg = folder.path().join("ffmpeg-7.exe");
        assert_eq!(beside(&ffmpeg), None);
        let ffprobe = folder.path().join("ffprobe-7.exe");
        std::fs::write(&ffprobe, "").unwrap();
        assert_eq!(beside(&ffmpeg), Some(ffprobe));
        assert_eq!(beside(&folder.path().join("other")), None);
    }

    #[test]
    fn a_dropped_program_is_killed() {
        let mut command = quiet(ffmpeg());
        // Without a reader's pace this would run for an hour.
        command
            .args([
                "-re",
                "-f",
                "lavfi",
                "-i",
                "testsrc2=d=3600",
                "-f",
                "null",
                "-",
            ])
            .stdin(Stdio::null());
        let running = Running::start(command).unwrap();
        let start = Instant::now();
        drop(running);
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn much_talk_is_kept_short() {
        let endless =
            std::io::Cursor::new(b"blah blah\n".repeat(1 << 20)).chain(&b"the reason\n"[..]);
        let kept = last_words(endless);
        assert!(kept.len() <= KEPT);
        assert_eq!(summary(&kept), "the reason");
    }

    #[test]
    fn the_reason_is_found_in_what_ffmpeg_says() {
        for (said, want) in [
            ("", ""),
            (
                "[mov,mp4 @ 0x55] moov atom not found\nfile:a: b.mp4: Invalid data found\n",
                "it is cut short",
            ),
            (
                "[out#0/mp4 @ 0x1] Error writing: No space left on device\nConversion failed!\n",
                "the disk is full",
            ),
            (
                "file:/tmp/a: b.mp4: Permission denied\n",
                "Permission denied",
            ),
            (
                "[libx264 @ 0x1] [debug] height not divisible by 2 (3x3).\nConversion failed!\n",
                "height not divisible by 2 (3x3)",
            ),
            ("bell\x07 and \x1b[31mred\n", "bell  and  [31mred"),
        ] {
            assert!(summary(said).starts_with(want), "{said}: {}", summary(said));
        }
        assert_eq!(summary(&"x".repeat(5000)).len(), 200);
    }
}
