//! Messages as bytes.
//!
//! The first byte says who the message is for, the second is its kind, and the rest its fields as
//! postcard encodes them. Postcard itself reads some values from more than one sequence of bytes (a
//! number with needless bytes); what was decoded is therefore encoded again and compared, so that a
//! message has one encoding, and a check made on the bytes is one made on the message.

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::check::{self, Violation};
use crate::limits::MESSAGE_BYTES;
use crate::message::{ToClient, ToEngine};

/// Bytes before a message's kind.
const HEAD: usize = 1;

/// A message of one direction.
///
/// Implemented by [`ToEngine`] and [`ToClient`], and by nothing else.
pub trait Message: Serialize + DeserializeOwned + sealed::Sealed {
    /// First byte of every message of this direction.
    #[doc(hidden)]
    const DIRECTION: u8;
    /// Names of the kinds, by number.
    #[doc(hidden)]
    const KINDS: &'static [&'static str];

    /// How many descriptors go with this message, no more and no fewer. They are open for reading
    /// only.
    fn descriptors(&self) -> usize;

    /// Whether the message keeps to all limits. Both ends ask this of every message.
    ///
    /// # Errors
    /// The first thing it says that no message may.
    fn check(&self) -> Result<(), Violation>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::ToEngine<'_> {}
    impl Sealed for super::ToClient<'_> {}
}

impl Message for ToEngine<'_> {
    const DIRECTION: u8 = 0;
    const KINDS: &'static [&'static str] =
        &["Hello", "Register", "Gone", "Unregister", "Done", "Bye"];

    fn descriptors(&self) -> usize {
        usize::from(matches!(self, Self::Hello { .. }))
    }

    fn check(&self) -> Result<(), Violation> {
        check::to_engine(self)
    }
}

impl Message for ToClient<'_> {
    const DIRECTION: u8 = 1;
    const KINDS: &'static [&'static str] = &[
        "Welcome",
        "Rejected",
        "Frames",
        "Merge",
        "Unmerge",
        "Mappings",
        "Unregistered",
        "Leave",
        "Userfaultfd",
    ];

    fn descriptors(&self) -> usize {
        usize::from(matches!(self, Self::Frames { .. } | Self::Userfaultfd))
    }

    fn check(&self) -> Result<(), Violation> {
        check::to_client(self)
    }
}

/// Why a message can't be encoded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncodeError {
    /// It says what no message may.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// It is longer than the buffer.
    #[error("the message does not fit in {room} bytes: a buffer of {MESSAGE_BYTES} takes them all")]
    Room {
        /// Bytes of the buffer.
        room: usize,
    },
    /// The encoder failed for a reason that these messages can't give it.
    #[error("the message can't be encoded: {0}")]
    Encoder(postcard::Error),
}

/// Why bytes are not a message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than a message may have.
    #[error("a message of {found} bytes: at most {MESSAGE_BYTES} are allowed")]
    TooLong {
        /// How many.
        found: usize,
    },
    /// Too few bytes even for the kind.
    #[error("a message of {found} bytes: must have 2 or more")]
    TooShort {
        /// How many.
        found: usize,
    },
    /// It is not for this end, or no message of this protocol at all.
    #[error(
        "a message that begins with {found}: those for this end begin with {wanted} (0: for an \
         engine, 1: for a client)"
    )]
    Direction {
        /// The first byte.
        found: u8,
        /// What it must be.
        wanted: u8,
    },
    /// A kind that there is not.
    #[error("a message of kind {found}: there are kinds 0 to {last}")]
    Kind {
        /// The second byte.
        found: u8,
        /// The highest number of a kind.
        last: usize,
    },
    /// A field that can't be read.
    #[error("a {kind} that can't be read at byte {at} ({found}): {reason}")]
    Malformed {
        /// Name of the message's kind.
        kind: &'static str,
        /// Where the decoder stopped.
        at: usize,
        /// The byte it read last.
        found: u8,
        /// What it missed there.
        reason: Reading,
    },
    /// Bytes after the last field.
    #[error("{found} bytes after the end of a {kind}: none are allowed")]
    Trailing {
        /// Name of the message's kind.
        kind: &'static str,
        /// How many.
        found: usize,
    },
    /// A number with more bytes than it needs.
    #[error("a {kind} with a number in more bytes than it needs: the fewest are allowed")]
    Wasteful {
        /// Name of the message's kind.
        kind: &'static str,
    },
    /// It says what no message may.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// What a decoder missed at the byte where it stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Reading {
    /// The message ends before its fields.
    #[error("the message ends before its fields do")]
    End,
    /// A number beyond its width.
    #[error("a number that is wider than its field")]
    Number,
    /// A text that is not UTF-8.
    #[error("a text that is not UTF-8")]
    Text,
    /// The number of a choice that there is not.
    #[error("the number of a choice that there is not")]
    Choice,
}

