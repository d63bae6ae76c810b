//! Today's `torch.save`: a zip of stored records, `NAME/data.pkl` beside `NAME/data/0`, `1`, ….
//!
//! Only the zip's directory and local headers are read, by APPNOTE.TXT 6.3, with zip64. Torch never
//! compresses; a compressed record is refused, and with it every bomb. Records are slices of the
//! file, checked against their CRC-32 when a tensor needs them.

use std::collections::{BTreeMap, BTreeSet};

use super::Fault;
use super::names::select;
use super::pickle;
use super::raw::Decoder;
use super::reader::Reader;
use super::state_dict::entries;

/// Most records in a file; torch writes one for each tensor.
const MAX_RECORDS: u64 = 1 << 17;

/// How a zip's first record starts.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";
const LOCAL_HEADER: [u8; 4] = *b"PK\x03\x04";
const CENTRAL_HEADER: [u8; 4] = *b"PK\x01\x02";
const END: [u8; 4] = *b"PK\x05\x06";
const ZIP64_END: [u8; 4] = *b"PK\x06\x06";
const ZIP64_LOCATOR: [u8; 4] = *b"PK\x06\x07";
const END_LEN: usize = 22;
const ZIP64_LOCATOR_LEN: usize = 20;

/// A stored record's bytes and the checksum they should have.
#[derive(Clone, Copy, Debug)]
struct Record<'a> {
    bytes: &'a [u8],
    crc: u32,
}

impl<'a> Record<'a> {
    fn checked(self, name: &str) -> Result<&'a [u8], Fault> {
        if crc32fast::hash(self.bytes) != self.crc {
            return Err(Fault::corrupt(format!(
                "its record {name:?} fails its checksum"
            )));
        }
        Ok(self.bytes)
    }
}

/// Reads the tensors of a zip checkpoint.
pub(super) fn read(file: &[u8]) -> Result<super::Loaded, Fault> {
    let records = records(file)?;
    let mut pickles = records.iter().filter_map(|(name, record)| {
        let prefix = name.strip_suffix("data.pkl")?;
        (prefix.is_empty() || prefix.ends_with('/')).then_some((prefix, *record))
    });
    let (prefix, program) = pickles.next().ok_or_else(|| {
        Fault::corrupt("it is a zip without data.pkl, so not torch.save's (weights inside have to be unpacked)")
    })?;
    if pickles.next().is_some() {
        return Err(Fault::corrupt("it has more than one data.pkl"));
    }
    if let Some(order) = records.get(format!("{prefix}byteorder").as_str())
        && order.bytes != b"little"
    {
        return Err(Fault::corrupt("it is in big-endian byte order"));
    }

    let pickle = pickle::parse(program.checked("data.pkl")?)?;
    let mut checked = BTreeSet::new();
    let storage = |key: &str| {
        let name = format!("{prefix}data/{key}");
        let record = records
            .get(name.as_str())
            .ok_or_else(|| Fault::corrupt(format!("its record {name:?} is missing")))?;
        // Once is enough, however many tensors share a storage.
        if checked.insert(key.to_owned()) {
            record.checked(&name)?;
        }
        Ok(record.bytes)
    };
    select(entries(&pickle)?, Decoder::new(file.len(), storage))
}

/// The records by name, from the directory at the file's end.
fn records(file: &[u8]) -> Result<BTreeMap<&str, Record<'_>>, Fault> {
    let (count, start) = directory(file)?;
    if count > MAX_RECORDS {
        return Err(Fault::Limit(format!("a zip of {count} records")));
    }
    let mut directory = Reader::at(file, start)?;
    let mut records = BTreeMap::new();
    let mut total = 0usize;
    for _ in 0..count {
        let (name, record) = record(file, start, &mut directory)?;
        total = total.saturating_add(record.bytes.len());
        if records.insert(name, record).is_some() {
            return Err(Fault::corrupt(format!("it has two records named {name:?}")));
        }
    }
    if total > start {
        return Err(Fault::corrupt("its records overlap"));
    }
    Ok(records)
}

