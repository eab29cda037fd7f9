//! What this machine offers, found out and never typed in: a host class in the capability names of Open Job Description.
//!
//! | a render host reports | name here |
//! |---|---|
//! | machine family, model | `meshfarm:attr.machine.family`, `meshfarm:attr.machine.model` |
//! | OS family | `attr.worker.os.family` |
//! | OS type, version | `meshfarm:attr.os.type`, `meshfarm:attr.os.version` at every precision |
//! | kernel version | `meshfarm:attr.os.kernel` at every precision |
//! | CPU architecture | `attr.worker.cpu.arch` |
//! | CPU vendor, family, type | `meshfarm:attr.cpu.vendor`, `meshfarm:attr.cpu.family`, `meshfarm:attr.cpu.model` |
//! | CPU features | `meshfarm:attr.cpu.feature`, the ones that renderers ask for |
//! | CPU count | `amount.worker.vcpu` |
//! | CPU speed | `meshfarm:amount.cpu.mhz`; measured: [`HostClass::speed`] |
//! | RAM in MiB | `amount.worker.memory` |
//! | swap in MiB | `meshfarm:amount.swap` |
//! | free scratch disk in GiB | `amount.worker.disk.scratch` |
//! | GPUs, memory of the smallest in MiB | `amount.worker.gpu`, `amount.worker.gpu.memory` |
//! | GPU vendor, model, driver | `meshfarm:attr.gpu.vendor`, `meshfarm:attr.gpu.model`, `meshfarm:attr.gpu.driver` |
//! | render packages | `meshfarm:attr.software.NAME` at every precision; exact: [`HostClass::software`] |
//! | licences | declared by the site as amounts `meshfarm:amount.licence.NAME`; not probed |
//! | slots | [`HostClass::slots`], one for each logical processor unless the site says otherwise |
//!
//! Texts become attribute values in lower case with underscores: `Intel(R) Xeon(R)` is `intel_r_xeon_r`.

mod command;
mod gpu;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use meshfarm_protocol::profile::{
    Amount, GPU, GPU_MEMORY, HostClass, Level, MEMORY, SCRATCH, VCPU, version_values,
};

use crate::job_bundle::{Catalog, Probe};

pub use gpu::{Cards, Gpu};

/// A program that does not tell its version in this time is taken as absent. Blender needs 1.4 s, and
/// much longer from a cold disk.
const VERSION_TIMEOUT: Duration = Duration::from_secs(20);

/// Steps that the reference core, a server's of 2023 at 2.6 GHz, makes in a millisecond: the speed 1000.
const REFERENCE_STEPS_PER_MS: u64 = 540_000;

/// CPU features that renderers and their libraries ask for.
const FEATURES: [&str; 14] = [
    "sse4_1", "sse4_2", "avx", "avx2", "avx512f", "avx512bw", "fma", "f16c", "aes", "neon",
    "asimd", "sve", "sve2", "amx_tile",
];

/// What a site says about its host, and where to look.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The renderers to look for.
    pub catalog: &'a Catalog,
    /// Folders of renderers that are looked into before those of PATH.
    pub software: &'a [PathBuf],
    /// The folder where sessions work, whose disk is the scratch disk.
    pub scratch: &'a Path,
    /// Slots, where the site sets them. None: one for each logical processor.
    pub slots: Option<u32>,
    /// The speed that was measured before. None: it is measured now, which takes up to 50 ms.
    pub speed: Option<u32>,
    /// The isolation that the sandbox reaches here.
    pub level: Level,
    /// The graphics cards.
    pub cards: &'a Cards,
}

/// Looks at the machine. Blocks for as long as the slowest renderer takes to tell its version.
///
/// What cannot be found out is left out; nothing is guessed.
#[must_use]
pub fn probe(ask: &Ask<'_>) -> HostClass {
    let cpus = thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    let mut found = Found::default();
    found.machine(Path::new("/sys/class/dmi/id"));
    found.system();
    found.cpu(&read("/proc/cpuinfo"));
    found.amount(VCPU, u64::from(cpus));
    found.memory(&read("/proc/meminfo"), &read("/sys/fs/cgroup/memory.max"));
    if let Ok(disk) = nix::sys::statvfs::statvfs(ask.scratch) {
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        found.amount(SCRATCH, free >> 30);
    }
    found.gpus(ask.cards.all());
    found.software(ask.catalog, ask.software);
    HostClass {
        count: 1,
        description: found.description(cpus),
        amounts: found.amounts,
        attributes: found.attributes.into(),
        software: found.software,
        slots: ask.slots.unwrap_or(cpus),
        speed: ask.speed.unwrap_or_else(measure_speed),
        level: ask.level,
    }
}

