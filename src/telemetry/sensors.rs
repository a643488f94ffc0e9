//! Temperatures, clocks, throttling and power from a `/sys` tree, and the policy that caps work when it is hot.
//! The thermal agent owns a [`SensorTree`] and a [`ThrottlePolicy`]; the policy is pure and knows no file.
//!
//! Invariants
//! 1. A temperature outside of -40 to 150 °C is `implausible`: boards report -273 and 65261 for "no probe".
//! 2. Without a sensor the hottest temperature is absent, with a reason; the policy then never tightens.
//! 3. Energy zones nest (a package contains its cores), so only packages are added up.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::reading::{Missing, Reading, Reason};
use crate::os::kernel_config::KernelConfig;
use crate::os::sysfs;

/// What a sensor near a processor can show, °C.
const PLAUSIBLE_C: std::ops::RangeInclusive<f64> = -40.0..=150.0;

/// Sensors are looked for again after so many readings, because drivers come and go.
const READS_PER_SCAN: u32 = 16;

/// One temperature.
#[derive(Debug, Clone, Serialize)]
pub struct Temperature {
    /// Chip and label, such as `coretemp Package id 0`.
    pub name: String,
    /// Degrees Celsius.
    pub celsius: Reading<f64>,
    /// Where the chip's maker says "high", when told and plausible.
    pub max_c: Option<f64>,
    /// Where the chip's maker says "critical", when told and plausible.
    pub crit_c: Option<f64>,
}

/// One look at all sensors.
#[derive(Debug, Clone, Serialize)]
pub struct ThermalSample {
    /// Every temperature, chips first, then thermal zones.
    pub temperatures: Vec<Temperature>,
    /// The highest plausible one, °C.
    pub hottest: Reading<f64>,
    /// Clock of each core now, MHz; empty without a frequency driver.
    pub core_mhz: Vec<(usize, Reading<f64>)>,
    /// Mean clock of all cores now, MHz. Never the nominal clock.
    pub clock_mhz: Reading<f64>,
    /// Times that the processor slowed itself down because of heat, all cores and packages, since boot.
    pub throttle_events: Reading<u64>,
    /// Watts of all processor packages since the reading before.
    pub package_watts: Reading<f64>,
    /// Joules of each energy zone since boot or wrap; zones nest, do not add them up.
    pub energy_j: Vec<(String, Reading<f64>)>,
}

/// Where one temperature is read.
#[derive(Debug)]
struct Probe {
    name: String,
    input: PathBuf,
    device: Option<PathBuf>,
    max_c: Option<f64>,
    crit_c: Option<f64>,
}

/// One energy counter.
#[derive(Debug)]
struct Zone {
    name: String,
    energy: PathBuf,
    wraps_at_uj: Option<u64>,
    last_uj: Option<u64>,
}

/// Reads sensors below a root such as `/sys`.
#[derive(Debug)]
pub struct SensorTree {
    root: PathBuf,
    probes: Vec<Probe>,
    zones: Vec<Zone>,
    energy_missing: Option<Missing>,
    /// Cores with a file of their clock, by index.
    clocks: Vec<(usize, PathBuf)>,
    /// Counts of throttling per core.
    core_throttles: Vec<PathBuf>,
    /// Counts of throttling per package, which every core of the package repeats.
    package_throttles: Vec<(usize, PathBuf)>,
    reads_until_scan: u32,
    last_power: Option<Instant>,
    kernel: Option<KernelConfig>,
}

impl SensorTree {
    /// A tree with the layout of `/sys`. Nothing is read before the first [`SensorTree::read`].
    pub fn new(root: impl Into<PathBuf>) -> SensorTree {
        SensorTree {
            root: root.into(),
            probes: Vec::new(),
            zones: Vec::new(),
            energy_missing: None,
            clocks: Vec::new(),
            core_throttles: Vec::new(),
            package_throttles: Vec::new(),
            reads_until_scan: 0,
            last_power: None,
            kernel: None,
        }
    }

