//! Values of knobs, as people write and read them: as in the knobs' files.

use numerge::Knob;

/// The value that a text stands for, if the knob's file takes it.
///
/// # Errors
/// What it takes, for people.
pub(crate) fn parse(knob: Knob, text: &str) -> Result<u64, String> {
    let done = numerge_control_fs::parse(knob, text.as_bytes());
    done.map_err(|_| format!("{knob} can't be '{text}': allowed is {}", allowed(knob)))
}

/// The values that a knob takes, for people.
pub(crate) fn allowed(knob: Knob) -> String {
    match (knob, knob.range()) {
        (Knob::AdvisorMode, _) => numerge_control_fs::MODES.map(|(name, _)| name).join(" or "),
        (_, range) => format!("{} to {}", range.start(), range.end()),
    }
}

/// The text that stands for a value.
pub(crate) fn format(knob: Knob, value: u64) -> String {
    let mode = numerge_control_fs::MODES.into_iter().find(|(_, mode)| *mode == value);
    match mode {
        Some((name, _)) if knob == Knob::AdvisorMode => name.into(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_4_what_is_refused_is_named_with_what_is_allowed() {
        let refused = |knob, text| parse(knob, text).unwrap_err();
        assert_eq!(refused(Knob::Run, "3"), "run can't be '3': allowed is 0 to 2");
        assert_eq!(refused(Knob::Run, "-1"), "run can't be '-1': allowed is 0 to 2");
        assert_eq!(
            refused(Knob::PagesToScan, ""),
            "pages_to_scan can't be '': allowed is 0 to 4294967295"
        );
        let error = "advisor_mode can't be '1': allowed is none or scan-time";
        assert_eq!(refused(Knob::AdvisorMode, "1"), error);
        assert_eq!(parse(Knob::SmartScan, "yes"), Ok(1));
    }

    #[test]
    fn s5_4_what_is_printed_can_be_set() {
        for knob in Knob::ALL {
            let value = knob.default_value();
            assert_eq!(parse(knob, &format(knob, value)), Ok(value), "{knob}");
        }
        assert_eq!(format(Knob::AdvisorMode, 1), "scan-time");
    }
}
