//! How data is printed: each command makes one page, and one of three printers writes it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::Value;

use meshfarm_protocol::id::Millis;

pub mod pages;

/// What a command has to say, for every printer at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The data whole.
    pub json: Value,
    /// The same for people.
    pub parts: Vec<Part>,
    /// The ids only, for scripts; one a line.
    pub quiet: Vec<String>,
}

/// A part of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Pieces of one line, set side by side with a blank between them.
    Line(Vec<Cell>),
    /// A table.
    Table(Table),
    /// An empty line.
    Gap,
}

/// Columns under headings, as wide as their widest cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The headings. A heading that begins with `>` sets its column to the right.
    pub head: Vec<&'static str>,
    /// The rows, each with a cell for each heading.
    pub rows: Vec<Vec<Cell>>,
}

/// A piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

/// What a piece of text means; a terminal shows it as a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    Plain,
    /// Important.
    Strong,
    /// Beside the point.
    Faint,
    /// As it should be.
    Good,
    /// Under way.
    Busy,
    /// Not as it should be.
    Bad,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Busy => "36",
            Self::Bad => "31",
        }
    }
}

impl Cell {
    /// Text in a tone. What could move a terminal's cursor or change its state is taken out: names and
    /// reasons come from other sites.
    #[must_use]
    pub fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        Self { text: clean(text.as_ref()), tone }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn write(&self, colour: bool, into: &mut String) {
        let code = self.tone.code();
        if colour && !code.is_empty() && !self.text.is_empty() {
            // Writing to a string cannot fail.
            let _ok = write!(into, "\x1b[{code}m{}\x1b[0m", self.text);
        } else {
            into.push_str(&self.text);
        }
    }
}

/// Text without control characters; line ends become blanks.
#[must_use]
pub fn clean(text: &str) -> String {
    let safe = |c: char| match c {
        '\n' | '\t' | '\r' => ' ',
        // Besides the controls, the marks that turn the direction of writing.
        c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
            '\u{fffd}'
        }
        c => c,
    };
    text.trim_end().chars().map(safe).collect()
}

/// Plain text.
#[must_use]
pub fn plain(text: impl AsRef<str>) -> Cell {
    Cell::new(text, Tone::Plain)
}

/// Important text.
#[must_use]
pub fn strong(text: impl AsRef<str>) -> Cell {
    Cell::new(text, Tone::Strong)
}

/// Text beside the point.
#[must_use]
pub fn faint(text: impl AsRef<str>) -> Cell {
    Cell::new(text, Tone::Faint)
}

impl Page {
    /// A page whose JSON is `data`.
    #[must_use]
    pub fn of(data: &impl Serialize) -> Self {
        // Only maps with keys that are no text cannot be JSON, and no type of the API has one.
        let json = serde_json::to_value(data).unwrap_or_default();
        Self { json, ..Self::default() }
    }

    /// Adds a line.
    pub fn line(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.parts.push(Part::Line(cells.into_iter().collect()));
    }

    /// Adds an empty line.
    pub fn gap(&mut self) {
        self.parts.push(Part::Gap);
    }

