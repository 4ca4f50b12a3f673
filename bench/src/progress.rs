//! How far a benchmark is: a bar on a terminal, nothing where nobody looks.

use indicatif::{ProgressBar, ProgressStyle};

/// The bar. It is drawn on the standard error, and goes when it is dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar for so many steps.
    pub fn new(steps: usize) -> Self {
        let style =
            ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}").expect("the template is right");
        Self(ProgressBar::new(steps as u64).with_style(style))
    }

    /// What is done now.
    pub fn begin(&self, what: &str) {
        self.0.set_message(what.to_owned());
        self.0.tick();
    }

    /// A step is done.
    pub fn done(&self) {
        self.0.inc(1);
    }

    /// Prints a line on the standard output, above the bar.
    pub fn say(&self, line: &str) {
        self.0.suspend(|| println!("{line}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
