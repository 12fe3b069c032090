//! `numerge get`, `set` and `status`: asking a daemon, or the `numerge run` above.

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use numerge::control::{Client, path_beside};
use numerge::{Knob, default_socket};
use serde_json::Value;

/// Between two looks of `status --watch`.
const WATCH: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(crate) struct Whom {
    /// The socket that agents connect to [default: NUMERGE_SOCKET, or the daemon's]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Whom {
    fn connect(&self) -> Result<Client, Box<dyn Error>> {
        let socket = self.socket.clone().unwrap_or_else(default_socket);
        Ok(Client::connect(&path_beside(&socket))?)
    }
}

/// Prints a knob, or all of them.
pub(crate) fn get(whom: &Whom, knob: Option<&str>) -> Result<(), Box<dyn Error>> {
    let mut client = whom.connect()?;
    if let Some(knob) = knob {
        println!("{}", client.get(knob)?);
        return Ok(());
    }
    for knob in Knob::ALL {
        println!("{knob} {}", client.get(knob.name())?);
    }
    Ok(())
}

/// Sets a knob.
pub(crate) fn set(whom: &Whom, knob: &str, value: u64) -> Result<(), Box<dyn Error>> {
    whom.connect()?.set(knob, value)?;
    Ok(())
}

#[derive(Args)]
pub(crate) struct Status {
    #[command(flatten)]
    whom: Whom,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
    /// Again every second, until interrupted.
    #[arg(long)]
    watch: bool,
}

pub(crate) fn status(arguments: &Status) -> Result<(), Box<dyn Error>> {
    let mut client = arguments.whom.connect()?;
    loop {
        let status = client.status()?;
        if arguments.json {
            println!("{status}");
        } else {
            if arguments.watch && std::io::stdout().is_terminal() {
                print!("\x1b[H\x1b[2J");
            }
            print(&status);
        }
        if !arguments.watch {
            return Ok(());
        }
        std::thread::sleep(WATCH);
    }
}

fn print(status: &Value) {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let mib = |pages: u64| pages as f64 / 256.0;
    println!("Registered  {:10.1} MiB", mib(number(&status["pages_registered"])));
    let saved = number(&status["pages_sharing"]) + number(&status["ksm_zero_pages"]);
    println!(
        "Saved       {:10.1} MiB: {} pages in {} frames, {} pages of zeros",
        mib(saved),
        number(&status["pages_shared"]) + number(&status["pages_sharing"]),
        status["pages_shared"],
        status["ksm_zero_pages"],
    );
    println!(
        "Not merged  {} pages without a partner, {} volatile, {} pinned, {} over the mapping budget",
        status["pages_unshared"],
        status["pages_volatile"],
        status["pages_held"],
        status["pages_over_budget"],
    );
    println!(
        "Scanned     {} pages in {} full scans; {} pages broken again",
        status["pages_scanned"], status["full_scans"], status["pages_broken"],
    );
    let Some(clients) = status["clients"].as_array() else { return };
    println!("Programs    {:>8} {:>14} {:>14}", "pid", "registered MiB", "merged MiB");
    for client in clients {
        println!(
            "            {:>8} {:>14.1} {:>14.1}",
            number(&client["pid"]),
            mib(number(&client["pages_registered"])),
            mib(number(&client["pages_merged"])),
        );
    }
}
