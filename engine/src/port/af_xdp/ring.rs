//! The rings an AF_XDP socket shares with the kernel: one producer, one consumer, indices that run freely
//! (kernel `net/xdp/xsk_queue.h`).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::xdp::XdpRingOffset;

/// `XDP_RING_NEED_WAKEUP`.
const NEED_WAKEUP: u32 = 1;

/// A ring mapped into this process. `T` is its element: an address, or a descriptor.
#[derive(Debug)]
struct Ring<T> {
    mapping: NonNull<u8>,
    mapping_len: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: Option<NonNull<AtomicU32>>,
    elements: NonNull<T>,
    size: u32,
}

// SAFETY: the pointers lead into a mapping that the ring owns until drop; which thread uses it does not matter as long as
// it is one at a time, which `&mut` of the only handle ensures.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    /// Maps the ring of `size` elements (a power of two) that the socket has at page offset `page_offset`.
    ///
    /// # Safety
    /// `T` is the kernel's element type of that ring, valid for any bytes; `size` is what the ring was made with and
    /// `offsets` what the kernel told for it; no other handle on the same side of the ring exists.
    unsafe fn map(
        socket: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &XdpRingOffset,
        size: u32,
    ) -> io::Result<Self> {
        assert!(size.is_power_of_two());
        let mapping_len = offsets.desc as usize + size as usize * size_of::<T>();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let base =
            unsafe { mmap(std::ptr::null_mut(), mapping_len, protection, flags, socket, page_offset) }?;
        let mapping = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the kernel's offsets lie in the mapping and are aligned for what they name.
        let at = |offset: u64| unsafe { mapping.add(offset as usize) };
        Ok(Self {
            mapping,
            mapping_len,
            producer: at(offsets.producer).cast(),
            consumer: at(offsets.consumer).cast(),
            flags: offsets.flags.map(|offset| at(offset).cast()),
            elements: at(offsets.desc).cast(),
            size,
        })
    }

    fn element(&self, index: u32) -> NonNull<T> {
        // SAFETY: masked, the index is below `size`, and the mapping holds `size` elements.
        unsafe { self.elements.add((index & (self.size - 1)) as usize) }
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points at a live, aligned u32 of the mapping that both sides access atomically.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as for `producer`. A kernel without the flags field (before 5.4) always wants the call.
        self.flags.is_none_or(|flags| unsafe { flags.as_ref() }.load(Ordering::Relaxed) & NEED_WAKEUP != 0)
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; nothing keeps a pointer into it beyond the ring.
        let _ = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapping_len) };
    }
}

/// Our end of a ring the kernel consumes: fill and transmit.
#[derive(Debug)]
pub(super) struct Producer<T> {
    ring: Ring<T>,
    /// Next index to write; published by `commit`.
    next: u32,
    /// The kernel's index when we last looked.
    consumed: u32,
}

impl<T: Copy> Producer<T> {
    /// # Safety
    /// As [`Ring::map`].
    pub(super) unsafe fn map(
        socket: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &XdpRingOffset,
        size: u32,
    ) -> io::Result<Self> {
        // SAFETY: the contract is the same.
        let ring = unsafe { Ring::map(socket, page_offset, offsets, size) }?;
        let (next, consumed) =
            (ring.producer().load(Ordering::Relaxed), ring.consumer().load(Ordering::Acquire));
        Ok(Self { ring, next, consumed })
    }

    /// Elements that can be pushed; looks at the kernel's index only when fewer than `wanted` are known.
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        let room = |this: &Self| this.ring.size - this.next.wrapping_sub(this.consumed);
        if room(self) < wanted {
            self.consumed = self.ring.consumer().load(Ordering::Acquire);
        }
        room(self)
    }

    /// Writes an element. There is room: the caller has asked.
    pub(super) fn push(&mut self, element: T) {
        debug_assert!(self.next.wrapping_sub(self.consumed) < self.ring.size);
        // SAFETY: the slot is ours: the kernel reads up to the published index only, and has consumed what was here
        // before (`room`, with Acquire).
        unsafe { self.ring.element(self.next).write(element) };
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the kernel what was pushed.
    pub(super) fn commit(&mut self) {
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Whether elements wait for the kernel.
    pub(super) fn is_pending(&mut self) -> bool {
        self.room(self.ring.size) < self.ring.size
    }

    /// Whether the kernel wants a system call to go on.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }
}

/// Our end of a ring the kernel fills: receive and completion.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    /// Next index to read; given back by `release`.
    next: u32,
    /// The kernel's index when we last looked.
    produced: u32,
}

