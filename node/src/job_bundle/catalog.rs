//! The bundles that the program carries and those that a site adds: which renderer takes which scene.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use meshfarm_protocol::job::JailProfile;
use serde::Deserialize;

use super::error::BundleError;

/// The built-in bundles: each folder of `node/bundles` with its files.
const BUILT_IN: &[(&str, &[(&str, &str)])] = &[
    (
        "blender",
        &[
            ("bundle.toml", include_str!("../../bundles/blender/bundle.toml")),
            ("template.yaml", include_str!("../../bundles/blender/template.yaml")),
        ],
    ),
    (
        "command",
        &[
            ("bundle.toml", include_str!("../../bundles/command/bundle.toml")),
            ("script.yaml", include_str!("../../bundles/command/script.yaml")),
            ("template.yaml", include_str!("../../bundles/command/template.yaml")),
        ],
    ),
    (
        "povray",
        &[
            ("bundle.toml", include_str!("../../bundles/povray/bundle.toml")),
            ("animation.yaml", include_str!("../../bundles/povray/animation.yaml")),
            ("template.yaml", include_str!("../../bundles/povray/template.yaml")),
        ],
    ),
];

/// A larger file of a bundle is refused, in bytes.
const MAX_BUNDLE_FILE: u64 = 1 << 20;

/// One renderer: what `bundle.toml` says, and the templates beside it.
#[derive(Clone, Debug)]
pub struct Renderer {
    /// The folder's name.
    pub name: String,
    /// Where its files come from, for messages.
    pub folder: PathBuf,
    /// What `bundle.toml` says.
    pub about: About,
    templates: BTreeMap<String, String>,
}

/// The content of a `bundle.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// What people call the renderer.
    pub title: String,
    /// The last part of its attribute's name: `povray` for `meshfarm:attr.software.povray`.
    pub software: Option<String>,
    /// What kind of program it is, which decides what its jails allow. All that any kind needs when it is not said.
    pub profile: Option<JailProfile>,
    /// How to find out whether it is here, and which version.
    pub probe: Option<Probe>,
    /// The kinds of scene that it takes.
    #[serde(default)]
    pub scene: Vec<SceneKind>,
}

/// How to ask for a program's version.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Program and arguments.
    pub command: Vec<String>,
    /// The version is the number that follows this text in what the command prints.
    pub after: String,
}

/// A kind of scene and the template for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SceneKind {
    /// Extensions of scene files, in lower case. None: the template takes no scene file.
    #[serde(default)]
    pub extensions: Vec<String>,
    /// The template, a file beside `bundle.toml`.
    pub template: String,
    /// Extensions of text files whose quoted names are followed to find what else must travel.
    #[serde(default)]
    pub reads: Vec<String>,
    /// Which parameter of the template takes what.
    #[serde(default)]
    pub parameters: ParameterNames,
    /// For scenes that are lists of `Key=Value` lines: which key says what.
    pub settings: Option<SettingKeys>,
}

/// Names of the template's parameters, by what `submit` puts into them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParameterNames {
    /// The scene file.
    pub scene: Option<String>,
    /// The file of settings, when that was submitted.
    pub settings: Option<String>,
    /// The scene's folder.
    pub folder: Option<String>,
    /// The scene's name without folder and extension.
    pub name: Option<String>,
    /// `--frames`.
    pub frames: Option<String>,
    /// The smallest of the frames.
    pub first: Option<String>,
    /// The greatest of the frames.
    pub last: Option<String>,
    /// `--resolution WIDTHxHEIGHT`.
    pub width: Option<String>,
    /// `--resolution WIDTHxHEIGHT`.
    pub height: Option<String>,
    /// `--resolution PERCENT%`.
    pub percent: Option<String>,
    /// `--output`.
    pub output: Option<String>,
}

/// Keys of a scene that is a list of settings. Compared without regard to case.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SettingKeys {
    /// The scene file, relative to the settings' folder.
    pub scene: Option<String>,
    /// First frame of the animation.
    pub first: Option<String>,
    /// Last frame of the animation.
    pub last: Option<String>,
    /// First frame to render of them.
    pub subset_first: Option<String>,
    /// Last frame to render of them.
    pub subset_last: Option<String>,
    /// Width in pixels.
    pub width: Option<String>,
    /// Height in pixels.
    pub height: Option<String>,
}

/// All renderers that a site can submit for.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The renderers, by name. A site's own folder replaces a built-in one of the same name.
    pub renderers: BTreeMap<String, Renderer>,
}

