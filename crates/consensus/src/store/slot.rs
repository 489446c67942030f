//! One slot of a two-slot file: sequence, length and checksum before the content.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;

/// Bytes of one slot: a disk page, so that tearing one cannot touch the other.
pub(crate) const SLOT_SIZE: usize = 4096;
const MAGIC: &[u8; 8] = b"RHONEHS1";
/// Magic, sequence, length, checksum.
const HEADER: usize = 8 + 8 + 4 + 4;

/// Encodes a whole slot, padded with zeros.
pub(crate) fn encode<T: Serialize>(sequence: u64, value: &T) -> io::Result<Vec<u8>> {
    let content = codec::encode(value).map_err(io::Error::other)?;
    if content.len() > SLOT_SIZE - HEADER {
        return Err(io::Error::other(format!("{} bytes do not fit into a slot", content.len())));
    }
    let length = u32::try_from(content.len()).map_err(io::Error::other)?;
    let mut slot = Vec::with_capacity(SLOT_SIZE);
    slot.extend_from_slice(MAGIC);
    slot.extend_from_slice(&sequence.to_le_bytes());
    slot.extend_from_slice(&length.to_le_bytes());
    slot.extend_from_slice(&checksum(&slot, &content).to_le_bytes());
    slot.extend_from_slice(&content);
    slot.resize(SLOT_SIZE, 0);
    Ok(slot)
}

/// Decodes a slot, or says why it is none.
pub(crate) fn decode<T: DeserializeOwned>(slot: &[u8]) -> io::Result<(u64, T)> {
    let bad = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
    let (head, rest) = slot.split_at_checked(HEADER).ok_or_else(|| bad("too short"))?;
    let (covered, sum) = head.split_at_checked(HEADER - 4).ok_or_else(|| bad("too short"))?;
    if !covered.starts_with(MAGIC) {
        return Err(bad("empty or of another kind"));
    }
    let sequence = covered.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let length = covered.get(16..20).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let expected = sum.try_into().map(u32::from_le_bytes).map_err(io::Error::other)?;
    let (Some(sequence), Some(length)) = (sequence, length) else { return Err(bad("too short")) };
    let content = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let content = content.ok_or_else(|| bad("impossible length"))?;
    if checksum(covered, content) != expected {
        return Err(bad("checksum does not match"));
    }
    let value = codec::decode(content).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((sequence, value))
}

fn checksum(head: &[u8], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(content);
    hasher.finalize()
}
