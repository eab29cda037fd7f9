//! Why a submission is refused, in words for the person who made it. Nothing was queued or written in any case.

use std::io;
use std::path::PathBuf;

/// Why a bundle or a scene is no job. The caller shows it and changes nothing.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file that must be read cannot be read.
    #[error("{path}: cannot be read", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not written in the language that its name promises.
    #[error("{path}: {problem}", path = path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// What the parser says, with line and column.
        problem: String,
    },
    /// A template that Open Job Description refuses.
    #[error("{path}: {problem}", path = path.display())]
    Template {
        /// Which.
        path: PathBuf,
        /// What is wrong, with the path of each element.
        problem: String,
    },
    /// One element of a file beside the template.
    #[error("{path}: {element}: {problem}", path = path.display())]
    Element {
        /// Which file.
        path: PathBuf,
        /// The path of the element in it.
        element: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A folder without a template.
    #[error("{path}: holds no job: a bundle folder has a template.yaml or template.json", path = path.display())]
    NoTemplate {
        /// The folder.
        path: PathBuf,
    },
    /// The source is not there.
    #[error("{path}: there is no such file or folder", path = path.display())]
    NoSource {
        /// What was asked for.
        path: PathBuf,
    },
    /// No built-in bundle takes such a file.
    #[error("{path}: no renderer is known for this kind of file; known are {known}", path = path.display())]
    UnknownScene {
        /// The file.
        path: PathBuf,
        /// The known extensions, with the renderer of each.
        known: String,
    },
    /// An argument of the submission that says nothing.
    #[error("{argument}: {problem}")]
    Argument {
        /// The argument as it was given.
        argument: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A value for a parameter that the template does not have.
    #[error("there is no parameter {name}; {hint}")]
    UnknownParameter {
        /// The name that was given.
        name: String,
        /// A name that is close, or all that there are.
        hint: String,
    },
    /// Values that the template's parameters do not take.
    #[error("{path}: {problem}", path = path.display())]
    Values {
        /// The template.
        path: PathBuf,
        /// What is wrong, a line for each parameter.
        problem: String,
    },
    /// A file or folder that the job reads is not there, or not what it should be.
    #[error("{path}: {problem} (named by {named_by})", path = path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// Who wants it: a parameter, `--input`, an element of the asset references.
        named_by: String,
    },
    /// A folder that the job writes to cannot be made or written.
    #[error("{path}: {problem} (named by {named_by}); choose another folder with --output or -p", path = path.display())]
    Output {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// Who wants it.
        named_by: String,
    },
    /// A folder that no jail can show, because a system folder is there.
    #[error("{path}: a job's files cannot lie directly in this system folder; put them into a folder of their own", path = path.display())]
    Reserved {
        /// Which.
        path: PathBuf,
    },
    /// More than a job may have.
    #[error("the job has {count} {what}; at most {max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many may be.
        max: usize,
    },
}

/// The name among `known` that `wrong` was probably meant to be.
pub(super) fn did_you_mean<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = 1 + wrong.chars().count() / 4;
    let scored = known.into_iter().map(|name| (distance(wrong, name), name));
    let best = scored.min_by_key(|(distance, _)| *distance);
    best.filter(|(distance, _)| *distance <= limit).map(|(_, name)| name)
}

/// What to say of an unknown name: the close one, or all.
pub(super) fn hint(wrong: &str, known: &[&str]) -> String {
    if let Some(name) = did_you_mean(wrong, known.iter().copied()) {
        return format!("did you mean {name}?");
    }
    if known.is_empty() {
        return "there are none".into();
    }
    format!("there are {}", known.join(", "))
}

/// Edits between two names, without regard to case: insertions, deletions and replacements.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(128).flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().take(128).flat_map(char::to_lowercase).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognized() {
        let known = ["Frames", "OutputDir", "Scene"];
        assert_eq!(hint("frame", &known), "did you mean Frames?");
        assert_eq!(hint("OuptutDir", &known), "did you mean OutputDir?");
        assert_eq!(hint("Camera", &known), "there are Frames, OutputDir, Scene");
    }
}
