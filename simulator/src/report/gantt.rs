//! Who rendered what, when: a row for each site, a lane for each slot.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use crate::plan::Plan;
use crate::record::frame_name;
use crate::report::charts::{LEFT, WIDTH, time_axis, x};
use crate::report::safe;
use crate::seen::Fate;
use crate::story::{Span, Story};
use crate::units::spoken;

/// So many sites have a row.
const SITES: usize = 30;

/// So many lanes of a site are drawn.
const LANES: usize = 16;

/// More tries than this are drawn without telling which is which.
const SINGLE: usize = 6000;

/// So many colours are told apart; what comes after shares them.
const COLOURS: [&str; 10] = [
    "#4a78b5", "#5a9e6f", "#b88a3a", "#8a6fb0", "#3f9aa0", "#b5657f", "#7f8c3d", "#6f7fa8",
    "#a0714f", "#5b8f96",
];

/// Whether there are so few jobs that each has its colour; otherwise homes have.
fn by_job(plan: &Plan) -> bool {
    plan.job.len() <= COLOURS.len()
}

/// What the picture shows.
pub(crate) fn note(plan: &Plan, story: &Story) -> String {
    let colour = if by_job(plan) { "job" } else { "home of a job" };
    let rows = rows(story).len();
    let used: std::collections::BTreeSet<usize> =
        story.spans.iter().map(|span| span.site).collect();
    let busiest = if used.len() > rows {
        format!(" The {rows} busiest of {} sites at work.", used.len())
    } else {
        String::new()
    };
    format!(
        "A row for each site, a lane for each slot, a colour for each {colour}; what was in vain is hatched red. Shaded: faults.{busiest} Point at a frame to read what it is."
    )
}

/// Sites by the time that they worked, the busiest first, drawn in the plan's order.
fn rows(story: &Story) -> Vec<usize> {
    let mut time: BTreeMap<usize, u64> = BTreeMap::new();
    for span in &story.spans {
        *time.entry(span.site).or_default() += span.ms(u64::MAX >> 1).min(1 << 40);
    }
    let mut sites: Vec<_> = time.into_iter().collect();
    sites.sort_by_key(|(site, ms)| (std::cmp::Reverse(*ms), *site));
    sites.truncate(SITES);
    let mut sites: Vec<usize> = sites.into_iter().map(|(site, _)| site).collect();
    sites.sort_unstable();
    sites
}

/// The picture.
pub(crate) fn picture(plan: &Plan, story: &Story, until: u64) -> String {
    let rows = rows(story);
    let lanes = |site: usize| {
        let of = story.spans.iter().filter(|span| span.site == site).map(|span| span.lane + 1);
        of.max().unwrap_or(1).min(LANES)
    };
    let all: usize = rows.iter().map(|site| lanes(*site)).sum();
    let high = (420.0 / all.max(1) as f64).clamp(3.0, 14.0);
    let mut tops: HashMap<usize, f64> = HashMap::new();
    let mut y = 8.0;
    let mut labels = String::new();
    for site in &rows {
        tops.insert(*site, y);
        let height = high * lanes(*site) as f64;
        let _ = write!(
            labels,
            "<text class=\"strong\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><line class=\"grid\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{3:.1}\" y2=\"{3:.1}\"/>",
            LEFT - 8.0,
            y + height / 2.0 + 4.0,
            safe(&plan.site[*site].name.chars().take(17).collect::<String>()),
            y + height + 3.0,
        );
        y += height + 6.0;
    }
    let mut body = String::from(
        "<defs><pattern id=\"hatch\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><rect width=\"5\" height=\"5\" fill=\"var(--lost)\" opacity=\".35\"/><rect width=\"2\" height=\"5\" fill=\"var(--lost)\"/></pattern></defs>",
    );
    body.push_str(&time_axis(plan, story, (4.0, y), until));
    body.push_str(&labels);
    let shown: Vec<&Span> = story
        .spans
        .iter()
        .filter(|span| tops.contains_key(&span.site) && span.lane < LANES)
        .collect();
    let homes = homes(story);
    let colour = |span: &Span| {
        let n = if by_job(plan) {
            span.job as usize
        } else {
            homes.get(&span.home).copied().unwrap_or(0)
        };
        COLOURS[n % COLOURS.len()]
    };
    if shown.len() <= SINGLE {
        for span in &shown {
            one(
                &mut body,
                plan,
                (span, until),
                (tops[&span.site] + high * span.lane as f64, high),
                colour(span),
            );
        }
    } else {
        merged(&mut body, &shown, until, |span| {
            (
                tops[&span.site] + high * span.lane as f64,
                high,
                if span.accepted { colour(span) } else { "" },
            )
        });
    }
    format!(
        "<div class=\"key\">{}</div><svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"who rendered what, when\">{body}</svg>",
        key(plan, &homes),
        y + 22.0
    )
}

