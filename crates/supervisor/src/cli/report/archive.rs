//! ✦ A `.tar.gz` of texts, which any machine can open. Not compressed: deflate has a form that only wraps, and a
//! report is small.

/// The size of a block of a tar file.
const BLOCK: usize = 512;

/// The most that one stored block of deflate holds.
const STORED: usize = 65_535;

/// Packs files into a folder: a ustar archive (POSIX.1-1988) in gzip (RFC 1952) with stored blocks (RFC 1951, 3.2.4).
pub(super) fn pack(folder: &str, files: &[(String, String)], seconds: u64) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, text) in files {
        tar.extend_from_slice(&header(folder, name, text.len(), seconds));
        tar.extend_from_slice(text.as_bytes());
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    gzip(&tar)
}

/// The head of a file: octal numbers, each ended by a NUL.
fn header(folder: &str, name: &str, size: usize, seconds: u64) -> [u8; BLOCK] {
    let mut head = [0; BLOCK];
    let mut put = |at: usize, text: &str, room: usize| {
        let bytes = text.as_bytes().iter().take(room);
        head.iter_mut().skip(at).zip(bytes).for_each(|(place, byte)| *place = *byte);
    };
    put(0, name, 100);
    put(100, "0000600", 8);
    put(108, "0000000", 8);
    put(116, "0000000", 8);
    put(124, &format!("{size:011o}"), 12);
    put(136, &format!("{seconds:011o}"), 12);
    put(148, "        ", 8);
    put(156, "0", 1);
    put(257, "ustar", 6);
    put(263, "00", 2);
    put(345, folder, 155);
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    head.iter_mut().skip(148).zip(sum.bytes()).for_each(|(place, byte)| *place = byte);
    head
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let blocks = data.len().div_ceil(STORED);
    for (n, block) in data.chunks(STORED).enumerate() {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        out.push(u8::from(n + 1 == blocks));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.extend_from_slice(&crc32fast::hash(data).to_le_bytes());
    // The format counts modulo 2^32.
    let counted = u32::try_from(data.len() & 0xffff_ffff).unwrap_or(u32::MAX);
    out.extend_from_slice(&counted.to_le_bytes());
    out
}
