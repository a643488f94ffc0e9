//! Every system call that is not about shared memory: processes, signals, sleeping, pinning, what the host has.
//!
//! Safe functions over unsafe calls. Nothing here knows what an agent, a task or a message is.
#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

pub mod affinity;
pub mod clock;
pub mod containment;
pub mod counting;
pub mod filemap;
pub mod files;
pub mod futex;
pub mod kernel_config;
pub mod map;
pub mod nvml;
pub mod perf;
pub mod process;
pub mod robust;
pub mod signals;
pub mod socket;
pub mod spawn;
pub mod sysfs;
pub mod topology;
