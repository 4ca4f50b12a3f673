//! `dns` against dnsmasq, and against servers that do what dnsmasq does not.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use shunt_control::health::probe::dns::Dns;
use shunt_control::health::probe::{Layer, Probe};
use tokio::net::UdpSocket;

use crate::servers::Server;
use crate::world::{alone, fails, passes, waits};

fn dns(name: &str, kind: RecordType, answer: Option<&str>) -> Probe {
    let name = Name::from_ascii(name).unwrap();
    Probe::Dns(Dns { name, kind, rcode: ResponseCode::NoError, answer: answer.map(str::to_owned) })
}

/// dnsmasq, which knows what is below `example` and refuses the rest. `big.example` has more addresses than a datagram has
/// room for.
fn dnsmasq() -> Server {
    let mut command: Vec<String> =
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts \
        --pid-file= --user=root --bind-interfaces --listen-address=127.0.0.1,::1 --local=/example/ \
        --host-record=web.example,192.0.2.10,2001:db8::10 --mx-host=web.example,mail.example,10 \
        --txt-record=web.example,hello"
            .split_whitespace()
            .map(str::to_owned)
            .collect();
    command.extend((1..=60).map(|number| format!("--host-record=big.example,192.0.2.{number}")));
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    Server::start(&command, "127.0.0.1:53")
}

#[test]
fn a_query_is_answered_with_the_record_or_without_it() {
    alone(async || {
        let _dnsmasq = dnsmasq();
        for address in ["127.0.0.1:53", "[::1]:53"] {
            passes(&dns("web.example.", RecordType::A, None), address).await;
            passes(&dns("Web.Example.", RecordType::A, Some("192.0.2.10")), address).await;
            passes(&dns("web.example.", RecordType::AAAA, Some("2001:db8::10")), address).await;
            passes(&dns("web.example.", RecordType::MX, Some("10 mail.example")), address).await;
            let wrong = fails(&dns("web.example.", RecordType::A, Some("192.0.2.11")), address).await;
            assert_eq!(wrong, (Layer::L7, "web.example. A: no 192.0.2.11 in the answer".into()));
        }
    });
}

#[test]
fn another_code_is_told_and_may_be_the_one_that_is_wanted() {
    alone(async || {
        let _dnsmasq = dnsmasq();
        let wrong = fails(&dns("no.example.", RecordType::A, None), "127.0.0.1:53").await;
        assert_eq!(wrong, (Layer::L7, "no.example. A: Non-Existent Domain, not No Error".into()));
        let wrong = fails(&dns("elsewhere.test.", RecordType::A, None), "127.0.0.1:53").await;
        assert_eq!(wrong, (Layer::L7, "elsewhere.test. A: Query Refused, not No Error".into()));
        let name = Name::from_ascii("no.example.").unwrap();
        let wanted = Dns { name, kind: RecordType::A, rcode: ResponseCode::NXDomain, answer: None };
        passes(&Probe::Dns(wanted), "127.0.0.1:53").await;
    });
}

#[test]
fn an_answer_that_was_cut_off_is_fetched_over_tcp() {
    alone(async || {
        let _dnsmasq = dnsmasq();
        for number in [1, 30, 60] {
            let address = format!("192.0.2.{number}");
            passes(&dns("big.example.", RecordType::A, Some(&address)), "127.0.0.1:53").await;
        }
        let wrong = fails(&dns("big.example.", RecordType::A, Some("192.0.2.61")), "127.0.0.1:53").await;
        assert_eq!(wrong, (Layer::L7, "big.example. A: no 192.0.2.61 in the answer".into()));
    });
}

#[test]
fn nobody_silence_and_rubbish_are_told_apart() {
    alone(async || {
        let query = dns("web.example.", RecordType::A, None);
        assert_eq!(fails(&query, "127.0.0.1:53").await, (Layer::L4, "connection refused".into()));
        let server = UdpSocket::bind("127.0.0.1:53").await.unwrap();
        assert_eq!(waits(&query, "127.0.0.1:53").await, (Layer::L4, "no answer within 1.5s".into()));
        let rubbish = tokio::spawn(async move {
            let mut asked = [0; 512];
            for _ in 0..2 {
                let (_, from) = server.recv_from(&mut asked).await.unwrap();
                // Another's answer, which is passed over; then one to this query that says nothing.
                server.send_to(&[!asked[0], asked[1], 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], from).await.unwrap();
                server.send_to(&[asked[0], asked[1], 0xff], from).await.unwrap();
            }
        });
        // The first query of the two is the one that has waited above.
        assert_eq!(
            fails(&query, "127.0.0.1:53").await,
            (Layer::L7, "web.example. A: the answer is not DNS".into())
        );
        rubbish.await.unwrap();
    });
}