/// The speed of one core in thousandths of the reference core: the best of a few short runs of the same
/// mixed arithmetic, so that a busy moment does not count.
#[must_use]
pub fn measure_speed() -> u32 {
    const STEPS: u64 = 1_000_000;
    let begun = Instant::now();
    let mut best = Duration::MAX;
    while begun.elapsed() < Duration::from_millis(30) {
        let run = Instant::now();
        black_box(mixed_arithmetic(black_box(STEPS)));
        best = best.min(run.elapsed());
    }
    let nanos = u64::try_from(best.as_nanos()).unwrap_or(u64::MAX).max(1);
    let steps_per_ms = STEPS * 1_000_000 / nanos;
    u32::try_from(steps_per_ms * 1000 / REFERENCE_STEPS_PER_MS).unwrap_or(u32::MAX)
}

/// Dependent integer and floating point steps, as rendering has them.
fn mixed_arithmetic(steps: u64) -> f64 {
    let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
    let mut sum = 1.0_f64;
    for _ in 0..steps {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        let unit = f64::from_bits(0x3ff0_0000_0000_0000 | (bits >> 12));
        sum = sum * 0.999 + unit;
    }
    sum
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Found {
    amounts: BTreeMap<String, Amount>,
    attributes: BTreeMap<String, BTreeSet<String>>,
    software: BTreeMap<String, String>,
    cpu_model: Option<String>,
    os_name: Option<String>,
}

impl Found {
    fn amount(&mut self, name: &str, n: u64) {
        self.amounts.insert(name.to_owned(), Amount::whole(n));
    }

    /// Adds a text as an attribute value, where there is one.
    fn text(&mut self, name: &str, text: &str) {
        if let Some(value) = identifier(text) {
            let values = self.attributes.entry(name.to_owned()).or_default();
            values.insert(value);
        }
    }

    fn version(&mut self, name: &str, version: &str) {
        let values = version_values(version);
        self.attributes.entry(name.to_owned()).or_default().extend(values);
    }

    fn machine(&mut self, dmi: &Path) {
        for (name, file) in [("family", "product_family"), ("model", "product_name")] {
            let text = read(dmi.join(file));
            self.text(&format!("meshfarm:attr.machine.{name}"), &text);
        }
    }

    fn system(&mut self) {
        self.text("attr.worker.os.family", std::env::consts::OS);
        let arch = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            other => other,
        };
        self.text("attr.worker.cpu.arch", arch);
        let release = read("/etc/os-release");
        let value = |key: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        if let Some(id) = value("ID") {
            self.text("meshfarm:attr.os.type", &id);
        }
        if let Some(version) = value("VERSION_ID") {
            self.version("meshfarm:attr.os.version", &version);
        }
        self.os_name = value("PRETTY_NAME").or_else(|| value("ID"));
        let kernel = read("/proc/sys/kernel/osrelease");
        let kernel = number_at(&kernel);
        if !kernel.is_empty() {
            self.version("meshfarm:attr.os.kernel", kernel);
        }
    }

    fn cpu(&mut self, cpuinfo: &str) {
        let value = |key: &str| {
            let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            let mut values = lines.filter(|(name, _)| name.trim() == key);
            values.next().map(|(_, value)| value.trim())
        };
        let vendor = value("vendor_id").or_else(|| value("CPU implementer"));
        if let Some(vendor) = vendor {
            let vendor = match vendor {
                "GenuineIntel" => "intel",
                "AuthenticAMD" => "amd",
                "0x41" => "arm",
                "0xc0" => "ampere",
                other => other,
            };
            self.text("meshfarm:attr.cpu.vendor", vendor);
        }
        if let Some(family) = value("cpu family").or_else(|| value("CPU architecture")) {
            self.text("meshfarm:attr.cpu.family", family);
        }
        if let Some(model) = value("model name").or_else(|| value("CPU part")) {
            self.text("meshfarm:attr.cpu.model", model);
            self.cpu_model = Some(model.to_owned());
        }
        let flags = value("flags").or_else(|| value("Features")).unwrap_or_default();
        for flag in flags.split_whitespace().filter(|flag| FEATURES.contains(flag)) {
            self.text("meshfarm:attr.cpu.feature", flag);
        }
        let khz = read("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq");
        let most = khz.trim().parse::<u64>().ok().map(|khz| khz / 1000);
        let now = value("cpu MHz").and_then(|mhz| mhz.parse::<f64>().ok());
        if let Some(mhz) = most.map(Amount::whole).or_else(|| now.map(Amount::from_f64)) {
            self.amounts.insert("meshfarm:amount.cpu.mhz".into(), mhz);
        }
    }

    /// `limit` is the control group's, which is less in a container.
    fn memory(&mut self, meminfo: &str, limit: &str) {
        let mib = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let kib = line?.trim().trim_end_matches(" kB").parse::<u64>().ok();
            kib.map(|kib| kib >> 10)
        };
        let limit = limit.trim().parse::<u64>().map_or(u64::MAX, |bytes| bytes >> 20);
        if let Some(memory) = mib("MemTotal") {
            self.amount(MEMORY, memory.min(limit));
        }
        if let Some(swap) = mib("SwapTotal") {
            self.amount("meshfarm:amount.swap", swap);
        }
    }

    fn gpus(&mut self, gpus: &[Gpu]) {
        self.amount(GPU, gpus.len() as u64);
        if let Some(least) = gpus.iter().map(|gpu| gpu.memory_mib).min() {
            self.amount(GPU_MEMORY, least);
        }
        for gpu in gpus {
            self.text("meshfarm:attr.gpu.vendor", gpu.vendor);
            self.text("meshfarm:attr.gpu.model", &gpu.model);
            if !gpu.driver.is_empty() {
                self.version("meshfarm:attr.gpu.driver", &gpu.driver);
            }
        }
    }

    /// Asks every renderer for its version, all at once.
    fn software(&mut self, catalog: &Catalog, folders: &[PathBuf]) {
        let abouts = catalog.renderers.values().map(|renderer| &renderer.about);
        let asked =
            abouts.filter_map(|about| Some((about.software.as_ref()?, about.probe.as_ref()?)));
        let found: Vec<_> = thread::scope(|scope| {
            let asking: Vec<_> = asked
                .map(|(name, probe)| (name, scope.spawn(|| version_of(probe, folders))))
                .collect();
            let found = asking.into_iter();
            let found = found.filter_map(|(name, thread)| Some((name, thread.join().ok()??)));
            found.collect()
        });
        for (name, version) in found {
            self.version(&format!("meshfarm:attr.software.{name}"), &version);
            self.software.insert(name.clone(), version);
        }
    }

    fn description(&self, cpus: u32) -> String {
        let cpu = self.cpu_model.as_deref().unwrap_or(std::env::consts::ARCH);
        let os = self.os_name.as_deref().unwrap_or(std::env::consts::OS);
        format!("{cpu}, {cpus} threads, {os}").chars().take(200).collect()
    }
}

