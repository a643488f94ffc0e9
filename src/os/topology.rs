//! Cores, caches, memory nodes of this host, and the core plan: which agent sits where.
//! The supervisor, `doctor` and the report read [`Topology`]; [`plan_cores`] is pure and knows no host.
//!
//! Call [`Topology::read`] before anything is pinned: a pinned process only sees its own core.

use std::path::Path;
use std::sync::OnceLock;

use super::sysfs::{self, Missing, Reason};

/// One processor of the list that Linux numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// Its index, as in `/proc/stat`.
    pub index: usize,
    /// Physical package (socket), when the kernel tells.
    pub package: Option<usize>,
    /// Indexes that share its execution units (hyper-threads), itself included.
    pub siblings: Vec<usize>,
    /// NUMA node, when the kernel tells.
    pub node: Option<usize>,
}

/// One cache level as the first core sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// `L1d`, `L1i`, `L2`, `L3`.
    pub name: String,
    /// Bytes of one instance.
    pub bytes: u64,
    /// Bytes of one line, when told.
    pub line_bytes: Option<u64>,
    /// Cores that share one instance.
    pub shared_by: usize,
}

/// One NUMA node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its index.
    pub index: usize,
    /// Cores on it.
    pub cores: Vec<usize>,
    /// Bytes of memory on it.
    pub memory_bytes: Option<u64>,
}

/// What this host is made of.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Cores this process may run on (affinity mask), ascending. Never empty.
    pub available: Vec<usize>,
    /// Cores the kernel has switched on.
    pub online: Vec<usize>,
    /// Cores worth of time that affinity and cgroup quota leave us.
    pub parallelism: usize,
    /// Each online core.
    pub cores: Vec<Core>,
    /// Caches, smallest level first; empty when not told.
    pub caches: Vec<Cache>,
    /// NUMA nodes; empty when not told.
    pub nodes: Vec<Node>,
    /// Name of the processor.
    pub model: Result<String, Missing>,
    /// Clock that the processor claims, in MHz. Nominal: not what runs now.
    pub nominal_mhz: Option<f64>,
    /// True inside a virtual machine.
    pub virtual_machine: bool,
}

impl Topology {
    /// Of this host.
    pub fn read() -> Topology {
        let mut available: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        available.sort_unstable();
        let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
        Topology::from_roots(Path::new("/proc"), Path::new("/sys"), available, parallelism)
    }

