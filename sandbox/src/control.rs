//! What the node and the launcher say to each other over the launcher's standard input, a Unix socket.
//!
//! Each message is a length in four bytes (least significant first) and JSON. The node speaks once (the
//! policy, with the program's standard input as a passed descriptor); hanging up means: kill.

use std::{
    io::{self, PipeWriter, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Mechanism, Report, Step, exit::Exit, sys};

/// Longest message: a policy with 4096 mounts fits many times over.
const LONGEST: usize = 16 << 20;

/// What the launcher says to the node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// The folders of the control group that was made for the jail; the node removes them. The first word after a policy
    /// that is understood.
    Group(Vec<PathBuf>),
    /// No jail stands, nothing of the job ran. The last word.
    Refused(Refusal),
    /// The program runs.
    Started(Report),
    /// Nothing of the jail is left. The last word; what the job wrote comes with it if it had a volume.
    Ended(Exit),
}

/// A refused step, in a form that crosses process borders.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) step: Step,
    pub(crate) subject: String,
    pub(crate) errno: Option<i32>,
    pub(crate) text: String,
}

/// What the processes inside say to the launcher before the program starts, one JSON line each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Note {
    /// A step was refused; set-up ends.
    Refused(Refusal),
    /// A mechanism and its state.
    Mechanism(Mechanism),
    /// Everything stands; the program starts next.
    Sealed,
}

impl From<crate::SandboxError> for Refusal {
    fn from(error: crate::SandboxError) -> Self {
        Self {
            step: error.step,
            subject: error.subject,
            errno: error.source.raw_os_error(),
            text: error.source.to_string(),
        }
    }
}

impl From<Refusal> for crate::SandboxError {
    fn from(refusal: Refusal) -> Self {
        let source = match refusal.errno {
            Some(code) => sys::errno(code),
            None => io::Error::other(refusal.text),
        };
        Self::new(refusal.step, refusal.subject, source)
    }
}

/// Send one message, and perhaps a descriptor with it.
pub(crate) fn send_with<T: Serialize>(
    socket: &UnixStream,
    message: &T,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes = framed(message)?;
    let sent = match descriptor {
        Some(descriptor) => sys::send_with_fd(socket.as_fd(), &bytes, descriptor)?,
        None => 0,
    };
    let mut socket = socket;
    socket.write_all(&bytes[sent..])
}

/// Receive one message, and the descriptor that came with it; `UnexpectedEof` when the other side has hung up.
pub(crate) fn receive_with<T: DeserializeOwned>(
    socket: &UnixStream,
) -> io::Result<(T, Option<OwnedFd>)> {
    let mut length = [0_u8; 4];
    let (n, descriptor) = sys::receive_with_fd(socket.as_fd(), &mut length)?;
    let mut rest = socket;
    rest.read_exact(&mut length[n..])?;
    Ok((body(socket, length)?, descriptor))
}

fn framed<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).ok().filter(|n| *n as usize <= LONGEST);
    let length = length.ok_or_else(|| io::Error::other("the message is too long"))?;
    Ok([length.to_le_bytes().as_slice(), &body].concat())
}

fn body<T: DeserializeOwned>(mut socket: &UnixStream, length: [u8; 4]) -> io::Result<T> {
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST {
        return Err(io::Error::other("the message is too long"));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    serde_json::from_slice(&body).map_err(io::Error::other)
}

/// Write one note; the reader is gone only when nobody waits for it any more.
pub(crate) fn note(mut notes: &PipeWriter, note: &Note) {
    if let Ok(mut line) = serde_json::to_vec(note) {
        line.push(b'\n');
        drop(notes.write_all(&line));
    }
}

/// Note a refused step.
pub(crate) fn note_refusal(notes: &PipeWriter, error: crate::SandboxError) {
    note(notes, &Note::Refused(Refusal::from(error)));
}