/// The version that a program tells; none when it is not here, or says nothing of the kind in time.
fn version_of(probe: &Probe, folders: &[PathBuf]) -> Option<String> {
    let mut command = probe.command.clone();
    let name = command.first()?;
    let places =
        folders.iter().flat_map(|folder| [folder.join(name), folder.join("bin").join(name)]);
    if let Some(found) = places.into_iter().find(|path| path.is_file()) {
        command[0] = found.to_str()?.to_owned();
    }
    let said = command::output_of(&command, VERSION_TIMEOUT)?;
    let (_, rest) = said.split_once(&probe.after)?;
    let version = number_at(rest.trim_start());
    (!version.is_empty()).then(|| version.to_owned())
}

/// The number with dots at the beginning of `text`: `3.7.0` of `3.7.0.unofficial (g++)`.
fn number_at(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let number = &text[..end.unwrap_or(text.len()).min(40)];
    number.trim_end_matches('.')
}

/// `text` as an attribute value: an identifier in lower case. None when nothing is left.
fn identifier(text: &str) -> Option<String> {
    let mut value = String::new();
    for c in text.trim().chars().take(100) {
        if c.is_ascii_alphanumeric() {
            value.push(c.to_ascii_lowercase());
        } else if !value.is_empty() && !value.ends_with('_') {
            value.push('_');
        }
    }
    let value = value.trim_end_matches('_');
    let first = value.chars().next()?;
    if first.is_ascii_digit() {
        return Some(format!("v{value}"));
    }
    Some(value.to_owned())
}

