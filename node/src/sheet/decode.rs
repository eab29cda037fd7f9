//! Decoding frames: in a jail of its own, because what another site sends as a picture may be made to break a decoder.
//!
//! The decoder is this program itself, started with the hidden subcommand `decode-frames`. Frames go in and small
//! pictures come out through pipes, so that it sees no file; a decoder that a frame has broken can show wrong pixels
//! on the sheet, and nothing else.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Cursor, ErrorKind, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ChildStdout;

use image::{DynamicImage, GenericImageView, ImageReader, RgbaImage, imageops};

use meshfarm_sandbox::{self as sandbox, Jail, Limits, Profile, Spec};

use crate::beneath;

/// A frame that is wider or higher than this is not decoded, in pixels.
const MAX_SIDE: u32 = 32_768;

/// A frame that needs more memory than this is not decoded, in bytes.
const MAX_MEMORY: u64 = 1 << 30;

/// A longer file is no frame, in bytes.
const MAX_FILE: u64 = 512 << 20;

/// The decoder may use so much: a file, the frame, and as much again while it is made small.
const JAIL_MEMORY: u64 = MAX_FILE + 3 * MAX_MEMORY;

/// The decoder may run so long, in seconds: 240 frames of 8K take a few minutes.
const JAIL_SECONDS: u64 = 900;

/// After so many frames that broke the decoder the others are not tried: somebody means it.
const MOST_BROKEN: usize = 3;

/// Subcommand of the decoder.
pub const SUBCOMMAND: &str = "decode-frames";

/// A frame made small.
#[derive(Debug)]
pub struct Picture {
    /// Its width and height before, in pixels.
    pub size: (u32, u32),
    /// What is left of it.
    pub small: RgbaImage,
}

/// Whatever makes frames small.
pub trait Decode: std::fmt::Debug {
    /// The frame in a file, no larger than `cell`. None when it is no picture, too large, or breaks the decoder.
    fn shrink(&mut self, path: &Path, cell: (u32, u32)) -> Option<Picture>;
}

/// Decodes in this process: for frames that this machine has rendered itself.
#[derive(Clone, Copy, Debug)]
pub struct Here;

impl Decode for Here {
    fn shrink(&mut self, path: &Path, cell: (u32, u32)) -> Option<Picture> {
        let mut bytes = Vec::new();
        open(path).ok()?.0.read_to_end(&mut bytes).ok()?;
        shrink(&bytes, cell)
    }
}

/// Decodes in a jail.
#[derive(Debug)]
pub struct Jailed {
    launcher: PathBuf,
    spec: Spec,
    decoder: Option<Decoder>,
    broken: usize,
    /// The folder of the jail, which stays empty.
    _folder: tempfile::TempDir,
}

/// A decoder that runs. Dropping it ends it.
#[derive(Debug)]
struct Decoder {
    to: BufWriter<PipeWriter>,
    from: BufReader<ChildStdout>,
    _jail: Jail,
}

impl Jailed {
    /// Start the decoder.
    ///
    /// # Errors
    /// When no jail stands on this machine.
    pub fn start() -> io::Result<Self> {
        let launcher = sandbox::find_launcher().map_err(io::Error::other)?;
        let folder = tempfile::Builder::new().prefix("meshfarm-sheet-").tempdir()?;
        let work = folder.path().join("work");
        crate::session::private_folder(&work)?;
        let mut spec = Spec::new(std::env::current_exe()?.canonicalize()?, work);
        spec.args = vec![SUBCOMMAND.to_owned()];
        spec.base = Some(folder.path().to_owned());
        // The narrowest one: no socket, and threads only because every program has them.
        spec.profile = Profile::Povray;
        spec.limits = Limits {
            memory_bytes: JAIL_MEMORY,
            processes: 8,
            open_files: 64,
            file_bytes: 1 << 20,
            disk_bytes: 1 << 20,
            disk_files: 16,
            tmp_bytes: 1 << 20,
            wall_seconds: Some(JAIL_SECONDS),
            cpu_seconds: JAIL_SECONDS,
            ..Limits::default()
        };
        let mut jailed = Self { launcher, spec, decoder: None, broken: 0, _folder: folder };
        jailed.decoder = Some(jailed.launch()?);
        Ok(jailed)
    }

    fn launch(&self) -> io::Result<Decoder> {
        let mut jail = sandbox::launch(&self.launcher, &self.spec).map_err(io::Error::other)?;
        // What a broken decoder complains about is nobody's concern.
        drop(jail.stderr.take());
        let gone = || io::Error::from(ErrorKind::BrokenPipe);
        let to = BufWriter::new(jail.stdin.take().ok_or_else(gone)?);
        let from = BufReader::new(jail.stdout.take().ok_or_else(gone)?);
        Ok(Decoder { to, from, _jail: jail })
    }
}

impl Decode for Jailed {
    fn shrink(&mut self, path: &Path, cell: (u32, u32)) -> Option<Picture> {
        let frame = open(path).ok()?;
        if self.decoder.is_none() && self.broken < MOST_BROKEN {
            self.decoder = self.launch().ok();
        }
        match self.decoder.as_mut()?.ask(frame, cell) {
            Ok(answer) => answer,
            Err(_) => {
                self.decoder = None;
                self.broken += 1;
                None
            }
        }
    }
}

