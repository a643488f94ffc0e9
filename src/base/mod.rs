//! Words that every layer shares: identities, time, randomness, numbers in sentences, values by number; the one door to
//! atomics, and the ways in which tests let a process die or fall ill, or a disk fail. Imports no other folder.

pub mod ailment;
pub mod clock;
pub mod crash;
pub mod ids;
pub mod mean;
pub mod numbered;
pub mod prng;
pub mod sync;
pub mod trouble;
pub mod words;
