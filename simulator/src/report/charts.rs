//! Pictures: slots at work, bounds, how long jobs took.

use std::fmt::Write as _;

use crate::outcome::Outcome;
use crate::plan::Plan;
use crate::story::Story;
use crate::units::spoken;

/// Width of a picture, in its own units.
pub(crate) const WIDTH: f64 = 1060.0;

/// Where the drawing begins, right of the labels.
pub(crate) const LEFT: f64 = 120.0;

/// How many parts the time is cut into.
const PARTS: usize = 240;

/// A moment as a place from left to right.
pub(crate) fn x(ms: u64, until: u64) -> f64 {
    LEFT + (WIDTH - LEFT - 10.0) * ms.min(until) as f64 / until as f64
}

/// Round distances in time, so that some six to twelve fit.
fn step(until: u64) -> u64 {
    let steps = [
        1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800, 86_400,
        172_800,
    ];
    let step = steps.iter().map(|s| s * 1000).find(|step| until / step <= 10);
    step.unwrap_or(until / 8).max(1)
}

/// A short name of a moment.
fn moment(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => "0".to_owned(),
        s if s % 86_400 == 0 => format!("{} d", s / 86_400),
        s if s % 3600 == 0 => format!("{} h", s / 3600),
        s if s % 60 == 0 && s < 3600 => format!("{} min", s / 60),
        s if s >= 3600 => format!("{}:{:02} h", s / 3600, s % 3600 / 60),
        s => format!("{s} s"),
    }
}

/// Lines and names of moments beneath a drawing, and faults as bands.
pub(crate) fn time_axis(
    plan: &Plan,
    story: &Story,
    (top, bottom): (f64, f64),
    until: u64,
) -> String {
    let mut text = String::new();
    for (told, planned) in story.faults.iter().zip(&plan.fault).take(400) {
        let Some(begin) = told.begin.filter(|begin| *begin < until) else { continue };
        let (a, b) = (x(begin, until), x(told.end.unwrap_or(until), until));
        let _ = write!(
            text,
            "<rect class=\"band\" x=\"{a:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\" data-t=\"{} of {} sites, {}\"/>",
            (b - a).max(1.5),
            bottom - top,
            planned.what.name(),
            planned.sites.len(),
            super::safe(&planned.sites[0]),
        );
    }
    let step = step(until);
    for n in 0..=until / step {
        let at = x(n * step, until);
        let _ = write!(
            text,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom:.1}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 14.0,
            moment(n * step),
        );
    }
    text
}

fn svg(height: f64, body: &str, says: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{says}\">{body}</svg>")
}

/// Slots at work in each part of the time: for accepted frames, and in vain.
fn at_work(story: &Story, until: u64) -> (Vec<f64>, Vec<f64>) {
    let (mut work, mut lost) = (vec![0.0; PARTS], vec![0.0; PARTS]);
    let part = (until as f64 / PARTS as f64).max(1.0);
    for span in &story.spans {
        let into = if span.accepted { &mut work } else { &mut lost };
        let begin = span.begin as f64 / part;
        let end = span.end.unwrap_or(until).min(until) as f64 / part;
        for (n, sum) in into.iter_mut().enumerate().skip(crate::outcome::floor(begin)) {
            if n as f64 >= end {
                break;
            }
            *sum += (end.min(n as f64 + 1.0) - begin.max(n as f64)).max(0.0);
        }
    }
    (work, lost)
}

/// The outline of a heap of `heights` that lies on another of `base`.
fn area(base: &[f64], heights: &[f64], y: impl Fn(f64) -> f64) -> String {
    let at = |n: usize| LEFT + (WIDTH - LEFT - 10.0) * n as f64 / PARTS as f64;
    let mut path = String::new();
    for n in 0..PARTS {
        let height = y(base[n] + heights[n]);
        let move_to = if n == 0 { "M" } else { "L" };
        let _ = write!(path, "{move_to}{:.1},{height:.1} L{:.1},{height:.1} ", at(n), at(n + 1));
    }
    for n in (0..PARTS).rev() {
        let _ =
            write!(path, "L{:.1},{:.1} L{:.1},{:.1} ", at(n + 1), y(base[n]), at(n), y(base[n]));
    }
    path
}

