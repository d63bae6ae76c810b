//! The microphone, as far as the ffmpeg program can record from it: raw sound beside a recording.
//!
//! Which device works is found by trying: the first that gives sound is taken. The file starts with the
//! recording's first picture, whenever the device woke up: with silence, or without what came too early.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::{NamedTempFile, TempPath};

use super::error::{Error, plain};
use super::ffmpeg::{Running, ffmpeg, quiet, records_from};

/// Samples a second, one channel of 16 bits.
const RATE: u32 = 48_000;

/// Bytes a second.
const BYTES: u32 = RATE * 2;

/// How long a device may take to give its first sound.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked whether the recording has ended.
const STEP: Duration = Duration::from_millis(50);

/// Sound on its way into a file.
pub(super) struct Listening {
    start: Arc<OnceLock<Instant>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<TempPath, String>>,
}

impl Listening {
    /// Starts the thread "record-sound", which writes beside `output`.
    pub(super) fn start(output: &Path) -> Result<Self, String> {
        let folder = output
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".mimic-")
            .suffix(".wav")
            .tempfile_in(folder)
            .map_err(|e| plain(&e))?;
        let (start, stop) = (
            Arc::<OnceLock<Instant>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (its_start, its_stop) = (Arc::clone(&start), Arc::clone(&stop));
        let thread = Builder::new()
            .name("record-sound".to_owned())
            .spawn(move || listen(file, &its_start, &its_stop))
            .map_err(|e| plain(&e))?;
        Ok(Self {
            start,
            stop,
            thread,
        })
    }

    /// Says when the first picture was: what was heard before is left out.
    pub(super) fn begin(&self, at: Instant) {
        let _ = self.start.set(at);
    }

    /// Ends it; gives the file, or why there is no sound.
    pub(super) fn finish(self) -> Result<TempPath, String> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => Err("its thread failed".to_owned()),
        }
    }
}

