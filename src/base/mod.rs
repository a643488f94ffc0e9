//! Words that every layer shares: identities, time, randomness, numbers in sentences; the one door to
//! atomics, and points at which tests let a process die. Imports no other folder.

pub mod clock;
pub mod crash;
pub mod ids;
pub mod prng;
pub mod sync;
pub mod words;
