//! `crate::messaging`: what of it passes bytes between threads.

#[path = "../../../src/messaging/lanes.rs"]
pub mod lanes;
#[path = "../../../src/messaging/meters.rs"]
pub mod meters;
