//! The job as the borrower sent it: template text and parameter values to an Open Job Description job.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};
use meshfarm_protocol::session::{
    EnvironmentFile, JobFile, MappedFormat, MappingRule, SESSION_VERSION, TemplateFormat,
};
use openjd_model::job::{Environment, Job};
use openjd_model::template::EnvironmentTemplate;
use openjd_model::template::parse::document_string_to_object;
use openjd_model::{
    CallerLimits, DocumentType, JobParameterValues, ModelExtension, ModelProfile,
    PathParameterOptions, ValidationContext, build_symbol_table, convert_environment_with_symtab,
    create_job, decode_environment_template, decode_job_template, preprocess_job_parameters,
};
use openjd_sessions::path_mapping::{PathFormat, PathMappingRule};

/// A job file longer than this is refused, in bytes.
const MAX_JOB_FILE: u64 = 64 << 20;

/// What a session needs of a job.
#[derive(Debug)]
pub(crate) struct OpenJob {
    /// The job with everything resolved that can be resolved away from the host.
    pub(crate) job: Job,
    /// Its parameter values.
    pub(crate) values: JobParameterValues,
    /// The revision and extensions that its template declares.
    pub(crate) profile: ModelProfile,
    /// Environments around the job's own, the outermost first.
    pub(crate) around: Vec<Environment>,
    /// The submitter's own path mapping rules.
    pub(crate) rules: Vec<PathMappingRule>,
}

/// Reads the job file at `path`.
pub(crate) fn open(path: &str) -> anyhow::Result<OpenJob> {
    let file = read(Path::new(path)).with_context(|| format!("reading the job file {path}"))?;
    let limits = CallerLimits::default();
    let document = document_string_to_object(&file.template, written(file.format), &limits)?;
    let known: Vec<&str> = ModelExtension::ALL.iter().map(|e| e.as_str()).collect();
    let around = file.environments.iter().map(|around| environment(around, &known));
    let around = around.collect::<anyhow::Result<Vec<_>>>()?;
    let template = decode_job_template(document, Some(&known), &limits)?;
    let values = file
        .parameters
        .into_iter()
        .map(|(name, value)| (name, value.as_str().into()))
        .collect::<HashMap<_, _>>();
    // Every path is absolute and may be a Windows path: nothing is joined to anything.
    let paths = PathParameterOptions {
        job_template_dir: "/",
        current_working_dir: "",
        path_format: PathFormat::Posix,
        allow_template_dir_walk_up: true,
        allow_uri_path_values: true,
    };
    let values = preprocess_job_parameters(&template, &values, &around, &paths)?;
    let profile = template.profile();
    let context = ValidationContext::from_profile(profile.clone());
    let job = create_job(&template, &values, &context)?;
    let symbols = build_symbol_table(&values)?;
    let around = around
        .iter()
        .map(|around| convert_environment_with_symtab(&around.environment, Some(&symbols)));
    let rules = file.path_mapping.into_iter().map(rule);
    Ok(OpenJob { job, values, profile, around: around.collect(), rules: rules.collect() })
}

fn written(format: TemplateFormat) -> DocumentType {
    match format {
        TemplateFormat::Json => DocumentType::Json,
        TemplateFormat::Yaml => DocumentType::Yaml,
    }
}

fn environment(file: &EnvironmentFile, known: &[&str]) -> anyhow::Result<EnvironmentTemplate> {
    let limits = CallerLimits::default();
    let document = document_string_to_object(&file.template, written(file.format), &limits)?;
    Ok(decode_environment_template(document, Some(known))?)
}

fn rule(rule: MappingRule) -> PathMappingRule {
    PathMappingRule {
        source_path_format: match rule.source_path_format {
            MappedFormat::Posix => PathFormat::Posix,
            MappedFormat::Windows => PathFormat::Windows,
            MappedFormat::Uri => PathFormat::Uri,
        },
        source_path: rule.source_path,
        destination_path: rule.destination_path,
    }
}

fn read(path: &Path) -> anyhow::Result<JobFile> {
    let mut text = String::new();
    let mut from = File::open(path)?.take(MAX_JOB_FILE + 1);
    from.read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= MAX_JOB_FILE, "it is longer than {MAX_JOB_FILE} bytes");
    let file: JobFile = serde_json::from_str(&text)?;
    ensure!(
        file.version == SESSION_VERSION,
        "its version is {}, this runner reads {SESSION_VERSION}",
        file.version
    );
    Ok(file)
}