/// How many records there are and where their directory starts.
fn directory(file: &[u8]) -> Result<(u64, usize), Fault> {
    // The end record is last but for a comment of up to 64 KiB. Without it the file was cut short.
    let last = file.len().checked_sub(END_LEN).ok_or(Fault::Truncated)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    let end = (first..=last)
        .rev()
        .find(|&at| {
            file[at..].starts_with(&END)
                && usize::from(u16::from_le_bytes([file[at + 20], file[at + 21]])) == last - at
        })
        .ok_or(Fault::Truncated)?;

    let mut reader = Reader::at(file, end + 10)?;
    let count = reader.u16()?;
    let _size = reader.u32()?;
    let start = reader.u32()?;
    if count != u16::MAX && start != u32::MAX {
        return Ok((count.into(), start as usize));
    }

    let locator = end
        .checked_sub(ZIP64_LOCATOR_LEN)
        .ok_or_else(|| Fault::corrupt("its zip64 locator is missing"))?;
    let mut reader = Reader::at(file, locator)?;
    if reader.array()? != ZIP64_LOCATOR {
        return Err(Fault::corrupt("its zip64 locator is missing"));
    }
    let _disk = reader.u32()?;
    let mut reader = Reader::at(file, reader.len64()?)?;
    if reader.array()? != ZIP64_END {
        return Err(Fault::corrupt("its zip64 directory is missing"));
    }
    // The record's size, versions, disks and the count on this disk come first.
    reader.take(28)?;
    let count = reader.u64()?;
    let _size = reader.u64()?;
    Ok((count, reader.len64()?))
}

/// Takes one directory entry, and finds the record it points to before `limit`.
fn record<'a>(
    file: &'a [u8],
    limit: usize,
    directory: &mut Reader<'a>,
) -> Result<(&'a str, Record<'a>), Fault> {
    if directory.array()? != CENTRAL_HEADER {
        return Err(Fault::corrupt("its zip directory is damaged"));
    }
    let _versions = directory.u32()?;
    let flags = directory.u16()?;
    let method = directory.u16()?;
    let _time = directory.u32()?;
    let crc = directory.u32()?;
    let packed = directory.u32()?;
    let size = directory.u32()?;
    let name_len = directory.u16()?.into();
    let extra_len = directory.u16()?.into();
    let comment_len = directory.u16()?.into();
    let _disk_and_attributes = directory.take(8)?;
    let offset = directory.u32()?;
    let name = directory.text(name_len)?;
    let extra = directory.take(extra_len)?;
    directory.take(comment_len)?;

    if method != 0 || flags & 1 != 0 {
        return Err(Fault::corrupt(format!(
            "its record {name:?} is compressed or encrypted, which torch.save never does"
        )));
    }
    let [packed, size, offset] = zip64([packed, size, offset], extra)?;
    if packed != size {
        return Err(Fault::corrupt(format!(
            "its record {name:?} has two different sizes"
        )));
    }

    let mut local = Reader::at(file, offset)?;
    if local.array()? != LOCAL_HEADER {
        return Err(Fault::corrupt(format!(
            "its record {name:?} is not where it should be"
        )));
    }
    local.take(22)?;
    let skipped = usize::from(local.u16()?) + usize::from(local.u16()?);
    local.take(skipped)?;
    let bytes = local.take(size)?;
    if local.position() > limit {
        return Err(Fault::corrupt(format!(
            "its record {name:?} overlaps the directory"
        )));
    }
    Ok((name, Record { bytes, crc }))
}

/// Sizes and offset, those that are all ones replaced from the zip64 extra field. The field has the
/// unpacked size first, the directory the packed one.
fn zip64(short: [u32; 3], extra: &[u8]) -> Result<[usize; 3], Fault> {
    let mut values = short.map(|value| value as usize);
    if !short.contains(&u32::MAX) {
        return Ok(values);
    }
    let mut extra = Reader::new(extra);
    let mut field = loop {
        let (kind, len) = (extra.u16()?, extra.u16()?);
        let field = extra.take(len.into())?;
        if kind == 1 {
            break Reader::new(field);
        }
    };
    for i in [1, 0, 2] {
        if short[i] == u32::MAX {
            values[i] = field.len64()?;
        }
    }
    Ok(values)
}
