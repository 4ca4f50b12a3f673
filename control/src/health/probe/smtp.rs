//! `smtp`: a mail server greets (220), answers EHLO or at least HELO (250), and lets us go (RFC 5321).

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};

use super::{Failure, Limit, tcp};

/// A conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Smtp {
    /// The name that we give.
    pub helo: String,
}

/// Not what a mail server says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Another code.
    #[error("{said}: {code}, not {expected}")]
    Code {
        /// What we had said.
        said: &'static str,
        /// What came.
        code: u16,
        /// What would have been good.
        expected: u16,
    },
    /// Something that is no reply, or one of absurd length.
    #[error("{0}: the answer is not SMTP")]
    NotSmtp(&'static str),
    /// The connection ended instead.
    #[error("{0}: the server closed the connection")]
    Closed(&'static str),
}

/// Bytes of one reply: longer than that of any server.
const REPLY_MAX: u64 = 16 << 10;

impl Smtp {
    pub(super) async fn ask(&self, address: SocketAddr, limit: Limit) -> Result<(), Failure> {
        let mut stream = BufReader::new(tcp::connect(address, limit).await?);
        expect(&mut stream, "greeting", 220).await?;
        match self.say(&mut stream, "EHLO").await {
            // Old servers know only HELO (RFC 5321 §3.2).
            Err(Failure::Smtp(Wrong::Code { code: 500..=599, .. })) => self.say(&mut stream, "HELO").await?,
            said => said?,
        }
        stream.write_all(b"QUIT\r\n").await.map_err(|error| Failure::lost(&error))?;
        expect(&mut stream, "QUIT", 221).await
    }

    async fn say(
        &self,
        stream: &mut BufReader<tokio::net::TcpStream>,
        word: &'static str,
    ) -> Result<(), Failure> {
        let line = format!("{word} {}\r\n", self.helo);
        stream.write_all(line.as_bytes()).await.map_err(|error| Failure::lost(&error))?;
        expect(stream, word, 250).await
    }
}

/// Reads a reply to what was `said`, which must have the code `expected`.
async fn expect<S>(stream: &mut BufReader<S>, said: &'static str, expected: u16) -> Result<(), Failure>
where
    S: AsyncRead + Unpin,
{
    match reply(stream, said).await? {
        code if code == expected => Ok(()),
        code => Err(Wrong::Code { said, code, expected }.into()),
    }
}

/// The code of a reply: all its lines have it, and all but the last a hyphen behind (RFC 5321 §4.2).
async fn reply<S>(stream: &mut BufReader<S>, said: &'static str) -> Result<u16, Failure>
where
    S: AsyncRead + Unpin,
{
    let mut stream = stream.take(REPLY_MAX);
    let mut first = None;
    loop {
        let mut line = Vec::new();
        stream.read_until(b'\n', &mut line).await.map_err(|error| Failure::lost(&error))?;
        if line.last() != Some(&b'\n') {
            let wrong = if stream.limit() == 0 { Wrong::NotSmtp(said) } else { Wrong::Closed(said) };
            return Err(wrong.into());
        }
        let (code, last) = code(&line).ok_or(Wrong::NotSmtp(said))?;
        if *first.get_or_insert(code) != code {
            return Err(Wrong::NotSmtp(said).into());
        }
        if last {
            return Ok(code);
        }
    }
}

/// The code of a line, and whether it is the last.
fn code(line: &[u8]) -> Option<(u16, bool)> {
    let (digits, rest) = line.split_first_chunk::<3>()?;
    let code =
        std::str::from_utf8(digits).ok().filter(|_| digits.iter().all(u8::is_ascii_digit))?.parse().ok()?;
    match rest.first()? {
        b'-' => Some((code, false)),
        b' ' | b'\r' | b'\n' => Some((code, true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replied(bytes: &[u8]) -> Result<u16, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut stream = BufReader::new(bytes);
        runtime.block_on(reply(&mut stream, "EHLO")).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_reply_may_have_several_lines_of_one_code() {
        assert_eq!(replied(b"220 mail\r\n"), Ok(220));
        assert_eq!(replied(b"250-mail\r\n250-SIZE 1000\r\n250 HELP\r\n221 bye\r\n"), Ok(250));
        assert_eq!(replied(b"250\n"), Ok(250));
        let not_smtp = || Err("EHLO: the answer is not SMTP".to_owned());
        assert_eq!(replied(b"250-mail\r\n251 HELP\r\n"), not_smtp());
        for bad in ["SSH-2.0-x\r\n", "25\r\n", "+50 x\r\n", "2500\r\n", "\r\n"] {
            assert_eq!(replied(bad.as_bytes()), not_smtp(), "{bad}");
        }
    }

    #[test]
    fn a_reply_that_never_ends_is_none() {
        assert_eq!(replied(b"250-mail\r\n"), Err("EHLO: the server closed the connection".to_owned()));
        assert_eq!(replied(&[b'2'; 20_000]), Err("EHLO: the answer is not SMTP".to_owned()));
        assert_eq!(replied(&b"250-a\r\n".repeat(10_000)), Err("EHLO: the answer is not SMTP".to_owned()));
    }
}
