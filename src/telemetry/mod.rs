//! What is happening on this host. It watches and never changes anything.
//!
//! Flow
//! 1. [`reading`]: a value, or absent with its reason. Nothing missing is ever 0.
//! 2. [`host`]: processors, memory, pressure, disks and the processes of agents, once per `monitoring_interval`.
//! 3. [`strain`]: how short of memory the host is, for the supervisor's own decisions.
//! 4. [`sensors`]: temperatures, clocks, throttling, power; and the pure policy that caps work when it is hot.
//!
//! All readers take the root of the tree they read, so recorded machines stand in for real ones.

pub mod host;
pub mod reading;
pub mod sensors;
pub mod strain;

pub use host::{AgentUsage, HostFacts, HostSample, HostSampler, Pressure, Space, space_of};
pub use reading::{Missing, Quality, Reading, Reason};
pub use sensors::{Cap, SensorTree, Temperature, ThermalSample, ThrottlePolicy};
