//! `ai_swarm_deploy doctor`: what this host offers and what is missing, each with its reason and, where known,
//! the command that would change it.
//!
//! Invariants
//! 1. One probe that fails, panics or hangs costs one line: each runs on a thread of its own with a time limit.
//! 2. Nothing missing is shown as 0; a nominal clock is never shown as the current one.
//! 3. `ok` is false only when the swarm cannot run here at all: no sealed shared memory, no `/dev/shm`, no pidfd.

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::Resource;
use serde_json::{Map, Value, json};

use crate::config::{self, SwarmConfig};
use crate::os::perf::{EventSource, PerfProbe};
use crate::os::sysfs::{self, Missing, Reason};
use crate::os::topology::{COMPUTE, CorePlan, KindRequest, Topology, plan_cores};
use crate::os::{nvml, perf};
use crate::telemetry::{
    HostFacts, HostSample, HostSampler, Reading, SensorTree, Space, ThermalSample, space_of,
};

/// Longest time one probe may take. A sleeping GPU driver needs about a second.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// Oldest kernel with all we count on: `F_SEAL_FUTURE_WRITE` came with 5.1, `pidfd_open` with 5.3.
const KERNEL_MIN: (u32, u32) = (5, 3);

/// Descriptors that one agent costs the supervisor, rounded up: channels, pidfd, log pipe.
const DESCRIPTORS_PER_AGENT: u64 = 16;

/// One line of the report.
struct Finding {
    /// Stable key in JSON.
    key: &'static str,
    /// Word in the table.
    label: &'static str,
    /// What is so, or why it is not.
    state: Result<String, Missing>,
    /// Facts for machines.
    data: Value,
    /// True when the swarm cannot run without it.
    required: bool,
}

impl Finding {
    fn new(key: &'static str, label: &'static str, state: Result<String, Missing>, data: Value) -> Finding {
        Finding { key, label, state, data, required: false }
    }

    fn required(mut self) -> Finding {
        self.required = true;
        self
    }

    fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("ok".to_owned(), json!(self.state.is_ok()));
        match &self.state {
            Ok(text) => drop(map.insert("text".to_owned(), json!(text))),
            Err(missing) => {
                map.insert("reason".to_owned(), json!(missing.reason.code()));
                map.insert("detail".to_owned(), json!(missing.detail));
                map.insert("fix".to_owned(), json!(missing.fix));
            }
        }
        if !self.data.is_null() {
            map.insert("data".to_owned(), self.data.clone());
        }
        Value::Object(map)
    }
}

/// A group of lines under one heading.
struct Chapter {
    key: &'static str,
    title: &'static str,
    findings: Vec<Finding>,
}

/// Looks at this host. The text is a table for `width` columns, or JSON; the flag is false when the swarm cannot
/// run here, which the caller turns into exit code 3.
///
/// Call it before anything is pinned.
pub fn doctor(json: bool, config: &SwarmConfig, width: usize) -> (String, bool) {
    let topology = Topology::read();
    let procfs = config.agents.resource.procfs.clone();
    let sensors_root = config.agents.thermal.root.clone();
    // All probes run side by side; the slowest sets the time.
    let facts = start(HostFacts::read);
    let counters = start(perf::probe);
    let gpus = start(nvml::probe);
    let shared = start(shared_memory);
    let samples = start(move || {
        let mut sampler = HostSampler::new(procfs);
        sampler.sample();
        // Long enough for ten ticks of `/proc/stat`.
        std::thread::sleep(Duration::from_millis(100));
        sampler.sample()
    });
    let sensors = start(move || {
        let mut tree = SensorTree::new(sensors_root);
        tree.read();
        std::thread::sleep(Duration::from_millis(100));
        tree.read()
    });

    let plan = plan(config, &topology);
    let chapters = [
        host(facts.take(), &topology),
        processor(&topology),
        counters_chapter(counters.take()),
        heat(sensors.take(), &topology),
        gpu(gpus.take()),
        load(samples.take()),
        memory(shared.take()),
        limits(config),
    ];
    let warnings = config::warnings(config, &topology.online);
    let ok = chapters.iter().flat_map(|c| &c.findings).all(|f| f.state.is_ok() || !f.required);
    let text = if json {
        let mut text = to_json(&chapters, &plan, config, &warnings, ok);
        text.push('\n');
        text
    } else {
        to_text(&chapters, &plan, config, &warnings, ok, width.clamp(60, 120))
    };
    (text, ok)
}

