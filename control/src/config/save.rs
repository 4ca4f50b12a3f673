//! Configuration files written back: each whole or not at all, and only over what was read.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use super::sources::Sources;

/// Files that are written and not in place yet. Dropping leaves everything as it was.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Where each is now, and where it belongs.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Prepared {
    /// Writes those files of `sources` beside their places that differ from `read`, what the files held when they were
    /// read or written last. The error is for people.
    ///
    /// # Errors
    /// When somebody else has changed the files since, or they cannot be written.
    pub fn new(sources: &Sources, read: &Sources) -> Result<Self, String> {
        if let [stranger, ..] = &sources.strangers()[..] {
            return Err(format!("not saved: {} would be included too; move it away", stranger.display()));
        }
        let mut prepared = Self::default();
        for (_, source) in sources.iter() {
            let was = read.iter().map(|(_, file)| file).find(|file| file.path() == source.path());
            let is = fs::read_to_string(source.path());
            let same = match (&is, was) {
                (Ok(is), Some(was)) => is == was.text(),
                (Ok(is), None) => is == source.text(),
                (Err(error), _) if error.kind() == io::ErrorKind::NotFound => true,
                (Err(error), _) => return Err(format!("not saved: {}: {error}", source.name())),
            };
            if !same {
                return Err(format!(
                    "not saved: {} was changed since it was read; reload first",
                    source.name()
                ));
            }
            if is.is_ok_and(|is| is == source.text()) {
                continue;
            }
            let written = write_beside(source.path(), source.text());
            prepared.files.push(written.map_err(|error| format!("not saved: {}: {error}", source.name()))?);
        }
        Ok(prepared)
    }

    /// Puts the files into their places. Returns how many.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn commit(mut self) -> io::Result<usize> {
        let count = self.files.len();
        for (from, to) in self.files.drain(..) {
            fs::rename(&from, &to).inspect_err(|_| _ = fs::remove_file(&from))?;
            File::open(folder(&to))?.sync_all()?;
        }
        Ok(count)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for (from, _) in &self.files {
            // It is in nobody's way but for its name.
            let _ = fs::remove_file(from);
        }
    }
}

/// Writes `text` to a new file beside `path`, on disk and with the mode and owner of `path`. Returns where it is, and
/// where it belongs: behind a link, what that leads to.
fn write_beside(path: &Path, text: &str) -> io::Result<(PathBuf, PathBuf)> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = folder(&path).join(format!(".{name}.{}.new", std::process::id()));
    let mut file = File::create(&beside)?;
    let mut fill = || {
        if let Ok(old) = fs::metadata(&path) {
            // Whose it is it stays; where that cannot be, it is not written.
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
            file.set_permissions(old.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    fill().inspect_err(|_| _ = fs::remove_file(&beside))?;
    Ok((beside, path))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