/// The text of a small file of the system; empty when it is not there.
fn read(path: impl Into<PathBuf>) -> String {
    fs::read_to_string(path.into()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_what_it_has() {
        let catalog = Catalog::open(None).unwrap();
        let ask = Ask {
            catalog: &catalog,
            software: &[],
            scratch: Path::new("/tmp"),
            slots: None,
            speed: Some(1234),
            level: Level::S2,
            cards: &Cards::default(),
        };
        let host = probe(&ask);
        let cpus = u32::try_from(thread::available_parallelism().unwrap().get()).unwrap();
        assert_eq!((host.slots, host.speed, host.level), (cpus, 1234, Level::S2));
        assert_eq!(host.amounts[VCPU], Amount::whole(u64::from(cpus)));
        assert!(host.amounts[MEMORY] > Amount::whole(64));
        assert!(host.attributes["attr.worker.os.family"].contains("linux"));
        let povray = host.software.get("povray").expect("POV-Ray is installed");
        assert!(povray.starts_with("3.7"), "{povray}");
        let values = &host.attributes["meshfarm:attr.software.povray"];
        assert!(values.contains("any") && values.contains("v3") && values.contains("v3_7"));
    }

    #[test]
    fn a_machine_is_read_from_what_its_kernel_says() {
        let mut found = Found::default();
        found.cpu("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel name\t: AMD EPYC 7R13 (x)\ncpu MHz\t\t: 2649.9\nflags\t\t: fpu avx2 foo\n");
        found.memory("MemTotal:       16384000 kB\nSwapTotal:       1024 kB\n", "max\n");
        assert!(found.attributes["meshfarm:attr.cpu.vendor"].contains("amd"));
        assert!(found.attributes["meshfarm:attr.cpu.family"].contains("v25"));
        assert!(found.attributes["meshfarm:attr.cpu.model"].contains("amd_epyc_7r13_x"));
        assert_eq!(found.attributes["meshfarm:attr.cpu.feature"].len(), 1);
        assert_eq!(found.amounts[MEMORY], Amount::whole(16000));
        found.memory("MemTotal:       16384000 kB\n", "1073741824");
        assert_eq!(found.amounts[MEMORY], Amount::whole(1024));
        found.gpus(&[]);
        assert_eq!(found.amounts[GPU], Amount(0));
    }

    #[test]
    fn a_program_that_is_not_there_or_says_nothing_or_hangs_has_no_version() {
        let probe = |command: &[&str]| Probe {
            command: command.iter().map(ToString::to_string).collect(),
            after: "Version ".into(),
        };
        let version = |command: &[&str]| version_of(&probe(command), &[]);
        assert_eq!(version(&["no-such-program"]), None);
        assert_eq!(version(&[]), None);
        assert_eq!(version(&["echo", "hello"]), None);
        let told = version(&["sh", "-c", "echo Version 4.2.0-alpha >&2"]);
        assert_eq!(told.as_deref(), Some("4.2.0"));
        assert_eq!(version(&["sh", "-c", "yes nothing"]), None);
        let begun = Instant::now();
        let hangs = ["sh".to_owned(), "-c".into(), "sleep 60 & sleep 60".into()];
        assert_eq!(command::output_of(&hangs, Duration::from_millis(200)), None);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_renderer_in_a_folder_of_the_site_goes_before_one_in_path() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("bin/echo");
        fs::create_dir(folder.path().join("bin")).unwrap();
        // Written by another process: a file that this one has open for writing cannot be run by a thread beside.
        let script = "printf '#!/bin/sh\\necho Version 9.1\\n' > \"$0\" && chmod 755 \"$0\"";
        let made = std::process::Command::new("sh").args(["-c", script]).arg(&program).status();
        assert!(made.unwrap().success());
        let probe = Probe { command: vec!["echo".into()], after: "Version ".into() };
        let found = version_of(&probe, &[folder.path().to_owned()]);
        assert_eq!(found.as_deref(), Some("9.1"));
    }

    #[test]
    fn the_speed_is_measured_in_a_moment() {
        let begun = Instant::now();
        let speed = measure_speed();
        assert!(speed > 10, "{speed}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
