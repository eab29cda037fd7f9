//! The contact sheet: all frames of a job small on one picture, each with its number.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use image::{Rgb, RgbImage, RgbaImage};

use meshfarm_protocol::id::Millis;

mod decode;

pub use decode::{Decode, Here, Jailed, Picture, SUBCOMMAND, serve};

/// A longer job shows so many of its frames, evenly chosen.
const MAX_CELLS: usize = 240;

/// Files looked at in the folders of a job, at most.
const MAX_FILES: usize = 100_000;

/// Width that the sheet is made for, in pixels: it fits a screen, and a page in print.
const WIDTH: u32 = 1600;

/// Wider cells than this show a few frames larger than they need to be, in pixels.
const MAX_CELL: u32 = 480;

/// Width over height of a sheet that fills a screen.
const SHAPE: f64 = 1.6;

/// Between cells and around them, in pixels.
const MARGIN: u32 = 16;

/// Height of a number beneath its frame with the space around it, in pixels.
const LABEL: u32 = 26;

/// One dot of a digit, in pixels.
const DOT: u32 = 2;

const PAPER: Rgb<u8> = Rgb([24, 26, 30]);
const MAT: Rgb<u8> = Rgb([40, 43, 49]);
const INK: Rgb<u8> = Rgb([176, 182, 192]);
const ALARM: Rgb<u8> = Rgb([200, 72, 64]);

/// The digits, seven rows of five dots each, the leftmost dot in the highest of the five bits.
const DIGITS: [[u8; 7]; 10] = [
    [0x0e, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0e],
    [0x04, 0x0c, 0x04, 0x04, 0x04, 0x04, 0x0e],
    [0x0e, 0x11, 0x01, 0x02, 0x04, 0x08, 0x1f],
    [0x1f, 0x02, 0x04, 0x02, 0x01, 0x11, 0x0e],
    [0x02, 0x06, 0x0a, 0x12, 0x1f, 0x02, 0x02],
    [0x1f, 0x10, 0x1e, 0x01, 0x01, 0x11, 0x0e],
    [0x06, 0x08, 0x10, 0x1e, 0x11, 0x11, 0x0e],
    [0x1f, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08],
    [0x0e, 0x11, 0x11, 0x0e, 0x11, 0x11, 0x0e],
    [0x0e, 0x11, 0x11, 0x0f, 0x01, 0x02, 0x0c],
];

/// Why there is no sheet. An older file of its name is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum SheetError {
    /// No picture was found.
    #[error("the job has no PNG or JPEG frames yet")]
    NoFrames,
    /// Not one of the frames could be decoded.
    #[error("none of the frames can be decoded, the first is {}", .0.display())]
    Unreadable(PathBuf),
    /// Its name does not end in .png.
    #[error("a contact sheet is a PNG: the file's name must end in .png")]
    NotPng,
    /// The sheet cannot be encoded or written.
    #[error("cannot be written")]
    Write(#[source] io::Error),
}

/// What a sheet shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Frames on it.
    pub frames: usize,
    /// Those of them that could not be decoded and are crossed out.
    pub unreadable: usize,
}

/// The pictures in `folders` that were written since `since`, in the order of their names' numbers.
#[must_use]
pub fn find_frames(folders: &[PathBuf], since: Millis) -> Vec<PathBuf> {
    // File times may be a little coarser than the clock.
    let since = UNIX_EPOCH + Duration::from_millis(since.0.saturating_sub(2000));
    let mut frames = Vec::new();
    let mut open: Vec<PathBuf> = folders.to_vec();
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(about) = entry.metadata() else {
                continue;
            };
            if about.is_dir() {
                open.push(path);
            } else if is_picture(&path) && about.modified().is_ok_and(|at| at >= since) {
                frames.push(path);
            }
            if frames.len() + open.len() >= MAX_FILES {
                open.clear();
                break;
            }
        }
    }
    frames.sort_by_cached_key(|path| natural(path));
    frames.dedup();
    frames
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    ["png", "jpg", "jpeg"].iter().any(|known| extension == *known)
}

/// A key by which `frame9` comes before `frame10`.
fn natural(path: &Path) -> (PathBuf, Vec<(String, u64)>) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut parts = vec![(String::new(), 0_u64)];
    let mut in_number = false;
    for c in name.chars() {
        if !c.is_ascii_digit() && in_number {
            parts.push((String::new(), 0));
        }
        let (text, number) = parts.last_mut().expect("there is always one");
        match c.to_digit(10) {
            Some(digit) => *number = number.saturating_mul(10).saturating_add(digit.into()),
            None => text.push(c),
        }
        in_number = c.is_ascii_digit();
    }
    (path.parent().map(Path::to_owned).unwrap_or_default(), parts)
}