    /// From these trees; `available` and `parallelism` come from the process and not from a tree.
    pub fn from_roots(procfs: &Path, sysfs: &Path, available: Vec<usize>, parallelism: usize) -> Topology {
        let cpus = sysfs.join("devices/system/cpu");
        let online = sysfs::read_text(&cpus.join("online"))
            .ok()
            .and_then(|text| sysfs::parse_list(&text))
            .filter(|list| !list.is_empty())
            .unwrap_or_else(|| if available.is_empty() { vec![0] } else { available.clone() });
        let nodes = nodes(&sysfs.join("devices/system/node"));
        let cores = online
            .iter()
            .map(|&index| {
                let topology = cpus.join(format!("cpu{index}/topology"));
                let siblings = sysfs::read_text(&topology.join("thread_siblings_list"))
                    .ok()
                    .and_then(|text| sysfs::parse_list(&text))
                    .filter(|list| list.contains(&index))
                    .unwrap_or_else(|| vec![index]);
                let package = sysfs::read_number(&topology.join("physical_package_id")).ok();
                let node = nodes.iter().find(|node| node.cores.contains(&index)).map(|node| node.index);
                Core { index, package, siblings, node }
            })
            .collect();
        let first = online[0];
        let info = sysfs::read_text(&procfs.join("cpuinfo"));
        let field = |name: &str| {
            let text = info.as_ref().ok()?;
            let line =
                text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let model = field("model name").or_else(|| field("Model")).ok_or_else(|| match &info {
            Ok(_) => Missing::new(Reason::NotPresent, "/proc/cpuinfo names no model"),
            Err(missing) => missing.clone(),
        });
        let flags = field("flags").unwrap_or_default();
        Topology {
            available: if available.is_empty() { online.clone() } else { available },
            parallelism: parallelism.max(1),
            cores,
            caches: caches(&cpus.join(format!("cpu{first}/cache"))),
            nodes,
            model,
            nominal_mhz: field("cpu MHz").and_then(|text| text.parse().ok()),
            virtual_machine: flags.split_whitespace().any(|flag| flag == "hypervisor"),
            online,
        }
    }

    /// Cores to plan with: those available, but no more than the cgroup quota gives time for.
    /// A container with a quota of 2 on 64 cores gets two agents that run rather than 63 that are throttled.
    pub fn usable(&self) -> &[usize] {
        &self.available[..self.parallelism.clamp(1, self.available.len())]
    }

    /// Number of sockets, at least 1.
    pub fn packages(&self) -> usize {
        let mut packages: Vec<usize> = self.cores.iter().filter_map(|core| core.package).collect();
        packages.sort_unstable();
        packages.dedup();
        packages.len().max(1)
    }

    /// Cores with execution units of their own: hyper-threads of one core count once.
    pub fn physical_cores(&self) -> usize {
        self.cores.iter().filter(|core| core.siblings.iter().min() == Some(&core.index)).count().max(1)
    }

    /// Bytes of one instance of this cache, such as `L2`.
    pub fn cache_bytes(&self, name: &str) -> Option<u64> {
        self.caches.iter().find(|cache| cache.name == name).map(|cache| cache.bytes)
    }
}

/// Bytes of the last cache that the first core sees, when the host tells. Looked up once per process.
pub fn last_cache_bytes() -> Option<usize> {
    static BYTES: OnceLock<Option<usize>> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let caches = caches(Path::new("/sys/devices/system/cpu/cpu0/cache"));
        caches.iter().filter_map(|cache| usize::try_from(cache.bytes).ok()).max()
    })
}

fn nodes(folder: &Path) -> Vec<Node> {
    let names = sysfs::list(folder).unwrap_or_default();
    let indexes = names.iter().filter_map(|name| sysfs::numbered(name, "node"));
    indexes
        .map(|index| {
            let node = folder.join(format!("node{index}"));
            let cores =
                sysfs::read_text(&node.join("cpulist")).ok().and_then(|text| sysfs::parse_list(&text));
            let memory = sysfs::read_text(&node.join("meminfo")).ok().and_then(|text| {
                let line = text.lines().find(|line| line.contains("MemTotal:"))?;
                line.split_whitespace().nth(3)?.parse::<u64>().ok()?.checked_mul(1024)
            });
            Node { index, cores: cores.unwrap_or_default(), memory_bytes: memory }
        })
        .collect()
}

fn caches(folder: &Path) -> Vec<Cache> {
    let names = sysfs::list(folder).unwrap_or_default();
    let mut caches: Vec<Cache> = names
        .iter()
        .filter(|name| sysfs::numbered(name, "index").is_some())
        .filter_map(|name| {
            let entry = folder.join(name);
            let level: u8 = sysfs::read_number(&entry.join("level")).ok()?;
            let letter = match sysfs::read_text(&entry.join("type")).ok()?.as_str() {
                "Data" => "d",
                "Instruction" => "i",
                _ => "",
            };
            let size = sysfs::read_text(&entry.join("size")).ok()?;
            let (digits, unit) =
                size.split_at(size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len()));
            let factor = match unit {
                "" => 1,
                "K" => 1 << 10,
                "M" => 1 << 20,
                _ => return None,
            };
            let shared = sysfs::read_text(&entry.join("shared_cpu_list")).ok();
            Some(Cache {
                name: format!("L{level}{letter}"),
                bytes: digits.parse::<u64>().ok()?.checked_mul(factor)?,
                line_bytes: sysfs::read_number(&entry.join("coherency_line_size")).ok(),
                shared_by: shared
                    .and_then(|text| sysfs::parse_list(&text))
                    .map_or(1, |list| list.len().max(1)),
            })
        })
        .collect();
    caches.sort_by(|a, b| a.name.cmp(&b.name));
    caches
}

