//! What people change while the daemon runs: the files are read again, a part is edited, the last change is taken back.
//! All of it takes the same road: text, meaning, difference, snapshot, in force.

use shunt_dataplane::service::ServiceId;
use shunt_engine::clock::Clock;

use crate::admin::view::{self, ConfigText, Diff, Reloaded, Saved};
use crate::compile::compile;
use crate::config::{self, Change, Config, Edit, Prepared, Sources, What, between};
use crate::drain;
use crate::events::Happened;
use crate::notify;
use crate::reload::needs_restart;
use crate::supervisor::Daemon;

/// Why a configuration changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Reload,
    Edit,
    Rollback,
}

impl Cause {
    const fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Edit => "edit",
            Self::Rollback => "rollback",
        }
    }
}

impl Daemon {
    /// Reads the files again and puts them in force.
    ///
    /// # Errors
    /// With the text for people; nothing has changed then.
    pub(crate) async fn reload(&mut self) -> Result<Reloaded, String> {
        notify::reloading();
        let reloaded = async {
            let loaded = self.reader.load(&self.file, false).map_err(|error| error.to_string())?;
            let unsaved = !self.history.is_saved();
            let sources = loaded.sources.clone();
            let mut reloaded = self.change(Cause::Reload, loaded).await?;
            self.history.saved = sources;
            if unsaved {
                reloaded.warnings += "\nwhat was edited since the files were read, and not saved, is gone";
            }
            Ok(reloaded)
        };
        let told = reloaded.await;
        self.tell(&told);
        notify::ready(&self.in_short());
        told
    }

    /// Makes one change to what is in force, and to the files if `save` says so.
    ///
    /// # Errors
    /// With the text for people; nothing has changed then.
    pub(crate) async fn edit(&mut self, edit: &Edit, save: bool) -> Result<Reloaded, String> {
        let edited = async {
            let sources = edit.apply(&self.history.current)?;
            let understood = self.reader.of(sources.clone(), false);
            let loaded = understood.map_err(|error| format!("with this change:\n{error}"))?;
            // What cannot be written is not put in force either.
            let prepared = if save { Some(Prepared::new(&sources, &self.history.saved)?) } else { None };
            let mut reloaded = self.change(Cause::Edit, loaded).await?;
            if let Some(prepared) = prepared {
                match prepared.commit() {
                    Ok(_) => self.history.saved = sources,
                    Err(error) => reloaded.warnings += &format!("\nin force, but not saved: {error}"),
                }
            }
            Ok(reloaded)
        };
        let told = edited.await;
        self.tell(&told);
        told
    }

    /// Puts the configuration in force that was before the one that is.
    ///
    /// # Errors
    /// With the text for people; nothing has changed then.
    pub(crate) async fn roll_back(&mut self) -> Result<Reloaded, String> {
        let rolled_back = async {
            let previous = self.history.previous().cloned();
            let previous = previous.ok_or("no other configuration was in force since the start")?;
            let loaded = self.reader.of(previous, false).map_err(|error| error.to_string())?;
            self.change(Cause::Rollback, loaded).await
        };
        let told = rolled_back.await;
        self.tell(&told);
        told
    }

    /// Tells what was refused, and what people should know, whoever asked for the change.
    fn tell(&self, result: &Result<Reloaded, String>) {
        match result {
            Ok(reloaded) if reloaded.warnings.trim().is_empty() => {}
            Ok(reloaded) => tracing::warn!("{}", reloaded.warnings.trim()),
            Err(error) => self.events.tell(Happened::Refused { error: error.clone() }),
        }
    }

    async fn change(&mut self, cause: Cause, loaded: config::Loaded) -> Result<Reloaded, String> {
        let began = Clock::System.now();
        let changes = self.changes(&loaded.config);
        let differs = !changes.is_empty() || self.config.engine != loaded.config.engine;
        let mut warnings: Vec<String> = loaded.warnings.lines().map(str::to_owned).collect();
        let generation = self
            .put_in_force(&loaded, &mut warnings)
            .await
            .map_err(|error| format!("{}: {error}", self.file.display()))?;
        match cause {
            Cause::Rollback => self.history.roll_back(),
            Cause::Reload | Cause::Edit => self.history.replace(loaded.sources, differs),
        }
        let milliseconds = Clock::System.now().since(began).as_nanos() as f64 / 1e6;
        let (cause, count) = (cause.name().to_owned(), changes.len());
        self.events.tell(Happened::Configuration { cause, generation, changes: count });
        log(&changes);
        Ok(Reloaded { generation, milliseconds, changes, warnings: warnings.join("\n") })
    }

