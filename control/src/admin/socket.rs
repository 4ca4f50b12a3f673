//! The Unix socket as a file: claimed by one daemon, readable by its owner only, gone when the daemon stops.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode};
use tokio::net::{UnixListener, UnixStream};

/// Why the socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("api.socket {0}: a daemon is running on it; stop it first, or configure another socket")]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("api.socket {0}: is there and is no socket; remove it, or configure another path")]
    NoSocket(PathBuf),
    /// Nobody is in the group because there is none.
    #[error("api.group: there is no group {0:?} in /etc/group")]
    NoGroup(String),
    /// A system call failed.
    #[error("api.socket {path}: cannot {action}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A claimed socket. Dropping removes the file.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What is gone already need not be removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether a daemon listens on `path`, also when it has so many clients that it takes no more just now.
pub async fn is_alive(path: &Path) -> bool {
    match UnixStream::connect(path).await {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
    }
}

/// The number of the group `name`, which may be a number itself.
///
/// # Errors
/// When there is none.
pub fn group(name: &str) -> Result<Gid, SocketError> {
    let known = std::fs::read_to_string("/etc/group").unwrap_or_default();
    // name:password:number:members, see group(5)
    let number = known.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)).flatten()
    });
    let number = number.unwrap_or(name).parse().map_err(|_| SocketError::NoGroup(name.to_owned()))?;
    Ok(Gid::from_raw(number))
}

/// Listens on `path`, mode 0600, or 0660 for the members of a `group`. What a daemon that crashed left there is replaced.
///
/// # Errors
/// When a daemon runs there, there is no such group, or the file system refuses.
pub async fn claim(path: &Path, group: Option<&str>) -> Result<(UnixListener, Claim), SocketError> {
    let io = |action| move |source| SocketError::Io { path: path.to_owned(), action, source };
    let group = group.map(self::group).transpose()?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io("create its folder"))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NoSocket(path.to_owned())),
        Ok(_) if is_alive(path).await => return Err(SocketError::InUse(path.to_owned())),
        Ok(_) => std::fs::remove_file(path).map_err(io("remove the stale socket"))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io("look at it")(error)),
    }
    // The mask makes the file private from its first moment on.
    let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(mask);
    let claimed = (listener.map_err(io("listen"))?, Claim { path: path.to_owned() });
    if let Some(group) = group {
        let errno = |action| move |errno: rustix::io::Errno| io(action)(errno.into());
        rustix::fs::chown(path, None, Some(group)).map_err(errno("give it to its group"))?;
        rustix::fs::chmod(path, Mode::from_raw_mode(0o660)).map_err(errno("open it to its group"))?;
    }
    Ok(claimed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_daemon_too_busy_to_take_another_client_keeps_its_socket() {
        let path = std::env::temp_dir().join(format!("shunt-busy-{}.sock", std::process::id()));
        assert!(!is_alive(&path).await);
        let (listener, own) = claim(&path, None).await.unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut clients = Vec::new();
        while let Ok(client) = UnixStream::connect(&path).await {
            clients.push(client);
            assert!(clients.len() < 100, "the backlog is full at last");
        }
        assert!(matches!(claim(&path, None).await, Err(SocketError::InUse(_))));
        drop(listener);
        assert!(!is_alive(&path).await, "nobody listens on what a crash has left");
        drop(own);
        assert!(!path.exists());
    }
}
