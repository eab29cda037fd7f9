//! Which files travel and where outputs return to: from paths that somebody named to the roots of a layout.
//!
//! The rules, in order:
//! 1. Output folders are roots that a job may write to; one within another is part of the outer one.
//! 2. An input that lies in an output folder is a file of that root: the job finds a copy of it there.
//!    A changed copy returns only when the parameter was `INOUT`; else the artist's file is never replaced.
//! 3. A folder that is sent as a whole leaves out what lies in an output folder within it: old frames
//!    are no input.
//! 4. Every other input lies in a read-only root: the folder that was named, or the folder of the file;
//!    one within another is part of the outer one. An output folder may lie within such a root.
//! 5. Where that makes too many roots, the deepest are replaced by their parents. Only named files
//!    travel, whatever the root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use meshfarm_protocol::job::{Access, Layout, MAX_ROOTS, PathFormat, Root};
use openjd_model::DataFlow;

use super::error::BundleError;

/// More input files than this are refused: each is an entry of the manifest.
const MAX_FILES: usize = 1_000_000;

/// Folders that are mounts of the jail themselves: no root can lie exactly there.
const RESERVED: [&str; 20] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/mnt", "/opt", "/proc",
    "/run", "/sbin", "/session", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/tmp",
];

/// Folders that the jail fills with its own system's files: nothing of a job's lies beneath them for sure.
const SYSTEM: [&str; 11] = [
    "/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/session", "/sys", "/usr",
];

/// One file that travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// Its path in the manifest: the root's id, then the path beneath the root.
    pub path: String,
    /// Where it lies on this machine.
    pub source: PathBuf,
    /// Whether a changed version may replace it. False for inputs that merely lie in an output folder:
    /// an output at their path is refused.
    pub returns: bool,
}

/// What a job reads and writes, each path with who names it.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    files: Vec<Named>,
    folders: Vec<Named>,
    outputs: Vec<Named>,
}

#[derive(Debug)]
struct Named {
    path: PathBuf,
    by: String,
    returns: bool,
}

/// The layout of a job, with its files.
#[derive(Debug)]
pub(super) struct Plan {
    /// The roots.
    pub(super) layout: Layout,
    /// The files that travel, in the order of their manifest paths.
    pub(super) inputs: Vec<InputFile>,
    /// Where each output root returns to.
    pub(super) outputs: Vec<(String, PathBuf)>,
    /// What the submitter should know.
    pub(super) warnings: Vec<String>,
}

impl Wanted {
    /// Adds what one PATH parameter says.
    pub(super) fn add(&mut self, path: PathBuf, by: String, is_file: bool, flow: DataFlow) {
        let reads = matches!(flow, DataFlow::In | DataFlow::Inout);
        let writes = matches!(flow, DataFlow::Out | DataFlow::Inout);
        let (path_in, by_in) = (path.clone(), by.clone());
        if reads && is_file {
            self.file(path_in, by_in, writes);
        } else if reads {
            self.folder(path_in, by_in, writes);
        }
        if writes && is_file {
            let folder = path.parent().unwrap_or_else(|| Path::new("/"));
            self.output(folder.to_owned(), by);
        } else if writes {
            self.output(path, by);
        }
    }

    /// Adds a file that is read.
    pub(super) fn file(&mut self, path: PathBuf, by: String, returns: bool) {
        self.files.push(Named { path, by, returns });
    }

    /// Adds a folder that is read.
    pub(super) fn folder(&mut self, path: PathBuf, by: String, returns: bool) {
        self.folders.push(Named { path, by, returns });
    }

    /// Adds a folder that is written.
    pub(super) fn output(&mut self, path: PathBuf, by: String) {
        self.outputs.push(Named { path, by, returns: true });
    }