/// A number for each home, by the size of what it submitted.
fn homes(story: &Story) -> HashMap<usize, usize> {
    let mut time: BTreeMap<usize, u64> = BTreeMap::new();
    for span in &story.spans {
        *time.entry(span.home).or_default() += 1;
    }
    let mut homes: Vec<_> = time.into_iter().collect();
    homes.sort_by_key(|(home, n)| (std::cmp::Reverse(*n), *home));
    homes.into_iter().enumerate().map(|(n, (home, _))| (home, n)).collect()
}

fn key(plan: &Plan, homes: &HashMap<usize, usize>) -> String {
    let mut text = String::new();
    let mut add = |colour: &str, name: &str| {
        let _ = write!(text, "<span><i style=\"background:{colour}\"></i>{}</span>", safe(name));
    };
    if by_job(plan) {
        for job in &plan.job {
            add(
                COLOURS[job.id as usize % COLOURS.len()],
                &format!("job {} of {}", job.id, job.site),
            );
        }
    } else {
        let mut ordered: Vec<_> = homes.iter().collect();
        ordered.sort_by_key(|(_, n)| **n);
        for (home, n) in ordered.into_iter().take(COLOURS.len()) {
            add(COLOURS[*n % COLOURS.len()], &plan.site[*home].name);
        }
        if homes.len() > COLOURS.len() {
            add(
                "transparent",
                &format!("and {} more homes in the same colours", homes.len() - COLOURS.len()),
            );
        }
    }
    add("var(--lost)", "in vain");
    text
}

fn one(
    body: &mut String,
    plan: &Plan,
    (span, until): (&Span, u64),
    (top, high): (f64, f64),
    colour: &str,
) {
    let (a, b) = (x(span.begin, until), x(span.end.unwrap_or(until), until));
    let how = match (span.accepted, span.fate) {
        (true, _) if span.wrong => "accepted, with wrong pixels",
        (true, _) => "accepted",
        (false, Some(Fate::Made)) => "made in vain",
        (false, Some(Fate::Failed)) => "failed",
        (false, Some(Fate::Stopped)) => "stopped",
        (false, Some(Fate::Died)) => "died with its node",
        (false, None) => "still running",
    };
    let paint =
        if span.accepted { format!("fill=\"{colour}\"") } else { "class=\"lost\"".to_owned() };
    let _ = write!(
        body,
        "<rect x=\"{a:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"1.5\" {paint} data-t=\"{} of {} at {}: from {} for {}, {how}\"/>",
        (b - a - 0.6).max(0.8),
        (high - 0.8).max(1.5),
        frame_name(span),
        safe(&plan.site[span.home].name),
        safe(&plan.site[span.site].name),
        spoken(span.begin),
        spoken(span.ms(until)),
    );
}

/// Many tries: neighbours of one colour become one bar.
fn merged(
    body: &mut String,
    shown: &[&Span],
    until: u64,
    at: impl Fn(&Span) -> (f64, f64, &'static str),
) {
    let mut sorted: Vec<&&Span> = shown.iter().collect();
    sorted.sort_by_key(|span| (span.site, span.lane, span.begin));
    let mut bar: Option<(f64, f64, f64, f64, &str)> = None;
    let mut draw = |bar: (f64, f64, f64, f64, &str)| {
        let (a, b, top, high, colour) = bar;
        let paint = if colour.is_empty() {
            "class=\"lost\"".to_owned()
        } else {
            format!("fill=\"{colour}\"")
        };
        let _ = write!(
            body,
            "<rect x=\"{a:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" {paint}/>",
            (b - a).max(0.6),
            (high - 0.6).max(1.0)
        );
    };
    for span in sorted {
        let (top, high, colour) = at(span);
        let (a, b) = (x(span.begin, until), x(span.end.unwrap_or(until), until));
        match &mut bar {
            Some((_, end, row, _, same)) if *row == top && *same == colour && a - *end < 0.8 => {
                *end = b
            }
            _ => {
                bar.take().into_iter().for_each(&mut draw);
                bar = Some((a, b, top, high, colour));
            }
        }
    }
    bar.take().into_iter().for_each(&mut draw);
}
