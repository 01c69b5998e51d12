//! Dialling the streams of a session.

use std::time::Duration;

use vmferry_transport::{BoxedStream, Endpoint, connect};
use vmferry_wire::{Hello, HelloReply, SPOKEN, SessionToken, StreamRole};

/// How long a dial and a hello may take.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may be silent although data is outstanding before the connection counts as broken.
const PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// What a page stream may have in a unix socket: small enough that a change of priority shows soon. Over TCP the kernel fits the
/// buffer to the way, which a fixed one would be too small for as soon as it is long: 512 KiB carry 30 MB/s over 10 ms.
const UNIX_BUFFER_BYTES: usize = 512 << 10;

/// What a page stream may have in a TCP socket beside what the way to the destination holds now: this is what a slow stream
/// holds up the end of a round with, and a page that a guest waits for.
const MOST_UNSENT_BYTES: u32 = 128 << 10;

/// A token nobody guesses.
pub(crate) fn new_token() -> std::io::Result<SessionToken> {
    let mut token = [0; 16];
    let mut filled = 0;
    while filled < token.len() {
        filled += rustix::rand::getrandom(&mut token[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(SessionToken(token))
}

/// A token as text.
pub(crate) fn token_text(token: SessionToken) -> String {
    token.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The token of a text.
pub(crate) fn parse_token(text: &str) -> Option<SessionToken> {
    let mut token = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in token.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(SessionToken(token))
}

/// Dials a stream of a session and agrees on a version; answers both.
///
/// # Errors
/// One line: unreachable, refused, or no vmferry there.
pub(crate) fn dial(
    endpoint: &Endpoint,
    session: SessionToken,
    role: StreamRole,
) -> Result<(BoxedStream, u16), String> {
    let mut stream = connect(endpoint, DIAL_TIMEOUT).map_err(|e| chain(&e))?;
    let at = |e: &dyn std::error::Error| format!("no session with {endpoint}: {}", chain(e));
    stream.set_nodelay(true).map_err(|e| at(&e))?;
    if matches!(role, StreamRole::Pages { .. }) {
        if matches!(endpoint, Endpoint::Unix { .. }) {
            stream.set_send_buffer(UNIX_BUFFER_BYTES).map_err(|e| at(&e))?;
        }
        // Where that is not possible priorities show later, nothing else.
        let _ = stream.set_most_unsent(MOST_UNSENT_BYTES);
    } else {
        // A fault must not wait behind the push.
        stream.set_low_delay().map_err(|e| at(&e))?;
    }
    stream.set_peer_timeout(PEER_TIMEOUT).map_err(|e| at(&e))?;
    stream.set_read_timeout(Some(DIAL_TIMEOUT)).map_err(|e| at(&e))?;
    Hello {
        versions: SPOKEN,
        session,
        role,
    }
    .write(&mut stream)
    .map_err(|e| at(&e))?;
    let reply = HelloReply::read(&mut stream).map_err(|e| at(&e))?;
    let version = reply.accepted(SPOKEN).map_err(|e| at(&e))?;
    stream.set_read_timeout(None).map_err(|e| at(&e))?;
    Ok((stream, version))
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