/// The outline of how many frames were not home, and the most that there were.
fn queue(plan: &Plan, story: &Story, (top, bottom): (f64, f64), until: u64) -> (String, i64) {
    let submitted =
        plan.job.iter().map(|job| (job.at_ms, i64::try_from(job.n_tasks()).unwrap_or(0)));
    let accepted = story.spans.iter().filter(|span| span.accepted);
    let home = accepted.filter_map(|span| Some((span.end?, -1)));
    let mut steps: Vec<(u64, i64)> = submitted.chain(home).collect();
    steps.sort_unstable();
    let mut depth = 0;
    let depths = steps.iter().map(|(_, by)| {
        depth += by;
        depth
    });
    let deepest = depths.max().unwrap_or(1).max(1);
    let y = |depth: i64| bottom - (bottom - top) * depth as f64 / deepest as f64;
    let (mut depth, mut path) = (0i64, format!("M{:.1},{bottom}", x(0, until)));
    let mut last = f64::NEG_INFINITY;
    for (ms, by) in steps.iter().filter(|(ms, _)| *ms <= until) {
        depth += by;
        let here = x(*ms, until);
        if here - last >= 0.5 || *by > 0 {
            let _ = write!(path, " H{here:.1} V{:.1}", y(depth));
            last = here;
        }
    }
    let _ = write!(path, " V{:.1}", y(depth));
    (path, deepest)
}

/// Slots at work and frames that wait.
pub(crate) fn busy(plan: &Plan, story: &Story, until: u64) -> String {
    let (work, lost) = at_work(story, until);
    let slots = plan.site.iter().map(|site| f64::from(site.slots)).sum::<f64>();
    let busiest = work.iter().zip(&lost).map(|(a, b)| a + b).fold(1.0, f64::max);
    let most = if busiest * 3.0 < slots { busiest * 1.15 } else { slots.max(busiest) };
    let (top, bottom) = (10.0, 220.0);
    let y = |slots: f64| bottom - (bottom - top) * slots / most;
    let mut body = time_axis(plan, story, (top, bottom), until);
    let none = vec![0.0; PARTS];
    let (path, deepest) = queue(plan, story, (top, bottom), until);
    let _ = write!(
        body,
        "<path d=\"{}Z\" fill=\"var(--work)\"/><path d=\"{}Z\" fill=\"var(--lost)\"/>\
         <path d=\"{path}\" fill=\"none\" stroke=\"var(--card)\" stroke-width=\"4\"/>\
         <path d=\"{path}\" fill=\"none\" stroke=\"var(--queue)\" stroke-width=\"2\"/>\
         <text x=\"{2:.1}\" y=\"{3:.1}\" text-anchor=\"end\">{most:.0} slots</text>\
         <text x=\"{2:.1}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\
         <text x=\"{2:.1}\" y=\"{4:.1}\" text-anchor=\"end\" style=\"fill:var(--queue)\">{deepest} frames</text>",
        area(&none, &work, y),
        area(&work, &lost, y),
        LEFT - 8.0,
        top + 8.0,
        top + 24.0,
    );
    if slots <= most {
        let _ = write!(
            body,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"var(--cap)\" stroke-dasharray=\"4 3\"/>",
            WIDTH - 10.0,
            y(slots)
        );
    }
    let key = "<div class=\"key\"><span><i style=\"background:var(--work)\"></i>accepted frames</span>\
         <span><i style=\"background:var(--lost)\"></i>in vain</span><span><i style=\"background:var(--queue)\"></i>frames not home</span>\
         <span><i style=\"background:var(--fault);opacity:.4\"></i>fault</span></div>";
    format!("{key}{}", svg(240.0, &body, "slots at work over time"))
}