/// What the swarm cannot see on this host, each with its reason: for the first lines of a start.
pub(crate) fn blind_spots(config: &SwarmConfig) -> Vec<(&'static str, String)> {
    let mut blind = Vec::new();
    let counters = perf::probe();
    if counters.alive(perf::EventSource::Hardware).is_empty() {
        let why = counters.events.iter().find_map(|event| event.result.as_ref().err());
        blind.push(("hardware counters", why.map_or_else(|| "none came alive".to_owned(), words)));
    }
    let sensors = SensorTree::new(&config.agents.thermal.root).read();
    for (what, reading) in [("temperature", &sensors.hottest), ("power", &sensors.package_watts)] {
        if let Reading::Absent { reason, detail, .. } = reading
            && *reason != crate::telemetry::reading::Reason::WarmingUp
        {
            blind.push((what, format!("{}: {detail}", reason.code())));
        }
    }
    if let Err(missing) = nvml::probe() {
        blind.push(("GPU", words(&missing)));
    }
    blind
}

fn words(missing: &crate::telemetry::reading::Missing) -> String {
    format!("{}: {}", missing.reason.code(), missing.detail)
}

/// The core plan of this configuration on this host.
pub fn plan(config: &SwarmConfig, topology: &Topology) -> CorePlan {
    let requests =
        config.agents.each().map(|(kind, count, cores)| KindRequest { kind, count: count.exact(), cores });
    plan_cores(topology.usable(), &requests, config.max_agents)
}

/// A probe under way on a thread of its own.
struct Probing<T> {
    answer: mpsc::Receiver<T>,
    until: Instant,
}

fn start<T: Send + 'static>(probe: impl FnOnce() -> T + Send + 'static) -> Probing<T> {
    let (sender, answer) = mpsc::sync_channel(1);
    // A thread that hangs in a driver is left behind; this command ends soon and takes it along.
    let spawned = std::thread::Builder::new().name("doctor probe".to_owned()).spawn(move || {
        let _ = sender.send(probe());
    });
    drop(spawned);
    Probing { answer, until: Instant::now() + PROBE_LIMIT }
}

impl<T> Probing<T> {
    fn take(self) -> Result<T, Missing> {
        self.answer.recv_timeout(self.until.saturating_duration_since(Instant::now())).map_err(|error| {
            match error {
                mpsc::RecvTimeoutError::Timeout => {
                    Missing::new(Reason::Timeout, format!("no answer within {} s", PROBE_LIMIT.as_secs()))
                }
                mpsc::RecvTimeoutError::Disconnected => {
                    Missing::new(Reason::Implausible, "the probe itself failed")
                }
            }
        })
    }
}

fn host(facts: Result<HostFacts, Missing>, topology: &Topology) -> Chapter {
    let field = |pick: fn(&HostFacts) -> &Reading<String>| match &facts {
        Ok(facts) => result_of(pick(facts)),
        Err(missing) => Err(missing.clone()),
    };
    let kernel = field(|facts| &facts.kernel).and_then(|release| {
        let mut parts =
            release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if version >= KERNEL_MIN {
            return Ok(release);
        }
        let detail =
            format!("Linux {release} is older than {}.{}, which we count on", KERNEL_MIN.0, KERNEL_MIN.1);
        Err(Missing::new(Reason::Unsupported, detail).fix("update the kernel"))
    });
    let kind = if topology.virtual_machine { "virtual machine" } else { "no hypervisor seen" };
    let memory = match &facts {
        Ok(facts) => result_of(&facts.memory_total_bytes),
        Err(missing) => Err(missing.clone()),
    };
    let limit = facts.as_ref().ok().and_then(|facts| facts.cgroup_memory_bytes.get());
    let memory_data = json!({"total_bytes": memory.as_ref().ok(), "cgroup_limit_bytes": limit});
    let memory = memory.map(|total| match limit {
        Some(limit) => format!("{}, this control group may use {}", bytes(total), bytes(limit)),
        None => format!("{}, no control group limit below it", bytes(total)),
    });
    Chapter {
        key: "host",
        title: "Host",
        findings: vec![
            Finding::new(
                "system",
                "system",
                field(|facts| &facts.os).map(|os| format!("{os}, {kind}")),
                Value::Null,
            ),
            Finding::new("kernel", "kernel", kernel, Value::Null),
            Finding::new("memory", "memory", memory, memory_data),
            Finding::new("pidfd", "pidfd", pidfd(), Value::Null).required(),
            Finding::new("containment", "containment", containment(), Value::Null),
        ],
    }
}

