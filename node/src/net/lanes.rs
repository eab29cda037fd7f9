//! Bulk lanes: one end asks for chunks, as many as it can take; the other sends them as pieces in that order.
//!
//! Asking is the only credit: a source sends nothing that it was not asked for, and reads no further ahead than
//! one batch. Both ends hold a few megabytes of each lane, whatever the other one does.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{Stream, StreamProtocol};
use meshfarm_protocol::id::ChunkId;
use meshfarm_protocol::message::{
    ASKED_ID_BYTES, Ask, LANE_PROTOCOL, LaneHello, MAX_ASK_BYTES, MAX_LANE_HELLO_BYTES,
    MAX_UNDER_WAY, PIECE_HEADER_BYTES, PieceHeader, PieceKind,
};
use meshfarm_protocol::seal::MAX_SEALED;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::codec;

/// The other end must begin with the next piece, or take some bytes of one, in this time.
const IDLE: Duration = Duration::from_secs(30);

/// A piece that has begun must be whole by then: slower than 9 KB/s is no source.
const PIECE_LIMIT: Duration = Duration::from_secs(120);

/// A lane must have said who it is for by then.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// Opening a stream takes two round trips; longer than this is a dead link.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// A lane on which nothing is asked for is closed after this.
const UNUSED: Duration = Duration::from_secs(300);

/// Pieces that have come and wait to be taken.
const READ_AHEAD: usize = 4;

/// What a source reads from disk and writes to the line at once, in bytes; a piece more may follow.
const BATCH_BYTES: usize = 1 << 20;

/// What waits for its turn under a rate at once, in bytes: small, so that a slow lane never seems dead.
const SLICE: usize = 64 << 10;

/// The most chunks of one batch: many small ones travel together.
const BATCH_CHUNKS: usize = 256;

/// The protocol's name as libp2p wants it.
pub(crate) const PROTOCOL: StreamProtocol = StreamProtocol::new(LANE_PROTOCOL);

/// The beginning of a chunk's address, as it is asked for.
pub type AskedId = [u8; ASKED_ID_BYTES];

/// Why no more pieces come, or went. Those that came whole are good; ask for the rest anew.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The stream could not be opened: the site is gone, or it is no longer a member.
    #[error("cannot open a lane")]
    Open(#[source] io::Error),
    /// Nothing moved for half a minute, or a piece took two minutes.
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
    /// More was asked for than a lane may have under way. Blame who asks.
    #[error("more was asked for than one lane carries")]
    Greedy,
    /// The task that reads chunks from disk panicked or was stopped.
    #[error("cannot read chunks")]
    Reader(#[source] tokio::task::JoinError),
}

/// What comes on a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A chunk that was asked for. The caller checks that the bytes belong to the address.
    Chunk {
        /// Its number among those that were asked for on this lane.
        index: u32,
        /// The ciphertext; none when the source does not have it.
        bytes: Option<Vec<u8>>,
    },
    /// A bitmap of the runs that the source has.
    Have(Vec<u8>),
}

/// The receiving end of a lane.
pub struct Lane {
    writer: WriteHalf<Stream>,
    pieces: mpsc::Receiver<Result<Piece, LaneError>>,
    asked: Arc<AtomicU32>,
    received: u32,
    _reading: Ending<()>,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({} of {:?} pieces)", self.received, self.asked)
    }
}

impl Lane {
    /// Says on a new stream who asks. Dropping it midway is safe.
    pub(crate) async fn greet(mut stream: Stream, hello: &LaneHello) -> Result<Self, LaneError> {
        let said = codec::write(&mut stream, hello, MAX_LANE_HELLO_BYTES);
        match timeout(OPEN_LIMIT, said).await {
            Ok(said) => said.map(drop).map_err(LaneError::Open)?,
            Err(_elapsed) => return Err(LaneError::Open(io::ErrorKind::TimedOut.into())),
        }
        let (reader, writer) = stream.split();
        let (pieces_tx, pieces) = mpsc::channel(READ_AHEAD);
        let asked = Arc::new(AtomicU32::new(0));
        let pieces_of = Pieces { reader, asked: Arc::clone(&asked), received: 0 };
        let reading = Ending(tokio::spawn(pieces_of.read_all(pieces_tx)));
        Ok(Self { writer, pieces, asked, received: 0, _reading: reading })
    }