/// The kind that computes; all others are housekeeping.
pub const COMPUTE: &str = "compute";

/// What one kind of agent asks of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindRequest<'a> {
    /// Name of the kind, such as `thermal`.
    pub kind: &'static str,
    /// How many; `None`: as many as fit (compute), or one (others).
    pub count: Option<usize>,
    /// Cores asked for, in order of use; `None`: planned.
    pub cores: Option<&'a [usize]>,
}

/// Where one agent sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Name of the kind.
    pub kind: &'static str,
    /// Which one of its kind, from 0.
    pub index: usize,
    /// The core it is pinned to.
    pub core: usize,
    /// True when the supervisor or another agent sits on the same core.
    pub shared: bool,
}

/// Where everybody sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorePlan {
    /// Core of the supervisor.
    pub supervisor: usize,
    /// Every agent, compute first, each kind by index.
    pub assignments: Vec<Assignment>,
    /// What shares which core, and what was asked for in vain, in words.
    pub notes: Vec<String>,
}

impl CorePlan {
    /// Compute agents of this plan.
    pub fn compute_count(&self) -> usize {
        self.assignments.iter().filter(|a| a.kind == COMPUTE).count()
    }
}

/// Seats the supervisor and all agents on `available` cores.
///
/// - Supervisor and housekeeping on the first core.
/// - From 4 cores on, compute agents take the other cores, one each. With 2 or 3 cores they take every core,
///   the highest first, so that `compute-0` is alone on its core and the last one shares with the supervisor.
/// - With one core all share it. More compute agents than cores go round again.
/// - Cores named in the configuration win; those that are not available are left out, and a note says so.
///
/// # Panics
/// When `available` is empty: a process always runs somewhere.
pub fn plan_cores(available: &[usize], requests: &[KindRequest<'_>], max_agents: usize) -> CorePlan {
    assert!(!available.is_empty(), "no core to plan with");
    let mut cores = available.to_vec();
    cores.sort_unstable();
    cores.dedup();
    let supervisor = cores[0];
    let mut notes = Vec::new();
    let mut assignments = Vec::new();

    let mut named = |request: &KindRequest<'_>| -> Option<Vec<usize>> {
        let asked = request.cores?;
        let (have, lack): (Vec<usize>, Vec<usize>) = asked.iter().partition(|core| cores.contains(core));
        if !lack.is_empty() {
            let lack: Vec<String> = lack.iter().map(usize::to_string).collect();
            let then = if have.is_empty() { "planned instead" } else { "left out" };
            notes.push(format!(
                "{} asks for cpu {}, not available here: {then}",
                request.kind,
                lack.join(", ")
            ));
        }
        (!have.is_empty()).then_some(have)
    };
    for request in requests.iter().filter(|request| request.kind == COMPUTE) {
        let seats = named(request).unwrap_or_else(|| match cores.len() {
            1 => cores.clone(),
            2 | 3 => cores.iter().rev().copied().collect(),
            _ => cores[1..].to_vec(),
        });
        let count = request.count.unwrap_or(seats.len()).min(max_agents);
        let seats = seats.iter().cycle().take(count).enumerate();
        assignments.extend(seats.map(|(index, &core)| Assignment {
            kind: COMPUTE,
            index,
            core,
            shared: false,
        }));
    }
    for request in requests.iter().filter(|request| request.kind != COMPUTE) {
        let core = named(request).map_or(supervisor, |cores| cores[0]);
        let count = request.count.unwrap_or(1);
        assignments.extend((0..count).map(|index| Assignment {
            kind: request.kind,
            index,
            core,
            shared: false,
        }));
    }

    for &core in &cores {
        let mut sitting: Vec<String> = Vec::new();
        if core == supervisor {
            sitting.push("supervisor".to_owned());
        }
        // Compute agents last in the sentence: they are the ones who feel it.
        for compute in [false, true] {
            for a in assignments.iter().filter(|a| a.core == core && (a.kind == COMPUTE) == compute) {
                let alone = !compute && assignments.iter().filter(|b| b.kind == a.kind).count() == 1;
                sitting.push(if alone { a.kind.to_owned() } else { format!("{}-{}", a.kind, a.index) });
            }
        }
        if sitting.len() > 1 {
            assignments.iter_mut().filter(|a| a.core == core).for_each(|a| a.shared = true);
            notes.push(format!("core {core} is shared by {}", sentence(&sitting)));
        }
    }
    CorePlan { supervisor, assignments, notes }
}

