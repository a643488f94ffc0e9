//! How short of memory the host is: the two numbers by which the swarm gives things up, and whether the kernel has killed
//! somebody for it.

use super::host::parse_meminfo;
use super::reading::{Missing, Reading, Reason};
use crate::base::clock::Nanos;
use crate::os::sysfs::KeptFile;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One look.
#[derive(Debug, Clone)]
pub struct MemoryStrain {
    /// Memory that programs may still have, percent of all: of the host or of a control group around this process, whichever has less.
    pub available_percent: Reading<f64>,
    /// Time in which some task waited for memory, percent over the last ten seconds, as the kernel averages it.
    pub stalled_percent: Reading<f64>,
}

/// Reads them; the files stay open.
#[derive(Debug)]
pub struct StrainGauge {
    meminfo: KeptFile,
    pressure: KeptFile,
    groups: Vec<GroupGauge>,
}

impl StrainGauge {
    /// Of the host whose `/proc` and `/sys/fs/cgroup` these are.
    pub fn new(procfs: &Path, cgroups: &Path) -> Self {
        let kept = |name| KeptFile::new(procfs.join(name));
        let mut groups = Vec::new();
        for (is_unified, root, path) in memory_groups(procfs, cgroups) {
            // A limit of a group further up counts, too.
            let around = path.ancestors().map(|path| GroupGauge::new(is_unified, &root.join(path)));
            groups.extend(around.filter_map(|mut group| group.limit().map(|_| group)));
        }
        Self { meminfo: kept("meminfo"), pressure: kept("pressure/memory"), groups }
    }

    /// One look; some tens of microseconds.
    pub fn read(&mut self) -> MemoryStrain {
        let available = self.meminfo.read().and_then(|text| match parse_meminfo(text) {
            (Some(total), Some(available)) if total > 0 => Ok(100.0 * available as f64 / total as f64),
            _ => Err(Missing::new(Reason::NotPresent, "/proc/meminfo has no MemTotal and MemAvailable")),
        });
        let of_groups = self.groups.iter_mut().filter_map(GroupGauge::available_percent);
        let tightest = of_groups.fold(f64::INFINITY, f64::min);
        let available = available.map(|percent: f64| percent.min(tightest));
        let stalled = self.pressure.read().and_then(|text| {
            stalled_percent(text)
                .ok_or_else(|| Missing::new(Reason::NotPresent, "no `some avg10` in the pressure file"))
        });
        MemoryStrain { available_percent: available.into(), stalled_percent: stalled.into() }
    }
}

/// A control group's memory, as far as it is limited.
#[derive(Debug)]
struct GroupGauge {
    limit: KeptFile,
    used: KeptFile,
    stat: KeptFile,
    /// How the lines begin that tell of pages of files, which can go.
    cache: [&'static str; 2],
}

impl GroupGauge {
    fn new(is_unified: bool, folder: &Path) -> Self {
        let kept = |name| KeptFile::new(folder.join(name));
        let (limit, used, cache) = if is_unified {
            ("memory.max", "memory.current", ["inactive_file ", "active_file "])
        } else {
            ("memory.limit_in_bytes", "memory.usage_in_bytes", ["total_inactive_file ", "total_active_file "])
        };
        Self { limit: kept(limit), used: kept(used), stat: kept("memory.stat"), cache }
    }

    /// Bytes that it may have; `None` where there is no such limit, or none that a host could reach.
    fn limit(&mut self) -> Option<u64> {
        let limit = self.limit.read().ok()?.trim().parse().ok()?;
        (1..1 << 60).contains(&limit).then_some(limit)
    }

