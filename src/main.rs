//! The binary `ai_swarm_deploy`: words in, exit code out. With its first word it is an agent of a swarm.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args();
    // An agent starts a thousand times as often as a person types: no parsing on its way.
    if words.nth(1).as_deref() == Some(ai_swarm::agents::runner::AGENT_WORD) {
        let start = words.nth(1).unwrap_or_default();
        return ExitCode::from(ai_swarm::agents::runner::main(&start) as u8);
    }
    ExitCode::from(ai_swarm::cli::main())
}