/// The makespan beside what nobody can beat.
pub(crate) fn bounds(plan: &Plan, outcome: &Outcome) -> String {
    let first = plan.job.iter().map(|job| job.at_ms).min().unwrap_or(0);
    let mut bars: Vec<(String, u64, &str, String)> = Vec::new();
    let from = |ms: u64| ms.saturating_sub(first);
    if let Some(ms) = outcome.makespan_ms {
        bars.push((
            "this run".to_owned(),
            from(ms),
            "var(--work)",
            "when the last frame was at home".to_owned(),
        ));
    }
    if let Some(ms) = outcome.oracle_ms {
        bars.push((
            "oracle".to_owned(),
            from(ms),
            "var(--queue)",
            "one scheduler that knows everything".to_owned(),
        ));
    }
    for bound in &outcome.bounds {
        bars.push((
            format!("bound: {}", bound.name),
            from(bound.ms),
            "var(--cap)",
            bound.says.clone(),
        ));
    }
    let most = bars.iter().map(|(_, ms, ..)| *ms).max().unwrap_or(1).max(1);
    let mut body = String::new();
    for (n, (name, ms, colour, says)) in bars.iter().enumerate() {
        let y = 8.0 + 50.0 * n as f64;
        let width = (700.0 * *ms as f64 / most as f64).max(2.0);
        let _ = write!(
            body,
            "<text class=\"strong\" x=\"0\" y=\"{:.1}\" style=\"font-size:19px\">{name}</text><rect x=\"170\" y=\"{y}\" width=\"{width:.1}\" height=\"30\" rx=\"4\" fill=\"{colour}\" data-t=\"{says}: {1}\"/>\
             <text class=\"strong\" x=\"{2:.1}\" y=\"{3:.1}\" style=\"font-size:19px\">{1}</text>",
            y + 21.0,
            spoken(*ms),
            180.0 + width,
            y + 21.0,
        );
    }
    svg(20.0 + 50.0 * bars.len() as f64, &body, "makespan and its bounds")
}

/// Distribution of turnaround and of waiting.
pub(crate) fn turnarounds(story: &Story, until: u64) -> String {
    let sorted = |of: &dyn Fn(&crate::story::JobStory) -> Option<u64>| {
        let mut all: Vec<u64> = story.jobs.values().filter_map(of).collect();
        all.sort_unstable();
        all
    };
    let took = sorted(&|job| Some(job.ended?.saturating_sub(job.due)));
    let waited = sorted(&|job| Some(job.first?.saturating_sub(job.due)));
    let n = story.jobs.values().filter(|job| job.due <= until).count().max(1);
    let most = took.iter().chain(&waited).max().copied().unwrap_or(1).max(1);
    let (top, bottom) = (14.0, 330.0);
    let mut body = String::new();
    let at = |ms: u64| 70.0 + 960.0 * ms as f64 / most as f64;
    let step = step(most);
    for k in 0..=most / step {
        let _ = write!(
            body,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{bottom}\"/><text x=\"{0:.1}\" y=\"358\" text-anchor=\"middle\" style=\"font-size:19px\">{1}</text>",
            at(k * step),
            if k % 2 == 0 { moment(k * step) } else { String::new() }
        );
    }
    for share in [0, 50, 100] {
        let y = bottom - (bottom - top) * f64::from(share) / 100.0;
        let _ = write!(
            body,
            "<line class=\"grid\" x1=\"70\" x2=\"1030\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"60\" y=\"{:.1}\" text-anchor=\"end\" style=\"font-size:19px\">{share} %</text>",
            y + 6.0
        );
    }
    for (of, colour) in [(&waited, "var(--queue)"), (&took, "var(--work)")] {
        let mut path = format!("M70,{bottom}");
        for (k, ms) in of.iter().enumerate() {
            let _ = write!(
                path,
                " H{:.1} V{:.1}",
                at(*ms),
                bottom - (bottom - top) * (k + 1) as f64 / n as f64
            );
        }
        let _ = write!(
            body,
            "<path d=\"{path} H1030\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"3\"/>"
        );
    }
    let key = "<div class=\"key\"><span><i style=\"background:var(--work)\"></i>done</span><span><i style=\"background:var(--queue)\"></i>first frame runs</span></div>";
    format!("{key}{}", svg(370.0, &body, "distribution of turnaround"))
}