    /// Finds the files and groups them under roots. Reads the disk and writes nothing.
    pub(super) fn plan(self) -> Result<Plan, BundleError> {
        let mut warnings = Vec::new();
        for output in &self.outputs {
            check_output(output)?;
        }
        let outputs = outermost(self.outputs.iter().map(|output| output.path.clone()));
        let mut found =
            Found { files: BTreeMap::new(), outputs: &outputs, warnings: &mut warnings };
        let mut roots = BTreeSet::new();
        for file in &self.files {
            found.file(file)?;
            roots.insert(file.path.parent().unwrap_or_else(|| Path::new("/")).to_owned());
        }
        for folder in &self.folders {
            found.folder(folder)?;
            roots.insert(folder.path.clone());
        }
        let files = found.files;
        roots.retain(|root| within(&outputs, root).is_none());
        let inputs = few(outermost(roots), MAX_ROOTS.saturating_sub(outputs.len()))?;
        for root in &inputs {
            check_input_root(root, &mut warnings)?;
        }
        let layout = layout(&inputs, &outputs)?;
        let mut plan =
            Plan { inputs: Vec::with_capacity(files.len()), outputs: Vec::new(), layout, warnings };
        for (source, returns) in files {
            plan.inputs.push(input_file(&plan.layout, source, returns)?);
        }
        plan.inputs.sort_by(|a, b| a.path.cmp(&b.path));
        let written = plan.layout.roots.iter().filter(|root| root.access == Access::Out);
        let written = written.map(|root| (root.id.clone(), PathBuf::from(&root.source)));
        plan.outputs = written.collect();
        Ok(plan)
    }
}

/// `path` as an absolute path without `.` and `..`, joined to `base` when it is relative.
///
/// `..` is taken back by name. Where a link makes that another place than the one that the system would
/// find, the real path is used, because the jail has no such link.
pub(super) fn clean(base: &Path, path: &Path) -> PathBuf {
    let joined = base.join(path);
    let mut cleaned = PathBuf::from("/");
    let mut went_up = false;
    for component in joined.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                went_up = true;
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if went_up
        && let Ok(real) = joined.canonicalize()
        && cleaned.canonicalize().ok().as_ref() != Some(&real)
    {
        return real;
    }
    cleaned
}

/// The files found so far, with whether a changed version may replace them.
struct Found<'a> {
    files: BTreeMap<PathBuf, bool>,
    outputs: &'a [PathBuf],
    warnings: &'a mut Vec<String>,
}

impl Found<'_> {
    fn add(&mut self, path: PathBuf, returns: bool) -> Result<(), BundleError> {
        *self.files.entry(path).or_insert(returns) |= returns;
        if self.files.len() > MAX_FILES {
            return Err(BundleError::TooMany {
                what: "input files",
                count: self.files.len(),
                max: MAX_FILES,
            });
        }
        Ok(())
    }

    fn file(&mut self, file: &Named) -> Result<(), BundleError> {
        let wrong = |problem: &str| BundleError::Input {
            path: file.path.clone(),
            problem: problem.into(),
            named_by: file.by.clone(),
        };
        match fs::metadata(&file.path) {
            Ok(metadata) if metadata.is_file() => self.add(file.path.clone(), file.returns),
            Ok(metadata) if metadata.is_dir() => Err(wrong("is a folder where a file is wanted")),
            Ok(_) => Err(wrong("is no ordinary file")),
            Err(error) => Err(wrong(&missing(&error))),
        }
    }

    fn folder(&mut self, folder: &Named) -> Result<(), BundleError> {
        let wrong = |path: &Path, problem: String| BundleError::Input {
            path: path.to_owned(),
            problem,
            named_by: folder.by.clone(),
        };
        let metadata = fs::metadata(&folder.path);
        let metadata = metadata.map_err(|error| wrong(&folder.path, missing(&error)))?;
        if !metadata.is_dir() {
            return Err(wrong(&folder.path, "is a file where a folder is wanted".into()));
        }
        let mut folders = vec![folder.path.clone()];
        // Folders that were reached through a link, by their real path: a link back up must end.
        let mut linked = BTreeSet::new();
        while let Some(path) = folders.pop() {
            let entries = fs::read_dir(&path).map_err(|error| wrong(&path, error.to_string()))?;
            for entry in entries {
                let entry = entry.map_err(|error| wrong(&path, error.to_string()))?;
                let path = entry.path();
                let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                let Ok(metadata) = fs::metadata(&path) else {
                    let text =
                        format!("{} is a link to nothing and does not travel", path.display());
                    self.warnings.push(text);
                    continue;
                };
                if metadata.is_dir() {
                    let known = is_link
                        && path.canonicalize().is_ok_and(|real| {
                            folder.path.starts_with(&real) || !linked.insert(real)
                        });
                    let old_frames = !folder.returns && self.outputs.contains(&path);
                    if !known && !old_frames {
                        folders.push(path);
                    }
                } else if metadata.is_file() {
                    self.add(path, folder.returns)?;
                } else {
                    let text =
                        format!("{} is no ordinary file and does not travel", path.display());
                    self.warnings.push(text);
                }
            }
        }
        Ok(())
    }
}

