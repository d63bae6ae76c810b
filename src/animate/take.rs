//! Takes: a driver's motion without the driver, to be played on any photo later.
//!
//! A take is a stream, so that recording needs no memory and a file cut short keeps what it has:
//!
//! ```text
//! mimic-take 1\n                                     the format
//! {"model":"mimic-small","keypoints":10,"jacobian":true}\n    one line of JSON, at most 4096 bytes
//! records, all of one size, little-endian f32:
//!   seconds since the first record
//!   keypoints x (x, y), in -1..1
//!   keypoints x (a, b, c, d), the jacobian by rows, if there is one
//! ```
//!
//! Keypoints mean what the model that found them means by them: another model's take is refused.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::motion::between;
use crate::model::Keypoints;

/// Ending of the files' names, without its dot.
pub const ENDING: &str = "mimic-take";
/// Seconds of the longest pause between two records that is kept: times are a stranger's.
pub const LONGEST_PAUSE: f64 = 2.0;

const MAGIC: &[u8] = b"mimic-take 1\n";
/// The longest header that is read.
const HEADER: u64 = 4096;
/// The most keypoints that a record may have.
const MOST_KEYPOINTS: usize = 1024;

/// Why a take cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system says no.
    #[error("cannot use the take {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not a take, or a damaged one.
    #[error("{path} is not a take that mimic can play: {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What a take says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The model whose keypoints these are.
    pub model: String,
    /// Keypoints in a record.
    pub keypoints: usize,
    /// Whether there is a jacobian for each.
    pub jacobian: bool,
}

impl Header {
    /// The header of takes of keypoints such as these.
    pub fn of(model: &str, keypoints: &Keypoints) -> Self {
        Self {
            model: model.to_owned(),
            keypoints: keypoints.value.len(),
            jacobian: keypoints.jacobian.is_some(),
        }
    }

    /// Numbers in a record.
    fn numbers(&self) -> usize {
        1 + self.keypoints * if self.jacobian { 6 } else { 2 }
    }
}

/// Writes a take, record by record.
#[derive(Debug)]
pub struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    header: Header,
    records: u64,
}

