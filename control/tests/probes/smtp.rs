//! `smtp` against aiosmtpd, and against servers that are none.

use shunt_control::health::probe::smtp::Smtp;
use shunt_control::health::probe::{Layer, Probe};
use tokio::net::TcpListener;

use crate::servers::{Habit, Server, misbehaving};
use crate::world::{alone, fails, passes, waits};

fn smtp() -> Probe {
    Probe::Smtp(Smtp { helo: "director.example".to_owned() })
}

#[test]
fn a_mail_server_greets_and_lets_us_go() {
    alone(async || {
        let command = "/usr/bin/python3 -m aiosmtpd -n -c aiosmtpd.handlers.Sink -l 127.0.0.1:25";
        let command: Vec<&str> = command.split(' ').collect();
        let _server = Server::start(&command, "127.0.0.1:25");
        for _ in 0..3 {
            passes(&smtp(), "127.0.0.1:25").await;
        }
    });
}

#[test]
fn a_server_that_is_busy_or_no_mail_server_is_told() {
    let told = |habit, expected: &'static str| {
        alone(async move || {
            misbehaving(25, habit).await;
            assert_eq!(fails(&smtp(), "127.0.0.1:25").await, (Layer::L7, expected.into()));
        });
    };
    told(Habit::Says(b"421 too busy\r\n"), "greeting: 421, not 220");
    told(Habit::Says(b"SSH-2.0-OpenSSH_9.2\r\n"), "greeting: the answer is not SMTP");
    told(Habit::SaysAndCloses(b""), "greeting: the server closed the connection");
    told(Habit::Floods(b"220-"), "greeting: the answer is not SMTP");
}

#[test]
fn nobody_and_a_server_that_says_nothing_are_told_apart() {
    alone(async || {
        assert_eq!(fails(&smtp(), "127.0.0.1:25").await, (Layer::L4, "connection refused".into()));
        let _silent = TcpListener::bind("127.0.0.1:25").await.unwrap();
        assert_eq!(waits(&smtp(), "127.0.0.1:25").await, (Layer::L7, "no answer within 1.5s".into()));
    });
}

#[test]
fn a_server_that_drips_has_no_more_time_than_any_other() {
    alone(async || {
        misbehaving(25, Habit::Drips(b"220-")).await;
        assert_eq!(waits(&smtp(), "127.0.0.1:25").await, (Layer::L7, "no answer within 1.5s".into()));
    });
}
