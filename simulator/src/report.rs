//! A run as one page that needs nothing else: plain words first, then pictures, then tables.

mod charts;
mod gantt;

use std::fmt::Write as _;

use crate::explain::why_slow;
use crate::outcome::{Outcome, Verdict};
use crate::plan::Plan;
use crate::story::Story;
use crate::units::{spoken, spoken_bytes};

const STYLE: &str = include_str!("report/style.css");
const SCRIPT: &str = include_str!("report/tip.js");

/// So many of the slowest jobs are explained.
const SLOWEST: usize = 10;

/// So many rows of a table are shown.
const ROWS: usize = 40;

/// A text that may stand in a page.
pub(crate) fn safe(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page.
pub(crate) fn page(plan: &Plan, outcome: &Outcome, story: &Story, words: &str) -> String {
    let until = outcome.makespan_ms.unwrap_or(outcome.ended_ms).max(1000);
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{0} - meshfarm-sim</title>\
         <style>{STYLE}</style></head><body><main><h1>{0}</h1><p class=\"purpose\">{1}</p>",
        safe(&plan.name),
        safe(&plan.purpose),
    );
    summary(&mut page, plan, outcome, story);
    section(
        &mut page,
        "Who rendered what, when",
        gantt::note(plan, story),
        &gantt::picture(plan, story, until),
    );
    section(
        &mut page,
        "How busy the slots were",
        "Slots at work over time; what they did in vain is red. The line is the number of frames that were submitted and not home yet, on a scale of its own. Shaded: faults.".to_owned(),
        &charts::busy(plan, story, until),
    );
    page.push_str("<div class=\"two\">");
    section(
        &mut page,
        "How good the schedule was",
        "From the first submission to the last frame at home. No scheduler can be faster than any bound; the oracle knows everything at once and its transfers never meet.".to_owned(),
        &charts::bounds(plan, outcome),
    );
    section(
        &mut page,
        "How long jobs took",
        "Share of the jobs that were done within so long after their submission, and until their first frame ran.".to_owned(),
        &charts::turnarounds(story, until),
    );
    page.push_str("</div>");
    faults(&mut page, plan, story, until);
    slow(&mut page, plan, story, until);
    page.push_str("<div class=\"two\">");
    tenants(&mut page, plan, story);
    traffic(&mut page, outcome);
    page.push_str("</div>");
    sites(&mut page, plan, story, until);
    let repro = format!(
        "<p class=\"note\">The same scenario and seed give the same run to the last event.</p><p><code>{}</code></p>\
         <p class=\"note\">Audit {} &middot; {} events, {} inputs of cores</p>",
        safe(words),
        outcome.audit,
        outcome.events.0,
        outcome.events.1
    );
    section(&mut page, "Run it again", String::new(), &repro);
    let _ = write!(page, "</main><div id=\"tip\"></div><script>{SCRIPT}</script></body></html>");
    page
}

fn section(page: &mut String, title: &str, note: String, body: &str) {
    let note = if note.is_empty() { note } else { format!("<p class=\"note\">{note}</p>") };
    let _ = write!(page, "<section><h2>{title}</h2>{note}{body}</section>");
}

fn summary(page: &mut String, plan: &Plan, outcome: &Outcome, story: &Story) {
    let (class, verdict) = match &outcome.verdict {
        Verdict::Pass => ("pass", "Passed: everything was as expected"),
        Verdict::Missed { .. } => ("missed", "An expectation was missed"),
        Verdict::Broken(_) => ("broken", "A promise was broken"),
    };
    let _ = write!(
        page,
        "<section><span class=\"verdict {class}\">{verdict}</span><ul class=\"plain\">"
    );
    let mut say = |text: String| {
        let _ = write!(page, "<li>{text}</li>");
    };
    troubles(outcome).into_iter().for_each(|what| say(format!("<b>{}</b>", safe(&what))));
    let homes: std::collections::BTreeSet<usize> =
        story.jobs.values().map(|job| job.home).collect();
    say(format!(
        "{} sites with {} slots; {} of them submitted {} jobs of {} frames.",
        outcome.sites,
        plan.site.iter().map(|site| u64::from(site.slots)).sum::<u64>(),
        homes.len(),
        outcome.jobs.0,
        outcome.frames.0,
    ));
    match (outcome.makespan_ms, outcome.over_bound(plan)) {
        (Some(ms), Some(over)) => say(format!(
            "All was done after {}; {:.0} % of the frames were rendered by other sites than their own. No schedule could have been faster than {}: this one took {over:.2} times as long.",
            spoken(ms),
            100.0 * outcome.rendered_elsewhere,
            spoken(outcome.bound_ms()),
        )),
        _ => say(format!(
            "Not every job had ended after {}: {} of {} frames were home.",
            spoken(outcome.ended_ms),
            outcome.frames.1,
            outcome.frames.0
        )),
    }
    let n_faults = plan.fault.len();
    if n_faults > 0 {
        say(format!(
            "{n_faults} faults; nodes died {} times, {} leases were lost, and {:.1} % of the slot time was in vain.{}",
            outcome.crashes,
            outcome.leases_lost,
            100.0 * outcome.lost_share(),
            if matches!(outcome.verdict, Verdict::Broken(_)) {
                ""
            } else {
                " No accepted frame was lost or rendered again."
            },
        ));
    } else {
        say(format!(
            "Nothing went wrong. {:.1} % of the slot time was in vain.",
            100.0 * outcome.lost_share()
        ));
    }
    if outcome.wrong_frames > 0 {
        say(format!(
            "<b>{} accepted frames have wrong pixels</b>: a lying site cannot be seen by hashes.",
            outcome.wrong_frames
        ));
    }
    page.push_str("</ul>");
    tiles(page, outcome);
    page.push_str("</section>");
}