/// By what the children of agents die.
fn containment() -> Result<String, Missing> {
    if let Err(missing) = crate::os::containment::may_have_namespace() {
        let what = "the children of agents are found one by one, and may outlive a killed supervisor";
        return Err(Missing::new(Reason::Permission, format!("{missing}: {what}")));
    }
    Ok("a PID namespace: what agents start dies with them and with the supervisor".to_owned())
}

fn pidfd() -> Result<String, Missing> {
    rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .map(|_| "the end of a process is noticed at once".to_owned())
        .map_err(|errno| Missing::from_io("pidfd_open", &errno.into()))
}

fn processor(topology: &Topology) -> Chapter {
    let cores = format!(
        "{} online ({}), {} available to us ({}), quota gives time for {}",
        topology.online.len(),
        config::ranges(&topology.online),
        topology.available.len(),
        config::ranges(&topology.available),
        topology.parallelism,
    );
    let cores_data = json!({
        "online": topology.online, "available": topology.available, "parallelism": topology.parallelism,
        "packages": topology.packages(), "physical": topology.physical_cores(),
    });
    let physical = topology.physical_cores();
    let layout = format!(
        "{} in {}, {}",
        counted(physical, "physical core"),
        counted(topology.packages(), "package"),
        if topology.online.len() > physical { "hyper-threads share them" } else { "no hyper-threads" },
    );
    let caches: Vec<String> = topology
        .caches
        .iter()
        .map(|cache| match cache.shared_by {
            1 => format!("{} {}", cache.name, bytes(cache.bytes)),
            cores => format!("{} {} shared by {cores}", cache.name, bytes(cache.bytes)),
        })
        .collect();
    let caches_data = topology.caches.iter().map(|cache| {
        json!({"name": cache.name, "bytes": cache.bytes, "line_bytes": cache.line_bytes, "shared_by": cache.shared_by})
    });
    let caches_data = caches_data.collect::<Vec<Value>>().into();
    let nodes: Vec<String> = topology
        .nodes
        .iter()
        .map(|node| {
            let memory = node.memory_bytes.map_or("memory not told".to_owned(), bytes);
            format!("node {}: cpu {}, {memory}", node.index, config::ranges(&node.cores))
        })
        .collect();
    let nodes_data = topology
        .nodes
        .iter()
        .map(|node| json!({"index": node.index, "cores": node.cores, "memory_bytes": node.memory_bytes}));
    let nodes_data = nodes_data.collect::<Vec<Value>>().into();
    let simd = simd();
    Chapter {
        key: "processor",
        title: "Processor",
        findings: vec![
            Finding::new(
                "model",
                "model",
                topology.model.clone(),
                json!({"nominal_mhz": topology.nominal_mhz}),
            ),
            Finding::new("cores", "cores", Ok(cores), cores_data),
            Finding::new("layout", "layout", Ok(layout), Value::Null),
            Finding::new("caches", "caches", told(caches, "the kernel tells no cache sizes"), caches_data),
            Finding::new("numa", "NUMA", told(nodes, "the kernel tells no memory nodes"), nodes_data),
            Finding::new(
                "simd",
                "SIMD",
                (!simd.is_empty()).then(|| simd.join(" ")).ok_or_else(|| {
                    Missing::new(Reason::NotPresent, "none of the vector extensions we have code for")
                }),
                json!(simd),
            ),
        ],
    }
}

/// Vector extensions of this processor that our kernels may use.
pub fn simd() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! look {
        ($detected:ident: $($name:tt)*) => {
            $(if std::arch::$detected!($name) { found.push($name); })*
        };
    }
    #[cfg(target_arch = "x86_64")]
    look!(is_x86_feature_detected:
        "sse4.2" "avx" "avx2" "fma" "f16c" "bmi2" "avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl"
        "avx512vnni" "avx512bf16" "avx512fp16" "avxvnni");
    #[cfg(target_arch = "aarch64")]
    look!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "bf16" "i8mm" "sve" "sve2");
    found
}

