//! The graphics cards of this machine, as their drivers tell, in the order in which its profile counts them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::command::output_of;

/// The tool loads the driver when nothing else has, which takes seconds.
const TOOL_TIMEOUT: Duration = Duration::from_secs(20);

/// More cards than this are not listed.
const MAX_GPUS: usize = 64;

/// One graphics card that programs can compute on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Who made it.
    pub vendor: &'static str,
    /// What it is called; empty when the driver does not say.
    pub model: String,
    /// Its memory in MiB; zero when the driver does not say.
    pub memory_mib: u64,
    /// The driver's version; empty when unknown.
    pub driver: String,
    /// Its device file, such as `/dev/nvidia0`.
    pub device: PathBuf,
}

/// Every graphics card whose driver is loaded. NVIDIA's come first, each maker's in the order of their device files.
fn list() -> Vec<Gpu> {
    let mut gpus = Vec::new();
    if Path::new("/proc/driver/nvidia").exists() || Path::new("/dev/nvidiactl").exists() {
        let tool = [
            "nvidia-smi",
            "--query-gpu=pci.bus_id,name,memory.total,driver_version",
            "--format=csv,noheader,nounits",
        ];
        let said = output_of(&tool.map(str::to_owned), TOOL_TIMEOUT).unwrap_or_default();
        gpus = nvidia(&said, Path::new("/"));
    }
    gpus.extend(drm(Path::new("/")));
    gpus.truncate(MAX_GPUS);
    gpus
}

/// The graphics cards of this machine: looked for once, so that the numbers in its profile keep their meaning.
#[derive(Debug, Default)]
pub struct Cards(OnceLock<Vec<Gpu>>);

impl Cards {
    /// All of them. Blocks at first, for as long as a driver takes to answer.
    #[must_use]
    pub fn all(&self) -> &[Gpu] {
        self.0.get_or_init(list)
    }

    /// The device files of the cards that a session was given by their numbers in the profile.
    ///
    /// # Errors
    /// Which card is gone, for people.
    pub(crate) fn devices_of(&self, given: &[u32]) -> Result<Vec<PathBuf>, String> {
        if given.is_empty() { Ok(Vec::new()) } else { devices_of(self.all(), given) }
    }
}

fn devices_of(cards: &[Gpu], given: &[u32]) -> Result<Vec<PathBuf>, String> {
    let devices = given.iter().map(|number| {
        let gone = |what: String| {
            format!(
                "graphics card {number} of this machine, which the task was given, is gone: {what}"
            )
        };
        let card = usize::try_from(*number).ok().and_then(|number| cards.get(number));
        let card = card.ok_or_else(|| gone(format!("it has {} now", cards.len())))?;
        match fs::metadata(&card.device) {
            Ok(_there) => Ok(card.device.clone()),
            Err(error) => {
                let text = format!("{}: {error}; is its driver loaded?", card.device.display());
                Err(gone(text))
            }
        }
    });
    devices.collect()
}

/// NVIDIA's cards that have a device file, with what `nvidia-smi` says of them: address, name, memory, driver. The tool
/// may be missing, as in a container, and numbers them in another order.
fn nvidia(said: &str, root: &Path) -> Vec<Gpu> {
    let nodes = (0..MAX_GPUS).filter(|n| root.join(format!("dev/nvidia{n}")).exists());
    let nodes: Vec<usize> = nodes.collect();
    let minors = minors(root);
    let rows: Vec<Vec<&str>> =
        said.lines().map(|line| line.split(',').map(str::trim).collect()).collect();
    let rows: Vec<_> = rows.iter().filter(|row| row.len() == 4).collect();
    let gpus = nodes.iter().enumerate().map(|(position, node)| {
        let same = |row: &&&Vec<&str>| {
            let minor = minors.iter().find(|(address, _)| is_same(address, row[0]));
            minor.is_some_and(|(_, minor)| minor == node)
        };
        let row = rows.iter().find(same);
        // Without the driver's list the tool's order is the best guess, and all that depends on it is a name.
        let row = row.or_else(|| rows.get(position).filter(|_| minors.is_empty()));
        let cell = |n: usize| row.map_or("", |row| row[n]).to_owned();
        Gpu {
            vendor: "nvidia",
            model: cell(1),
            // A card with shared memory has none of its own to tell.
            memory_mib: cell(2).parse().unwrap_or(0),
            driver: cell(3),
            device: PathBuf::from(format!("/dev/nvidia{node}")),
        }
    });
    gpus.collect()
}

/// The bus addresses of NVIDIA's cards and the numbers of their device files.
fn minors(root: &Path) -> Vec<(String, usize)> {
    let cards = fs::read_dir(root.join("proc/driver/nvidia/gpus")).into_iter().flatten().flatten();
    let minors = cards.filter_map(|card| {
        let about = fs::read_to_string(card.path().join("information")).ok()?;
        let line = about.lines().find_map(|line| line.strip_prefix("Device Minor:"))?;
        Some((card.file_name().into_string().ok()?, line.trim().parse().ok()?))
    });
    minors.collect()
}

/// Whether two spellings are of one bus address: the tool writes the domain with more digits, and in capitals.
fn is_same(one: &str, other: &str) -> bool {
    let plain = |text: &str| text.trim_start_matches('0').to_lowercase();
    plain(one) == plain(other)
}

