//! Control messages on a stream: a big-endian `u32` length, then that many bytes of CBOR.

use std::io;
use std::sync::Arc;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response;
use meshfarm_protocol::codec;
use meshfarm_protocol::message::{Answer, MAX_CONTROL_BYTES, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

/// Memory for a message is taken in steps of this size, as its bytes arrive and not as its length claims.
const STEP: usize = 16 * 1024;

/// All control messages that are being received at one moment, together, hold at most this many bytes.
const BUDGET: usize = 128 * 1024 * 1024;

/// Reads and writes control messages within limits that all connections share.
#[derive(Clone, Debug)]
pub(crate) struct ControlCodec {
    budget: Arc<Semaphore>,
}

impl Default for ControlCodec {
    fn default() -> Self {
        Self { budget: Arc::new(Semaphore::new(BUDGET / STEP)) }
    }
}

impl ControlCodec {
    async fn receive<M: DeserializeOwned>(
        &self,
        io: &mut (impl AsyncRead + Unpin + Send),
    ) -> io::Result<M> {
        let len = read_length(io, MAX_CONTROL_BYTES).await?;
        let mut bytes = Vec::new();
        let mut held = Vec::new();
        while bytes.len() < len {
            let permit = Arc::clone(&self.budget)
                .try_acquire_owned()
                .map_err(|full| io::Error::new(io::ErrorKind::OutOfMemory, full))?;
            held.push(permit);
            let from = bytes.len();
            bytes.resize(len.min(from + STEP), 0);
            io.read_exact(&mut bytes[from..]).await?;
        }
        decode(&bytes, MAX_CONTROL_BYTES)
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
        self.receive(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        self.receive(io).await
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
        write(io, &request, MAX_CONTROL_BYTES).await
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
        write(io, &answer, MAX_CONTROL_BYTES).await
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

/// Writes one message, which must not be longer than the other end will take.
pub(super) async fn write<M: Serialize>(
    io: &mut (impl AsyncWrite + Unpin),
    message: &M,
    max: usize,
) -> io::Result<()> {
    let bytes = codec::encode(message);
    let len = u32::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= max)
        .ok_or_else(|| invalid(format!("{} bytes are too many for a message", bytes.len())))?;
    io.write_all(&len.to_be_bytes()).await?;
    io.write_all(&bytes).await?;
    io.flush().await
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
        let codec = ControlCodec::default();
        let answer: Answer = codec.receive(&mut wire).await.unwrap();
        assert!(matches!(answer, Answer::LogHave(7)));
    }

    #[tokio::test]
    async fn a_length_that_is_too_long_is_refused_from_its_four_bytes() {
        let codec = ControlCodec::default();
        let mut wire = Cursor::new(u32::MAX.to_be_bytes().to_vec());
        let error = codec.receive::<Request>(&mut wire).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(wire.position(), 4);
        assert_eq!(codec.budget.available_permits(), BUDGET / STEP);
    }

    #[tokio::test]
    async fn a_message_that_never_comes_holds_one_step_of_the_budget() {
        let codec = ControlCodec::default();
        let (mut here, there) = futures_pipe();
        here.write_all(&u32::to_be_bytes(1 << 20)).await.unwrap();
        let mut there = there;
        let reading = codec.receive::<Request>(&mut there);
        assert!(futures::poll!(std::pin::pin!(reading)).is_pending());
        let mut wire = Cursor::new([&u32::to_be_bytes(1 << 20)[..], &[0; 10]].concat());
        assert!(codec.receive::<Request>(&mut wire).await.is_err());
        assert_eq!(codec.budget.available_permits(), BUDGET / STEP);
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
