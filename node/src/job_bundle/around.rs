//! What a submitter puts around a job: environments from templates of their own, and path mapping rules.

use std::path::{Path, PathBuf};

use meshfarm_protocol::session::{EnvironmentFile, MappingRule, TemplateFormat};
use openjd_model::job::Job;
use openjd_model::template::{EnvironmentTemplate, JobParameterDefinition, JobTemplate};
use openjd_model::{ModelExtension, decode_environment_template};
use serde::Deserialize;

use super::error::BundleError;
use super::files::clean;
use super::place;
use super::source::{format_of, parse, read_text};

/// A longer file is refused, in bytes.
const MAX_TEXT: u64 = 10 << 20;

/// The version of path mapping rules that is read.
const RULES_VERSION: &str = "pathmapping-1.0";

/// One environment template.
#[derive(Debug)]
pub(super) struct Around {
    /// What travels.
    pub(super) file: EnvironmentFile,
    /// The same, understood.
    pub(super) template: EnvironmentTemplate,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    version: String,
    path_mapping_rules: Vec<MappingRule>,
}

/// The names of the standard's extensions that a template may ask for: those in `asked`, which are parted by
/// commas, or all that are known.
pub(super) fn extensions(asked: Option<&str>) -> Result<Vec<&'static str>, BundleError> {
    let all: Vec<&str> = ModelExtension::ALL.iter().map(|extension| extension.as_str()).collect();
    let Some(asked) = asked else {
        return Ok(all);
    };
    let names = asked.split(',').map(str::trim).filter(|name| !name.is_empty());
    let found = names.map(|name| {
        let known = all.iter().find(|known| **known == name).copied();
        known.ok_or_else(|| BundleError::Argument {
            argument: format!("--extensions {name}"),
            problem: format!("there is no such extension; there are {}", all.join(", ")),
        })
    });
    found.collect()
}

/// Reads environment templates.
pub(super) fn environments(
    cwd: &Path,
    paths: &[PathBuf],
    extensions: &[&str],
) -> Result<Vec<Around>, BundleError> {
    let read = paths.iter().map(|path| {
        let path = clean(cwd, path);
        let text = read_text(&path, MAX_TEXT)?;
        let format = format_of(&path).unwrap_or(TemplateFormat::Yaml);
        let document = parse(&path, &text, format)?;
        let template = decode_environment_template(document, Some(extensions));
        let template = template.map_err(|error| BundleError::Template {
            problem: place::explain(&error, &text, format),
            path,
        })?;
        Ok(Around { file: EnvironmentFile { format, template: text }, template })
    });
    read.collect()
}

/// Reads path mapping rules: `file://FILE` or JSON.
pub(super) fn rules(cwd: &Path, asked: Option<&str>) -> Result<Vec<MappingRule>, BundleError> {
    let Some(asked) = asked else {
        return Ok(Vec::new());
    };
    let wrong = |problem: String| BundleError::Argument {
        argument: format!("--path-mapping-rules {asked}"),
        problem,
    };
    let text = match asked.strip_prefix("file://") {
        Some(file) => read_text(&clean(cwd, Path::new(file)), MAX_TEXT)?,
        None => asked.to_owned(),
    };
    let rules: Rules = serde_json::from_str(&text)
        .map_err(|error| wrong(format!("are no path mapping rules in JSON: {error}")))?;
    if rules.version != RULES_VERSION {
        let version = &rules.version;
        return Err(wrong(format!("their version is {version}, {RULES_VERSION} is read here")));
    }
    Ok(rules.path_mapping_rules)
}

/// The parameters of the job, and those that only its environments have.
pub(super) fn definitions(
    template: &JobTemplate,
    around: &[Around],
) -> Vec<JobParameterDefinition> {
    let mut all = template.parameter_definitions_list().to_vec();
    for definition in around.iter().flat_map(|a| a.template.parameter_definitions.iter().flatten())
    {
        if !all.iter().any(|known| known.name() == definition.name()) {
            all.push(definition.clone());
        }
    }
    all
}

/// A session has at most one environment that wraps the actions of others. The model sees to that within a job.
pub(super) fn check_wrappers(job: &Job, around: &[Around]) -> Result<(), BundleError> {
    let outer = around.iter().filter(|around| {
        let script = around.template.environment.script.as_ref();
        script.is_some_and(|script| script.actions.has_any_wrap_hook())
    });
    let mut names: Vec<&str> =
        outer.map(|around| around.template.environment.name.as_str()).collect();
    let inner = job.job_environments.iter().flatten();
    let inner = inner.chain(job.steps.iter().flat_map(|s| s.step_environments.iter().flatten()));
    let wraps = inner.filter(|environment| {
        environment.script.as_ref().is_some_and(|script| script.actions.has_any_wrap_hook())
    });
    if let Some(first) = wraps.map(|environment| environment.name.as_str()).next() {
        names.push(first);
    }
    match names.as_slice() {
        [] | [_] => Ok(()),
        [first, second, ..] => Err(BundleError::Argument {
            argument: format!("the environments {first} and {second}"),
            problem: "both wrap the actions of others, and a session has at most one such".into(),
        }),
    }
}
