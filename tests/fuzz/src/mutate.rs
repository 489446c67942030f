//! Changes a message as strangers, torn writes and other versions do.

use crate::random::Random;

/// Bytes at which parsers turn.
const BYTES: [u8; 12] = [0, 1, 2, 8, 0x0a, 0x20, 0x22, 0x2f, 0x7f, 0x80, 0xfe, 0xff];
/// Numbers at which arithmetic turns.
const NUMBERS: [u64; 16] = [
    0,
    1,
    7,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x10_000,
    0x0fff_ffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 53,
    i64::MAX as u64,
    u64::MAX - 1,
    u64::MAX,
];
/// The same, as text has them.
const DIGITS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "1e309",
    "FFFFFFFF",
];

/// Makes a new message of those in the pool.
pub(crate) fn change(random: &mut Random, pool: &[Vec<u8>], words: &[Vec<u8>], longest: usize) -> Vec<u8> {
    let mut message = random.pick(pool).cloned().unwrap_or_default();
    // Mostly one or two changes: what is changed all over is refused at once.
    let changes = 1 + random.below(4).min(random.below(8));
    for _ in 0..changes {
        once(random, &mut message, pool, words);
        message.truncate(longest);
    }
    message
}

fn once(random: &mut Random, message: &mut Vec<u8>, pool: &[Vec<u8>], words: &[Vec<u8>]) {
    let at = random.below(message.len() + 1);
    let some = 1 + random.below(16).min(random.below(64));
    let end = message.len().min(at + some);
    match random.below(13) {
        0 | 1 => {
            if let Some(byte) = message.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        2 => {
            let new =
                if random.below(2) == 0 { random.number().to_le_bytes()[0] } else { BYTES[random.below(12)] };
            if let Some(byte) = message.get_mut(at) {
                *byte = new;
            }
        }
        3 => {
            let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
            let mut bytes = number[..[2, 4, 8][random.below(3)]].to_vec();
            if random.below(2) == 0 {
                bytes.reverse();
            }
            let until = message.len().min(at + bytes.len());
            message.splice(at..until, bytes);
        }
        4 => {
            let number = NUMBERS[random.below(NUMBERS.len())];
            message.splice(at..message.len().min(at + 1), varint(number));
        }
        5 => message.truncate(at),
        6 => {
            message.drain(at..end);
        }
        7 => {
            let copy = message[at..end].to_vec();
            let times = 1 + random.below(4);
            message.splice(at..at, copy.repeat(times));
        }
        8 => {
            let new: Vec<u8> = (0..some).map(|_| random.number().to_le_bytes()[0]).collect();
            message.splice(at..at, new);
        }
        9 => {
            // The head of one and the tail of another.
            let other = random.pick(pool).cloned().unwrap_or_default();
            let from = random.below(other.len() + 1);
            message.truncate(at);
            message.extend_from_slice(&other[from..]);
        }
        10 => {
            let other = random.pick(pool).cloned().unwrap_or_default();
            let from = random.below(other.len() + 1);
            let until = other.len().min(from + some);
            message.splice(at..at, other[from..until].to_vec());
        }
        11 => digits(random, message, at),
        _ => {
            let word = random.pick(words).cloned().unwrap_or_else(|| BYTES.to_vec());
            message.splice(at..end, word);
        }
    }
}

/// Puts another number where there is one in figures.
fn digits(random: &mut Random, message: &mut Vec<u8>, at: usize) {
    let Some(begin) = (at..message.len()).find(|&at| message[at].is_ascii_digit()) else { return };
    let end = (begin..message.len()).find(|&at| !message[at].is_ascii_digit()).unwrap_or(message.len());
    let new = DIGITS[random.below(DIGITS.len())].bytes();
    message.splice(begin..end, new);
}

/// Encodes a number as protobuf and postcard do.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = number.to_le_bytes()[0] & 0x7f;
        number >>= 7;
        if number == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}
