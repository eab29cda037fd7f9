//! Sites on machines of their own, as far as the kernel can make them: networks joined by a bridge, where
//! mDNS finds the others, and a disk that fills up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Mesh, Running, SOON, Site, alone, borrower, finish, lender, list, names_in};
use crate::harness::{tasks, wait_until};
use crate::render::{assert_frames, write_scene};

/// A process that keeps namespaces open: it sleeps in them.
#[derive(Debug)]
pub(crate) struct Space(Running);

fn is_root() -> bool {
    finish(Command::new("id").arg("-u")).out.trim() == "0"
}

impl Space {
    /// New namespaces, by flags of `unshare`, in a user namespace of its own unless we are root.
    pub(crate) fn new(kinds: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args((!is_root()).then_some("--map-root-user")).args(kinds);
        Self::hold(command)
    }

    /// A new network next to this one.
    fn network(&self) -> Self {
        let enter = self.enter(&["--net"]);
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).args(["unshare", "--net"]);
        Self::hold(command)
    }

    fn hold(mut command: Command) -> Self {
        let holder = Running::start(command.args(["sleep", "infinity"]).stdin(Stdio::null()));
        let line = PathBuf::from(format!("/proc/{}/cmdline", holder.id()));
        wait_until("the namespaces are there", SOON, || {
            let line = fs::read(&line).unwrap_or_default();
            line.starts_with(b"sleep\0").then_some(())
        });
        Self(holder)
    }

    /// The words in front of a command that is to run inside.
    pub(crate) fn enter(&self, kinds: &[&str]) -> Vec<String> {
        let mut words = vec!["nsenter".to_owned(), "--target".to_owned(), self.0.id().to_string()];
        if !is_root() {
            words.extend(["--user", "--preserve-credentials"].map(str::to_owned));
        }
        words.extend(kinds.iter().map(|kind| (*kind).to_owned()));
        words
    }

    /// Runs a shell command inside.
    pub(crate) fn shell(&self, kinds: &[&str], script: &str) {
        let enter = self.enter(kinds);
        let mut command = Command::new(&enter[0]);
        let ran = finish(command.args(&enter[1..]).args(["sh", "-ec", script]));
        assert_eq!(ran.code, 0, "{script}: {ran:?}");
    }
}

/// Networks of their own with addresses 10.77.0.1 and so on, joined by a bridge in the first of the spaces.
fn bridged(n: usize) -> (Space, Vec<Space>) {
    let bridge = Space::new(&["--net"]);
    bridge.shell(&["--net"], "ip link add br0 type bridge mcast_snooping 0; ip link set br0 up");
    let spaces: Vec<_> = (1..=n).map(|_| bridge.network()).collect();
    for (i, space) in (1..).zip(&spaces) {
        let pid = space.0.id();
        let cable = format!("ip link add port{i} type veth peer name eth0 netns {pid}");
        let plug = format!("{cable}; ip link set port{i} master br0 up");
        bridge.shell(&["--net"], &plug);
        let address = format!("ip address add 10.77.0.{i}/24 dev eth0");
        space.shell(&["--net"], &format!("ip link set lo up; {address}; ip link set eth0 up"));
    }
    (bridge, spaces)
}

/// Moves a stopped site to another network, where it listens at `address` and looks for others by mDNS.
fn move_to(site: &mut Site, space: &Space, address: &str) {
    let file = site.home.join("meshfarm.toml");
    let old = fs::read_to_string(&file).expect("it is a home");
    let lines = old.lines().map(|line| match line.split(' ').next() {
        Some("listen") => format!("listen = [\"/ip4/{address}/tcp/4510\"]"),
        Some("mdns") => "mdns = true".to_owned(),
        _ => line.to_owned(),
    });
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).expect("it is ours");
    site.within = space.enter(&["--net"]);
}

#[test]
fn members_find_each_other_by_mdns_alone_in_a_network_that_they_have_never_been_in() {
    let (_bridge, spaces) = bridged(3);
    let plans = vec![borrower("oslo"), lender("lyon", 1), lender("kyoto", 1)];
    let mut mesh = Mesh::of(plans);
    for site in mesh.iter_mut() {
        site.stop();
    }
    for (i, (site, space)) in (1..).zip(mesh.iter_mut().zip(&spaces)) {
        move_to(site, space, &format!("10.77.0.{i}"));
        site.start();
    }

    mesh.wait_known();

    let scene = write_scene(&mesh.new_folder("shot"));
    let out = mesh.new_folder("frames");
    let (source, folder) = (scene.to_str().unwrap(), out.to_str().unwrap());
    let flags = ["--frames", "1-4", "--resolution", "160x120", "--output", folder];
    let job = mesh[0].submit(&[&[source][..], &flags].concat());
    mesh[0].wait_done(&job);
    assert_frames(&scene, 4, &out);
}

