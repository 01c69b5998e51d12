//! What a hypervisor backend gives vmferry, as small traits, and their conformance suite.
