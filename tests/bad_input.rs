//! Whatever is wrong with what a node is given: a clear word, the documented exit code, nothing changed.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde_json::Value;

use crate::harness::{
    Mesh, Ran, SOON, Site, alone, borrower, folder, lender, list, names_in, text,
};
use crate::harness::{wait_until, write};
use crate::render::{assert_frames, write_scene};

/// Submits what is wrong, and sees that no job came of it.
#[track_caller]
fn submit_wrongly(site: &Site, args: &[&str], words: &[&str]) {
    let refused = site.run(&[&["submit"][..], args].concat());
    refused.refused(2, words);
    assert_eq!(site.json(&["jobs"]), Value::Array(Vec::new()));
}

/// A template whose only step runs `sh`, with more lines at its top level.
fn template(mesh: &Mesh, name: &str, head: &str, tail: &str) -> String {
    let path = mesh.folder().join(name);
    let step = "steps:\n  - name: Only\n    script: {actions: {onRun: {command: sh}}}\n";
    write(&path, format!("{head}\nname: Broken\n{step}{tail}\n"));
    path.to_str().unwrap().to_owned()
}

const VERSION: &str = "specificationVersion: jobtemplate-2023-09";

#[test]
fn a_template_that_is_wrong_is_refused_with_its_file_and_element() {
    let mesh = Mesh::of(vec![alone("oslo", 1)]);
    let oslo = &mesh[0];
    let broken = mesh.folder().join("broken.yaml");
    write(&broken, format!("{VERSION}\nname: [unclosed\nsteps: }}\n"));
    submit_wrongly(oslo, &[broken.to_str().unwrap()], &["broken.yaml", "line"]);
    let old = template(&mesh, "old.yaml", "specificationVersion: jobtemplate-1999-01", "");
    submit_wrongly(oslo, &[&old], &["old.yaml", "jobtemplate-1999-01"]);
    let key = template(&mesh, "key.yaml", VERSION, "colour: red");
    submit_wrongly(oslo, &[&key], &["key.yaml", "colour"]);
    let empty = mesh.new_folder("empty");
    submit_wrongly(oslo, &[empty.to_str().unwrap()], &["empty", "template.yaml"]);
    submit_wrongly(oslo, &["bundle:nothing"], &["bundle:nothing"]);
    let odd = mesh.folder().join("scene.xyz");
    write(&odd, "?");
    submit_wrongly(oslo, &[odd.to_str().unwrap()], &["scene.xyz", "pov", "blend"]);
    let bundle = mesh.new_folder("policy");
    write(
        &bundle.join("template.yaml"),
        fs::read(template(&mesh, "ok.yaml", VERSION, "")).unwrap(),
    );
    write(&bundle.join("mesh.toml"), "priority = 'high'\n");
    submit_wrongly(oslo, &[bundle.to_str().unwrap()], &["mesh.toml", "priority"]);
}

#[test]
fn files_and_folders_that_are_not_there_or_not_writable_are_named() {
    let mesh = Mesh::of(vec![alone("oslo", 1)]);
    let oslo = &mesh[0];
    let gone = mesh.folder().join("gone.pov");
    submit_wrongly(oslo, &[gone.to_str().unwrap()], &["gone.pov"]);
    let scene = write_scene(&mesh.new_folder("shot"));
    let scene = scene.to_str().unwrap();
    let texture = mesh.folder().join("grain.png");
    submit_wrongly(oslo, &[scene, "--input", texture.to_str().unwrap()], &["grain.png"]);
    // Nobody, not even root, can make a folder in a file or in /proc.
    let file = format!("{scene}/frames");
    submit_wrongly(oslo, &[scene, "--output", &file], &["ball.pov", "--output"]);
    submit_wrongly(oslo, &[scene, "--output", "/proc/frames"], &["/proc", "--output"]);
    submit_wrongly(oslo, &[scene, "--frames", "5-"], &["--frames"]);
    submit_wrongly(oslo, &[scene, "-p", "Colour=red"], &["Colour"]);
    submit_wrongly(oslo, &[scene, "-p", "Quality=12"], &["Quality", "11"]);
    submit_wrongly(oslo, &[scene, "--where", "a b c/d"], &["--where"]);
    let include = Path::new(scene).with_file_name("colours").join("paint.inc");
    fs::remove_file(include).unwrap();
    let bundle = mesh.new_folder("bundle");
    let template = template(&mesh, "bundle/template.yaml", VERSION, "");
    let assets = "assetReferences: {inputs: {filenames: [wood.jpg], directories: []}}\n";
    write(&bundle.join("asset_references.yaml"), assets);
    submit_wrongly(oslo, &[&template], &["wood.jpg", "asset_references.yaml"]);
}

