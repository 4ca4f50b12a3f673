//! The files of a configuration: the one that was named first, then those that its `include` names.
//!
//! Places in them are counted through all files, as if they stood one after the other.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostics;
use super::{ConfigError, FILE_LEN_MAX};

/// Files that one configuration may have.
pub const FILES_MAX: usize = 1024;

/// A file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    name: String,
    text: Arc<str>,
}

impl Source {
    /// A file that is `text`.
    pub fn new(path: PathBuf, text: impl Into<Arc<str>>) -> Self {
        Self { name: path.display().to_string(), path, text: text.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What stands in it.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn read(path: PathBuf) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(&path)?;
        Ok(Self::new(path, text))
    }

    fn len(&self) -> u64 {
        self.text.len() as u64
    }
}

/// All files of a configuration, in the order in which their services count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    files: Vec<Source>,
}

impl Sources {
    /// The files `main` and `included`.
    pub fn new(main: Source, included: impl IntoIterator<Item = Source>) -> Self {
        Self { files: std::iter::once(main).chain(included).collect() }
    }

    /// Reads the file at `path` and those that it includes. What is wrong with `include` is noted in `diagnostics`.
    ///
    /// # Errors
    /// When the file cannot be read, or all together are too long.
    pub(super) fn read(path: &Path, diagnostics: &mut Diagnostics) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > FILE_LEN_MAX {
            return Err(ConfigError::TooLong(path.to_owned()));
        }
        let mut sources = Self::new(Source::read(path.to_owned()).map_err(read)?, []);
        let mut room = FILE_LEN_MAX - sources.main().len();
        for (pattern, place) in patterns(&sources.main().text.clone()) {
            let paths = match sources.matches(&pattern) {
                Ok(paths) => paths,
                Err(why) => {
                    diagnostics.error(place, format!("include: {pattern:?} is not possible"), why);
                    continue;
                }
            };
            for path in paths {
                let len = std::fs::metadata(&path).map_or(0, |found| found.len());
                room = room.checked_sub(len).ok_or_else(|| ConfigError::TooLong(path.clone()))?;
                match Source::read(path.clone()) {
                    Ok(source) => sources.files.push(source),
                    Err(error) => {
                        let message = format!("include: {} cannot be read", path.display());
                        diagnostics.error(place.clone(), message, error.to_string());
                    }
                }
            }
            if sources.files.len() > FILES_MAX {
                diagnostics.error(place, "include: too many files", format!("{FILES_MAX} are possible"));
                break;
            }
        }
        Ok(sources)
    }

    /// The paths that `include` of the first file leads to now and that are no file of this configuration.
    pub fn strangers(&self) -> Vec<PathBuf> {
        let patterns = patterns(self.main().text());
        let found = patterns.iter().filter_map(|(pattern, _)| self.matches(pattern).ok());
        found.flatten().collect()
    }

    /// Which files `pattern` names that are not there yet, sorted.
    fn matches(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        let path = self.main().path().parent().unwrap_or(Path::new("")).join(pattern);
        let is_new = |path: &PathBuf| self.files.iter().all(|file| file.path() != path);
        if !pattern.contains(['*', '?', '[']) {
            return match path.is_file() {
                true if path == self.main().path() => Err("this is the file itself".to_owned()),
                true => Ok(vec![path].into_iter().filter(is_new).collect()),
                false => Err("there is no such file".to_owned()),
            };
        }
        let text = path.to_str().ok_or("the folder's name is no UTF-8")?;
        // Neither other folders nor files that editors hide.
        let options = glob::MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: true,
        };
        let found = glob::glob_with(text, options).map_err(|error| error.msg.to_owned())?;
        let mut paths = found.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        paths.retain(|path| path.is_file() && is_new(path));
        paths.sort();
        Ok(paths)
    }

    /// The file that was named.
    pub fn main(&self) -> &Source {
        &self.files[0]
    }

    /// All files, with the place where each begins.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Source)> {
        self.files.iter().scan(0, |next, file| {
            let base = *next;
            *next += file.text.len() + 1;
            Some((base, file))
        })
    }

    /// The file and the place in it of a place counted through all files.
    pub fn locate(&self, place: &Range<usize>) -> (&Source, Range<usize>) {
        let (base, file) =
            self.iter().take_while(|(base, _)| *base <= place.start).last().unwrap_or((0, self.main()));
        (file, place.start - base..place.end.saturating_sub(base))
    }
}

/// The patterns of `include`, with their places. A file that is no TOML has none, nor has one with an `include` of
/// another type: whoever reads it in earnest says so.
fn patterns(text: &str) -> Vec<(String, Range<usize>)> {
    if !text.contains("include") {
        return Vec::new();
    }
    // Keys of no table stand before the first one. What comes then may be long.
    let tables = text.match_indices("\n[").map(|(at, _)| at + 1);
    let head = if text.starts_with('[') { 0 } else { tables.min().unwrap_or(text.len()) };
    let Ok(table) = DeTable::parse(&text[..head]) else { return Vec::new() };
    let Some(DeValue::Array(typed)) = table.get_ref().get("include").map(|typed| typed.get_ref()) else {
        return Vec::new();
    };
    let pattern = |value: &toml::Spanned<DeValue<'_>>| match value.get_ref() {
        DeValue::String(pattern) => Some((pattern.to_string(), value.span())),
        _ => None,
    };
    typed.iter().filter_map(pattern).collect()
}
