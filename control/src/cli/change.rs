//! `shunt reload`, `rollback`, `diff`, `config`, `server` and `service`: what changes, or would.

use std::io::IsTerminal;
use std::path::Path;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Map, Value};

use super::output::print;
use super::{Daemon, runtime};
use crate::admin::client::{ask, tell};
use crate::admin::view::{Change, ConfigText, Diff, File, Files, Reloaded, Saved};
use crate::config::{Config, Edit, ServerState, Word};

/// `shunt config`
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print what is in force, as one file that means the same
    Show(Daemon),
    /// Write what is in force to the configuration files
    Save(Daemon),
}

/// `shunt server`
#[derive(Debug, Subcommand)]
pub(super) enum ServerCommand {
    /// Give it another share of new connections
    Weight {
        #[command(flatten)]
        which: Which,
        /// 0 to 65535; 0 takes no new connections
        weight: u32,
        #[command(flatten)]
        how: How,
    },
    /// Give it no new connections; those it has stay, or are reset after its `drain` time
    Drain {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
    /// Take it out of use as if it had been found dead
    Disable {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
    /// Use it again, with the weight it had
    Enable {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
    /// Add a server to a service
    Add {
        /// The service
        service: String,
        /// Its address, with a port or without
        address: String,
        /// More keys of [[service.server]], such as weight=3
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        keys: Vec<(String, Value)>,
        #[command(flatten)]
        how: How,
    },
    /// Take a server out of its service
    Remove {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
}

/// `shunt service`
#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// Add a service without servers
    Add {
        /// Its name
        name: String,
        /// Keys of [[service]], such as protocol=tcp listen=203.0.113.10:80,203.0.113.11:80
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        keys: Vec<(String, Value)>,
        #[command(flatten)]
        how: How,
    },
    /// Take a service out
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        how: How,
    },
}

/// A server of a service.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The service
    service: String,
    /// The server: its name or address, as the configuration has it
    server: String,
}

/// Where an edit goes.
#[derive(Debug, Args)]
pub(super) struct How {
    #[command(flatten)]
    daemon: Daemon,
    /// Write it to the configuration files as well
    #[arg(long)]
    save: bool,
}

/// Keys whose values are lists: `a,b`.
const LISTS: [&str; 3] = ["listen", "local", "scheduler_flags"];

fn key_value(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    let value = match value {
        list if LISTS.contains(&key) => list.split(',').map(Value::from).collect(),
        "true" => true.into(),
        "false" => false.into(),
        text => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
    };
    Ok((key.to_owned(), value))
}

pub(super) fn server(command: ServerCommand) -> anyhow::Result<()> {
    let state = |which, state: ServerState, how| {
        let value = if state == ServerState::Enabled { Value::Null } else { state.word().into() };
        edit(&set(which, "state", value), &how)
    };
    match command {
        ServerCommand::Weight { which, weight, how } => edit(&set(which, "weight", weight.into()), &how),
        ServerCommand::Drain { which, how } => state(which, ServerState::Draining, how),
        ServerCommand::Disable { which, how } => state(which, ServerState::Disabled, how),
        ServerCommand::Enable { which, how } => state(which, ServerState::Enabled, how),
        ServerCommand::Add { service, address, keys, how } => {
            let keys = [("address".to_owned(), address.into())].into_iter().chain(keys).collect();
            edit(&Edit::AddServer { service, keys }, &how)
        }
        ServerCommand::Remove { which: Which { service, server }, how } => {
            edit(&Edit::RemoveServer { service, server }, &how)
        }
    }
}

pub(super) fn service(command: ServiceCommand) -> anyhow::Result<()> {
    match command {
        ServiceCommand::Add { name, keys, how } => {
            let keys = [("name".to_owned(), name.into())].into_iter().chain(keys).collect();
            edit(&Edit::AddService { keys }, &how)
        }
        ServiceCommand::Remove { name, how } => edit(&Edit::RemoveService { service: name }, &how),
    }
}

fn set(which: Which, key: &str, value: Value) -> Edit {
    let Which { service, server } = which;
    Edit::SetServer { service, server, keys: Map::from_iter([(key.to_owned(), value)]) }
}

fn edit(edit: &Edit, how: &How) -> anyhow::Result<()> {
    let path = format!("/v1/config/edit?save={}", how.save);
    reloaded(&runtime()?.block_on(tell(&how.daemon.socket, &path, edit))?)
}

/// Has the daemon read its files again, and waits until they are in force.
pub(super) fn reload(socket: &Path) -> anyhow::Result<()> {
    reloaded(&runtime()?.block_on(ask(socket, Method::POST, "/v1/reload"))?)
}

/// Has the daemon go one configuration back.
pub(super) fn roll_back(socket: &Path) -> anyhow::Result<()> {
    reloaded(&runtime()?.block_on(ask(socket, Method::POST, "/v1/rollback"))?)
}

fn reloaded(reloaded: &Reloaded) -> anyhow::Result<()> {
    if !reloaded.warnings.trim().is_empty() {
        eprintln!("{}", reloaded.warnings.trim());
    }
    let Reloaded { generation, milliseconds, changes, .. } = reloaded;
    let count = changes.len();
    let changes = format!("{count} change{}", if count == 1 { "" } else { "s" });
    print(&format!("in force: generation {generation}, {changes}, {milliseconds:.1} ms\n"))
}

pub(super) fn config(command: &ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Show(daemon) => {
            let shown: ConfigText = runtime()?.block_on(ask(&daemon.socket, Method::GET, "/v1/config"))?;
            print(&shown.text)
        }
        ConfigCommand::Save(daemon) => {
            let saved: Saved = runtime()?.block_on(ask(&daemon.socket, Method::POST, "/v1/config/save"))?;
            print(&format!("{} files written\n", saved.files))
        }
    }
}

