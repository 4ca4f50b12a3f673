//! `tcp`: a connection can be opened. Closed with RST, so that thousands of checks per second leave neither a TIME_WAIT
//! here nor a half-closed connection there.

use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout_at;

use super::{Failure, Limit};

/// A connection to `address`, which ends with RST when it is dropped.
pub(super) async fn connect(address: SocketAddr, limit: Limit) -> Result<TcpStream, Failure> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(Failure::local)?;
    socket.set_zero_linger().map_err(Failure::local)?;
    match timeout_at(limit.deadline, socket.connect(address)).await {
        Ok(connected) => connected.map_err(|error| Failure::connecting(&error, limit.timeout)),
        Err(_) => Err(Failure::NoConnection(limit.timeout)),
    }
}
