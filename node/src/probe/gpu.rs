//! The GPUs of this machine, as their drivers tell.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::command::output_of;

/// The tool loads the driver when nothing else has, which takes seconds.
const TOOL_TIMEOUT: Duration = Duration::from_secs(20);

/// More GPUs than this are not listed.
const MAX_GPUS: usize = 64;

/// One GPU that programs can compute on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gpu {
    /// Who made it.
    pub(super) vendor: &'static str,
    /// What it is called; empty when the driver does not say.
    pub(super) model: String,
    /// Its memory in MiB; zero when the driver does not say.
    pub(super) memory_mib: u64,
    /// The driver's version; empty when unknown.
    pub(super) driver: String,
}

/// Every GPU whose driver is loaded.
pub(super) fn list() -> Vec<Gpu> {
    let mut gpus = Vec::new();
    if Path::new("/proc/driver/nvidia").exists() || Path::new("/dev/nvidiactl").exists() {
        let tool = [
            "nvidia-smi",
            "--query-gpu=name,memory.total,driver_version",
            "--format=csv,noheader,nounits",
        ];
        let said = output_of(&tool.map(str::to_owned), TOOL_TIMEOUT).unwrap_or_default();
        gpus = nvidia(&said);
        if gpus.is_empty() {
            gpus = nvidia_nodes(Path::new("/dev"));
        }
    }
    gpus.extend(amd(Path::new("/sys/class/drm")));
    gpus.truncate(MAX_GPUS);
    gpus
}

/// The lines of `nvidia-smi`: name, memory, driver.
fn nvidia(said: &str) -> Vec<Gpu> {
    let rows = said.lines().filter_map(|line| {
        let mut cells = line.split(',').map(str::trim);
        let (model, memory, driver) = (cells.next()?, cells.next()?, cells.next()?);
        // A GPU with shared memory has none of its own to tell.
        let memory_mib = memory.parse().unwrap_or(0);
        Some(Gpu {
            vendor: "nvidia",
            model: model.to_owned(),
            memory_mib,
            driver: driver.to_owned(),
        })
    });
    rows.take(MAX_GPUS).collect()
}

/// The device nodes, where the tool is missing, as in a container.
fn nvidia_nodes(dev: &Path) -> Vec<Gpu> {
    let nodes = (0..MAX_GPUS).filter(|i| dev.join(format!("nvidia{i}")).exists());
    let gpus = nodes.map(|_| Gpu {
        vendor: "nvidia",
        model: String::new(),
        memory_mib: 0,
        driver: String::new(),
    });
    gpus.collect()
}

/// AMD's cards, by what their driver shows in the system's tree.
fn amd(drm: &Path) -> Vec<Gpu> {
    let entries = fs::read_dir(drm).into_iter().flatten().flatten();
    let gpus = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let number = name.strip_prefix("card")?;
        number.parse::<u32>().ok()?;
        let device = entry.path().join("device");
        let read = |file: &str| fs::read_to_string(device.join(file)).unwrap_or_default();
        if read("vendor").trim() != "0x1002" {
            return None;
        }
        let bytes: u64 = read("mem_info_vram_total").trim().parse().ok()?;
        Some(Gpu {
            vendor: "amd",
            model: read("product_name").trim().to_owned(),
            memory_mib: bytes >> 20,
            driver: String::new(),
        })
    });
    gpus.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_read_from_what_drivers_say() {
        let gpus =
            nvidia("NVIDIA H200, 143771, 570.86.15\nNVIDIA GB10, [N/A], 580.1\nno devices\n");
        assert_eq!(gpus.len(), 2);
        assert_eq!((gpus[0].model.as_str(), gpus[0].memory_mib), ("NVIDIA H200", 143_771));
        assert_eq!(gpus[1].memory_mib, 0);

        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("card1/device");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(folder.path().join("card1-DP-1")).unwrap();
        fs::write(device.join("vendor"), "0x1002\n").unwrap();
        assert_eq!(amd(folder.path()), []);
        fs::write(device.join("mem_info_vram_total"), "17163091968\n").unwrap();
        assert_eq!(amd(folder.path())[0].memory_mib, 16368);

        fs::write(folder.path().join("nvidia0"), "").unwrap();
        assert_eq!(nvidia_nodes(folder.path()).len(), 1);
    }
}
