//! Big, zeroed, page-aligned memory on huge pages when there are any, and a prefetch that cannot fault.
//!
//! With these two the dataplane builds its tables without `unsafe`.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use zerocopy::FromZeros;

/// 2 MiB: what x86-64 and arm64 (4 KiB granule) call a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// What a [`Slab`] or region sits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Reserved huge pages (`vm.nr_hugepages`).
    Huge,
    /// Ordinary pages; from 2 MiB on, transparent huge pages are asked for.
    Normal,
}

/// When memory is taken for a mapping on huge pages; they are reserved for it in any case. It is of the NUMA node of the
/// thread that takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// By the thread that makes the mapping.
    AtOnce,
    /// By whoever first touches a page.
    WhenTouched,
}

/// An anonymous, zeroed mapping, released on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    pages: Pages,
}

// SAFETY: the mapping is plain memory; who may touch which part is decided by the owner of the Mapping.
unsafe impl Send for Mapping {}
// SAFETY: as above; Mapping itself gives out only its base address and length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `len` bytes, huge pages first. What is smaller than one of those is not worth clearing one.
    pub(crate) fn new(len: usize, huge: Fill) -> std::io::Result<Self> {
        if len < HUGE_PAGE {
            return Self::map(len.max(1).next_multiple_of(4096), Pages::Normal, huge);
        }
        let rounded = len.next_multiple_of(HUGE_PAGE);
        Self::map(rounded, Pages::Huge, huge).or_else(|_| Self::map(rounded, Pages::Normal, huge))
    }

    #[cfg(not(miri))]
    fn map(len: usize, pages: Pages, huge: Fill) -> std::io::Result<Self> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
        let flags = match (pages, huge) {
            (Pages::Huge, Fill::AtOnce) => MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::POPULATE,
            (Pages::Huge, Fill::WhenTouched) => MapFlags::PRIVATE | MapFlags::HUGETLB,
            (Pages::Normal, _) => MapFlags::PRIVATE | MapFlags::NORESERVE,
        };
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let base =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        if pages == Pages::Normal && len >= HUGE_PAGE {
            // SAFETY: [base, base + len) was mapped just above. Advice only: a kernel without THP may refuse.
            let _ = unsafe { madvise(base, len, Advice::LinuxHugepage) };
        }
        let base = NonNull::new(base.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, pages })
    }

    #[cfg(miri)]
    fn map(len: usize, pages: Pages, _huge: Fill) -> std::io::Result<Self> {
        // SAFETY: the layout is not of size zero (`new` rounds up) and its alignment is a power of two.
        let base = unsafe { std::alloc::alloc_zeroed(Self::layout(len)) };
        let base = NonNull::new(base).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, pages })
    }

    #[cfg(miri)]
    fn layout(len: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(len, 4096).expect("a page is a valid alignment")
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn pages(&self) -> Pages {
        self.pages
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of the mapping made in `map`; nobody can reach it after drop.
        #[cfg(not(miri))]
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        // SAFETY: allocated in `map` with this layout.
        #[cfg(miri)]
        unsafe {
            std::alloc::dealloc(self.base.as_ptr(), Self::layout(self.len));
        }
    }
}

/// A fixed array of zero-initialised values on huge pages when there are any. Its size never changes.
#[derive(Debug)]
pub struct Slab<T> {
    mapping: Mapping,
    len: usize,
    _values: std::marker::PhantomData<T>,
}

impl<T: FromZeros> Slab<T> {
    /// `len` values, all zero bytes.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn zeroed(len: usize) -> std::io::Result<Self> {
        const { assert!(!std::mem::needs_drop::<T>() && std::mem::align_of::<T>() <= 4096) };
        let bytes = len.checked_mul(std::mem::size_of::<T>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { mapping: Mapping::new(bytes, Fill::AtOnce)?, len, _values: std::marker::PhantomData })
    }

    /// What the slab sits on.
    pub fn pages(&self) -> Pages {
        self.mapping.pages()
    }
}

impl<T> Deref for Slab<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` values, is aligned to a page, zeroed at birth (a valid T: FromZeros is
        // demanded by the only constructor) and changed only through `deref_mut`.
        unsafe { std::slice::from_raw_parts(self.mapping.base().as_ptr().cast(), self.len) }
    }
}

impl<T> DerefMut for Slab<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.base().as_ptr().cast(), self.len) }
    }
}

/// Asks the cache for the line at `address`. Any address is allowed: a prefetch never faults.
#[inline]
pub fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 is a hint without architectural effect, for every address; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Which of `lanes` are `value`: bit 0 for the first. All eight are compared at once where the processor can.
#[inline(always)]
pub fn equal_lanes(lanes: &[u16; 8], value: u16) -> u8 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of x86-64; the load is of 16 bytes that `lanes` borrows, and needs no alignment.
    unsafe {
        use std::arch::x86_64::{
            _mm_cmpeq_epi16, _mm_loadu_si128, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16,
            _mm_setzero_si128,
        };
        let equal =
            _mm_cmpeq_epi16(_mm_loadu_si128(lanes.as_ptr().cast()), _mm_set1_epi16(value.cast_signed()));
        _mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128())) as u8
    }
    #[cfg(not(target_arch = "x86_64"))]
    lanes.iter().zip(0..).fold(0, |found, (&lane, bit)| found | u8::from(lane == value) << bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_is_zeroed_writable_and_of_the_asked_size() {
        let mut slab = Slab::<u64>::zeroed(1000).unwrap();
        assert_eq!(slab.len(), 1000);
        assert!(slab.iter().all(|&value| value == 0));
        slab[999] = 7;
        assert_eq!(slab[999], 7);
        assert_eq!(slab.as_ptr() as usize % 64, 0);
    }

    #[test]
    fn equal_lanes_are_told_by_their_bits() {
        assert_eq!(equal_lanes(&[7, 1, 0x8000, 7, 0, 0xffff, 6, 7], 7), 0b1000_1001);
        assert_eq!(equal_lanes(&[7, 1, 0x8000, 7, 0, 0xffff, 6, 7], 0x8000), 0b0000_0100);
        assert_eq!(equal_lanes(&[0xffff; 8], 0xffff), 0xff);
        assert_eq!(equal_lanes(&[0; 8], 1), 0);
    }

    #[test]
    fn prefetching_nowhere_is_harmless() {
        prefetch(std::ptr::null::<u8>());
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Slab::<u64>::zeroed(usize::MAX / 4).is_err());
    }
}
