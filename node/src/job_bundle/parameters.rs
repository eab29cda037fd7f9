//! From values that many sources give to the values of a template's parameters, and the files that they name.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use meshfarm_protocol::session::TemplateFormat;
use openjd_model::template::{EnvironmentTemplate, JobParameterDefinition, JobTemplate};
use openjd_model::{
    DataFlow, JobParameterType, JobParameterValues, ObjectType, PathParameterOptions,
    preprocess_job_parameters,
};
use serde_json::Value;

use super::SubmitRequest;
use super::around::Around;
use super::catalog::ParameterNames;
use super::error::{BundleError, hint};
use super::files::{Wanted, clean};
use super::scene::ends_of;
use super::source::{Bundle, Given, format_of, parse, read_text};

/// A longer file of values is refused, in bytes.
const MAX_VALUES: u64 = 16 << 20;

/// The values of all parameters, by name.
pub(super) fn resolve(
    bundle: &mut Bundle,
    template: &JobTemplate,
    (around, definitions): (&[Around], &[JobParameterDefinition]),
    request: &SubmitRequest,
) -> Result<JobParameterValues, BundleError> {
    let names = flag_parameters(&bundle.names, definitions);
    let mut given = std::mem::take(&mut bundle.values);
    given.extend(flags(request, &names)?);
    for argument in &request.parameters {
        given.extend(argument_values(&request.cwd, argument)?);
    }
    super::scene::fill_ends(&mut given, &names);

    let mut values = HashMap::new();
    for given in given {
        let Some(definition) = definitions.iter().find(|d| d.name() == given.name) else {
            unknown(bundle, &given, definitions)?;
            continue;
        };
        let text = text_of(&given, definition)?;
        values.insert(given.name, text.as_str().into());
    }
    let folder = bundle.folder.to_string_lossy();
    let cwd = request.cwd.to_string_lossy();
    // Defaults must stay within the template's folder, as the standard wants of templates that others wrote.
    let options = PathParameterOptions {
        allow_uri_path_values: true,
        ..PathParameterOptions::new(&folder, &cwd)
    };
    let around = around.iter().map(|around| around.template.clone());
    let around: Vec<EnvironmentTemplate> = around.collect();
    preprocess_job_parameters(template, &values, &around, &options).map_err(|error| {
        BundleError::Values { path: bundle.path.clone(), problem: super::place::plain(&error) }
    })
}

/// A value for nobody: an error on the command line, a warning in a file that was written for another farm.
fn unknown(
    bundle: &mut Bundle,
    given: &Given,
    definitions: &[JobParameterDefinition],
) -> Result<(), BundleError> {
    let known: Vec<&str> = definitions.iter().map(JobParameterDefinition::name).collect();
    let hint = hint(&given.name, &known);
    if given.must_exist {
        return Err(BundleError::UnknownParameter { name: given.name.clone(), hint });
    }
    bundle.warnings.push(format!(
        "{}: the template has no parameter {}, its value is ignored; {hint}",
        given.origin, given.name
    ));
    Ok(())
}

/// Which parameters the flags fill in: as the renderer's bundle says, else by the names that exported
/// bundles use, and for the output the only parameter that is one.
fn flag_parameters(
    said: &ParameterNames,
    definitions: &[JobParameterDefinition],
) -> ParameterNames {
    let named = |said: &Option<String>, usual: &[&str]| {
        let known = |name: &&&str| definitions.iter().any(|d| d.name() == **name);
        said.clone().or_else(|| usual.iter().find(known).map(|name| (*name).to_owned()))
    };
    let mut outputs = definitions.iter().filter(|d| writes(d));
    let output = match (outputs.next(), outputs.next()) {
        (Some(only), None) => Some(only.name().to_owned()),
        _ => None,
    };
    ParameterNames {
        frames: named(&said.frames, &["Frames", "FrameRange", "frames"]),
        width: named(&said.width, &["Width", "ResolutionX", "width"]),
        height: named(&said.height, &["Height", "ResolutionY", "height"]),
        output: said.output.clone().or(output),
        ..said.clone()
    }
}

fn writes(definition: &JobParameterDefinition) -> bool {
    let (_, flow) = definition.path_properties();
    matches!(flow, Some(DataFlow::Out | DataFlow::Inout))
}

/// The values that `--frames`, `--resolution` and `--output` give.
fn flags(request: &SubmitRequest, names: &ParameterNames) -> Result<Vec<Given>, BundleError> {
    let mut given = Vec::new();
    let mut give = |flag: &str, name: &Option<String>, value: String| {
        let Some(name) = name else {
            return Err(BundleError::Argument {
                argument: flag.to_owned(),
                problem: "the template has no parameter that takes it; use -p NAME=VALUE".into(),
            });
        };
        given.push(Given {
            name: name.clone(),
            value: Value::String(value),
            base: request.cwd.clone(),
            origin: flag.to_owned(),
            must_exist: true,
        });
        Ok(())
    };
    if let Some(frames) = &request.frames {
        if ends_of(frames).is_none() {
            return Err(BundleError::Argument {
                argument: format!("--frames {frames}"),
                problem: "write a range such as 1-240, 1-240:2 or 1,5,9-12".into(),
            });
        }
        give("--frames", &names.frames, frames.clone())?;
    }
    if let Some(resolution) = &request.resolution {
        let wrong = || BundleError::Argument {
            argument: format!("--resolution {resolution}"),
            problem: "write WIDTHxHEIGHT such as 1920x1080, or a percentage such as 50%".into(),
        };
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_no_number| wrong());
        if let Some(percent) = resolution.strip_suffix('%') {
            give("--resolution", &names.percent, number(percent)?.to_string())?;
        } else {
            let (width, height) = resolution.split_once(['x', 'X']).ok_or_else(wrong)?;
            give("--resolution", &names.width, number(width)?.to_string())?;
            give("--resolution", &names.height, number(height)?.to_string())?;
        }
    }
    if let Some(output) = &request.output {
        give("--output", &names.output, output.to_string_lossy().into_owned())?;
    }
    Ok(given)
}

