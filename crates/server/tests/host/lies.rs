//! A client that lies in every field of every message: it is turned away or harms itself alone, and the
//! others go on.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use numerge_protocol::limits::{MESSAGE_BYTES, VERSION};
use numerge_protocol::{
    Answer, Errno, Outcome, OutcomeRun, RegionId, Scope, Sequence, Span, ToEngine, Unmerged, Vpn,
    decode,
};

use crate::bed::{Bed, Client, until};

const PAGES: u64 = 200;

const LONG: [u64; 9] = [0, 1, 127, 128, 1 << 18, (1 << 36) - 1, 1 << 36, 1 << 63, u64::MAX];
const SHORT: [u32; 7] = [0, 1, 2, 4095, 4096, 65_536, u32::MAX];
const SHORTEST: [u16; 5] = [0, 1, 4095, 4096, u16::MAX];

/// A message as it would be sent if nobody checked it.
fn bytes(message: &ToEngine<'_>) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(postcard::to_stdvec(message).unwrap());
    bytes
}

fn spans() -> impl Iterator<Item = Span> {
    LONG.into_iter().flat_map(|start| LONG.map(|pages| Span { start: Vpn(start), pages }))
}

fn done(answer: Answer<'static>) -> ToEngine<'static> {
    ToEngine::Done { sequence: Sequence(0), answer }
}

fn merged(runs: Vec<OutcomeRun>) -> ToEngine<'static> {
    done(Answer::Merged(runs.into()))
}

/// Each message with each of its fields at each of its extremes, within what is allowed and without.
fn messages() -> Vec<ToEngine<'static>> {
    let hello = |version, page_size, domain: Option<&str>| ToEngine::Hello {
        version,
        page_size,
        scope: Scope::Mapped,
        domain: domain.map(|name| Cow::Owned(name.to_owned())),
    };
    let mut all = vec![ToEngine::Bye];
    all.extend(SHORT.map(|version| hello(version, 4096, None)));
    all.extend(SHORT.map(|page_size| hello(VERSION, page_size, None)));
    let long = "x".repeat(65);
    let names = ["", "a b", "../x", "nobody", "\u{0}", &long, &long[..64]];
    all.extend(names.map(|name| hello(VERSION, 4096, Some(name))));
    all.extend(LONG.map(|region| ToEngine::Unregister { region: RegionId(region) }));
    let span = Span { start: Vpn(5), pages: 1 };
    all.extend(LONG.map(|region| ToEngine::Register { region: RegionId(region), span }));
    all.extend(spans().map(|span| ToEngine::Register { region: RegionId(1), span }));
    all.extend(spans().map(|span| ToEngine::Gone { span }));
    for number in SHORTEST {
        all.push(done(Answer::Refused(Errno(number))));
        all.push(done(Answer::Unmerged(Unmerged::Failed(Errno(number)))));
    }
    all.extend([Unmerged::Done, Unmerged::OutOfMemory].map(|how| done(Answer::Unmerged(how))));
    all.extend(LONG.map(|used| done(Answer::Mappings { used, limit: 10 })));
    all.extend(LONG.map(|limit| done(Answer::Mappings { used: 1, limit })));
    let answer = Answer::Unmerged(Unmerged::Done);
    all.extend(
        LONG.map(|sequence| ToEngine::Done {
            sequence: Sequence(sequence),
            answer: answer.clone(),
        }),
    );
    let run = |outcome, pages| OutcomeRun { outcome, pages };
    all.extend(SHORT.map(|pages| merged(vec![run(Outcome::Merged, pages)])));
    all.push(merged(Vec::new()));
    all.push(merged(vec![run(Outcome::Merged, 1); 2]));
    let alternating = (0..16_385).map(|n| run([Outcome::Merged, Outcome::Gone][n % 2], 1));
    all.push(merged(alternating.collect()));
    all
}

