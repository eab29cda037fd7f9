//! From a scene file to a bundle: the renderer that takes it, what its settings say, and which files it names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use meshfarm_protocol::session::TemplateFormat;
use serde_json::Value;

use super::catalog::{ParameterNames, Renderer, SceneKind, SettingKeys};
use super::error::BundleError;
use super::files::clean;
use super::policy::{Exported, PolicyChanges};
use super::source::{Assets, Bundle, Given, format_of, read_text};

/// A longer scene is not read for the names in it, in bytes. Scenes of that size are written by programs.
const MAX_SCENE: u64 = 64 << 20;

/// More files than this are not followed from one scene.
const MAX_NAMED: usize = 10_000;

/// The bundle for the scene at `scene`, which `renderer` takes as `kind`.
pub(super) fn scene(
    path: &Path,
    renderer: &Renderer,
    kind: &SceneKind,
) -> Result<Bundle, BundleError> {
    let mut bundle = bundle_of(renderer, kind);
    let folder = path.parent().unwrap_or_else(|| Path::new("/")).to_owned();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let names = kind.parameters.clone();
    let mut give = |name: &Option<String>, value: String| {
        if let Some(name) = name {
            bundle.values.push(Given {
                name: name.clone(),
                value: Value::String(value),
                base: folder.clone(),
                origin: path.display().to_string(),
                must_exist: true,
            });
        }
    };
    let mut scene = path.to_owned();
    if let Some(keys) = &kind.settings {
        let settings = Settings::read(path)?;
        scene = settings.scene(path, keys)?;
        give(&names.settings, text_of(path));
        for (name, key) in [(&names.width, &keys.width), (&names.height, &keys.height)] {
            if let Some(value) = settings.get(key) {
                give(name, value.to_owned());
            }
        }
        if let Some(frames) = settings.frames(path, keys)? {
            give(&names.frames, frames);
        }
    }
    give(&names.scene, text_of(&scene));
    give(&names.folder, text_of(scene.parent().unwrap_or(&folder)));
    give(&names.name, stem.to_string());
    give(&names.output, text_of(&folder.join(format!("{stem}_frames"))));
    let (files, warnings) = named_files(&scene, &kind.reads)?;
    bundle.assets.files = files;
    bundle.warnings.extend(warnings);
    Ok(bundle)
}

/// The bundle of a template that takes no scene.
pub(super) fn bundle_of(renderer: &Renderer, kind: &SceneKind) -> Bundle {
    let path = renderer.folder.join(&kind.template);
    Bundle {
        text: renderer.template(kind).to_owned(),
        format: format_of(&path).unwrap_or(TemplateFormat::Yaml),
        // Defaults that are relative paths have no meaning in a bundle that comes with the program.
        folder: PathBuf::from("/"),
        path,
        values: Vec::new(),
        assets: Assets::default(),
        names: kind.parameters.clone(),
        policy: PolicyChanges { profile: renderer.about.profile, ..PolicyChanges::default() },
        exported: Exported::default(),
        warnings: Vec::new(),
    }
}

/// Gives the parameters for the first and the last frame the ends of the range, unless somebody gave them.
pub(super) fn fill_ends(values: &mut Vec<Given>, names: &ParameterNames) {
    let Some(frames) = &names.frames else { return };
    let given = values.iter().rev().find(|given| given.name == *frames);
    let Some(given) = given.cloned() else { return };
    let ends = given.value.as_str().and_then(ends_of);
    let Some((first, last)) = ends else { return };
    for (name, value) in [(&names.first, first), (&names.last, last)] {
        if let Some(name) = name
            && !values.iter().any(|given| given.name == *name)
        {
            values.push(Given { name: name.clone(), value: Value::from(value), ..given.clone() });
        }
    }
}

/// The smallest and the greatest number of a range such as `1-20,25:2`; none when it is not one.
pub(super) fn ends_of(range: &str) -> Option<(i64, i64)> {
    let mut ends: Option<(i64, i64)> = None;
    for part in range.split(',') {
        let part = part.trim();
        let span = part.split_once(':').map_or(part, |(span, _)| span).trim();
        // A minus in front belongs to the number, so the dash is looked for behind the first character.
        let dash = span.get(1..)?.find('-').map(|i| i + 1);
        let (from, to) = dash.map_or((span, span), |i| (&span[..i], &span[i + 1..]));
        let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        let (low, high) = ends.unwrap_or((i64::MAX, i64::MIN));
        ends = Some((low.min(from).min(to), high.max(from).max(to)));
    }
    ends
}

/// `Key=Value` lines, without comments.
struct Settings(Vec<(String, String)>);

impl Settings {
    fn read(path: &Path) -> Result<Self, BundleError> {
        let text = read_text(path, MAX_SCENE)?;
        let lines = text.lines().filter_map(|line| {
            let line = line.split(';').next().unwrap_or_default();
            let (key, value) = line.split_once('=')?;
            let value = value.trim().trim_matches(['"', '\'']);
            Some((key.trim().to_owned(), value.to_owned()))
        });
        Ok(Self(lines.collect()))
    }

