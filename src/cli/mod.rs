//! The command line: words in, text or JSON out. Data goes to stdout, everything else to stderr.
//!
//! `args` knows the words, `session` turns flags into a started swarm, `run`, `deploy` and `demo` are
//! what it then does; `inspect`, `statistics` and `messages` talk to a swarm that runs already.

pub mod args;
mod demo;
mod deploy;
pub mod doctor;
pub mod inspect;
pub mod log;
mod messages;
pub mod output;
pub(crate) mod run;
mod session;
mod single;
mod statistics;

use crate::base::words::things;
use crate::config::{self, FlagValue, SwarmConfig};
use crate::gateway::client::{Client, ClientError};
use crate::kernels::Level;
use crate::supervisor::home;
use args::{
    AgentCommand, BalancerCommand, Cli, Color, Command, ConfigCommand, Global, LogFormat, TaskCommand, Work,
};
use clap::{CommandFactory as _, Parser as _};
use output::{OutputOptions, complain, print};
use serde_json::{Map, Value, json};
use std::io::{IsTerminal as _, Write as _};

/// Exit codes; a contract.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// A task failed, or the swarm ended on an error.
    pub const FAILED: u8 = 1;
    /// Words, configuration or job file are wrong.
    pub const WRONG: u8 = 2;
    /// This host cannot.
    pub const CANNOT: u8 = 3;
    /// No such running swarm.
    pub const NOT_RUNNING: u8 = 4;
}

/// An error that knows its exit code and a next step.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Runs the command line of this process. Returns the exit code.
pub fn main() -> u8 {
    let mut words: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == single::SINGLE_WORD) {
        return single::main(words.drain(2..));
    }
    if words.get(1).is_some_and(|word| word == crate::bench::ipc::PEER_WORD) {
        return crate::bench::ipc::peer_main(words.drain(2..));
    }
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { exit::WRONG } else { exit::DONE };
        }
    };
    if cli.global.log_format == Some(LogFormat::Json) {
        output::speak_json();
    }
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => report_error(&error),
    }
}

fn report_error(error: &anyhow::Error) -> u8 {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        complain(&match &failure.hint {
            Some(hint) => format!("{}\nhint: {hint}", failure.message),
            None => failure.message.clone(),
        });
        return failure.code;
    }
    if let Some(errors) = error.downcast_ref::<config::ConfigErrors>() {
        let words = errors.to_string();
        complain(words.strip_prefix("error: ").unwrap_or(&words));
        return exit::WRONG;
    }
    if let Some(io) = error.downcast_ref::<std::io::Error>()
        && io.kind() == std::io::ErrorKind::BrokenPipe
    {
        return exit::DONE;
    }
    complain(&with_causes(error));
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NotRunning { .. }) => exit::NOT_RUNNING,
        _ => exit::FAILED,
    }
}

/// An error and what it came from, each once: most errors name their cause themselves.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |words, cause| {
        if words.contains(&cause) { words } else { format!("{words}: {cause}") }
    })
}