    /// Asks for chunks, at most [`MAX_ASKED`](meshfarm_protocol::message::MAX_ASKED), and never more than
    /// [`MAX_UNDER_WAY`] before they have come. They are numbered on. Tells how many bytes that took. Dropping it
    /// midway breaks the lane.
    ///
    /// # Errors
    /// When the source is gone or takes nothing.
    pub async fn ask(&mut self, chunks: &[ChunkId], left: u64) -> Result<usize, LaneError> {
        let n = u32::try_from(chunks.len()).map_err(|_many| LaneError::Greedy)?;
        let after = self.received;
        let broken = |source| LaneError::Broken { after, source };
        // Before it is said, because the answer may be read before this returns.
        self.asked.fetch_add(n, Ordering::AcqRel);
        let ask = Ask::of(chunks, left);
        let said = codec::write(&mut self.writer, &ask, MAX_ASK_BYTES);
        timeout(IDLE, said).await.map_err(|_elapsed| LaneError::Idle)?.map_err(broken)
    }

    /// The next piece, in the order in which chunks were asked for; what the source has comes in between. Waits
    /// for ever when nothing was asked for. Dropping it midway is safe.
    ///
    /// # Errors
    /// When the source is silent, gone or talks nonsense. The lane is of no more use then.
    pub async fn next(&mut self) -> Result<Piece, LaneError> {
        let broken = || LaneError::Broken {
            after: self.received,
            source: io::ErrorKind::UnexpectedEof.into(),
        };
        let piece = self.pieces.recv().await.unwrap_or_else(|| Err(broken()))?;
        if let Piece::Chunk { .. } = piece {
            self.received += 1;
        }
        Ok(piece)
    }

    /// The next piece, if it is here already.
    pub fn ready(&mut self) -> Option<Result<Piece, LaneError>> {
        let piece = self.pieces.try_recv().ok()?;
        if let Ok(Piece::Chunk { .. }) = piece {
            self.received += 1;
        }
        Some(piece)
    }
}

/// Reads a lane's pieces on a task of its own, so that waiting for the next one can be given up.
struct Pieces {
    reader: ReadHalf<Stream>,
    asked: Arc<AtomicU32>,
    received: u32,
}

impl Pieces {
    async fn read_all(mut self, pieces: mpsc::Sender<Result<Piece, LaneError>>) {
        loop {
            let piece = self.read().await;
            let failed = piece.is_err();
            if pieces.send(piece).await.is_err() || failed {
                return;
            }
        }
    }

    async fn read(&mut self) -> Result<Piece, LaneError> {
        let after = self.received;
        let broken = |source| LaneError::Broken { after, source };
        let mut head = [0; PIECE_HEADER_BYTES];
        let asked = Arc::clone(&self.asked);
        let waits_for_some = || asked.load(Ordering::Acquire) != after;
        let mut heading = pin!(self.reader.read_exact(&mut head));
        loop {
            let waited_before = waits_for_some();
            match timeout(IDLE, &mut heading).await {
                Ok(read) => break read.map_err(broken)?,
                Err(_elapsed) if waited_before => return Err(LaneError::Idle),
                Err(_elapsed) => {}
            }
        }
        let header = PieceHeader::from_bytes(head).ok_or(LaneError::Garbled)?;
        let len = usize::try_from(header.len).map_err(|_wide| LaneError::Garbled)?;
        let answers = header.kind != PieceKind::Have;
        if len > MAX_SEALED || (answers && (header.index != after || !waits_for_some())) {
            return Err(LaneError::Garbled);
        }
        let mut bytes = vec![0; len];
        let body = timeout(PIECE_LIMIT, self.reader.read_exact(&mut bytes));
        body.await.map_err(|_elapsed| LaneError::Idle)?.map_err(broken)?;
        if !answers {
            return Ok(Piece::Have(bytes));
        }
        self.received = self.received.wrapping_add(1);
        let bytes = (header.kind == PieceKind::Chunk).then_some(bytes);
        Ok(Piece::Chunk { index: header.index, bytes })
    }
}

/// A task that ends with the value.
struct Ending<T>(JoinHandle<T>);

impl<T> Drop for Ending<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The sending end of a lane, after its hello was read.
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

