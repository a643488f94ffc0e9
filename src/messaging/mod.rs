//! What is said between supervisor and agents, and how it travels.
//!
//! 1. `envelope` turns words into bytes and refuses bytes that are none.
//! 2. `lanes` carries them in three priorities over shared rings; `meters` is what both ends count.
//! 3. `store` carries what does not fit into slots: blocks of an arena, on their way out and in.
//! 4. `wire` is both directions between two processes: lanes and store together.
//! 5. `link` is the wire between the supervisor and one member, with its pages and doorbells.
//! 6. `port` is a member's wires to other members: direct, broadcast, topics, requests.
//! 7. `attach` is what is said over a socket, so that descriptors find their way.
//!
//! Invariant: nothing in here allocates or makes a system call while both sides are awake.

pub mod attach;
pub mod envelope;
pub mod lanes;
pub mod link;
pub mod meters;
pub mod port;
pub mod store;
pub mod wire;

pub use envelope::{FromAgent, ToAgent};
pub use lanes::{Lane, LaneReceiver, LaneSender};
