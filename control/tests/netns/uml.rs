//! A TUN server with a kernel of its own: user-mode Linux decapsulates with the kernel's `ipip`, which the lab's
//! other servers do by a TUN device.

use crate::daemon::{Config, Daemon, Driver};
use crate::guest::Guest;
use crate::lab::{Lab, MODES, PLAIN};

/// The tunnel as an operator would configure it, and nginx.
const SERVER: &str = r#"
modprobe -d /run/root ipip
ip address add 10.2.0.14/24 dev vec0
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
"#;

const SERVICE: &str = "[[service]]\nname = \"uml\"\nlisten = [\"203.0.113.41:80\"]\nprotocol = \"tcp\"\n\
                       mode = \"tun\"\nscheduler = \"rr\"\n[[service.server]]\naddress = \"10.2.0.14:80\"\n";

#[test]
fn a_server_with_the_kernels_own_ipip_takes_tun_traffic() {
    let mut lab = Lab::new("uml", PLAIN);
    let guest = Guest::boot(&lab, SERVER);
    Daemon::start(&mut lab, &Config { more: SERVICE.to_owned(), ..Config::new(Driver::Native) });
    for _ in 0..20 {
        assert_eq!(lab.get("http://203.0.113.41/"), "uml");
    }
    for (mode, vip) in MODES {
        assert_eq!(lab.shares(&format!("http://{vip}/"), 3), [1; 3], "{mode}: next to it");
    }
    lab.judge();
    let answers = lab.seen(("client", "back"), "ip.src == 203.0.113.41");
    let back_to_director =
        lab.seen(("switch", "director"), "eth.dst == 02:00:0a:02:00:02 && ip.src == 203.0.113.41");
    assert!(answers >= 20 * 4, "the guest answers the client past the director: {answers}");
    assert_eq!(back_to_director, 0, "the guest answers the client past the director");
    let encapsulated = lab.seen(("switch", "director"), "ip.proto == 4 && ip.dst == 10.2.0.14");
    assert!(encapsulated >= 20 * 4, "the director encapsulates: {encapsulated}");
    drop(guest);
}