    fn available_percent(&mut self) -> Option<f64> {
        let limit = self.limit()?;
        let used: u64 = self.used.read().ok()?.trim().parse().ok()?;
        let cached = self.stat.read().ok()?.lines().filter_map(|line| {
            let bytes = self.cache.iter().find_map(|name| line.strip_prefix(name))?;
            bytes.trim().parse::<u64>().ok()
        });
        let available = limit.saturating_sub(used.saturating_sub(cached.fold(0, u64::saturating_add)));
        Some(100.0 * available as f64 / limit as f64)
    }
}

/// Control groups of this process that may limit memory: whether it is of the unified hierarchy, where that is mounted, and its path below.
fn memory_groups(procfs: &Path, cgroups: &Path) -> Vec<(bool, PathBuf, PathBuf)> {
    let groups = std::fs::read_to_string(procfs.join("self/cgroup")).unwrap_or_default();
    let own = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, PathBuf::from(parts.next()?.trim_start_matches('/')));
        match controllers {
            "" => Some((true, cgroups.to_owned(), path)),
            _ if controllers.split(',').any(|name| name == "memory") => {
                Some((false, cgroups.join("memory"), path))
            }
            _ => None,
        }
    });
    own.collect()
}

/// Whom nobody claims within this time was a stranger.
const CLAIMED_WITHIN: Duration = Duration::from_secs(2);
/// More than so many at once are nobody's concern here.
const UNCLAIMED_MAX: u64 = 64;

/// How many processes the kernel has killed for want of memory, as far as this process can see: of its own control group where
/// that counts them, else of the host. The signal alone does not tell such a death from a kill by somebody.
#[derive(Debug)]
pub struct OomKills {
    file: KeptFile,
    last: Option<u64>,
    /// Those of which nobody knows yet whom they hit: when they were counted.
    unclaimed: VecDeque<Nanos>,
}

impl OomKills {
    /// Of the host whose `/proc` and `/sys/fs/cgroup` these are.
    pub fn new(procfs: &Path, cgroups: &Path) -> Self {
        let own = memory_groups(procfs, cgroups).into_iter().flat_map(|(is_unified, root, path)| {
            let names: &[&str] = match is_unified {
                // Where there is one, without the groups below, in which none of ours is.
                true => &["memory.events.local", "memory.events"],
                false => &["memory.oom_control"],
            };
            names.iter().map(move |name| root.join(&path).join(name))
        });
        let mut found =
            Self { file: KeptFile::new(procfs.join("vmstat")), last: None, unclaimed: VecDeque::new() };
        for path in own {
            let mut file = KeptFile::new(path);
            if count_in(&mut file).is_some() {
                found.file = file;
                break;
            }
        }
        found.last = count_in(&mut found.file);
        found
    }

    /// Looks at the count. The kernel counts before its victim has died, so what is new may be somebody's for a while.
    pub fn look(&mut self, now: Nanos) {
        let count = count_in(&mut self.file);
        let before = std::mem::replace(&mut self.last, count);
        self.unclaimed.retain(|&counted| now.since(counted) <= CLAIMED_WITHIN);
        let fresh = count.zip(before).map_or(0, |(count, before)| count.saturating_sub(before));
        self.unclaimed.extend((0..fresh.min(UNCLAIMED_MAX)).map(|_| now));
    }

    /// Somebody was killed: whether that was for want of memory, as far as the count tells. One of the kills of the last moments is
    /// his.
    pub fn claim(&mut self, now: Nanos) -> bool {
        self.look(now);
        self.unclaimed.pop_front().is_some()
    }
}

