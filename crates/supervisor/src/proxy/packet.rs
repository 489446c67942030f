//! ✦ The first packets of a session, as far as a proxy has to know them: everything after them passes unread.
//!
//! PostgreSQL's "Message Formats": a client speaks first, with a length of four bytes and a code of four.

/// `SSLRequest`.
const SSL: u32 = 80_877_103;
/// `GSSENCRequest`.
const GSS: u32 = 80_877_104;
/// `CancelRequest`.
const CANCEL: u32 = 80_877_102;

/// The longest startup packet that Postgres accepts (`MAX_STARTUP_PACKET_LENGTH`).
pub(super) const STARTUP_MAX: usize = 10_000;

/// The longest cancel request: protocol 3.2 has keys of up to 256 bytes.
const CANCEL_MAX: usize = 268;

/// What a client's first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// Too few to say.
    Incomplete,
    /// A request for TLS or GSS encryption; the server answers with one byte.
    Negotiation,
    /// A request to cancel what another session does; there is no answer.
    Cancel,
    /// A startup message in the clear; the server answers with messages.
    Startup,
    /// Something else, TLS without a request before it among others: it passes as it is.
    Other,
}

/// Says what a client's first bytes are.
pub(super) fn classify(bytes: &[u8]) -> First {
    let word = |at: usize| {
        let word: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(word))
    };
    // A TLS record begins with 22, no length of a startup packet does.
    if bytes.first().is_some_and(|first| *first != 0) {
        return First::Other;
    }
    let Some(length) = word(0) else { return First::Incomplete };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if !(8..=STARTUP_MAX).contains(&length) {
        return First::Other;
    }
    let Some(code) = word(4) else { return First::Incomplete };
    if bytes.len() < length {
        return First::Incomplete;
    }
    // Bytes beyond the packet are none that a client may send yet: the server is to judge them.
    match code {
        _ if bytes.len() > length => First::Other,
        SSL | GSS if length == 8 => First::Negotiation,
        CANCEL if (16..=CANCEL_MAX).contains(&length) => First::Cancel,
        _ => First::Startup,
    }
}

/// Why the proxy turns a client away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The SQLSTATE.
    pub(super) code: &'static str,
    /// The message.
    pub(super) message: &'static str,
    /// What to do about it.
    pub(super) hint: &'static str,
}

/// Renders an `ErrorResponse` of severity FATAL.
pub(super) fn error_response(refusal: Refusal) -> Vec<u8> {
    let mut fields = Vec::new();
    let parts = [
        (b'S', "FATAL"),
        (b'V', "FATAL"),
        (b'C', refusal.code),
        (b'M', refusal.message),
        (b'H', refusal.hint),
    ];
    for (kind, text) in parts {
        fields.push(kind);
        fields.extend_from_slice(text.as_bytes());
        fields.push(0);
    }
    fields.push(0);
    let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
    let mut packet = vec![b'E'];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.append(&mut fields);
    packet
}

/// Returns the SQLSTATE of a server's answer when it is one `ErrorResponse`.
fn error_code(answer: &[u8]) -> Option<&[u8]> {
    let (kind, rest) = answer.split_first()?;
    let fields = rest.get(4..).filter(|_| *kind == b'E')?;
    let mut fields = fields.split(|byte| *byte == 0);
    fields.find_map(|field| field.strip_prefix(b"C"))
}

/// Says whether a server's answer means "not now": it starts, recovers or shuts down (57P03).
pub(super) fn means_not_now(answer: &[u8]) -> bool {
    error_code(answer) == Some(b"57P03")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(length: u32, code: u32, rest: &[u8]) -> Vec<u8> {
        [&length.to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
    }

    #[test]
    fn first_packets_are_told_apart() {
        let startup = packet(13, 196_608, b"user\0");
        for (bytes, expected) in [
            (Vec::new(), First::Incomplete),
            (vec![0, 0, 0], First::Incomplete),
            (packet(8, SSL, b""), First::Negotiation),
            (packet(8, GSS, b""), First::Negotiation),
            // Bytes behind a request for TLS: CVE-2021-23222; Postgres refuses them itself.
            (packet(8, SSL, b"\x16\x03"), First::Other),
            (packet(16, CANCEL, b"12345678"), First::Cancel),
            (packet(16, CANCEL, b"1234"), First::Incomplete),
            (packet(44, CANCEL, &[7; 36]), First::Cancel),
            (packet(12, CANCEL, b"1234"), First::Startup),
            (startup.clone(), First::Startup),
            (startup.get(..9).unwrap_or_default().to_vec(), First::Incomplete),
            (vec![0x16, 3, 1, 2, 0], First::Other),
            (packet(20_000, 196_608, b""), First::Other),
            (b"GET / HTTP/1.1\r\n".to_vec(), First::Other),
        ] {
            assert_eq!(classify(&bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn an_error_is_rendered_as_postgres_does_and_read_back() {
        let refusal = Refusal { code: "57P03", message: "no primary", hint: "wait" };
        let bytes = error_response(refusal);
        assert_eq!(bytes, b"E\0\0\0\x2cSFATAL\0VFATAL\0C57P03\0Mno primary\0Hwait\0\0");
        assert!(means_not_now(&bytes));
        assert!(!means_not_now(&error_response(Refusal { code: "28P01", ..refusal })));
        for other in [&b"R\0\0\0\x08\0\0\0\0"[..], b"N", b"S", b"", b"E\0"] {
            assert!(!means_not_now(other), "{other:?}");
        }
    }
}
