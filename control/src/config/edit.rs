//! Changes of a running configuration, made in the text of its files: comments, order and all that does not change stay
//! as they were typed. What an edited text means, and whether it means anything, is found out as for any other.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike};

use super::sources::{Source, Sources};

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "edit", rename_all = "snake_case", deny_unknown_fields)]
pub enum Edit {
    /// Gives keys of a server other values; null takes a key away.
    SetServer {
        /// The service's name.
        service: String,
        /// The server's name, or its address as the configuration has it.
        server: String,
        /// The keys, as in `[[service.server]]`.
        keys: Map<String, Value>,
    },
    /// Adds a server at the end of its service.
    AddServer {
        /// The service's name.
        service: String,
        /// The keys, as in `[[service.server]]`.
        keys: Map<String, Value>,
    },
    /// Takes a server out of its service.
    RemoveServer {
        /// The service's name.
        service: String,
        /// The server's name or address.
        server: String,
    },
    /// Adds a service at the end of the first file.
    AddService {
        /// The keys, as in `[[service]]`.
        keys: Map<String, Value>,
    },
    /// Takes a service out.
    RemoveService {
        /// Its name.
        service: String,
    },
}

impl Edit {
    /// `sources` with this change. The error is for people.
    ///
    /// # Errors
    /// When what it changes is not there.
    pub fn apply(&self, sources: &Sources) -> Result<Sources, String> {
        match self {
            Self::AddService { keys } => sources.with(sources.main(), |document| {
                entries(document.as_table_mut(), "service", false)?.push(keys);
                Ok(())
            }),
            Self::RemoveService { service } => in_services(sources, service, |services, at| {
                services.remove(at);
                Ok(())
            }),
            Self::AddServer { service, keys } => in_servers(sources, service, |servers| {
                servers.push(keys);
                Ok(())
            }),
            Self::RemoveServer { service, server } => in_servers(sources, service, |servers| {
                let at =
                    servers.find(server, &["name", "address"]).ok_or_else(|| no_server(service, server))?;
                servers.remove(at);
                Ok(())
            }),
            Self::SetServer { service, server, keys } => in_servers(sources, service, |servers| {
                let at =
                    servers.find(server, &["name", "address"]).ok_or_else(|| no_server(service, server))?;
                let table = servers.get(at).ok_or_else(|| no_server(service, server))?;
                keys.iter().for_each(|(key, value)| set(table, key, value));
                Ok(())
            }),
        }
    }
}

fn no_server(service: &str, server: &str) -> String {
    format!(
        "service {service:?} has no server {server:?}; name it as the configuration does, by name or address"
    )
}

