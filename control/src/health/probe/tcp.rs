//! `tcp`: a connection can be opened. Closed with RST, so that thousands of checks per second leave neither a TIME_WAIT
//! here nor a half-closed connection there.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

use super::Failure;

/// A connection to `address`, which ends with RST when it is dropped. `timeout` is how long there was until `deadline`,
/// for the message.
pub(super) async fn connect(
    address: SocketAddr,
    deadline: Instant,
    timeout: Duration,
) -> Result<TcpStream, Failure> {
    let connecting = |error| Failure::connecting(&error, timeout);
    let socket =
        if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(connecting)?;
    socket.set_zero_linger().map_err(connecting)?;
    match timeout_at(deadline, socket.connect(address)).await {
        Ok(connected) => connected.map_err(connecting),
        Err(_) => Err(Failure::NoConnection(timeout)),
    }
}