/// What was not as it should be.
fn troubles(outcome: &Outcome) -> Vec<String> {
    match &outcome.verdict {
        Verdict::Pass => Vec::new(),
        Verdict::Missed { why } => why.clone(),
        Verdict::Broken(broken) => vec![format!("{} ({})", broken.what, broken.invariant)],
    }
}

fn tiles(page: &mut String, outcome: &Outcome) {
    let moved: u64 = outcome.bytes.values().sum();
    let tiles = [
        (spoken(outcome.makespan_ms.unwrap_or(outcome.ended_ms)), "until all was done"),
        (spoken(outcome.turnaround_ms), "mean turnaround of a job"),
        (spoken(outcome.waiting_ms), "mean wait for a first slot"),
        (spoken_bytes(moved), "moved between sites"),
        (format!("{:.2}", outcome.bytes_over_least()), "times the least bytes"),
        (format!("{:.0} %", 100.0 * outcome.refusals()), "of offers were refused"),
    ];
    page.push_str("<div class=\"tiles\">");
    for (value, what) in tiles {
        let _ = write!(page, "<div class=\"tile\"><b>{value}</b><span>{what}</span></div>");
    }
    page.push_str("</div>");
}

fn table(head: &[(&str, bool)], rows: &[Vec<String>]) -> String {
    let class = |number: bool| if number { " class=\"n\"" } else { "" };
    let mut text = String::from("<div class=\"scroll\"><table><tr>");
    for (name, number) in head {
        let _ = write!(text, "<th{}>{name}</th>", class(*number));
    }
    for row in rows {
        text.push_str("</tr><tr>");
        for (cell, (_, number)) in row.iter().zip(head) {
            let _ = write!(text, "<td{}>{cell}</td>", class(*number));
        }
    }
    text.push_str("</tr></table></div>");
    text
}