/// The values of one `-p`: `NAME=VALUE`, `file://FILE`, or an object in JSON.
pub(super) fn argument_values(cwd: &Path, argument: &str) -> Result<Vec<Given>, BundleError> {
    let given = |name: &str, value: Value, origin: String| Given {
        name: name.to_owned(),
        value,
        base: cwd.to_owned(),
        origin,
        must_exist: true,
    };
    let wrong = |problem: &str| BundleError::Argument {
        argument: format!("-p {argument}"),
        problem: problem.into(),
    };
    let document = if let Some(file) = argument.strip_prefix("file://") {
        let path = clean(cwd, Path::new(file));
        let format = format_of(&path).unwrap_or(TemplateFormat::Json);
        Some((parse(&path, &read_text(&path, MAX_VALUES)?, format)?, path.display().to_string()))
    } else if argument.trim_start().starts_with('{') {
        let value = serde_json::from_str(argument);
        let value = value.map_err(|error| wrong(&format!("is no JSON object: {error}")))?;
        Some((value, "-p".to_owned()))
    } else {
        None
    };
    let Some((document, origin)) = document else {
        let pair = argument.split_once('=');
        let (name, value) = pair.ok_or_else(|| wrong("write NAME=VALUE or file://FILE"))?;
        return Ok(vec![given(name.trim(), Value::String(value.into()), "-p".into())]);
    };
    let map = document.as_object();
    let map = map.ok_or_else(|| wrong("holds no object of names and values"))?;
    let values = map.iter();
    let values = values.map(|(name, value)| given(name, value.clone(), origin.clone()));
    Ok(values.collect())
}

/// The value as the model takes it: text, with paths made absolute.
fn text_of(given: &Given, definition: &JobParameterDefinition) -> Result<String, BundleError> {
    let wrong = |problem: String| BundleError::Argument {
        argument: format!("{}: parameter {}", given.origin, given.name),
        problem,
    };
    let absolute = |text: &str| {
        if text.is_empty() || text.contains("://") {
            return Ok(text.to_owned());
        }
        if is_windows(text) {
            return Err(wrong(format!(
                "{text} is a Windows path, which this machine cannot read; submit from the machine that has it"
            )));
        }
        let path = clean(&given.base, Path::new(text));
        Ok(path.to_string_lossy().into_owned())
    };
    let is_path = definition.job_param_type() == JobParameterType::Path;
    let is_paths = definition.job_param_type() == JobParameterType::ListPath;
    match &given.value {
        Value::Null => Err(wrong("has no value".into())),
        Value::String(text) if is_path => absolute(text),
        Value::String(text) if is_paths => {
            let list: Vec<String> = serde_json::from_str(text)
                .map_err(|error| wrong(format!("a list of paths in JSON is wanted: {error}")))?;
            let list = list.iter().map(|text| absolute(text));
            let list = list.collect::<Result<Vec<_>, _>>()?;
            Ok(Value::from(list).to_string())
        }
        Value::Array(list) if is_paths => {
            let list = list.iter().map(|item| match item.as_str() {
                Some(text) => absolute(text),
                None => Err(wrong(format!("{item} is no path"))),
            });
            let list = list.collect::<Result<Vec<_>, _>>()?;
            Ok(Value::from(list).to_string())
        }
        Value::String(text) => Ok(text.clone()),
        other => Ok(other.to_string()),
    }
}

fn is_windows(text: &str) -> bool {
    let bytes = text.as_bytes();
    let drive = bytes.len() >= 3
        && bytes[0].is_ascii_alphabetic()
        && bytes[1] == b':'
        && matches!(bytes[2], b'\\' | b'/');
    drive || text.starts_with(r"\\")
}

/// Every value as text, for the job file.
pub(super) fn as_texts(values: &JobParameterValues) -> BTreeMap<String, String> {
    let texts = values.iter().map(|(name, value)| (name.clone(), value.value.to_display_string()));
    texts.collect()
}

/// The files and folders that the values of PATH parameters name.
pub(super) fn wanted(
    definitions: &[JobParameterDefinition],
    values: &JobParameterValues,
) -> Wanted {
    let mut wanted = Wanted::default();
    for definition in definitions {
        let Some(value) = values.get(definition.name()) else {
            continue;
        };
        let text = value.value.to_display_string();
        let paths: Vec<String> = match definition.job_param_type() {
            JobParameterType::Path => vec![text],
            JobParameterType::ListPath => serde_json::from_str(&text).unwrap_or_default(),
            _ => continue,
        };
        let (kind, flow) = definition.path_properties();
        let is_file = kind == Some(ObjectType::File);
        for path in paths.iter().filter(|path| path.starts_with('/')) {
            let path = clean(Path::new("/"), Path::new(path));
            let who = format!("parameter {}", definition.name());
            wanted.add(path, who, is_file, flow.unwrap_or(DataFlow::None));
        }
    }
    wanted
}