fn dispatch(cli: &Cli) -> anyhow::Result<u8> {
    let global = &cli.global;
    // Only where kernels run: nobody shall be unable to stop a swarm because of it.
    if matches!(
        cli.command,
        None | Some(Command::Run(_) | Command::Bench { .. } | Command::Chaos { .. } | Command::Doctor)
    ) {
        Level::forced().map_err(|words| Failure::new(exit::WRONG, words))?;
    }
    if cli.command.is_some() && (global.demo || global.monitor_duration.is_some()) {
        let flag = if global.demo { "--demo" } else { "--monitor-duration" };
        return Err(
            Failure::new(exit::WRONG, format!("{flag} deploys a swarm and goes with no command")).into()
        );
    }
    let output = output_options(global);
    match &cli.command {
        None => deploy::deploy(global, &load_config(global)?, &output),
        Some(Command::Run(work)) => run::run(global, &load_config(global)?, work, &output),
        Some(Command::Submit { work, wait }) => {
            let job = job_of_work(work)?;
            inspect::submit(&mut client(global)?, job, *wait, &output)
        }
        Some(Command::Task(command)) => task(command, &mut client(global)?, &output),
        Some(Command::Balancer(BalancerCommand::Mode { mode })) => {
            inspect::balancer_mode(&mut client(global)?, mode, &output)
        }
        Some(Command::Agent(command)) => agent(command, &mut client(global)?, &output),
        Some(Command::Status { incidents: false }) => inspect::status(&mut client(global)?, &output),
        Some(Command::Status { incidents: true }) => inspect::incidents(&mut client(global)?, &output),
        Some(Command::Statistics { all }) => statistics::statistics(&mut client(global)?, *all, &output),
        Some(Command::Send { to, text, reply_within }) => {
            let body = messages::send_body(to, text.as_deref(), *reply_within)?;
            messages::send(&mut client(global)?, &body, &output)
        }
        Some(Command::Broadcast { text, topic }) => {
            let body = messages::body(text.as_deref(), topic.as_deref())?;
            messages::broadcast(&mut client(global)?, &body, &output)
        }
        Some(Command::Events { follow, after, earlier }) => {
            inspect::events(&mut client(global)?, *follow, *after, *earlier, &output)
        }
        Some(Command::Stop { keep_tasks }) => inspect::stop(&mut client(global)?, *keep_tasks, &output),
        Some(Command::Doctor) => {
            let (text, fine) = doctor::doctor(global.json, &load_config(global)?, output.width);
            print(&text)?;
            Ok(if fine { exit::DONE } else { exit::CANNOT })
        }
        Some(Command::Bench { what, quick, check, traces }) => {
            let traces = crate::bench::read_traces(*what, traces)?;
            let kept = crate::bench::main(*what, *quick, &traces, &load_config(global)?, &output)?;
            Ok(if *check && !kept { exit::FAILED } else { exit::DONE })
        }
        Some(Command::Chaos { seed, duration, count, rate, fault, durability, folder }) => {
            let fresh =
                || std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64 % 1_000_000);
            let plan = crate::chaos::Plan {
                seed: seed.unwrap_or_else(fresh),
                duration: *duration,
                count: *count,
                rate: *rate,
                faults: fault.clone(),
                durability: *durability,
                folder: folder.clone(),
            };
            Ok(if crate::chaos::run(&plan, &output)? { exit::DONE } else { exit::FAILED })
        }
        Some(Command::Config(command)) => config_command(command, global, &output),
        Some(Command::Kernels { kernel }) => kernels(kernel.as_deref(), &output),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "ai_swarm_deploy", &mut script);
            std::io::stdout().write_all(&script)?;
            Ok(exit::DONE)
        }
    }
}

fn output_options(global: &Global) -> OutputOptions {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let color = match global.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            wanted
                && std::io::stdout().is_terminal()
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        }
    };
    OutputOptions { json: global.json, quiet: global.quiet, color, width: width() }
}

/// Columns of the terminal; 80 when there is none.
fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout())
        .or_else(|_| rustix::termios::tcgetwinsize(std::io::stderr()));
    size.ok().map(|size| usize::from(size.ws_col)).filter(|&columns| columns >= 40).unwrap_or(80)
}

/// The configuration with the flags on top.
pub(crate) fn load_config(global: &Global) -> anyhow::Result<SwarmConfig> {
    let name = global.name.iter().map(|name| FlagValue {
        flag: "--name".to_owned(),
        key: "name",
        value: Value::String(name.clone()),
    });
    Ok(config::load(global.config.as_deref(), &name.collect::<Vec<_>>())?)
}

/// A command line for the very swarm that the flags name, so that it works when pasted into a shell.
fn pasted(global: &Global, config: &SwarmConfig, words: &str) -> String {
    let mut line = "ai_swarm_deploy".to_owned();
    let word = |path: &std::path::Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        shell_word(&path.to_string_lossy())
    };
    // A start needs the configuration; to speak to what runs, its place is enough.
    if let (true, Some(file)) = (words.is_empty(), &global.config) {
        line += &format!(" --config {}", word(file));
    }
    // What a bare command would speak to. From another folder it may be something else, so only the
    // name that is the default everywhere needs no flag.
    let bare =
        || config::load(std::env::var_os("AI_SWARM_CONFIG").map(std::path::PathBuf::from).as_deref(), &[]);
    if config.name != "default" || !bare().is_ok_and(|bare| bare.name == config.name) {
        line += &format!(" --name {}", config.name);
    }
    if let Some(folder) = &global.state_dir {
        line += &format!(" --state-dir {}", word(folder));
    }
    if !words.is_empty() {
        line += &format!(" {words}");
    }
    line
}

