//! The daemon's configuration file: security domains, and who may be in them.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::fs;
use std::path::Path;

use numerge_server::{Domains, Members};
use serde::Deserialize;

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Whether programs that ask for no domain share one with others of their user.
    #[serde(default = "yes")]
    by_user: bool,
    /// Domains, and who may be in them.
    #[serde(default)]
    domain: BTreeMap<String, ConfigDomain>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigDomain {
    /// Users by their numbers.
    uids: Vec<u32>,
}

const fn yes() -> bool {
    true
}

/// Reads it.
pub(super) fn read(path: &Path) -> Result<Domains, Box<dyn Error>> {
    let refused = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(|error| refused(&error))?;
    let Config { by_user, domain } = toml::from_str(&text).map_err(|error| refused(&error))?;
    for name in domain.keys() {
        // What no client can ask for.
        numerge_protocol::check_domain(name)
            .map_err(|error| refused(&format_args!("{name:?}: {error}")))?;
    }
    let named = domain
        .into_iter()
        .map(|(name, ConfigDomain { uids })| (name, Members { users: uids.into_iter().collect() }));
    Ok(Domains { by_user, named: named.collect() })
}