/// `a, b and c`; long lists are cut.
fn sentence(names: &[String]) -> String {
    const SHOWN_MAX: usize = 10;
    let (shown, last) = if names.len() > SHOWN_MAX {
        (&names[..SHOWN_MAX - 1], format!("{} more", names.len() - (SHOWN_MAX - 1)))
    } else {
        (&names[..names.len() - 1], names[names.len() - 1].clone())
    };
    format!("{} and {last}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUSEKEEPING: [&str; 5] = ["resource", "optimization", "thermal", "fault", "learning"];

    fn requests(count: Option<usize>, cores: Option<&[usize]>) -> Vec<KindRequest<'_>> {
        let others = HOUSEKEEPING.map(|kind| KindRequest { kind, count: None, cores: None });
        [KindRequest { kind: COMPUTE, count, cores }].into_iter().chain(others).collect()
    }

    fn plan(cores: usize, count: Option<usize>) -> CorePlan {
        plan_cores(&(0..cores).collect::<Vec<_>>(), &requests(count, None), 32)
    }

    fn compute(plan: &CorePlan) -> Vec<(usize, bool)> {
        plan.assignments.iter().filter(|a| a.kind == COMPUTE).map(|a| (a.core, a.shared)).collect()
    }

    #[test]
    fn one_core_is_shared_by_all() {
        let plan = plan(1, None);
        assert_eq!(compute(&plan), [(0, true)]);
        assert_eq!(
            plan.notes,
            [
                "core 0 is shared by supervisor, resource, optimization, thermal, fault, learning and compute-0"
            ]
        );
    }

    #[test]
    fn on_two_and_three_cores_the_first_compute_agent_is_alone() {
        let two = plan(2, None);
        assert_eq!(compute(&two), [(1, false), (0, true)]);
        assert_eq!(
            two.notes,
            [
                "core 0 is shared by supervisor, resource, optimization, thermal, fault, learning and compute-1"
            ]
        );
        assert_eq!(compute(&plan(3, None)), [(2, false), (1, false), (0, true)]);
        assert_eq!(compute(&plan(2, Some(1))), [(1, false)]);
    }

    #[test]
    fn from_four_cores_on_compute_leaves_the_first_core_alone() {
        assert_eq!(compute(&plan(4, None)), [(1, false), (2, false), (3, false)]);
        let sixteen = plan(16, None);
        assert_eq!(sixteen.compute_count(), 15);
        assert!(compute(&sixteen).iter().all(|&(core, shared)| core > 0 && !shared));
        assert_eq!(
            sixteen.notes,
            ["core 0 is shared by supervisor, resource, optimization, thermal, fault and learning"]
        );
        // 64 cores, but no more than max_agents.
        assert_eq!(plan(64, None).compute_count(), 32);
        assert_eq!(plan_cores(&(0..64).collect::<Vec<_>>(), &requests(None, None), 256).compute_count(), 63);
    }

    #[test]
    fn more_agents_than_cores_go_round_and_say_so() {
        let plan = plan(4, Some(5));
        assert_eq!(compute(&plan), [(1, true), (2, true), (3, false), (1, true), (2, true)]);
        assert!(
            plan.notes.contains(&"core 1 is shared by compute-0 and compute-3".to_owned()),
            "{:?}",
            plan.notes
        );
        let crowded = plan_cores(&[3, 5], &requests(Some(32), None), 32);
        assert!(crowded.notes.iter().all(|note| note.len() < 200), "{:?}", crowded.notes);
    }

    #[test]
    fn named_cores_win_and_absent_ones_are_left_out() {
        let plan = plan_cores(&[0, 2, 4, 6, 8], &requests(None, Some(&[8, 7, 2])), 32);
        assert_eq!(compute(&plan), [(8, false), (2, false)]);
        assert_eq!(plan.notes[0], "compute asks for cpu 7, not available here: left out");
        let mut asked = requests(Some(0), None);
        asked[3].cores = Some(&[4]);
        asked[4].cores = Some(&[99]);
        let plan = plan_cores(&[0, 2, 4, 6, 8], &asked, 32);
        let seat =
            |kind| plan.assignments.iter().find(|a| a.kind == kind).map(|a| (a.core, a.shared)).unwrap();
        assert_eq!((seat("thermal"), seat("fault"), plan.compute_count()), ((4, false), (0, true), 0));
        assert!(plan.notes[0].contains("fault asks for cpu 99") && plan.notes[0].contains("planned instead"));
    }

    proptest! {
        #[test]
        fn everybody_gets_an_available_core(cores in proptest::collection::btree_set(0_usize..256, 1..70), count in proptest::option::of(0_usize..300), max in 1_usize..257) {
            let cores: Vec<usize> = cores.into_iter().collect();
            let plan = plan_cores(&cores, &requests(count, None), max);
            prop_assert!(plan.compute_count() <= max);
            prop_assert_eq!(plan.assignments.len() - plan.compute_count(), 5);
            for a in &plan.assignments {
                prop_assert!(cores.contains(&a.core));
                let company = plan.assignments.iter().filter(|b| b.core == a.core).count() + usize::from(a.core == plan.supervisor);
                prop_assert_eq!(a.shared, company > 1);
            }
        }
    }

    #[test]
    fn this_host_has_a_topology() {
        let topology = Topology::read();
        assert!(
            !topology.available.is_empty() && !topology.online.is_empty() && topology.physical_cores() >= 1
        );
        assert!(!topology.usable().is_empty());
    }

    #[test]
    fn a_tree_with_two_sockets_is_understood() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("sys/devices/system/cpu/online", "0-3\n");
        for core in 0..4 {
            let base = format!("sys/devices/system/cpu/cpu{core}/topology");
            write(&format!("{base}/thread_siblings_list"), ["0,2", "1,3", "0,2", "1,3"][core]);
            write(&format!("{base}/physical_package_id"), &(core % 2).to_string());
        }
        write("sys/devices/system/cpu/cpu0/cache/index0/level", "1\n");
        write("sys/devices/system/cpu/cpu0/cache/index0/type", "Data\n");
        write("sys/devices/system/cpu/cpu0/cache/index0/size", "48K\n");
        write("sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_list", "0,2\n");
        write("sys/devices/system/cpu/cpu0/cache/index1/size", "rubbish\n");
        write("sys/devices/system/node/node0/cpulist", "0,2\n");
        write("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:       1024 kB\n");
        write("sys/devices/system/node/node1/cpulist", "1,3\n");
        write("proc/cpuinfo", "model name\t: Some CPU\ncpu MHz\t\t: 2300.5\nflags\t\t: fpu hypervisor\n");
        let (proc, sys) = (folder.path().join("proc"), folder.path().join("sys"));
        let topology = Topology::from_roots(&proc, &sys, vec![1, 2, 3], 2);
        assert_eq!((topology.packages(), topology.physical_cores()), (2, 2));
        assert_eq!(topology.cache_bytes("L1d"), Some(48 << 10));
        assert_eq!(topology.caches.len(), 1);
        assert_eq!((topology.nodes.len(), topology.nodes[0].memory_bytes), (2, Some(1 << 20)));
        assert_eq!(topology.cores[1].node, Some(1));
        assert_eq!((topology.usable(), topology.virtual_machine), (&[1, 2][..], true));
        assert_eq!(topology.model.as_deref(), Ok("Some CPU"));
        let empty = Topology::from_roots(Path::new("/nowhere"), Path::new("/nowhere"), vec![], 0);
        assert_eq!((empty.available, empty.model.is_err()), (vec![0], true));
    }
}