    /// Writes what is in force to the files.
    ///
    /// # Errors
    /// With the text for people.
    pub(crate) fn save(&mut self) -> Result<Saved, String> {
        let prepared = Prepared::new(&self.history.current, &self.history.saved)?;
        let files = prepared.commit().map_err(|error| format!("not saved: {error}"))?;
        self.history.saved = self.history.current.clone();
        Ok(Saved { files })
    }

    /// What is in force as text.
    pub(crate) fn config_text(&self) -> ConfigText {
        ConfigText {
            generation: self.publisher.in_force().0,
            saved: self.history.is_saved(),
            text: self.history.current.merged(),
        }
    }

    /// What would change if `sources` were put in force.
    ///
    /// # Errors
    /// When they would be refused.
    pub(crate) fn diff(&self, sources: Sources) -> Result<Diff, String> {
        let loaded = Config::of(sources, false).map_err(|error| error.to_string())?;
        let mut config = loaded.config;
        let changes = self.changes(&config);
        let needs_restart = needs_restart(&self.config, &config);
        self.health.watch().carry_over(&mut config, Clock::System.now());
        drain::carry_over(Some(&self.config), &mut config, Clock::System.now());
        let (mut numbers, current) = (self.numbers.clone(), self.publisher.current());
        let snapshot = compile(&config, &self.kernel, &self.ports, &mut numbers, &current)
            .map_err(|error| error.to_string())?;
        let moved =
            |id: ServiceId| snapshot.pools(id)?.moved(current.pools(id)?).filter(|share| *share > 0.0);
        let names = config.services.iter().map(|service| &service.name);
        let maglev = names.filter_map(|name| Some((name.clone(), moved(numbers.service(name)?)?)));
        Ok(Diff {
            maglev: maglev.collect(),
            connections: changes.iter().map(|change| change.connections).sum(),
            changes,
            needs_restart: needs_restart.into_iter().map(str::to_owned).collect(),
            warnings: loaded.warnings,
        })
    }

    /// What differs from what is in force, with the connections that feel it.
    fn changes(&self, config: &Config) -> Vec<view::Change> {
        between(&self.config, config).into_iter().map(|change| self.weigh(change)).collect()
    }

    fn weigh(&self, change: Change) -> view::Change {
        let connections = change.feel.iter().filter_map(|server| {
            let traffic = self.traffic(self.numbers.server(&change.service, server)?);
            Some(traffic.active + traffic.inactive)
        });
        let connections = connections.sum();
        let kept = change.feel.iter().filter_map(|server| server.drain).max();
        let (what, keys) = match change.what {
            What::Added => ("added", None),
            What::Removed => ("removed", None),
            What::Key { key, before, after } => ("changed", Some((key, before, after))),
        };
        let (key, before, after) =
            keys.map_or((None, None, None), |(key, before, after)| (Some(key), Some(before), Some(after)));
        view::Change {
            service: change.service,
            server: change.server,
            what: what.to_owned(),
            key,
            before,
            after,
            connections,
            kept_seconds: kept.map(|kept| kept.as_millis().div_ceil(1000)),
        }
    }
}

/// Changes that are logged one by one.
const LOGGED_MAX: usize = 100;

fn log(changes: &[view::Change]) {
    for change in changes.iter().take(LOGGED_MAX) {
        let view::Change { service, server, what, key, before, after, connections, .. } = change;
        tracing::info!(service, server, what, key, before, after, connections, "configuration changed");
    }
    if let Some(more) = changes.len().checked_sub(LOGGED_MAX).filter(|more| *more > 0) {
        tracing::info!(more, "configuration changed");
    }
}
