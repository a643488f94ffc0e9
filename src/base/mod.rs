//! Words that every layer shares: identities, time, randomness, names of events.
//! Imports the standard library only.

pub mod clock;
pub mod ids;
pub mod prng;
