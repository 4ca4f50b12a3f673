//! A TUN server with a kernel of its own: user-mode Linux decapsulates with the kernel's `ipip`, which the lab's
//! other servers do by a TUN device. It is Debian's package `user-mode-linux`, booted on the host's own files.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::capture::Judged;
use crate::daemon::{Config, Daemon, Driver};
use crate::lab::{Lab, MODES, PLAIN, within};

/// The guest's init: the tunnel as an operator would configure it, and nginx.
const INIT: &str = r#"#!/bin/bash
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
for module in tunnel4 ip_tunnel ipip; do
    insmod "/usr/lib/uml/modules/$(uname -r)/kernel/net/ipv4/$module.ko"
done
ip link set lo up
ip address add 10.2.0.14/24 dev vec0
ip link set vec0 up
ip route add default via 10.2.0.10
ip link add tun0 type ipip local 10.2.0.14 remote any
ip address add 203.0.113.41/32 dev tun0
ip link set tun0 up
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 0 >/proc/sys/net/ipv4/conf/tun0/rp_filter
mkdir /run/nginx
cat >/run/nginx.conf <<CONF
pid /run/nginx/pid; error_log /run/nginx/error.log; worker_processes 1; events {}
http {
    access_log off; keepalive_timeout 0;
    client_body_temp_path /run/nginx/body; proxy_temp_path /run/nginx/proxy;
    fastcgi_temp_path /run/nginx/fastcgi; uwsgi_temp_path /run/nginx/uwsgi; scgi_temp_path /run/nginx/scgi;
    server { listen 80; location / { return 200 "uml\n"; } }
}
CONF
nginx -e /run/nginx/error.log -p /run/nginx -c /run/nginx.conf
echo "the guest is ready"
while :; do sleep 1000; done
"#;

const SERVICE: &str = "[[service]]\nname = \"uml\"\nlisten = [\"203.0.113.41:80\"]\nprotocol = \"tcp\"\n\
                       mode = \"tun\"\nscheduler = \"rr\"\n[[service.server]]\naddress = \"10.2.0.14:80\"\n";

#[test]
fn a_server_with_the_kernels_own_ipip_takes_tun_traffic() {
    let mut lab = Lab::new("uml", PLAIN);
    let mut guest = boot(&lab);
    Daemon::start(&mut lab, &Config { more: SERVICE.to_owned(), ..Config::new(Driver::Native) });
    lab.capture("client", "back");
    lab.capture("switch", "director");
    for _ in 0..20 {
        assert_eq!(lab.get("http://203.0.113.41/"), "uml");
    }
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 3), [1; 3], "{mode}: next to it");
    }
    lab.judge(Judged::FromDirector);
    let seen = |filter: &str| lab.captures.iter().map(|capture| capture.count(filter)).collect::<Vec<_>>();
    let answers = seen("ip.src == 203.0.113.41");
    assert!(
        answers[0] >= 20 * 4 && seen("eth.dst == 02:00:0a:02:00:02 && ip.src == 203.0.113.41")[1] == 0,
        "the guest answers the client past the director: {answers:?}"
    );
    assert!(seen("ip.proto == 4 && ip.dst == 10.2.0.14")[1] >= 20 * 4, "the director encapsulates");
    guest.kill().unwrap();
    guest.wait().unwrap();
}

/// Boots the guest at a port of the lab's switch and waits for its nginx.
fn boot(lab: &Lab) -> Child {
    lab.sh("switch", "ip tuntap add dev uml mode tap; ip link set uml up master back");
    let init = lab.folder().join("init");
    std::fs::write(&init, INIT).unwrap();
    std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755)).unwrap();
    let console = lab.folder().join("console.log");
    let guest = Command::new("ip")
        .args(["netns", "exec", &lab.namespace("switch"), "linux.uml", "mem=96M", "rootfstype=hostfs"])
        .args([
            "rootflags=/",
            "ro",
            "vec0:transport=tap,ifname=uml,depth=64",
            "con=null",
            "con0=fd:0,fd:1",
            "ssl=null",
        ])
        .arg(format!("init={}", init.display()))
        .env("HOME", lab.folder())
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&console).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    within(Duration::from_secs(30), "the guest boots", || {
        String::from_utf8_lossy(&std::fs::read(&console).unwrap()).contains("the guest is ready")
    });
    guest
}
