//! `dns`: a query is answered with the right code, and with the right record when one is asked for (RFC 1035). Over UDP,
//! and over TCP when the answer was cut off.

use std::net::SocketAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use rustix::net::SocketType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Failure, Limit, icmp, tcp};

/// A query and how it must be answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dns {
    /// The name that is asked for.
    pub name: Name,
    /// The type of records.
    pub kind: RecordType,
    /// The code of a good answer.
    pub rcode: ResponseCode,
    /// The data of a record that must be among the answers, as `dig` would show it, but for case and the last dot.
    pub answer: Option<String>,
}

/// Not the DNS answer that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Another code.
    #[error("{asked}: {rcode}, not {expected}")]
    Code {
        /// The name and type that were asked for.
        asked: String,
        /// The code that came.
        rcode: ResponseCode,
        /// The code of a good answer.
        expected: ResponseCode,
    },
    /// The record is not there.
    #[error("{asked}: no {expected} in the answer")]
    Answer {
        /// The name and type that were asked for.
        asked: String,
        /// The data of the record.
        expected: String,
    },
    /// Something that is no answer to the query.
    #[error("{asked}: the answer is not DNS")]
    NotDns {
        /// The name and type that were asked for.
        asked: String,
    },
}

/// What a datagram is to a query that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Something else: the answer may still come.
    Stray,
    /// The answer, but for what did not fit: TCP has it all.
    Truncated,
    /// The answer.
    Judged(Result<(), Wrong>),
}

/// Bytes of a datagram that are looked at: without EDNS there are no longer answers (RFC 1035 §4.2.1), and what is longer
/// is still read.
const DATAGRAM_MAX: usize = 4096;

impl Dns {
    pub(super) async fn ask(&self, address: SocketAddr, limit: Limit) -> Result<(), Failure> {
        let failed = |error| Failure::connecting(&error, limit.timeout);
        let socket = icmp::connected(address, SocketType::DGRAM, None).await?;
        let query = self.query();
        let id = query.metadata.id;
        let bytes = query.to_vec().map_err(|error| Failure::CannotAsk(error.to_string()))?;
        socket.send(&bytes).await.map_err(failed)?;
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            let len = socket.recv(&mut datagram).await.map_err(failed)?;
            match self.reply(id, &datagram[..len]) {
                Reply::Stray => {}
                Reply::Truncated => return self.ask_over_tcp(address, id, &bytes, limit).await,
                Reply::Judged(verdict) => return Ok(verdict?),
            }
        }
    }

    async fn ask_over_tcp(
        &self,
        address: SocketAddr,
        id: u16,
        query: &[u8],
        limit: Limit,
    ) -> Result<(), Failure> {
        let lost = |error| Failure::lost(&error);
        let mut stream = tcp::connect(address, limit).await?;
        let len = u16::try_from(query.len()).unwrap_or(u16::MAX);
        stream.write_all(&[&len.to_be_bytes(), query].concat()).await.map_err(lost)?;
        let len = stream.read_u16().await.map_err(lost)?;
        let mut message = vec![0; len.into()];
        stream.read_exact(&mut message).await.map_err(lost)?;
        match self.reply(id, &message) {
            Reply::Judged(verdict) => Ok(verdict?),
            Reply::Stray | Reply::Truncated => Err(self.not_dns().into()),
        }
    }

    fn query(&self) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(self.name.clone(), self.kind));
        message
    }

    /// What `bytes` are to the query with this `id`.
    pub fn reply(&self, id: u16, bytes: &[u8]) -> Reply {
        let Ok(message) = Message::from_vec(bytes) else {
            let ours = bytes.get(..2) == Some(&id.to_be_bytes());
            return if ours { Reply::Judged(Err(self.not_dns())) } else { Reply::Stray };
        };
        let head = &message.metadata;
        if (head.id, head.message_type, head.op_code) != (id, MessageType::Response, OpCode::Query) {
            return Reply::Stray;
        }
        // Servers that refuse a query need not repeat it.
        let repeated = |query: &Query| query.name() == &self.name && query.query_type() == self.kind;
        if !message.queries.iter().all(repeated) {
            return Reply::Stray;
        }
        if head.truncation {
            return Reply::Truncated;
        }
        Reply::Judged(self.judge(&message))
    }

    fn judge(&self, message: &Message) -> Result<(), Wrong> {
        let rcode = message.metadata.response_code;
        if rcode != self.rcode {
            return Err(Wrong::Code { asked: self.asked(), rcode, expected: self.rcode });
        }
        let Some(expected) = &self.answer else { return Ok(()) };
        let is_it = |record: &Record| {
            record.record_type() == self.kind && normal(&record.data.to_string()) == normal(expected)
        };
        if message.answers.iter().any(is_it) {
            return Ok(());
        }
        Err(Wrong::Answer { asked: self.asked(), expected: expected.clone() })
    }

    fn not_dns(&self) -> Wrong {
        Wrong::NotDns { asked: self.asked() }
    }

    fn asked(&self) -> String {
        format!("{} {}", self.name, self.kind)
    }
}

