//! Reading the curves of a run out of its event files, also while it writes them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::events::masked;

/// A value of a curve is a record of some dozen bytes; longer ones are pictures.
const LONGEST: u64 = 4096;

/// A value of a curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    /// Which curve.
    pub tag: String,
    /// The step.
    pub step: u64,
    /// What it was then.
    pub value: f32,
}

/// An event file that is read from where it was read before.
#[derive(Debug)]
pub struct Curves {
    path: PathBuf,
    read: u64,
}

impl Curves {
    /// From the beginning.
    pub fn of(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read: 0,
        }
    }

    /// Which file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The values that were written since, `most` at most; the rest is for the next time. A record that is
    /// half there is waited for.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else.
    pub fn more(&mut self, most: usize) -> io::Result<Vec<Scalar>> {
        let mut file = File::open(&self.path)?;
        let end = file.metadata()?.len();
        let mut found = Vec::new();
        while found.len() < most && end.saturating_sub(self.read) >= 16 {
            file.seek(SeekFrom::Start(self.read))?;
            let (mut length, mut sum) = ([0; 8], [0; 4]);
            file.read_exact(&mut length)?;
            file.read_exact(&mut sum)?;
            if masked(&length).to_le_bytes() != sum {
                return Err(io::Error::other("this is not TensorBoard's event file"));
            }
            let length = u64::from_le_bytes(length);
            let next = self.read.saturating_add(16).saturating_add(length);
            if next > end {
                break;
            }
            if length <= LONGEST {
                let mut event = vec![0; length as usize];
                file.read_exact(&mut event)?;
                found.extend(scalar(&event));
            }
            self.read = next;
        }
        Ok(found)
    }
}

/// The value in an event; of several the last.
fn scalar(event: &[u8]) -> Option<Scalar> {
    let (mut step, mut found) = (0, None);
    for (number, field) in Fields(event) {
        match (number, field) {
            (2, Field::Number(number)) => step = number,
            (5, Field::Bytes(summary)) => {
                for (number, value) in Fields(summary) {
                    if let (1, Field::Bytes(value)) = (number, value) {
                        found = named(value).or(found);
                    }
                }
            }
            _ => {}
        }
    }
    let (tag, value) = found?;
    Some(Scalar { tag, step, value })
}

fn named(value: &[u8]) -> Option<(String, f32)> {
    let (mut tag, mut number) = (None, None);
    for (field, content) in Fields(value) {
        match (field, content) {
            (1, Field::Bytes(name)) => tag = String::from_utf8(name.to_vec()).ok(),
            (2, Field::Float(bits)) => number = Some(f32::from_bits(bits)),
            _ => {}
        }
    }
    Some((tag?, number?))
}

/// The fields of a message in protobuf's wire format, up to where it is none.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Float(u32),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if *byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Float(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::super::events::Events;
    use super::*;

    fn scalar(tag: &str, step: u64, value: f32) -> Scalar {
        let tag = tag.to_owned();
        Scalar { tag, step, value }
    }

    #[test]
    fn a_growing_file_is_read_on_where_it_was_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path()).unwrap();
        let mut curves = Curves::of(events.path());
        events.scalar("loss/l1", 1, 0.5).unwrap();
        events.picture("grid", 1, (20, 10), &[7; 9000]).unwrap();
        events.scalar("loss/l1", 300, 0.25).unwrap();
        events.flush().unwrap();
        assert_eq!(curves.more(1).unwrap(), [scalar("loss/l1", 1, 0.5)]);
        assert_eq!(curves.more(9).unwrap(), [scalar("loss/l1", 300, 0.25)]);
        assert_eq!(curves.more(9).unwrap(), []);
        // Half a record is waited for.
        events.scalar("speed", 301, -1.0).unwrap();
        events.flush().unwrap();
        let whole = fs::read(events.path()).unwrap();
        fs::write(events.path(), &whole[..whole.len() - 3]).unwrap();
        assert_eq!(curves.more(9).unwrap(), []);
        fs::write(events.path(), &whole).unwrap();
        assert_eq!(curves.more(9).unwrap(), [scalar("speed", 301, -1.0)]);
    }

    proptest! {
        #[test]
        fn other_files_are_refused_or_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("events");
            // A record of anything, then anything.
            let length = (bytes.len() as u64).to_le_bytes();
            let record = [&length[..], &masked(&length).to_le_bytes(), &bytes, &[0; 4], &bytes];
            fs::write(&path, record.concat()).unwrap();
            let mut curves = Curves::of(&path);
            let _ = curves.more(5);
            let _ = curves.more(5);
        }
    }
}