/// A picture and the number beneath it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The file.
    pub path: PathBuf,
    /// Digits, or nothing.
    pub number: String,
}

/// Gives each picture its number: that of its task where the tasks have numbers and every name ends in its
/// task's (`camera201` may be frame 1 of `camera2`), else the last number in its name.
#[must_use]
pub fn numbered(pictures: Vec<PathBuf>, tasks: &[u64]) -> Vec<Frame> {
    let names: Vec<String> = pictures.iter().map(|path| number(path)).collect();
    let mut tasks: Vec<String> = tasks.iter().map(u64::to_string).collect();
    tasks.sort_by_key(|task| (task.len(), task.clone()));
    let alike = tasks.len() == names.len();
    let agree = alike && names.iter().zip(&tasks).all(|(name, task)| name.ends_with(task.as_str()));
    let numbers = if agree { tasks } else { names };
    let both = pictures.into_iter().zip(numbers);
    both.map(|(path, number)| Frame { path, number }).collect()
}

/// The last number in a file's name.
fn number(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let tail = stem.trim_end_matches(|c: char| !c.is_ascii_digit());
    let start = tail.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |i| i + 1);
    let digits = tail.get(start..).unwrap_or("").trim_start_matches('0');
    if digits.is_empty() && !tail.is_empty() { "0".to_owned() } else { digits.to_owned() }
}

/// Write the sheet of `frames` to `file`: whole, or not at all.
///
/// # Errors
/// When there is nothing to show or no way to write it.
pub fn write(frames: &[Frame], file: &Path, decoder: &mut dyn Decode) -> Result<Made, SheetError> {
    if file.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
        return Err(SheetError::NotPng);
    }
    let frames = choose(frames);
    let first = frames.first().ok_or(SheetError::NoFrames)?;
    // Its size alone counts here.
    let sample = frames.iter().find_map(|frame| decoder.shrink(&frame.path, (1, 1)));
    let sample = sample.ok_or_else(|| SheetError::Unreadable(first.path.clone()))?;
    let grid = Grid::new(frames.len(), sample.size);
    let mut sheet = RgbImage::from_pixel(grid.width(), grid.height(), PAPER);
    let mut unreadable = 0;
    for (i, frame) in frames.iter().enumerate() {
        let (x, y) = grid.place(i);
        fill(&mut sheet, (x, y), (grid.cell.0, grid.cell.1), MAT);
        match decoder.shrink(&frame.path, grid.cell) {
            Some(picture) => paste(&mut sheet, &picture.small, (x, y), grid.cell),
            None => {
                unreadable += 1;
                cross(&mut sheet, (x, y), grid.cell);
            }
        }
        label(&mut sheet, &frame.number, (x + grid.cell.0 / 2, y + grid.cell.1 + 7));
    }
    save(&sheet, file).map_err(SheetError::Write)?;
    Ok(Made { frames: frames.len(), unreadable })
}

/// All of a short job, and evenly chosen ones of a long job with the first and the last.
fn choose(frames: &[Frame]) -> Vec<&Frame> {
    let n = frames.len();
    if n <= MAX_CELLS {
        return frames.iter().collect();
    }
    (0..MAX_CELLS).map(|i| &frames[i * (n - 1) / (MAX_CELLS - 1)]).collect()
}

/// Where the frames stand.
struct Grid {
    columns: u32,
    rows: u32,
    cell: (u32, u32),
}

impl Grid {
    /// A grid for `n` frames of about this size, on a sheet that is a little wider than high.
    fn new(n: usize, (width, height): (u32, u32)) -> Self {
        let n = u32::try_from(n.max(1)).unwrap_or(u32::MAX);
        // A strip one pixel high must not make a cell of no height.
        let cell_height = |cell: u32| {
            let scaled = u64::from(cell) * u64::from(height.max(1)) / u64::from(width.max(1));
            u32::try_from(scaled).unwrap_or(u32::MAX).clamp(cell / 4, cell * 4)
        };
        let cell_width = |columns: u32| {
            (WIDTH.saturating_sub(MARGIN * (columns + 1)) / columns).clamp(48, MAX_CELL)
        };
        // A sheet a little wider than high without gaps in its last row: whichever grid comes nearest.
        let cost = |columns: u32| {
            let rows = n.div_ceil(columns);
            let cell = cell_width(columns);
            let high = rows * (cell_height(cell) + LABEL + MARGIN) + MARGIN;
            let wide = columns * (cell + MARGIN) + MARGIN;
            let gaps = f64::from(columns * rows - n) / f64::from(n);
            (f64::from(wide) / f64::from(high) / SHAPE).ln().abs() + 1.5 * gaps
        };
        let columns = (1..=n.min(20)).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(1);
        let cell = cell_width(columns);
        Self { columns, rows: n.div_ceil(columns), cell: (cell, cell_height(cell)) }
    }