    /// All sensors now.
    pub fn read(&mut self) -> ThermalSample {
        self.read_at(Instant::now())
    }

    /// As [`SensorTree::read`], with the time given: recorded trees have their own.
    pub fn read_at(&mut self, now: Instant) -> ThermalSample {
        if self.reads_until_scan == 0 {
            self.scan();
            self.reads_until_scan = READS_PER_SCAN;
        }
        self.reads_until_scan -= 1;
        let temperatures: Vec<Temperature> = self.probes.iter().map(Probe::read).collect();
        if temperatures.iter().any(|t| matches!(t.celsius.reason(), Some(Reason::Lost | Reason::NotPresent)))
        {
            self.reads_until_scan = 0;
        }
        let hottest = self.hottest(&temperatures);
        let core_mhz = self.clocks();
        let clock_mhz = self.mean_clock(&core_mhz);
        let throttle_events = self.throttling();
        let (package_watts, energy_j) = self.power(now);
        ThermalSample { temperatures, hottest, core_mhz, clock_mhz, throttle_events, package_watts, energy_j }
    }

    fn scan(&mut self) {
        let class = self.root.join("class");
        self.probes = hwmon(&class.join("hwmon"));
        self.probes.extend(thermal_zones(&class.join("thermal")));
        let cpus = self.root.join("devices/system/cpu");
        (self.clocks, self.core_throttles, self.package_throttles) = Default::default();
        for name in sysfs::list(&cpus).unwrap_or_default() {
            let Some(core) = sysfs::numbered(&name, "cpu") else { continue };
            let folder = cpus.join(name);
            let there = |file: &str| Some(folder.join(file)).filter(|path| path.exists());
            self.clocks.extend(there("cpufreq/scaling_cur_freq").map(|path| (core, path)));
            self.core_throttles.extend(there("thermal_throttle/core_throttle_count"));
            if let Some(path) = there("thermal_throttle/package_throttle_count") {
                let package = sysfs::read_number(&folder.join("topology/physical_package_id")).unwrap_or(0);
                self.package_throttles.push((package, path));
            }
        }
        let found = energy_zones(&class.join("powercap"));
        // A zone that stays keeps its counter, so a new scan loses no interval.
        match found {
            Ok(mut zones) => {
                for zone in &mut zones {
                    zone.last_uj =
                        self.zones.iter().find(|old| old.energy == zone.energy).and_then(|old| old.last_uj);
                }
                (self.zones, self.energy_missing) = (zones, None);
            }
            Err(missing) => {
                let missing = self.blame_kernel(missing, "CONFIG_POWERCAP", "no energy counter (RAPL) here");
                (self.zones, self.energy_missing) = (Vec::new(), Some(missing));
            }
        }
    }

    fn hottest(&mut self, temperatures: &[Temperature]) -> Reading<f64> {
        let highest = temperatures.iter().filter_map(|t| t.celsius.get()).max_by(f64::total_cmp);
        if let Some(celsius) = highest {
            return Reading::measured(celsius);
        }
        if let Some(first) = temperatures.first() {
            // Sensors exist and none gives a value: the first one's reason stands for all.
            return match &first.celsius {
                Reading::Absent { reason, detail, fix } => {
                    Reading::Absent { reason: *reason, detail: detail.clone(), fix: fix.clone() }
                }
                Reading::Value { .. } => unreachable!("a value would be the highest"),
            };
        }
        let missing = Missing::new(Reason::NotPresent, "");
        self.blame_kernel(missing, "CONFIG_HWMON", "this machine shows no temperature sensor").into()
    }

    /// "Not there" becomes "this kernel was built without it" when the kernel says so.
    fn blame_kernel(&mut self, missing: Missing, option: &str, otherwise: &'static str) -> Missing {
        if missing.reason != Reason::NotPresent {
            return missing;
        }
        // A recorded tree may bring the configuration of its kernel along.
        let real = self.root == Path::new("/sys");
        let procfs = if real { PathBuf::from("/proc") } else { self.root.join("proc") };
        let kernel = self.kernel.get_or_insert_with(|| KernelConfig::read(&procfs));
        match kernel.has(option) {
            Some(false) => Missing::new(Reason::KernelOff, format!("this kernel was built without {option}")),
            _ => Missing::new(Reason::NotPresent, otherwise),
        }
    }

