//! What one `[[service.check]]` asks: its kind, and the keys that this kind knows. How often it is asked is not said here.

use toml::Spanned;

use super::diagnostic::Diagnostics;
use super::raw;
use super::resolve::{integer, list, word};
use super::words::{CheckKind, Word};
use crate::health::probe::Probe;

/// What a check asks, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asks {
    /// The question.
    pub probe: Probe,
    /// The port that is asked; `None`: the server's own.
    pub port: Option<u16>,
}

/// What a check asks, called `key` in messages (`service "web": check`). `None` when its kind is not known.
#[allow(dead_code, reason = "services will have them")]
pub(super) fn asks(key: &str, spanned: &Spanned<raw::Check>, diagnostics: &mut Diagnostics) -> Option<Asks> {
    let typed = spanned.as_ref();
    let Some(_) = &typed.kind else {
        diagnostics
            .error(spanned.span(), format!("{key}: `kind` is missing"), "of this check")
            .help(format!("known are {}", list(CheckKind::ALL.iter().map(|kind| kind.word()))));
        return None;
    };
    let kind = word(&format!("{key}: kind"), &typed.kind, CheckKind::Tcp, diagnostics);
    let port = typed
        .port
        .as_ref()
        .map(|_| integer(&format!("{key}: port"), &typed.port, 1, 1..=65_535, diagnostics));
    let probe = match kind {
        CheckKind::Tcp => Probe::Tcp,
    };
    Some(Asks { probe, port })
}
