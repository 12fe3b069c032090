//! What the environment asks for.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use numerge_protocol::Scope;

/// The engine's socket. Without it the agent does nothing.
pub const SOCKET: &str = "NUMERGE_SOCKET";
/// What of the program's memory is to be merged: `advised` or `mapped`.
pub const SCOPE: &str = "NUMERGE_SCOPE";
/// The security domain to ask for.
pub const DOMAIN: &str = "NUMERGE_DOMAIN";
/// The socket of who shows this process files of its own in `/proc`. Without it the kernel's are there.
pub const AS_KSM: &str = "NUMERGE_AS_KSM";

/// Whether PR_SET_MEMORY_MERGE was set by who executed this program: `0` or `1`.
pub const MEMORY_MERGE: &str = "NUMERGE_MEMORY_MERGE";

/// Longest path of a Unix socket.
const SOCKET_BYTES: usize = 107;

/// What the agent was asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where the engine listens.
    pub socket: PathBuf,
    /// What is registered.
    pub scope: Scope,
    /// The security domain, if not the default.
    pub domain: Option<String>,
    /// Who shows files in `/proc`, if anybody.
    pub proc_files: Option<PathBuf>,
}

impl Config {
    /// From these variables; None if there is no engine to go to.
    ///
    /// # Errors
    /// A line for people that names the value, and what is allowed.
    pub fn from(
        variable: impl Fn(&'static str) -> Option<OsString>,
    ) -> Result<Option<Self>, String> {
        let Some(socket) = variable(SOCKET) else {
            return Ok(None);
        };
        check_socket(SOCKET, &socket)?;
        let scope = variable(SCOPE);
        let scope = match scope.as_deref().map(|scope| scope.to_str()) {
            None | Some(Some("advised")) => Scope::Advised,
            Some(Some("mapped")) => Scope::Mapped,
            Some(_) => {
                let scope = scope.unwrap_or_default();
                return Err(format!("{SCOPE}={scope:?}: `advised` and `mapped` are allowed"));
            }
        };
        let domain = variable(DOMAIN);
        let domain = domain.map(|domain| check_domain(DOMAIN, &domain)).transpose()?;
        let proc_files = variable(AS_KSM);
        proc_files.as_deref().map_or(Ok(()), |socket| check_socket(AS_KSM, socket))?;
        let (socket, proc_files) = (socket.into(), proc_files.map(PathBuf::from));
        Ok(Some(Self { socket, scope, domain, proc_files }))
    }
}

/// Whether a socket's path, set as `name`, is one.
pub(crate) fn check_socket(name: &str, socket: &OsStr) -> Result<(), String> {
    if (1..=SOCKET_BYTES).contains(&socket.as_bytes().len()) {
        Ok(())
    } else {
        Err(format!("{name}={socket:?}: must be the path of a socket, 1 to {SOCKET_BYTES} bytes"))
    }
}

/// The domain set as `name`, if it is one.
pub(crate) fn check_domain(name: &str, domain: &OsStr) -> Result<String, String> {
    let fits = |domain: &&str| numerge_protocol::check_domain(domain).is_ok();
    domain.to_str().filter(fits).map(str::to_owned).ok_or_else(|| {
        format!(
            "{name}={domain:?}: 1 to {} bytes of A-Z, a-z, 0-9, '.', '_' and '-' are allowed",
            numerge_protocol::limits::DOMAIN_BYTES
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Option<Config>, String> {
        Config::from(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn without_an_engine_there_is_nothing_to_do() {
        assert_eq!(from(&[(SCOPE, "mapped")]), Ok(None));
    }

    #[test]
    fn all_is_taken_over() {
        let all = [(SOCKET, "/run/x"), (SCOPE, "mapped"), (DOMAIN, "a.b-c_1"), (AS_KSM, "/run/y")];
        let config = from(&all);
        let wanted = Config {
            socket: "/run/x".into(),
            scope: Scope::Mapped,
            domain: Some("a.b-c_1".into()),
            proc_files: Some("/run/y".into()),
        };
        assert_eq!(config, Ok(Some(wanted)));
        let config = from(&[(SOCKET, "/run/x")]).expect("fine").expect("asked for");
        assert_eq!((config.scope, config.domain), (Scope::Advised, None));
        assert_eq!(config.proc_files, None);
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_allowed() {
        for (name, value, allowed) in [
            (SOCKET, "", "path of a socket"),
            (AS_KSM, "", "path of a socket"),
            (SCOPE, "everything", "`advised` and `mapped`"),
            (DOMAIN, "a b", "A-Z"),
            (DOMAIN, "", "1 to 64 bytes"),
        ] {
            let error = from(&[(name, value), (SOCKET, "/run/x")]).expect_err("refused");
            assert!(error.contains(name) && error.contains(value), "{error}");
            assert!(error.contains(allowed), "{error}");
        }
    }
}
