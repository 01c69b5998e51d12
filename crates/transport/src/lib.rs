//! Streams for vmferry: TCP and unix sockets behind one trait.
