//! Drives the algorithms of vmferry over a guest and a transport.