    fn get(&self, key: &Option<String>) -> Option<&str> {
        let key = key.as_ref()?;
        let found = self.0.iter().rev().find(|(have, _)| have.eq_ignore_ascii_case(key));
        found.map(|(_, value)| value.as_str())
    }

    fn scene(&self, path: &Path, keys: &SettingKeys) -> Result<PathBuf, BundleError> {
        let key = keys.scene.clone().unwrap_or_default();
        let Some(name) = self.get(&keys.scene) else {
            return Err(BundleError::Element {
                path: path.to_owned(),
                element: key,
                problem: "is not set, so no scene is named; a line such as \
                          Input_File_Name=scene.pov is wanted"
                    .into(),
            });
        };
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        let scene = clean(folder, Path::new(name));
        if !scene.is_file() {
            return Err(BundleError::Input {
                path: scene,
                problem: "there is no such file".into(),
                named_by: format!("{}: {key}", path.display()),
            });
        }
        Ok(scene)
    }

    /// The range of frames that the settings ask for.
    fn frames(&self, path: &Path, keys: &SettingKeys) -> Result<Option<String>, BundleError> {
        let number = |key: &Option<String>| {
            let Some(text) = self.get(key) else {
                return Ok(None);
            };
            text.parse::<i64>().map(Some).map_err(|_no_number| BundleError::Element {
                path: path.to_owned(),
                element: key.clone().unwrap_or_default(),
                problem: format!("{text} is no whole number"),
            })
        };
        let Some(last) = number(&keys.last)? else {
            return Ok(None);
        };
        let first = number(&keys.first)?.unwrap_or(1);
        let from = number(&keys.subset_first)?.unwrap_or(first);
        let to = number(&keys.subset_last)?.unwrap_or(last);
        Ok(Some(format!("{from}-{to}")))
    }
}

/// Files with who names them, and warnings.
type NamedFiles = (Vec<(PathBuf, String)>, Vec<String>);

/// Files that the text of `scene` names between quotes and that lie beside it or beneath its folder,
/// followed through the texts among them; and warnings about those that lie elsewhere.
///
/// Literal names only: a name that the scene puts together must be given with `--input`.
fn named_files(scene: &Path, reads: &[String]) -> Result<NamedFiles, BundleError> {
    let folder = scene.parent().unwrap_or_else(|| Path::new("/"));
    let mut found = BTreeSet::new();
    let mut elsewhere = BTreeSet::new();
    let mut warnings = Vec::new();
    let mut to_read = vec![scene.to_owned()];
    while let Some(text_file) = to_read.pop() {
        let extension = text_file.extension().and_then(|extension| extension.to_str());
        let extension = extension.map(str::to_lowercase);
        if !extension.is_some_and(|extension| reads.contains(&extension)) {
            continue;
        }
        let Some(text) = read_lossy(&text_file)? else {
            warnings.push(format!(
                "{} is too long to be searched for the files that it names; add them with --input",
                text_file.display()
            ));
            continue;
        };
        for name in quoted(&text) {
            let path = clean(folder, Path::new(name));
            if path == scene || found.contains(&path) || !path.is_file() {
                continue;
            }
            if !path.starts_with(folder) {
                elsewhere.insert(path);
                continue;
            }
            if found.len() < MAX_NAMED {
                found.insert(path.clone());
                to_read.push(path);
            }
        }
    }
    let who = format!("{} names it", scene.display());
    let files = found.into_iter().map(|path| (path, who.clone()));
    warnings.extend(elsewhere.into_iter().map(|path| {
        format!(
            "{} names {}, which lies outside its folder and does not travel; add --input {1} if it is needed",
            scene.display(),
            path.display()
        )
    }));
    Ok((files.collect(), warnings))
}

/// The text of a scene, which may be in any encoding that agrees with ASCII. None when it is too long.
fn read_lossy(path: &Path) -> Result<Option<String>, BundleError> {
    let read = |source| BundleError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(read)?.len() > MAX_SCENE {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(read)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Texts between quotes on one line that may be file names.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines();
    let parts = lines.flat_map(|line| line.split('"').skip(1).step_by(2));
    parts.filter(|name| !name.is_empty() && name.len() < 1024 && !name.contains('\0'))
}

fn text_of(path: &Path) -> String {
    // A path that is not UTF-8 is refused later, when it is looked at as an input.
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_ends() {
        assert_eq!(ends_of("1-20"), Some((1, 20)));
        assert_eq!(ends_of(" 5 "), Some((5, 5)));
        assert_eq!(ends_of("10-2:-2, 30"), Some((2, 30)));
        assert_eq!(ends_of("-5--1"), Some((-5, -1)));
        for bad in ["", "a", "1-", "1,,2", "é", "1-x"] {
            assert_eq!(ends_of(bad), None, "{bad}");
        }
    }
}
