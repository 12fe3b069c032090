//! The `numerge` program.

mod ask;
mod daemon;
mod files;
mod generate;
mod host;
mod log;
mod manual;
mod merge;
mod metrics;
mod processes;
mod recent;
mod run;
mod together;
mod value;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use numerge_topology::Topology;

/// Same-page merging for NUMA servers, from user space.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load files as memory images of guests, merge them, and prove every byte unchanged.
    Merge(merge::Arguments),
    /// Run a command, the memory of its processes merged.
    Run(run::Arguments),
    /// Serve all programs of this host that run below `numerge run` or have the agent.
    Daemon(daemon::Arguments),
    /// Print a knob of the daemon's, or all.
    Get {
        #[command(flatten)]
        whom: ask::Whom,
        /// Its name, as the kernel's
        knob: Option<String>,
    },
    /// Set a knob of the daemon's.
    Set {
        #[command(flatten)]
        whom: ask::Whom,
        /// Its name, as the kernel's
        knob: String,
        /// Its value, as its file takes it
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Show what the daemon has merged.
    Status(ask::Status),
    /// Print this machine's NUMA nodes (or those of HWLOC_SYNTHETIC or HWLOC_XMLFILE).
    Topology {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Take away a daemon's control files when it has ended.
    #[command(hide = true)]
    KeepFiles(daemon::keeper::Arguments),
    /// Write manual pages and completions to a directory.
    #[command(hide = true)]
    Generate {
        /// The directory
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    numerge_linux::keep_heap_small();
    let done = match Arguments::parse().command {
        Command::Merge(arguments) => merge::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Run(arguments) => run::run(&arguments),
        Command::Daemon(arguments) => daemon::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Get { whom, knob } => ask::get(&whom, knob.as_deref()).map(|()| ExitCode::SUCCESS),
        Command::Set { whom, knob, value } => {
            ask::set(&whom, &knob, &value).map(|()| ExitCode::SUCCESS)
        }
        Command::Status(arguments) => ask::status(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Topology { json } => topology(json).map(|()| ExitCode::SUCCESS),
        Command::KeepFiles(arguments) => {
            daemon::keeper::keep(&arguments).map(|()| ExitCode::SUCCESS)
        }
        Command::Generate { directory } => {
            let failed = |error| format!("{}: {error}", directory.display()).into();
            let done = generate::run(Arguments::command(), &directory);
            done.map(|()| ExitCode::SUCCESS).map_err(failed)
        }
    };
    done.unwrap_or_else(|error| {
        complain(&*error);
        ExitCode::FAILURE
    })
}

/// Says why on standard error. Where that can't be written to, the exit status has to do.
fn complain(why: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "numerge: {why}");
}

fn topology(json: bool) -> Result<(), Box<dyn std::error::Error>> {
    let topology = Topology::discover()?;
    if json {
        println!("{}", serde_json::to_string(&topology)?);
    } else {
        print!("{topology}");
    }
    Ok(())
}
