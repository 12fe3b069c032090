//! `numerge get`, `set` and `status`: asking a daemon, or the `numerge run` above.

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use numerge::control::{Client, path_beside};
use numerge::{Knob, default_socket};
use serde_json::Value;

use crate::value;

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
        let value = client.get(knob)?;
        let text = Knob::from_name(knob).map(|knob| value::format(knob, value));
        println!("{}", text.unwrap_or_else(|| value.to_string()));
        return Ok(());
    }
    for knob in Knob::ALL {
        println!("{knob} {}", value::format(knob, client.get(knob.name())?));
    }
    Ok(())
}

/// Sets a knob.
pub(crate) fn set(whom: &Whom, name: &str, text: &str) -> Result<(), Box<dyn Error>> {
    let knob = Knob::from_name(name).ok_or_else(|| {
        format!("no knob '{name}': there are {}", Knob::ALL.map(Knob::name).join(", "))
    })?;
    let value = value::parse(knob, text)?;
    whom.connect()?.set(name, value)?;
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
        let mut status = client.status()?;
        status["nodes"] = client.nodes()?;
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

/// The first columns of all tables.
const COLUMNS: &str = " registered MiB    merged     saved  broken again";

/// A number that may not be known.
fn known(number: &Value) -> String {
    number.as_u64().map_or_else(|| "?".into(), |number| number.to_string())
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
    let seconds = |milliseconds: &Value| number(milliseconds) as f64 / 1000.0;
    let list = |name: &str| status[name].as_array().cloned().unwrap_or_default();
    println!(
        "Programs    {}, with {} mappings; {} stalls, the longest of {:.1} s",
        list("clients").len(),
        known(&status["mappings"]),
        number(&status["stalls"]),
        seconds(&status["longest_stall_ms"]),
    );
    // Of nodes and domains alike.
    let row = |one: &Value| {
        let [shared, sharing, zero] = ["pages_shared", "pages_sharing", "ksm_zero_pages"]
            .map(|counter| number(&one[counter]));
        format!(
            "{:8}{:>15.1} {:>9.1} {:>9.1} {:>13} {shared:>8}",
            "",
            mib(number(&one["pages_registered"])),
            mib(shared + sharing + zero),
            mib(sharing + zero),
            number(&one["pages_broken"]),
        )
    };
    let name = |one: &Value| one["name"].as_str().unwrap_or_default().to_owned();
    println!("Nodes   {COLUMNS}   frames");
    for one in list("nodes") {
        println!("{}  {}", row(&one), name(&one));
    }
    println!("Domains {COLUMNS}   frames mappings stalls longest");
    for one in list("domains") {
        println!(
            "{} {:>8} {:>6} {:>5.1} s  {}",
            row(&one),
            known(&one["mappings"]),
            number(&one["stalls"]),
            seconds(&one["longest_stall_ms"]),
            name(&one),
        );
    }
    println!("Programs{COLUMNS}     mappings  stalls  longest");
    for one in list("clients") {
        let mappings = format!("{}/{}", known(&one["mappings"]), known(&one["mappings_budget"]));
        println!(
            "{:>8}{:>15.1} {:>9.1} {:>9.1} {:>13} {mappings:>12} {:>7} {:>6.1} s  {}",
            number(&one["pid"]),
            mib(number(&one["pages_registered"])),
            mib(number(&one["pages_merged"]) + number(&one["ksm_zero_pages"])),
            mib(number(&one["pages_saved"])),
            number(&one["pages_broken"]),
            number(&one["stalls"]),
            seconds(&one["longest_stall_ms"]),
            one["domain"].as_str().unwrap_or_default(),
        );
    }
}