    fn width(&self) -> u32 {
        self.columns * (self.cell.0 + MARGIN) + MARGIN
    }

    fn height(&self) -> u32 {
        self.rows * (self.cell.1 + LABEL + MARGIN) + MARGIN
    }

    fn place(&self, i: usize) -> (u32, u32) {
        let i = u32::try_from(i).unwrap_or(0);
        let (column, row) = (i % self.columns, i / self.columns);
        let x = MARGIN + column * (self.cell.0 + MARGIN);
        (x, MARGIN + row * (self.cell.1 + LABEL + MARGIN))
    }
}

/// Sets a picture into the middle of its cell, on what is behind it where it is transparent.
fn paste(sheet: &mut RgbImage, small: &RgbaImage, (x, y): (u32, u32), cell: (u32, u32)) {
    let (left, top) = ((cell.0 - small.width()) / 2, (cell.1 - small.height()) / 2);
    for (dx, dy, pixel) in small.enumerate_pixels() {
        let at = sheet.get_pixel_mut(x + left + dx, y + top + dy);
        let alpha = u16::from(pixel[3]);
        for channel in 0..3 {
            let mixed =
                (u16::from(pixel[channel]) * alpha + u16::from(at[channel]) * (255 - alpha)) / 255;
            at[channel] = u8::try_from(mixed).unwrap_or(u8::MAX);
        }
    }
}

fn fill(sheet: &mut RgbImage, (x, y): (u32, u32), (width, height): (u32, u32), colour: Rgb<u8>) {
    for dy in 0..height {
        for dx in 0..width {
            if let Some(pixel) = sheet.get_pixel_mut_checked(x + dx, y + dy) {
                *pixel = colour;
            }
        }
    }
}

fn cross(sheet: &mut RgbImage, (x, y): (u32, u32), (width, height): (u32, u32)) {
    for dx in 0..width.saturating_sub(DOT) {
        let dy = dx * height.saturating_sub(DOT) / width.max(1);
        fill(sheet, (x + dx, y + dy), (DOT, DOT), ALARM);
        fill(sheet, (x + width - DOT - dx, y + dy), (DOT, DOT), ALARM);
    }
}

/// Draws digits, centred on `x`.
fn label(sheet: &mut RgbImage, digits: &str, (x, y): (u32, u32)) {
    let n = u32::try_from(digits.len()).unwrap_or(0);
    let mut left = x.saturating_sub((n * 6).saturating_sub(1) * DOT / 2);
    for digit in digits.chars().filter_map(|c| c.to_digit(10)) {
        for (row, bits) in (0..).zip(DIGITS[digit as usize]) {
            for column in (0..5).filter(|column| bits & (0x10 >> column) != 0) {
                fill(sheet, (left + column * DOT, y + row * DOT), (DOT, DOT), INK);
            }
        }
        left += 6 * DOT;
    }
}