fn counters_chapter(probe: Result<PerfProbe, Missing>) -> Chapter {
    let side = |source: EventSource| -> (Result<String, Missing>, Value) {
        let probe = match &probe {
            Ok(probe) => probe,
            Err(missing) => return (Err(missing.clone()), Value::Null),
        };
        let ours = || probe.events.iter().filter(move |event| event.source == source);
        let data: Map<String, Value> = ours()
            .map(|event| (event.name.to_owned(), json!(Reading::from(event.result.clone().map(|_| true)))))
            .collect();
        let alive = probe.alive(source);
        let first = ours().find_map(|event| event.result.as_ref().err());
        let state = match first {
            Some(missing) if alive.is_empty() => Err(missing.clone()),
            Some(_) => {
                let dead: Vec<&str> =
                    ours().filter(|event| event.result.is_err()).map(|event| event.name).collect();
                Ok(format!("{}; not: {}", alive.join(" "), dead.join(" ")))
            }
            None => Ok(alive.join(" ")),
        };
        (state, Value::Object(data))
    };
    let (hardware, hardware_data) = side(EventSource::Hardware);
    let (software, software_data) = side(EventSource::Software);
    let mut group = probe.as_ref().map_err(Clone::clone).and_then(|probe| probe.group.clone());
    if let (Err(missing), Err(_)) = (&mut group, &hardware) {
        // The line above has said it already.
        missing.fix = None;
    }
    let group_data = json!(group.as_ref().ok());
    let group = group.map(|size| format!("{size} events at once, so instructions per cycle is a true ratio"));
    let paranoid = probe.as_ref().ok().and_then(|probe| probe.paranoid);
    let paranoid_state = match paranoid {
        Some(level) => {
            Ok(format!("kernel.perf_event_paranoid is {level} (2 or less lets us count our own work)"))
        }
        None => Err(Missing::new(Reason::NotPresent, "the kernel has no kernel.perf_event_paranoid")),
    };
    Chapter {
        key: "counters",
        title: "Counters",
        findings: vec![
            Finding::new("hardware", "hardware", hardware, hardware_data),
            Finding::new("group", "together", group, group_data),
            Finding::new("software", "software", software, software_data),
            Finding::new("paranoid", "strictness", paranoid_state, json!(paranoid)),
        ],
    }
}

fn heat(sample: Result<ThermalSample, Missing>, topology: &Topology) -> Chapter {
    let sample = match sample {
        Ok(sample) => sample,
        Err(missing) => {
            let lines = [
                ("temperature", "temperature"),
                ("power", "power"),
                ("clock", "clock"),
                ("throttling", "throttling"),
            ];
            let line = |(key, label)| Finding::new(key, label, Err(missing.clone()), Value::Null);
            return Chapter { key: "sensors", title: "Heat, power, clock", findings: lines.map(line).into() };
        }
    };
    let temperature = result_of(&sample.hottest).map(|celsius| {
        let hottest = sample.temperatures.iter().find(|t| t.celsius.get() == Some(celsius));
        let count = sample.temperatures.iter().filter(|t| t.celsius.is_present()).count();
        let critical = hottest
            .and_then(|t| t.crit_c)
            .map_or(String::new(), |crit| format!(", critical at {crit:.0} °C"));
        let name = hottest.map_or("", |t| t.name.as_str());
        format!("hottest {celsius:.1} °C ({name}{critical}), {}", counted(count, "sensor"))
    });
    let clock = match (result_of(&sample.clock_mhz), topology.nominal_mhz) {
        (Ok(mhz), _) => Ok(format!("{mhz:.0} MHz on average")),
        (Err(missing), Some(nominal)) => {
            let detail = format!(
                "{}; the nominal clock is {nominal:.0} MHz, the current one is not known",
                missing.detail
            );
            Err(Missing { detail: detail.into(), ..missing })
        }
        (Err(missing), None) => Err(missing),
    };
    let throttling = result_of(&sample.throttle_events).map(|events| format!("{events} events since boot"));
    let power = result_of(&sample.package_watts).map(|watts| format!("{watts:.1} W in all packages"));
    Chapter {
        key: "sensors",
        title: "Heat, power, clock",
        findings: vec![
            Finding::new("temperature", "temperature", temperature, json!(sample.temperatures)),
            Finding::new("power", "power", power, json!(sample.energy_j)),
            Finding::new("clock", "clock", clock, json!(sample.clock_mhz)),
            Finding::new("throttling", "throttling", throttling, json!(sample.throttle_events)),
        ],
    }
}

