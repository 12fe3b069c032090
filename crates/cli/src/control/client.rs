//! The side that asks.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Answer, MOST_BYTES, Request};

/// Why there is no answer, or not the one wanted.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// This user may not ask.
    #[error("only root and whose the socket is may ask the numerge daemon at {}: {source}", .path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("no numerge daemon answers at {}: {source}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke off.
    #[error("the daemon's answer was cut off: {0}")]
    Broken(#[from] io::Error),
    /// What came is no answer.
    #[error("the daemon's answer makes no sense: {0}")]
    Nonsense(String),
    /// The daemon would not.
    #[error("{text}")]
    Refused {
        /// The kernel's error number for the like.
        errno: i32,
        /// Why.
        text: String,
    },
}

/// A connection to ask by.
#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects to a control socket.
    ///
    /// # Errors
    /// [`AskError::Denied`], [`AskError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, AskError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self(BufReader::new(stream))),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(AskError::Denied { path: path.into(), source })
            }
            Err(source) => Err(AskError::Connect { path: path.into(), source }),
        }
    }

    /// A knob's value.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn get(&mut self, knob: &str) -> Result<u64, AskError> {
        value(self.ask(&Request::Get(knob.into()))?)
    }

    /// Sets a knob, and gives its value then. Returns when it is done: for `run` = 2, when all is
    /// unmerged.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn set(&mut self, knob: &str, value_wanted: u64) -> Result<u64, AskError> {
        value(self.ask(&Request::Set { knob: knob.into(), value: value_wanted })?)
    }

    /// Counters and clients.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn status(&mut self) -> Result<Value, AskError> {
        match self.ask(&Request::Status)? {
            Answer::Status(status) => Ok(status),
            other => Err(AskError::Nonsense(format!("{other:?}"))),
        }
    }

    /// Counters by NUMA node: a list. Not to be asked for often, where there are many frames.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn nodes(&mut self) -> Result<Value, AskError> {
        match self.ask(&Request::Nodes)? {
            Answer::Nodes(nodes) => Ok(nodes),
            other => Err(AskError::Nonsense(format!("{other:?}"))),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Answer, AskError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line)?;
        line.clear();
        (&mut self.0).take(MOST_BYTES).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_slice(&line) {
            Ok(Answer::Error { errno, text }) => Err(AskError::Refused { errno, text }),
            Ok(answer) => Ok(answer),
            Err(error) => Err(AskError::Nonsense(error.to_string())),
        }
    }
}

fn value(answer: Answer) -> Result<u64, AskError> {
    match answer {
        Answer::Value(value) => Ok(value),
        other => Err(AskError::Nonsense(format!("{other:?}"))),
    }
}
