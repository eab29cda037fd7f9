//! From what an artist submits, an Open Job Description bundle or a scene, to a job that sites understand.
//!
//! The only room that knows the job format. Nothing here writes to a disk or runs a program, and a
//! lender never comes here: a borrower's template is read again by the session runner, in the jail.

mod around;
mod catalog;
mod deadline;
mod error;
mod files;
mod parameters;
mod place;
mod policy;
mod scene;
mod source;
mod standard;
mod steps;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use meshfarm_protocol::id::{Millis, TenantId};
use meshfarm_protocol::job::{JobSpec, MAX_STEPS, MeshPolicy};
use meshfarm_protocol::session::{JobFile, SESSION_VERSION};
use openjd_model::job::Job;
use openjd_model::template::JobTemplate;
use openjd_model::{
    CallerLimits, JobParameterValues, ModelError, ModelExtension, ValidationContext, create_job,
    decode_job_template,
};
use serde::{Deserialize, Serialize};

pub use catalog::{About, Catalog, ParameterNames, Probe, Renderer, SceneKind, SettingKeys};
pub use deadline::Deadline;
pub use error::BundleError;
pub use files::InputFile;
pub use policy::{Duration, PolicyChanges};
pub use standard::{NamedPath, PlayRequest, Playable, WantedTasks, check, prepare};

use files::clean;
use source::Bundle;
use steps::StepsError;

/// What a person submits, as the command line and the local API carry it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubmitRequest {
    /// A bundle folder, a template file, a scene file, or `bundle:NAME` for a built-in bundle without a
    /// scene. Relative paths are joined to `cwd`.
    pub source: PathBuf,
    /// The submitter's working folder, absolute.
    pub cwd: PathBuf,
    /// `NAME=VALUE`, `file://FILE` or a JSON object, each; later ones win.
    #[serde(default)]
    pub parameters: Vec<String>,
    /// `--frames`
    #[serde(default)]
    pub frames: Option<String>,
    /// `--resolution`
    #[serde(default)]
    pub resolution: Option<String>,
    /// `--output`
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// Files and folders that travel too.
    #[serde(default)]
    pub inputs: Vec<PathBuf>,
    /// Files of environment templates that stand around the job, the outermost first.
    #[serde(default)]
    pub environments: Vec<PathBuf>,
    /// Path mapping rules of its own: `file://FILE` or JSON.
    #[serde(default)]
    pub path_mapping: Option<String>,
    /// What the flags say of the mesh policy.
    #[serde(default)]
    pub policy: PolicyChanges,
    /// The submitter's name.
    pub user: String,
}

/// What a site adds to a submission.
#[derive(Clone, Copy)]
pub struct Defaults<'a> {
    /// The renderers that it knows.
    pub catalog: &'a Catalog,
    /// The mesh policy of jobs that say nothing.
    pub policy: &'a MeshPolicy,
    /// The project of jobs that name none.
    pub project: &'a str,
    /// The tenant that a project is.
    pub tenant_of: &'a dyn Fn(&str) -> TenantId,
    /// When the job is submitted.
    pub now: Millis,
}

impl std::fmt::Debug for Defaults<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Defaults").field("project", &self.project).finish_non_exhaustive()
    }
}

/// A job that can be queued.
#[derive(Clone, Debug)]
pub struct LoadedJob {
    /// What the borrower decides by.
    pub spec: JobSpec,
    /// The files that travel.
    pub inputs: Vec<InputFile>,
    /// Where each output root returns to, by the root's id.
    pub outputs: Vec<(String, PathBuf)>,
    /// The content of the job file, which travels with the inputs.
    pub job_json: Vec<u8>,
    /// Whether the job waits until it is released.
    pub held: bool,
    /// What the submitter should know.
    pub warnings: Vec<String>,
}

