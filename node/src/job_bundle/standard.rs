//! What the command line of the standard asks: whether a template is right, and a job that is run whole in one session.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use meshfarm_protocol::id::{StepNo, TaskNo};
use meshfarm_protocol::session::{
    JobFile, PlayedStep, PlayedTasks, SESSION_VERSION, TemplateFormat,
};
use openjd_model::job::{Job, Step};
use openjd_model::template::JobParameterDefinition;
use openjd_model::{
    CallerLimits, DataFlow, JobParameterType, JobParameterValues, ObjectType, PathParameterOptions,
    StepDependencyGraph, StepParameterSpaceIterator, TaskParameterSet, ValidationContext,
    create_job, decode_job_template, decode_template, preprocess_job_parameters,
};
use serde_json::Value;

use super::error::{BundleError, hint};
use super::files::clean;
use super::parameters::argument_values;
use super::source::{self, format_of, parse, read_text};
use super::{around, parameters, place, steps};

/// A longer file is refused, in bytes.
const MAX_TEXT: u64 = 16 << 20;

/// The extension under which the value of a path may be a URI.
const URIS: &str = "EXPR";

/// A job that is run whole.
#[derive(Clone, Debug, Default)]
pub struct PlayRequest {
    /// The template's file.
    pub template: PathBuf,
    /// The person's working folder, absolute.
    pub cwd: PathBuf,
    /// `NAME=VALUE`, `file://FILE` or a JSON object, each; later ones win.
    pub parameters: Vec<String>,
    /// Files of environment templates, the outermost first.
    pub environments: Vec<PathBuf>,
    /// Path mapping rules: `file://FILE` or JSON.
    pub path_mapping: Option<String>,
    /// Names of extensions that templates may use, parted by commas. None: all that are known.
    pub extensions: Option<String>,
    /// The only step that is wanted. None: the only one that there is, or all.
    pub step: Option<String>,
    /// Whether the steps that it depends on are run before it.
    pub dependencies: bool,
    /// Which tasks of the step.
    pub tasks: WantedTasks,
}

/// Which tasks are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WantedTasks {
    /// Every one.
    #[default]
    All,
    /// The first so many.
    First(u32),
    /// The one with these values.
    One(Vec<(String, String)>),
    /// Those with these values: `file://FILE` or a list of objects in JSON.
    Listed(String),
}

/// A job that can be run whole.
#[derive(Clone, Debug)]
pub struct Playable {
    /// The job's name.
    pub name: String,
    /// The only step that was wanted.
    pub step: Option<String>,
    /// The content of the job file.
    pub job_json: Vec<u8>,
    /// What is run, in order.
    pub steps: Vec<PlayedStep>,
    /// What the values of PATH parameters name.
    pub paths: Vec<NamedPath>,
}

/// A path that the value of a parameter names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedPath {
    /// Where it is, absolute.
    pub path: PathBuf,
    /// The parameter.
    pub parameter: String,
    /// Whether it is a file and no folder.
    pub is_file: bool,
    /// Whether the job writes there.
    pub writes: bool,
}

/// Whether the job template or environment template at `path` is right.
///
/// # Errors
/// When it is not: the error says where.
pub fn check(path: &Path, extensions: Option<&str>) -> Result<(), BundleError> {
    let known = around::extensions(extensions)?;
    let text = read_text(path, MAX_TEXT)?;
    let format = format_of(path).unwrap_or(TemplateFormat::Yaml);
    let document = parse(path, &text, format)?;
    let decoded = decode_template(document, Some(&known), &CallerLimits::default());
    decoded.map(drop).map_err(|error| BundleError::Template {
        path: path.to_owned(),
        problem: place::explain(&error, &text, format),
    })
}

