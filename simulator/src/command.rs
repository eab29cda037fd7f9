//! The commands: what each does with the library, and what it says.

mod sweep;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use meshfarm_simulator::{
    Bug, Outcome, Plan, Source, Verdict, compare, explain, import, record, run, run_shown, shrink,
};

use crate::cli::{Command, Format, Replay, Run, Shrink};

/// Exit status when a seed did not repeat its run.
const NOT_DETERMINED: u8 = 4;

pub(crate) fn perform(command: Command) -> Result<u8> {
    match command {
        Command::Run(asked) => run_once(&asked),
        Command::Sweep(asked) => sweep::sweep(&asked),
        Command::Replay(asked) => replay(&asked),
        Command::Shrink(asked) => shrink_to(&asked),
        Command::Compare { one, other, json } => {
            let (one, other) = (outcome_of(&one)?, outcome_of(&other)?);
            let rows = compare::rows(&one, &other);
            if json {
                say(&serde_json::to_string(&rows)?)?;
            } else {
                say(&compare::table(&rows))?;
            }
            Ok(0)
        }
        Command::Check { scenarios, expanded, seed } => {
            check(&scenarios, expanded.as_deref(), seed)
        }
        Command::Import { format, file, out, first, jobs, note } => {
            let csv = file.extension().is_some_and(|kind| kind == "csv");
            ensure!(
                csv == (format == Format::Csv),
                "{}: CSV ends in .csv, and SWF does not",
                file.display()
            );
            let all = import::read(&file).map_err(anyhow::Error::msg)?;
            let part: Vec<_> = all.iter().skip(first).take(jobs).cloned().collect();
            ensure!(!part.is_empty(), "no job is left: there are {}", all.len());
            std::fs::write(&out, import::as_csv(&part, &note))
                .with_context(|| out.display().to_string())?;
            say(&format!("{} of {} jobs are in {}", part.len(), all.len(), out.display()))?;
            Ok(0)
        }
        Command::Explain { run, frame } => {
            let plan = plan_of_run(&run)?;
            say(&explain::frame(&plan, &frame).map_err(anyhow::Error::msg)?)?;
            Ok(0)
        }
        Command::List { folder, json } => list(&folder, json),
    }
}

