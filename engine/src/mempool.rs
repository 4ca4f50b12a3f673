//! Pools of buffers: one region of equal chunks per process, split among the workers.
//!
//! Each worker owns a [`Mempool`]: a private stack of free chunks, no lock, no atomic. A chunk belongs for good to the
//! worker it was dealt to at start (its home); freed elsewhere it waits in that worker's `away` list until the
//! return ring takes it home, so frames handed one way drain no pool.
//!
//! The region is unmapped only when every chunk has come back; a lost frame therefore never dangles.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::frame::{Chunk, Frame, HEADROOM};
use crate::mem::{Fill, Mapping, Pages};

/// How big a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Bytes per chunk, headroom included: 2048 or 4096 (what AF_XDP accepts on 4 KiB pages).
    pub chunk_size: u16,
    /// Chunks per worker.
    pub chunks: u32,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { chunk_size: 2048, chunks: 16_384 }
    }
}

/// The memory of all pools of a process, as a port may register it with a device.
#[derive(Debug)]
pub struct Region {
    mapping: std::mem::ManuallyDrop<Mapping>,
    chunk_size: u16,
    chunks: u32,
    chunks_per_pool: u32,
    returned: AtomicU32,
}

impl Region {
    fn new(config: PoolConfig, pools: u32) -> std::io::Result<Self> {
        assert!(matches!(config.chunk_size, 2048 | 4096), "chunks are 2048 or 4096 bytes");
        let chunks = config.chunks.checked_mul(pools).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping::new(chunks as usize * usize::from(config.chunk_size), Fill::WhenTouched)?;
        Ok(Self {
            mapping: std::mem::ManuallyDrop::new(mapping),
            chunk_size: config.chunk_size,
            chunks,
            chunks_per_pool: config.chunks,
            returned: AtomicU32::new(0),
        })
    }

    /// First byte of the region; it is page-aligned.
    pub fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// Length in bytes of the part that holds chunks.
    pub fn len(&self) -> usize {
        self.chunks as usize * usize::from(self.chunk_size)
    }

    /// Whether there are no chunks.
    pub fn is_empty(&self) -> bool {
        self.chunks == 0
    }

    /// Bytes per chunk.
    pub fn chunk_size(&self) -> u16 {
        self.chunk_size
    }

    /// Longest frame a chunk carries behind its headroom.
    pub fn frame_len_max(&self) -> usize {
        usize::from(self.chunk_size) - HEADROOM
    }

    /// What the region sits on.
    pub fn pages(&self) -> Pages {
        self.mapping.pages()
    }

    pub(crate) fn chunks_per_pool(&self) -> u32 {
        self.chunks_per_pool
    }

    /// Counts chunks that a device keeps for good, pinned by itself: they no longer keep the region mapped.
    pub(crate) fn write_off(&self, chunks: u32) {
        self.returned.fetch_add(chunks, Ordering::AcqRel);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if *self.returned.get_mut() == self.chunks {
            // SAFETY: dropped once, here; every chunk is back, so no Frame points into the mapping.
            unsafe { std::mem::ManuallyDrop::drop(&mut self.mapping) };
        }
    }
}

/// One worker's buffers.
#[derive(Debug)]
pub struct Mempool {
    region: Arc<Region>,
    /// The chunks at home here: `count` of them from number `first` on.
    first: u32,
    count: u32,
    free: Vec<u32>,
    /// Freed here, at home elsewhere: one list per pool, indexed by home.
    away: Vec<Vec<u32>>,
    away_count: usize,
    alloc_failed: u64,
}