/// What is no message at all: other kinds, cut off, too long, and numbers written in other ways.
fn noise() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = vec![vec![0], vec![0; MESSAGE_BYTES], vec![0; MESSAGE_BYTES + 1]];
    all.extend((0..=255).map(|whom| vec![whom, 5]));
    all.extend((0..=255).map(|kind| vec![0, kind]));
    let samples = [
        bytes(&ToEngine::Register {
            region: RegionId(300),
            span: Span { start: Vpn(1 << 35), pages: 1 << 20 },
        }),
        bytes(&merged(vec![OutcomeRun { outcome: Outcome::Merged, pages: 300 }])),
        bytes(&ToEngine::Hello {
            version: VERSION,
            page_size: 4096,
            scope: Scope::Api,
            domain: Some("name".into()),
        }),
    ];
    for sample in samples {
        all.extend((1..sample.len()).map(|len| sample[..len].to_vec()));
        all.push([&sample[..], &[0]].concat());
        for place in 2..sample.len() {
            for value in [0, 0x7f, 0x80, 0xff] {
                let mut other = sample.clone();
                other[place] = value;
                all.push(other);
            }
            // The number before goes on, with nothing.
            let mut longer = sample.clone();
            longer[place] |= 0x80;
            longer.insert(place + 1, 0);
            all.push(longer);
        }
    }
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Says it, before and after it is welcome.
fn lie(bed: &Bed, liar: &mut Client, bytes: &[u8]) {
    let message = decode::<ToEngine<'_>>(bytes);
    for is_welcome in [false, true] {
        let became = liar.ask(&format!("lie {} {is_welcome} {}", bed.socket(), hex(bytes)));
        let is_served = became == "served";
        assert!(is_served || became == "closed" || became.starts_with("rejected "), "{became}");
        let may_be_served = match &message {
            Ok(ToEngine::Hello { .. } | ToEngine::Bye) => false,
            Ok(_) => is_welcome,
            Err(_) => false,
        };
        assert!(may_be_served || !is_served, "served after {message:?}, welcome: {is_welcome}");
    }
}

#[test]
fn s6_a_client_that_lies_in_every_field_harms_nobody() {
    let Some(bed) = Bed::new() else { return };
    let mut honest = bed.merged_clients::<2>(PAGES);
    let mut liar = bed.process();
    let mut count = 0;
    for lies in messages().iter().map(bytes).chain(noise()).collect::<Vec<_>>().chunks(100) {
        lies.iter().for_each(|bytes| lie(&bed, &mut liar, bytes));
        for client in &mut honest {
            assert_eq!(client.ask("wrong 0 1 1"), "0");
        }
        count += lies.len();
    }
    println!("{count} lies");
    until(|| bed.server.client_count() == 2, || "the liar is there still".into());
    bed.until_merged(PAGES, PAGES);
    let mut third = bed.client_with(PAGES, 1, 1);
    bed.until_merged(PAGES, 2 * PAGES);
    assert_eq!(third.ask("wrong 0 1 1"), "0");
    bed.no_errors();
}

/// What may be said, said at random: for some seconds, or as long as NUMERGE_STRESS_SECONDS says.
#[test]
fn s6_a_client_that_answers_at_random_harms_nobody() {
    let Some(bed) = Bed::new() else { return };
    let mut honest = bed.merged_clients::<2>(PAGES);
    let seconds = std::env::var("NUMERGE_STRESS_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(4));
    let mut liars = [bed.process(), bed.process()];
    let (mut said, mut seed) = (0, 0);
    while Instant::now() < end {
        for liar in &mut liars {
            seed += 1;
            let order = format!("babble {} {PAGES} 1 1 {seed} 300", bed.socket());
            said += liar.ask(&order).parse::<u64>().unwrap();
        }
        for client in &mut honest {
            // Merged again with what the liars say is merged too.
            client.ask(&format!("write 0 {} {}", seed % PAGES, seed % PAGES + 1));
            assert_eq!(client.ask("wrong 0 1 1"), "0");
        }
    }
    println!("{said} messages in {seed} connections");
    liars.iter_mut().for_each(Client::kill);
    until(|| bed.server.client_count() == 2, || "liars are there still".into());
    bed.until_merged(PAGES, PAGES);
    for client in &mut honest {
        assert_eq!(client.ask("wrong 0 1 1"), "0");
    }
    bed.no_errors_but_a_liars();
}
