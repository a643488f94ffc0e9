//! From flags and configuration to a started swarm, and back to nothing.

use super::args::{Global, LogFormat};
use super::log::{self, LogSink};
use super::output::{OutputOptions, say};
use super::{Failure, exit, pasted};
use crate::config::SwarmConfig;
use crate::jobs::Defaults;
use crate::journal::JournalError;
use crate::supervisor::action::ReportView;
use crate::supervisor::{OnEnd, Options, StartError, Supervisor};
use std::io::IsTerminal as _;
use std::io::{self, Write as _};
use std::path::Path;

/// A swarm with everything around it.
pub(crate) struct Session {
    pub(crate) supervisor: Supervisor,
    log: LogSink,
    output: OutputOptions,
}

/// What a task gets when it does not say.
pub(crate) fn defaults(config: &SwarmConfig) -> Defaults {
    Defaults { timeout: config.tasks.default_timeout, retries: config.tasks.default_retries }
}

impl Session {
    /// Starts a swarm. `private`: one that nobody else talks to, gone when it ends. `level`: the log
    /// level when none is given.
    pub(crate) fn start(
        global: &Global,
        config: &SwarmConfig,
        private: bool,
        level: &str,
        output: &OutputOptions,
    ) -> anyhow::Result<Self> {
        let json = match global.log_format {
            Some(format) => format == LogFormat::Json,
            None => !std::io::stderr().is_terminal(),
        };
        let level = global.log_level.as_deref().unwrap_or(if output.quiet { "error" } else { level });
        // First of all: blocked for this thread and all that it starts from here on, the log's included.
        let signals = crate::os::signals::StopSignals::listen()?;
        let sink = LogSink::new(true, json);
        log::init(level, json, output.color && std::io::stderr().is_terminal(), &sink);
        let options = Options {
            private,
            state_dir: global.state_dir.clone(),
            salvage: global.salvage_journal,
            log_filter: level.to_owned(),
            log_json: json,
            agent_log: Some(sink.pipe()?),
            signals,
        };
        let supervisor = Supervisor::start(config.clone(), options)
            .map_err(|error| start_failure(error, global, config))?;
        if !private
            && let Err(error) = sink.also_to(supervisor.state_dir(), config.telemetry.log_file_max_bytes)
        {
            tracing::warn!("there is no log file in {}: {error}", supervisor.state_dir().display());
        }
        Ok(Self { supervisor, log: sink, output: *output })
    }

    /// Ends the swarm. Returns its report, and whether its journal failed, be it at the very end.
    pub(crate) fn end(mut self, on_end: OnEnd, all_tasks: bool) -> (ReportView, bool) {
        if self.supervisor.is_signalled() {
            say(&self.output, "stopping; press Ctrl-C again to hurry");
        } else if self.supervisor.is_stop_asked() {
            say(&self.output, "stopping on request");
        }
        self.supervisor.shut_down(on_end);
        let report = self.supervisor.report(all_tasks);
        self.log.flush();
        (report, self.supervisor.journal_failure().is_some())
    }
}

fn start_failure(error: StartError, global: &Global, config: &SwarmConfig) -> Failure {
    match &error {
        StartError::Home(crate::supervisor::home::HomeError::Taken { .. }) => {
            // With a folder of its own a swarm lives there, whatever its name.
            let flag = if global.state_dir.is_some() { "--state-dir" } else { "--name" };
            Failure::new(exit::FAILED, error.to_string()).hint(format!(
                "stop it with `{}`, or give this one another {flag}",
                pasted(global, config, "stop")
            ))
        }
        StartError::Home(_) => Failure::new(exit::CANNOT, error.to_string())
            .hint("name a folder that can be written with --state-dir"),
        StartError::Journal(JournalError::Damaged { .. }) => Failure::new(exit::CANNOT, error.to_string())
            .hint(format!(
                "nothing was changed. Put a good copy of the file back, with its log (`-wal`); or go on without what is lost: `{}` sets the \
                 damaged files aside and keeps what is readable",
                pasted(global, config, "--salvage-journal")
            )),
        StartError::Journal(_) => Failure::new(exit::CANNOT, error.to_string()).hint(
            "free some space or name another folder with --state-dir; `durability.level` \"none\" needs no journal",
        ),
        StartError::Board(_) => Failure::new(exit::CANNOT, error.to_string())
            .hint("free some shared memory: `df /dev/shm` shows what is there"),
        StartError::Listen { .. } => Failure::new(exit::CANNOT, error.to_string())
            .hint("name another place with --state-dir, or switch `gateway.enabled` off"),
        StartError::OpenFiles { needed, .. } => Failure::new(exit::CANNOT, error.to_string()).hint(format!(
            "allow more with `ulimit -n {needed}`, or start fewer agents: `agents.compute.count`"
        )),
        StartError::System { .. } => Failure::new(exit::CANNOT, error.to_string()).hint(
            "`ai_swarm_deploy doctor` shows the limits; a smaller `channel_size` or `max_agents` needs less",
        ),
    }
}

/// Writes the report where `--report` says.
pub(crate) fn write_report(global: &Global, report: &ReportView) -> anyhow::Result<()> {
    let Some(path) = &global.report else { return Ok(()) };
    let text = serde_json::to_string_pretty(report)?;
    if path.as_os_str() == "-" {
        super::output::print(&text)?;
        return Ok(());
    }
    write_whole(path, &(text + "\n")).map_err(|error| {
        Failure::new(exit::FAILED, format!("--report {}: cannot be written: {error}", path.display())).into()
    })
}

/// Writes a file of which a reader sees all or nothing. A link stays one; a device or a pipe gets the words and is not replaced.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let is_file = || path.metadata().map(|there| there.is_file());
    let path = match path.symlink_metadata() {
        // To what is open already, such as `/dev/stdout`, words are added.
        Ok(_) if ["/dev", "/proc"].iter().any(|root| path.starts_with(root)) => {
            return std::fs::File::options().append(true).open(path)?.write_all(text.as_bytes());
        }
        Ok(_) if is_file().is_ok_and(|is_file| is_file) => path.canonicalize()?,
        // A pipe, or a link to what is not there yet.
        Ok(_) => return std::fs::write(path, text),
        Err(_) => path.to_owned(),
    };
    let part = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&part, text)
        .and_then(|()| std::fs::rename(&part, &path))
        .inspect_err(|_| drop(std::fs::remove_file(&part)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileTypeExt as _;

    #[test]
    fn a_report_replaces_files_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let [file, link, pipe] = ["file", "link", "pipe"].map(|name| folder.path().join(name));
        write_whole(&file, "new").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        write_whole(&link, "through the link").expect("written");
        let ahead = folder.path().join("ahead");
        std::os::unix::fs::symlink(folder.path().join("later"), &ahead).expect("a link");
        write_whole(&ahead, "words").expect("written");
        assert!(folder.path().join("later").is_file() && ahead.is_symlink());
        assert_eq!(std::fs::read_to_string(&file).expect("there"), "through the link");
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());

        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a pipe");
        let reader = std::fs::File::options().read(true).write(true).open(&pipe).expect("opened");
        write_whole(&pipe, "words").expect("written");
        let mut words = [0; 5];
        std::io::Read::read_exact(&mut &reader, &mut words).expect("readable");
        assert_eq!(&words, b"words");
        assert!(std::fs::metadata(&pipe).expect("there").file_type().is_fifo(), "it is still one");
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 5, "nothing is left beside");
    }
}
