//! No command: the swarm in the foreground, until a signal, `stop`, or `--monitor-duration`.

use super::args::Global;
use super::demo;
use super::output::OutputOptions;
use super::output::say;
use super::run::summary;
use super::session::{Session, write_report};
use super::{exit, pasted};
use crate::base::words::things;
use crate::config::{self, SwarmConfig};
use crate::kernels::Level;
use crate::os::clock;
use crate::os::topology::Topology;
use crate::supervisor::OnEnd;

pub(super) fn deploy(global: &Global, config: &SwarmConfig, output: &OutputOptions) -> anyhow::Result<u8> {
    let topology = Topology::read();
    let level = if global.demo { "warn" } else { "info" };
    let began = clock::now();
    let mut session = Session::start(global, config, false, level, output)?;
    welcome(global, config, &topology, &session, output);
    let deadline = global.monitor_duration.map(|span| began.plus(span));

    let mut demo_failed = false;
    if global.demo {
        session.supervisor.expect_load(true);
        let outcome = demo::run(&mut session.supervisor, output)?;
        session.supervisor.expect_load(false);
        demo_failed = !outcome.fine;
        super::output::print(&outcome.text)?;
    }
    if !global.demo || deadline.is_some() {
        match deadline {
            Some(deadline) => session.supervisor.run_until_deadline(deadline, |_| false),
            None => session.supervisor.run_until(|_| false),
        }
    }
    let (report, journal_failed) = session.end(OnEnd::Drain, global.report_tasks);
    if output.json && !global.demo {
        super::output::print(&serde_json::to_string_pretty(&report)?)?;
    } else {
        say(output, &summary(&report, output));
    }
    write_report(global, &report)?;
    Ok(if demo_failed || journal_failed || report.tasks.lost > 0 || report.tasks.duplicated > 0 {
        exit::FAILED
    } else {
        exit::DONE
    })
}

/// What the swarm sees, and what it is blind to and why.
fn welcome(
    global: &Global,
    config: &SwarmConfig,
    topology: &Topology,
    session: &Session,
    output: &OutputOptions,
) {
    if output.quiet {
        return;
    }
    let origin = match config.file() {
        Some(path) => format!("config {} ({} set)", path.display(), things(config.keys_set(), "key")),
        None => "built-in configuration".to_owned(),
    };
    let model = topology.model.as_deref().unwrap_or("unknown processor");
    let plan = session.supervisor.plan();
    let mut text = format!(
        "ai_swarm {}   swarm {}   {origin}\n  cores     {} ({model}), kernels on {}\n  plan      {}, supervisor on core {}",
        env!("CARGO_PKG_VERSION"),
        config.name,
        config::ranges(topology.usable()),
        Level::best().name(),
        things(plan.compute_count(), "compute agent"),
        plan.supervisor,
    );
    for note in plan.notes.iter().chain(&config::warnings(config, &topology.online)) {
        text += &format!("\n            {note}");
    }
    let blind = super::doctor::blind_spots(config);
    for (at, (what, why)) in blind.iter().enumerate() {
        text += &format!("\n  {}{what}: {why}", if at == 0 { "blind to  " } else { "          " });
    }
    match session.supervisor.socket() {
        Some(socket) => {
            let stop = pasted(global, config, "stop");
            text += &format!("\n  control   {}\n  end with  Ctrl-C or `{stop}`", socket.display());
        }
        None => text += "\n  control   off (`gateway.enabled`)\n  end with  Ctrl-C",
    }
    say(output, &text);
}
