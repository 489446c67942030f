//! Free loopback ports, outside the range that the kernel gives to outgoing connections.

use std::net::{Ipv4Addr, TcpListener};

use crate::cli::CliError;

/// Linux gives 32768 and above to outgoing connections (`ip_local_port_range`).
const RANGE: std::ops::Range<u16> = 17_000..32_000;

/// Finds so many ports on which nobody listens just now.
pub(super) fn free(count: usize) -> Result<Vec<u16>, CliError> {
    let drawn =
        getrandom::u32().map_err(|error| CliError::failed(format!("draw a random number: {error}")))?;
    let width = u32::from(RANGE.end - RANGE.start);
    // Held until all are found, so that none is found twice.
    let mut held = Vec::with_capacity(count);
    for step in 0..width {
        if held.len() == count {
            break;
        }
        let offset = u16::try_from((drawn.wrapping_add(step)) % width).unwrap_or_default();
        let port = RANGE.start.saturating_add(offset);
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        return Err(CliError::failed(format!("{count} free ports on 127.0.0.1 cannot be found")));
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}