    fn clocks(&self) -> Vec<(usize, Reading<f64>)> {
        let read = |(core, path): &(usize, PathBuf)| {
            // kHz; no processor runs above 20 GHz.
            let clock = sysfs::read_number::<f64>(path).and_then(|khz| {
                let plausible = khz > 0.0 && khz < 2e7;
                plausible.then_some(khz / 1000.0).ok_or_else(|| {
                    Missing::new(Reason::Implausible, format!("cpu{core} reports a clock of {khz} kHz"))
                })
            });
            (*core, clock.into())
        };
        self.clocks.iter().map(read).collect()
    }

    fn mean_clock(&self, clocks: &[(usize, Reading<f64>)]) -> Reading<f64> {
        let values: Vec<f64> = clocks.iter().filter_map(|(_, clock)| clock.get()).collect();
        if !values.is_empty() {
            return Reading::derived(values.iter().sum::<f64>() / values.len() as f64);
        }
        match clocks.first() {
            Some((_, first)) => first.clone(),
            None => Reading::absent(Reason::NotPresent, "no frequency driver (cpufreq) is attached"),
        }
    }

    fn throttling(&self) -> Reading<u64> {
        let mut events = None;
        let mut packages: Vec<(usize, u64)> = Vec::new();
        for count in self.core_throttles.iter().filter_map(|path| sysfs::read_number::<u64>(path).ok()) {
            events = Some(count.saturating_add(events.unwrap_or(0)));
        }
        for (package, path) in &self.package_throttles {
            let Ok(count) = sysfs::read_number::<u64>(path) else { continue };
            match packages.iter_mut().find(|(known, _)| known == package) {
                Some((_, highest)) => *highest = count.max(*highest),
                None => packages.push((*package, count)),
            }
        }
        for (_, count) in packages {
            events = Some(count.saturating_add(events.unwrap_or(0)));
        }
        match events {
            Some(events) => Reading::measured(events),
            None => Reading::absent(Reason::NotPresent, "this processor or kernel counts no throttling"),
        }
    }

    fn power(&mut self, now: Instant) -> (Reading<f64>, Vec<(String, Reading<f64>)>) {
        if let Some(missing) = &self.energy_missing {
            return (missing.clone().into(), Vec::new());
        }
        let seconds =
            self.last_power.replace(now).map(|last| now.saturating_duration_since(last).as_secs_f64());
        let seconds = seconds.filter(|&seconds| seconds > 0.0);
        let mut joules = Vec::with_capacity(self.zones.len());
        let mut watts: Reading<f64> = Reading::absent(Reason::NotPresent, "no energy zone of a package");
        for zone in &mut self.zones {
            let energy = sysfs::read_number::<u64>(&zone.energy).map_err(|missing| match missing.reason {
                Reason::Permission => Missing::new(
                    Reason::Permission,
                    format!("{} is readable by root only", zone.energy.display()),
                )
                .fix("sudo setcap cap_dac_read_search=ep $(command -v ai_swarm_deploy)"),
                _ => missing,
            });
            let last = std::mem::replace(&mut zone.last_uj, energy.as_ref().ok().copied());
            if zone.name.starts_with("package") {
                let power: Reading<f64> = match (&energy, last, seconds) {
                    (Err(missing), _, _) => missing.clone().into(),
                    (Ok(uj), Some(last), Some(seconds)) => match zone.grown(last, *uj) {
                        Some(grown) => Reading::derived(grown as f64 / 1e6 / seconds),
                        None => Reading::warming_up(),
                    },
                    _ => Reading::warming_up(),
                };
                watts = match (&watts, &power) {
                    (Reading::Value { v: sum, .. }, Reading::Value { v, .. }) => Reading::derived(sum + v),
                    // One package that cannot be read makes the sum a lie.
                    (Reading::Absent { reason: Reason::NotPresent, .. }, _) | (Reading::Value { .. }, _) => {
                        power
                    }
                    _ => watts,
                };
            }
            joules.push((zone.name.clone(), Reading::from(energy).map(|uj| uj as f64 / 1e6)));
        }
        (watts, joules)
    }
}

