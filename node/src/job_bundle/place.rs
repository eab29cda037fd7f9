//! What the model says against a template, with the place: the element's path, and the line where it can be found.
//!
//! The model's second pass names the path of each element. Its first, which only sees whether keys and
//! types are right, names neither path nor line; so the parts are tried one by one to find the guilty one.

use std::fmt::Write as _;

use meshfarm_protocol::session::TemplateFormat;
use openjd_model::template::parse::document_string_to_object;
use openjd_model::template::{
    Environment, JobParameterDefinition, StepScript, StepTemplate, TaskParameterDefinition,
};
use openjd_model::{CallerLimits, DocumentType, ModelError, PathElement};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// `error` in words, with the place in `text`.
pub(super) fn explain(error: &ModelError, text: &str, format: TemplateFormat) -> String {
    let mut said = plain(error);
    if let ModelError::DecodeValidation(problem) = error {
        if let Some(line) = line_of(problem, text) {
            let _ = write!(said, " (line {line})");
        }
        let format = match format {
            TemplateFormat::Json => DocumentType::Json,
            TemplateFormat::Yaml => DocumentType::Yaml,
        };
        let document = document_string_to_object(text, format, &CallerLimits::default());
        if let Some(path) = document.ok().and_then(|document| guilty(&document)) {
            return format!("{path}: {said}");
        }
    }
    said
}

/// `error` in words, one line for each thing that is wrong.
pub(super) fn plain(error: &ModelError) -> String {
    match error {
        ModelError::ModelValidation(errors) => {
            let lines = errors.errors.iter().map(|error| {
                let path = path_text(&error.path);
                let colon = if path.is_empty() { "" } else { ": " };
                format!("{path}{colon}{}", error.message)
            });
            lines.collect::<Vec<_>>().join("\n")
        }
        ModelError::DecodeValidation(problem) => problem.trim().to_owned(),
        other => other.to_string(),
    }
}

fn path_text(path: &[PathElement]) -> String {
    let mut text = String::new();
    for element in path {
        match element {
            PathElement::Field(name) if text.is_empty() => text.push_str(name),
            PathElement::Field(name) => {
                let _ = write!(text, ".{name}");
            }
            PathElement::Index(i) => {
                let _ = write!(text, "[{i}]");
            }
        }
    }
    text
}

/// The path of the smallest part that does not have the shape it should have.
fn guilty(document: &Value) -> Option<String> {
    first_bad::<JobParameterDefinition>(document, "parameterDefinitions")
        .or_else(|| first_bad::<Environment>(document, "jobEnvironments"))
        .or_else(|| {
            let steps = first_bad::<StepTemplate>(document, "steps")?;
            let i: usize = steps.strip_prefix("steps[")?.trim_end_matches(']').parse().ok()?;
            let step = document.get("steps")?.get(i)?;
            Some(within_step(step).map_or_else(|| steps.clone(), |part| format!("{steps}.{part}")))
        })
}

fn within_step(step: &Value) -> Option<String> {
    if let Some(bad) = first_bad::<Environment>(step, "stepEnvironments") {
        return Some(bad);
    }
    if let Some(space) = step.get("parameterSpace")
        && let Some(bad) = first_bad::<TaskParameterDefinition>(space, "taskParameterDefinitions")
    {
        return Some(format!("parameterSpace.{bad}"));
    }
    let script = step.get("script")?;
    let bad = serde_json::from_value::<StepScript>(script.clone()).is_err();
    bad.then(|| "script".to_owned())
}

/// The first item of the list `key` that is no `T`.
fn first_bad<T: DeserializeOwned>(of: &Value, key: &str) -> Option<String> {
    let items = of.get(key)?.as_array()?;
    let bad = |item: &Value| serde_json::from_value::<T>(item.clone()).is_err();
    let i = items.iter().position(bad)?;
    Some(format!("{key}[{i}]"))
}

/// The line of `text` with the key or value that `problem` calls unknown.
fn line_of(problem: &str, text: &str) -> Option<usize> {
    let between = |before: &str, after: char| {
        let (_, rest) = problem.split_once(before)?;
        rest.split_once(after).map(|(name, _)| name)
    };
    let found = if let Some(key) = between("unknown field `", '`') {
        let is_key = |part: &str| {
            let part = part.trim_start_matches([' ', '-', '{', '"', '\'', ',']);
            let rest = part.strip_prefix(key);
            rest.is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
        };
        text.lines().position(|line| line.split(['{', ',']).any(is_key))
    } else {
        let value = between("type: '", '\'').or_else(|| between("unknown variant `", '`'))?;
        let is_word = |part: &str| part == value;
        let apart = |c: char| !(c.is_alphanumeric() || "[]_".contains(c));
        text.lines().position(|line| line.split(apart).any(is_word))
    };
    found.map(|i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_or_value_gets_its_line() {
        let text = "name: x\nsteps:\n  - name: A\n    scirpt: {}\n  - {a: 1, type: INTEGER}\n";
        assert_eq!(line_of("unknown field `scirpt`, expected `script`", text), Some(4));
        assert_eq!(line_of("unknown field `a`", text), Some(5));
        assert_eq!(line_of("unknown task parameter type: 'INTEGER'", text), Some(5));
        assert_eq!(line_of("missing field `steps`", text), None);
    }
}