/// A disk of its own for a site's home, whose size can be changed.
struct Disk {
    space: Space,
    folder: PathBuf,
}

impl Disk {
    /// A disk with room at `folder`.
    fn at(folder: &Path) -> Self {
        let space = Space::new(&["--mount"]);
        let disk = Self { space, folder: folder.to_owned() };
        let at = folder.display();
        disk.space.shell(&["--mount"], &format!("mount -t tmpfs -o size=8G,mode=700 none {at}"));
        disk
    }

    /// Leaves so many bytes free beyond what is used.
    fn leave(&self, free: u64) {
        let at = self.folder.display();
        let used = format!("$(( $(df --output=used -B1 {at} | tail -n 1) + {free} ))");
        // The node goes on writing, so what was used is more a moment later.
        let mount = format!("mount --options-mode ignore -o remount,size={used} {at}");
        let script =
            format!("for try in $(seq 100); do {mount} 2>/dev/null && exit; done; {mount}");
        self.space.shell(&["--mount"], &script);
    }

    /// The folder as everybody else sees it.
    fn seen_by_others(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.space.0.id()));
        root.join(self.folder.strip_prefix("/").expect("it is absolute"))
    }
}

/// Submits a command with one task whose output is worth a few chunks.
fn submit_from(site: &Site, out: &Path, frames: &str) -> crate::harness::Ran {
    let command = "Command=head -c 3000000 /dev/urandom > {frame4}.bin";
    let out = out.to_str().unwrap();
    site.run(&["--quiet", "submit", "bundle:command", "--frames", frames, "-p", command, "-o", out])
}

#[test]
fn a_lender_whose_disk_is_full_takes_no_more_work_until_there_is_room_again() {
    let mut mesh = Mesh::apart(vec![borrower("oslo")]);
    let disk = Disk::at(&mesh.new_folder("d"));
    let mut plan = lender("lyon", 1);
    plan.within = disk.space.enter(&["--mount"]);
    mesh.add_on(plan, &disk.folder, disk.seen_by_others());
    mesh.join();
    disk.leave(100 << 20);
    wait_until("lyon has seen it", SOON, || {
        mesh[1].log().contains("the disk of this node's home").then_some(())
    });

    let out = mesh.new_folder("out");
    let submitted = submit_from(&mesh[0], &out, "1-2");
    assert_eq!(submitted.code, 0, "{submitted:?}");
    let job = submitted.out.trim().to_owned();
    let why = wait_until("oslo knows why", SOON, || {
        let view = mesh[0].job(&job);
        let why = list(&view["steps"][0]["why"]).iter().find(|why| why["site"] == "lyon")?.clone();
        (!why["reason"].is_null()).then_some(why)
    });
    eprintln!("{why}");
    assert!(tasks(&mesh[0].job(&job)).iter().all(|task| task["state"] == "waiting"));

    disk.leave(7 << 30);
    mesh[0].wait_done(&job);
    assert_eq!(names_in(&out), ["0001.bin", "0002.bin"]);
}

#[test]
fn a_site_whose_disk_is_full_takes_no_job_in_and_loses_none_that_it_has() {
    let mut mesh = Mesh::apart(vec![alone("lyon", 1)]);
    let disk = Disk::at(&mesh.new_folder("d"));
    let mut plan = alone("oslo", 1);
    plan.within = disk.space.enter(&["--mount"]);
    mesh.add_on(plan, &disk.folder, disk.seen_by_others());
    let out = mesh.new_folder("out");
    let oslo = &mesh[1];
    let job = submit_from(oslo, &out, "1-30");
    assert_eq!(job.code, 0, "{job:?}");
    let id = job.out.trim();
    wait_until("a frame is done", SOON, || (oslo.job(id)["done"].as_u64() > Some(0)).then_some(()));

    // Not even the node's own records fit.
    disk.leave(16 << 10);
    let refused = submit_from(oslo, &out, "1");
    assert!(refused.code == 1 || refused.code == 2, "{refused:?}");
    assert!(refused.err.contains("disk") && refused.err.contains("full"), "{refused:?}");

    disk.leave(7 << 30);
    let done = oslo.wait_done(id);
    assert_eq!(tasks(&done).len(), 30);
    assert_eq!(names_in(&out).len(), 30);
    assert!(mesh[1].is_alive());
}