impl<T: Copy> Consumer<T> {
    /// # Safety
    /// As [`Ring::map`].
    pub(super) unsafe fn map(
        socket: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &XdpRingOffset,
        size: u32,
    ) -> io::Result<Self> {
        // SAFETY: the contract is the same.
        let ring = unsafe { Ring::map(socket, page_offset, offsets, size) }?;
        let (next, produced) =
            (ring.consumer().load(Ordering::Relaxed), ring.producer().load(Ordering::Acquire));
        Ok(Self { ring, next, produced })
    }

    /// The next element, if there is one. Looks at the kernel's index when those known are used up.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.next == self.produced {
            self.produced = self.ring.producer().load(Ordering::Acquire);
            if self.next == self.produced {
                return None;
            }
        }
        // SAFETY: the kernel has published this element (Acquire) and does not touch it until we release it.
        let element = unsafe { self.ring.element(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(element)
    }

    /// Gives the kernel back the slots of what was popped.
    pub(super) fn release(&mut self) {
        self.ring.consumer().store(self.next, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;

    use super::*;

    const SIZE: usize = 8;

    /// A ring as the kernel lays it out, but on the heap.
    #[repr(C)]
    struct Memory {
        producer: AtomicU32,
        consumer: AtomicU32,
        elements: [u64; SIZE],
    }

    /// Both ends of a ring whose indices begin at `first`: our consumer plays the kernel of our producer, and the other
    /// way round. Neither is dropped, for nothing of it was mapped; the memory is leaked.
    fn ends(first: u32) -> (ManuallyDrop<Producer<u64>>, ManuallyDrop<Consumer<u64>>) {
        let [producer, consumer] = [first; 2].map(AtomicU32::new);
        let memory = NonNull::from(Box::leak(Box::new(Memory { producer, consumer, elements: [0; SIZE] })));
        let ring = || {
            let place = memory.as_ptr();
            // SAFETY: these are fields of a value that lives for ever.
            let (producer, consumer, elements) = unsafe {
                (&raw mut (*place).producer, &raw mut (*place).consumer, &raw mut (*place).elements)
            };
            Ring {
                mapping: memory.cast(),
                mapping_len: 0,
                producer: NonNull::new(producer).unwrap(),
                consumer: NonNull::new(consumer).unwrap(),
                flags: None,
                elements: NonNull::new(elements).unwrap().cast(),
                size: SIZE as u32,
            }
        };
        let producer = Producer { ring: ring(), next: first, consumed: first };
        (
            ManuallyDrop::new(producer),
            ManuallyDrop::new(Consumer { ring: ring(), next: first, produced: first }),
        )
    }

    #[test]
    fn elements_arrive_in_order_on_another_thread_also_when_indices_wrap() {
        const ELEMENTS: u64 = if cfg!(miri) { 200 } else { 100_000 };
        let (mut producer, mut consumer) = ends(u32::MAX - 50);
        let kernel = std::thread::spawn(move || {
            let mut next = 0;
            while next < ELEMENTS {
                match consumer.pop() {
                    Some(element) => {
                        assert_eq!(element, next);
                        next += 1;
                        // As many at once as a burst may have.
                        if next % 3 == 0 || next == ELEMENTS {
                            consumer.release();
                        }
                    }
                    None => {
                        consumer.release();
                        std::thread::yield_now();
                    }
                }
            }
        });
        let mut next = 0;
        while next < ELEMENTS {
            let room = producer.room(SIZE as u32 / 2);
            assert!(room <= SIZE as u32);
            if room == 0 {
                std::thread::yield_now();
            }
            let end = (next + u64::from(room)).min(ELEMENTS);
            (next..end).for_each(|element| producer.push(element));
            next = end;
            producer.commit();
        }
        kernel.join().unwrap();
        assert!(!producer.is_pending());
    }

    #[test]
    fn nothing_is_seen_before_it_is_committed_and_no_room_before_it_is_released() {
        let (mut producer, mut consumer) = ends(0);
        assert_eq!(producer.room(1), SIZE as u32);
        (0..SIZE as u64).for_each(|element| producer.push(element));
        assert_eq!(consumer.pop(), None);
        producer.commit();
        assert!(producer.is_pending());
        let popped: Vec<_> = std::iter::from_fn(|| consumer.pop()).collect();
        assert_eq!(popped, (0..SIZE as u64).collect::<Vec<_>>());
        assert_eq!(producer.room(1), 0);
        consumer.release();
        assert_eq!((producer.room(1), producer.is_pending()), (SIZE as u32, false));
    }
}
