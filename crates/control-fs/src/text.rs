//! Values as the kernel's files take and give them.
//!
//! The rules are those of the kernel's `kstrtouint`, `kstrtoul`, `kstrtoint`, `kstrtobool` and
//! `sysfs_streq`, and of what each of its files makes of their errors.

use numerge_engine::{ADVISOR_NONE, ADVISOR_SCAN_TIME, Knob};

/// The values of `advisor_mode`, by their names.
pub const MODES: [(&str, u64); 2] = [("none", ADVISOR_NONE), ("scan-time", ADVISOR_SCAN_TIME)];

/// The value that a text written to a knob's file stands for, if it is in the knob's range too.
///
/// # Errors
/// The kernel's error number for such a text.
pub fn parse(knob: Knob, written: &[u8]) -> Result<u64, i32> {
    // A text ends where the kernel's strings do.
    let text = written.split(|byte| *byte == 0).next().unwrap_or_default();
    let value = match knob {
        Knob::SmartScan | Knob::UseZeroPages => truth(text)?,
        Knob::AdvisorMode => choice(text)?,
        Knob::MaxPageSharing => signed(text)?,
        Knob::MergeAcrossNodes => number(text, u64::MAX)?,
        // Takes 64 bits, and keeps 32.
        Knob::AdvisorMaxCpu => number(text, u64::MAX).map_err(|_| libc::EINVAL)? & U32,
        Knob::AdvisorMinPagesToScan | Knob::AdvisorMaxPagesToScan | Knob::AdvisorTargetScanTime => {
            number(text, u64::MAX).map_err(|_| libc::EINVAL)?
        }
        Knob::Run
        | Knob::PagesToScan
        | Knob::SleepMillisecs
        | Knob::StableNodeChainsPruneMillisecs => number(text, U32).map_err(|_| libc::EINVAL)?,
    };
    knob.check(value).map_err(|_| libc::EINVAL)?;
    Ok(value)
}

/// What a knob's file reads as.
pub(crate) fn format(knob: Knob, value: u64) -> String {
    if knob != Knob::AdvisorMode {
        return format!("{value}\n");
    }
    let choices = MODES.map(
        |(name, choice)| {
            if choice == value { format!("[{name}]") } else { name.to_owned() }
        },
    );
    choices.join(" ") + "\n"
}

const U32: u64 = u32::MAX as u64;

/// A decimal number up to `most`, with a plus or not, a newline or not: ERANGE above, EINVAL for all
/// else.
fn number(text: &[u8], most: u64) -> Result<u64, i32> {
    digits(text.strip_prefix(b"+").unwrap_or(text), most)
}

fn digits(text: &[u8], most: u64) -> Result<u64, i32> {
    let digits = text.strip_suffix(b"\n").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(libc::EINVAL);
    }
    let add = |sum: u64, digit: &u8| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
    let value = digits.iter().try_fold(0, add).filter(|value| *value <= most);
    value.ok_or(libc::ERANGE)
}

/// A number that fits the kernel's `int`. Knobs have no negative values.
fn signed(text: &[u8]) -> Result<u64, i32> {
    let Some(negative) = text.strip_prefix(b"-") else {
        return number(text, i32::MAX as u64);
    };
    match digits(negative, u64::from(i32::MIN.unsigned_abs()))? {
        0 => Ok(0),
        _ => Err(libc::EINVAL),
    }
}

/// What is not looked at may be anything.
fn truth(text: &[u8]) -> Result<u64, i32> {
    match text {
        [b'y' | b'Y' | b't' | b'T' | b'1' | b'e' | b'E', ..] | [b'o' | b'O', b'n' | b'N', ..] => {
            Ok(1)
        }
        [b'n' | b'N' | b'f' | b'F' | b'0' | b'd' | b'D', ..] | [b'o' | b'O', b'f' | b'F', ..] => {
            Ok(0)
        }
        _ => Err(libc::EINVAL),
    }
}

fn choice(text: &[u8]) -> Result<u64, i32> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let found = MODES.iter().find(|(name, _)| name.as_bytes() == text);
    found.map(|(_, choice)| *choice).ok_or(libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The facts of the kernel's files are a test of their own; this is about what they leave out.
    #[test]
    fn s5_4_texts_stand_for_what_the_kernel_takes_them_for() {
        assert_eq!(parse(Knob::MaxPageSharing, b"-0\n"), Err(libc::EINVAL));
        assert_eq!(parse(Knob::MaxPageSharing, b"-2147483649"), Err(libc::ERANGE));
        assert_eq!(parse(Knob::MaxPageSharing, b"-+2"), Err(libc::EINVAL));
        assert_eq!(parse(Knob::MergeAcrossNodes, b"99999999999999999999"), Err(libc::ERANGE));
        assert_eq!(parse(Knob::MergeAcrossNodes, b"99999999999999999999x"), Err(libc::EINVAL));
        assert_eq!(parse(Knob::SmartScan, b"disable"), Ok(0));
        assert_eq!(parse(Knob::AdvisorMode, b"none\0\n\n"), Ok(0));
    }

    #[test]
    fn s5_4_what_is_read_can_be_written_back() {
        for knob in Knob::ALL.into_iter().filter(|knob| *knob != Knob::AdvisorMode) {
            let value = knob.default_value();
            assert_eq!(parse(knob, format(knob, value).as_bytes()), Ok(value), "{knob}");
        }
        assert_eq!(format(Knob::AdvisorMode, ADVISOR_NONE), "[none] scan-time\n");
        assert_eq!(format(Knob::AdvisorMode, ADVISOR_SCAN_TIME), "none [scan-time]\n");
    }
}
