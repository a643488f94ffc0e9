//! What is said between supervisor and agents, and how it travels.
//!
//! 1. `envelope` turns words into bytes and refuses bytes that are none.
//! 2. `lanes` carries them in three priorities over shared rings.
//! 3. `link` is both directions to one incarnation of one agent, with its pages and doorbells.
//!
//! Invariant: nothing in here allocates or makes a system call while both sides are awake.

pub mod envelope;
pub mod lanes;
pub mod link;

pub use envelope::{FromAgent, ToAgent};
pub use lanes::{Lane, LaneReceiver, LaneSender};
