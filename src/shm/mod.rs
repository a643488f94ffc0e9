//! Bytes that several processes see.
//!
//! ```text
//!  per agent incarnation, anonymous sealed memfds                        per swarm, by name
//!  ┌ down.slots ┐ supervisor writes, agent reads   (channel_size)        ┌ board ┐ latest values,
//!  ├ up.slots   ┤ agent writes, supervisor reads   (channel_size)        └───────┘ any agent writes its cells
//!  ├ sup.page   ┤ supervisor writes: heads of up, bell, cancel word
//!  ├ agent.page ┤ agent writes: heads of down, asleep flag, beat, current task
//!  ├ hub        ┤ supervisor writes, all agents read: asleep flag (one per swarm)
//!  └ arena      ┘ one producer writes, its readers read: payloads that are too large for a slot (sparse)
//! ```
//!
//! Invariants
//! 1. Every word is an atomic; no reference to plain data ever points into these mappings. The one exception is the
//!    data of an arena's block: its owner fills it as plain memory before anybody else knows of it, and a reader that
//!    trusts the owner may read it in place.
//! 2. One writer per object; everybody else maps it read-only, and seals keep it so.
//! 3. What another process wrote is loaded once, checked, then used. Nonsense is [`ring::Corrupt`], never a panic.
//!    An arena's descriptors and releases are such words: nonsense there is [`arena::BadDescriptor`] or
//!    [`arena::BadRelease`].
//! 4. Objects live as long as one incarnation. A successor gets fresh ones, so nothing is ever repaired.
#![allow(unsafe_code, reason = "raw mappings; each block says why it is sound")]

pub mod arena;
mod blocks;
pub mod board;
pub mod doorbell;
pub mod lossy;
pub mod memory;
pub mod pages;
pub mod ring;
pub mod segment;
pub mod seqlock;
pub mod slot;

pub use memory::{Access, SharedObject, Words};