impl From<postcard::Error> for Reading {
    fn from(error: postcard::Error) -> Self {
        match error {
            postcard::Error::DeserializeUnexpectedEnd => Self::End,
            postcard::Error::DeserializeBadVarint => Self::Number,
            postcard::Error::DeserializeBadUtf8 => Self::Text,
            // Booleans, options, and variants, which serde's generated code refuses.
            _ => Self::Choice,
        }
    }
}

/// Checks a message and writes its encoding to the beginning of `buffer`, without allocating. Gives
/// the encoding.
///
/// # Errors
/// If the message breaks a limit, or `buffer` is too short.
pub fn encode<'b, M: Message>(message: &M, buffer: &'b mut [u8]) -> Result<&'b [u8], EncodeError> {
    message.check()?;
    let room = buffer.len().min(MESSAGE_BYTES);
    let Some((head, fields)) = buffer[..room].split_first_mut() else {
        return Err(EncodeError::Room { room });
    };
    *head = M::DIRECTION;
    let used = match postcard::to_slice(message, fields) {
        Ok(used) => used.len(),
        Err(postcard::Error::SerializeBufferFull) => return Err(EncodeError::Room { room }),
        Err(error) => return Err(EncodeError::Encoder(error)),
    };
    Ok(&buffer[..HEAD + used])
}

/// Reads a message. Whatever the bytes, this allocates at most 1 MiB at a time.
///
/// # Errors
/// If the bytes are not exactly what [`encode`] makes of some message.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, DecodeError> {
    if bytes.len() > MESSAGE_BYTES {
        return Err(DecodeError::TooLong { found: bytes.len() });
    }
    let [direction, number, rest @ ..] = bytes else {
        return Err(DecodeError::TooShort { found: bytes.len() });
    };
    if *direction != M::DIRECTION {
        return Err(DecodeError::Direction { found: *direction, wanted: M::DIRECTION });
    }
    let Some(kind) = M::KINDS.get(usize::from(*number)) else {
        return Err(DecodeError::Kind { found: *number, last: M::KINDS.len() - 1 });
    };
    if *number == 0 {
        // Before the other fields, which another version may have changed.
        if let Ok((found, _)) = postcard::take_from_bytes::<u32>(rest)
            && found != crate::limits::VERSION
        {
            return Err(Violation::Version { found }.into());
        }
    }
    let fields = &bytes[HEAD..];
    let mut decoder = postcard::Deserializer::from_bytes(fields);
    let decoded = M::deserialize(&mut decoder);
    let left = decoder.finalize().map_or(0, <[u8]>::len);
    let message = decoded.map_err(|error| {
        let at = bytes.len().saturating_sub(left).saturating_sub(1);
        let found = bytes.get(at).copied().unwrap_or_default();
        DecodeError::Malformed { kind, at, found, reason: error.into() }
    })?;
    if left > 0 {
        return Err(DecodeError::Trailing { kind, found: left });
    }
    message.check()?;
    match postcard::serialize_with_flavor(&message, Same { rest: fields }) {
        Ok(true) => Ok(message),
        _ => Err(DecodeError::Wasteful { kind }),
    }
}

/// Takes an encoding and compares it with bytes, instead of keeping it.
struct Same<'a> {
    rest: &'a [u8],
}

impl Flavor for Same<'_> {
    type Output = bool;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        match self.rest.split_first() {
            Some((&first, rest)) if first == byte => {
                self.rest = rest;
                Ok(())
            }
            _ => Err(postcard::Error::SerializeBufferFull),
        }
    }

    fn finalize(self) -> postcard::Result<bool> {
        Ok(self.rest.is_empty())
    }
}