fn gpu(probe: Result<Result<nvml::GpuProbe, Missing>, Missing>) -> Chapter {
    let findings = match probe.and_then(|inner| inner) {
        Err(missing) => vec![Finding::new("nvidia", "NVIDIA", Err(missing), json!([]))],
        Ok(probe) => {
            let driver = probe
                .driver
                .clone()
                .map(|version| format!("driver {version}, {}", counted(probe.gpus.len(), "GPU")));
            let facts: Vec<Value> = probe.gpus.iter().map(gpu_json).collect();
            let mut findings = vec![Finding::new("nvidia", "NVIDIA", driver, json!(facts))];
            findings.extend(probe.gpus.iter().map(|gpu| {
                let state = gpu.name.clone().map(|name| {
                    let parts = [
                        Some(format!("{}: {name}", gpu.index)),
                        gpu.memory_bytes.as_ref().ok().map(|&total| bytes(total)),
                        gpu.compute_capability
                            .as_ref()
                            .ok()
                            .map(|(major, minor)| format!("compute {major}.{minor}")),
                        gpu.temperature_c.as_ref().ok().map(|celsius| format!("{celsius:.0} °C")),
                        gpu.power_w.as_ref().ok().map(|watts| format!("{watts:.0} W")),
                    ];
                    parts.into_iter().flatten().collect::<Vec<String>>().join(", ")
                });
                Finding::new("gpu", "GPU", state, Value::Null)
            }));
            findings
        }
    };
    Chapter { key: "gpus", title: "GPUs", findings }
}

fn gpu_json(gpu: &nvml::GpuFacts) -> Value {
    fn field<T: serde::Serialize + Clone>(result: &Result<T, Missing>) -> Value {
        json!(Reading::from(result.clone()))
    }
    json!({
        "index": gpu.index, "name": field(&gpu.name), "uuid": field(&gpu.uuid),
        "memory_bytes": field(&gpu.memory_bytes), "memory_used_bytes": field(&gpu.memory_used_bytes),
        "compute_capability": field(&gpu.compute_capability), "temperature_c": field(&gpu.temperature_c),
        "power_w": field(&gpu.power_w), "power_limit_w": field(&gpu.power_limit_w),
        "busy_percent": field(&gpu.busy_percent), "clock_mhz": field(&gpu.clock_mhz),
    })
}

fn load(sample: Result<HostSample, Missing>) -> Chapter {
    let field = |pick: fn(&HostSample) -> &Reading<f64>| match &sample {
        Ok(sample) => result_of(pick(sample)),
        Err(missing) => Err(missing.clone()),
    };
    let pressure = field(|s| &s.pressure.cpu_some).map(|cpu| {
        let text =
            |part: Result<f64, Missing>| part.map_or("--".to_owned(), |percent| format!("{percent:.1} %"));
        let (memory, io) = (field(|s| &s.pressure.memory_some), field(|s| &s.pressure.io_some));
        format!("waiting for cpu {cpu:.1} %, memory {}, disks {}", text(memory), text(io))
    });
    let pressure_data = sample.as_ref().map_or(Value::Null, |sample| json!(sample.pressure));
    let disks = field(|s| &s.disk_read_bytes_per_s).map(|_| "read and written bytes are counted".to_owned());
    Chapter {
        key: "load",
        title: "Load (over 0.1 s)",
        findings: vec![
            Finding::new(
                "cpu",
                "cpu time",
                field(|s| &s.cpu_percent).map(|p| format!("{p:.0} % of all cores in use")),
                Value::Null,
            ),
            Finding::new(
                "steal",
                "steal",
                field(|s| &s.steal_percent).map(|p| format!("{p:.1} % taken by the hypervisor")),
                Value::Null,
            ),
            Finding::new("pressure", "pressure", pressure, pressure_data),
            Finding::new("run_delay", "run delay", run_delay(), Value::Null),
            Finding::new("disks", "disks", disks, Value::Null),
        ],
    }
}

