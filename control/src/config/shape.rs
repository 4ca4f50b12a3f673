//! TOML's own errors: syntax, unknown keys, wrong types. The reader stops at the first; to show all of them at once,
//! the entry it stopped at is blanked out and the rest is read again.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostics;
use super::parse::nearest;
use super::resolve::list;

/// Errors of this kind that are shown of one file.
const ERRORS_MAX: usize = 50;

/// Tables whose values mean nothing to the others: the rest of the file makes sense without a wrong one.
const APART: [&str; 4] = ["engine", "api", "metrics", "timeouts"];

/// A file as typed. Unknown keys are reported and left out, and so are values of a wrong type in the tables
/// [`APART`]; `None` after any other error, for what a service means without a value that was meant is anybody's guess.
pub(super) fn read<F: DeserializeOwned>(text: &str, diagnostics: &mut Diagnostics) -> Option<F> {
    let mut rest = text.to_owned();
    let mut makes_sense = true;
    for _ in 0..ERRORS_MAX {
        let error = match toml::from_str(&rest) {
            Ok(file) => return makes_sense.then_some(file),
            Err(error) => error,
        };
        let unknown_key = report(text, &error, diagnostics);
        let place = error.span()?;
        makes_sense &= unknown_key || is_apart(&rest, &place);
        rest = without(&rest, &place)?;
    }
    None
}

/// Notes an error. Returns whether it is an unknown key.
fn report(text: &str, error: &toml::de::Error, diagnostics: &mut Diagnostics) -> bool {
    let place = error.span().unwrap_or(0..0);
    let message = error.message();
    let Some((unknown, known)) = unknown_key(message) else {
        let table = text.get(place.clone()).is_some_and(|typed| typed.starts_with('['));
        let is_list = message.ends_with("expected a sequence");
        let message = message
            .replace("expected i64", "expected a whole number")
            .replace("invalid type: map", "invalid type: table")
            .replace("expected a sequence", "expected a list");
        let diagnostic = diagnostics.error(place, message, if table { "in this table" } else { "here" });
        if is_list {
            diagnostic.help(if table {
                "write [[…]] with two brackets"
            } else {
                "write it in brackets: [ … ]"
            });
        }
        return false;
    };
    let diagnostic = diagnostics.error(place, format!("unknown key `{unknown}`"), "no such key here");
    diagnostic.help(match nearest(unknown, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("keys here are {}", list(known)),
    });
    true
}

/// The key and its alternatives in serde's sentence about an unknown field.
fn unknown_key(message: &str) -> Option<(&str, Vec<&str>)> {
    let mut quoted = message.strip_prefix("unknown field `")?.split('`').step_by(2);
    Some((quoted.next()?, quoted.filter(|word| !word.is_empty()).collect()))
}

/// `text` with the `key = value` at `place` (of either) blanked out, every other byte where it was. `None` when there is
/// none, or what is left is no TOML (a table's header, a part of a dotted key).
fn without(text: &str, place: &Range<usize>) -> Option<String> {
    let table = DeTable::parse(text).ok()?;
    let entry = entry_at(table.get_ref(), place)?;
    let blank: String = text[entry.clone()]
        .chars()
        .map(|c| if c == '\n' { "\n".into() } else { " ".repeat(c.len_utf8()) })
        .collect();
    let rest = [&text[..entry.start], &blank, &text[entry.end..]].concat();
    DeTable::parse(&rest).is_ok().then_some(rest)
}

/// Whether `place` is an entry of one of the tables [`APART`].
fn is_apart(text: &str, place: &Range<usize>) -> bool {
    let Ok(table) = DeTable::parse(text) else { return false };
    table
        .get_ref()
        .iter()
        .any(|(key, value)| APART.contains(&key.get_ref().as_ref()) && entry_in(value, place).is_some())
}

/// The bytes of the innermost `key = value` whose key or value is at `place`.
fn entry_at(table: &DeTable<'_>, place: &Range<usize>) -> Option<Range<usize>> {
    table.iter().find_map(|(key, value)| {
        let here = key.span() == *place || value.span() == *place;
        let plain = !matches!(value.get_ref(), DeValue::Table(_)) && value.span().start >= key.span().end;
        if here && plain { Some(key.span().start..value.span().end) } else { entry_in(value, place) }
    })
}

fn entry_in(value: &Spanned<DeValue<'_>>, place: &Range<usize>) -> Option<Range<usize>> {
    match value.get_ref() {
        DeValue::Table(table) => entry_at(table, place),
        DeValue::Array(values) => values.iter().find_map(|value| entry_in(value, place)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::raw;
    use super::*;

    fn errors(text: &str) -> (usize, bool) {
        let mut diagnostics = Diagnostics::default();
        let file: Option<raw::File> = read(text, &mut diagnostics);
        (diagnostics.iter().count(), file.is_some())
    }

    #[test]
    fn every_unknown_key_is_found_and_the_rest_is_read() {
        let text =
            "[engine]\nworkrs = 2\nidl = \"ü\"\n[[service]]\nnam = \"web\"\n[[service.server]]\nwieght = 1\n";
        assert_eq!(errors(text), (4, true));
    }

    #[test]
    fn wrong_types_are_all_found_and_those_of_a_service_leave_it_without_meaning() {
        assert_eq!(errors("[engine]\nworkers = true\nidle = 3\nworkrs = 1\n"), (3, true));
        assert_eq!(errors("[engine]\nworkers = true\n[[service]]\nmode = 3\n"), (2, false));
    }

    #[test]
    fn syntax_errors_and_unknown_tables_end_the_reading() {
        assert_eq!(errors("[engine\nworkrs = 1\n"), (1, false));
        assert_eq!(errors("[engin]\nworkrs = 1\n"), (1, false));
        assert_eq!(errors("engine.workrs = 1\n"), (1, false));
    }

    #[test]
    fn a_key_in_an_inline_table_that_cannot_be_cut_out_ends_the_reading() {
        assert_eq!(errors("engine = { workrs = 1, workers = 2 }\n"), (1, false));
    }
}
