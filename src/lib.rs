//! A single-host, shared-memory performance swarm.
//!
//! A supervisor starts pinned agent processes of six kinds. They run kernels on NumPy arrays, watch
//! the host, tune themselves and learn what work costs; they talk over lock-free rings in shared
//! memory. Any of them may die at any instruction: what was accepted is done by another.
//!
//! # Reading order
//! | folder | what it is |
//! | --- | --- |
//! | [`base`] | words every layer shares: ids, time, randomness |
//! | [`config`] | `swarm_config.json`: described, checked, explained |
//! | [`os`] | system calls that are not shared memory |
//! | [`shm`] | bytes that several processes see: rings, doorbells, the board |
//! | [`messaging`] | what is said, and how it travels |
//! | [`tasks`] | what work is: ledger, dispatch, results |
//! | [`balancer`] | which agent gets a task |
//! | [`arrays`], [`kernels`] | `.npy` files, and arithmetic on them |
//! | [`telemetry`] | what the host is doing |
//! | [`agents`] | what an agent is, and the six that ship |
//! | [`supervisor`] | owner of processes and of the ledger; one loop |
//! | [`jobs`] | job files and requests become tasks |
//! | [`gateway`] | the control API over a Unix socket, in a process of its own, and its client |
//! | [`client`] | a process of the user's own: tasks and messages |
//! | [`cli`], [`mod@bench`] | words in, text out; what `bench` measures |
//! | [`chaos`] | breaks a swarm of its own and checks the promises |
//!
//! # One task in six files
//! 1. `cli/run.rs` (or `gateway/routes.rs`): words become tasks through `jobs/mod.rs`.
//! 2. `supervisor/mod.rs`: the loop hands them to the ledger, `tasks/ledger.rs`.
//! 3. `tasks/dispatch.rs`: a place is chosen, an envelope written.
//! 4. `messaging/link.rs`: lane, ring, doorbell.
//! 5. `agents/compute.rs`: takes it, runs its kernel, writes its output, answers.
//! 6. `tasks/results.rs`: the answer meets its attempt, and whoever waits.

pub mod agents;
pub mod arrays;
pub mod balancer;
pub mod base;
pub mod bench;
pub mod chaos;
pub mod cli;
pub mod client;
pub mod config;
pub mod gateway;
pub mod jobs;
pub mod journal;
pub mod kernels;
pub mod messaging;
pub mod os;
pub mod shm;
pub mod supervisor;
pub mod tasks;
pub mod telemetry;

pub use client::Client;