impl Zone {
    /// Microjoules since the reading before, across one wrap of the counter.
    fn grown(&self, last: u64, now: u64) -> Option<u64> {
        now.checked_sub(last).or_else(|| self.wraps_at_uj?.checked_sub(last)?.checked_add(now))
    }
}

impl Probe {
    fn read(&self) -> Temperature {
        let asleep = self.device.as_ref().is_some_and(|device| {
            sysfs::read_text(&device.join("power_state")).is_ok_and(|state| state == "D3cold")
        });
        let celsius = if asleep {
            Reading::absent(Reason::Asleep, format!("{} is powered down and is not woken", self.name))
        } else {
            match sysfs::read_number::<f64>(&self.input).map(|millidegrees| millidegrees / 1000.0) {
                Ok(celsius) if PLAUSIBLE_C.contains(&celsius) => Reading::measured(celsius),
                Ok(celsius) => Reading::absent(
                    Reason::Implausible,
                    format!("{} reports {celsius} °C, which no sensor near a processor shows", self.name),
                ),
                Err(missing) => missing.into(),
            }
        };
        Temperature { name: self.name.clone(), celsius, max_c: self.max_c, crit_c: self.crit_c }
    }
}

/// A limit in millidegrees; sentinels such as 65261850 or -273150 are no limits.
fn limit(path: &Path) -> Option<f64> {
    let celsius = sysfs::read_number::<f64>(path).ok()? / 1000.0;
    (celsius > 0.0 && PLAUSIBLE_C.contains(&celsius)).then_some(celsius)
}

/// A name as it may stand in a table: short, and without control characters.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(48).collect()
}

fn hwmon(folder: &Path) -> Vec<Probe> {
    let mut probes = Vec::new();
    for chip in sysfs::list(folder).unwrap_or_default() {
        let chip_folder = folder.join(&chip);
        let chip_name =
            sysfs::read_text(&chip_folder.join("name")).map_or_else(|_| chip.clone(), |name| clean(&name));
        // The same sensors may stand in the chip's folder or, with old drivers, in its device's.
        for file in sysfs::list(&chip_folder).unwrap_or_default() {
            let Some(number) = file.strip_suffix("_input").and_then(|stem| sysfs::numbered(stem, "temp"))
            else {
                continue;
            };
            let part = |suffix: &str| chip_folder.join(format!("temp{number}_{suffix}"));
            let label = sysfs::read_text(&part("label"))
                .map_or_else(|_| format!("temp{number}"), |label| clean(&label));
            probes.push(Probe {
                name: format!("{chip_name} {label}"),
                input: chip_folder.join(&file),
                device: Some(chip_folder.join("device")),
                max_c: limit(&part("max")),
                crit_c: limit(&part("crit")),
            });
        }
    }
    probes
}

fn thermal_zones(folder: &Path) -> Vec<Probe> {
    let names = sysfs::list(folder).unwrap_or_default();
    let zones = names.iter().filter(|name| sysfs::numbered(name, "thermal_zone").is_some());
    zones
        .map(|name| {
            let zone = folder.join(name);
            let kind =
                sysfs::read_text(&zone.join("type")).map_or_else(|_| name.clone(), |kind| clean(&kind));
            let trip = |wanted: &str| {
                (0..16).find_map(|n| {
                    let kind = sysfs::read_text(&zone.join(format!("trip_point_{n}_type"))).ok()?;
                    (kind == wanted).then(|| limit(&zone.join(format!("trip_point_{n}_temp"))))?
                })
            };
            let (max_c, crit_c) = (trip("hot"), trip("critical"));
            Probe { name: format!("zone {kind}"), input: zone.join("temp"), device: None, max_c, crit_c }
        })
        .collect()
}

