//! How reports and answers travel inside a message's `bytes`: a format byte, then postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The format that this version writes, and the only one that it reads.
const FORMAT: u8 = 1;

/// Packs a value. Empty when it cannot be packed, which no type used here is.
pub(crate) fn pack<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![FORMAT]).unwrap_or_default()
}

/// Unpacks a value; nothing when the bytes are of another format or damaged.
pub(crate) fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => postcard::from_bytes(body).ok(),
        Some(_) | None => None,
    }
}