impl Writer {
    /// Begins a take; an existing file is not overwritten.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, header: Header) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = BufWriter::new(File::create_new(path).map_err(io)?);
        file.write_all(MAGIC).map_err(io)?;
        serde_json::to_writer(&mut file, &header).map_err(|e| io(e.into()))?;
        file.write_all(b"\n").map_err(io)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            header,
            records: 0,
        })
    }

    /// Adds the keypoints of the moment `seconds` since the first.
    ///
    /// # Errors
    /// When the disk is full, or the keypoints are not of the kind that the header says.
    pub fn push(&mut self, seconds: f64, keypoints: &Keypoints) -> Result<(), Error> {
        if Header::of(&self.header.model, keypoints) != self.header {
            return Err(Error::Format {
                path: self.path.clone(),
                why: "the keypoints are of another model than it began with".to_owned(),
            });
        }
        let jacobians = keypoints.jacobian.iter().flatten().flatten().flatten();
        let numbers = std::iter::once(seconds as f32)
            .chain(keypoints.value.iter().flatten().copied())
            .chain(jacobians.copied());
        for number in numbers {
            self.file
                .write_all(&number.to_le_bytes())
                .map_err(|source| self.io(source))?;
        }
        self.records += 1;
        Ok(())
    }

    /// Writes what is left; gives the number of records.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn finish(mut self) -> Result<u64, Error> {
        self.file.flush().map_err(|source| self.io(source))?;
        Ok(self.records)
    }

    fn io(&self, source: std::io::Error) -> Error {
        Error::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// Reads a take, record by record.
#[derive(Debug)]
pub struct Reader {
    file: BufReader<File>,
    path: PathBuf,
    header: Header,
    /// Where the records begin.
    start: u64,
    records: u64,
    cut_short: bool,
    record: Vec<u8>,
}

impl Reader {
    /// Opens a take.
    ///
    /// # Errors
    /// When it is none, or has no record.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let format = |why: String| Error::Format {
            path: path.to_owned(),
            why,
        };
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let mut magic = [0; MAGIC.len()];
        if file.read_exact(&mut magic).is_err() || magic != MAGIC {
            return Err(format("it does not begin as one".to_owned()));
        }
        let mut line = Vec::new();
        (&mut file)
            .take(HEADER)
            .read_until(b'\n', &mut line)
            .map_err(io)?;
        let header: Header =
            serde_json::from_slice(&line).map_err(|e| format(format!("its header says {e}")))?;
        if header.keypoints == 0 || header.keypoints > MOST_KEYPOINTS {
            return Err(format(format!("it has {} keypoints", header.keypoints)));
        }
        let start = (MAGIC.len() + line.len()) as u64;
        let size = 4 * header.numbers() as u64;
        let rest = file
            .get_ref()
            .metadata()
            .map_err(io)?
            .len()
            .saturating_sub(start);
        if rest < size {
            return Err(format("it holds no motion".to_owned()));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            record: vec![0; size as usize],
            header,
            start,
            records: rest / size,
            cut_short: rest % size != 0,
        })
    }

    /// What the take says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whole records in the file.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Whether the file ends within a record: it was cut short and plays up to there.
    pub fn cut_short(&self) -> bool {
        self.cut_short
    }

    /// The next moment, in seconds since the first, and its keypoints; None at the end.
    ///
    /// # Errors
    /// When the disk fails, or a record holds what is no number.
    pub fn read(&mut self) -> Result<Option<(f64, Keypoints)>, Error> {
        match self.file.read_exact(&mut self.record) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(source) => {
                let path = self.path.clone();
                return Err(Error::Io { path, source });
            }
        }
        let (bytes, _) = self.record.as_chunks::<4>();
        let numbers: Vec<f32> = bytes.iter().map(|&b| f32::from_le_bytes(b)).collect();
        if !numbers.iter().all(|number| number.is_finite()) {
            return Err(Error::Format {
                path: self.path.clone(),
                why: "a record holds what is no number".to_owned(),
            });
        }
        let (places, jacobians) = numbers[1..].split_at(2 * self.header.keypoints);
        let matrices = jacobians.as_chunks::<4>().0.iter();
        let keypoints = Keypoints {
            value: places.as_chunks::<2>().0.to_vec(),
            jacobian: self
                .header
                .jacobian
                .then(|| matrices.map(|m| [[m[0], m[1]], [m[2], m[3]]]).collect()),
        };
        Ok(Some((f64::from(numbers[0]), keypoints)))
    }

    /// Starts again from the first record.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn rewind(&mut self) -> Result<(), Error> {
        self.file
            .seek(SeekFrom::Start(self.start))
            .map(|_| ())
            .map_err(|source| Error::Io {
                path: self.path.clone(),
                source,
            })
    }
}

/// Whether a file says that it is a take, by its name or by how it begins.
pub fn is_take(path: &Path) -> bool {
    let begins = || -> std::io::Result<bool> {
        let mut magic = [0; MAGIC.len()];
        File::open(path)?.read_exact(&mut magic)?;
        Ok(magic == MAGIC)
    };
    path.extension().is_some_and(|ending| ending == ENDING)
        || (path.is_file() && begins().unwrap_or(false))
}

/// A take at an even rate, as a clip has it: what lies between two records is on the way between them.
///
/// Time that runs backwards stands still, and pauses are cut to [`LONGEST_PAUSE`].
#[derive(Debug)]
pub struct Steady {
    reader: Reader,
    fps: f64,
    frames: u64,
    /// Number of the next frame.
    next: u64,
    /// The file's own time of the record read last, and the time it gets.
    raw: f64,
    time: f64,
    /// The records before and after the next frame.
    before: Option<(f64, Keypoints)>,
    after: Option<(f64, Keypoints)>,
}

