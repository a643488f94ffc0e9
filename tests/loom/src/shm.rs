//! `crate::shm`: the sources as they ship, over the words of [`memory`].
#![allow(unsafe_code, reason = "the sources have some; the models never run it")]

pub use crate::memory;
pub use crate::memory::Words;

#[path = "../../../src/shm/arena.rs"]
pub mod arena;
#[path = "../../../src/shm/blocks.rs"]
mod blocks;
#[path = "../../../src/shm/doorbell.rs"]
pub mod doorbell;
#[path = "../../../src/shm/lossy.rs"]
pub mod lossy;
#[path = "../../../src/shm/ring.rs"]
pub mod ring;
#[path = "../../../src/shm/seqlock.rs"]
pub mod seqlock;
#[path = "../../../src/shm/slot.rs"]
pub mod slot;