fn run_delay() -> Result<String, Missing> {
    let text = sysfs::read_text(Path::new("/proc/self/schedstat"))
        .map_err(|missing| missing.fix("a kernel with CONFIG_SCHED_INFO"))?;
    let fields = text.split_whitespace().count();
    (fields == 3)
        .then(|| "per process, in nanoseconds".to_owned())
        .ok_or_else(|| Missing::new(Reason::Implausible, "/proc/self/schedstat is not understood"))
}

/// What trying out shared memory showed.
struct SharedMemory {
    memfd: Result<String, Missing>,
    named: Result<String, Missing>,
    space: Reading<Space>,
}

fn shared_memory() -> SharedMemory {
    SharedMemory {
        memfd: try_memfd(),
        named: try_named(Path::new("/dev/shm")),
        space: space_of(Path::new("/dev/shm")),
    }
}

/// Makes a sealed memory object and sees that the seals hold.
fn try_memfd() -> Result<String, Missing> {
    let failed = |what: &'static str| move |errno: rustix::io::Errno| Missing::from_io(what, &errno.into());
    let fd = rustix::fs::memfd_create("ai_swarm-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(failed("memfd_create"))?;
    rustix::fs::ftruncate(fd.as_fd(), 4096).map_err(failed("memfd ftruncate"))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&fd, seals).map_err(failed("memfd seals"))?;
    if rustix::fs::ftruncate(fd.as_fd(), 8192).is_ok() || rustix::io::write(&fd, b"x").is_ok() {
        return Err(Missing::new(Reason::NotLive, "the kernel takes seals and does not keep them"));
    }
    Ok("sealed memory objects work; seals hold".to_owned())
}

/// Makes and removes a named object.
fn try_named(folder: &Path) -> Result<String, Missing> {
    let path = folder.join(format!("ai_swarm-doctor-{}", std::process::id()));
    let failed = |errno: rustix::io::Errno| {
        Missing::from_io(folder.display(), &errno.into()).fix("mount -t tmpfs -o mode=1777 tmpfs /dev/shm")
    };
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    // Space is reserved, because a full tmpfs otherwise shows itself as SIGBUS later.
    let reserved = rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, 4096);
    rustix::fs::unlink(&path).map_err(failed)?;
    reserved.map_err(failed)?;
    Ok(format!("named objects in {} work", folder.display()))
}

fn memory(shared: Result<SharedMemory, Missing>) -> Chapter {
    let (memfd, named, space) = match shared {
        Ok(shared) => (shared.memfd, shared.named, result_of(&shared.space)),
        Err(missing) => (Err(missing.clone()), Err(missing.clone()), Err(missing)),
    };
    let space_data = json!(space.as_ref().ok());
    let space =
        space.map(|space| format!("{} free of {}", bytes(space.available_bytes), bytes(space.total_bytes)));
    let thp = sysfs::read_text(Path::new("/sys/kernel/mm/transparent_hugepage/enabled")).map(|text| {
        let chosen = text.split(['[', ']']).nth(1).unwrap_or(&text);
        format!("transparent: {chosen}")
    });
    let reserved = sysfs::read_text(Path::new("/proc/meminfo")).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Total:"))?;
        line.trim().parse::<u64>().ok()
    });
    let huge_data = json!({"transparent": thp.as_ref().ok(), "reserved": reserved});
    let huge = match (thp, reserved) {
        (Ok(text), Some(count)) => Ok(format!("{text}, {count} reserved")),
        (Ok(text), None) => Ok(text),
        (Err(_), Some(count)) => Ok(format!("no transparent ones, {count} reserved")),
        (Err(missing), None) => Err(missing),
    };
    Chapter {
        key: "shared_memory",
        title: "Shared memory",
        findings: vec![
            Finding::new("memfd", "memfd", memfd, Value::Null).required(),
            Finding::new("named", "named", named, Value::Null).required(),
            Finding::new("space", "space", space, space_data),
            Finding::new("huge_pages", "huge pages", huge, huge_data),
        ],
    }
}