/// Print a text; whoever reads it may have gone away.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Scenario files that are named, and those of named folders.
pub(crate) fn files(named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in named {
        if path.is_dir() {
            let listed = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
            let mut found: Vec<_> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
            found.retain(|path| path.extension().is_some_and(|kind| kind == "toml"));
            ensure!(!found.is_empty(), "{}: there is no scenario in it", path.display());
            found.sort();
            files.extend(found);
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}

/// The words that reproduce a run.
pub(crate) fn reproduce(path: &Path, seed: u64, bug: Option<Bug>) -> String {
    let bug = bug.and_then(|bug| clap::ValueEnum::to_possible_value(&bug));
    let bug = bug.map_or_else(String::new, |bug| format!(" --seeded-bug {}", bug.get_name()));
    format!("meshfarm-sim replay {} --seed {seed}{bug}", path.display())
}

/// The exit status; every failure ends with the one command that repeats it.
fn finish(outcome: &Outcome, reproduce: &str) -> u8 {
    if outcome.verdict != Verdict::Pass {
        eprintln!("reproduce: {reproduce}");
    }
    outcome.verdict.exit_code()
}

fn show(outcome: &Outcome, json: bool) -> Result<()> {
    if json { say(&serde_json::to_string(outcome)?) } else { say(&outcome.to_string()) }
}

fn run_once(asked: &Run) -> Result<u8> {
    let plan = Source::read(&asked.scenario)?.plan(asked.seed)?;
    let bug = asked.defect.seeded_bug;
    let words = reproduce(&asked.scenario, plan.seed, bug);
    let outcome = match &asked.out {
        Some(folder) => record::run(&plan, bug, folder, &words)?,
        None => run(&plan, bug),
    };
    if asked.twice {
        let again = run(&plan, bug);
        if again != outcome {
            show(&outcome, asked.json)?;
            show(&again, asked.json)?;
            eprintln!("the same seed gave another run\nreproduce: {words} --quiet");
            return Ok(NOT_DETERMINED);
        }
    }
    show(&outcome, asked.json)?;
    if let Some(folder) = asked.out.as_ref().filter(|_| !asked.json) {
        say(&format!("  see {}", folder.join("report.html").display()))?;
    }
    Ok(finish(&outcome, &words))
}

/// The plan of a run's folder, or of a scenario's file.
fn plan_of(path: &Path, seed: Option<u64>) -> Result<Plan> {
    if path.is_dir() {
        ensure!(seed.is_none(), "a run has its own seed: leave --seed out");
        return plan_of_run(path);
    }
    Ok(Source::read(path)?.plan(seed)?)
}

fn plan_of_run(folder: &Path) -> Result<Plan> {
    ensure!(
        record::is_whole(folder),
        "{}: this is not the folder of a run that was finished",
        folder.display()
    );
    Ok(Source::read(&folder.join(record::EXPANDED))?.plan(None)?)
}

fn outcome_of(folder: &Path) -> Result<Outcome> {
    ensure!(
        record::is_whole(folder),
        "{}: this is not the folder of a run that was finished",
        folder.display()
    );
    let path = folder.join(record::RESULT);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn replay(asked: &Replay) -> Result<u8> {
    let plan = plan_of(&asked.run, asked.seed)?;
    let bug = asked.defect.seeded_bug;
    let outcome = if asked.quiet {
        run(&plan, bug)
    } else {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        // Whoever reads may have seen enough: the run goes on to its end all the same.
        run_shown(&plan, bug, &mut |line| drop(writeln!(out, "{line}")))
    };
    show(&outcome, false)?;
    if asked.run.is_dir() {
        let before = outcome_of(&asked.run)?;
        if before.audit != outcome.audit && bug.is_none() {
            eprintln!(
                "the run before had the audit {}: this program decides otherwise, or nothing is repeatable",
                before.audit
            );
            return Ok(NOT_DETERMINED);
        }
    }
    Ok(finish(&outcome, &reproduce(&asked.run, plan.seed, bug)))
}

fn shrink_to(asked: &Shrink) -> Result<u8> {
    let plan = plan_of(&asked.run, asked.seed)?;
    let mut told = |text: &str| eprintln!("{text}");
    let Some(small) = shrink::smallest(&plan, asked.defect.seeded_bug, asked.tries, &mut told)
    else {
        bail!("the run passes: there is nothing to shrink");
    };
    record::write_plan(&small.plan, &asked.to)?;
    say(&format!(
        "{}\n  {} sites, {} jobs, {} frames, {} faults after {} tries; it is in {}",
        small.outcome.verdict,
        small.plan.n_sites(),
        small.plan.n_jobs(),
        small.plan.n_frames(),
        small.plan.n_faults(),
        small.tries,
        asked.to.display()
    ))?;
    Ok(finish(&small.outcome, &reproduce(&asked.to, small.plan.seed, asked.defect.seeded_bug)))
}

fn check(named: &[PathBuf], expanded: Option<&Path>, seed: Option<u64>) -> Result<u8> {
    let mut wrong = 0;
    for (n, path) in files(named)?.iter().enumerate() {
        match Source::read(path).and_then(|source| source.plan(seed)) {
            Ok(plan) => {
                say(&format!(
                    "{}: {} sites, {} jobs, {} frames, {} faults",
                    path.display(),
                    plan.n_sites(),
                    plan.n_jobs(),
                    plan.n_frames(),
                    plan.n_faults()
                ))?;
                if let Some(to) = expanded.filter(|_| n == 0) {
                    record::write_plan(&plan, to)?;
                }
            }
            Err(error) => {
                wrong += 1;
                eprintln!("error: {error}");
            }
        }
    }
    Ok(if wrong > 0 { crate::HARNESS_ERROR } else { 0 })
}

fn list(folder: &Path, as_json: bool) -> Result<u8> {
    let mut rows = Vec::new();
    for path in files(&[folder.to_owned()])? {
        let source = Source::read(&path)?;
        rows.push((path, source.name().to_owned(), source.purpose().to_owned()));
    }
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(path, name, purpose)| json!({ "file": path, "name": name, "purpose": purpose }))
            .collect();
        return say(&serde_json::to_string(&rows)?).map(|()| 0);
    }
    for (path, _, purpose) in &rows {
        say(&format!("{}\n    {purpose}", path.display()))?;
    }
    say("\nStates that `sometimes` knows:")?;
    for (state, means) in meshfarm_simulator::states() {
        say(&format!("  {state:<26} {means}"))?;
    }
    Ok(0)
}
