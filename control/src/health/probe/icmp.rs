//! Sockets that hear of ICMP errors. Without IP_RECVERR the kernel keeps those to itself that may pass (host and network
//! unreachable; net/ipv4/udp.c, __udp4_lib_err), and a dead host would look like a silent one.

use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use tokio::net::UdpSocket;

use super::Failure;

/// A datagram socket of `kind` and `protocol` that talks to `address` alone.
pub(super) async fn connected(
    address: SocketAddr,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> Result<UdpSocket, Failure> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, protocol).map_err(|error| Failure::local(error.into()))?;
    let set = match address.ip() {
        IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
        IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
    };
    set.map_err(|error| Failure::local(error.into()))?;
    let socket = UdpSocket::from_std(socket.into()).map_err(Failure::local)?;
    // No packet is sent yet: what fails here is the way, not the server.
    socket.connect(address).await.map_err(|error| Failure::connecting(&error, std::time::Duration::ZERO))?;
    Ok(socket)
}
