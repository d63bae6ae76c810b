//! A cursor over untrusted bytes: every read is checked against what is there.

use super::Fault;

/// Little-endian numbers, texts and slices, taken from the front.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// A cursor `position` bytes into `bytes`.
    pub(super) fn at(bytes: &'a [u8], position: usize) -> Result<Self, Fault> {
        if position > bytes.len() {
            return Err(Fault::Truncated);
        }
        Ok(Self { bytes, position })
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let end = self.position.checked_add(len).ok_or(Fault::Truncated)?;
        let taken = self.bytes.get(self.position..end).ok_or(Fault::Truncated)?;
        self.position = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Fault> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length or offset of 4 bytes.
    pub(super) fn len32(&mut self) -> Result<usize, Fault> {
        self.u32().map(|len| len as usize)
    }

    /// A length or offset of 8 bytes. More than the machine can address is more than the file has.
    pub(super) fn len64(&mut self) -> Result<usize, Fault> {
        usize::try_from(self.u64()?).ok().ok_or(Fault::Truncated)
    }

    /// UTF-8 text of `len` bytes.
    pub(super) fn text(&mut self, len: usize) -> Result<&'a str, Fault> {
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes)
            .ok()
            .ok_or_else(|| Fault::corrupt("a text in it is not UTF-8"))
    }

    /// Text up to the next line feed, which is taken too.
    pub(super) fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = &self.bytes[self.position..];
        let len = rest
            .iter()
            .position(|&b| b == b'\n')
            .ok_or(Fault::Truncated)?;
        let line = self.text(len)?;
        self.position += 1;
        Ok(line)
    }
}
