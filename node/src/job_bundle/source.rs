//! From what was submitted to a template with values and assets: a bundle folder or a template file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use meshfarm_protocol::session::TemplateFormat;
use openjd_model::template::parse::document_string_to_object;
use openjd_model::{CallerLimits, DocumentType};
use serde_json::Value;

use super::catalog::ParameterNames;
use super::error::BundleError;
use super::files::clean;
use super::policy::{self, Exported, PolicyChanges};

/// A longer template or file beside it is refused, in bytes.
const MAX_TEXT: u64 = 16 << 20;

/// A template with all that came with it, before the flags of the submission.
#[derive(Debug)]
pub(super) struct Bundle {
    /// The template's file, for messages.
    pub(super) path: PathBuf,
    /// The folder that relative defaults are joined to.
    pub(super) folder: PathBuf,
    /// The template.
    pub(super) text: String,
    /// How it is written.
    pub(super) format: TemplateFormat,
    /// Values that came with it; later ones win.
    pub(super) values: Vec<Given>,
    /// Files and folders that came with it.
    pub(super) assets: Assets,
    /// Which parameters the flags of the submission fill in.
    pub(super) names: ParameterNames,
    /// Its `mesh.toml`.
    pub(super) policy: PolicyChanges,
    /// Its values for another farm.
    pub(super) exported: Exported,
    /// What the submitter should know.
    pub(super) warnings: Vec<String>,
}

/// One value for a parameter.
#[derive(Clone, Debug)]
pub(super) struct Given {
    /// The parameter.
    pub(super) name: String,
    /// The value as it was written.
    pub(super) value: Value,
    /// The folder that a relative path is joined to.
    pub(super) base: PathBuf,
    /// Who says so.
    pub(super) origin: String,
    /// Whether the template must have the parameter. Values for another farm's queue need not.
    pub(super) must_exist: bool,
}

/// Files and folders that a bundle names beside its parameters, each with who names it.
#[derive(Clone, Debug, Default)]
pub(super) struct Assets {
    /// Files that the job reads.
    pub(super) files: Vec<(PathBuf, String)>,
    /// Folders that the job reads, with everything in them.
    pub(super) folders: Vec<(PathBuf, String)>,
    /// Folders that the job writes to.
    pub(super) outputs: Vec<(PathBuf, String)>,
}

/// The text of a file of at most `max` bytes.
pub(super) fn read_text(path: &Path, max: u64) -> Result<String, BundleError> {
    let read = |source| BundleError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read)?;
    file.take(max + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > max {
        let why = format!("it is longer than {max} bytes");
        return Err(read(io::Error::new(io::ErrorKind::FileTooLarge, why)));
    }
    String::from_utf8(bytes).map_err(|error| BundleError::Syntax {
        path: path.to_owned(),
        problem: format!("not UTF-8 text at byte {}", error.utf8_error().valid_up_to()),
    })
}

/// How the file at `path` is written, by its extension.
pub(super) fn format_of(path: &Path) -> Option<TemplateFormat> {
    match path.extension()?.to_str()?.to_lowercase().as_str() {
        "yaml" | "yml" => Some(TemplateFormat::Yaml),
        "json" => Some(TemplateFormat::Json),
        _ => None,
    }
}

/// The keys and values that `text` holds.
pub(super) fn parse(path: &Path, text: &str, format: TemplateFormat) -> Result<Value, BundleError> {
    let format = match format {
        TemplateFormat::Json => DocumentType::Json,
        TemplateFormat::Yaml => DocumentType::Yaml,
    };
    document_string_to_object(text, format, &CallerLimits::default()).map_err(|error| {
        BundleError::Syntax { path: path.to_owned(), problem: super::place::plain(&error) }
    })
}

/// The bundle in `folder`.
pub(super) fn bundle(folder: &Path) -> Result<Bundle, BundleError> {
    let Some(path) = beside(folder, "template") else {
        return Err(BundleError::NoTemplate { path: folder.to_owned() });
    };
    let mut bundle = template(&path)?;
    if let Some(path) = beside(folder, "parameter_values") {
        read_values(&mut bundle, &path)?;
    }
    if let Some(path) = beside(folder, "asset_references") {
        bundle.assets = read_assets(folder, &path)?;
    }
    let path = folder.join("mesh.toml");
    if path.is_file() {
        bundle.policy = policy::read(&path, &read_text(&path, MAX_TEXT)?)?;
    }
    Ok(bundle)
}

