//! What is said between supervisor and agents, and how it travels.
//!
//! 1. `envelope` turns words into bytes and refuses bytes that are none.
//! 2. `failure` is what can go wrong with an agent, and the plan for it.
//! 3. `lanes` carries them in three priorities over shared rings; `meters` is what both ends count.
//! 4. `store` carries what does not fit into slots: blocks of an arena, on their way out and in.
//! 5. `wire` is both directions between two processes: lanes and store together.
//! 6. `link` is the wire between the supervisor and one member, with its pages and doorbells.
//! 7. `port` is a member's wires to other members: direct, broadcast, topics, requests.
//! 8. `attach` is what is said over a socket, so that descriptors find their way.
//!
//! Invariant: nothing in here allocates or makes a system call while both sides are awake.

pub mod attach;
pub mod envelope;
pub mod failure;
pub mod lanes;
pub mod link;
pub mod meters;
pub mod port;
pub mod store;
pub mod wire;

pub use envelope::{FromAgent, ToAgent};
pub use lanes::{Lane, LaneReceiver, LaneSender};