fn missing(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::NotFound {
        "there is no such file or folder".into()
    } else {
        format!("cannot be read: {error}")
    }
}

/// The paths of which none lies within another, in order.
fn outermost(paths: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let sorted: BTreeSet<PathBuf> = paths.into_iter().collect();
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in sorted {
        // Component by component, a folder sorts directly before everything within it.
        if !kept.last().is_some_and(|outer| path.starts_with(outer)) {
            kept.push(path);
        }
    }
    kept
}

/// The one of `roots` that `path` lies in, the innermost first.
fn within<'a>(roots: &'a [PathBuf], path: &Path) -> Option<&'a PathBuf> {
    let holding = roots.iter().filter(|root| path.starts_with(root));
    holding.max_by_key(|root| root.components().count())
}

/// At most `max` roots that hold everything in `roots`.
fn few(mut roots: Vec<PathBuf>, max: usize) -> Result<Vec<PathBuf>, BundleError> {
    while roots.len() > max {
        let depth = |root: &PathBuf| root.components().count();
        let deepest = roots.iter().map(depth).max().unwrap_or(0);
        let too_many = BundleError::TooMany { what: "separate folders", count: roots.len(), max };
        // The root itself and the folders beneath it are the system's.
        if deepest <= 3 {
            return Err(too_many);
        }
        let raised = roots.iter().map(|root| match root.parent() {
            Some(parent) if depth(root) == deepest => parent.to_owned(),
            _ => root.clone(),
        });
        roots = outermost(raised.collect::<Vec<_>>());
    }
    Ok(roots)
}

fn layout(inputs: &[PathBuf], outputs: &[PathBuf]) -> Result<Layout, BundleError> {
    let all = inputs.iter().map(|path| (path, Access::In));
    let all = all.chain(outputs.iter().map(|path| (path, Access::Out)));
    let roots = all.enumerate().map(|(i, (path, access))| {
        Ok(Root {
            id: format!("r{i}"),
            source: text_of(path)?.to_owned(),
            format: PathFormat::Posix,
            access,
        })
    });
    let roots: Vec<Root> = roots.collect::<Result<_, BundleError>>()?;
    if roots.len() > MAX_ROOTS {
        return Err(BundleError::TooMany {
            what: "separate folders",
            count: roots.len(),
            max: MAX_ROOTS,
        });
    }
    Ok(Layout { roots })
}

fn input_file(layout: &Layout, source: PathBuf, returns: bool) -> Result<InputFile, BundleError> {
    let holding = layout.roots.iter().filter(|root| source.starts_with(&root.source));
    let root = holding.max_by_key(|root| root.source.len());
    let root = root.expect("every file was found beneath a root");
    let beneath = source.strip_prefix(&root.source).expect("it starts with the root");
    Ok(InputFile {
        path: format!("{}/{}", root.id, text_of(beneath)?),
        returns: returns && root.access == Access::Out,
        source,
    })
}

fn text_of(path: &Path) -> Result<&str, BundleError> {
    path.to_str().ok_or_else(|| BundleError::Input {
        path: path.to_owned(),
        problem: "its name is not UTF-8; rename it".into(),
        named_by: "the list of files that travel".into(),
    })
}

