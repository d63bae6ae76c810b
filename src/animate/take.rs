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

use crate::model::Keypoints;

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
        }
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
