//! `file`: another program says in a file how a server is, as with keepalived's `track_file`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tokio::io::AsyncReadExt;

use super::Failure;

/// A file and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// What is looked at.
    pub says: Says,
}

/// What a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Says {
    /// That it is there: well.
    Exists,
    /// A number: 0 is well, anything else is not, and no file is 0.
    Status,
    /// A number, which is the server's weight.
    Weight,
}

/// The file says no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It is not there.
    #[error("{0} is not there")]
    Missing(PathBuf),
    /// It has a number that is not 0.
    #[error("{0} says {1}")]
    Status(PathBuf, i64),
    /// It does not have the number that it should.
    #[error("{0} has no {1}")]
    NoNumber(PathBuf, &'static str),
}

/// Bytes that are read: more than the longest number.
const LEN_MAX: u64 = 64;

impl File {
    pub(super) async fn ask(&self) -> Result<Option<u16>, Failure> {
        let content = match read(&self.path).await {
            Ok(content) => Some(content),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            Err(error) => return Err(Failure::local(error)),
        };
        Ok(self.judge(content.as_deref())?)
    }

    /// What `content` says, `None` when there is no file: the weight that the server is to have, if any.
    fn judge(&self, content: Option<&str>) -> Result<Option<u16>, Wrong> {
        let path = || self.path.clone();
        match (self.says, content) {
            (Says::Exists, Some(_)) | (Says::Status, None) => Ok(None),
            (Says::Exists | Says::Weight, None) => Err(Wrong::Missing(path())),
            (Says::Status, Some(text)) => match text.trim().parse() {
                Ok(0) => Ok(None),
                Ok(status) => Err(Wrong::Status(path(), status)),
                Err(_) => Err(Wrong::NoNumber(path(), "number")),
            },
            (Says::Weight, Some(text)) => match text.trim().parse() {
                Ok(weight) => Ok(Some(weight)),
                Err(_) => Err(Wrong::NoNumber(path(), "weight from 0 to 65535")),
            },
        }
    }
}

async fn read(path: &Path) -> std::io::Result<String> {
    // A FIFO without a writer would keep a thread for ever.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = tokio::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).await?;
    let mut bytes = Vec::new();
    file.take(LEN_MAX).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_depends_on_what_is_looked_at() {
        let says = |says, content| {
            let judged = File { path: "/f".into(), says }.judge(content);
            judged.map_err(|wrong| wrong.to_string())
        };
        assert_eq!(says(Says::Exists, Some("")), Ok(None));
        assert_eq!(says(Says::Exists, None), Err("/f is not there".into()));
        assert_eq!(says(Says::Status, Some(" 0\n")), Ok(None));
        assert_eq!(says(Says::Status, None), Ok(None));
        assert_eq!(says(Says::Status, Some("-3\n")), Err("/f says -3".into()));
        assert_eq!(says(Says::Status, Some("")), Err("/f has no number".into()));
        assert_eq!(says(Says::Weight, Some("0\n")), Ok(Some(0)));
        assert_eq!(says(Says::Weight, Some("65535")), Ok(Some(65535)));
        assert_eq!(says(Says::Weight, Some("65536")), Err("/f has no weight from 0 to 65535".into()));
        assert_eq!(says(Says::Weight, Some("-1")), Err("/f has no weight from 0 to 65535".into()));
        assert_eq!(says(Says::Weight, None), Err("/f is not there".into()));
    }
}