/// Makes a job of a template, to be run whole. Reads files and writes none.
///
/// # Errors
/// When anything is wrong with it: the error names the file, the element and what would be right.
pub fn prepare(request: &PlayRequest) -> Result<Playable, BundleError> {
    let known = around::extensions(request.extensions.as_deref())?;
    let path = clean(&request.cwd, &request.template);
    let bundle = source::template(&path)?;
    let refused = |error| BundleError::Template {
        path: path.clone(),
        problem: place::explain(&error, &bundle.text, bundle.format),
    };
    let document = parse(&path, &bundle.text, bundle.format)?;
    let template = decode_job_template(document, Some(&known), &CallerLimits::default());
    let template = template.map_err(refused)?;
    let around = around::environments(&request.cwd, &request.environments, &known)?;
    let rules = around::rules(&request.cwd, request.path_mapping.as_deref())?;
    let (files, templates): (Vec<_>, Vec<_>) =
        around.iter().map(|around| (around.file.clone(), around.template.clone())).unzip();

    let definitions = around::definitions(&template, &around);
    let uris = template.extensions.iter().flatten().any(|name| name.as_str() == URIS);
    let mut given = std::collections::HashMap::new();
    for argument in &request.parameters {
        for value in argument_values(&request.cwd, argument)? {
            let definition = definitions.iter().find(|d| d.name() == value.name);
            let kind = definition.map(JobParameterDefinition::job_param_type);
            let text = value_text(&value.value, kind, (&request.cwd, uris));
            given.insert(value.name, text.as_str().into());
        }
    }
    let folder = bundle.folder.canonicalize().unwrap_or_else(|_gone| bundle.folder.clone());
    let (folder, cwd) = (folder.to_string_lossy(), request.cwd.to_string_lossy());
    let options = PathParameterOptions {
        allow_uri_path_values: true,
        ..PathParameterOptions::new(&folder, &cwd)
    };
    let values = preprocess_job_parameters(&template, &given, &templates, &options);
    let values = values.map_err(|error| BundleError::Values {
        path: path.clone(),
        problem: place::plain(&error),
    })?;
    let context = ValidationContext::from_profile(template.profile());
    let job = create_job(&template, &values, &context).map_err(refused)?;
    around::check_wrappers(&job, &around)?;

    let chosen = choose(request, &job, &path)?;
    let steps = chosen
        .iter()
        .map(|index| played(request, &job, *index, *index == chosen[chosen.len() - 1]))
        .collect::<Result<_, _>>()?;
    let only = (request.step.is_some() || job.steps.len() == 1).then(|| chosen.last()).flatten();
    let file = JobFile {
        version: SESSION_VERSION,
        format: bundle.format,
        template: bundle.text.clone(),
        parameters: parameters::as_texts(&values),
        environments: files,
        path_mapping: rules,
    };
    Ok(Playable {
        step: only.map(|index| job.steps[*index].name.clone()),
        name: job.name,
        job_json: serde_json::to_vec(&file).expect("texts always serialize into memory"),
        steps,
        paths: paths(&definitions, &values),
    })
}

