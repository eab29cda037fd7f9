//! Graphics cards in the jail: which device files may be shown, what their drivers read beside them, and how programs count them.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Device files that every NVIDIA driver opens, whichever card is used.
const NVIDIA_SHARED: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];
/// What AMD's compute driver opens.
const AMD_SHARED: &str = "/dev/kfd";
/// What every driver reads of the processors and their memory.
const SYSTEM: [&str; 2] = ["sys/devices/system/cpu", "sys/devices/system/node"];
/// The list of AMD's cards; it names all of them, as their driver does.
const AMD_LIST: &str = "sys/devices/virtual/kfd";

/// Who made a card, which decides how its programs find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    Nvidia,
    Amd,
    Intel,
    Unknown,
}

/// Refuse a device that is no graphics card's: every other one reaches beyond the job.
pub(crate) fn check(device: &Path) -> Result<(), String> {
    let name = device.to_str().and_then(|path| path.strip_prefix("/dev/")).unwrap_or_default();
    let numbered = |prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|n| !n.is_empty() && n.len() < 5 && n.bytes().all(|b| b.is_ascii_digit()))
    };
    // `nvidia-modeset` and `dri/card*` drive screens, which a job has none of.
    if numbered("nvidia") || numbered("dri/renderD") {
        Ok(())
    } else {
        Err(format!(
            "{} is no graphics card for computing: give /dev/nvidiaN or /dev/dri/renderDN",
            device.display()
        ))
    }
}

/// Refuse a card that is not here any more: its driver was unloaded, or it has failed.
pub(crate) fn present(device: &Path) -> io::Result<()> {
    let wrong = |kind, what: String| {
        let card = device.display();
        io::Error::new(kind, format!("{card} is gone, or its driver is not loaded: {what}"))
    };
    match fs::metadata(device) {
        Ok(found) if found.file_type().is_char_device() => Ok(()),
        Ok(_) => Err(wrong(io::ErrorKind::InvalidInput, "no device".to_owned())),
        Err(error) => Err(wrong(error.kind(), error.to_string())),
    }
}

/// The granted devices and those that their drivers need beside them, of the machine whose root folder this is.
pub(crate) fn with_drivers(devices: &[PathBuf], root: &Path) -> Vec<PathBuf> {
    let has = |maker| devices.iter().any(|device| maker_of(device, root) == maker);
    let (nvidia, amd) = (has(Maker::Nvidia), has(Maker::Amd));
    let shared = NVIDIA_SHARED
        .iter()
        .filter(|_| nvidia)
        .chain(Some(&AMD_SHARED).filter(|_| amd))
        .map(PathBuf::from)
        .filter(|path| root.join(relative(path)).exists());
    devices.iter().cloned().chain(shared).collect()
}

/// Whether a device belongs to NVIDIA's driver, which also looks into `/proc/driver`.
pub(crate) fn is_nvidia(device: &Path) -> bool {
    device.to_str().is_some_and(|path| path.starts_with("/dev/nvidia"))
}

/// Groups that may open these devices where not everybody may.
pub(crate) fn groups(devices: &[PathBuf]) -> Vec<u32> {
    let mut groups: Vec<u32> = with_drivers(devices, Path::new("/"))
        .iter()
        .filter_map(|device| fs::metadata(device).ok())
        .filter(|found| found.mode() & 0o66 == 0o60 && found.gid() != 0)
        .map(|found| found.gid())
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Variables that tell programs which cards are theirs, by the numbers that they have in the jail: the drivers skip
/// cards whose device files are not there, and count the others from zero.
pub(crate) fn variables(devices: &[PathBuf], root: &Path) -> Vec<(&'static str, String)> {
    let numbers = |maker| {
        let n = devices.iter().filter(|device| maker_of(device, root) == maker).count();
        (0..n).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
    };
    let [nvidia, amd, intel] = [Maker::Nvidia, Maker::Amd, Maker::Intel].map(numbers);
    let level_zero = if intel.is_empty() { intel } else { format!("level_zero:{intel}") };
    let all = [
        ("CUDA_VISIBLE_DEVICES", nvidia.clone()),
        ("NVIDIA_VISIBLE_DEVICES", nvidia),
        ("ROCR_VISIBLE_DEVICES", amd.clone()),
        ("HIP_VISIBLE_DEVICES", amd),
        ("ONEAPI_DEVICE_SELECTOR", level_zero),
    ];
    all.into_iter().filter(|(_, numbers)| !numbers.is_empty()).collect()
}

/// What of `/sys` the drivers of some cards read: nothing that tells of other devices. All paths are relative to the root.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Folders to show.
    pub(crate) folders: Vec<PathBuf>,
    /// Links that lead to them, and where to.
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
}

