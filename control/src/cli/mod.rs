//! The command line: what can be asked, and who answers.

mod change;
mod check;
mod cleanup;
mod connections;
mod daemon;
mod events;
mod output;
mod show;
mod table;
mod unprivileged;
mod workers;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::admin::filter::Query;
use crate::config::SOCKET;

/// A layer-4 load balancer.
#[derive(Debug, Parser)]
#[command(name = "shunt", version, about = "A layer-4 load balancer: clients in, servers out")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the balancer in the foreground until SIGTERM or SIGINT; SIGHUP reloads
    Run {
        /// The configuration file
        #[arg(short, long = "config", value_name = "FILE")]
        config: PathBuf,
        /// How to write the log
        #[arg(long, value_enum, default_value = "text")]
        log: daemon::Log,
    },
    /// Check a configuration file: every error at once, with its place
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// Have the running balancer read its configuration files again, and wait until they are in force
    Reload(Daemon),
    /// Go back to the configuration that was in force before the last reload or edit; again, to the one before that
    Rollback(Daemon),
    /// Show what a reload with this file would change: services, servers, live connections
    Diff {
        /// The configuration file
        file: PathBuf,
        #[command(flatten)]
        daemon: Daemon,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show or save the configuration in force
    #[command(subcommand)]
    Config(change::ConfigCommand),
    /// Change a server of the running balancer
    #[command(subcommand)]
    Server(change::ServerCommand),
    /// Add a service to the running balancer, or remove one
    #[command(subcommand)]
    Service(change::ServiceCommand),
    /// Remove what a balancer that crashed has left: addresses, neighbours, the guard table
    Cleanup(Daemon),
    /// Show services and servers, or workers and queues
    Status {
        #[command(flatten)]
        daemon: Daemon,
        /// Show workers and their queues instead
        #[arg(long)]
        workers: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show every connection, as `ipvsadm -Lnc` does
    Connections {
        #[command(flatten)]
        daemon: Daemon,
        /// Only those of this client: an address or a prefix, with `:PORT` or without
        #[arg(long, value_name = "ADDRESS")]
        client: Option<String>,
        /// Only those to this server: its address, with `:PORT` or without, or its name
        #[arg(long, value_name = "SERVER")]
        server: Option<String>,
        /// Only those in this state: established, syn_recv, fin_wait, time_wait, udp …
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
        /// Print JSON, a line per connection
        #[arg(long)]
        json: bool,
    },
    /// Show what has happened to servers, services and the configuration
    Events {
        #[command(flatten)]
        daemon: Daemon,
        /// Go on with what happens from now on
        #[arg(short, long)]
        follow: bool,
        /// Print JSON, a line per event
        #[arg(long)]
        json: bool,
    },
    /// Show every counter: why packets were dropped, and what else happened
    Counters {
        #[command(flatten)]
        daemon: Daemon,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Become the program of a check, as somebody who can do nothing else
    #[command(hide = true)]
    Unprivileged {
        uid: u32,
        gid: u32,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
}

/// Which daemon is meant.
#[derive(Debug, Args)]
struct Daemon {
    /// The balancer's socket, as `api.socket` of its configuration names it
    #[arg(short, long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

/// Does what the command line asks. Errors go to stderr.
pub fn run() -> ExitCode {
    let done = match Arguments::try_parse() {
        Ok(arguments) => obey(arguments.command),
        Err(error) if error.use_stderr() => error.exit(),
        // --help and --version
        Err(text) if std::io::stdout().is_terminal() => output::print(&text.render().ansi().to_string()),
        Err(text) => output::print(&text.render().to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Every error names its cause itself; diagnostics of a file begin with their own "error:".
            eprintln!("shunt: {}", error.to_string().trim_end());
            ExitCode::FAILURE
        }
    }
}

fn obey(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { config, log } => daemon::run(&config, log),
        Command::Check { file } => check::check(&file),
        Command::Reload(daemon) => change::reload(&daemon.socket),
        Command::Rollback(daemon) => change::roll_back(&daemon.socket),
        Command::Diff { file, daemon, json } => change::diff(&file, &daemon.socket, json),
        Command::Config(command) => change::config(&command),
        Command::Server(command) => change::server(command),
        Command::Service(command) => change::service(command),
        Command::Cleanup(daemon) => cleanup::cleanup(&daemon.socket),
        Command::Status { daemon, workers: false, json } => show::status(&daemon.socket, json),
        Command::Status { daemon, workers: true, json } => show::workers(&daemon.socket, json),
        Command::Connections { daemon, client, server, state, json } => {
            connections::connections(&daemon.socket, &Query { client, server, state }, json)
        }
        Command::Events { daemon, follow, json } => events::events(&daemon.socket, follow, json),
        Command::Counters { daemon, json } => show::counters(&daemon.socket, json),
        Command::Unprivileged { uid, gid, program } => unprivileged::become_program(uid, gid, &program),
    }
}

/// The runtime of a command: one thread.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Command, clap::Error> {
        Arguments::try_parse_from(words.split_whitespace()).map(|arguments| arguments.command)
    }

    #[test]
    fn the_commands_are_what_the_manual_says() {
        assert!(
            matches!(parse("shunt run -c a.toml"), Ok(Command::Run { config, .. }) if config.ends_with("a.toml"))
        );
        assert!(matches!(parse("shunt check a.toml"), Ok(Command::Check { .. })));
        assert!(
            matches!(parse("shunt reload"), Ok(Command::Reload(daemon)) if daemon.socket.ends_with("run/shunt/shunt.sock"))
        );
        assert!(matches!(parse("shunt cleanup --socket /a"), Ok(Command::Cleanup(_))));
        assert!(matches!(parse("shunt rollback"), Ok(Command::Rollback(_))));
        assert!(matches!(parse("shunt diff a.toml --json"), Ok(Command::Diff { json: true, .. })));
        for good in [
            "shunt config show",
            "shunt config save --socket /a",
            "shunt server weight web rs1 5 --save",
            "shunt server drain web rs1",
            "shunt server disable web 10.0.0.11:8080",
            "shunt server enable web rs1",
            "shunt server add web 10.0.0.14:80 weight=3 name=rs4 --save",
            "shunt server remove web rs1 --socket /a",
            "shunt service add dns protocol=udp listen=203.0.113.10:53 mode=dr",
            "shunt service remove dns",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        assert!(matches!(
            parse("shunt status --json"),
            Ok(Command::Status { json: true, workers: false, .. })
        ));
        assert!(matches!(
            parse("shunt status --workers"),
            Ok(Command::Status { json: false, workers: true, .. })
        ));
        let parsed = parse("shunt connections --client 10.0.0.0/8 --server rs1 --state udp --json");
        let Ok(Command::Connections { client, server, state, json: true, .. }) = parsed else {
            panic!("{parsed:?}");
        };
        let words = [client, server, state].map(Option::unwrap);
        assert_eq!(words, ["10.0.0.0/8", "rs1", "udp"]);
        assert!(matches!(
            parse("shunt events --follow"),
            Ok(Command::Events { follow: true, json: false, .. })
        ));
        assert!(matches!(parse("shunt counters --json"), Ok(Command::Counters { json: true, .. })));
        for bad in ["shunt", "shunt run", "shunt check", "shunt stop", "shunt status --yaml"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