fn energy_zones(folder: &Path) -> Result<Vec<Zone>, Missing> {
    let zones: Vec<Zone> = sysfs::list(folder)?
        .iter()
        // `intel-rapl-mmio` shows the same counters once more.
        .filter(|name| name.starts_with("intel-rapl:") || name.starts_with("amd-rapl:"))
        .map(|name| {
            let zone = folder.join(name);
            Zone {
                name: sysfs::read_text(&zone.join("name")).map_or_else(|_| name.clone(), |name| clean(&name)),
                energy: zone.join("energy_uj"),
                wraps_at_uj: sysfs::read_number(&zone.join("max_energy_range_uj")).ok(),
                last_uj: None,
            }
        })
        .collect();
    if zones.is_empty() {
        return Err(Missing::new(Reason::NotPresent, "no energy counter (RAPL) here"));
    }
    Ok(zones)
}

/// How many compute agents may work at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// Compute agents that may work at once; at least 1, unless there are none.
    pub allowed: usize,
    /// Compute agents there are.
    pub agents: usize,
    /// How many times the number was halved.
    pub step: u32,
}

impl Cap {
    /// True when fewer may work than there are.
    pub fn is_limiting(&self) -> bool {
        self.allowed < self.agents
    }
}

/// Decides from the hottest temperature how many compute agents may work: pure, one call per interval.
///
/// At or above `critical` the number is halved, and halved again each further interval while it stays so hot.
/// Between `critical - hysteresis` and `critical` nothing changes, which is what prevents flapping.
/// Below that, each interval takes one halving back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ThrottlePolicy {
    critical_c: f64,
    hysteresis_c: f64,
    step: u32,
    blind: u32,
}

impl ThrottlePolicy {
    /// Intervals without any temperature after which a cap is slowly released.
    /// Long enough for a driver that is reloaded; not for ever, since the processor protects itself as well.
    pub const BLIND_INTERVALS_MAX: u32 = 30;

    /// With the limit and the distance below it at which a cap is released, both in °C.
    pub fn new(critical_c: f64, hysteresis_c: f64) -> ThrottlePolicy {
        ThrottlePolicy { critical_c, hysteresis_c: hysteresis_c.max(0.0), step: 0, blind: 0 }
    }