impl Seen {
    /// What is read for these devices on the machine whose root folder this is.
    pub(crate) fn of(devices: &[PathBuf], root: &Path) -> Self {
        let mut seen = Self::default();
        SYSTEM.iter().for_each(|name| seen.folder(root, Path::new(name)));
        for device in devices {
            seen.card(device, root);
        }
        if devices.iter().any(|device| maker_of(device, root) == Maker::Amd) {
            seen.folder(root, Path::new(AMD_LIST));
            seen.link(root, Path::new("sys/class/kfd/kfd"));
        }
        seen
    }

    fn card(&mut self, device: &Path, root: &Path) {
        let Some(folder) = folder_of(device, root) else {
            return;
        };
        if let Some(address) = folder.file_name() {
            self.link(root, &Path::new("sys/bus/pci/devices").join(address));
        }
        if let Some(name) = device.file_name().filter(|_| !is_nvidia(device)) {
            let class = Path::new("sys/class/drm").join(name);
            if let Ok(number) = fs::read_to_string(root.join(&class).join("dev")) {
                self.link(root, &Path::new("sys/dev/char").join(number.trim()));
            }
            self.link(root, &class);
        }
        self.folder(root, &folder);
    }

    fn folder(&mut self, root: &Path, folder: &Path) {
        if root.join(folder).is_dir() && !self.folders.iter().any(|known| known == folder) {
            self.folders.push(folder.to_owned());
        }
    }

    fn link(&mut self, root: &Path, at: &Path) {
        if let Ok(target) = fs::read_link(root.join(at)) {
            self.links.push((at.to_owned(), target));
        }
    }
}

/// The folder of a card beneath `/sys/devices`, relative to the root.
fn folder_of(device: &Path, root: &Path) -> Option<PathBuf> {
    let at = if is_nvidia(device) {
        root.join("sys/bus/pci/devices").join(nvidia_address(device, root)?)
    } else {
        root.join("sys/class/drm").join(device.file_name()?).join("device")
    };
    let found = at.canonicalize().ok()?;
    let folder = found.strip_prefix(root.canonicalize().ok()?).ok()?.to_path_buf();
    folder.starts_with("sys/devices").then_some(folder)
}

/// The bus address of NVIDIA's card with this device file: its driver lists them by address.
fn nvidia_address(device: &Path, root: &Path) -> Option<PathBuf> {
    let minor = device.to_str()?.strip_prefix("/dev/nvidia")?;
    let cards = fs::read_dir(root.join("proc/driver/nvidia/gpus")).ok()?;
    cards.flatten().find_map(|card| {
        let about = fs::read_to_string(card.path().join("information")).ok()?;
        let line = about.lines().find_map(|line| line.strip_prefix("Device Minor:"))?;
        (line.trim() == minor).then(|| PathBuf::from(card.file_name()))
    })
}

