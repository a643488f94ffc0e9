//! Atomics and fences, from one place, so that the proofs in tests/loom can put loom's in their stead.
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