/// Without what makes no difference: case and the dot of the root.
fn normal(data: &str) -> String {
    data.strip_suffix('.').unwrap_or(data).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::{A, MX};

    use super::*;

    fn dns(kind: RecordType, answer: Option<&str>) -> Dns {
        let name = Name::from_ascii("Example.com.").unwrap();
        Dns { name, kind, rcode: ResponseCode::NoError, answer: answer.map(str::to_owned) }
    }

    fn answer(dns: &Dns, data: RData, change: impl Fn(&mut Message)) -> Reply {
        let mut message = dns.query();
        message.metadata.id = 7;
        message.metadata.message_type = MessageType::Response;
        message.add_answer(Record::from_rdata(dns.name.clone(), 60, data));
        change(&mut message);
        dns.reply(7, &message.to_vec().unwrap())
    }

    #[test]
    fn an_answer_is_judged_by_its_code_and_its_record() {
        let a = RData::A(A::new(192, 0, 2, 1));
        let said = |reply| match reply {
            Reply::Judged(Err(wrong)) => wrong.to_string(),
            other => format!("{other:?}"),
        };
        let good = "Judged(Ok(()))";
        assert_eq!(said(answer(&dns(RecordType::A, None), a.clone(), |_| {})), good);
        assert_eq!(said(answer(&dns(RecordType::A, Some("192.0.2.1")), a.clone(), |_| {})), good);
        assert_eq!(
            said(answer(&dns(RecordType::A, Some("192.0.2.2")), a.clone(), |_| {})),
            "Example.com. A: no 192.0.2.2 in the answer"
        );
        let fails = |message: &mut Message| message.metadata.response_code = ResponseCode::ServFail;
        assert_eq!(
            said(answer(&dns(RecordType::A, None), a, fails)),
            "Example.com. A: Server Failure, not No Error"
        );
        let mx = RData::MX(MX::new(10, Name::from_ascii("Mail.example.com.").unwrap()));
        assert_eq!(said(answer(&dns(RecordType::MX, Some("10 mail.example.com")), mx, |_| {})), good);
    }

    #[test]
    fn what_is_no_answer_to_this_query_is_passed_over() {
        let a = || RData::A(A::new(192, 0, 2, 1));
        let dns = dns(RecordType::A, None);
        assert_eq!(answer(&dns, a(), |message| message.metadata.id = 8), Reply::Stray);
        assert_eq!(
            answer(&dns, a(), |message| message.metadata.message_type = MessageType::Query),
            Reply::Stray
        );
        let other = |message: &mut Message| {
            message.queries[0].set_query_type(RecordType::AAAA);
        };
        assert_eq!(answer(&dns, a(), other), Reply::Stray);
        assert_eq!(dns.reply(7, b""), Reply::Stray);
        assert_eq!(dns.reply(7, &[0, 7, 0]), Reply::Judged(Err(dns.not_dns())));
        assert_eq!(answer(&dns, a(), |message| message.metadata.truncation = true), Reply::Truncated);
        assert_eq!(answer(&dns, a(), |message| message.queries.clear()), Reply::Judged(Ok(())));
    }
}
