//! Bytes that are no message, and how long messages are.

use numerge_protocol::limits::{MESSAGE_BYTES, SHORT_BYTES};
use numerge_protocol::{
    Answer, DecodeError, EncodeError, Reading, Reason, ToClient, ToEngine, Violation, decode,
    encode,
};

use crate::samples::{self, done, hello};
use crate::unchecked;

#[test]
fn every_message_fits_and_those_without_a_list_are_short() {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let longest = samples::longest_to_engine();
    assert_eq!(decode(encode(&longest, &mut buffer).unwrap()), Ok(longest));
    let longest = samples::longest_to_client();
    assert_eq!(decode(encode(&longest, &mut buffer).unwrap()), Ok(longest));

    let mut short = [0; SHORT_BYTES];
    encode(&hello(Some("x".repeat(64).into())), &mut short).unwrap();
    let text = "x".repeat(256).into();
    encode(&ToClient::Rejected { reason: Reason::Other, text }, &mut short).unwrap();
}

#[test]
fn a_buffer_that_is_too_short_is_an_error() {
    let message = hello(None);
    let whole = unchecked(&message).len();
    for room in 0..whole {
        assert_eq!(encode(&message, &mut vec![0; room]), Err(EncodeError::Room { room }));
    }
    encode(&message, &mut vec![0; whole]).unwrap();
}

#[test]
fn a_message_cut_short_or_with_more_after_it_is_refused() {
    let mut all: Vec<(bool, Vec<u8>)> = Vec::new();
    all.extend(samples::to_engine().iter().map(|(_, message)| (true, unchecked(message))));
    all.extend(samples::to_client().iter().map(|(_, message)| (false, unchecked(message))));
    for (for_engine, bytes) in all {
        let fails = |bytes: &[u8]| {
            if for_engine {
                decode::<ToEngine<'_>>(bytes).unwrap_err()
            } else {
                decode::<ToClient<'_>>(bytes).unwrap_err()
            }
        };
        for len in 0..bytes.len() {
            let error = fails(&bytes[..len]);
            let end = matches!(error, DecodeError::Malformed { reason: Reading::End, .. });
            assert!(end || error == DecodeError::TooShort { found: len }, "{error}");
        }
        let more = [&bytes[..], &[0]].concat();
        assert!(matches!(fails(&more), DecodeError::Trailing { found: 1, .. }));
    }
}

#[test]
fn too_many_bytes_are_refused() {
    let error = decode::<ToEngine<'_>>(&vec![0; MESSAGE_BYTES + 1]);
    assert_eq!(error, Err(DecodeError::TooLong { found: MESSAGE_BYTES + 1 }));
}

#[test]
fn messages_for_the_other_end_are_refused() {
    for (_, message) in samples::to_client() {
        let error = decode::<ToEngine<'_>>(&unchecked(&message));
        assert_eq!(error, Err(DecodeError::Direction { found: 1, wanted: 0 }));
    }
    for (_, message) in samples::to_engine() {
        let error = decode::<ToClient<'_>>(&unchecked(&message));
        assert_eq!(error, Err(DecodeError::Direction { found: 0, wanted: 1 }));
    }
    let error = decode::<ToEngine<'_>>(b"GET / HTTP/1.1");
    assert_eq!(error, Err(DecodeError::Direction { found: b'G', wanted: 0 }));
}

#[test]
fn kinds_and_choices_that_there_are_not_are_refused() {
    assert_eq!(decode::<ToEngine<'_>>(&[0, 6]), Err(DecodeError::Kind { found: 6, last: 5 }));
    assert_eq!(decode::<ToClient<'_>>(&[1, 9]), Err(DecodeError::Kind { found: 9, last: 8 }));
    let fails_at = |bytes: &[u8], wanted: usize| match decode::<ToEngine<'_>>(bytes) {
        Err(DecodeError::Malformed { at, found, reason: Reading::Choice, .. }) => {
            assert_eq!((at, found), (wanted, bytes[wanted]));
        }
        other => panic!("{other:?}"),
    };
    // Scope 3 of a Hello; then neither 0 nor 1 for its optional domain.
    fails_at(&[0, 0, 2, 0x80, 0x20, 3, 0], 5);
    fails_at(&[0, 0, 2, 0x80, 0x20, 2, 2], 6);
    // Answer 4 of a Done.
    fails_at(&[0, 4, 1, 4, 0], 3);
    let error = decode::<ToClient<'_>>(&[1, 7, 2]);
    assert!(matches!(error, Err(DecodeError::Malformed { at: 2, reason: Reading::Choice, .. })));
}

#[test]
fn numbers_beyond_their_width_and_bad_texts_are_refused() {
    // Unregister has a number of 64 bits.
    let widest = [&[0, 3][..], &[0xff; 9], &[1]].concat();
    decode::<ToEngine<'_>>(&widest).unwrap();
    let wider = [&[0, 3][..], &[0xff; 9], &[2]].concat();
    let error = decode::<ToEngine<'_>>(&wider).unwrap_err();
    assert!(matches!(error, DecodeError::Malformed { reason: Reading::Number, .. }), "{error}");
    let error = decode::<ToClient<'_>>(&[1, 1, 0, 2, 0xff, 0xff]).unwrap_err();
    assert!(matches!(error, DecodeError::Malformed { reason: Reading::Text, .. }), "{error}");
}

#[test]
fn numbers_in_more_bytes_than_needed_are_refused() {
    decode::<ToEngine<'_>>(&[0, 3, 5]).unwrap();
    let error = decode::<ToEngine<'_>>(&[0, 3, 0x85, 0]);
    assert_eq!(error, Err(DecodeError::Wasteful { kind: "Unregister" }));
}

#[test]
fn lists_that_claim_to_be_long_are_refused() {
    for claim in [&[0xff; 4][..], &[0xff; 9]] {
        let bytes = [&[1, 3, 0][..], claim, &[1]].concat();
        assert!(matches!(
            decode::<ToClient<'_>>(&bytes),
            Err(DecodeError::Malformed { kind: "Merge", reason: Reading::End, .. })
        ));
    }
}

#[test]
fn the_version_is_read_whatever_comes_after_it() {
    for rest in [&[][..], &[0xff; 40]] {
        let bytes = [&[0, 0, 9][..], rest].concat();
        let error = decode::<ToEngine<'_>>(&bytes);
        assert_eq!(error, Err(DecodeError::Violation(Violation::Version { found: 9 })));
    }
}

#[test]
fn kinds_have_the_names_of_their_variants() {
    use numerge_protocol::Message;
    for (_, message) in samples::to_engine() {
        let kind = ToEngine::KINDS[usize::from(unchecked(&message)[1])];
        assert!(format!("{message:?}").starts_with(kind));
    }
    for (_, message) in samples::to_client() {
        let kind = ToClient::KINDS[usize::from(unchecked(&message)[1])];
        assert!(format!("{message:?}").starts_with(kind));
    }
}

#[test]
fn errors_name_what_was_found() {
    let error = decode::<ToEngine<'_>>(&[0, 4, 1, 4, 0]).unwrap_err().to_string();
    assert_eq!(
        error,
        "a Done that can't be read at byte 3 (4): the number of a choice that there is not"
    );
    let error = done(Answer::Mappings { used: 1, limit: 0 });
    let error = encode(&error, &mut [0; 64]).unwrap_err().to_string();
    assert_eq!(error, "mappings allowed: 0, where 1 to 2147483647 are allowed");
}