impl Mempool {
    /// One pool per worker, over one region.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn split(config: PoolConfig, workers: usize) -> std::io::Result<Vec<Self>> {
        let pools = u32::try_from(workers).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let region = Arc::new(Region::new(config, pools)?);
        let pool = |index: u32| {
            let first = index * config.chunks;
            // Lists hold at most the chunks of one home, so that nothing allocates later.
            let away = |home| Vec::with_capacity(if home == index { 0 } else { config.chunks as usize });
            Self {
                region: region.clone(),
                first,
                count: config.chunks,
                // Lowest chunk on top: a lightly loaded worker keeps to a few warm ones.
                free: (first..first + config.chunks).rev().collect(),
                away: (0..pools).map(away).collect(),
                away_count: 0,
                alloc_failed: 0,
            }
        };
        Ok((0..pools).map(pool).collect())
    }

    /// The only pool of a process with one worker.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn single(config: PoolConfig) -> std::io::Result<Self> {
        Ok(Self::split(config, 1)?.remove(0))
    }

    /// Takes memory for the pool's buffers: of the calling thread's NUMA node, so call it on the worker's core, before a
    /// device touches the region. Otherwise a buffer gets its memory when it is first used.
    pub fn settle(&mut self) {
        for &chunk in &self.free {
            let offset = chunk as usize * usize::from(self.region.chunk_size);
            // SAFETY: a free chunk is this pool's alone, and lies within the region.
            unsafe { self.region.base().add(offset).write_volatile(0) };
        }
    }

    /// The memory this pool shares with its siblings.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Free chunks at hand.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Times an allocation found no free chunk.
    pub fn alloc_failed(&self) -> u64 {
        self.alloc_failed
    }

    /// An empty frame with [`HEADROOM`] bytes before it.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        let chunk = self.take()?;
        Some(self.frame(chunk, HEADROOM as u16, 0))
    }

    /// Takes a frame's buffer back.
    ///
    /// # Panics
    /// When the frame is of another region: its buffer must never be dealt out here.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        let chunk = self.chunk(frame);
        self.put(chunk);
    }

    /// The chunk of `frame`. The check keeps a number of one region from naming a second owner of a chunk in another.
    #[inline]
    pub(crate) fn chunk(&self, frame: Frame) -> Chunk {
        let (base, number) = frame.place();
        let offset = number as usize * usize::from(self.region.chunk_size);
        assert!(base.addr().get() == self.region.base().addr().get() + offset, "the frame is of this region");
        frame.into_chunk()
    }

    /// Frees all frames of a burst.
    pub fn free_all(&mut self, frames: impl IntoIterator<Item = Frame>) {
        frames.into_iter().for_each(|frame| self.free(frame));
    }

    /// A chunk without frame, for a device to fill.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Chunk> {
        let chunk = self.free.pop();
        self.alloc_failed += u64::from(chunk.is_none());
        chunk.map(Chunk)
    }

    #[inline]
    pub(crate) fn put(&mut self, chunk: Chunk) {
        // A chunk below our first wraps round and is far away too; a division per frame would show.
        if chunk.0.wrapping_sub(self.first) < self.count {
            self.free.push(chunk.0);
        } else {
            self.put_away(chunk);
        }
    }

    /// Takes chunks back that came home.
    pub(crate) fn put_home(&mut self, chunks: impl Iterator<Item = Chunk>) {
        let home = self.first..self.first + self.count;
        self.free.extend(chunks.map(|chunk| chunk.0).inspect(|chunk| debug_assert!(home.contains(chunk))));
    }

    #[inline(never)]
    fn put_away(&mut self, chunk: Chunk) {
        let home = chunk.0 / self.region.chunks_per_pool;
        self.away[home as usize].push(chunk.0);
        self.away_count += 1;
    }

    /// Whether chunks of other pools wait to be sent home.
    pub(crate) fn has_away(&self) -> bool {
        self.away_count > 0
    }

    /// A chunk of pool `home` that was freed here.
    pub(crate) fn take_away(&mut self, home: usize) -> Option<Chunk> {
        let chunk = self.away[home].pop()?;
        self.away_count -= 1;
        Some(Chunk(chunk))
    }

    /// Whether the pool's buffers are those of `region`.
    #[inline]
    pub(crate) fn is_of(&self, region: &Arc<Region>) -> bool {
        Arc::ptr_eq(&self.region, region)
    }

    /// The frame that owns `chunk` and shows `len` bytes at `offset`.
    #[inline]
    pub(crate) fn frame(&self, chunk: Chunk, offset: u16, len: u16) -> Frame {
        assert!(chunk.0 < self.region.chunks, "the chunk is of this region");
        assert!(
            u32::from(offset) + u32::from(len) <= u32::from(self.region.chunk_size),
            "data lies in its chunk"
        );
        // SAFETY: the chunk number is within the region, so the pointer stays inside the mapping.
        let base = unsafe { self.region.base().add(chunk.0 as usize * usize::from(self.region.chunk_size)) };
        // SAFETY: `chunk` is owned (not Clone) and of this region; the region outlives it (Drop for Region); its
        // bytes are initialised (zeroed mapping); offset and len were checked above.
        unsafe { Frame::from_chunk(base, chunk, self.region.chunk_size, offset, len) }
    }
}