fn save(sheet: &RgbImage, file: &Path) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let draft = tempfile::Builder::new().prefix(".sheet").suffix(".png").tempfile_in(folder)?;
    sheet
        .write_to(&mut io::BufWriter::new(draft.as_file()), image::ImageFormat::Png)
        .map_err(io::Error::other)?;
    draft.persist(file).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn frames(folder: &Path, n: u32, size: (u32, u32)) -> Vec<PathBuf> {
        let frame = |i: u32| {
            let path = folder.join(format!("shot{i}.png"));
            let shade = u8::try_from(i * 255 / n).unwrap();
            let colour = move |x, _y| Rgb([shade, u8::try_from(x % 256).unwrap(), 255 - shade]);
            RgbImage::from_fn(size.0, size.1, colour).save(&path).unwrap();
            path
        };
        (1..=n).map(frame).collect()
    }

    #[test]
    fn every_frame_is_on_the_sheet_in_its_place() {
        let temp = tempfile::tempdir().unwrap();
        let made = frames(temp.path(), 20, (320, 240));
        let found = find_frames(&[temp.path().to_owned()], Millis(0));
        assert_eq!(found, made);
        let found = numbered(found, &[]);
        let file = temp.path().join("sheet.png");
        assert_eq!(write(&found, &file, &mut Here).unwrap(), Made { frames: 20, unreadable: 0 });
        let sheet = image::open(&file).unwrap().to_rgb8();
        assert!(
            sheet.width() <= WIDTH && sheet.width() > sheet.height(),
            "{:?}",
            sheet.dimensions()
        );
        let grid = Grid::new(20, (320, 240));
        assert_eq!(sheet.dimensions(), (grid.width(), grid.height()));
        for i in [0_u32, 7, 19] {
            let (x, y) = grid.place(i as usize);
            let shade = sheet.get_pixel(x + grid.cell.0 / 2, y + grid.cell.1 / 2)[0];
            let want = (i + 1) * 255 / 20;
            assert!(u32::from(shade).abs_diff(want) < 4, "frame {i}: {shade} is not {want}");
        }
        assert_eq!(*sheet.get_pixel(2, 2), PAPER);
        assert!(sheet.pixels().any(|pixel| *pixel == INK), "no numbers");
    }

    #[test]
    fn a_frame_that_is_no_picture_is_crossed_out() {
        let temp = tempfile::tempdir().unwrap();
        let mut all = frames(temp.path(), 2, (40, 40));
        let odd = temp.path().join("shot3.png");
        fs::write(&odd, b"not a picture").unwrap();
        all.push(odd.clone());
        let (all, odd) = (numbered(all, &[]), numbered(vec![odd], &[]));
        let file = temp.path().join("sheet.png");
        assert_eq!(write(&all, &file, &mut Here).unwrap(), Made { frames: 3, unreadable: 1 });
        let sheet = image::open(&file).unwrap().to_rgb8();
        assert!(sheet.pixels().any(|pixel| *pixel == ALARM));
        assert!(matches!(write(&odd, &file, &mut Here), Err(SheetError::Unreadable(_))));
        assert!(matches!(write(&[], &file, &mut Here), Err(SheetError::NoFrames)));
        assert!(matches!(write(&all, Path::new("sheet.jpg"), &mut Here), Err(SheetError::NotPng)));
    }

    #[test]
    fn frames_come_in_the_order_of_their_numbers_and_keep_them() {
        let mut names = ["f10.png", "f9.png", "f1.png", "e2.png"].map(PathBuf::from);
        names.sort_by_cached_key(|path| natural(path));
        assert_eq!(names, ["e2.png", "f1.png", "f9.png", "f10.png"].map(PathBuf::from));
        let numbers = ["shot0012.png", "v2_0000.png", "plain.png", "f7b.png"];
        let numbers = numbers.map(|name| number(Path::new(name)));
        assert_eq!(numbers, ["12", "0", "", "7"]);
        let names = |tasks: &[u64]| {
            let pictures = ["camera209.png", "camera210.png"].map(PathBuf::from).to_vec();
            let frames = numbered(pictures, tasks);
            frames.into_iter().map(|frame| frame.number).collect::<Vec<_>>()
        };
        assert_eq!(names(&[10, 9]), ["9", "10"]);
        assert_eq!(names(&[9, 11]), ["209", "210"]);
        assert_eq!(names(&[]), ["209", "210"]);
    }

    #[test]
    fn a_long_job_shows_its_first_and_last_frame_and_others_between() {
        let all = (0..1000).map(|i| PathBuf::from(format!("f{i}.png")));
        let all = numbered(all.collect(), &[]);
        let chosen = choose(&all);
        assert_eq!(chosen.len(), MAX_CELLS);
        assert_eq!(
            (chosen[0].number.as_str(), chosen[MAX_CELLS - 1].number.as_str()),
            ("0", "999")
        );
        for n in [1, 2, 3, 7, 30, 100, 240] {
            for size in [(320, 240), (1, 9999), (9999, 1), (1920, 804)] {
                let grid = Grid::new(n, size);
                assert!(grid.width() <= WIDTH && grid.cell.1 > 0, "{n} of {size:?}");
                let (x, y) = grid.place(n - 1);
                assert!(x + grid.cell.0 < grid.width() && y + grid.cell.1 < grid.height());
            }
        }
    }

    #[test]
    fn pictures_older_than_the_job_are_not_its_frames() {
        let temp = tempfile::tempdir().unwrap();
        frames(temp.path(), 1, (4, 4));
        let later = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() + 60_000;
        let later = Millis(u64::try_from(later).unwrap());
        assert!(find_frames(&[temp.path().to_owned()], later).is_empty());
    }
}