#[test]
fn a_ticket_that_does_not_count_any_more_is_refused_and_changes_nothing() {
    let mesh = Mesh::apart(vec![borrower("oslo"), lender("lyon", 1), lender("kyoto", 1)]);
    let (oslo, lyon, kyoto) = (&mesh[0], &mesh[1], &mesh[2]);
    oslo.json(&["mesh", "create", "demo"]);
    let ticket =
        |flags: &[&str]| text(&oslo.json(&[&["invite"][..], flags].concat())["ticket"]).to_owned();
    let nothing = || Value::Array(Vec::new());
    let brief = ticket(&["--expires", "1s"]);
    thread::sleep(Duration::from_millis(1100));
    lyon.run(&["join", &brief]).refused(2, &["expired"]);
    let once = ticket(&[]);
    let mut garbled = once.clone().into_bytes();
    garbled[30] = if garbled[30] == b'a' { b'b' } else { b'a' };
    let garbled = String::from_utf8(garbled).unwrap();
    lyon.run(&["join", &garbled]).refused(2, &["garbled"]);
    lyon.run(&["join", &once[..once.len() / 2]]).refused(2, &["ticket"]);
    lyon.run(&["join", "meshfarm"]).refused(2, &["ticket"]);
    assert_eq!(lyon.json(&["mesh"]), nothing());
    lyon.json(&["join", &once]);
    kyoto.run(&["join", &once]).refused(2, &["used up"]);
    assert_eq!(kyoto.json(&["mesh"]), nothing());
    lyon.run(&["join", &ticket(&[])]).refused(2, &["demo"]);
    lyon.run(&["invite"]).refused(2, &["demo"]);
    oslo.run(&["invite", "--mesh", "other"]).refused(2, &["other"]);
    oslo.run(&["mesh", "create", "demo"]).refused(2, &["demo"]);
}

#[test]
fn a_site_of_another_mesh_gets_nothing_even_when_it_knows_the_address() {
    let mut mesh = Mesh::of(vec![alone("oslo", 1), alone("lyon", 1)]);
    let stranger = folder();
    let mut kyoto = Site::init(stranger.path(), lender("kyoto", 1));
    let config = kyoto.home.join("meshfarm.toml");
    let address = format!("bootstrap = [\"/ip4/127.0.0.1/tcp/{}\"]", mesh[0].port);
    let settings = fs::read_to_string(&config).unwrap().replace("bootstrap = []", &address);
    fs::write(&config, settings).unwrap();
    kyoto.start();
    kyoto.json(&["mesh", "create", "other"]);

    wait_until("kyoto was told", SOON, || {
        kyoto.log().contains("a node does not accept this site").then_some(())
    });
    assert_eq!(kyoto.known(), Vec::<String>::new());
    assert_eq!(mesh[0].known(), ["lyon"]);
    assert!(mesh[0].is_alive());
}

