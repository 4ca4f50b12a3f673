//! `ping`, `tcp` and `udp`: what can be reached, and how far.

use std::time::Duration;

use shunt_control::health::probe::pattern::Pattern;
use shunt_control::health::probe::udp::Udp;
use shunt_control::health::probe::{Layer, Probe};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UdpSocket};

use crate::world::{alone, ask, fails, passes, sh, waits};

/// Addresses that are ours and answer nothing: 192.0.2.1 and 2001:db8::1.
fn black_hole() {
    sh("ip addr add 192.0.2.1/32 dev lo; ip addr add 2001:db8::1/128 dev lo nodad
        nft add table inet hole
        nft add chain inet hole hole '{ type filter hook input priority 0; }'
        nft add rule inet hole hole ip daddr 192.0.2.1 drop
        nft add rule inet hole hole ip6 daddr 2001:db8::1 drop");
}

/// A network with nobody in it, which is found out after one ARP request: 10.9.0.0/24.
fn empty_network() {
    sh("ip link add here type veth peer name there; ip addr add 10.9.0.1/24 dev here
        ip link set here up; ip link set there up; sysctl -qw net.ipv4.neigh.here.mcast_solicit=1");
}

fn udp(send: &str, expect: Option<&str>) -> Probe {
    Probe::Udp(Udp { send: send.into(), expect: expect.map(|text| Pattern::Contains(text.into())) })
}

/// Answers datagrams on this address with what they say, twice.
async fn echo(address: &str) {
    let socket = UdpSocket::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut datagram = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
            let answer = [&datagram[..len], &datagram[..len]].concat();
            let _ = socket.send_to(&answer, from).await;
        }
    });
}

#[test]
fn a_ping_is_answered_over_an_echo_socket_and_over_a_raw_one() {
    alone(async || {
        for groups in ["1 0", "0 2147483647"] {
            sh(&format!("sysctl -qw net.ipv4.ping_group_range='{groups}'"));
            for address in ["127.0.0.1:0", "[::1]:0"] {
                assert_eq!(passes(&Probe::Ping, address).await.weight, None);
            }
        }
    });
}

#[test]
fn pings_at_the_same_time_all_have_their_own_answers() {
    alone(async || {
        for groups in ["1 0", "0 2147483647"] {
            sh(&format!("sysctl -qw net.ipv4.ping_group_range='{groups}'"));
            let pings = (0..50).map(|_| passes(&Probe::Ping, "127.0.0.1:0"));
            futures_util::future::join_all(pings).await;
        }
    });
}

#[test]
fn a_ping_into_a_black_hole_has_no_answer_in_time() {
    alone(async || {
        black_hole();
        for groups in ["1 0", "0 2147483647"] {
            sh(&format!("sysctl -qw net.ipv4.ping_group_range='{groups}'"));
            for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
                assert_eq!(waits(&Probe::Ping, address).await, (Layer::L3, "no answer within 1.5s".into()));
            }
        }
    });
}

#[test]
fn a_host_that_is_not_there_is_unreachable_whatever_it_is_asked() {
    alone(async || {
        empty_network();
        let unreachable = (Layer::L3, "unreachable: no route to host".to_owned());
        for probe in [Probe::Ping, Probe::Tcp, udp("hello", None), udp("hello", Some("hello"))] {
            assert_eq!(fails(&probe, "10.9.0.2:7").await, unreachable, "{probe:?}");
        }
        let no_network = (Layer::L3, "unreachable: network is unreachable".to_owned());
        for probe in [Probe::Ping, Probe::Tcp, udp("hello", None)] {
            assert_eq!(fails(&probe, "203.0.113.1:7").await, no_network, "{probe:?}");
            assert_eq!(fails(&probe, "[2001:db8::2]:7").await, no_network, "{probe:?}");
        }
    });
}

#[test]
fn a_port_that_listens_passes_and_one_that_does_not_refuses() {
    alone(async || {
        let v4 = TcpListener::bind("127.0.0.1:80").await.unwrap();
        let v6 = TcpListener::bind("[::1]:80").await.unwrap();
        for address in ["127.0.0.1:80", "[::1]:80"] {
            assert_eq!(passes(&Probe::Tcp, address).await.weight, None);
        }
        drop((v4, v6));
        for address in ["127.0.0.1:80", "[::1]:80"] {
            assert_eq!(fails(&Probe::Tcp, address).await, (Layer::L4, "connection refused".into()));
        }
    });
}

#[test]
fn a_connection_into_a_black_hole_does_not_come_about_in_time() {
    alone(async || {
        black_hole();
        for address in ["192.0.2.1:80", "[2001:db8::1]:80"] {
            assert_eq!(waits(&Probe::Tcp, address).await, (Layer::L4, "no connection within 1.5s".into()));
        }
    });
}

#[test]
fn connections_of_checks_leave_nothing_behind() {
    alone(async || {
        let listener = TcpListener::bind("127.0.0.1:80").await.unwrap();
        let server = tokio::spawn(async move {
            let mut ends = Vec::new();
            for _ in 0..100 {
                let (mut stream, _) = listener.accept().await.unwrap();
                ends.push(stream.read(&mut [0; 8]).await);
            }
            ends
        });
        for _ in 0..100 {
            passes(&Probe::Tcp, "127.0.0.1:80").await;
        }
        for end in server.await.unwrap() {
            let error = end.expect_err("a RST, not the end of a stream");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        let left = sh("ss -Htan state all | grep -v LISTEN || true");
        assert_eq!(left, "");
    });
}

#[test]
fn a_datagram_is_answered_as_it_should_be_or_not() {
    alone(async || {
        echo("127.0.0.1:7").await;
        echo("[::1]:7").await;
        for address in ["127.0.0.1:7", "[::1]:7"] {
            passes(&udp("hello", Some("hellohello")), address).await;
            passes(&udp("hello", None), address).await;
            let wrong = fails(&udp("hello", Some("bye\n")), address).await;
            assert_eq!(wrong, (Layer::L7, "no \"bye\\n\" in the answer".into()));
        }
    });
}

#[test]
fn silence_is_a_good_answer_to_a_datagram_unless_one_is_asked_for() {
    alone(async || {
        let _silent = UdpSocket::bind("127.0.0.1:514").await.unwrap();
        let timeout = Duration::from_millis(600);
        let (answer, took) = ask(&udp("hello", None), "127.0.0.1:514", timeout).await;
        assert!(
            answer.is_ok() && took >= timeout && took < timeout + Duration::from_secs(5),
            "{answer:?} {took:?}"
        );
        let expected = (Layer::L4, "no answer within 1.5s".to_owned());
        assert_eq!(waits(&udp("hello", Some("hello")), "127.0.0.1:514").await, expected);
    });
}

#[test]
fn a_datagram_to_a_port_without_anybody_is_refused() {
    alone(async || {
        for address in ["127.0.0.1:9", "[::1]:9"] {
            for expect in [None, Some("hello")] {
                let refused = (Layer::L4, "connection refused".to_owned());
                assert_eq!(fails(&udp("hello", expect), address).await, refused);
            }
        }
    });
}
