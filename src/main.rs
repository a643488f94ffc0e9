//! The binary `ai_swarm_deploy`: words in, exit code out. With its first word it is an agent of a swarm, or the
//! guard of its agents.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args();
    let first = words.nth(1);
    // An agent starts a thousand times as often as a person types: no parsing on its way.
    if first.as_deref() == Some(ai_swarm::agents::runner::AGENT_WORD) {
        let start = words.nth(1).unwrap_or_default();
        return ExitCode::from(ai_swarm::agents::runner::main(&start) as u8);
    }
    if first.as_deref() == Some(ai_swarm::supervisor::GUARD_WORD) {
        ai_swarm::os::containment::guard_main();
    }
    ExitCode::from(ai_swarm::cli::main())
}