    /// Adds a table, unless it has no rows.
    pub fn table(&mut self, head: &[&'static str], rows: impl IntoIterator<Item = Vec<Cell>>) {
        let rows: Vec<_> = rows.into_iter().collect();
        if !rows.is_empty() {
            self.parts.push(Part::Table(Table { head: head.to_vec(), rows }));
        }
    }
}

/// Writes pages.
pub trait Printer: std::fmt::Debug {
    /// The text of a page, with its line ends.
    fn text(&self, page: &Page) -> String;
}

/// For people.
#[derive(Clone, Copy, Debug)]
pub struct TablePrinter {
    /// Whether tones become colours.
    pub colour: bool,
}

/// For programs: indented JSON.
#[derive(Clone, Copy, Debug)]
pub struct JsonPrinter;

/// For scripts: ids only.
#[derive(Clone, Copy, Debug)]
pub struct QuietPrinter;

impl Printer for TablePrinter {
    fn text(&self, page: &Page) -> String {
        let mut text = String::new();
        for part in &page.parts {
            match part {
                Part::Line(cells) => {
                    for (i, cell) in cells.iter().enumerate() {
                        if i > 0 {
                            text.push(' ');
                        }
                        cell.write(self.colour, &mut text);
                    }
                    text.push('\n');
                }
                Part::Table(table) => self.table(table, &mut text),
                Part::Gap => text.push('\n'),
            }
        }
        text
    }
}

impl TablePrinter {
    fn table(self, table: &Table, text: &mut String) {
        let heads = table.head.iter().map(|head| faint(head.trim_start_matches('>')));
        let head: Vec<Cell> = heads.collect();
        let right: Vec<bool> = table.head.iter().map(|head| head.starts_with('>')).collect();
        let mut widths: Vec<usize> = head.iter().map(Cell::width).collect();
        for row in &table.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        for row in std::iter::once(&head).chain(&table.rows) {
            let last = row.iter().rposition(|cell| !cell.text.is_empty());
            for (i, cell) in row.iter().enumerate().take(last.map_or(0, |last| last + 1)) {
                let pad = " ".repeat(widths[i].saturating_sub(cell.width()));
                if i > 0 {
                    text.push_str("  ");
                }
                if right[i] {
                    text.push_str(&pad);
                }
                cell.write(self.colour, text);
                if !right[i] && Some(i) != last {
                    text.push_str(&pad);
                }
            }
            text.push('\n');
        }
    }
}

impl Printer for JsonPrinter {
    fn text(&self, page: &Page) -> String {
        format!("{:#}\n", page.json)
    }
}

impl Printer for QuietPrinter {
    fn text(&self, page: &Page) -> String {
        page.quiet.iter().map(|id| format!("{}\n", clean(id))).collect()
    }
}

/// The printer that a person asked for. Colours appear on a terminal only, and not where `NO_COLOR` is set.
#[must_use]
pub fn printer(json: bool, quiet: bool) -> Box<dyn Printer> {
    if json {
        Box::new(JsonPrinter)
    } else if quiet {
        Box::new(QuietPrinter)
    } else {
        Box::new(TablePrinter { colour: io::stdout().is_terminal() && colours_wanted() })
    }
}

fn colours_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes to standard output. A reader that has gone away (`| head`) is no error.
///
/// # Errors
/// When standard output breaks otherwise.
pub fn out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Says on standard error what went wrong and what to do.
pub fn complain(error: &str, help: Option<&str>) {
    let colour = io::stderr().is_terminal() && colours_wanted();
    let mut text = String::new();
    let mut say = |word: &str, tone, said: &str| {
        Cell::new(word, tone).write(colour, &mut text);
        // Messages of parsers have several lines, which belong beneath each other.
        let lines: Vec<_> = said.lines().map(clean).collect();
        text.push(' ');
        text.push_str(&lines.join("\n  "));
        text.push('\n');
    };
    say("error:", Tone::Bad, error);
    if let Some(help) = help {
        say("help:", Tone::Busy, help);
    }
    // There is nobody left to tell when standard error is gone.
    drop(io::stderr().write_all(text.as_bytes()));
}

/// Bytes as people read them: `1.4 MiB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut tenths = u128::from(n) * 10;
    let mut unit = 0;
    tenths /= 1024;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A span as people read it: `3.2 s`, `4m 05s`, `2h 10m`, `3d 4h`.
#[must_use]
pub fn span(millis: Millis) -> String {
    let seconds = millis.0 / 1000;
    match seconds {
        0..60 => format!("{}.{} s", seconds, millis.0 % 1000 / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A moment in the machine's own time zone: `2026-03-01 14:05`.
#[must_use]
pub fn moment(at: Millis) -> String {
    let stamp = i64::try_from(at.0).ok().and_then(|n| jiff::Timestamp::from_millisecond(n).ok());
    stamp.map_or_else(
        || "?".to_owned(),
        |stamp| {
            let zoned = stamp.to_zoned(jiff::tz::TimeZone::system());
            zoned.strftime("%Y-%m-%d %H:%M").to_string()
        },
    )
}

/// Numbers as ranges: `1-7,9`.
#[must_use]
pub fn ranges(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut spans: Vec<(u32, u32)> = Vec::new();
    for n in numbers {
        match spans.last_mut() {
            Some((_, end)) if n == end.saturating_add(1) => *end = n,
            _ => spans.push((n, n)),
        }
    }
    let texts = spans.iter().map(|(from, to)| match from == to {
        true => from.to_string(),
        false => format!("{from}-{to}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let mut page = Page::of(&serde_json::json!([{"site": "oslo"}]));
        page.line([strong("2"), plain("sites")]);
        page.table(
            &["SITE", ">SLOTS", "STATE"],
            [
                vec![plain("oslo"), plain("12"), Cell::new("ready", Tone::Good)],
                vec![plain("a\x1b[2Jb\nc"), plain("4"), plain("")],
            ],
        );
        page.quiet = vec!["oslo".into(), "ab\x1b".into()];
        page
    }

    #[test]
    fn a_table_is_aligned_and_nothing_in_it_can_move_the_cursor() {
        let text = TablePrinter { colour: false }.text(&page());
        assert_eq!(
            text,
            "2 sites\n\
             SITE      SLOTS  STATE\n\
             oslo         12  ready\n\
             a\u{fffd}[2Jb c      4\n"
        );
    }

    #[test]
    fn colours_appear_only_where_they_are_wanted() {
        let text = TablePrinter { colour: true }.text(&page());
        assert!(text.contains("\x1b[32mready\x1b[0m"), "{text:?}");
        assert!(!text.contains("\x1b[2J"), "{text:?}");
    }

    #[test]
    fn the_same_page_is_json_or_ids() {
        assert_eq!(JsonPrinter.text(&page()), "[\n  {\n    \"site\": \"oslo\"\n  }\n]\n");
        assert_eq!(QuietPrinter.text(&page()), "oslo\nab\u{fffd}\n");
    }

    #[test]
    fn an_empty_table_leaves_no_heading() {
        let mut page = Page::default();
        page.table(&["A"], []);
        assert_eq!(TablePrinter { colour: false }.text(&page), "");
    }

    #[test]
    fn sizes_and_times_read_well() {
        let sizes = [0, 1023, 1024, 1536, 1 << 20, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "15.9 EiB"]);
        let spans = [0, 3_250, 65_000, 7_800_000, 300_000_000].map(|n| span(Millis(n)));
        assert_eq!(spans, ["0.0 s", "3.2 s", "1m 05s", "2h 10m", "3d 11h"]);
        assert_eq!(moment(Millis(u64::MAX)), "?");
        assert_eq!(ranges([1, 2, 3, 7, 9, 10]), "1-3,7,9-10");
    }
}