/// Reads who the other end is, within time and size. Dropping it midway is safe.
pub(crate) async fn accept(
    mut stream: Stream,
    permits: [OwnedSemaphorePermit; 2],
) -> io::Result<(LaneHello, LaneStream)> {
    let reading = codec::read(&mut stream, MAX_LANE_HELLO_BYTES);
    let hello: LaneHello = timeout(HELLO_LIMIT, reading).await??;
    Ok((hello, LaneStream { stream, _permits: permits }))
}

/// What a source serves from.
pub trait Shelf: Send + Sync + 'static {
    /// Puts the sealed bytes of a chunk whose address begins so behind those that are in `onto`; false when it is
    /// not here. On a thread that may wait.
    fn get(&self, id: &AskedId, onto: &mut Vec<u8>) -> bool;

    /// So many bytes are about to be sent: when they may be.
    fn admit(&self, bytes: u64) -> impl Future<Output = ()> + Send;

    /// The receiver says how many bytes it still lacks.
    fn left(&self, bytes: u64);
}

/// Sends what is asked for until the other end is done, and what `have` says whenever it changes. Dropping it
/// midway breaks the lane.
///
/// # Errors
/// When the other end is gone, takes nothing, asks for too much or asks nothing for long.
pub async fn serve<S: Shelf>(
    lane: LaneStream,
    shelf: Arc<S>,
    have: Option<watch::Receiver<Arc<[u8]>>>,
) -> Result<u64, LaneError> {
    let LaneStream { stream, _permits: permits } = lane;
    let (reader, writer) = stream.split();
    let (asks_tx, asks_rx) = mpsc::channel(MAX_UNDER_WAY);
    let mut listening = Ending(tokio::spawn(listen(reader, Arc::clone(&shelf), asks_tx)));
    let mut sending = pin!(send_asked(writer, shelf, (asks_rx, have)));
    let sent = tokio::select! {
        biased;
        listened = &mut listening.0 => {
            // Whoever asks for too much is not sent the rest of it.
            listened.unwrap_or(Ok(()))?;
            sending.await
        }
        sent = &mut sending => sent,
    };
    drop(permits);
    sent
}

type Asks = (mpsc::Receiver<AskedId>, Option<watch::Receiver<Arc<[u8]>>>);

async fn send_asked<S: Shelf>(
    mut writer: WriteHalf<Stream>,
    shelf: Arc<S>,
    (mut asks, mut have): Asks,
) -> Result<u64, LaneError> {
    let mut asked: VecDeque<AskedId> = VecDeque::new();
    let mut next_index = 0;
    let mut sent = 0;
    let mut coming = None;
    // Two batches take turns: one is read while the other one is sent.
    let mut spare = Vec::new();
    if let Some(have) = &mut have {
        // Also when it will not change any more, because all of it is here.
        let bitmap = Arc::clone(&have.borrow_and_update());
        send(&mut writer, &have_piece(&bitmap), next_index).await?;
    }
    loop {
        while asked.len() < BATCH_CHUNKS
            && let Ok(id) = asks.try_recv()
        {
            asked.push_back(id);
        }
        if coming.is_none() && !asked.is_empty() {
            coming = Some(read_ahead(&shelf, &mut asked, next_index, std::mem::take(&mut spare)));
        }
        if let Some(have) = have.as_mut().filter(|have| have.has_changed().unwrap_or(false)) {
            let bitmap = Arc::clone(&have.borrow_and_update());
            send(&mut writer, &have_piece(&bitmap), next_index).await?;
        }
        let Some(reading) = coming.take() else {
            match wait(&mut asks, &mut have).await {
                Some(id) => asked.extend(id),
                None => break,
            }
            continue;
        };
        let batch: Batch = reading.await.map_err(LaneError::Reader)?;
        // What did not fit comes first in the next batch, which is read while this one is sent.
        for id in batch.left.into_iter().rev() {
            asked.push_front(id);
        }
        next_index = batch.next_index;
        if !asked.is_empty() {
            coming = Some(read_ahead(&shelf, &mut asked, next_index, std::mem::take(&mut spare)));
        }
        for slice in batch.bytes.chunks(SLICE) {
            shelf.admit(slice.len() as u64).await;
            write(&mut writer, slice, next_index).await?;
        }
        if coming.is_none() {
            flush(&mut writer, next_index).await?;
        }
        sent += batch.bytes.len() as u64;
        spare = batch.bytes;
    }
    // The reader has counted its pieces and may be gone already, so a failed farewell is no failure.
    let _gone = timeout(IDLE, writer.close()).await;
    Ok(sent)
}

