//! Control messages on a stream: a big-endian `u32` length, then that many bytes of CBOR.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response;
use meshfarm_protocol::codec;
use meshfarm_protocol::message::{Answer, MAX_CONTROL_BYTES, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Counters, count};

/// Memory for a message is taken in steps of this size, as its bytes arrive and not as its length claims.
const STEP: usize = 16 * 1024;

/// All control messages that are being received at one moment, together, hold at most this many bytes.
const BUDGET: usize = 128 * 1024 * 1024;

/// And those of one connection this many: the longest message, or several that together are no longer. What is
/// beyond that waits, so whoever sends long messages and leaves them unfinished holds up nobody but itself.
const CONNECTION_BUDGET: usize = MAX_CONTROL_BYTES;

/// A request that has not come whole by then never comes, nor an answer that has begun.
const RECEIVE_LIMIT: Duration = Duration::from_secs(10);

/// Reads and writes control messages within limits that all connections share, and limits of each connection.
#[derive(Debug)]
pub(crate) struct ControlCodec {
    budget: Arc<Semaphore>,
    /// None for the one that is not a connection's.
    connection: Option<Arc<Semaphore>>,
    counters: Arc<Counters>,
}

/// libp2p keeps one codec, copies that for each connection, and copies the connection's for each stream.
impl Clone for ControlCodec {
    fn clone(&self) -> Self {
        let fresh = || Arc::new(Semaphore::new(CONNECTION_BUDGET / STEP));
        Self {
            budget: Arc::clone(&self.budget),
            connection: Some(self.connection.as_ref().map_or_else(fresh, Arc::clone)),
            counters: Arc::clone(&self.counters),
        }
    }
}

impl ControlCodec {
    /// Counts what was no message.
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { budget: Arc::new(Semaphore::new(BUDGET / STEP)), connection: None, counters }
    }

    /// A request, all of it in time.
    async fn request<M: DeserializeOwned>(
        &self,
        io: &mut (impl AsyncRead + Unpin + Send),
    ) -> io::Result<M> {
        let receiving = async {
            let len = read_length(io, MAX_CONTROL_BYTES).await?;
            self.body(len, io).await
        };
        self.counted(timeout(RECEIVE_LIMIT, receiving).await)
    }

    /// An answer, which may take as long as it takes to be found, and comes in time then.
    async fn answer<M: DeserializeOwned>(
        &self,
        io: &mut (impl AsyncRead + Unpin + Send),
    ) -> io::Result<M> {
        let len = read_length(io, MAX_CONTROL_BYTES).await?;
        self.counted(timeout(RECEIVE_LIMIT, self.body(len, io)).await)
    }

    async fn body<M: DeserializeOwned>(
        &self,
        len: usize,
        io: &mut (impl AsyncRead + Unpin + Send),
    ) -> io::Result<M> {
        let full = |error| io::Error::new(io::ErrorKind::OutOfMemory, error);
        let steps = u32::try_from(len.div_ceil(STEP)).unwrap_or(u32::MAX);
        let connection = self.connection.clone();
        let _own = match connection {
            Some(own) => Some(own.acquire_many_owned(steps).await.map_err(io::Error::other)?),
            None => None,
        };
        let mut bytes = Vec::new();
        let mut held = Vec::new();
        while bytes.len() < len {
            let permit = Arc::clone(&self.budget).try_acquire_owned();
            held.push(permit.map_err(full)?);
            let from = bytes.len();
            bytes.resize(len.min(from + STEP), 0);
            io.read_exact(&mut bytes[from..]).await?;
        }
        decode(&bytes, MAX_CONTROL_BYTES)
    }

    fn counted<M>(
        &self,
        received: Result<io::Result<M>, tokio::time::error::Elapsed>,
    ) -> io::Result<M> {
        let received = received.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
        received.inspect_err(|_broken| count(&self.counters.messages_broken))
    }
}

impl request_response::Codec for ControlCodec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Answer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.request(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.answer(io).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Request,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &request, MAX_CONTROL_BYTES).await.map(drop)
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        answer: Answer,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &answer, MAX_CONTROL_BYTES).await.map(drop)
    }
}