/// AMD's and Intel's cards, by what their drivers show in the system's tree.
fn drm(root: &Path) -> Vec<Gpu> {
    let folder = root.join("sys/class/drm");
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let nodes = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix("renderD")?.parse::<u32>().ok()
    });
    let mut nodes: Vec<u32> = nodes.collect();
    nodes.sort_unstable();
    let gpus = nodes.into_iter().filter_map(|node| {
        let at = folder.join(format!("renderD{node}")).join("device");
        let device = PathBuf::from(format!("/dev/dri/renderD{node}"));
        let read = |file: &str| fs::read_to_string(at.join(file)).unwrap_or_default();
        let (vendor, bytes) = match read("vendor").trim() {
            "0x1002" => ("amd", read("mem_info_vram_total").trim().parse::<u64>().ok()?),
            "0x8086" => ("intel", own_memory(&at, &read("resource"))?),
            _ => return None,
        };
        let model = read("product_name").trim().to_owned();
        Some(Gpu { vendor, model, memory_mib: bytes >> 20, driver: String::new(), device })
    });
    gpus.collect()
}

/// The memory of one of Intel's cards, by the size of its third resource, in which it lies. None for the graphics of a
/// processor, which sit on the first bus and have none.
fn own_memory(device: &Path, resources: &str) -> Option<u64> {
    let address = device.canonicalize().ok()?.file_name()?.to_str()?.to_owned();
    if address.split(':').nth(1) == Some("00") {
        return None;
    }
    let line = resources.lines().nth(2)?;
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let mut words = line.split_whitespace();
    let (first, last) = (number(words.next()?)?, number(words.next()?)?);
    (last > first).then(|| last - first + 1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn nvidias_cards_are_those_with_device_files_and_are_told_apart_by_their_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let said = "00000000:41:00.0, NVIDIA H200, 143771, 570.86.15\n\
            00000000:8A:00.0, NVIDIA GB10, [N/A], 570.86.15\nno devices\n";
        assert_eq!(nvidia(said, root), []);
        write(&root.join("dev/nvidia0"), "");
        write(&root.join("dev/nvidia1"), "");
        write(&root.join("dev/nvidiactl"), "");
        let models = || nvidia(said, root).into_iter().map(|gpu| gpu.model).collect::<Vec<_>>();
        assert_eq!(models(), ["NVIDIA H200", "NVIDIA GB10"]);
        for (address, minor) in [("0000:41:00.0", 1), ("0000:8a:00.0", 0)] {
            let about = root.join(format!("proc/driver/nvidia/gpus/{address}/information"));
            write(&about, &format!("Model: \t X\nDevice Minor: \t {minor}\n"));
        }
        assert_eq!(models(), ["NVIDIA GB10", "NVIDIA H200"]);
        let gpus = nvidia(said, root);
        assert_eq!((gpus[0].memory_mib, gpus[1].memory_mib), (0, 143_771));
        assert_eq!(gpus[1].device, Path::new("/dev/nvidia1"));
        // The tool is missing.
        assert_eq!(nvidia("", root).len(), 2);
    }

    #[test]
    fn other_cards_are_read_from_the_systems_tree_and_a_processors_own_graphics_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let none = "0x0 0x0 0x0\n";
        let with_memory = format!("{none}{none}0x6000000000 0x63ffffffff 0x14220c\n");
        for (node, address, vendor, resource) in [
            (130, "0000:03:00.0", "0x8086", with_memory.as_str()),
            (129, "0000:00:02.0", "0x8086", with_memory.as_str()),
            (128, "0000:05:00.0", "0x1002", none),
            (131, "0000:06:00.0", "0x10de", none),
        ] {
            let card = root.join("sys/devices/pci0000:00").join(address);
            write(&card.join("vendor"), &format!("{vendor}\n"));
            write(&card.join("resource"), resource);
            let class = root.join(format!("sys/class/drm/renderD{node}"));
            fs::create_dir_all(&class).unwrap();
            symlink(&card, class.join("device")).unwrap();
        }
        let devices = || drm(root).into_iter().map(|gpu| gpu.device).collect::<Vec<_>>();
        assert_eq!(devices(), [Path::new("/dev/dri/renderD130")]);
        assert_eq!(drm(root)[0].memory_mib, 16 << 10);
        let amd = root.join("sys/devices/pci0000:00/0000:05:00.0/mem_info_vram_total");
        write(&amd, "17163091968\n");
        assert_eq!(devices(), ["/dev/dri/renderD128", "/dev/dri/renderD130"].map(PathBuf::from));
        assert_eq!((drm(root)[0].vendor, drm(root)[0].memory_mib), ("amd", 16368));
    }

    #[test]
    fn a_card_that_is_gone_is_named() {
        let card = |device: &str| Gpu {
            vendor: "nvidia",
            model: String::new(),
            memory_mib: 0,
            driver: String::new(),
            device: device.into(),
        };
        let cards = [card("/dev/null"), card("/dev/nvidia9999")];
        assert_eq!(devices_of(&cards, &[0]), Ok(vec![PathBuf::from("/dev/null")]));
        let error = devices_of(&cards, &[0, 1]).unwrap_err();
        assert!(error.contains("graphics card 1") && error.contains("/dev/nvidia9999"), "{error}");
        let error = devices_of(&cards, &[2]).unwrap_err();
        assert!(error.contains("graphics card 2") && error.contains("it has 2"), "{error}");
    }
}