    /// The cap for the next interval. `None`: no temperature could be read.
    pub fn update(&mut self, hottest_c: Option<f64>, compute_agents: usize) -> Cap {
        // Halving stops at one agent. Agents that were added or removed meanwhile shift the end of the road.
        let step_max = compute_agents.max(1).ilog2();
        self.step = self.step.min(step_max);
        match hottest_c.filter(|celsius| celsius.is_finite()) {
            Some(celsius) => {
                self.blind = 0;
                if celsius >= self.critical_c {
                    self.step = (self.step + 1).min(step_max);
                } else if celsius < self.critical_c - self.hysteresis_c {
                    self.step = self.step.saturating_sub(1);
                }
            }
            None => {
                self.blind = self.blind.saturating_add(1);
                if self.blind > Self::BLIND_INTERVALS_MAX {
                    self.step = self.step.saturating_sub(1);
                }
            }
        }
        Cap { allowed: compute_agents >> self.step, agents: compute_agents, step: self.step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sensors").join(name)
    }

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn a_normal_host_shows_all_its_sensors() {
        let sample = SensorTree::new(fixture("normal")).read();
        let names: Vec<&str> = sample.temperatures.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "coretemp Package id 0",
                "coretemp Core 0",
                "coretemp Core 1",
                "nvme Composite",
                "zone x86_pkg_temp"
            ]
        );
        assert_eq!(sample.hottest.get(), Some(52.0));
        assert_eq!((sample.temperatures[0].max_c, sample.temperatures[0].crit_c), (Some(80.0), Some(100.0)));
        assert_eq!(sample.temperatures[4].crit_c, Some(105.0));
        assert_eq!(sample.core_mhz.len(), 2);
        assert_eq!(sample.clock_mhz.get(), Some(2600.0));
        // Two cores with 3 and 4, and one package that both repeat as 2.
        assert_eq!(sample.throttle_events.get(), Some(9));
        assert_eq!(sample.package_watts.reason(), Some(Reason::NotPresent));
    }

    #[test]
    fn a_hot_host_is_hot() {
        assert_eq!(SensorTree::new(fixture("hot")).read().hottest.get(), Some(97.0));
    }

    #[test]
    fn sentinels_are_implausible_and_never_the_hottest() {
        let sample = SensorTree::new(fixture("sentinel")).read();
        let reasons: Vec<Option<Reason>> = sample.temperatures.iter().map(|t| t.celsius.reason()).collect();
        let bad = Some(Reason::Implausible);
        assert_eq!(reasons, [bad, bad, None]);
        assert_eq!(sample.hottest.get(), Some(41.5));
        assert_eq!((sample.temperatures[2].max_c, sample.temperatures[2].crit_c), (None, None));
    }

    #[test]
    fn garbage_has_reasons_and_no_values() {
        let sample = SensorTree::new(fixture("garbage")).read();
        assert!(sample.temperatures.len() >= 3);
        assert!(sample.temperatures.iter().all(|t| !t.celsius.is_present()), "{sample:?}");
        assert!(sample.temperatures.iter().all(|t| !t.name.chars().any(char::is_control)));
        assert_eq!(sample.hottest.reason(), Some(Reason::Implausible));
        assert_eq!(sample.clock_mhz.reason(), Some(Reason::Implausible));
        let json = serde_json::to_string(&sample).unwrap();
        assert!(!json.contains(r#""v":0"#), "{json}");
    }

    #[test]
    fn a_host_without_sensors_says_whether_the_kernel_is_to_blame() {
        let folder = tempfile::tempdir().unwrap();
        let sample = SensorTree::new(folder.path()).read();
        for reason in [sample.hottest.reason(), sample.clock_mhz.reason(), sample.package_watts.reason()] {
            assert_eq!(reason, Some(Reason::NotPresent));
        }
        assert_eq!(sample.throttle_events.reason(), Some(Reason::NotPresent));
        // The configuration in this fixture has no CONFIG_HWMON.
        std::fs::create_dir(folder.path().join("proc")).unwrap();
        std::fs::copy(fixture("config.gz"), folder.path().join("proc/config.gz")).unwrap();
        let sample = SensorTree::new(folder.path()).read();
        assert_eq!(sample.hottest.reason(), Some(Reason::KernelOff));
        assert!(sample.hottest.to_string().contains("CONFIG_HWMON"));
    }

    #[test]
    fn a_sensor_that_appears_vanishes_or_is_replaced_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let mut tree = SensorTree::new(root);
        assert!(!tree.read().hottest.is_present());
        write(root, "class/hwmon/hwmon0/temp1_input", "40000\n");
        let seen = (0..READS_PER_SCAN).any(|_| tree.read().hottest.get() == Some(40.0));
        assert!(seen);
        write(root, "new", "50000\n");
        std::fs::rename(root.join("new"), root.join("class/hwmon/hwmon0/temp1_input")).unwrap();
        assert_eq!(tree.read().hottest.get(), Some(50.0));
        std::fs::remove_dir_all(root.join("class")).unwrap();
        assert!(!tree.read().hottest.is_present());
        assert!(tree.read().temperatures.is_empty());
    }

    #[test]
    fn power_is_a_difference_and_survives_the_wrap() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let zone = "class/powercap/intel-rapl:0";
        write(root, &format!("{zone}/name"), "package-0\n");
        write(root, &format!("{zone}/max_energy_range_uj"), "100000000\n");
        write(root, &format!("{zone}/energy_uj"), "90000000\n");
        write(root, &format!("{zone}:0/name"), "core\n");
        write(root, "class/powercap/intel-rapl:0:0/energy_uj", "5000000\n");
        let mut tree = SensorTree::new(root);
        let start = Instant::now();
        assert_eq!(tree.read_at(start).package_watts.reason(), Some(Reason::WarmingUp));
        write(root, &format!("{zone}/energy_uj"), "10000000\n");
        let sample = tree.read_at(start + Duration::from_secs(2));
        assert_eq!(sample.package_watts.get(), Some(10.0));
        assert_eq!(sample.energy_j.len(), 2);
        assert_eq!(sample.energy_j[1].1.get(), Some(5.0));
    }

    #[test]
    fn a_cap_tightens_step_by_step_and_is_released_step_by_step() {
        let mut policy = ThrottlePolicy::new(85.0, 5.0);
        let mut allowed = |celsius: f64| policy.update(Some(celsius), 8).allowed;
        assert_eq!([70.0, 84.9].map(&mut allowed), [8, 8]);
        assert_eq!([85.0, 90.0, 90.0, 90.0].map(&mut allowed), [4, 2, 1, 1]);
        assert_eq!([84.0, 80.0].map(&mut allowed), [1, 1], "inside the hysteresis nothing moves");
        assert_eq!([79.9, 79.0, 70.0, 70.0].map(&mut allowed), [2, 4, 8, 8]);
    }

    #[test]
    fn a_temperature_that_swings_inside_the_hysteresis_does_not_flap() {
        let mut policy = ThrottlePolicy::new(85.0, 5.0);
        policy.update(Some(86.0), 4);
        let caps: Vec<usize> =
            (0..100).map(|n| policy.update(Some(if n % 2 == 0 { 84.9 } else { 80.0 }), 4).allowed).collect();
        assert!(caps.iter().all(|&allowed| allowed == 2), "{caps:?}");
    }

    #[test]
    fn without_a_temperature_a_cap_is_held_for_a_while_and_never_begun() {
        let mut policy = ThrottlePolicy::new(85.0, 5.0);
        assert!(!policy.update(None, 4).is_limiting());
        assert_eq!(policy.update(Some(99.0), 4).allowed, 2);
        for _ in 0..ThrottlePolicy::BLIND_INTERVALS_MAX {
            assert_eq!(policy.update(None, 4).allowed, 2);
        }
        assert_eq!(policy.update(None, 4).allowed, 4);
        assert_eq!(policy.update(Some(f64::NAN), 4).allowed, 4);
    }

    #[test]
    fn agents_that_come_and_go_leave_at_least_one() {
        let mut policy = ThrottlePolicy::new(85.0, 5.0);
        for _ in 0..5 {
            policy.update(Some(99.0), 16);
        }
        assert_eq!(policy.update(Some(82.0), 2).allowed, 1);
        assert_eq!(policy.update(Some(99.0), 1).allowed, 1);
        assert_eq!(policy.update(Some(99.0), 0).allowed, 0);
    }

    proptest! {
        #[test]
        fn a_cap_never_exceeds_the_agents_nor_drops_to_none(temperatures in proptest::collection::vec(proptest::option::of(-50.0_f64..200.0), 0..60), agents in 1_usize..300) {
            let mut policy = ThrottlePolicy::new(85.0, 5.0);
            let mut before = agents;
            for celsius in temperatures {
                let cap = policy.update(celsius, agents);
                prop_assert!((1..=agents).contains(&cap.allowed));
                if celsius.is_some_and(|c| c >= 85.0) { prop_assert!(cap.allowed <= before) }
                if celsius.is_some_and(|c| c < 80.0) { prop_assert!(cap.allowed >= before) }
                before = cap.allowed;
            }
        }

        #[test]
        fn no_text_in_a_sensor_panics_or_becomes_a_false_value(text in "[-+0-9a-z. ]{0,12}") {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), "class/hwmon/hwmon0/temp1_input", &text);
            let sample = SensorTree::new(folder.path()).read();
            if let Some(celsius) = sample.hottest.get() {
                prop_assert_eq!(celsius, text.trim().parse::<f64>().unwrap() / 1000.0);
            }
        }
    }
}
