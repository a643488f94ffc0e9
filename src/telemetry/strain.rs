//! How short of memory the host is: the two numbers by which the swarm gives things up.

use super::host::parse_meminfo;
use super::reading::{Missing, Reading, Reason};
use crate::os::sysfs::KeptFile;
use std::path::Path;

/// One look.
#[derive(Debug, Clone)]
pub struct MemoryStrain {
    /// Memory that programs may still have, percent of all.
    pub available_percent: Reading<f64>,
    /// Time in which some task waited for memory, percent over the last ten seconds, as the kernel averages it.
    pub stalled_percent: Reading<f64>,
}

/// Reads them; the files stay open.
#[derive(Debug)]
pub struct StrainGauge {
    meminfo: KeptFile,
    pressure: KeptFile,
}

impl StrainGauge {
    /// Of the host whose `/proc` this is.
    pub fn new(procfs: &Path) -> Self {
        let kept = |name| KeptFile::new(procfs.join(name));
        Self { meminfo: kept("meminfo"), pressure: kept("pressure/memory") }
    }

    /// One look; some tens of microseconds.
    pub fn read(&mut self) -> MemoryStrain {
        let available = self.meminfo.read().and_then(|text| match parse_meminfo(text) {
            (Some(total), Some(available)) if total > 0 => Ok(100.0 * available as f64 / total as f64),
            _ => Err(Missing::new(Reason::NotPresent, "/proc/meminfo has no MemTotal and MemAvailable")),
        });
        let stalled = self.pressure.read().and_then(|text| {
            stalled_percent(text)
                .ok_or_else(|| Missing::new(Reason::NotPresent, "no `some avg10` in the pressure file"))
        });
        MemoryStrain { available_percent: available.into(), stalled_percent: stalled.into() }
    }
}

fn stalled_percent(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let field = line.split_ascii_whitespace().find_map(|field| field.strip_prefix("avg10="))?;
    field.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_numbers_come_from_a_tree_and_nonsense_is_absent() {
        let root = std::env::temp_dir().join(format!("ai_swarm-strain-{}", std::process::id()));
        std::fs::create_dir_all(root.join("pressure")).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(root.join(name), text).expect("a file");
        let mut gauge = StrainGauge::new(&root);
        write("meminfo", "MemTotal:  1000 kB\nMemAvailable:  250 kB\n");
        write("pressure/memory", "some avg10=12.50 avg60=0.00 avg300=0.00 total=5\nfull avg10=1.00\n");
        let strain = gauge.read();
        let seen = (strain.available_percent.get(), strain.stalled_percent.get());
        assert_eq!(seen, (Some(25.0), Some(12.5)));
        write("pressure/memory", "some avg10=nan\n");
        write("meminfo", "MemTotal: 0 kB\n");
        let strain = StrainGauge::new(&root).read();
        assert!(!strain.available_percent.is_present() && !strain.stalled_percent.is_present());
        std::fs::remove_dir_all(&root).expect("removed");
    }
}
