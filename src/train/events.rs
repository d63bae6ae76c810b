//! TensorBoard's event files: a series of records, each a length, the event in protobuf's wire format, and
//! checksums of both (CRC-32C, masked). Scalars and pictures are written, nothing else.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that grows.
#[derive(Debug)]
pub struct Events {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Events {
    /// A new file in a folder, named so that TensorBoard finds it and takes it as later than others there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(folder: &Path) -> io::Result<Self> {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        // A run that is started anew within the second gets the next name.
        for attempt in seconds.. {
            let path = folder.join(format!("events.out.tfevents.{attempt:010}.mimic"));
            match File::create_new(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(file) => {
                    let mut events = Self {
                        file: BufWriter::new(file),
                        path,
                    };
                    let mut version = Message::event(0);
                    version.bytes(3, b"brain.Event:2");
                    events.record(&version.0)?;
                    return Ok(events);
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one value of a curve.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) -> io::Result<()> {
        let mut of_tag = Message::default();
        of_tag.bytes(1, tag.as_bytes());
        of_tag.fixed32(2, value.to_bits());
        self.summary(step, &of_tag)
    }

    /// Writes a PNG.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn picture(
        &mut self,
        tag: &str,
        step: u64,
        size: (u32, u32),
        png: &[u8],
    ) -> io::Result<()> {
        let mut picture = Message::default();
        picture.varint(1, size.1.into());
        picture.varint(2, size.0.into());
        picture.varint(3, 3);
        picture.bytes(4, png);
        let mut of_tag = Message::default();
        of_tag.bytes(1, tag.as_bytes());
        of_tag.bytes(4, &picture.0);
        self.summary(step, &of_tag)
    }

    /// Sees to it that what was written can be read.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn summary(&mut self, step: u64, of_tag: &Message) -> io::Result<()> {
        let mut summary = Message::default();
        summary.bytes(1, &of_tag.0);
        let mut event = Message::event(step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    fn record(&mut self, event: &[u8]) -> io::Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked(&length).to_le_bytes())?;
        self.file.write_all(event)?;
        self.file.write_all(&masked(event).to_le_bytes())
    }
}

/// A message in protobuf's wire format.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// An event of now.
    fn event(step: u64) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64());
        let mut event = Self::default();
        event.key(1, 1);
        event.0.extend(now.to_le_bytes());
        event.varint(2, step);
        event
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.plain(field << 3 | wire);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.plain(value);
    }

    fn fixed32(&mut self, field: u64, bits: u32) {
        self.key(field, 5);
        self.0.extend(bits.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.plain(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// Seven bits at a time.
    fn plain(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// The checksum as records have it: turned and moved, so that one of bytes that hold one is not special.
pub(super) fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// CRC-32C (Castagnoli), bit by bit: a megabyte of picture takes a few milliseconds, now and then.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4: 32 zeros, 32 ones; and the usual digits.
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    /// Fields of a message: number and either a number or bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7F) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let (value, length) = match key & 7 {
                0 => (varint(&mut bytes), 0),
                1 => (0, 8),
                5 => (0, 4),
                _ => (0, varint(&mut bytes) as usize),
            };
            found.push((key >> 3, value, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path()).unwrap();
        let second = Events::create(folder.path()).unwrap();
        assert_ne!(events.path(), second.path());
        events.scalar("loss/perceptual", 300, 1.5).unwrap();
        events.picture("grid", 301, (20, 10), b"png").unwrap();
        events.flush().unwrap();
        let file = std::fs::read(events.path()).unwrap();
        let mut rest = &file[..];
        let mut records = Vec::new();
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            let size = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            assert_eq!(after[..4], masked(length).to_le_bytes());
            let event = &after[4..4 + size];
            assert_eq!(after[4 + size..8 + size], masked(event).to_le_bytes());
            records.push(fields(event));
            rest = &after[8 + size..];
        }
        assert_eq!(records.len(), 3);
        assert_eq!(records[0][2].2, b"brain.Event:2");
        assert_eq!(records[1][1], (2, 300, Vec::new()));
        let value = fields(&fields(&records[1][2].2)[0].2);
        assert_eq!(value[0].2, b"loss/perceptual");
        assert_eq!(value[1].2, 1.5f32.to_le_bytes());
        let value = fields(&fields(&records[2][2].2)[0].2);
        let picture = fields(&value[1].2);
        assert_eq!(
            (picture[0].1, picture[1].1, picture[3].2.as_slice()),
            (10, 20, &b"png"[..])
        );
    }
}