impl Steady {
    /// Opens a take to be read at `fps` frames a second.
    ///
    /// # Errors
    /// As [`Reader::open`], and when a record is damaged.
    pub fn open(path: &Path, fps: f64) -> Result<Self, Error> {
        let mut steady = Self {
            reader: Reader::open(path)?,
            fps,
            frames: 0,
            next: 0,
            raw: 0.0,
            time: 0.0,
            before: None,
            after: None,
        };
        while steady.record()?.is_some() {}
        // Frame N is due at N / fps, give or take what f32 cannot hold.
        steady.frames = 1 + (steady.time * fps + 1e-3) as u64;
        steady.seek(0)?;
        Ok(steady)
    }

    /// What the take says of itself.
    pub fn header(&self) -> &Header {
        self.reader.header()
    }

    /// Frames in all.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The next frame; None at the end.
    ///
    /// # Errors
    /// When the disk fails, or a record is damaged.
    pub fn read(&mut self) -> Result<Option<Keypoints>, Error> {
        if self.next >= self.frames {
            return Ok(None);
        }
        let due = self.next as f64 / self.fps;
        self.next += 1;
        while self.after.as_ref().is_some_and(|(at, _)| *at <= due) {
            self.before = self.after.take();
            self.after = self.record()?;
        }
        Ok(match (&self.before, &self.after) {
            (Some((then, a)), Some((at, b))) => {
                let way = (due - then) / (at - then).max(1e-9);
                Some(between(a, b, way.clamp(0.0, 1.0) as f32))
            }
            (Some((_, last)), None) => Some(last.clone()),
            (None, first) => first.as_ref().map(|(_, first)| first.clone()),
        })
    }

    /// Goes to a frame, from 0: the next that is read.
    ///
    /// # Errors
    /// When there is none of that number, the disk fails, or a record is damaged.
    pub fn seek(&mut self, frame: u64) -> Result<(), Error> {
        if frame >= self.frames {
            return Err(Error::Format {
                path: self.reader.path.clone(),
                why: format!("it has {} frames, and none of number {frame}", self.frames),
            });
        }
        self.reader.rewind()?;
        (self.next, self.raw, self.time) = (frame, 0.0, 0.0);
        self.before = None;
        self.after = self.record()?;
        Ok(())
    }

