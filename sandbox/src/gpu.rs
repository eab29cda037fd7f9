//! Graphics cards in the jail: which device files may be shown, and what the drivers need beside them.

use std::path::{Path, PathBuf};

/// Device files that every NVIDIA driver opens, whichever card is used.
const NVIDIA_SHARED: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];
/// What AMD's compute driver opens.
const AMD_SHARED: &str = "/dev/kfd";

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

/// The granted devices and those that their drivers need beside them; `exists` tells which are there.
pub(crate) fn with_drivers(devices: &[PathBuf], exists: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let nvidia = devices.iter().any(|d| is_nvidia(d));
    let render = devices.iter().any(|d| !is_nvidia(d));
    let shared = NVIDIA_SHARED
        .iter()
        .filter(|_| nvidia)
        .chain(Some(&AMD_SHARED).filter(|_| render))
        .map(PathBuf::from)
        .filter(|path| exists(path));
    devices.iter().cloned().chain(shared).collect()
}

/// Whether a device belongs to NVIDIA's driver, which also looks into `/proc/driver`.
pub(crate) fn is_nvidia(device: &Path) -> bool {
    device.to_str().is_some_and(|path| path.starts_with("/dev/nvidia"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn only_the_granted_card_comes_with_what_its_driver_opens() {
        let all = with_drivers(&["/dev/nvidia1".into()], |_| true);
        let names: Vec<_> = all.iter().map(|p| p.to_str().unwrap()).collect();
        let expected =
            ["/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];
        assert_eq!(names, expected);
        let all = with_drivers(&["/dev/dri/renderD128".into()], |path| path.ends_with("kfd"));
        assert_eq!(all, [Path::new("/dev/dri/renderD128"), Path::new("/dev/kfd")]);
    }
}
