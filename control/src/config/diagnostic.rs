//! What is wrong with a configuration, where, and what helps; shown as a compiler shows it.

use std::ops::Range;

use annotate_snippets::{Annotation, AnnotationKind, Level, Renderer, Snippet};

use super::sources::Sources;

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
    /// Where: bytes of all files one after the other ([`Sources::locate`]).
    pub place: Range<usize>,
    /// What is wrong with what stands there.
    pub label: String,
    /// Another place that matters, and why.
    pub related: Option<(Range<usize>, String)>,
    /// What helps.
    pub help: Option<String>,
    base: usize,
}

impl Diagnostic {
    /// Names another place that matters, which counts as the first one does.
    pub fn related(&mut self, place: Range<usize>, label: impl Into<String>) -> &mut Self {
        self.related = Some((shift(place, self.base), label.into()));
        self
    }

    /// Says what helps.
    pub fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }
}

/// Everything found in the files of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    found: Vec<Diagnostic>,
    base: usize,
}

/// `place` in a file that begins at `base`.
pub(super) fn shift(place: Range<usize>, base: usize) -> Range<usize> {
    place.start + base..place.end + base
}

impl Diagnostics {
    /// From now on places are those of the file that begins at `base`.
    pub(super) fn in_file_at(&mut self, base: usize) {
        self.base = base;
    }

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
        let (base, place) = (self.base, shift(place, self.base));
        self.found.push(Diagnostic { severity, message, place, label, related: None, help: None, base });
        self.found.last_mut().expect("one was pushed just now")
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether the file cannot be used.
    pub fn has_errors(&self) -> bool {
        self.found.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// What was found, in the order of discovery.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.found.iter()
    }

    /// The text for people, in the order of the files; empty when nothing was found.
    pub fn render(&self, sources: &Sources, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut found: Vec<_> = self.found.iter().collect();
        found.sort_by_key(|diagnostic| diagnostic.place.start);
        let rendered = found.into_iter().map(|diagnostic| render_one(&renderer, diagnostic, sources));
        rendered.fold(String::new(), |text, one| text + &one + "\n\n")
    }
}

fn render_one(renderer: &Renderer, diagnostic: &Diagnostic, sources: &Sources) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let (file, place) = sources.locate(&diagnostic.place);
    let annotation = |kind: AnnotationKind, place, label| kind.span(place).label(label);
    let mut snippet = Snippet::source(file.text()).path(file.name()).annotation(annotation(
        AnnotationKind::Primary,
        within(&place, file.text()),
        diagnostic.label.as_str(),
    ));
    let mut elsewhere = None;
    if let Some((place, label)) = &diagnostic.related {
        let (other, place) = sources.locate(place);
        let related: Annotation<'_> =
            annotation(AnnotationKind::Context, within(&place, other.text()), label.as_str());
        if std::ptr::eq(file, other) {
            snippet = snippet.annotation(related);
        } else {
            elsewhere = Some(Snippet::source(other.text()).path(other.name()).annotation(related));
        }
    }
    let mut group = level.primary_title(diagnostic.message.as_str()).element(snippet);
    if let Some(elsewhere) = elsewhere {
        group = group.element(elsewhere);
    }
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