    /// The next record with the time it gets.
    fn record(&mut self) -> Result<Option<(f64, Keypoints)>, Error> {
        let Some((raw, keypoints)) = self.reader.read()? else {
            return Ok(None);
        };
        self.time += (raw - self.raw).clamp(0.0, LONGEST_PAUSE);
        self.raw = raw;
        Ok(Some((self.time, keypoints)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keypoints(x: f32) -> Keypoints {
        Keypoints {
            value: vec![[x, -x]; 10],
            jacobian: Some(vec![[[1.0, x], [x, 1.0]]; 10]),
        }
    }

    fn written(folder: &Path, records: usize) -> PathBuf {
        let path = folder.join("take.mimic-take");
        let mut writer = Writer::create(&path, Header::of("mimic-small", &keypoints(0.0))).unwrap();
        for i in 0..records {
            writer
                .push(i as f64 / 25.0, &keypoints(i as f32 / 100.0))
                .unwrap();
        }
        assert_eq!(writer.finish().unwrap(), records as u64);
        path
    }

    #[test]
    fn a_take_is_read_as_it_was_written_and_once_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut reader = Reader::open(&written(folder.path(), 3)).unwrap();
        assert_eq!((reader.records(), reader.cut_short()), (3, false));
        for _ in 0..2 {
            for i in 0..3 {
                let (seconds, read) = reader.read().unwrap().unwrap();
                assert!((seconds - i as f64 / 25.0).abs() < 1e-6);
                assert_eq!(read, keypoints(i as f32 / 100.0));
            }
            assert!(reader.read().unwrap().is_none());
            reader.rewind().unwrap();
        }
    }

    #[test]
    fn a_take_cut_short_plays_up_to_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), 3);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!((reader.records(), reader.cut_short()), (2, true));
        let mut read = 0;
        while reader.read().unwrap().is_some() {
            read += 1;
        }
        assert_eq!(read, 2);
    }

    #[test]
    fn other_keypoints_and_an_existing_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), 1);
        let header = Header::of("mimic-small", &keypoints(0.0));
        assert!(Writer::create(&path, header.clone()).is_err());
        let mut writer = Writer::create(&folder.path().join("other"), header).unwrap();
        let plain = Keypoints {
            jacobian: None,
            ..keypoints(0.0)
        };
        assert!(writer.push(0.0, &plain).is_err());
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_there_is_no_panic(
            tail in prop::collection::vec(any::<u8>(), 0..300), whole in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("bytes");
            let mut bytes = if whole { MAGIC.to_vec() } else { Vec::new() };
            bytes.extend(tail);
            std::fs::write(&path, bytes).unwrap();
            if let Ok(mut reader) = Reader::open(&path) {
                while let Ok(Some(_)) = reader.read() {}
            }
            if let Ok(mut take) = Steady::open(&path, 25.0) {
                let _ = take.seek(take.frames() - 1);
                while let Ok(Some(_)) = take.read() {}
            }
        }
    }

    #[test]
    fn an_uneven_take_is_read_evenly_and_from_any_frame() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uneven.mimic-take");
        let mut writer = Writer::create(&path, Header::of("mimic-small", &keypoints(0.0))).unwrap();
        // x is the time, but for a pause that is cut and a moment that lies in the past.
        for (at, x) in [(0.0, 0.0), (0.1, 0.1), (0.3, 0.3), (0.2, 0.3), (60.2, 0.5)] {
            writer.push(at, &keypoints(x)).unwrap();
        }
        writer.finish().unwrap();
        let mut take = Steady::open(&path, 25.0).unwrap();
        assert_eq!(take.frames(), 1 + (0.3 + LONGEST_PAUSE) as u64 * 25 + 7);
        let mut frames = Vec::new();
        while let Some(frame) = take.read().unwrap() {
            frames.push(frame);
        }
        assert_eq!(frames.len() as u64, take.frames());
        for (n, frame) in frames.iter().enumerate().take(8) {
            let x = frame.value[0][0];
            assert!((x - n as f32 / 25.0).abs() < 1e-3, "{n}: {x}");
        }
        assert!(
            frames
                .windows(2)
                .all(|w| w[0].value[0][0] <= w[1].value[0][0])
        );
        take.seek(5).unwrap();
        assert_eq!(take.read().unwrap().unwrap(), frames[5]);
        assert!(take.seek(take.frames()).is_err());
    }

    #[test]
    fn a_take_is_known_by_its_name_or_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), 1);
        let other = folder.path().join("renamed");
        std::fs::copy(&path, &other).unwrap();
        let text = folder.path().join("text");
        std::fs::write(&text, "mimic").unwrap();
        assert!(is_take(&path) && is_take(&other));
        assert!(is_take(Path::new("gone.mimic-take")));
        assert!(!is_take(&text) && !is_take(folder.path()) && !is_take(Path::new("gone.mp4")));
    }

    #[test]
    fn a_header_that_asks_for_much_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for header in [
            r#"{"model":"m","keypoints":0,"jacobian":true}"#,
            r#"{"model":"m","keypoints":4000000000,"jacobian":true}"#,
            r#"{"model":"m","keypoints":-1,"jacobian":true}"#,
            "",
        ] {
            let path = folder.path().join("bad");
            let mut bytes = MAGIC.to_vec();
            bytes.extend(header.bytes());
            bytes.push(b'\n');
            bytes.extend([0; 400]);
            std::fs::write(&path, bytes).unwrap();
            assert!(Reader::open(&path).is_err(), "{header}");
        }
    }
}
