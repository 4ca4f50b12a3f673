//! Hearing that the kernel changed something: which table, and no more.

use std::time::Duration;

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::NetlinkError;

/// Tables of the kernel that changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Links.
    pub links: bool,
    /// Addresses.
    pub addresses: bool,
    /// Routes.
    pub routes: bool,
    /// Neighbours.
    pub neighbours: bool,
}

impl Tables {
    /// All of them.
    pub const ALL: Self = Self { links: true, addresses: true, routes: true, neighbours: true };

    /// Notes the table that a message of type `kind` is about (linux/rtnetlink.h).
    fn note(&mut self, kind: u16) {
        match kind {
            // RTM_NEWLINK, RTM_DELLINK. Routes of a link that goes down vanish without a message of their own.
            16 | 17 => (self.links, self.routes) = (true, true),
            // RTM_NEWADDR, RTM_DELADDR. Likewise an address's routes.
            20 | 21 => (self.addresses, self.routes) = (true, true),
            // RTM_NEWROUTE, RTM_DELROUTE
            24 | 25 => self.routes = true,
            // RTM_NEWNEIGH, RTM_DELNEIGH
            28 | 29 => self.neighbours = true,
            // RTM_NEWNEXTHOP, RTM_DELNEXTHOP. A group that loses a member says nothing about the routes by it.
            104 | 105 => self.routes = true,
            _ => {}
        }
    }

    fn any(self) -> bool {
        self.links || self.addresses || self.routes || self.neighbours
    }
}

/// Hears that something changed.
pub struct Events {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Events {
    /// Listens from now on: open it before reading, or a change in between is missed.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::open_socket().map_err(NetlinkError::Socket)
    }

    fn open_socket() -> std::io::Result<Self> {
        let mut socket = TokioSocket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
        // A bit per group: links, neighbours, IPv4 addresses and routes, IPv6 addresses and routes, nexthop objects.
        let groups = [1, 3, 5, 7, 9, 11, 32].map(|group: u32| 1 << (group - 1)).iter().sum();
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER)?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM_MAX) })
    }

    /// Waits for a change, then a moment more for what comes along with it, and says what changed.
    pub async fn changed(&mut self) -> Tables {
        let mut tables = Tables::default();
        while !tables.any() {
            self.buffer.clear();
            let received = self.socket.recv(&mut self.buffer).await;
            self.note(received.map(|()| self.buffer.len()), &mut tables);
        }
        tokio::time::sleep(COALESCE).await;
        while self.take(&mut tables) {}
        tables
    }

    /// Takes one datagram off the socket. Returns false when there is none.
    fn take(&mut self, tables: &mut Tables) -> bool {
        self.buffer.clear();
        match self.socket.socket_ref().recv(&mut self.buffer, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
            received => {
                self.note(received, tables);
                true
            }
        }
    }

    fn note(&self, received: std::io::Result<usize>, tables: &mut Tables) {
        match received {
            Ok(_) => messages(&self.buffer).for_each(|(kind, _)| tables.note(kind)),
            // ENOBUFS: events were lost.
            Err(_) => *tables = Tables::ALL,
        }
    }
}

/// Longest datagram of events that is read whole; the kernel's are a page or less.
pub(super) const DATAGRAM_MAX: usize = 64 << 10;

/// Room for events in the socket, in bytes; what does not fit is noticed as ENOBUFS.
pub(super) const RECEIVE_BUFFER: usize = 1 << 20;

/// Changes come in groups: an interface that goes down takes its routes and neighbours along.
const COALESCE: Duration = Duration::from_millis(2);

/// The messages in a datagram: their types and what follows their headers (struct nlmsghdr of linux/netlink.h: length,
/// type, …; 4-byte aligned).
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> + '_ {
    std::iter::from_fn(move || {
        let header = datagram.get(..HEADER_LEN)?;
        let len = u32::from_ne_bytes(header[..4].try_into().expect("four bytes")) as usize;
        let kind = u16::from_ne_bytes(header[4..6].try_into().expect("two bytes"));
        // A length that lies ends the datagram.
        let body = datagram.get(HEADER_LEN..len.max(HEADER_LEN)).unwrap_or(&[]);
        datagram = datagram.get(len.max(HEADER_LEN).next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, body))
    })
}

const HEADER_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_tells_the_types_of_its_messages() {
        let message = |len: u32, kind: u16| {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(len.next_multiple_of(4) as usize, 0);
            bytes
        };
        let datagram = [message(17, 28), message(16, 24), message(20, 16)].concat();
        let found: Vec<_> = messages(&datagram).map(|(kind, body)| (kind, body.len())).collect();
        assert_eq!(found, [(28, 1), (24, 0), (16, 4)]);
        assert_eq!(messages(&datagram[..15]).count(), 0);
        assert_eq!(messages(&message(4000, 28)[..40]).collect::<Vec<_>>(), [(28, &[][..])]);
        // A length that lies must not loop.
        assert_eq!(messages(&[0; 64]).count(), 4);
    }

    #[test]
    fn an_event_marks_the_tables_it_touches() {
        let mut tables = Tables::default();
        tables.note(28);
        assert_eq!(tables, Tables { neighbours: true, ..Tables::default() });
        tables.note(17);
        assert!(tables.links && tables.routes && !tables.addresses);
        let mut other = Tables::default();
        other.note(99);
        assert!(!other.any());
    }
}
