//! The page that says why a job's tasks wait.

use meshfarm_core::{Explained, ExplainedSite, ExplainedStep, JobPhase};
use meshfarm_protocol::id::Millis;

use super::deadline;
use crate::print::{Cell, Page, Tone, faint, plain, strong};

/// Why the tasks of a job wait: each step, and each site's answer to it.
#[must_use]
pub fn explain(explained: &Explained, now: Millis) -> Page {
    let mut page = Page::of(explained);
    page.quiet = vec![explained.job.to_string()];
    let ended = match &explained.phase {
        JobPhase::Active => plain(""),
        JobPhase::Done => faint("is done"),
        JobPhase::Failed(reason) => Cell::new(format!("has failed: {reason}"), Tone::Bad),
        JobPhase::Canceled => faint("was canceled"),
    };
    page.line([strong(&explained.name), faint(explained.job.short()), ended]);
    if let Some(view) = explained.deadline.filter(|_| explained.phase == JobPhase::Active) {
        page.line([deadline::deadline(&view, None, now)]);
    }
    if let Some(task) = &explained.task {
        page.line([plain("Task"), strong(&task.label), plain(format!("is {}", task.state))]);
        for wait in &task.waits {
            page.line([plain(" "), plain(wait)]);
        }
    }
    for step in &explained.steps {
        step_lines(step, &mut page);
    }
    page
}

fn step_lines(step: &ExplainedStep, page: &mut Page) {
    page.gap();
    let waiting = match step.waiting {
        0 => "no task waits".to_owned(),
        1 => "one task waits".to_owned(),
        n => format!("{n} tasks wait"),
    };
    page.line([plain("Step"), strong(&step.name), plain(waiting)]);
    for wait in &step.waits {
        page.line([plain(" "), plain(wait)]);
    }
    let rows = step.sites.iter().flat_map(site_rows);
    page.table(&["SITE", "CAPABILITY", "ASKS", "HAS", ""], rows);
}

fn site_rows(site: &ExplainedSite) -> Vec<Vec<Cell>> {
    let looks = site.looks.iter().map(|look| {
        let fits = match look.fits {
            true => Cell::new("fits", Tone::Good),
            false => Cell::new("does not fit", Tone::Bad),
        };
        vec![plain(&look.name), plain(&look.asks), plain(&look.has), fits]
    });
    let mut rows: Vec<_> = looks.collect();
    let misfits = site.looks.iter().any(|look| !look.fits);
    let words = site.blocks.iter().map(|block| Cell::new(block, Tone::Busy));
    let asked = (site.blocks.is_empty() && !misfits)
        .then(|| Cell::new("nothing is in the way", Tone::Good));
    rows.extend(words.chain(asked).map(|cell| vec![plain(""), plain(""), plain(""), cell]));
    for (n, row) in rows.iter_mut().enumerate() {
        row.insert(0, if n == 0 { strong(&site.site) } else { plain("") });
    }
    rows
}

#[cfg(test)]
mod tests {
    use meshfarm_protocol::id::JobId;
    use meshfarm_protocol::matching::Look;

    use super::*;

    #[test]
    fn a_site_is_shown_with_what_it_lacks_and_what_is_in_the_way() {
        let look = |name: &str, fits| Look {
            name: name.into(),
            asks: "at least 8".into(),
            has: "4".into(),
            fits,
        };
        let site = |name: &str, looks: Vec<Look>, blocks: &[&str]| ExplainedSite {
            site: name.into(),
            own: false,
            looks,
            blocks: blocks.iter().map(ToString::to_string).collect(),
        };
        let step = ExplainedStep {
            name: "Render".into(),
            waiting: 3,
            waits: vec!["2 jobs with waiting tasks come first".into()],
            sites: vec![
                site("oslo", vec![look("vcpu", false)], &["every slot is taken"]),
                site("lyon", vec![look("vcpu", true)], &[]),
            ],
        };
        let explained = Explained {
            job: JobId([7; 16]),
            name: "shot".into(),
            phase: JobPhase::Active,
            deadline: None,
            steps: vec![step],
            task: None,
        };
        let rows: Vec<_> = explained.steps[0].sites.iter().flat_map(site_rows).collect();
        let text = |row: &Vec<Cell>| row.iter().map(|cell| cell.text.clone()).collect::<Vec<_>>();
        let rows: Vec<_> = rows.iter().map(text).collect();
        assert_eq!(rows[0], ["oslo", "vcpu", "at least 8", "4", "does not fit"]);
        assert_eq!(rows[1], ["", "", "", "", "every slot is taken"]);
        assert_eq!(rows[2], ["lyon", "vcpu", "at least 8", "4", "fits"]);
        assert_eq!(rows[3], ["", "", "", "", "nothing is in the way"]);
    }
}
