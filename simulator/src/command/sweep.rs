//! Many seeds of many scenarios, several at a time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};

use meshfarm_simulator::{Bug, Outcome, Plan, Source, Verdict, record, run};

use crate::cli::Sweep;
use crate::command::{NOT_DETERMINED, files, reproduce, say};

/// Of so many seeds one is run twice and compared.
const TWICE_EVERY: u64 = 100;

/// What one run of a sweep came to.
struct Swept {
    path: PathBuf,
    plan: Plan,
    outcome: Outcome,
    repeats: bool,
}

pub(crate) fn sweep(asked: &Sweep) -> Result<u8> {
    let mut sources = Vec::new();
    for path in files(&asked.scenarios)? {
        let source = Source::read(&path)?;
        sources.push((path, source));
    }
    if let Some(folder) = &asked.out {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let bug = asked.defect.seeded_bug;
    // Every scenario gets its first seed before any gets its second: whoever interrupts has seen something of each.
    let (first, n_seeds) = (*asked.seeds.start(), asked.seeds.end() - asked.seeds.start() + 1);
    let total = usize::try_from(n_seeds).unwrap_or(usize::MAX).saturating_mul(sources.len());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Failures::default()));
    let worker = || -> Result<()> {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= total {
                return Ok(());
            }
            let (path, source) = &sources[n % sources.len()];
            let seed = first + (n / sources.len()) as u64;
            if !asked.keep_going
                && failed.lock().is_ok_and(|failed| failed.scenarios.contains(path))
            {
                continue;
            }
            let swept = one(path, source, seed, bug)?;
            let Ok(mut failed) = failed.lock() else {
                bail!("another run of this sweep has panicked");
            };
            failed.add(&swept, asked)?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..asked.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        let ended = workers.into_iter().map(|worker| match worker.join() {
            Ok(ended) => ended,
            Err(_panic) => bail!("a run of this sweep has panicked"),
        });
        ended.collect::<Result<Vec<()>>>()
    })?;
    let Ok(failed) = failed.into_inner() else {
        bail!("a run of this sweep has panicked");
    };
    if !asked.json {
        say(&format!(
            "{} runs of {} scenarios, seeds {first} to {}: {} pass",
            failed.runs,
            sources.len(),
            asked.seeds.end(),
            failed.runs - failed.failed
        ))?;
    }
    if let Some(words) = &failed.words {
        eprintln!("reproduce: {words}");
    }
    Ok(failed.code)
}

fn one(path: &Path, source: &Source, seed: u64, bug: Option<Bug>) -> Result<Swept> {
    let plan =
        source.plan(Some(seed)).with_context(|| format!("{}, seed {seed}", path.display()))?;
    let outcome = run(&plan, bug);
    let repeats = !seed.is_multiple_of(TWICE_EVERY) || run(&plan, bug) == outcome;
    Ok(Swept { path: path.to_owned(), plan, outcome, repeats })
}

/// What a sweep has found so far.
#[derive(Default)]
struct Failures {
    runs: usize,
    failed: usize,
    scenarios: BTreeSet<PathBuf>,
    code: u8,
    words: Option<String>,
}

impl Failures {
    fn add(&mut self, swept: &Swept, asked: &Sweep) -> Result<()> {
        let Swept { path, plan, outcome, repeats } = swept;
        self.runs += 1;
        if asked.json {
            say(&serde_json::to_string(outcome)?)?;
        }
        if outcome.verdict == Verdict::Pass && *repeats {
            return Ok(());
        }
        self.failed += 1;
        self.scenarios.insert(path.clone());
        let code = if *repeats { outcome.verdict.exit_code() } else { NOT_DETERMINED };
        let words = reproduce(path, plan.seed, asked.defect.seeded_bug);
        if !asked.json {
            let said = if *repeats {
                outcome.verdict.to_string()
            } else {
                "the seed did not repeat its run".to_owned()
            };
            say(&format!("{} seed {}: {said}", path.display(), plan.seed))?;
        }
        if code > self.code {
            (self.code, self.words) = (code, Some(words.clone()));
        }
        if let Some(folder) = &asked.out {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let folder = folder.join(format!("{name}-{}", plan.seed));
            if !folder.exists() {
                record::run(plan, asked.defect.seeded_bug, &folder, &words)?;
            }
        }
        Ok(())
    }
}
