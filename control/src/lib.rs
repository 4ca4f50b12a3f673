//! Intent.