/// The value of a parameter as the model takes it: text, with relative paths made absolute and without `..`.
fn value_text(value: &Value, kind: Option<JobParameterType>, (cwd, uris): (&Path, bool)) -> String {
    let absolute = |text: &str| {
        if text.is_empty() || (uris && text.contains("://")) || text.starts_with('/') {
            return text.to_owned();
        }
        clean(cwd, Path::new(text)).to_string_lossy().into_owned()
    };
    let text = text_of(value);
    match kind {
        Some(JobParameterType::Path) => absolute(&text),
        Some(JobParameterType::ListPath) => match serde_json::from_str::<Vec<String>>(&text) {
            Ok(list) => Value::from_iter(list.iter().map(|text| absolute(text))).to_string(),
            // The model says what is wrong with it.
            Err(_no_list) => text,
        },
        Some(_) | None => text,
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Indices of the steps that are run, in order. What is wanted alone comes last.
fn choose(request: &PlayRequest, job: &Job, path: &Path) -> Result<Vec<usize>, BundleError> {
    let names: Vec<&str> = job.steps.iter().map(|step| step.name.as_str()).collect();
    let wanted = match &request.step {
        Some(name) => {
            let found = names.iter().position(|known| known == name);
            Some(found.ok_or_else(|| BundleError::Argument {
                argument: format!("--step {name}"),
                problem: format!("the job has no such step; {}", hint(name, &names)),
            })?)
        }
        None if names.len() == 1 => Some(0),
        None => None,
    };
    let refused =
        |error| BundleError::Template { path: path.to_owned(), problem: place::plain(&error) };
    let sorted = StepDependencyGraph::new(job).and_then(|graph| graph.topo_sorted());
    let sorted = sorted.map_err(refused)?;
    let Some(wanted) = wanted else {
        return match &request.tasks {
            WantedTasks::All | WantedTasks::First(_) => Ok(sorted),
            WantedTasks::One(_) | WantedTasks::Listed(_) => Err(BundleError::Argument {
                argument: "tasks of a job with several steps".into(),
                problem: format!("say which with --step: {}", names.join(", ")),
            }),
        };
    };
    let mut needed = BTreeSet::from([wanted]);
    let mut found = vec![wanted];
    while let Some(index) = found.pop().filter(|_| request.dependencies) {
        found.extend(needs(job, index).into_iter().filter(|index| needed.insert(*index)));
    }
    // Whatever a step depends on stands before it, so the one that is wanted is the last.
    Ok(sorted.into_iter().filter(|index| needed.contains(index)).collect())
}

fn needs(job: &Job, index: usize) -> Vec<usize> {
    let names = job.steps[index].dependencies.iter().flatten();
    let found =
        names.filter_map(|needed| job.steps.iter().position(|step| step.name == needed.depends_on));
    found.collect()
}

/// What of a step is run. Which tasks are wanted is said of the last step only, or of all when none is named.
fn played(
    request: &PlayRequest,
    job: &Job,
    index: usize,
    is_last: bool,
) -> Result<PlayedStep, BundleError> {
    let step = &job.steps[index];
    let all = PlayedTasks::First(u32::MAX);
    let tasks = match &request.tasks {
        WantedTasks::First(n) if is_last || request.step.is_none() => PlayedTasks::First(*n),
        WantedTasks::One(values) if is_last => {
            let values = values.iter().cloned().collect();
            PlayedTasks::These(vec![number_of(step, &values, "--task-param")?])
        }
        WantedTasks::Listed(list) if is_last => {
            let sets = listed(&request.cwd, list)?;
            let numbers = sets.iter().map(|values| number_of(step, values, "--tasks"));
            PlayedTasks::These(numbers.collect::<Result<_, _>>()?)
        }
        WantedTasks::All | WantedTasks::First(_) | WantedTasks::One(_) | WantedTasks::Listed(_) => {
            all
        }
    };
    Ok(PlayedStep { step: StepNo(u32::try_from(index).unwrap_or(u32::MAX)), tasks })
}

/// The values of tasks in a list.
fn listed(cwd: &Path, list: &str) -> Result<Vec<BTreeMap<String, String>>, BundleError> {
    let wrong =
        |problem: String| BundleError::Argument { argument: format!("--tasks {list}"), problem };
    let document: Value = match list.strip_prefix("file://") {
        Some(file) => {
            let path = clean(cwd, Path::new(file));
            let format = format_of(&path).unwrap_or(TemplateFormat::Yaml);
            parse(&path, &read_text(&path, MAX_TEXT)?, format)?
        }
        None => serde_json::from_str(list).map_err(|e| wrong(format!("is no JSON: {e}")))?,
    };
    let shape = || wrong("a list of objects is wanted, each with the values of one task".into());
    let sets = document.as_array().ok_or_else(shape)?;
    let sets = sets.iter().map(|set| {
        let set = set.as_object().ok_or_else(shape)?;
        Ok(set.iter().map(|(name, value)| (name.clone(), text_of(value))).collect())
    });
    sets.collect()
}

/// The number of the task with these values.
fn number_of(
    step: &Step,
    wanted: &BTreeMap<String, String>,
    flag: &str,
) -> Result<TaskNo, BundleError> {
    let shown: Vec<_> = wanted.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let wrong = |problem: String| BundleError::Argument {
        argument: format!("{flag} {}", shown.join(" ")),
        problem,
    };
    let name = &step.name;
    let tasks = steps::tasks_of(step).map_err(|error| wrong(place::plain(&error)))?;
    let tasks = tasks.ok_or_else(|| wrong(format!("the step {name} has no task parameters")))?;
    let numbers = 0..StepParameterSpaceIterator::len(&tasks);
    let found = numbers.into_iter().find(|i| tasks.get(*i).is_some_and(|set| is_set(&set, wanted)));
    let number = found.and_then(|i| u32::try_from(i).ok());
    number.map(TaskNo).ok_or_else(|| {
        let mut names: Vec<_> = tasks.names().iter().map(String::as_str).collect();
        names.sort_unstable();
        let names = names.join(", ");
        wrong(format!("the step {name} has no such task; each has one value for each of {names}"))
    })
}

fn is_set(set: &TaskParameterSet, wanted: &BTreeMap<String, String>) -> bool {
    let same = |has: &str, wanted: &str| {
        let number = |text: &str| text.parse::<f64>().ok();
        has == wanted || number(has).is_some_and(|has| Some(has) == number(wanted))
    };
    set.len() == wanted.len()
        && set.iter().all(|(name, value)| {
            let value = value.value.to_display_string();
            wanted.get(name).is_some_and(|wanted| same(&value, wanted))
        })
}

/// What the values of PATH parameters name.
fn paths(definitions: &[JobParameterDefinition], values: &JobParameterValues) -> Vec<NamedPath> {
    let mut all = Vec::new();
    for definition in definitions {
        let Some(value) = values.get(definition.name()) else {
            continue;
        };
        let text = value.value.to_display_string();
        let named: Vec<String> = match definition.job_param_type() {
            JobParameterType::Path => vec![text],
            JobParameterType::ListPath => serde_json::from_str(&text).unwrap_or_default(),
            _ => continue,
        };
        let (kind, flow) = definition.path_properties();
        for path in named.iter().filter(|path| path.starts_with('/')) {
            all.push(NamedPath {
                path: clean(Path::new("/"), Path::new(path)),
                parameter: definition.name().to_owned(),
                is_file: kind == Some(ObjectType::File),
                writes: matches!(flow, Some(DataFlow::Out | DataFlow::Inout)),
            });
        }
    }
    all
}