/// The template at `path`, alone.
pub(super) fn template(path: &Path) -> Result<Bundle, BundleError> {
    Ok(Bundle {
        folder: path.parent().unwrap_or_else(|| Path::new("/")).to_owned(),
        text: read_text(path, MAX_TEXT)?,
        format: format_of(path).unwrap_or(TemplateFormat::Yaml),
        path: path.to_owned(),
        values: Vec::new(),
        assets: Assets::default(),
        names: ParameterNames::default(),
        policy: PolicyChanges::default(),
        exported: Exported::default(),
        warnings: Vec::new(),
    })
}

fn beside(folder: &Path, stem: &str) -> Option<PathBuf> {
    let names = ["yaml", "yml", "json"].map(|extension| folder.join(format!("{stem}.{extension}")));
    names.into_iter().find(|path| path.is_file())
}

fn read_document(path: &Path) -> Result<Value, BundleError> {
    let text = read_text(path, MAX_TEXT)?;
    parse(path, &text, format_of(path).unwrap_or(TemplateFormat::Yaml))
}

/// An element of a file beside the template, with its path for messages.
struct Element<'a> {
    path: &'a Path,
    at: String,
    value: &'a Value,
}

impl<'a> Element<'a> {
    fn wrong(&self, problem: impl Into<String>) -> BundleError {
        BundleError::Element {
            path: self.path.to_owned(),
            element: self.at.clone(),
            problem: problem.into(),
        }
    }

    fn child(&self, key: &str) -> Option<Self> {
        let at = if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) };
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        Some(Element { path: self.path, at, value })
    }

    fn only(&self, keys: &[&str]) -> Result<(), BundleError> {
        let Some(map) = self.value.as_object() else {
            return Err(self.wrong(format!("keys are wanted here: {}", keys.join(", "))));
        };
        match map.keys().find(|key| !keys.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                Err(self.wrong(format!("unknown key {key}; {}", super::error::hint(key, keys))))
            }
        }
    }

    fn items(&self) -> Result<Vec<Self>, BundleError> {
        let Some(items) = self.value.as_array() else {
            return Err(self.wrong("a list is wanted here"));
        };
        let items = items.iter().enumerate();
        let items = items.map(|(i, value)| Element {
            path: self.path,
            at: format!("{}[{i}]", self.at),
            value,
        });
        Ok(items.collect())
    }

    fn text(&self) -> Result<&'a str, BundleError> {
        let text = self.value.as_str();
        text.ok_or_else(|| self.wrong(format!("a text is wanted here, not {}", self.value)))
    }
}

fn read_values(bundle: &mut Bundle, path: &Path) -> Result<(), BundleError> {
    let document = read_document(path)?;
    let top = Element { path, at: String::new(), value: &document };
    top.only(&["parameterValues"])?;
    let Some(list) = top.child("parameterValues") else {
        return Ok(());
    };
    for item in list.items()? {
        item.only(&["name", "value"])?;
        let (Some(name), Some(value)) = (item.child("name"), item.child("value")) else {
            return Err(item.wrong("each value has a name and a value"));
        };
        let name = name.text()?;
        if name.starts_with("deadline:") {
            bundle.exported.take(name, value.value, (path, &item.at))?;
            continue;
        }
        bundle.values.push(Given {
            name: name.to_owned(),
            value: value.value.clone(),
            base: bundle.folder.clone(),
            origin: format!("{}: {}", path.display(), item.at),
            must_exist: false,
        });
    }
    Ok(())
}

fn read_assets(folder: &Path, path: &Path) -> Result<Assets, BundleError> {
    let document = read_document(path)?;
    let top = Element { path, at: String::new(), value: &document };
    top.only(&["assetReferences"])?;
    let Some(references) = top.child("assetReferences") else {
        return Ok(Assets::default());
    };
    references.only(&["inputs", "outputs", "referencedPaths"])?;
    let inputs = references.child("inputs");
    let outputs = references.child("outputs");
    if let Some(inputs) = &inputs {
        inputs.only(&["filenames", "directories"])?;
    }
    if let Some(outputs) = &outputs {
        outputs.only(&["directories"])?;
    }
    let list = |of: &Option<Element<'_>>, key: &str| -> Result<Vec<_>, BundleError> {
        let Some(list) = of.as_ref().and_then(|of| of.child(key)) else {
            return Ok(Vec::new());
        };
        let items = list.items()?;
        let paths = items.iter().map(|item| {
            let who = format!("{}: {}", path.display(), item.at);
            Ok((clean(folder, Path::new(item.text()?)), who))
        });
        paths.collect()
    };
    // Paths that are only referred to need nothing here: the jail shows what travels at its own path.
    list(&Some(references), "referencedPaths")?;
    Ok(Assets {
        files: list(&inputs, "filenames")?,
        folders: list(&inputs, "directories")?,
        outputs: list(&outputs, "directories")?,
    })
}
