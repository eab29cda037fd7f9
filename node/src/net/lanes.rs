//! Bulk lanes: one request for chunks one way, pieces the other way, at most two pieces in memory at each end.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, Stream, StreamProtocol};
use libp2p_stream::{Control, OpenStreamError};
use meshfarm_protocol::id::ChunkId;
use meshfarm_protocol::message::{
    LANE_PROTOCOL, LaneRequest, MAX_PIECE_BYTES, MAX_WANTED, PIECE_HEADER_BYTES, PieceHeader,
    PieceKind,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::codec;

/// The other end must move at least one piece in this time.
const IDLE: Duration = Duration::from_secs(30);

/// A lane must have said what it wants by then.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Opening a stream takes two round trips; longer than this is a dead link.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// The longest encoded lane request: every id with its own length, and the names of the fields.
const MAX_REQUEST_BYTES: usize = MAX_WANTED * 34 + 256;

/// Space for a body is first taken so far, then as its bytes arrive.
const FIRST_BYTES: usize = 256 * 1024;

/// A lane that ends before its first piece is opened so many times again: the other end drops lanes that come
/// faster than it can look at them.
const REOPENINGS: u32 = 5;

/// The pause before the first of those, doubled by each one that follows.
const REOPEN_AFTER: Duration = Duration::from_millis(20);

/// The protocol's name as libp2p wants it.
pub(crate) const PROTOCOL: StreamProtocol = StreamProtocol::new(LANE_PROTOCOL);

/// Why no more pieces come, or went. Those that came whole are good; ask for the rest anew.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// More chunks were asked for than one request may name.
    #[error("a lane carries at most {MAX_WANTED} chunks, {0} were asked for")]
    TooMany(usize),
    /// The stream could not be opened: the site is gone, or it is no longer a member.
    #[error("cannot open a lane")]
    Open(#[source] io::Error),
    /// Nothing moved for half a minute.
    #[error("the lane stood still")]
    Idle,
    /// The other end closed it early, or the connection broke.
    #[error("the lane broke after {after} pieces")]
    Broken {
        /// Pieces that had come or gone until then.
        after: u32,
        /// What the stream said.
        #[source]
        source: io::Error,
    },
    /// What came is no piece, or not the next one. Blame the source.
    #[error("the source sent what is no piece")]
    Garbled,
    /// The task that reads chunks from disk panicked or was stopped.
    #[error("cannot read chunks")]
    Reader(#[source] tokio::task::JoinError),
}

/// One chunk as a source sent it. The caller checks that the bytes belong to the id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its place in the request.
    pub index: u32,
    /// The ciphertext; none when the source does not have it.
    pub bytes: Option<Vec<u8>>,
}

/// The receiving end of a lane.
pub struct Lane {
    control: Control,
    peer: PeerId,
    request: LaneRequest,
    stream: Stream,
    received: u32,
    reopenings: u32,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = self.request.chunks.len();
        write!(f, "Lane({} of {of} pieces)", self.received)
    }
}

impl Lane {
    /// Opens a lane to `peer` and asks for chunks. Dropping it midway is safe.
    pub(crate) async fn open(
        mut control: Control,
        peer: PeerId,
        request: LaneRequest,
    ) -> Result<Self, LaneError> {
        if request.chunks.len() > MAX_WANTED {
            return Err(LaneError::TooMany(request.chunks.len()));
        }
        let stream = ask(&mut control, peer, &request).await?;
        Ok(Self { control, peer, request, stream, received: 0, reopenings: 0 })
    }