/// Takes asks from the line. Ends when the receiver is done, or asks for more than may be under way.
async fn listen<S: Shelf>(
    mut reader: ReadHalf<Stream>,
    shelf: Arc<S>,
    asks: mpsc::Sender<AskedId>,
) -> Result<(), LaneError> {
    loop {
        let reading = codec::read(&mut reader, MAX_ASK_BYTES);
        let ask: Ask = match timeout(UNUSED, reading).await {
            Err(_elapsed) => return Err(LaneError::Idle),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(LaneError::Garbled);
            }
            // It has closed its end, or is gone.
            Ok(Err(_)) => return Ok(()),
            Ok(Ok(ask)) => ask,
        };
        shelf.left(ask.left);
        for id in ask.ids().ok_or(LaneError::Garbled)? {
            asks.try_send(id).map_err(|_full| LaneError::Greedy)?;
        }
    }
}

/// Waits for something to do. None when the receiver is done; nothing when what is here has changed.
async fn wait(
    asks: &mut mpsc::Receiver<AskedId>,
    have: &mut Option<watch::Receiver<Arc<[u8]>>>,
) -> Option<Option<AskedId>> {
    let changed = async {
        match have {
            Some(have) => match have.changed().await {
                // So that it is sent, and not just seen.
                Ok(()) => have.mark_changed(),
                Err(_gone) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        id = asks.recv() => id.map(Some),
        () = changed => Some(None),
    }
}

/// Pieces as they go over the line, one behind the other.
struct Batch {
    bytes: Vec<u8>,
    /// What did not fit.
    left: VecDeque<AskedId>,
    next_index: u32,
}

fn read_ahead<S: Shelf>(
    shelf: &Arc<S>,
    asked: &mut VecDeque<AskedId>,
    mut next_index: u32,
    mut bytes: Vec<u8>,
) -> JoinHandle<Batch> {
    let mut left: VecDeque<_> = asked.drain(..asked.len().min(BATCH_CHUNKS)).collect();
    let shelf = Arc::clone(shelf);
    tokio::task::spawn_blocking(move || {
        bytes.clear();
        while bytes.len() < BATCH_BYTES {
            let Some(id) = left.pop_front() else {
                break;
            };
            let at = bytes.len();
            let body = at + PIECE_HEADER_BYTES;
            bytes.resize(body, 0);
            // A chunk that is longer than one may be is not in any store.
            let found = shelf.get(&id, &mut bytes) && bytes.len() - body <= MAX_SEALED;
            let kind = if found { PieceKind::Chunk } else { PieceKind::Missing };
            if !found {
                bytes.truncate(body);
            }
            let len = u32::try_from(bytes.len() - body).unwrap_or(0);
            let header = PieceHeader { len, kind, index: next_index };
            bytes[at..body].copy_from_slice(&header.to_bytes());
            next_index = next_index.wrapping_add(1);
        }
        Batch { bytes, left, next_index }
    })
}

fn have_piece(bitmap: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bitmap.len()).unwrap_or(0);
    let header = PieceHeader { len, kind: PieceKind::Have, index: 0 };
    [&header.to_bytes()[..], bitmap].concat()
}

/// Writes all bytes and sees them off.
async fn send(writer: &mut WriteHalf<Stream>, bytes: &[u8], after: u32) -> Result<(), LaneError> {
    write(writer, bytes, after).await?;
    flush(writer, after).await
}

/// Writes all bytes as long as some of them are taken now and then.
async fn write(
    writer: &mut WriteHalf<Stream>,
    mut bytes: &[u8],
    after: u32,
) -> Result<(), LaneError> {
    let broken = |source| LaneError::Broken { after, source };
    while !bytes.is_empty() {
        match timeout(IDLE, writer.write(bytes)).await {
            Err(_elapsed) => return Err(LaneError::Idle),
            Ok(Ok(0)) => return Err(broken(io::ErrorKind::WriteZero.into())),
            Ok(Ok(n)) => bytes = &bytes[n..],
            Ok(Err(source)) => return Err(broken(source)),
        }
    }
    Ok(())
}

async fn flush(writer: &mut WriteHalf<Stream>, after: u32) -> Result<(), LaneError> {
    let broken = |source| LaneError::Broken { after, source };
    timeout(IDLE, writer.flush()).await.map_err(|_elapsed| LaneError::Idle)?.map_err(broken)
}
