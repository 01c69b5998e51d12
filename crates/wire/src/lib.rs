//! The migration protocol of vmferry: frames, messages, page encodings. No sockets.