/// Files of a folder and the folders in it, with their content.
fn everything_in(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for name in names_in(folder) {
        let path = folder.join(name);
        if path.is_dir() {
            all.extend(everything_in(&path));
        } else if path.is_file() {
            all.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    all
}

#[test]
fn a_home_has_one_node_and_a_port_one_owner() {
    let mesh = Mesh::of(vec![alone("oslo", 1)]);
    let oslo = &mesh[0];
    let home = oslo.home.to_str().unwrap().to_owned();
    let second = oslo.run(&["node"]);
    second.refused(2, &[&home, &oslo.pid().to_string()]);
    oslo.run(&["init", "--name", "oslo"]).refused(2, &[&home]);

    let mut plan = alone("lyon", 1);
    plan.listen = Some(format!("/ip4/127.0.0.1/tcp/{}", oslo.port));
    let lyon = Site::init(mesh.folder(), plan);
    lyon.run(&["node"]).refused(2, &[&oslo.port.to_string(), "in use"]);
    lyon.run(&["jobs"]).refused(3, &["no node is running", "lyon"]);
    assert_eq!(oslo.json(&["jobs"]), Value::Array(Vec::new()));
}

#[test]
fn settings_that_mean_nothing_are_named_with_their_file_and_key() {
    let place = folder();
    let site = Site::init(place.path(), alone("oslo", 1));
    let file = site.home.join("meshfarm.toml");
    let good = fs::read_to_string(&file).unwrap();
    let said = |settings: String| -> Ran {
        fs::write(&file, settings).unwrap();
        site.run(&["node"])
    };
    said(good.replace("slots", "slotz")).refused(2, &["meshfarm.toml", "slotz"]);
    said(good.replace("slots = 1", "slots = 'x'")).refused(2, &["meshfarm.toml", "slots"]);
    said(good.replace("/tcp/", "/tpc/")).refused(2, &["meshfarm.toml", "listen", "/tpc/"]);
    said("name = \"\"".to_owned()).refused(2, &["meshfarm.toml", "name"]);
    fs::remove_file(&file).unwrap();
    site.run(&["node"]).refused(2, &["no meshfarm home"]);
}

#[test]
fn a_home_of_a_newer_version_is_refused_and_left_as_it_is() {
    let place = folder();
    let mut site = Site::init(place.path(), alone("oslo", 1));
    site.start();
    site.stop();
    let records = site.home.join("store/records");
    {
        let options = rocksdb::Options::default();
        let families = rocksdb::DB::list_cf(&options, &records).unwrap();
        let store = rocksdb::DB::open_cf(&options, &records, families).unwrap();
        let meta = store.cf_handle("meta").unwrap();
        assert_eq!(store.get_cf(meta, "format").unwrap().unwrap(), 1_u32.to_be_bytes());
        store.put_cf(meta, "format", 1000_u32.to_be_bytes()).unwrap();
    }
    let before = everything_in(&records);

    site.run(&["node"]).refused(2, &["newer meshfarm", "1000"]);

    let kept = |(path, _): &&(PathBuf, Vec<u8>)| {
        !path.file_name().unwrap().to_string_lossy().starts_with("LOG")
    };
    let after = everything_in(&records);
    assert!(before.iter().filter(kept).eq(after.iter().filter(kept)), "the records were changed");
}

/// What a port scanner, a lost browser and a broken peer send.
fn noise(seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let heads: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n",
        b"POST /v1/jobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    ];
    let mut bytes = heads[usize::try_from(rng.next_u64() % 5).unwrap()].to_vec();
    let mut tail = vec![0; usize::try_from(rng.next_u64() % 20_000).unwrap()];
    rng.fill_bytes(&mut tail);
    bytes.extend(tail);
    bytes
}

/// Sends bytes; the other end may hang up at any moment.
fn throw(mut at: impl Read + Write, bytes: &[u8]) {
    drop(at.write_all(bytes).and_then(|()| at.flush()));
    let mut answer = [0; 256];
    drop(at.read(&mut answer));
}

#[test]
fn random_bytes_on_every_port_and_on_the_socket_do_not_disturb_a_node() {
    let mut mesh = Mesh::of(vec![borrower("oslo"), lender("lyon", 1)]);
    let patience = Some(Duration::from_millis(50));
    for seed in 0..60 {
        for site in mesh.iter() {
            let port = TcpStream::connect(("127.0.0.1", site.port)).unwrap();
            port.set_read_timeout(patience).unwrap();
            throw(port, &noise(seed));
            let socket = UnixStream::connect(site.home.join("api.sock")).unwrap();
            socket.set_read_timeout(patience).unwrap();
            throw(socket, &noise(seed + 1000));
        }
    }
    let scene = write_scene(&mesh.new_folder("shot"));
    let out = mesh.new_folder("frames");
    let (source, folder) = (scene.to_str().unwrap(), out.to_str().unwrap());

    let flags = ["--frames", "1-2", "--resolution", "160x120", "--output", folder];
    let job = mesh[0].submit(&[&[source][..], &flags].concat());
    mesh[0].wait_done(&job);

    assert_frames(&scene, 2, &out);
    assert_eq!(list(&mesh[0].json(&["jobs"])).len(), 1);
    assert!(mesh.iter_mut().all(Site::is_alive));
    assert!(mesh.iter().all(|site| !site.log().contains("panicked")));
}

#[test]
fn secrets_of_a_home_are_its_owners_alone() {
    let place = folder();
    let site = Site::init(place.path(), alone("oslo", 1));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&site.home), 0o700);
    for (path, _) in everything_in(&site.home.join("secrets")) {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}
