//! What packages and shells want of the command line: manual pages and completions. Not for users, so it
//! is in no help.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use clap::{Command, ValueEnum};
use clap_complete::Shell;

use crate::manual;

const NAME: &str = "numerge";

/// Writes a manual page for each command, and completions for each shell, to a directory that is made
/// if it is missing.
///
/// # Errors
/// What the system said.
pub(crate) fn run(command: Command, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut command.clone(), NAME, directory)?;
    }
    let mut command = command.disable_help_subcommand(true);
    // Gives the commands their whole names.
    command.build();
    page(&command, directory)?;
    command
        .get_subcommands()
        .filter(|one| !one.is_hide_set())
        .try_for_each(|one| page(one, directory))
}

fn page(command: &Command, directory: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(NAME);
    let page = clap_mangen::Man::new(command.clone());
    let mut file = File::create(directory.join(format!("{name}.1")))?;
    page.render(&mut file)?;
    let of = name.strip_prefix(NAME).map_or(name, |rest| rest.trim_start_matches('-'));
    file.write_all(manual::more(of).as_bytes())
}