/// Makes a job of what was submitted.
///
/// # Errors
/// When anything is wrong with it: the error names the file, the element and what would be right.
pub fn load(request: &SubmitRequest, defaults: &Defaults<'_>) -> Result<LoadedJob, BundleError> {
    let mut bundle = open(request, defaults.catalog)?;
    let template = decode(&bundle)?;
    let known = around::extensions(None)?;
    let around = around::environments(&request.cwd, &request.environments, &known)?;
    let path_mapping = around::rules(&request.cwd, request.path_mapping.as_deref())?;
    let definitions = around::definitions(&template, &around);
    let values = parameters::resolve(&mut bundle, &template, (&around, &definitions), request)?;
    let job = instantiate(&bundle, &template, &values)?;
    around::check_wrappers(&job, &around)?;
    let steps = steps::steps(&job, !around.is_empty()).map_err(|error| match error {
        StepsError::Bundle(error) => error,
        StepsError::Model(error) => refused(&bundle, &error),
    })?;

    let mut wanted = parameters::wanted(&definitions, &values);
    add_assets(&mut wanted, &bundle, request);
    let plan = wanted.plan()?;

    let (mut policy, now) = (defaults.policy.clone(), defaults.now);
    let path = bundle.path.display().to_string();
    policy::apply(&mut policy, &bundle.exported.changes, (&path, now))?;
    policy::apply(&mut policy, &bundle.policy, ("mesh.toml", now))?;
    policy::apply(&mut policy, &request.policy, ("the command line", now))?;
    let project = request.policy.project.clone().or(bundle.policy.project);
    let project = project.unwrap_or_else(|| defaults.project.to_owned());

    let file = JobFile {
        version: SESSION_VERSION,
        format: bundle.format,
        template: bundle.text,
        parameters: parameters::as_texts(&values),
        environments: around.into_iter().map(|around| around.file).collect(),
        path_mapping,
    };
    let mut warnings = bundle.warnings;
    warnings.extend(bundle.exported.warnings);
    warnings.extend(plan.warnings);
    Ok(LoadedJob {
        spec: JobSpec {
            name: job.name,
            user: request.user.clone(),
            tenant: (defaults.tenant_of)(&project),
            project,
            policy,
            steps,
            layout: plan.layout,
        },
        inputs: plan.inputs,
        outputs: plan.outputs,
        job_json: serde_json::to_vec(&file).expect("texts always serialize into memory"),
        held: bundle.exported.held,
        warnings,
    })
}

/// The bundle that the request names.
fn open(request: &SubmitRequest, catalog: &Catalog) -> Result<Bundle, BundleError> {
    let named = request.source.to_str().and_then(|source| source.strip_prefix("bundle:"));
    if let Some(name) = named {
        let found = catalog.without_scene(name);
        let (renderer, kind) = found.ok_or_else(|| BundleError::Argument {
            argument: format!("bundle:{name}"),
            problem: "there is no such bundle that needs no scene file".into(),
        })?;
        return Ok(scene::bundle_of(renderer, kind));
    }
    let path = clean(&request.cwd, &request.source);
    if path.is_dir() {
        return source::bundle(&path);
    }
    if !path.exists() {
        return Err(BundleError::NoSource { path });
    }
    if source::format_of(&path).is_some() {
        // A template that lies in its bundle is the bundle.
        let in_bundle = path.file_stem().is_some_and(|stem| stem == "template");
        return match path.parent() {
            Some(folder) if in_bundle => source::bundle(folder),
            _ => source::template(&path),
        };
    }
    let extension = path.extension().and_then(|extension| extension.to_str());
    let found = extension.and_then(|extension| catalog.for_extension(extension));
    let Some((renderer, kind)) = found else {
        return Err(BundleError::UnknownScene {
            path,
            known: format!("{}, and .yaml or .json templates", catalog.known()),
        });
    };
    scene::scene(&path, renderer, kind)
}

fn decode(bundle: &Bundle) -> Result<JobTemplate, BundleError> {
    let document = source::parse(&bundle.path, &bundle.text, bundle.format)?;
    let known: Vec<&str> = ModelExtension::ALL.iter().map(|e| e.as_str()).collect();
    let limits = CallerLimits { max_step_count: Some(MAX_STEPS), ..CallerLimits::default() };
    decode_job_template(document, Some(&known), &limits).map_err(|error| refused(bundle, &error))
}

fn instantiate(
    bundle: &Bundle,
    template: &JobTemplate,
    values: &JobParameterValues,
) -> Result<Job, BundleError> {
    let context = ValidationContext::from_profile(template.profile());
    create_job(template, values, &context).map_err(|error| refused(bundle, &error))
}

fn refused(bundle: &Bundle, error: &ModelError) -> BundleError {
    BundleError::Template {
        path: bundle.path.clone(),
        problem: place::explain(error, &bundle.text, bundle.format),
    }
}

/// Adds what the bundle's asset references and the command line name.
fn add_assets(wanted: &mut files::Wanted, bundle: &Bundle, request: &SubmitRequest) {
    for (path, by) in bundle.assets.files.iter().cloned() {
        wanted.file(path, by, false);
    }
    for (path, by) in bundle.assets.folders.iter().cloned() {
        wanted.folder(path, by, false);
    }
    for (path, by) in bundle.assets.outputs.iter().cloned() {
        wanted.output(path, by);
    }
    for path in &request.inputs {
        let path = clean(&request.cwd, Path::new(path));
        let by = "--input".to_owned();
        if path.is_dir() {
            wanted.folder(path, by, false);
        } else {
            wanted.file(path, by, false);
        }
    }
}