fn limits(config: &SwarmConfig) -> Chapter {
    let agents = config.max_agents as u64;
    let line = |key, label, resource, what: &'static str, need: u64, fix: &'static str| {
        let limit = rustix::process::getrlimit(resource);
        let number = |n: Option<u64>| n.map_or("unlimited".to_owned(), |n| n.to_string());
        let (soft, hard) = (limit.current, limit.maximum);
        // We raise the soft limit ourselves, so the hard one decides.
        let state = if hard.is_some_and(|hard| hard < need) {
            let detail = format!("at most {} {what}, {agents} agents may need {need}", number(hard));
            Err(Missing::new(Reason::Limit, detail).fix(fix))
        } else {
            Ok(format!("{} {what} (may be raised to {})", number(soft), number(hard)))
        };
        Finding::new(key, label, state, json!({"soft": soft, "hard": hard, "need": need}))
    };
    let files = 64 + DESCRIPTORS_PER_AGENT * agents;
    Chapter {
        key: "limits",
        title: "Limits",
        findings: vec![
            line("nofile", "open files", Resource::Nofile, "descriptors", files, "ulimit -Hn 4096"),
            line(
                "nproc",
                "processes",
                Resource::Nproc,
                "processes of this user",
                agents + 16,
                "ulimit -Hu 4096",
            ),
            line("memlock", "locked memory", Resource::Memlock, "bytes", 0, "ulimit -Hl unlimited"),
        ],
    }
}

fn to_json(
    chapters: &[Chapter],
    plan: &CorePlan,
    config: &SwarmConfig,
    warnings: &[String],
    ok: bool,
) -> String {
    let mut top = Map::new();
    top.insert("schema".to_owned(), json!(1));
    top.insert("ok".to_owned(), json!(ok));
    for chapter in chapters {
        let findings = chapter.findings.iter().filter(|finding| finding.key != "gpu");
        let lines: Map<String, Value> = findings.map(|f| (f.key.to_owned(), f.to_json())).collect();
        top.insert(chapter.key.to_owned(), Value::Object(lines));
    }
    let seat = |a: &crate::os::topology::Assignment| json!({"agent": format!("{}-{}", a.kind, a.index), "kind": a.kind, "core": a.core, "shared": a.shared});
    let seats: Vec<Value> = plan.assignments.iter().map(seat).collect();
    top.insert(
        "plan".to_owned(),
        json!({"supervisor": plan.supervisor, "agents": seats, "notes": plan.notes}),
    );
    let file = config.file().map(|path| path.display().to_string());
    top.insert("config".to_owned(), json!({"file": file, "warnings": warnings}));
    serde_json::to_string_pretty(&Value::Object(top)).expect("a value without foreign keys serialises")
}

fn to_text(
    chapters: &[Chapter],
    plan: &CorePlan,
    config: &SwarmConfig,
    warnings: &[String],
    ok: bool,
    width: usize,
) -> String {
    // Mark, label, and the column where sentences begin.
    const INDENT: usize = 21;
    let mut text = String::new();
    for chapter in chapters {
        let _ = writeln!(text, "{}", chapter.title);
        for finding in &chapter.findings {
            let (mark, words) = match &finding.state {
                Ok(words) => ("ok", words.clone()),
                Err(missing) => ("--", missing.to_string()),
            };
            entry(&mut text, &format!("  {mark}  {:<13}  ", finding.label), &words, INDENT, width);
            if let Err(Missing { fix: Some(fix), .. }) = &finding.state {
                entry(&mut text, &format!("{:INDENT$}", ""), &format!("fix: {fix}"), INDENT + 5, width);
            }
        }
        text.push('\n');
    }
    let file = config.file().map_or("built-in defaults".to_owned(), |path| path.display().to_string());
    let _ = writeln!(text, "Core plan ({file})");
    let mut cores: Vec<usize> = plan.assignments.iter().map(|a| a.core).chain([plan.supervisor]).collect();
    cores.sort_unstable();
    cores.dedup();
    for core in cores {
        let mut names: Vec<String> = Vec::new();
        if core == plan.supervisor {
            names.push("supervisor".to_owned());
        }
        let sitting = |compute| {
            plan.assignments.iter().filter(move |a| a.core == core && (a.kind == COMPUTE) == compute)
        };
        names.extend(sitting(false).map(|a| a.kind.to_owned()));
        names.extend(sitting(true).map(|a| format!("{}-{}", a.kind, a.index)));
        entry(
            &mut text,
            &format!("      {:<13}  ", format!("core {core}")),
            &names.join(", "),
            INDENT,
            width,
        );
    }
    // Who shares what is visible above; what was asked for in vain is not.
    for note in plan.notes.iter().filter(|note| !note.contains("is shared by")) {
        entry(&mut text, &format!("  --  {:<13}  ", "note"), note, INDENT, width);
    }
    for warning in warnings {
        entry(&mut text, &format!("  --  {:<13}  ", "config"), warning, INDENT, width);
    }
    let all = chapters.iter().flat_map(|chapter| &chapter.findings);
    let (total, missing) = (all.clone().count(), all.filter(|finding| finding.state.is_err()).count());
    let verdict = if !ok {
        "This host cannot run the swarm: see the lines above marked -- under pidfd, memfd or named."
            .to_owned()
    } else if missing == 0 {
        "This host can run the swarm, and nothing is missing.".to_owned()
    } else {
        format!(
            "This host can run the swarm. {missing} of {total} things are missing and shown as unavailable."
        )
    };
    text.push('\n');
    entry(&mut text, "", &verdict, 0, width);
    text
}

