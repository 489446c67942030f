//! The envelope of everything this crate puts on a disk or a wire: a format byte, then postcard.
//!
//! The format byte is raised when an encoding changes; a reader refuses what it does not know.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The encoding written now: postcard of openraft 0.9 types and our own.
const FORMAT: u8 = 4;

/// Why bytes could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    /// Nothing there.
    #[error("the message is empty")]
    Empty,
    /// Written by a version that this one does not know.
    #[error("format {found} is not known here (this version knows {FORMAT})")]
    UnknownFormat {
        /// The format byte found.
        found: u8,
    },
    /// The bytes do not hold what they should, or something cannot be encoded.
    #[error("the encoding is broken")]
    Broken(#[source] postcard::Error),
    /// More bytes than the value needs.
    #[error("{count} bytes follow the value")]
    Trailing {
        /// How many.
        count: usize,
    },
}

/// Encodes `value` with its format byte.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    postcard::to_extend(value, vec![FORMAT]).map_err(CodecError::Broken)
}

/// Decodes what [`encode`] wrote.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (&format, rest) = bytes.split_first().ok_or(CodecError::Empty)?;
    if format != FORMAT {
        return Err(CodecError::UnknownFormat { found: format });
    }
    let (value, left) = postcard::take_from_bytes(rest).map_err(CodecError::Broken)?;
    if left.is_empty() { Ok(value) } else { Err(CodecError::Trailing { count: left.len() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_it_did_not_write() {
        let good = encode(&(7u64, String::from("x"))).expect("encode");
        assert_eq!(decode::<(u64, String)>(&good).expect("decode"), (7, String::from("x")));
        assert!(matches!(decode::<u64>(&[]), Err(CodecError::Empty)));
        assert!(matches!(decode::<u64>(&[9, 1]), Err(CodecError::UnknownFormat { found: 9 })));
        assert!(matches!(decode::<u64>(&[FORMAT, 1, 1]), Err(CodecError::Trailing { count: 1 })));
        for end in 1..good.len() {
            assert!(decode::<(u64, String)>(&good[..end]).is_err(), "prefix of {end} bytes");
        }
    }
}