/// One word for a shell.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Speaks to the running swarm that the flags name.
fn client(global: &Global) -> anyhow::Result<Client> {
    let config = load_config(global)?;
    let socket = home::socket_path(&config.name, global.state_dir.as_deref());
    Client::connect(&socket).map_err(|error| match error {
        ClientError::NotRunning { .. } => Failure::new(
            exit::NOT_RUNNING,
            format!("no swarm named {:?} is running (socket {})", config.name, socket.display()),
        )
        .hint(format!(
            "start one with `{}`, or name another with --name or --state-dir",
            pasted(global, &config, "")
        ))
        .into(),
        other => anyhow::Error::from(other),
    })
}

fn task(command: &TaskCommand, client: &mut Client, output: &OutputOptions) -> anyhow::Result<u8> {
    match command {
        TaskCommand::List { state, limit } => inspect::task_list(client, state.as_deref(), *limit, output),
        TaskCommand::Show { id } => inspect::task_show(client, id, output),
        TaskCommand::Explain { id } => inspect::task_explain(client, id, output),
        TaskCommand::Cancel { id } => inspect::task_cancel(client, id, output),
    }
}

fn agent(command: &AgentCommand, client: &mut Client, output: &OutputOptions) -> anyhow::Result<u8> {
    match command {
        AgentCommand::List => inspect::agent_list(client, output),
        AgentCommand::Create { kind, id } => inspect::agent_create(client, kind, id.as_deref(), output),
        AgentCommand::Destroy { id } => inspect::agent_destroy(client, id, output),
        AgentCommand::Restart { who, rolling } => inspect::agent_restart(client, who, *rolling, output),
        AgentCommand::Optimize { id, no_wait } => inspect::agent_optimize(client, id, !no_wait, output),
    }
}

fn config_command(command: &ConfigCommand, global: &Global, output: &OutputOptions) -> anyhow::Result<u8> {
    match command {
        ConfigCommand::Check { file } => {
            let path = file.as_deref().or(global.config.as_deref());
            let config = config::load(path, &[])?;
            let online = crate::os::topology::Topology::read().online;
            for warning in config::warnings(&config, &online) {
                output::warn(&warning);
            }
            let file = config
                .file()
                .map_or_else(|| "built-in defaults".to_owned(), |path| path.display().to_string());
            print(&if output.json {
                json!({"ok": true, "file": file, "keys_set": config.keys_set()}).to_string()
            } else {
                format!("{file}: fine, {} set", things(config.keys_set(), "key"))
            })?;
        }
        ConfigCommand::Explain { key } => {
            let text = config::explain_text(key.as_deref(), output.width).ok_or_else(|| {
                let key = key.as_deref().unwrap_or("");
                let near = config::nearest_path(key);
                Failure::new(exit::WRONG, format!("no configuration key or section is called {key:?}"))
                    .hint(format!("the nearest is `{near}`; `ai_swarm_deploy config explain` lists them all"))
            })?;
            if output.json {
                let mut rows = config::explain();
                rows.retain(|row| key.as_deref().is_none_or(|key| config::is_within(row.key, key)));
                print(&serde_json::to_string_pretty(&rows)?)?;
            } else {
                print(&text)?;
            }
        }
        ConfigCommand::Show => {
            let config = load_config(global)?;
            print(&if output.json {
                serde_json::to_string_pretty(&config::show(&config))?
            } else {
                config::show_text(&config)
            })?;
        }
    }
    Ok(exit::DONE)
}

