//! Why a client is turned away.

use numerge_linux::RemoteError;
use numerge_protocol::limits::TEXT_BYTES;
use numerge_protocol::{DecodeError, Reason, ReceiveError, ToClient, Violation};

/// A reason for programs and one for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rejection {
    pub(crate) reason: Reason,
    pub(crate) text: String,
}

impl Rejection {
    pub(crate) fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    /// It broke a rule.
    pub(crate) fn protocol(text: impl Into<String>) -> Self {
        Self::new(Reason::Protocol, text)
    }

    /// What was received is no message, or no proper one. None if nothing was received.
    pub(crate) fn of_receiving(error: &ReceiveError) -> Option<Self> {
        match error {
            ReceiveError::Decode(DecodeError::Violation(Violation::Version { .. })) => {
                Some(Self::new(Reason::Version, error.to_string()))
            }
            ReceiveError::Decode(_)
            | ReceiveError::Descriptors(_)
            | ReceiveError::DescriptorsLost { .. } => Some(Self::protocol(error.to_string())),
            ReceiveError::WouldBlock | ReceiveError::System { .. } => None,
        }
    }

    /// The message that says it.
    pub(crate) fn message(&self) -> ToClient<'static> {
        let mut text: String = self.text.chars().filter(|c| !c.is_control()).collect();
        while text.len() > TEXT_BYTES {
            text.pop();
        }
        ToClient::Rejected { reason: self.reason, text: text.into() }
    }
}

impl From<RemoteError> for Rejection {
    fn from(error: RemoteError) -> Self {
        let reason = match error {
            RemoteError::NotPermitted { .. } | RemoteError::OtherProc { .. } => Reason::Permission,
            RemoteError::WrongPagemap { .. } => Reason::Protocol,
            RemoteError::Gone { .. } | RemoteError::System(_) => Reason::Other,
        };
        Self::new(reason, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use numerge_protocol::Message;

    use super::*;

    #[test]
    fn a_long_text_with_control_characters_is_made_to_fit() {
        let text = format!("{}\n\t{}", "a".repeat(200), "ü".repeat(200));
        let message = Rejection::protocol(text).message();
        assert_eq!(message.check(), Ok(()));
    }
}