/// The length of the message that follows, refused before anything is allocated when it is above `max`.
async fn read_length(io: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<usize> {
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    let len = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if len > max {
        return Err(invalid(format!("a message of {len} bytes where at most {max} are allowed")));
    }
    Ok(len)
}

/// Reads one message of at most `max` bytes. Only for small limits: the bytes are allocated at once.
pub(super) async fn read<M: DeserializeOwned>(
    io: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> io::Result<M> {
    let mut bytes = vec![0; read_length(io, max).await?];
    io.read_exact(&mut bytes).await?;
    decode(&bytes, max)
}

/// Writes one message, which must not be longer than the other end will take; tells how many bytes went out.
pub(super) async fn write<M: Serialize>(
    io: &mut (impl AsyncWrite + Unpin),
    message: &M,
    max: usize,
) -> io::Result<usize> {
    let bytes = codec::encode(message);
    let len = u32::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= max)
        .ok_or_else(|| invalid(format!("{} bytes are too many for a message", bytes.len())))?;
    io.write_all(&len.to_be_bytes()).await?;
    io.write_all(&bytes).await?;
    io.flush().await?;
    Ok(4 + bytes.len())
}

fn decode<M: DeserializeOwned>(bytes: &[u8], max: usize) -> io::Result<M> {
    codec::decode(bytes, max).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    #[tokio::test]
    async fn a_message_survives_the_wire() {
        let mut wire = Cursor::new(Vec::new());
        write(&mut wire, &Answer::LogHave(7), MAX_CONTROL_BYTES).await.unwrap();
        wire.set_position(0);
        let codec = ControlCodec::new(Arc::default());
        let answer: Answer = codec.answer(&mut wire).await.unwrap();
        assert!(matches!(answer, Answer::LogHave(7)));
    }

    #[tokio::test]
    async fn a_length_that_is_too_long_is_refused_from_its_four_bytes() {
        let codec = ControlCodec::new(Arc::default());
        let mut wire = Cursor::new(u32::MAX.to_be_bytes().to_vec());
        let error = codec.request::<Request>(&mut wire).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(wire.position(), 4);
        assert_eq!(codec.budget.available_permits(), BUDGET / STEP);
    }

    #[tokio::test]
    async fn a_message_that_never_comes_holds_one_step_of_the_budget() {
        let codec = ControlCodec::new(Arc::default());
        let (mut here, there) = futures_pipe();
        here.write_all(&u32::to_be_bytes(1 << 20)).await.unwrap();
        let mut there = there;
        let reading = codec.request::<Request>(&mut there);
        assert!(futures::poll!(std::pin::pin!(reading)).is_pending());
        let mut wire = Cursor::new([&u32::to_be_bytes(1 << 20)[..], &[0; 10]].concat());
        assert!(codec.request::<Request>(&mut wire).await.is_err());
        assert_eq!(codec.budget.available_permits(), BUDGET / STEP);
    }

    #[tokio::test]
    async fn whoever_leaves_long_messages_unfinished_holds_up_itself_alone() {
        let all = ControlCodec::new(Arc::default());
        let (hostile, honest) = (all.clone(), all.clone());
        let mut pipes = Vec::new();
        let mut reading = Vec::new();
        for _ in 0..200 {
            let (mut here, mut there) = futures_pipe();
            here.write_all(&u32::to_be_bytes(1 << 20)).await.unwrap();
            here.write_all(&[0; 32]).await.unwrap();
            pipes.push(here);
            let stream = hostile.clone();
            reading.push(Box::pin(async move { stream.request::<Request>(&mut there).await }));
        }
        for reading in &mut reading {
            assert!(futures::poll!(reading).is_pending());
        }
        assert!(all.budget.available_permits() >= (BUDGET - CONNECTION_BUDGET) / STEP);
        let mut wire = Cursor::new(Vec::new());
        let long = Answer::Refused("x".repeat(MAX_CONTROL_BYTES - 100));
        write(&mut wire, &long, MAX_CONTROL_BYTES).await.unwrap();
        wire.set_position(0);
        assert!(matches!(honest.clone().answer(&mut wire).await, Ok(Answer::Refused(_))));
    }

    fn futures_pipe() -> (
        tokio_util::compat::Compat<tokio::io::DuplexStream>,
        tokio_util::compat::Compat<tokio::io::DuplexStream>,
    ) {
        use tokio_util::compat::TokioAsyncReadCompatExt;
        let (here, there) = tokio::io::duplex(64);
        (here.compat(), there.compat())
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_not_sent() {
        let mut wire = Cursor::new(Vec::new());
        let long = Answer::Refused("x".repeat(MAX_CONTROL_BYTES));
        assert!(write(&mut wire, &long, MAX_CONTROL_BYTES).await.is_err());
        assert!(wire.get_ref().is_empty());
    }
}
