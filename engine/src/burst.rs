//! A fixed-capacity batch of frames: the unit in which ports, rings and programs hand frames on.

use arrayvec::ArrayVec;

use crate::frame::Frame;

/// Frames per burst. 32 amortises calls and clock reads and lets 32 cache misses overlap.
pub const BURST: usize = 32;

/// Up to [`BURST`] frames, in order, owned by whoever holds the burst.
pub type Burst = ArrayVec<Frame, BURST>;