fn count_in(file: &mut KeptFile) -> Option<u64> {
    file.read().ok()?.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

fn stalled_percent(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let field = line.split_ascii_whitespace().find_map(|field| field.strip_prefix("avg10="))?;
    field.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where `/proc` and the control groups are below `root`, and what writes a file there.
    fn tree(root: &Path) -> (PathBuf, PathBuf, impl Fn(&str, &str)) {
        let write = move |name: &str, text: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        (root.join("proc"), root.join("cgroup"), write)
    }

    #[test]
    fn both_numbers_come_from_a_tree_and_nonsense_is_absent() {
        let root = std::env::temp_dir().join(format!("ai_swarm-strain-{}", std::process::id()));
        std::fs::create_dir_all(root.join("pressure")).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(root.join(name), text).expect("a file");
        let mut gauge = StrainGauge::new(&root, &root);
        write("meminfo", "MemTotal:  1000 kB\nMemAvailable:  250 kB\n");
        write("pressure/memory", "some avg10=12.50 avg60=0.00 avg300=0.00 total=5\nfull avg10=1.00\n");
        let strain = gauge.read();
        let seen = (strain.available_percent.get(), strain.stalled_percent.get());
        assert_eq!(seen, (Some(25.0), Some(12.5)));
        write("pressure/memory", "some avg10=nan\n");
        write("meminfo", "MemTotal: 0 kB\n");
        let strain = StrainGauge::new(&root, &root).read();
        assert!(!strain.available_percent.is_present() && !strain.stalled_percent.is_present());
        std::fs::remove_dir_all(&root).expect("removed");
    }

    #[test]
    fn the_tightest_limit_of_a_control_group_around_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let (procfs, cgroups, write) = tree(root.path());
        let free = || StrainGauge::new(&procfs, &cgroups).read().available_percent.get();
        write("proc/meminfo", "MemTotal:  1000 kB\nMemAvailable:  500 kB\n");
        write("proc/self/cgroup", "4:cpuset,memory:/a/b\n0::/c/d\n");
        assert_eq!(free(), Some(50.0), "no group is limited");
        // Of the unified hierarchy, one further up; pages of files can go.
        write("cgroup/c/d/memory.max", "max\n");
        write("cgroup/c/memory.max", "1000\n");
        write("cgroup/c/memory.current", "800\n");
        write("cgroup/c/memory.stat", "anon 600\ninactive_file 60\nactive_file 40\n");
        assert_eq!(free(), Some(30.0));
        // Of the old one.
        write("cgroup/memory/a/b/memory.limit_in_bytes", "200\n");
        write("cgroup/memory/a/b/memory.usage_in_bytes", "190\n");
        write(
            "cgroup/memory/a/b/memory.stat",
            "inactive_file 50\ntotal_inactive_file 0\ntotal_active_file 0\n",
        );
        write("cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(free(), Some(5.0));
        write("cgroup/memory/a/b/memory.usage_in_bytes", "300\n");
        assert_eq!(free(), Some(0.0), "more than it may have");
        write("proc/meminfo", "MemTotal:  1000 kB\n");
        assert_eq!(free(), None, "a host that says nothing");
    }

    #[test]
    fn deaths_for_want_of_memory_are_counted_where_they_are_nearest() {
        let root = tempfile::tempdir().expect("a folder");
        let (procfs, cgroups, write) = tree(root.path());
        let gauge = || OomKills::new(&procfs, &cgroups);
        let at = |seconds: u64| Nanos(seconds * 1_000_000_000);
        assert!(!gauge().claim(at(1)), "nothing is known");
        write("proc/vmstat", "nr_free_pages 7\noom_kill 3\n");
        let mut host = gauge();
        assert!(!host.claim(at(1)));
        write("proc/vmstat", "nr_free_pages 7\noom_kill 5\n");
        host.look(at(2));
        assert_eq!([host.claim(at(2)), host.claim(at(3)), host.claim(at(3))], [true, true, false]);
        write("proc/vmstat", "nr_free_pages 7\noom_kill 6\n");
        host.look(at(4));
        assert!(!host.claim(at(7)), "somebody else's");
        // An old group's own count, then a new one's.
        write("proc/self/cgroup", "5:cpu:/a\n4:cpuset,memory:/a/b\n0::/c\n");
        write("cgroup/memory/a/b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
        let mut group = gauge();
        write("cgroup/memory/a/b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        assert!(group.claim(at(1)));
        write("proc/self/cgroup", "0::/c\n");
        write("cgroup/c/memory.events", "low 0\noom 5\noom_kill 0\n");
        let mut group = gauge();
        write("cgroup/c/memory.events", "low 0\noom 6\noom_kill 1\noom_group_kill 0\n");
        assert_eq!([group.claim(at(1)), group.claim(at(1))], [true, false]);
    }
}
