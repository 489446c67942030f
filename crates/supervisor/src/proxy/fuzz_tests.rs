//! A session's first packets, as strangers send them: changed by seed (`rhone_fuzz`).

use rhone_fuzz::Fuzz;

use super::packet::{First, STARTUP_MAX, classify, means_not_now};

fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(8 + rest.len()).expect("small");
    [&length.to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
}

#[test]
fn fuzz_first_packets() {
    let corpus = [
        packet(196_608, b"user\0app\0database\0app\0application_name\0psql\0\0"),
        packet(196_610, b"user\0app\0_pq_.x\0\0\0"),
        packet(80_877_103, b""),
        packet(80_877_104, b""),
        packet(80_877_102, &[7; 8]),
        packet(80_877_102, &[7; 36]),
        b"\x16\x03\x01\x00\xf4\x01".to_vec(),
        b"GET / HTTP/1.1\r\n".to_vec(),
    ];
    Fuzz::new("first packet", corpus).cases(8000).run(|bytes| {
        // As it comes in, in pieces: what is not told yet is waited for, and never beyond the longest packet.
        let ends = (0..=bytes.len()).rev().step_by(bytes.len() / 64 + 1);
        for end in ends {
            let (part, length) =
                (&bytes[..end], bytes.get(..4).map(|word| [word[0], word[1], word[2], word[3]]));
            let length = length.map(u32::from_be_bytes);
            match classify(part) {
                First::Incomplete => assert!(end < STARTUP_MAX, "it waits for more than {end} bytes"),
                First::Negotiation => assert_eq!((end, length), (8, Some(8))),
                First::Cancel | First::Startup => assert_eq!(length.map(|it| it as usize), Some(end)),
                First::Other => {}
            }
        }
        format!("{:?}", classify(bytes))
    });
    let answer = b"E\0\0\0\x2cSFATAL\0VFATAL\0C57P03\0Mno primary\0Hwait\0\0".to_vec();
    Fuzz::new("server's answer", [answer, b"N".to_vec(), b"R\0\0\0\x08\0\0\0\0".to_vec()])
        .words(&["C57P03", "\u{0}"])
        .run(|bytes| (means_not_now(bytes), bytes.first() == Some(&b'E')));
}
