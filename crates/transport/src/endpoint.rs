//! Where a host can be reached, as operators write it.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::TransportError;

/// The TCP port where none is written.
pub const DEFAULT_PORT: u16 = 7120;

/// The longest path of a unix socket in bytes (`sun_path` without its end).
const MAX_UNIX_PATH_BYTES: usize = 107;

/// A place to listen at or to connect to.
///
/// Written as `host`, `host:port`, `tcp:host:port` or `unix:/path`; an IPv6 address with a port needs
/// brackets. Displayed in the long form, which parses to the same endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// A TCP port.
    Tcp {
        /// Name or address of the host, without brackets.
        host: String,
        /// Port; 0 lets the system choose where one listens.
        port: u16,
    },
    /// A unix socket.
    Unix {
        /// Absolute path of the socket.
        path: PathBuf,
    },
}

impl Endpoint {
    /// A TCP endpoint.
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::Tcp {
            host: host.into(),
            port,
        }
    }

    /// A unix endpoint; `path` should be absolute, at most 107 bytes.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::Unix {
            path: path.as_ref().to_owned(),
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = TransportError;

    fn try_from(text: String) -> Result<Self, TransportError> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl FromStr for Endpoint {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        let parsed = match text.split_once(':') {
            Some(("unix", path)) => parse_unix(path),
            Some(("tcp", rest)) => parse_tcp(rest),
            _ => parse_tcp(text),
        };
        parsed.map_err(|problem| TransportError::Endpoint {
            text: text.to_owned(),
            problem,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
        }
    }
}

fn parse_unix(path: &str) -> Result<Endpoint, &'static str> {
    if !path.starts_with('/') {
        return Err("the path of a unix socket has to be absolute");
    }
    if path.len() > MAX_UNIX_PATH_BYTES {
        return Err("the path of a unix socket has at most 107 bytes");
    }
    if path.contains('\0') {
        return Err("a path holds no zero byte");
    }
    Ok(Endpoint::unix(path))
}

fn parse_tcp(text: &str) -> Result<Endpoint, &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("the bracket is not closed")?;
        host.parse::<Ipv6Addr>()
            .map_err(|_| "there is no IPv6 address in the brackets")?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err("only :port may follow the bracket"),
        }
    } else if text.parse::<Ipv6Addr>().is_ok() {
        (text, None)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    if host
        .chars()
        .any(|c| c.is_whitespace() || c.is_control() || "/[]@".contains(c))
    {
        return Err("the host has a character that no host name has");
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) if port.contains(':') => {
            return Err("there is more than one colon (an IPv6 address with a port needs brackets)");
        }
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port
            .parse()
            .map_err(|_| "the port is not a number from 0 to 65535")?,
        Some(_) => return Err("the port is not a number from 0 to 65535"),
    };
    Ok(Endpoint::tcp(host, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_is_understood() {
        for (text, expected) in [
            ("host2", Endpoint::tcp("host2", DEFAULT_PORT)),
            ("host2:99", Endpoint::tcp("host2", 99)),
            ("tcp:host2:99", Endpoint::tcp("host2", 99)),
            ("tcp:host2", Endpoint::tcp("host2", DEFAULT_PORT)),
            ("192.0.2.1:0", Endpoint::tcp("192.0.2.1", 0)),
            ("::1", Endpoint::tcp("::1", DEFAULT_PORT)),
            ("[::1]", Endpoint::tcp("::1", DEFAULT_PORT)),
            ("tcp:[2001:db8::2]:65535", Endpoint::tcp("2001:db8::2", 65535)),
            ("unix:/run/vmferry.sock", Endpoint::unix("/run/vmferry.sock")),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn each_mistake_is_named() {
        for (text, problem) in [
            ("", "the host is missing"),
            ("tcp:", "the host is missing"),
            (":7120", "the host is missing"),
            ("host:", "the port is not a number"),
            ("host:+5", "the port is not a number"),
            ("host:65536", "the port is not a number"),
            ("host:port", "the port is not a number"),
            ("2001:db8::2:x", "more than one colon"),
            ("[::1", "the bracket is not closed"),
            ("[::1]7120", "only :port may follow"),
            ("[host]:1", "no IPv6 address in the brackets"),
            ("my host", "a character that no host name has"),
            ("http://host", "the port is not a number"),
            ("/run/socket", "a character that no host name has"),
            ("unix:run/socket", "has to be absolute"),
            (&format!("unix:/{}", "x".repeat(107)), "at most 107 bytes"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_is_displayed_as_what_parses_to_the_same(text in "(tcp:|unix:|)[\\[a-f0-9:./\\]-]{0,24}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
            }
        }
    }
}