fn list(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(4).map(|name| safe(name)).collect();
    let more = names.len().saturating_sub(shown.len());
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

fn faults(page: &mut String, plan: &Plan, story: &Story, until: u64) {
    let mut rows = Vec::new();
    for (told, planned) in story.faults.iter().zip(&plan.fault) {
        let Some(begin) = told.begin.filter(|begin| *begin <= until) else { continue };
        let recovered = match (told.end, told.recovered) {
            (None, _) => "-".to_owned(),
            (Some(_), Some(ms)) => spoken(ms),
            (Some(_), None) => "nothing was left to do".to_owned(),
        };
        let other = if planned.others.is_empty() {
            String::new()
        } else {
            format!(" &#8596; {}", list(&planned.others))
        };
        rows.push(vec![
            planned.what.name().to_owned(),
            format!("{}{other}", list(&planned.sites)),
            spoken(begin),
            told.end.map_or_else(|| "to the end".to_owned(), |end| spoken(end - begin)),
            recovered,
        ]);
    }
    if rows.is_empty() {
        return;
    }
    let more = rows.len().saturating_sub(ROWS);
    rows.truncate(ROWS);
    let note = format!(
        "How long after the end of a fault one of its sites was at work again.{}",
        if more > 0 { format!(" {more} more are not shown.") } else { String::new() }
    );
    let head = [
        ("Fault", false),
        ("Sites", false),
        ("At", true),
        ("For", true),
        ("At work again after", true),
    ];
    section(page, "What went wrong, and recovery", note, &table(&head, &rows));
}

fn slow(page: &mut String, plan: &Plan, story: &Story, until: u64) {
    let mut jobs: Vec<_> = story.jobs.iter().filter(|(_, job)| job.due <= until).collect();
    jobs.sort_by_key(|(_, job)| {
        std::cmp::Reverse(job.ended.unwrap_or(until).saturating_sub(job.due))
    });
    let row = |(number, job): &(&u32, &crate::story::JobStory)| {
        let took = job
            .ended
            .map_or_else(|| "not done".to_owned(), |ended| spoken(ended.saturating_sub(job.due)));
        vec![
            format!("job {number}"),
            safe(&plan.site[job.home].name),
            spoken(job.due),
            took,
            safe(&why_slow(plan, story, **number, until)),
        ]
    };
    let rows: Vec<_> = jobs.iter().take(SLOWEST).map(row).collect();
    let head = [
        ("Job", false),
        ("Home", false),
        ("Submitted", true),
        ("Took", true),
        ("What held it up most", false),
    ];
    section(
        page,
        "Why the slowest jobs were slow",
        "<code>meshfarm-sim explain RUN --frame JOB/FRAME</code> tells of one frame.".to_owned(),
        &table(&head, &rows),
    );
}

fn tenants(page: &mut String, plan: &Plan, story: &Story) {
    let mut each: std::collections::BTreeMap<&str, (u64, u64, u64, u64)> =
        std::collections::BTreeMap::new();
    for job in &plan.job {
        let told = &story.jobs[&job.id];
        let sum = each.entry(&job.tenant).or_default();
        sum.0 += 1;
        sum.1 += job.work_ms();
        if let (Some(first), Some(ended)) = (told.first, told.ended) {
            sum.2 = sum.2.max(first.saturating_sub(told.due));
            sum.3 += ended.saturating_sub(told.due);
        }
    }
    let mut rows: Vec<_> = each.into_iter().collect();
    rows.sort_by_key(|(_, (_, work, ..))| std::cmp::Reverse(*work));
    let rows: Vec<_> = rows
        .into_iter()
        .take(12)
        .map(|(name, (n, work, wait, took))| {
            vec![safe(name), n.to_string(), spoken(work), spoken(wait), spoken(took / n.max(1))]
        })
        .collect();
    let head = [
        ("Tenant", false),
        ("Jobs", true),
        ("Work", true),
        ("Longest wait", true),
        ("Mean turnaround", true),
    ];
    section(
        page,
        "Fairness",
        "Who asked for how much, and how long they waited for a first slot.".to_owned(),
        &table(&head, &rows),
    );
}

fn traffic(page: &mut String, outcome: &Outcome) {
    let mut rows: Vec<_> = outcome
        .bytes
        .iter()
        .map(|(class, bytes)| {
            let what = match class.as_str() {
                "scene" => "scenes, from their homes",
                "shared" => "scenes, from other lenders",
                "output" => "frames on their way home",
                _ => "transfers that came to nothing",
            };
            vec![what.to_owned(), spoken_bytes(*bytes)]
        })
        .collect();
    rows.extend(
        outcome.messages.iter().map(|(kind, n)| vec![format!("messages: {kind}"), n.to_string()]),
    );
    rows.push(vec![
        "profiles told, and heard".to_owned(),
        format!("{}, {}", outcome.profiles.0, outcome.profiles.1),
    ]);
    rows.extend(
        outcome
            .refused
            .iter()
            .map(|(why, n)| vec![format!("refused: {}", safe(why)), n.to_string()]),
    );
    section(
        page,
        "What moved and what was said",
        "Content between sites, messages of cores, and gossip.".to_owned(),
        &table(&[("What", false), ("", true)], &rows),
    );
}

fn sites(page: &mut String, plan: &Plan, story: &Story, until: u64) {
    #[derive(Clone, Default)]
    struct Sum {
        own: u64,
        lent: u64,
        lost: u64,
        got: u64,
    }
    let mut sums = vec![Sum::default(); plan.site.len()];
    for span in &story.spans {
        let ms = span.ms(until);
        match (span.accepted, span.site == span.home) {
            (false, _) => sums[span.site].lost += ms,
            (true, true) => sums[span.site].own += ms,
            (true, false) => {
                sums[span.site].lent += ms;
                sums[span.home].got += ms;
            }
        }
    }
    let mut rows: Vec<(usize, &Sum)> = sums.iter().enumerate().collect();
    rows.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.own + sum.lent + sum.lost + sum.got));
    let more = rows.len().saturating_sub(ROWS);
    let rows: Vec<_> = rows
        .into_iter()
        .take(ROWS)
        .map(|(n, sum)| {
            let site = &plan.site[n];
            let whole = u64::from(site.slots) * until;
            let busy = 100 * (sum.own + sum.lent + sum.lost) / whole.max(1);
            vec![
                safe(&site.name),
                site.slots.to_string(),
                format!("{busy} %"),
                spoken(sum.own),
                spoken(sum.lent),
                spoken(sum.got),
                spoken(sum.lost),
            ]
        })
        .collect();
    let head = [
        ("Site", false),
        ("Slots", true),
        ("Busy", true),
        ("For itself", true),
        ("For others", true),
        ("Got from others", true),
        ("In vain", true),
    ];
    let note = format!(
        "Slot time of accepted frames, given and taken.{}",
        if more > 0 {
            format!(" The {ROWS} busiest of {} sites.", ROWS + more)
        } else {
            String::new()
        }
    );
    section(page, "Sites", note, &table(&head, &rows));
}