fn kernels(name: Option<&str>, output: &OutputOptions) -> anyhow::Result<u8> {
    use crate::kernels::{KernelId, describe, spec};
    let wanted: Vec<KernelId> = match name {
        None => KernelId::ALL.to_vec(),
        Some(name) => vec![KernelId::from_name(name).ok_or_else(|| {
            let hint = KernelId::nearest_name(name)
                .map_or_else(|| "`kernels` lists them".to_owned(), |near| format!("did you mean {near}?"));
            Failure::new(exit::WRONG, format!("no kernel is called {name:?}")).hint(hint)
        })?],
    };
    if output.json {
        let all: Vec<Value> = wanted.into_iter().map(describe).collect();
        print(&serde_json::to_string_pretty(&all)?)?;
        return Ok(exit::DONE);
    }
    let mut text = String::new();
    for kernel in wanted {
        let spec = spec(kernel);
        text += &format!("{:<12} {}\n", kernel.name(), spec.about);
        for input in spec.inputs {
            text += &format!("    in  {:<12} {}\n", input.name, input.about);
        }
        for param in spec.params {
            text += &format!(
                "    --param {:<12} {} [{}]; {}\n",
                param.name,
                param.about,
                param.default.to_json(),
                param.allowed()
            );
        }
    }
    print(&text)?;
    Ok(exit::DONE)
}

/// The tasks of the command line as the text of a job: what `run` and `submit` have in common.
fn job_of_kernel(work: &Work, kernel: &str) -> anyhow::Result<Value> {
    let mut task = Map::new();
    task.insert("kernel".into(), kernel.into());
    let path = |path: &std::path::PathBuf| -> anyhow::Result<Value> {
        let absolute = std::path::absolute(path)?;
        let text = absolute
            .to_str()
            .ok_or_else(|| Failure::new(exit::WRONG, format!("{} is not valid UTF-8", path.display())))?;
        Ok(text.into())
    };
    if !work.files.is_empty() {
        task.insert("inputs".into(), work.files.iter().map(path).collect::<anyhow::Result<Vec<_>>>()?.into());
    }
    if let Some(output) = &work.output {
        task.insert("output".into(), path(output)?);
    }
    if !work.params.is_empty() {
        let mut params = Map::new();
        for param in &work.params {
            let Some((key, value)) = param.split_once('=') else {
                return Err(
                    Failure::new(exit::WRONG, format!("--param {param:?}: KEY=VALUE is needed")).into()
                );
            };
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
            params.insert(key.to_owned(), value);
        }
        task.insert("params".into(), params.into());
    }
    for (key, value) in [("priority", &work.priority), ("backend", &work.backend)] {
        if let Some(value) = value {
            task.insert(key.into(), value.clone().into());
        }
    }
    if let Some(timeout) = work.timeout {
        task.insert("timeout_s".into(), timeout.into());
    }
    Ok(json!({ "tasks": [task] }))
}

/// The job that `submit` sends: paths made absolute, the rest as it stands, since the swarm checks it.
fn job_of_work(work: &Work) -> anyhow::Result<Value> {
    if let Some(kernel) = &work.kernel {
        return job_of_kernel(work, kernel);
    }
    let mut tasks = Vec::new();
    for file in files(work)? {
        tasks.extend(run::read_tasks_as_json(&file)?);
    }
    Ok(json!({ "tasks": tasks }))
}

/// The job files; standard input when none is named and something is piped in.
fn files(work: &Work) -> anyhow::Result<Vec<std::path::PathBuf>> {
    if work.files.is_empty() {
        if std::io::stdin().is_terminal() {
            return Err(Failure::new(exit::WRONG, "no job file and no --kernel given")
                .hint("`ai_swarm_deploy run jobs.json`, or `ai_swarm_deploy run --kernel noop`")
                .into());
        }
        return Ok(vec!["-".into()]);
    }
    Ok(work.files.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let known = ClientError::Socket { socket: "x".into(), source: refused() };
        let words = with_causes(&anyhow::Error::from(known));
        assert_eq!(words.matches("refused").count(), 1, "{words}");
        let words = with_causes(&anyhow::Error::from(refused()).context("no answer"));
        assert_eq!(words, "no answer: connection refused");
    }

    #[test]
    fn a_path_becomes_one_word_of_a_shell() {
        for (text, word) in [
            ("/var/lib/x-1", "/var/lib/x-1"),
            ("", "''"),
            ("/a b", "'/a b'"),
            ("/it's", r"'/it'\''s'"),
            ("/$HOME", "'/$HOME'"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }
}