    /// The next piece, in the order of the request; none after the last. Dropping it midway breaks the lane.
    ///
    /// # Errors
    /// When the source is silent, gone or talks nonsense. The lane is of no more use then.
    pub async fn next(&mut self) -> Result<Option<Piece>, LaneError> {
        if usize::try_from(self.received).is_ok_and(|n| n >= self.request.chunks.len()) {
            return Ok(None);
        }
        loop {
            match timeout(IDLE, self.read_piece()).await {
                Err(_elapsed) => return Err(LaneError::Idle),
                Ok(Ok(piece)) => {
                    self.received += 1;
                    return Ok(Some(piece));
                }
                Ok(Err(LaneError::Broken { after: 0, source })) if self.may_reopen(&source) => {
                    tokio::time::sleep(REOPEN_AFTER * (1 << self.reopenings)).await;
                    self.reopenings += 1;
                    self.stream = ask(&mut self.control, self.peer, &self.request).await?;
                }
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    fn may_reopen(&self, why: &io::Error) -> bool {
        let dropped = matches!(
            why.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::WriteZero
        );
        dropped && self.reopenings < REOPENINGS
    }

    async fn read_piece(&mut self) -> Result<Piece, LaneError> {
        let after = self.received;
        let broken = |source| LaneError::Broken { after, source };
        let mut head = [0; PIECE_HEADER_BYTES];
        self.stream.read_exact(&mut head).await.map_err(broken)?;
        let header = PieceHeader::from_bytes(head)
            .filter(|header| header.index == after)
            .ok_or(LaneError::Garbled)?;
        let bytes = match header.kind {
            PieceKind::Missing => None,
            PieceKind::Chunk => {
                let len = usize::try_from(header.len).map_err(|_wide| LaneError::Garbled)?;
                let mut bytes = Vec::with_capacity(len.min(FIRST_BYTES));
                let mut body = (&mut self.stream).take(u64::from(header.len));
                body.read_to_end(&mut bytes).await.map_err(broken)?;
                if bytes.len() < len {
                    return Err(broken(io::ErrorKind::UnexpectedEof.into()));
                }
                Some(bytes)
            }
        };
        Ok(Piece { index: header.index, bytes })
    }
}

/// A stream on which `request` was said.
async fn ask(
    control: &mut Control,
    peer: PeerId,
    request: &LaneRequest,
) -> Result<Stream, LaneError> {
    let opening = async {
        let mut stream =
            control.open_stream(peer, PROTOCOL).await.map_err(|error| match error {
                OpenStreamError::Io(source) => source,
                other => io::Error::other(other),
            })?;
        // A stream that is dropped at once fails here or at the first piece; the latter knows what to do.
        match codec::write(&mut stream, request, MAX_REQUEST_BYTES).await {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error),
            Err(_) | Ok(()) => Ok(stream),
        }
    };
    match timeout(OPEN_LIMIT, opening).await {
        Ok(opened) => opened.map_err(LaneError::Open),
        Err(_elapsed) => Err(LaneError::Open(io::ErrorKind::TimedOut.into())),
    }
}

/// The sending end of a lane, after its request was read.
pub struct LaneStream {
    stream: Stream,
    /// Counts the lane against its peer's and the node's limits while it lives.
    _permits: [OwnedSemaphorePermit; 2],
}

impl fmt::Debug for LaneStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LaneStream(..)")
    }
}

/// Reads what the other end wants, within time and size. Dropping it midway is safe.
pub(crate) async fn accept(
    mut stream: Stream,
    permits: [OwnedSemaphorePermit; 2],
) -> io::Result<(LaneRequest, LaneStream)> {
    let reading = codec::read(&mut stream, MAX_REQUEST_BYTES);
    let request: LaneRequest = timeout(REQUEST_LIMIT, reading).await??;
    if request.chunks.len() > MAX_WANTED {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let stream = LaneStream { stream, _permits: permits };
    Ok((request, stream))
}

/// Sends every chunk of `request` in order; `get` reads one from disk, on a thread that may wait, or says that
/// it is not there. While one piece is sent the next is read. Dropping it midway breaks the lane.
///
/// # Errors
/// When the other end is gone or takes nothing, or a chunk is longer than a piece may be.
pub async fn serve<G>(lane: LaneStream, request: LaneRequest, get: G) -> Result<u64, LaneError>
where
    G: Fn(&ChunkId) -> Option<Vec<u8>> + Send + Sync + 'static,
{
    let LaneStream { mut stream, _permits: permits } = lane;
    let get = Arc::new(get);
    let read = |id: ChunkId| {
        let get = Arc::clone(&get);
        tokio::task::spawn_blocking(move || get(&id))
    };
    let mut chunks = request.chunks.into_iter();
    let mut coming = chunks.next().map(&read);
    let mut sent = 0;
    for index in 0.. {
        let Some(reading) = coming.take() else {
            break;
        };
        let bytes = reading.await.map_err(LaneError::Reader)?;
        coming = chunks.next().map(&read);
        let piece = Piece { index, bytes };
        match timeout(IDLE, send(&mut stream, &piece)).await {
            Ok(Ok(n)) => sent += n,
            Ok(Err(source)) => {
                return Err(LaneError::Broken { after: index, source });
            }
            Err(_elapsed) => return Err(LaneError::Idle),
        }
    }
    // The reader has counted its pieces and may be gone already, so a failed farewell is no failure.
    let _gone = timeout(IDLE, stream.close()).await;
    drop(permits);
    Ok(sent)
}

async fn send(stream: &mut Stream, piece: &Piece) -> io::Result<u64> {
    let body = piece.bytes.as_deref().unwrap_or_default();
    let len = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_PIECE_BYTES)
        .ok_or(io::ErrorKind::InvalidData)?;
    let kind = match piece.bytes {
        Some(_) => PieceKind::Chunk,
        None => PieceKind::Missing,
    };
    let header = PieceHeader { len, kind, index: piece.index };
    stream.write_all(&header.to_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await?;
    Ok(u64::from(len))
}
