//! Hearing that somebody has taken away what keeps the kernel from answering: the guard table, or a part of it.
//!
//! `nft flush ruleset` removes it together with everything else, and the daemon's own replacements remove it to make it
//! anew. They tell themselves apart by their order: messages about what one batch has changed come in the batch's order,
//! and end with one that says that there is a new generation.

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::NetlinkError;
use super::events::{DATAGRAM_MAX, RECEIVE_BUFFER, messages};
use crate::guard::TABLE;

/// Hears of changes in nftables.
pub struct Ruleset {
    socket: TokioSocket,
    buffer: Vec<u8>,
    watch: Watch,
}

impl Ruleset {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::open_socket().map_err(NetlinkError::Socket)
    }

    fn open_socket() -> std::io::Result<Self> {
        let mut socket = TokioSocket::new(netlink_sys::protocols::NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 1 << (NFNLGRP_NFTABLES - 1)))?;
        socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER)?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM_MAX), watch: Watch::default() })
    }

    /// Waits until a batch has taken something from the guard table and not put it back.
    pub async fn loss(&mut self) {
        loop {
            self.buffer.clear();
            let lost = match self.socket.recv(&mut self.buffer).await {
                // All of the datagram is looked at: the last batch in it says how things are.
                Ok(()) => messages(&self.buffer)
                    .filter_map(|(kind, body)| self.watch.note(kind, body))
                    .last()
                    .unwrap_or(false),
                // ENOBUFS: messages were lost, maybe those about it.
                Err(_) => true,
            };
            if lost {
                return;
            }
        }
    }
}

/// What a batch has done to the guard table, as far as its messages have come.
#[derive(Debug, Default)]
struct Watch {
    lost: bool,
}

impl Watch {
    /// Notes a message of type `kind`. Says at the end of a batch whether it has taken something away.
    fn note(&mut self, kind: u16, body: &[u8]) -> Option<bool> {
        if kind >> 8 != NFNL_SUBSYS_NFTABLES {
            return None;
        }
        match kind & 0xff {
            NFT_MSG_NEWGEN => return Some(std::mem::take(&mut self.lost)),
            NFT_MSG_NEWTABLE if is_about_guard(body) => self.lost = false,
            NFT_MSG_DELTABLE | NFT_MSG_DELCHAIN | NFT_MSG_DELRULE | NFT_MSG_DELSET | NFT_MSG_DELSETELEM
                if is_about_guard(body) =>
            {
                self.lost = true;
            }
            _ => {}
        }
        None
    }
}

/// Whether a message is about the guard table or something in it: the first attribute of all of them is the table's name.
fn is_about_guard(body: &[u8]) -> bool {
    // struct nfgenmsg: family, version, resource; struct nlattr: length, type.
    let Some((&[family, _, _, _, l0, l1, t0, t1], rest)) = body.split_first_chunk() else { return false };
    let (len, kind) = (u16::from_ne_bytes([l0, l1]), u16::from_ne_bytes([t0, t1]));
    let name = rest.get(..usize::from(len).saturating_sub(4)).unwrap_or(&[]);
    (family, kind & 0x3fff) == (NFPROTO_INET, NFTA_TABLE_NAME)
        && name.strip_suffix(&[0]) == Some(TABLE.as_bytes())
}

// linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/netfilter.h
const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFPROTO_INET: u8 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_DELSET: u16 = 11;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_MSG_NEWGEN: u16 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8, table: &str) -> (u16, Vec<u8>) {
        let mut body = vec![family, 0, 0, 0];
        body.extend((4 + table.len() as u16 + 1).to_ne_bytes());
        body.extend(NFTA_TABLE_NAME.to_ne_bytes());
        body.extend(table.as_bytes());
        body.extend([0, 0, 0, 0]);
        (NFNL_SUBSYS_NFTABLES << 8 | kind, body)
    }

    /// What is said at the end of a batch of messages about tables.
    fn after(batch: &[(u16, u8, &str)]) -> Option<bool> {
        let mut watch = Watch::default();
        for &(kind, family, table) in batch {
            let (kind, body) = message(kind, family, table);
            assert_eq!(watch.note(kind, &body), None);
        }
        watch.note(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN, &[1, 0, 0, 0])
    }

    #[test]
    fn what_is_removed_and_not_made_anew_is_a_loss() {
        let guard = |kind| (kind, NFPROTO_INET, TABLE);
        assert_eq!(after(&[guard(NFT_MSG_DELTABLE)]), Some(true));
        assert_eq!(after(&[guard(NFT_MSG_DELRULE)]), Some(true));
        assert_eq!(
            after(&[guard(NFT_MSG_DELRULE), guard(NFT_MSG_DELTABLE), guard(NFT_MSG_NEWTABLE)]),
            Some(false)
        );
        assert_eq!(after(&[guard(NFT_MSG_NEWTABLE), guard(NFT_MSG_DELSETELEM)]), Some(true));
        assert_eq!(after(&[]), Some(false));
    }

    #[test]
    fn other_tables_and_bytes_that_are_no_message_are_nobodys_loss() {
        for (family, table) in
            [(2, TABLE), (NFPROTO_INET, "shunt2"), (NFPROTO_INET, "shun"), (NFPROTO_INET, "")]
        {
            assert_eq!(after(&[(NFT_MSG_DELTABLE, family, table)]), Some(false), "{table}");
        }
        let (kind, body) = message(NFT_MSG_DELTABLE, NFPROTO_INET, TABLE);
        for len in 0..4 + 4 + TABLE.len() + 1 {
            let mut watch = Watch::default();
            assert_eq!((watch.note(kind, &body[..len]), watch.lost), (None, false), "{len} bytes");
        }
    }
}