fn maker_of(device: &Path, root: &Path) -> Maker {
    if is_nvidia(device) {
        return Maker::Nvidia;
    }
    let name = device.file_name().unwrap_or_default();
    let vendor = root.join("sys/class/drm").join(name).join("device/vendor");
    match fs::read_to_string(vendor).unwrap_or_default().trim() {
        "0x1002" => Maker::Amd,
        "0x8086" => Maker::Intel,
        _ => Maker::Unknown,
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A machine with two NVIDIA cards, one of AMD and one of Intel, as far as files show it.
    fn machine() -> tempfile::TempDir {
        let room = tempfile::tempdir().unwrap();
        let root = room.path();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let link = |at: &str, target: &str| {
            let at = root.join(at);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            symlink(target, at).unwrap();
        };
        for name in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "kfd"] {
            write(&format!("dev/{name}"), "");
        }
        write("sys/devices/system/cpu/online", "0-1");
        write("sys/devices/virtual/kfd/kfd/topology/nodes/0/name", "");
        link("sys/class/kfd/kfd", "../../devices/virtual/kfd/kfd");
        // The driver's numbers are not in the order of the addresses.
        for (address, minor) in [("0000:41:00.0", 1), ("0000:81:00.0", 0)] {
            let about =
                format!("Model: \t NVIDIA X\nDevice Minor: \t {minor}\nGPU Excluded:\t No\n");
            write(&format!("proc/driver/nvidia/gpus/{address}/information"), &about);
            write(&format!("sys/devices/pci0000:40/{address}/vendor"), "0x10de");
            let target = format!("../../../devices/pci0000:40/{address}");
            link(&format!("sys/bus/pci/devices/{address}"), &target);
        }
        for (address, vendor, node) in
            [("0000:03:00.0", "0x1002", 128), ("0000:04:00.0", "0x8086", 129)]
        {
            let card = format!("devices/pci0000:00/{address}");
            write(&format!("sys/{card}/vendor"), vendor);
            link(&format!("sys/bus/pci/devices/{address}"), &format!("../../../{card}"));
            let drm = format!("{card}/drm/renderD{node}");
            write(&format!("sys/{drm}/dev"), &format!("226:{node}\n"));
            link(&format!("sys/{drm}/device"), &format!("../../../{address}"));
            link(&format!("sys/class/drm/renderD{node}"), &format!("../../{drm}"));
            link(&format!("sys/dev/char/226:{node}"), &format!("../../{drm}"));
        }
        room
    }

    fn texts(paths: &[PathBuf]) -> Vec<&str> {
        paths.iter().map(|path| path.to_str().unwrap()).collect()
    }

    #[test]
    fn cards_are_devices_of_a_job_and_screens_and_disks_are_not() {
        for good in ["/dev/nvidia0", "/dev/nvidia15", "/dev/dri/renderD128"] {
            assert_eq!(check(Path::new(good)), Ok(()), "{good}");
        }
        for bad in [
            "/dev/nvidia",
            "/dev/nvidia-modeset",
            "/dev/nvidiactl",
            "/dev/dri/card0",
            "/dev/sda",
            "/dev/nvidia0/../sda",
            "/dev/kmsg",
            "nvidia0",
        ] {
            assert!(check(Path::new(bad)).is_err(), "{bad}");
        }
        assert!(present(Path::new("/dev/null")).is_ok());
        assert!(present(Path::new("/etc/passwd")).unwrap_err().to_string().contains("no device"));
        let gone = present(Path::new("/dev/nvidia9999")).unwrap_err().to_string();
        assert!(gone.contains("/dev/nvidia9999") && gone.contains("driver"), "{gone}");
    }

    #[test]
    fn only_the_granted_card_comes_with_what_its_driver_opens() {
        let machine = machine();
        let all = with_drivers(&["/dev/nvidia1".into()], machine.path());
        assert_eq!(texts(&all), ["/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"]);
        let all = with_drivers(&["/dev/dri/renderD128".into()], machine.path());
        assert_eq!(texts(&all), ["/dev/dri/renderD128", "/dev/kfd"]);
        let all = with_drivers(&["/dev/dri/renderD129".into()], machine.path());
        assert_eq!(texts(&all), ["/dev/dri/renderD129"]);
    }

    #[test]
    fn programs_are_told_the_numbers_that_their_own_cards_have_in_the_jail() {
        let machine = machine();
        let told = |devices: &[&str]| {
            let devices: Vec<_> = devices.iter().map(PathBuf::from).collect();
            let told = variables(&devices, machine.path());
            told.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let one = ["CUDA_VISIBLE_DEVICES=0", "NVIDIA_VISIBLE_DEVICES=0"];
        assert_eq!(told(&["/dev/nvidia1"]), one);
        let mixed = told(&["/dev/nvidia0", "/dev/nvidia1", "/dev/dri/renderD128"]);
        let expected = [
            "CUDA_VISIBLE_DEVICES=0,1",
            "NVIDIA_VISIBLE_DEVICES=0,1",
            "ROCR_VISIBLE_DEVICES=0",
            "HIP_VISIBLE_DEVICES=0",
        ];
        assert_eq!(mixed, expected);
        assert_eq!(told(&["/dev/dri/renderD129"]), ["ONEAPI_DEVICE_SELECTOR=level_zero:0"]);
        assert_eq!(told(&[]), [""; 0]);
    }

    #[test]
    fn of_the_system_the_granted_card_is_seen_and_no_other_one() {
        let machine = machine();
        let seen = Seen::of(&["/dev/nvidia0".into()], machine.path());
        let folders = ["sys/devices/system/cpu", "sys/devices/pci0000:40/0000:81:00.0"];
        assert_eq!(texts(&seen.folders), folders);
        let links: Vec<_> = seen.links.iter().map(|(at, _)| at.to_str().unwrap()).collect();
        assert_eq!(links, ["sys/bus/pci/devices/0000:81:00.0"]);
        let seen = Seen::of(&["/dev/dri/renderD128".into()], machine.path());
        let card = "sys/devices/pci0000:00/0000:03:00.0";
        assert_eq!(texts(&seen.folders), [folders[0], card, "sys/devices/virtual/kfd"]);
        for (at, target) in &seen.links {
            // From where the link lies, it leads to what is shown.
            let there = machine.path().join(at.parent().unwrap()).join(target);
            let there = there.canonicalize().unwrap();
            let there = there.strip_prefix(machine.path().canonicalize().unwrap()).unwrap();
            assert!(seen.folders.iter().any(|folder| there.starts_with(folder)), "{at:?}");
        }
        assert_eq!(seen.links.len(), 4);
    }
}
