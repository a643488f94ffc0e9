//! The binary `ai_swarm_deploy`: words in, exit code out. With its first word it is an agent of a swarm, the guard of
//! its agents, its gateway or its reaper.

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
    if first.as_deref() == Some(ai_swarm::supervisor::REAPER_WORD) {
        return ExitCode::from(ai_swarm::supervisor::reaper_main(words));
    }
    if first.as_deref() == Some(ai_swarm::supervisor::wire::GATEWAY_WORD) {
        return ExitCode::from(ai_swarm::gateway::main(words) as u8);
    }
    ExitCode::from(ai_swarm::cli::main())
}
