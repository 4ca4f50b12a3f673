//! An allocator that counts, so that a test can say "nothing was allocated".
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Constant and without destructor: reaching it never allocates.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting the calls of each thread. To be installed with `#[global_allocator]`.
#[derive(Debug)]
pub struct CountingAllocator;

/// How often this thread has called the allocator so far, be it to get memory or to give it back. Stays 0 unless
/// [`CountingAllocator`] is installed.
pub fn calls() -> u64 {
    CALLS.get()
}

fn count() {
    // A thread that is being torn down has no count any more; nobody asks for it either.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every method passes its arguments unchanged to `System`, which is a correct allocator; counting neither
// allocates nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc` (a layout of non-zero size).
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed` (a layout of non-zero size).
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller got `address` from this allocator, that is from `System`, with this layout.
        unsafe { System.dealloc(address, layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as in `dealloc`; the caller vouches that `size` is not zero and fits the alignment.
        unsafe { System.realloc(address, layout, size) }
    }
}