/// Shows what a reload with `file` would change. The file is read here, by whoever asks.
pub(super) fn diff(file: &Path, socket: &Path, json: bool) -> anyhow::Result<()> {
    let loaded = Config::load(file, std::io::stderr().is_terminal())?;
    eprint!("{}", loaded.warnings);
    let files = loaded
        .sources
        .iter()
        .map(|(_, source)| File { path: source.name().to_owned(), text: source.text().to_owned() });
    let question = Files { files: files.collect() };
    let diff: Diff = runtime()?.block_on(tell(socket, "/v1/config/diff", &question))?;
    print(&if json { serde_json::to_string_pretty(&diff)? + "\n" } else { text(&diff) })
}

fn text(diff: &Diff) -> String {
    let mut lines: Vec<_> = diff.changes.iter().map(line).collect();
    for (service, share) in &diff.maglev {
        lines.push(format!("service {service}: {:.1} % of the Maglev table moves", share * 100.0));
    }
    if diff.connections > 0 {
        lines.push(format!("{} live connections feel it", diff.connections));
    }
    if !diff.needs_restart.is_empty() {
        lines.push(format!(
            "refused while running: {} cannot change without a restart",
            diff.needs_restart.join(", ")
        ));
    }
    if lines.is_empty() {
        lines.push("no difference".to_owned());
    }
    lines.join("\n") + "\n"
}

fn line(change: &Change) -> String {
    let Change { service, server, what, key, before, after, connections, kept_seconds } = change;
    let mut line = format!("service {service}: ");
    if let Some(server) = server {
        line += &format!("server {server}: ");
    }
    line += &match (key, before, after) {
        (Some(key), Some(before), Some(after)) => format!("{key}: {before} -> {after}"),
        _ => what.clone(),
    };
    if *connections > 0 {
        line += &match kept_seconds {
            Some(seconds) => format!(" ({connections} connections, reset after {seconds} s)"),
            None => format!(" ({connections} connections lose it)"),
        };
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_reads_like_a_list_of_changes() {
        let key = |key: &str, before: &str, after: &str| Change {
            service: "web".into(),
            what: "changed".into(),
            key: Some(key.into()),
            before: Some(before.into()),
            after: Some(after.into()),
            ..Change::default()
        };
        let server = |what: &str| Change {
            service: "web".into(),
            server: Some("rs1".into()),
            what: what.into(),
            connections: 42,
            ..Change::default()
        };
        let diff = Diff {
            changes: vec![
                key("scheduler", "wlc", "mh"),
                server("removed"),
                Change { kept_seconds: Some(30), ..server("removed") },
            ],
            maglev: [("web".to_owned(), 0.3337)].into(),
            connections: 84,
            needs_restart: vec!["[engine]".into(), "[api]".into()],
            warnings: String::new(),
        };
        let expected = "service web: scheduler: wlc -> mh\n\
            service web: server rs1: removed (42 connections lose it)\n\
            service web: server rs1: removed (42 connections, reset after 30 s)\n\
            service web: 33.4 % of the Maglev table moves\n\
            84 live connections feel it\n\
            refused while running: [engine], [api] cannot change without a restart\n";
        assert_eq!(text(&diff), expected);
        assert_eq!(text(&Diff::default()), "no difference\n");
    }

    #[test]
    fn a_key_has_a_number_a_word_or_a_list() {
        let value = |text: &str| key_value(text).unwrap().1;
        assert_eq!(value("weight=3"), Value::from(3));
        assert_eq!(value("one_packet=true"), Value::from(true));
        assert_eq!(value("drain=30s"), Value::from("30s"));
        assert_eq!(
            value("listen=[2001:db8::1]:80,203.0.113.1:80"),
            serde_json::json!(["[2001:db8::1]:80", "203.0.113.1:80"])
        );
        assert!(key_value("weight").is_err());
    }
}
