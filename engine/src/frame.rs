//! A frame: one packet in one buffer that somebody owns.
//!
//! A buffer ("chunk") is a fixed slice of a [`crate::mempool`] region. The [`Frame`] is its only owner, as a `Box` is:
//! it moves from port to program to port, and goes back with [`crate::Mempool::free`].
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::port::PortId;

/// Bytes kept free in front of received data, for headers to be put there in place. The same as the kernel's
/// `XDP_PACKET_HEADROOM`, so that AF_XDP frames and pool frames look alike.
pub const HEADROOM: usize = 256;

/// The number of a chunk in its region, owned: there is at most one `Chunk` or [`Frame`] for a number at any time.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a dropped chunk is lost to its pool"]
pub(crate) struct Chunk(pub(crate) u32);

/// What a program notes about a frame when it hands it to another worker's, so that this one need not find it out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// Which kind of note it is; 0: none.
    pub kind: u16,
    /// The rest.
    pub word: u64,
}

/// One packet in a buffer of its own, with room before and behind it.
#[derive(Debug)]
#[must_use = "a frame goes back with Mempool::free; a dropped one is lost to its pool"]
pub struct Frame {
    base: NonNull<u8>,
    chunk: u32,
    size: u16,
    offset: u16,
    len: u16,
    queue: u16,
    port: PortId,
    note_kind: u16,
    note_word: u64,
}

const _: () = assert!(std::mem::size_of::<Frame>() == 32, "two to a cache line");

// SAFETY: a frame owns its chunk exclusively (`Chunk` is neither Clone nor Copy and is made only by the region's
// pools), and the region stays mapped while any chunk is out (see mempool.rs), so moving it to another thread moves
// the only access to that memory.
unsafe impl Send for Frame {}
// SAFETY: `&Frame` gives only shared reads of bytes and plain fields.
unsafe impl Sync for Frame {}

static LOST: AtomicU64 = AtomicU64::new(0);

/// Frames dropped instead of freed since the process started: a defect counter, 0 in a healthy process.
pub fn frames_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

impl Drop for Frame {
    #[cold]
    fn drop(&mut self) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

impl Frame {
    /// # Safety
    /// `base` points at `size` initialised bytes that belong to `chunk` alone and stay mapped until the chunk is
    /// back in its region; `offset + len <= size`.
    pub(crate) unsafe fn from_chunk(
        base: NonNull<u8>,
        chunk: Chunk,
        size: u16,
        offset: u16,
        len: u16,
    ) -> Self {
        debug_assert!(usize::from(offset) + usize::from(len) <= usize::from(size));
        Self {
            base,
            chunk: chunk.0,
            size,
            offset,
            len,
            queue: 0,
            port: PortId(0),
            note_kind: 0,
            note_word: 0,
        }
    }

    /// Where the chunk begins, and its number.
    #[inline]
    pub(crate) fn place(&self) -> (NonNull<u8>, u32) {
        (self.base, self.chunk)
    }

    /// Gives the chunk back, without its bytes.
    #[inline]
    pub(crate) fn into_chunk(self) -> Chunk {
        let chunk = Chunk(self.chunk);
        std::mem::forget(self);
        chunk
    }

    /// Offset of the first byte of data in the chunk.
    pub(crate) fn offset(&self) -> u16 {
        self.offset
    }

    /// The port the frame came in by.
    #[inline]
    pub fn port(&self) -> PortId {
        self.port
    }

    /// The receive queue of [`Self::port`] the frame came in by.
    #[inline]
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Notes where the frame came in.
    #[inline]
    pub fn set_source(&mut self, port: PortId, queue: u16) {
        self.port = port;
        self.queue = queue;
    }

    /// What was noted about the frame; nothing about one that has just been received.
    #[inline]
    pub fn note(&self) -> Note {
        Note { kind: self.note_kind, word: self.note_word }
    }

    /// Notes something about the frame.
    #[inline]
    pub fn set_note(&mut self, note: Note) {
        Note { kind: self.note_kind, word: self.note_word } = note;
    }

    /// Length of the data in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there is no data.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes free in front of the data.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.offset)
    }

    /// Bytes free behind the data.
    #[inline]
    pub fn tailroom(&self) -> usize {
        usize::from(self.size - self.offset - self.len)
    }

    /// The data.
    #[inline]
    pub fn data(&self) -> &[u8] {
        // SAFETY: offset + len <= size (kept by every method here), the chunk is ours and mapped and initialised.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(self.offset.into()), self.len.into()) }
    }

    /// The data, to be edited in place.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(self.offset.into()), self.len.into()) }
    }

    /// Asks the cache for the first line of the data.
    #[inline]
    pub fn prefetch(&self) {
        crate::mem::prefetch(self.data().as_ptr());
    }

    /// Grows the data by `count` bytes at the front. The new bytes hold whatever was there.
    /// Returns false, and changes nothing, when there is no room.
    #[inline]
    #[must_use]
    pub fn push_front(&mut self, count: usize) -> bool {
        if count > self.headroom() {
            return false;
        }
        self.offset -= count as u16;
        self.len += count as u16;
        true
    }

    /// Cuts `count` bytes off the front; at most all of them.
    #[inline]
    pub fn pull_front(&mut self, count: usize) {
        let count = count.min(self.len()) as u16;
        self.offset += count;
        self.len -= count;
    }

    /// Sets the length, cutting or growing at the end. Bytes grown hold whatever was there.
    /// Returns false, and changes nothing, when there is no room.
    #[inline]
    #[must_use]
    pub fn set_len(&mut self, len: usize) -> bool {
        if len > self.len() + self.tailroom() {
            return false;
        }
        self.len = len as u16;
        true
    }

    /// Replaces the data by `bytes`, at the usual headroom. Returns false, and leaves no data, when they do not fit.
    #[must_use]
    pub fn fill(&mut self, bytes: &[u8]) -> bool {
        self.offset = HEADROOM as u16;
        self.len = 0;
        if !self.set_len(bytes.len()) {
            return false;
        }
        self.data_mut().copy_from_slice(bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::HEADROOM;
    use crate::mempool::{Mempool, PoolConfig};

    #[test]
    fn data_grows_and_shrinks_at_both_ends_within_the_chunk() {
        let mut pool = Mempool::single(PoolConfig { chunks: 1, ..PoolConfig::default() }).unwrap();
        let mut frame = pool.alloc().unwrap();
        assert!(frame.fill(b"hello"));
        assert_eq!((frame.headroom(), frame.data()), (HEADROOM, &b"hello"[..]));
        assert!(frame.push_front(3));
        frame.data_mut()[..3].copy_from_slice(b"oh ");
        assert_eq!(frame.data(), b"oh hello");
        frame.pull_front(5);
        assert!(frame.set_len(2));
        assert_eq!(frame.data(), b"ll");
        let (room, len) = (frame.headroom(), frame.len() + frame.tailroom());
        assert!(!frame.push_front(room + 1));
        assert!(!frame.set_len(len + 1));
        assert!(frame.push_front(room) && frame.set_len(room + len));
        frame.pull_front(usize::MAX);
        assert!(frame.is_empty());
        pool.free(frame);
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        let mut pool = Mempool::single(PoolConfig { chunks: 1, ..PoolConfig::default() }).unwrap();
        let mut frame = pool.alloc().unwrap();
        assert!(!frame.fill(&[0; 2048]));
        assert!(frame.is_empty());
        pool.free(frame);
    }
}
