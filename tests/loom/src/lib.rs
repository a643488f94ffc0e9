//! The protocols of `src/shm` and `src/messaging` on [loom](https://docs.rs/loom): small models of which
//! every interleaving is run, with every stale value that the C11 memory model lets a relaxed load see.
//!
//! This library is a tree of modules with the names that the sources import, in which
//!
//! * the sources themselves are included by path, word for word as they ship,
//! * `base::sync` has loom's atomics and fences,
//! * [`memory`] has words in a vector of loom's atomics where the real one has a mapping,
//! * [`os::futex`](os) has a futex made of loom's mutex and condition variable: a sleeper that nobody wakes is a
//!   deadlock, which loom reports; timeouts never come to the rescue,
//! * [`base::crash`] ends the modelled thread at a chosen point, where the real one ends the process.
//!
//! The models are in `tests`, one file per protocol. Each says how many interleavings it ran. Some are there to show
//! that the models can fail: they take a fence away ([`base::sync::without_fences`]) and expect what it prevents.
//!
//! What loom does not show: orderings stronger than C11's on real processors (it may only find too much), `SeqCst`
//! accesses (it treats them as `AcqRel`; the sources have `SeqCst` fences only, and those it has), and more than the
//! few steps of each model.

pub mod base;
mod explore;
pub mod memory;
pub mod messaging;
pub mod os;
pub mod shm;

pub use explore::{Bound, explore};