fn check_input_root(root: &Path, warnings: &mut Vec<String>) -> Result<(), BundleError> {
    if RESERVED.iter().any(|reserved| root == Path::new(reserved)) {
        return Err(BundleError::Reserved { path: root.to_owned() });
    }
    if SYSTEM.iter().any(|system| root.starts_with(system)) {
        warnings.push(format!(
            "{} lies in a system folder, where another site may be unable to show it; better copy the scene elsewhere",
            root.display()
        ));
    }
    Ok(())
}

fn check_output(output: &Named) -> Result<(), BundleError> {
    let path = &output.path;
    let wrong = |problem: String| BundleError::Output {
        path: path.clone(),
        problem,
        named_by: output.by.clone(),
    };
    if RESERVED.iter().any(|reserved| path == Path::new(reserved)) {
        return Err(BundleError::Reserved { path: path.clone() });
    }
    if SYSTEM.iter().any(|system| path.starts_with(system)) {
        return Err(wrong("lies in a system folder".into()));
    }
    let mut there = path.as_path();
    while !there.exists() {
        there = there.parent().unwrap_or_else(|| Path::new("/"));
    }
    if !there.is_dir() {
        return Err(wrong(format!("{} is no folder", there.display())));
    }
    let access = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
    nix::unistd::access(there, access).map_err(|error| {
        if there == path {
            wrong(format!("cannot be written: {}", error.desc()))
        } else {
            let error = error.desc();
            wrong(format!("cannot be made in {}: {error}", there.display()))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Disk(tempfile::TempDir);

    impl Disk {
        fn new(files: &[&str]) -> Self {
            let disk = Self(tempfile::tempdir().unwrap());
            for file in files {
                let path = disk.at(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, file).unwrap();
            }
            disk
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Roots as `id access path` and inputs as `path`, with `*` behind those that return.
        fn shown(&self, plan: &Plan) -> (Vec<String>, Vec<String>) {
            let top = self.0.path().to_str().unwrap();
            let roots = plan.layout.roots.iter().map(|root| {
                let source = root.source.strip_prefix(top).unwrap();
                format!("{} {:?} {source}", root.id, root.access)
            });
            let inputs = plan.inputs.iter().map(|input| {
                let star = if input.returns { "*" } else { "" };
                format!("{}{star}", input.path)
            });
            (roots.collect(), inputs.collect())
        }

        fn plan(&self, wanted: &[(&str, bool, DataFlow)]) -> Result<Plan, BundleError> {
            let mut all = Wanted::default();
            for (path, is_file, flow) in wanted {
                all.add(self.at(path), "a test".into(), *is_file, *flow);
            }
            all.plan()
        }
    }

    #[test]
    fn only_named_files_travel_and_nested_folders_are_one_root() {
        let disk = Disk::new(&["shot/a.pov", "shot/secret", "shot/tex/t.png", "lib/x/y.inc"]);
        let plan = disk.plan(&[
            ("shot/a.pov", true, DataFlow::In),
            ("shot/tex", false, DataFlow::In),
            ("lib", false, DataFlow::In),
            ("shot/frames", false, DataFlow::Out),
        ]);
        let (roots, inputs) = disk.shown(&plan.unwrap());
        assert_eq!(roots, ["r0 In /lib", "r1 In /shot", "r2 Out /shot/frames"]);
        assert_eq!(inputs, ["r0/x/y.inc", "r1/a.pov", "r1/tex/t.png"]);
        assert!(!disk.at("shot/frames").exists());
    }

    #[test]
    fn an_input_in_an_output_folder_is_copied_there_and_never_replaced() {
        let disk = Disk::new(&["shot/a.pov", "shot/tex/t.png", "shot/old.png"]);
        let plan = disk.plan(&[
            ("shot/a.pov", true, DataFlow::In),
            ("shot/tex", false, DataFlow::In),
            ("shot", false, DataFlow::Out),
        ]);
        let (roots, inputs) = disk.shown(&plan.unwrap());
        assert_eq!(roots, ["r0 Out /shot"]);
        assert_eq!(inputs, ["r0/a.pov", "r0/tex/t.png"]);
    }

    #[test]
    fn what_is_in_and_out_travels_and_returns() {
        let disk = Disk::new(&["cache/1", "cache/2", "log/run.txt", "log/other"]);
        let plan =
            disk.plan(&[("cache", false, DataFlow::Inout), ("log/run.txt", true, DataFlow::Inout)]);
        let (roots, inputs) = disk.shown(&plan.unwrap());
        assert_eq!(roots, ["r0 Out /cache", "r1 Out /log"]);
        assert_eq!(inputs, ["r0/1*", "r0/2*", "r1/run.txt*"]);
    }

    #[test]
    fn old_frames_within_an_input_folder_stay_at_home() {
        let disk = Disk::new(&["shot/a.blend", "shot/frames/1.png", "shot/frames/deep/2.png"]);
        let plan = disk.plan(&[
            ("shot", false, DataFlow::In),
            ("shot/frames", false, DataFlow::Out),
            ("shot/frames/deep", false, DataFlow::Out),
        ]);
        let (roots, inputs) = disk.shown(&plan.unwrap());
        assert_eq!(roots, ["r0 In /shot", "r1 Out /shot/frames"]);
        assert_eq!(inputs, ["r0/a.blend"]);
    }

    #[test]
    fn links_are_followed_once_and_strange_files_are_left_with_a_word() {
        let disk = Disk::new(&["in/a", "far/b"]);
        symlink(disk.at("far"), disk.at("in/link")).unwrap();
        symlink(disk.at("in"), disk.at("in/loop")).unwrap();
        symlink(disk.at("in/link"), disk.at("far/back")).unwrap();
        symlink("/no/where", disk.at("in/dangling")).unwrap();
        let plan = disk.plan(&[("in", false, DataFlow::In)]).unwrap();
        let (_, inputs) = disk.shown(&plan);
        assert_eq!(inputs, ["r0/a", "r0/link/b"]);
        assert_eq!(plan.warnings.len(), 1);
    }

    #[test]
    fn many_folders_become_few_roots() {
        let names: Vec<String> = (0..100).map(|i| format!("tex/{i:03}/t.png")).collect();
        let disk = Disk::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let wanted: Vec<_> = names.iter().map(|name| (name.as_str(), true, DataFlow::In)).collect();
        let (roots, inputs) = disk.shown(&disk.plan(&wanted).unwrap());
        assert_eq!(roots, ["r0 In /tex"]);
        assert_eq!(inputs.len(), 100);
    }

    #[test]
    fn what_is_not_there_or_not_so_is_named() {
        let disk = Disk::new(&["dir/file"]);
        for (path, is_file, flow, said) in [
            ("dir/fiel", true, DataFlow::In, "there is no such file"),
            ("dir", true, DataFlow::In, "is a folder where a file is wanted"),
            ("dir/file", false, DataFlow::In, "is a file where a folder is wanted"),
            ("dir/file/out", false, DataFlow::Out, "is no folder"),
        ] {
            let error = disk.plan(&[(path, is_file, flow)]).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("a test"), "{error}");
        }
        let mut wanted = Wanted::default();
        wanted.output("/etc/frames".into(), "a test".into());
        assert!(wanted.plan().unwrap_err().to_string().contains("system folder"));
        let mut wanted = Wanted::default();
        wanted.output("/tmp".into(), "a test".into());
        assert!(matches!(wanted.plan(), Err(BundleError::Reserved { .. })));
    }

    #[test]
    fn a_path_is_cleaned_as_the_system_would_see_it() {
        let disk = Disk::new(&["a/b/f", "g"]);
        assert_eq!(clean(Path::new("/x"), Path::new("./y//../z")), Path::new("/x/z"));
        symlink(disk.at("a/b"), disk.at("link")).unwrap();
        let real = disk.at("a").canonicalize().unwrap();
        assert_eq!(clean(&disk.at("link"), Path::new("..")), real);
    }
}