/// Edits the list of services that `name` is one of, whichever file it is in.
fn in_services(
    sources: &Sources,
    name: &str,
    edit: impl Fn(&mut Entries<'_>, usize) -> Result<(), String>,
) -> Result<Sources, String> {
    for (_, source) in sources.iter() {
        let mut found = false;
        let edited = sources.with(source, |document| {
            if !document.contains_key("service") {
                return Ok(());
            }
            let mut services = entries(document.as_table_mut(), "service", false)?;
            let Some(at) = services.find(name, &["name"]) else { return Ok(()) };
            found = true;
            edit(&mut services, at)
        })?;
        if found {
            return Ok(edited);
        }
    }
    Err(format!("there is no service {name:?}"))
}

/// Edits the list of servers of the service `name`.
fn in_servers(
    sources: &Sources,
    name: &str,
    edit: impl Fn(&mut Entries<'_>) -> Result<(), String>,
) -> Result<Sources, String> {
    in_services(sources, name, |services, at| {
        let inline = matches!(services, Entries::Inline(_));
        let service = services.get(at).ok_or("the service is gone")?;
        edit(&mut entries(service, "server", inline)?)
    })
}

impl Sources {
    /// The same with `source`, which is one of them, edited.
    fn with(
        &self,
        source: &Source,
        edit: impl FnOnce(&mut DocumentMut) -> Result<(), String>,
    ) -> Result<Self, String> {
        let mut document: DocumentMut =
            source.text().parse().map_err(|error| format!("{}: {error}", source.name()))?;
        edit(&mut document)?;
        let edited = Source::new(source.path().to_owned(), document.to_string());
        let files = self
            .iter()
            .map(|(_, file)| if file.path() == source.path() { edited.clone() } else { file.clone() });
        let mut files = files.collect::<Vec<_>>().into_iter();
        let main = files.next().expect("there is a first file");
        Ok(Self::new(main, files))
    }

    /// One text that means the same as all files together.
    pub fn merged(&self) -> String {
        let mut text = String::new();
        for (number, (_, source)) in self.iter().enumerate() {
            if number > 0 {
                text += &format!("\n# {}\n", source.name());
            }
            text += &Self::alone(source).unwrap_or_else(|| source.text().to_owned());
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
        text
    }

    /// The text of `source` without `include`, and in such a form that other files can follow it.
    fn alone(source: &Source) -> Option<String> {
        let mut document: DocumentMut = source.text().trim_start_matches('\u{feff}').parse().ok()?;
        document.remove("include");
        match document.remove("service") {
            // Without any there is nothing to say, and `service = []` says it where no table may have begun.
            Some(Item::Value(toml_edit::Value::Array(empty))) if empty.is_empty() => {}
            Some(services) => {
                _ = document.insert("service", Item::ArrayOfTables(services.into_array_of_tables().ok()?))
            }
            None => {}
        }
        Some(document.to_string())
    }
}

/// A list of services or servers, in either of TOML's two forms.
enum Entries<'a> {
    /// `[[service]]`
    Tables(&'a mut toml_edit::ArrayOfTables),
    /// `service = [{ … }]`
    Inline(&'a mut Array),
}

/// The list called `key` in `table`, which may be an `inline` one; an empty list when there was none.
fn entries<'a>(table: &'a mut dyn TableLike, key: &str, inline: bool) -> Result<Entries<'a>, String> {
    let empty = || match inline {
        true => Item::Value(toml_edit::Value::Array(Array::new())),
        false => Item::ArrayOfTables(toml_edit::ArrayOfTables::new()),
    };
    match table.entry(key).or_insert_with(empty) {
        Item::ArrayOfTables(tables) => Ok(Entries::Tables(tables)),
        Item::Value(toml_edit::Value::Array(array)) => Ok(Entries::Inline(array)),
        Item::None | Item::Value(_) | Item::Table(_) => Err(format!("`{key}` is no list")),
    }
}

impl Entries<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Tables(tables) => tables.len(),
            Self::Inline(array) => array.len(),
        }
    }

    fn get(&mut self, at: usize) -> Option<&mut dyn TableLike> {
        match self {
            Self::Tables(tables) => tables.get_mut(at).map(|table| table as &mut dyn TableLike),
            Self::Inline(array) => {
                array.get_mut(at)?.as_inline_table_mut().map(|table| table as &mut dyn TableLike)
            }
        }
    }

    /// The first entry of which one of `keys` is `text`; earlier keys go first.
    fn find(&mut self, text: &str, keys: &[&str]) -> Option<usize> {
        keys.iter().find_map(|key| {
            (0..self.len()).find(|&at| {
                let typed = self.get(at).and_then(|table| table.get(key)?.as_str().map(str::to_owned));
                typed.as_deref() == Some(text)
            })
        })
    }

    fn push(&mut self, keys: &Map<String, Value>) {
        match self {
            Self::Tables(tables) => {
                let mut table = Table::new();
                keys.iter().for_each(|(key, value)| set(&mut table, key, value));
                tables.push(table);
            }
            Self::Inline(array) => {
                let mut table = InlineTable::new();
                keys.iter().for_each(|(key, value)| set(&mut table, key, value));
                array.push(table);
            }
        }
    }

    fn remove(&mut self, at: usize) {
        match self {
            Self::Tables(tables) => _ = tables.remove(at),
            Self::Inline(array) => _ = array.remove(at),
        }
    }
}

/// Gives `key` a value, or takes it away. What stands around an old value stays.
fn set(table: &mut dyn TableLike, key: &str, value: &Value) {
    let Some(mut value) = typed(value) else {
        table.remove(key);
        return;
    };
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => _ = table.insert(key, Item::Value(value)),
    }
}

/// The value in TOML; `None` for null, which TOML does not have.
fn typed(value: &Value) -> Option<toml_edit::Value> {
    match value {
        Value::Null => None,
        Value::Bool(value) => Some((*value).into()),
        Value::Number(number) => {
            Some(number.as_i64().map_or_else(|| number.as_f64().unwrap_or(f64::NAN).into(), Into::into))
        }
        Value::String(text) => Some(text.as_str().into()),
        Value::Array(values) => Some(toml_edit::Value::Array(values.iter().filter_map(typed).collect())),
        Value::Object(keys) => {
            let mut table = InlineTable::new();
            keys.iter().for_each(|(key, value)| set(&mut table, key, value));
            Some(toml_edit::Value::InlineTable(table))
        }
    }
}
