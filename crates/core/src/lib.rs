//! The algorithms of vmferry: pages, policies, state machines, handover, metrics. No I/O.
