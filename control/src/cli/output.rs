//! What commands print. A reader that has seen enough (`| head`) is no error, a full disk is one.

use std::io::{BufWriter, ErrorKind, Stdout, Write};
use std::ops::ControlFlow;

use anyhow::bail;

/// Standard output, piece by piece.
pub(super) struct Output {
    out: BufWriter<Stdout>,
    failed: Option<std::io::Error>,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { out: BufWriter::new(std::io::stdout()), failed: None }
    }

    /// Writes a piece. Breaks when there is no sense in writing more.
    pub(super) fn write(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        if self.failed.is_none() {
            self.failed = self.out.write_all(bytes).err();
        }
        if self.failed.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Has readers see what was written so far. Breaks as [`Self::write`] does.
    pub(super) fn flush(&mut self) -> ControlFlow<()> {
        if self.failed.is_none() {
            self.failed = self.out.flush().err();
        }
        if self.failed.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// When something could not be written, unless nobody reads any more.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let done = self.failed.take().map_or_else(|| self.out.flush(), Err);
        match done {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                bail!("the answer cannot be written: {error}")
            }
            _ => Ok(()),
        }
    }
}

/// Prints `text`.
///
/// # Errors
/// As [`Output::finish`].
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = Output::new();
    let _ = out.write(text.as_bytes());
    out.finish()
}
