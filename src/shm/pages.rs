//! The small pages beside the slots: who may write which word.
//!
//! ```text
//!  hub (supervisor writes, all agents read)      word 0   supervisor is asleep
//!  sup.page (supervisor writes, one agent reads)
//!    words 0, 16, 32   acknowledged heads of the up lanes, a line pair each
//!    word 48           bell of the agent
//!    word 64           cancel word: task and attempt that the agent shall give up, 0 = none
//!    word 65           1: this agent shares its core, never spin
//!  agent.page (agent writes, supervisor reads)
//!    words 0, 16, 32   acknowledged heads of the down lanes
//!    word 48           agent is asleep
//!    word 64           beat: grows with every turn and every pulse of a kernel
//!    word 65           task that runs now, 0 = none
//!    word 66           when it started, ns
//! ```
//! Heads lie 128 bytes apart because the adjacent-line prefetcher pulls lines in pairs.

/// Bytes of each of these pages.
pub const PAGE_BYTES: usize = 4096;

/// Word of the supervisor's asleep flag in the hub.
pub const HUB_ASLEEP: usize = 0;

/// Word of the acknowledged head of lane `lane` in the receiver's page.
pub const fn lane_head(lane: usize) -> usize {
    lane * 16
}
/// Word of the agent's bell in sup.page.
pub const SUP_BELL: usize = 48;
/// Word of the cancelled task in sup.page.
pub const SUP_CANCEL: usize = 64;
/// Word that says whether the core is shared, in sup.page.
pub const SUP_SHARED_CORE: usize = 65;

/// Word of the agent's asleep flag in agent.page.
pub const AGENT_ASLEEP: usize = 48;
/// Word of the agent's beat in agent.page.
pub const AGENT_BEAT: usize = 64;
/// Word of the running task in agent.page.
pub const AGENT_TASK: usize = 65;
/// Word of the running task's start in agent.page.
pub const AGENT_TASK_SINCE: usize = 66;

const _: () = assert!(AGENT_TASK_SINCE * 8 + 8 <= PAGE_BYTES && lane_head(2) + 16 <= AGENT_ASLEEP);