impl Catalog {
    /// The built-in bundles, and those in the folders of `bundles` where that exists.
    ///
    /// # Errors
    /// When a folder of the site cannot be read, or its `bundle.toml` is not one.
    pub fn open(bundles: Option<&Path>) -> Result<Self, BundleError> {
        let mut renderers = BTreeMap::new();
        for (name, files) in BUILT_IN {
            let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
            let folder = Path::new("built-in").join(name);
            renderers.insert((*name).to_owned(), renderer(name, folder, files.collect())?);
        }
        for folder in bundles.map(folders_of).transpose()?.unwrap_or_default() {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            let name = name.into_owned();
            let files = files_of(&folder)?;
            renderers.insert(name.clone(), renderer(&name, folder, files)?);
        }
        Ok(Self { renderers })
    }

    /// The renderer that takes files with this extension, and how.
    #[must_use]
    pub fn for_extension(&self, extension: &str) -> Option<(&Renderer, &SceneKind)> {
        let extension = extension.to_lowercase();
        self.renderers.values().find_map(|renderer| {
            let kinds = &renderer.about.scene;
            let kind = kinds.iter().find(|kind| kind.extensions.contains(&extension));
            kind.map(|kind| (renderer, kind))
        })
    }

    /// The template of this renderer that takes no scene file.
    #[must_use]
    pub fn without_scene(&self, name: &str) -> Option<(&Renderer, &SceneKind)> {
        let renderer = self.renderers.get(name)?;
        let kinds = &renderer.about.scene;
        let kind = kinds.iter().find(|kind| kind.extensions.is_empty())?;
        Some((renderer, kind))
    }

    /// Every known extension with its renderer, for people.
    #[must_use]
    pub fn known(&self) -> String {
        let all = self.renderers.values().flat_map(|renderer| {
            let extensions = renderer.about.scene.iter().flat_map(|kind| &kind.extensions);
            extensions.map(|extension| format!(".{extension} ({})", renderer.about.title))
        });
        all.collect::<Vec<_>>().join(", ")
    }
}

impl Renderer {
    /// The text of the template of `kind`.
    #[must_use]
    pub fn template(&self, kind: &SceneKind) -> &str {
        // `renderer` checked that each kind's template is there.
        self.templates.get(&kind.template).map_or("", String::as_str)
    }
}

fn renderer(
    name: &str,
    folder: PathBuf,
    mut files: BTreeMap<String, String>,
) -> Result<Renderer, BundleError> {
    let path = folder.join("bundle.toml");
    let Some(about) = files.remove("bundle.toml") else {
        return Err(BundleError::NoSource { path });
    };
    let about: About = toml::from_str(&about)
        .map_err(|error| BundleError::Syntax { path: path.clone(), problem: error.to_string() })?;
    if let Some(kind) = about.scene.iter().find(|kind| !files.contains_key(&kind.template)) {
        return Err(BundleError::Element {
            path,
            element: "scene.template".into(),
            problem: format!("there is no file {} in this folder", kind.template),
        });
    }
    Ok(Renderer { name: name.to_owned(), folder, about, templates: files })
}

fn folders_of(bundles: &Path) -> Result<Vec<PathBuf>, BundleError> {
    let read = |source| BundleError::Read { path: bundles.to_owned(), source };
    if !bundles.exists() {
        return Ok(Vec::new());
    }
    let mut folders = Vec::new();
    for entry in fs::read_dir(bundles).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

fn files_of(folder: &Path) -> Result<BTreeMap<String, String>, BundleError> {
    let read = |source| BundleError::Read { path: folder.to_owned(), source };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let wanted = ["toml", "yaml", "json"];
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| wanted.contains(&extension)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let text = super::source::read_text(&path, MAX_BUNDLE_FILE)?;
            files.insert(name.to_string(), text);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_adds_a_renderer_by_adding_a_folder() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("sketch");
        fs::create_dir(&folder).unwrap();
        let about = "title = 'Sketch'\n[[scene]]\nextensions = ['skp']\ntemplate = 't.yaml'\n";
        fs::write(folder.join("bundle.toml"), about).unwrap();
        let error = Catalog::open(Some(home.path())).unwrap_err().to_string();
        assert!(error.contains("there is no file t.yaml"), "{error}");
        fs::write(folder.join("t.yaml"), "name: x").unwrap();
        let catalog = Catalog::open(Some(home.path())).unwrap();
        assert_eq!(catalog.for_extension("SKP").unwrap().0.name, "sketch");
        assert!(catalog.known().contains(".skp (Sketch)"));
        fs::write(folder.join("bundle.toml"), "titel = 'Sketch'\n").unwrap();
        let error = Catalog::open(Some(home.path())).unwrap_err().to_string();
        assert!(error.contains("titel") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn the_built_in_renderers_are_there() {
        let catalog = Catalog::open(None).unwrap();
        for (extension, name) in
            [("pov", "povray"), ("ini", "povray"), ("blend", "blender"), ("sh", "command")]
        {
            let (renderer, kind) = catalog.for_extension(extension).unwrap();
            assert_eq!(renderer.name, name);
            assert!(renderer.template(kind).contains("jobtemplate-2023-09"));
        }
        assert!(catalog.without_scene("command").is_some());
    }
}
