//! What happened to one job or one frame: its tries in order, and what held it up.

use std::fmt::Write as _;

use crate::plan::Plan;
use crate::seen::Fate;
use crate::story::{Span, Story};
use crate::units::spoken;
use crate::watch::Watch;
use crate::world;

/// Run a plan again and tell of a frame, `JOB/FRAME` or `JOB/STEP/FRAME`, or of a job. Frames count from one.
///
/// # Errors
/// When there is no such frame.
pub fn frame(plan: &Plan, which: &str) -> Result<String, String> {
    let numbers: Result<Vec<u32>, _> = which.split('/').map(str::parse).collect();
    let wrong = || format!("{which:?} is no frame: JOB/FRAME, JOB/STEP/FRAME or JOB is wanted");
    let numbers = numbers.map_err(|_no_number| wrong())?;
    let (job, frame) = match numbers[..] {
        [job] => (job, None),
        [job, frame] if frame > 0 => (job, Some((0, frame - 1))),
        [job, step, frame] if frame > 0 => (job, Some((step, frame - 1))),
        _ => return Err(wrong()),
    };
    let planned = plan.job.iter().find(|planned| planned.id == job);
    let planned = planned.ok_or_else(|| format!("there is no job {job}"))?;
    if let Some((step, frame)) = frame {
        let frames = planned
            .steps
            .get(step as usize)
            .ok_or_else(|| format!("job {job} has no step {step}"))?;
        if frames.len() <= frame as usize {
            return Err(format!("job {job} has {} frames in step {step}", frames.len()));
        }
    }
    let (ran, watch) = world::run(plan, Watch::new(plan, None), None);
    let story = &watch.story;
    let mut text = format!(
        "job {job} of {}, submitted at {}: {} frames\n",
        planned.site,
        spoken(planned.at_ms),
        planned.n_tasks()
    );
    if let Some(told) = story.jobs.get(&job) {
        let queued = told.queued.map_or_else(|| "never".to_owned(), spoken);
        let ended = told
            .ended
            .map_or_else(|| "it has not ended".to_owned(), |at| format!("ended at {}", spoken(at)));
        let _ = writeln!(
            text,
            "  queued at {queued}, {ended}; {}",
            why_slow(plan, story, job, ran.ended.0)
        );
    }
    let tries = story.spans.iter().filter(|span| {
        span.job == job && frame.is_none_or(|(step, frame)| span.step == step && span.task == frame)
    });
    let mut last = None;
    for span in tries {
        let how = match (span.accepted, span.fate) {
            (true, _) => "accepted",
            (false, Some(Fate::Made)) => "made, but another was accepted or it never came home",
            (false, Some(Fate::Failed)) => "failed",
            (false, Some(Fate::Stopped)) => "stopped",
            (false, Some(Fate::Died)) => "died with its node",
            (false, None) => "still running",
        };
        let gap = last.map_or_else(String::new, |last: u64| {
            format!(", {} after the last", spoken(span.begin.saturating_sub(last)))
        });
        let _ = writeln!(
            text,
            "  frame {} at {}: from {} for {}: {how}{gap}",
            span.task + 1,
            plan.site[span.site].name,
            spoken(span.begin),
            spoken(span.ms(ran.ended.0))
        );
        last = frame.and(span.end);
    }
    Ok(text.trim_end().to_owned())
}

/// What held a job up most, in words.
pub(crate) fn why_slow(plan: &Plan, story: &Story, job: u32, until: u64) -> String {
    let Some(told) = story.jobs.get(&job) else {
        return String::new();
    };
    let spans: Vec<&Span> = story.spans.iter().filter(|span| span.job == job).collect();
    let ended = told.ended.unwrap_or(until);
    let Some(first) = told.first else {
        return "nothing of it ever ran".to_owned();
    };
    let mut ends: Vec<u64> =
        spans.iter().filter(|span| span.accepted).filter_map(|span| span.end).collect();
    ends.sort_unstable();
    let most = ends.get(ends.len() * 9 / 10).copied().unwrap_or(first);
    let last = ends.last().copied().unwrap_or(first);
    let lost: u64 = spans.iter().filter(|span| !span.accepted).map(|span| span.ms(until)).sum();
    let slots: u64 = {
        let mut places: Vec<_> = spans.iter().map(|span| (span.site, span.lane)).collect();
        places.sort_unstable();
        places.dedup();
        places.len() as u64
    };
    let mut sites: Vec<_> = spans.iter().map(|span| span.site).collect();
    sites.sort_unstable();
    sites.dedup();
    let narrow = story
        .moves
        .iter()
        .filter(|moved| moved.from == told.home)
        .map(|moved| moved.at - moved.since)
        .max()
        .unwrap_or(0);
    let causes = [
        (first.saturating_sub(told.due), "it waited for its first slot for"),
        (last.saturating_sub(most), "its last tenth of frames took"),
        (ended.saturating_sub(last), "its last frame was on its way home for"),
        (lost / slots.max(1), "for each of its slots, tries that came to nothing took"),
        (
            narrow.min(ended.saturating_sub(told.due)),
            "the slowest scene from its home was on its way for",
        ),
    ];
    let (ms, cause) = causes.into_iter().max().unwrap_or((0, "nothing held it up for"));
    format!(
        "{cause} {}; {} slots at {} sites worked for it{}",
        spoken(ms),
        slots,
        sites.len(),
        if sites.len() == 1 { format!(" ({})", plan.site[sites[0]].name) } else { String::new() }
    )
}
