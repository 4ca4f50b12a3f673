//! Bytes and what they mean.

pub mod checksum;
pub mod tcp;
