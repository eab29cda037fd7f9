//! Faults as people write them become single troubles at their moments: what flaps is cut again and again.

use crate::expand::{members, ppm};
use crate::plan::{PlanFault, PlanSite, Trouble};
use crate::scenario::{Fault, Kind, Scenario};
use crate::streams::{Streams, number_of};
use crate::units::round;

/// How many outputs of one input a kill point lets through at most.
const MOST_OUTPUTS: u64 = 6;

/// How long a fault lasts that does not say it.
const USUAL_MS: u64 = 60_000;

/// Every fault of a scenario. None lasts beyond `heal`.
pub(crate) fn faults(
    scenario: &Scenario,
    sites: &[PlanSite],
    (streams, heal): (Streams, u64),
) -> Result<Vec<PlanFault>, String> {
    let mut all = Vec::new();
    for (n, fault) in (0u64..).zip(&scenario.fault) {
        let targets = members(&fault.sites, sites)?;
        let others = members(&fault.others, sites)?;
        let needs = match fault.kind {
            Kind::Partition | Kind::OneWay | Kind::Flap if others.is_empty() => Some("others"),
            Kind::Byzantine if fault.lie.is_none() => Some("as"),
            Kind::JitterStorm | Kind::ClockSkew | Kind::ClockStep | Kind::DiskSlow
                if fault.by.is_none() =>
            {
                Some("by")
            }
            _ => None,
        };
        if let Some(missing) = needs {
            return Err(format!("a fault of kind {:?} needs `{missing}`", fault.kind));
        }
        if targets.is_empty() {
            return Err(format!("a fault of kind {:?} needs `sites`", fault.kind));
        }
        if targets.iter().any(|target| others.contains(target)) {
            return Err(format!("a fault of kind {:?} has a site at both ends", fault.kind));
        }
        for (k, at) in (0u64..).zip(moments(fault, (n, heal), streams)?) {
            let chosen = chosen(fault, &targets, (n, k), streams)?;
            let lasts = fault.lasts.as_ref();
            let lasts = lasts.map_or(USUAL_MS, |dist| dist.draw(streams, "lasts", (n, k)));
            let (at, until) = (at.min(heal), at.saturating_add(lasts).min(heal));
            if at < until && !chosen.is_empty() {
                become_troubles(
                    fault,
                    (at, until),
                    (chosen, others.clone()),
                    (streams, n, k),
                    &mut all,
                )?;
            }
        }
    }
    Ok(all)
}

/// When a fault happens.
fn moments(fault: &Fault, (n, heal): (u64, u64), streams: Streams) -> Result<Vec<u64>, String> {
    let from = fault.from.map_or(0, |from| from.0);
    let to = fault.to.map_or(heal, |to| to.0);
    match (&fault.at, fault.every) {
        (Some(at), None) => {
            let times = u64::from(fault.times.min(100_000));
            Ok((0..times).map(|time| at.draw(streams, "fault at", (n, time))).collect())
        }
        (None, Some(every)) if every.0 >= 100 => {
            let first = if from == 0 { every.0 } else { from };
            Ok((0..).map(|k| first + k * every.0).take_while(|at| *at < to).take(100_000).collect())
        }
        (None, Some(_)) => Err("`every` is at least 100ms".to_owned()),
        (None, None) if fault.to.is_some() => Ok(vec![from]),
        (None, None) => Err("a fault has `at`, `every`, or `from` and `to`".to_owned()),
        (Some(_), Some(_)) => Err("a fault has `at` or `every`, not both".to_owned()),
    }
}

/// To whom it happens this time.
fn chosen(
    fault: &Fault,
    targets: &[String],
    (n, k): (u64, u64),
    streams: Streams,
) -> Result<Vec<String>, String> {
    let most = match (fault.pick, fault.fraction) {
        (Some(pick), None) => pick,
        (None, Some(fraction)) => {
            ppm(fraction, "fraction")?;
            usize::try_from(round(fraction * targets.len() as f64)).unwrap_or(targets.len())
        }
        (None, None) => targets.len(),
        (Some(_), Some(_)) => return Err("a fault has `pick` or `fraction`, not both".to_owned()),
    };
    if most >= targets.len() {
        return Ok(targets.to_vec());
    }
    let rank = |name: &String| streams.draw("pick", number_of(name), (n << 32) | k);
    let mut ranked: Vec<_> = targets.to_vec();
    ranked.sort_by_key(rank);
    ranked.truncate(most);
    ranked.sort();
    Ok(ranked)
}

fn become_troubles(
    fault: &Fault,
    (at, until): (u64, u64),
    (sites, others): (Vec<String>, Vec<String>),
    (streams, n, k): (Streams, u64, u64),
    all: &mut Vec<PlanFault>,
) -> Result<(), String> {
    let by = fault.by.as_ref().map_or(0, |by| by.draw(streams, "by", (n, k)));
    let share = |usual: f64| ppm(fault.rate.unwrap_or(usual), "rate");
    let mut add = |what, (at_ms, until_ms): (u64, u64), sites| {
        let others = others.clone();
        all.push(PlanFault { at_ms, for_ms: until_ms - at_ms, sites, others, what });
    };
    let what = match fault.kind {
        Kind::Partition | Kind::Isolate => Trouble::Cut { one_way: false },
        Kind::OneWay => Trouble::Cut { one_way: true },
        Kind::Clog => Trouble::Clog,
        Kind::SwizzleClog => {
            // One after the other is clogged, and freed in another order (FoundationDB's swizzle).
            let span = (until - at).max(4);
            for site in sites {
                let key = (number_of(&site), (n << 32) | k);
                let begins = at + streams.between("swizzle", key, [0, span / 3]);
                let ends = at + streams.between("unswizzle", key, [span * 2 / 3, span]);
                add(Trouble::Clog, (begins, ends), vec![site]);
            }
            return Ok(());
        }
        Kind::Flap => {
            let period = fault.period.map_or(20_000, |period| period.0).max(1000);
            let mut down = at;
            while down < until {
                add(
                    Trouble::Cut { one_way: false },
                    (down, (down + period / 2).min(until)),
                    sites.clone(),
                );
                down += period;
            }
            return Ok(());
        }
        Kind::SlowLink => Trouble::Slow { percent: u64::from(share(0.01)? / 10_000).max(1) },
        Kind::JitterStorm => Trouble::Jitter { ms: by },
        Kind::LoseMessages => Trouble::Drop { ppm: share(0.1)? },
        Kind::DuplicateMessages => Trouble::Duplicate { ppm: share(0.1)? },
        Kind::ClockSkew | Kind::ClockStep => Trouble::Clock { ahead_ms: by },
        Kind::Pause => Trouble::Pause,
        Kind::Crash | Kind::CrashGroup => Trouble::Crash,
        Kind::CrashAtKillPoint => {
            for site in sites {
                let key = (number_of(&site), (n << 32) | k);
                let outputs = streams.between("kill point", key, [0, MOST_OUTPUTS]);
                add(Trouble::KillPoint { outputs }, (at, until), vec![site]);
            }
            return Ok(());
        }
        Kind::DiskFull => Trouble::DiskFull,
        Kind::DiskSlow => Trouble::DiskSlow { ms: by },
        Kind::Byzantine => {
            Trouble::Lie { how: fault.lie.unwrap_or(crate::plan::Lie::Corrupt), ppm: share(1.0)? }
        }
        Kind::LicenceLoss => Trouble::Licences,
    };
    add(what, (at, until), sites);
    Ok(())
}
