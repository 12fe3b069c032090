//! The `numerge` program.

mod merge;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
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
    /// Print this machine's NUMA nodes (or those of HWLOC_SYNTHETIC or HWLOC_XMLFILE).
    Topology {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Merge(arguments) => merge::run(&arguments),
        Command::Topology { json } => topology(json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("numerge: {error}");
            ExitCode::FAILURE
        }
    }
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