impl Drop for Mempool {
    fn drop(&mut self) {
        let back = self.free.len() + self.away_count;
        self.region.returned.fetch_add(back as u32, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(workers: usize) -> Vec<Mempool> {
        Mempool::split(PoolConfig { chunks: 4, ..PoolConfig::default() }, workers).unwrap()
    }

    #[test]
    #[should_panic(expected = "the frame is of this region")]
    fn a_frame_of_another_region_is_never_dealt_out_here() {
        let config = PoolConfig { chunks: 4, ..PoolConfig::default() };
        let (mut own, mut other) = (Mempool::single(config).unwrap(), Mempool::single(config).unwrap());
        let frame = own.alloc().unwrap();
        other.free(frame);
    }

    #[test]
    fn an_empty_pool_refuses_and_counts() {
        let mut pool = small(1).remove(0);
        let frames: Vec<_> = (0..4).map(|_| pool.alloc().unwrap()).collect();
        assert!(pool.alloc().is_none());
        assert_eq!(pool.alloc_failed(), 1);
        pool.free_all(frames);
        assert_eq!(pool.available(), 4);
    }

    #[test]
    #[cfg(not(miri))]
    fn a_pool_that_settles_takes_memory_for_its_own_buffers_and_no_others() {
        // Half a huge page each, so that neither pool's memory comes with the other's.
        let config = PoolConfig { chunks: 1024, ..PoolConfig::default() };
        let mut pools = Mempool::split(config, 4).unwrap();
        let region = pools[0].region().clone();
        let resident = |pool: usize| {
            let (len, mut pages) = (region.len() / 4, [0; 512]);
            // SAFETY: the range is mapped and begins at a page; there is a byte for each of its pages.
            let result = unsafe {
                let base = region.base().as_ptr().add(pool * len);
                libc::mincore(base.cast(), len, pages.as_mut_ptr())
            };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            pages.iter().filter(|&&page| page & 1 == 1).count()
        };
        assert_eq!([resident(0), resident(3)], [0, 0]);
        pools[3].settle();
        assert_eq!([resident(0), resident(3)], [0, 512]);
        assert_eq!(pools[3].available(), 1024);
    }

    #[test]
    fn frames_do_not_share_bytes() {
        let mut pool = small(1).remove(0);
        let mut frames: Vec<_> = (0..4).map(|_| pool.alloc().unwrap()).collect();
        for (mark, frame) in frames.iter_mut().enumerate() {
            assert!(frame.set_len(frame.tailroom()));
            frame.data_mut().fill(mark as u8);
        }
        for (mark, frame) in frames.iter().enumerate() {
            assert!(frame.data().iter().all(|&byte| byte == mark as u8));
        }
        pool.free_all(frames);
    }

    #[test]
    fn a_frame_freed_elsewhere_waits_to_be_sent_home() {
        let mut pools = small(2);
        let mut second = pools.pop().unwrap();
        let mut first = pools.pop().unwrap();
        let frame = first.alloc().unwrap();
        second.free(frame);
        assert_eq!((first.available(), second.available()), (3, 4));
        assert!(second.has_away());
        let chunk = second.take_away(0).unwrap();
        first.put(chunk);
        assert_eq!((first.available(), second.has_away()), (4, false));
    }

    #[test]
    fn a_lost_frame_keeps_its_memory_mapped() {
        let mut pool = small(1).remove(0);
        let mut frame = pool.alloc().unwrap();
        drop(pool);
        assert!(frame.fill(b"still here"));
        assert_eq!(frame.data(), b"still here");
        let before = crate::frame::frames_lost();
        drop(frame);
        assert!(crate::frame::frames_lost() > before);
    }
}
