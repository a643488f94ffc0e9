//! NVIDIA GPUs through the driver's own library, looked for at run time.
//! Each field of a device fails on its own (drivers, MIG and boards differ), so each is a result on its own.

use std::path::Path;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

use super::sysfs::{self, Missing, Reason};

/// What one GPU tells.
#[derive(Debug, Clone)]
pub struct GpuFacts {
    /// Index as NVML counts.
    pub index: u32,
    /// Product name.
    pub name: Result<String, Missing>,
    /// Unique id.
    pub uuid: Result<String, Missing>,
    /// Bytes of memory.
    pub memory_bytes: Result<u64, Missing>,
    /// Bytes of memory in use.
    pub memory_used_bytes: Result<u64, Missing>,
    /// Compute capability, such as 9.0.
    pub compute_capability: Result<(i32, i32), Missing>,
    /// Degrees Celsius.
    pub temperature_c: Result<f64, Missing>,
    /// Watts drawn now.
    pub power_w: Result<f64, Missing>,
    /// Watts allowed.
    pub power_limit_w: Result<f64, Missing>,
    /// Share of the last sample period in which a kernel ran, percent.
    pub busy_percent: Result<f64, Missing>,
    /// Clock of the multiprocessors, MHz.
    pub clock_mhz: Result<f64, Missing>,
}

/// All GPUs, with the driver that serves them.
#[derive(Debug, Clone)]
pub struct GpuProbe {
    /// Version of the driver.
    pub driver: Result<String, Missing>,
    /// Each GPU.
    pub gpus: Vec<GpuFacts>,
}

/// Asks the driver's library. Loading it may take a second where the driver sleeps: not for a hot path.
pub fn probe() -> Result<GpuProbe, Missing> {
    let nvml = Nvml::init().map_err(|error| explain(&error).unwrap_or_else(|| library_missing(&error)))?;
    let count = nvml.device_count().map_err(missing)?;
    if count == 0 {
        return Err(Missing::new(Reason::NotPresent, "the driver is loaded and sees no GPU"));
    }
    Ok(GpuProbe {
        driver: nvml.sys_driver_version().map_err(missing),
        gpus: (0..count).map(|index| facts(&nvml, index)).collect(),
    })
}

fn facts(nvml: &Nvml, index: u32) -> GpuFacts {
    let device = nvml.device_by_index(index).map_err(missing);
    let device = device.as_ref().map_err(Clone::clone);
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    let ask = device.clone();
    GpuFacts {
        index,
        name: ask.clone().and_then(|d| d.name().map_err(missing)),
        uuid: ask.clone().and_then(|d| d.uuid().map_err(missing)),
        memory_bytes: ask.clone().and_then(|d| d.memory_info().map(|m| m.total).map_err(missing)),
        memory_used_bytes: ask.clone().and_then(|d| d.memory_info().map(|m| m.used).map_err(missing)),
        compute_capability: ask
            .clone()
            .and_then(|d| d.cuda_compute_capability().map(|c| (c.major, c.minor)).map_err(missing)),
        temperature_c: ask
            .clone()
            .and_then(|d| d.temperature(TemperatureSensor::Gpu).map(f64::from).map_err(missing)),
        power_w: ask.clone().and_then(|d| d.power_usage().map(watts).map_err(missing)),
        power_limit_w: ask.clone().and_then(|d| d.enforced_power_limit().map(watts).map_err(missing)),
        busy_percent: ask
            .clone()
            .and_then(|d| d.utilization_rates().map(|u| f64::from(u.gpu)).map_err(missing)),
        clock_mhz: ask.and_then(|d| d.clock_info(Clock::SM).map(f64::from).map_err(missing)),
    }
}

fn missing(error: NvmlError) -> Missing {
    explain(&error).unwrap_or_else(|| Missing::new(Reason::NotPresent, error.to_string()))
}

/// The reason behind NVML's own errors; `None` for "the library cannot be loaded" and what we do not know.
fn explain(error: &NvmlError) -> Option<Missing> {
    let reason = match error {
        NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound | NvmlError::LibRmVersionMismatch => {
            Reason::NoDriver
        }
        NvmlError::NoPermission | NvmlError::OperatingSystem => Reason::Permission,
        NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => {
            Reason::Unsupported
        }
        NvmlError::GpuLost | NvmlError::ResetRequired => Reason::Lost,
        NvmlError::InUse => Reason::Busy,
        NvmlError::InsufficientMemory => Reason::Limit,
        NvmlError::Timeout => Reason::Timeout,
        NvmlError::NoData => Reason::WarmingUp,
        _ => return None,
    };
    Some(Missing::new(reason, error.to_string()))
}

fn library_missing(error: &NvmlError) -> Missing {
    let text = error.to_string();
    let words = if text.contains("cannot open shared object file") {
        "libnvidia-ml.so.1 not found".to_owned()
    } else {
        text
    };
    match nvidia_devices(Path::new("/sys")) {
        Some(0) => Missing::new(Reason::NoDriver, format!("{words}, and no NVIDIA device on the PCI bus")),
        Some(count) => {
            Missing::new(Reason::NoDriver, format!("{words}, though {count} NVIDIA device(s) are on the bus"))
                .fix("install the NVIDIA driver of this distribution")
        }
        None => Missing::new(Reason::NoDriver, words),
    }
}

/// NVIDIA display and compute devices on the PCI bus; `None` when there is no bus to look at.
fn nvidia_devices(sysfs: &Path) -> Option<usize> {
    let folder = sysfs.join("bus/pci/devices");
    let names = sysfs::list(&folder).ok()?;
    let is_ours = |name: &&String| {
        let field = |field: &str| sysfs::read_text(&folder.join(name).join(field)).unwrap_or_default();
        field("vendor") == "0x10de" && field("class").starts_with("0x03")
    };
    Some(names.iter().filter(is_ours).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_never_panics_and_says_why_there_is_none() {
        match probe() {
            Ok(probe) => assert!(!probe.gpus.is_empty()),
            Err(missing) => assert!(!missing.detail.is_empty(), "{missing}"),
        }
    }

    #[test]
    fn errors_of_the_driver_have_codes() {
        assert_eq!(missing(NvmlError::NotSupported).reason, Reason::Unsupported);
        assert_eq!(missing(NvmlError::NoPermission).reason, Reason::Permission);
        assert_eq!(missing(NvmlError::DriverNotLoaded).reason, Reason::NoDriver);
        assert_eq!(missing(NvmlError::GpuLost).reason, Reason::Lost);
    }
}