/// Tries one device after the other; writes what the first that works gives.
fn listen(
    mut file: NamedTempFile,
    start: &OnceLock<Instant>,
    stop: &AtomicBool,
) -> Result<TempPath, String> {
    let mut why = "ffmpeg knows no way to record sound here".to_owned();
    for device in devices().map_err(|e| e.to_string())? {
        if stop.load(Ordering::Relaxed) {
            return Err("the recording ended before a microphone answered".to_owned());
        }
        let mut command = quiet(ffmpeg());
        command.arg("-nostdin").args(&device);
        let channels = "1";
        command.args(["-ac", channels, "-ar", &RATE.to_string(), "-f", "s16le"]);
        command.args(["-flush_packets", "1", "pipe:1"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut program = Running::start(command).map_err(|e| e.to_string())?;
        let Some(pipe) = program.stdout() else {
            continue;
        };
        let chunks = read(pipe).map_err(|e| plain(&e))?;
        let first = match first(&chunks, stop) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => {
                why = "the microphone gives no sound".to_owned();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => {
                let (_, said) = program.wait().map_err(|e| e.to_string())?;
                why = format!("no microphone answers ({said})");
                continue;
            }
        };
        let mut wav = Wav::create(file.as_file_mut()).map_err(|e| plain(&e))?;
        let mut next = Some(first);
        while !stop.load(Ordering::Relaxed) {
            if let (Some((heard, chunk)), Some(&start)) = (&next, start.get()) {
                wav.add(chunk, *heard, start).map_err(|e| plain(&e))?;
            }
            next = match chunks.recv_timeout(STEP) {
                Ok(chunk) => Some(chunk),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break, // unplugged: the rest is silent
            };
        }
        wav.close().map_err(|e| plain(&e))?;
        return Ok(file.into_temp_path());
    }
    Err(why)
}

/// Waits for the first sound, in steps, so that a short recording need not wait for a device that is dead.
fn first(
    chunks: &Receiver<(Instant, Vec<u8>)>,
    stop: &AtomicBool,
) -> Result<(Instant, Vec<u8>), RecvTimeoutError> {
    let asked = Instant::now();
    loop {
        match chunks.recv_timeout(STEP) {
            Err(RecvTimeoutError::Timeout)
                if asked.elapsed() < PATIENCE && !stop.load(Ordering::Relaxed) => {}
            other => return other,
        }
    }
}

/// The options of ffmpeg for each microphone worth trying here, the best first.
fn devices() -> Result<Vec<Vec<String>>, Error> {
    let kinds: &[(&str, &[&str])] = if cfg!(target_os = "linux") {
        // PipeWire answers as PulseAudio. Small fragments, or the sound comes two seconds late.
        &[
            (
                "pulse",
                &["-fragment_size", "4800", "-f", "pulse", "-i", "default"],
            ),
            ("alsa", &["-f", "alsa", "-i", "default"]),
        ]
    } else if cfg!(target_os = "macos") {
        &[("avfoundation", &["-f", "avfoundation", "-i", ":default"])]
    } else if cfg!(windows) {
        return Ok(directshow()?
            .map(|name| {
                let name = format!("audio={name}");
                ["-f", "dshow", "-i", &name].map(str::to_owned).to_vec()
            })
            .into_iter()
            .collect());
    } else {
        &[("oss", &["-f", "oss", "-i", "/dev/dsp"])]
    };
    let mut devices = Vec::new();
    for (kind, options) in kinds {
        if records_from(kind)? {
            devices.push(options.iter().map(|&o| o.to_owned()).collect());
        }
    }
    Ok(devices)
}

/// The first microphone that DirectShow lists: it has no name for the default one.
fn directshow() -> Result<Option<String>, Error> {
    let mut command = Command::new(ffmpeg());
    command.args(["-hide_banner", "-nostdin", "-list_devices", "true"]);
    command.args(["-f", "dshow", "-i", "dummy"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let (_, said) = Running::start(command)?.wait_for_all()?;
    Ok(first_microphone(&said))
}

/// The name in the first line such as `[dshow @ 0x1] "Microphone (Realtek)" (audio)`.
fn first_microphone(said: &str) -> Option<String> {
    said.lines()
        .filter(|line| line.trim_end().ends_with("(audio)"))
        .find_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
}

/// Reads on a thread of its own, so that a silent device can be given up on.
fn read(mut pipe: ChildStdout) -> std::io::Result<Receiver<(Instant, Vec<u8>)>> {
    let (send, receive) = sync_channel(64);
    Builder::new()
        .name("record-sound-pipe".to_owned())
        .spawn(move || {
            let mut buffer = vec![0; BYTES as usize / 10];
            while let Ok(read) = pipe.read(&mut buffer) {
                if read == 0
                    || send
                        .send((Instant::now(), buffer[..read].to_vec()))
                        .is_err()
                {
                    break;
                }
            }
        })?;
    Ok(receive)
}

/// A WAV file that is being written.
struct Wav<'a> {
    file: &'a mut File,
    /// Bytes of sound so far; None before the first.
    written: Option<u64>,
}

impl<'a> Wav<'a> {
    fn create(file: &'a mut File) -> std::io::Result<Self> {
        file.write_all(&header(0))?;
        Ok(Self {
            file,
            written: None,
        })
    }

    /// Adds sound whose last sample was heard at `heard`, in a recording that began at `start`.
    fn add(&mut self, chunk: &[u8], heard: Instant, start: Instant) -> std::io::Result<()> {
        let bytes_at = |at: Instant| {
            let seconds = at.saturating_duration_since(start).as_secs_f64();
            (seconds * f64::from(RATE)) as u64 * 2
        };
        let until = bytes_at(heard);
        let mut chunk = chunk;
        let written = match self.written {
            Some(written) => written,
            None => {
                // The recording began in the middle of the chunk, or before it.
                let new = chunk.len().min(until as usize) & !1;
                chunk = &chunk[chunk.len() - new..];
                let silence = until - new as u64;
                std::io::copy(&mut std::io::repeat(0).take(silence), self.file)?;
                silence
            }
        };
        // A device that gives sound faster than time passes is not believed.
        let most = (until + u64::from(BYTES) * 2).saturating_sub(written);
        let chunk = &chunk[..chunk.len().min(most as usize)];
        self.file.write_all(chunk)?;
        self.written = Some(written + chunk.len() as u64);
        Ok(())
    }

    fn close(self) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header(self.written.unwrap_or(0)))?;
        self.file.flush()
    }
}

/// The 44 bytes in front of so many bytes of sound. (Over 4 GB, which is 12 hours, the length is left open.)
fn header(bytes: u64) -> Vec<u8> {
    let length = u32::try_from(bytes).unwrap_or(u32::MAX);
    let mut header = Vec::with_capacity(44);
    header.extend(b"RIFF");
    header.extend(length.saturating_add(36).to_le_bytes());
    header.extend(b"WAVEfmt ");
    header.extend(16u32.to_le_bytes());
    header.extend(1u16.to_le_bytes()); // plain numbers
    header.extend(1u16.to_le_bytes()); // one channel
    header.extend(RATE.to_le_bytes());
    header.extend(BYTES.to_le_bytes());
    header.extend(2u16.to_le_bytes()); // bytes a sample
    header.extend(16u16.to_le_bytes()); // bits of it
    header.extend(b"data");
    header.extend(length.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(chunks: &[(u64, usize)]) -> u64 {
        let start = Instant::now();
        let mut file = tempfile::tempfile().unwrap();
        let mut wav = Wav::create(&mut file).unwrap();
        for &(at, bytes) in chunks {
            let heard = start + Duration::from_millis(at);
            wav.add(&vec![1; bytes], heard, start).unwrap();
        }
        wav.close().unwrap();
        assert_eq!(&file_start(&mut file)[..4], b"RIFF");
        file.metadata().unwrap().len() - 44
    }

    fn file_start(file: &mut File) -> Vec<u8> {
        let mut bytes = vec![0; 44];
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn sound_begins_with_the_first_picture() {
        let second = BYTES as usize;
        // Heard from 100 to 200 ms: silence, then all of it.
        assert_eq!(written(&[(200, second / 10)]), u64::from(BYTES) / 5);
        // Heard from -50 to 50 ms: its second half.
        assert_eq!(written(&[(50, second / 10)]), u64::from(BYTES) / 20);
        // Before: nothing.
        assert_eq!(written(&[(0, second / 10)]), 0);
    }

    #[test]
    fn a_device_that_races_does_not_fill_the_disk() {
        let second = BYTES as usize;
        let chunks = vec![(100, second); 60];
        assert!(written(&chunks) <= u64::from(BYTES) * 3);
    }

    #[test]
    fn the_first_microphone_of_windows_is_found() {
        let said = "[dshow @ 0000] \"Integrated Camera\" (video)\n[dshow @ 0000]   Alternative name \"@device_pnp\"\n\
            [dshow @ 0000] \"Microphone (2- Realtek)\" (audio)\n[dshow @ 0000] \"Other\" (audio)\n";
        assert_eq!(first_microphone(said).unwrap(), "Microphone (2- Realtek)");
        assert_eq!(first_microphone("dummy: Immediate exit requested"), None);
    }
}