impl Decoder {
    fn ask(
        &mut self,
        (file, length): (impl Read, u64),
        cell: (u32, u32),
    ) -> io::Result<Option<Picture>> {
        self.to.write_all(&cell.0.to_le_bytes())?;
        self.to.write_all(&cell.1.to_le_bytes())?;
        self.to.write_all(&length.to_le_bytes())?;
        let sent = io::copy(&mut file.take(length), &mut self.to)?;
        // A file that became shorter meanwhile would leave the decoder waiting.
        io::copy(&mut io::repeat(0).take(length - sent), &mut self.to)?;
        self.to.flush()?;
        read_answer(&mut self.from, cell)
    }
}

/// What the hidden subcommand does: frames in on standard input, small pictures out on standard output.
///
/// # Errors
/// When the other end does not speak as it should.
pub fn serve(from: impl Read, to: impl Write) -> io::Result<()> {
    let (mut from, mut to) = (BufReader::new(from), BufWriter::new(to));
    loop {
        let width = match number(&mut from) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            width => width?,
        };
        let cell = (width, number(&mut from)?);
        let mut length = [0; 8];
        from.read_exact(&mut length)?;
        let mut bytes = Vec::new();
        from.by_ref().take(u64::from_le_bytes(length)).read_to_end(&mut bytes)?;
        write_answer(&mut to, shrink(&bytes, cell))?;
        to.flush()?;
    }
}

/// A plain file and its length; not one that is too long to be a frame.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = beneath::open_file(path)?;
    let length = file.metadata()?.len();
    if length > MAX_FILE { Err(ErrorKind::FileTooLarge.into()) } else { Ok((file, length)) }
}

fn shrink(bytes: &[u8], cell: (u32, u32)) -> Option<Picture> {
    let picture = decode(bytes)?;
    let small = picture.resize(cell.0.max(1), cell.1.max(1), imageops::FilterType::Triangle);
    Some(Picture { size: picture.dimensions(), small: small.to_rgba8() })
}

/// A frame, unless it is no picture or too large. What a lender sent may be anything.
fn decode(bytes: &[u8]) -> Option<DynamicImage> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_MEMORY);
    reader.limits(limits);
    reader.decode().ok()
}

/// A byte that says whether there is a picture; then four numbers, and its pixels.
fn write_answer(to: &mut impl Write, picture: Option<Picture>) -> io::Result<()> {
    let Some(Picture { size, small }) = picture else {
        return to.write_all(&[0]);
    };
    to.write_all(&[1])?;
    for number in [size.0, size.1, small.width(), small.height()] {
        to.write_all(&number.to_le_bytes())?;
    }
    to.write_all(small.as_raw())
}

/// Nothing that is read here is believed: a picture larger than its cell would be drawn over others.
fn read_answer(from: &mut impl Read, cell: (u32, u32)) -> io::Result<Option<Picture>> {
    let mut said = [0];
    from.read_exact(&mut said)?;
    if said == [0] {
        return Ok(None);
    }
    let size = (number(from)?, number(from)?);
    let (width, height) = (number(from)?, number(from)?);
    let fits = (1..=cell.0).contains(&width) && (1..=cell.1).contains(&height);
    if said != [1] || !fits || size.0 == 0 || size.1 == 0 {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut pixels = vec![0; width as usize * height as usize * 4];
    from.read_exact(&mut pixels)?;
    let small = RgbaImage::from_raw(width, height, pixels);
    small.map(|small| Some(Picture { size, small })).ok_or_else(|| ErrorKind::InvalidData.into())
}

fn number(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbaImage::from_pixel(width, height, image::Rgba([9, 8, 7, 255]))
            .write_to(&mut bytes, image::ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    }

    fn request(cell: (u32, u32), frame: &[u8]) -> Vec<u8> {
        let length = (frame.len() as u64).to_le_bytes();
        [&cell.0.to_le_bytes()[..], &cell.1.to_le_bytes(), &length, frame].concat()
    }

    #[test]
    fn frames_go_in_and_small_pictures_come_out_one_by_one() {
        let asked = [
            request((10, 10), &png(40, 20)),
            request((10, 10), b"no picture"),
            request((3, 3), &png(2, 2)),
        ];
        let mut said = Vec::new();
        serve(asked.concat().as_slice(), &mut said).unwrap();
        let mut said = said.as_slice();
        let first = read_answer(&mut said, (10, 10)).unwrap().unwrap();
        assert_eq!((first.size, first.small.dimensions()), ((40, 20), (10, 5)));
        assert_eq!(first.small.get_pixel(3, 3).0, [9, 8, 7, 255]);
        assert!(read_answer(&mut said, (10, 10)).unwrap().is_none());
        assert_eq!(read_answer(&mut said, (3, 3)).unwrap().unwrap().small.dimensions(), (3, 3));
        assert!(said.is_empty());
    }

    #[test]
    fn a_decoder_that_lies_about_sizes_is_not_believed() {
        let answer = |numbers: [u32; 4], pixels: usize| {
            let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            [&[1][..], &numbers, &vec![0; pixels]].concat()
        };
        for lie in [
            answer([40, 20, 11, 5], 11 * 5 * 4),
            answer([40, 20, 10, 0], 0),
            answer([0, 20, 10, 5], 200),
            answer([40, 20, u32::MAX, u32::MAX], 16),
            answer([40, 20, 10, 5], 199),
            vec![7],
            vec![],
        ] {
            assert!(read_answer(&mut lie.as_slice(), (10, 10)).is_err());
        }
        assert!(read_answer(&mut answer([40, 20, 10, 5], 200).as_slice(), (10, 10)).is_ok());
    }
}
