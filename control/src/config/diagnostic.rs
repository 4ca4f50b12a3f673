//! What is wrong with a file, where, and what helps; shown as a compiler shows it.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// Whether the file can be used all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but probably does not mean what was wanted.
    Warning,
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, naming the key.
    pub message: String,
    /// Where: bytes of the file.
    pub place: Range<usize>,
    /// What is wrong with what stands there.
    pub label: String,
    /// Another place that matters, and why.
    pub related: Option<(Range<usize>, String)>,
    /// What helps.
    pub help: Option<String>,
}

impl Diagnostic {
    /// Names another place that matters.
    pub fn related(&mut self, place: Range<usize>, label: impl Into<String>) -> &mut Self {
        self.related = Some((place, label.into()));
        self
    }

    /// Says what helps.
    pub fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }
}

/// Everything found in one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    found: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Notes an error.
    pub fn error(
        &mut self,
        place: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> &mut Diagnostic {
        self.note(Severity::Error, place, message.into(), label.into())
    }

    /// Notes a warning.
    pub fn warning(
        &mut self,
        place: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> &mut Diagnostic {
        self.note(Severity::Warning, place, message.into(), label.into())
    }

    fn note(
        &mut self,
        severity: Severity,
        place: Range<usize>,
        message: String,
        label: String,
    ) -> &mut Diagnostic {
        self.found.push(Diagnostic { severity, message, place, label, related: None, help: None });
        self.found.last_mut().expect("one was pushed just now")
    }

    /// Whether the file cannot be used.
    pub fn has_errors(&self) -> bool {
        self.found.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// What was found, in the order of discovery.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.found.iter()
    }

    /// The text for people, in the order of the file; empty when nothing was found.
    pub fn render(&self, path: &str, source: &str, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut found: Vec<_> = self.found.iter().collect();
        found.sort_by_key(|diagnostic| diagnostic.place.start);
        let rendered = found.into_iter().map(|diagnostic| render_one(&renderer, diagnostic, path, source));
        rendered.fold(String::new(), |text, one| text + &one + "\n\n")
    }
}

fn render_one(renderer: &Renderer, diagnostic: &Diagnostic, path: &str, source: &str) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let place = within(&diagnostic.place, source);
    let mut snippet = Snippet::source(source)
        .path(path)
        .annotation(AnnotationKind::Primary.span(place).label(diagnostic.label.as_str()));
    if let Some((place, label)) = &diagnostic.related {
        snippet =
            snippet.annotation(AnnotationKind::Context.span(within(place, source)).label(label.as_str()));
    }
    let mut group = level.primary_title(diagnostic.message.as_str()).element(snippet);
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    renderer.render(&[group])
}

/// A place that lies inside the file and shows one line: a table's place is its first line.
fn within(place: &Range<usize>, source: &str) -> Range<usize> {
    let start = place.start.min(source.len());
    let end = place.end.clamp(start, source.len());
    match source.get(start..end).and_then(|text| text.find('\n')) {
        Some(newline) => start..start + newline,
        None => start..end,
    }
}