/// Words after a lead, wrapped with a hanging indent.
fn entry(text: &mut String, lead: &str, words: &str, indent: usize, width: usize) {
    text.push_str(lead);
    let mut column = lead.chars().count();
    let mut fresh = true;
    for word in words.split_whitespace() {
        let length = word.chars().count();
        if !fresh && column + 1 + length > width {
            let _ = write!(text, "\n{:indent$}", "");
            (column, fresh) = (indent, true);
        }
        if !fresh {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
        fresh = false;
    }
    text.push('\n');
}

fn result_of<T: Clone>(reading: &Reading<T>) -> Result<T, Missing> {
    match reading {
        Reading::Value { v, .. } => Ok(v.clone()),
        Reading::Absent { reason, detail, fix } => {
            Err(Missing { reason: *reason, detail: detail.clone(), fix: fix.clone() })
        }
    }
}

fn told(list: Vec<String>, otherwise: &'static str) -> Result<String, Missing> {
    if list.is_empty() { Err(Missing::new(Reason::NotPresent, otherwise)) } else { Ok(list.join(", ")) }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// `48 KiB`, `1.5 GiB`.
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if value.fract() < 0.05 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_comes_as_text_and_as_json() {
        let config = SwarmConfig::default();
        let (text, ok) = doctor(false, &config, 80);
        for line in text.lines() {
            assert!(line.chars().count() <= 80 || line.trim_start().starts_with("fix:"), "{line}");
        }
        assert!(ok, "{text}");
        let (text, _) = doctor(true, &config, 80);
        let report: Value = serde_json::from_str(&text).unwrap();
        for path in [
            "/processor/cores/data/online",
            "/counters/hardware/ok",
            "/sensors/temperature/ok",
            "/gpus/nvidia/ok",
            "/shared_memory/memfd/ok",
            "/limits/nofile/data/hard",
            "/plan/agents/0/core",
            "/host/kernel/ok",
            "/ok",
        ] {
            assert!(report.pointer(path).is_some(), "{path} is missing in {text}");
        }
        // What is missing has a reason, everywhere.
        for chapter in report.as_object().unwrap().values().filter_map(Value::as_object) {
            for finding in chapter.values().filter(|finding| finding.get("ok") == Some(&json!(false))) {
                assert!(finding["reason"].is_string() && finding["detail"].is_string(), "{finding}");
            }
        }
    }

    #[test]
    fn a_probe_that_panics_or_hangs_costs_one_line() {
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let broken: Result<u32, Missing> = start(|| panic!("broken driver")).take();
        std::panic::set_hook(quiet);
        assert_eq!(broken.unwrap_err().reason, Reason::Implausible);
        let mut slow = start(std::thread::park);
        slow.until = Instant::now();
        assert_eq!(slow.take().unwrap_err().reason, Reason::Timeout);
        assert!(gpu(Err(Missing::new(Reason::Timeout, "no answer"))).findings[0].state.is_err());
        assert_eq!(
            heat(Err(Missing::new(Reason::Timeout, "no answer")), &Topology::read()).findings.len(),
            4
        );
    }

    #[test]
    fn a_named_object_that_cannot_be_made_is_told_with_a_fix() {
        let missing = try_named(Path::new("/nowhere")).unwrap_err();
        assert_eq!(missing.reason, Reason::NotPresent);
        assert!(missing.fix.unwrap().contains("tmpfs"));
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(
            [0, 1023, 49152, 1 << 20, (3 << 30) / 2].map(bytes),
            ["0 B", "1023 B", "48 KiB", "1 MiB", "1.5 GiB"]
        );
    }
}
