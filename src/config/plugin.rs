//! What the variables say about plugins.

use crate::config::reader::{DURATION, Reader, SIZE, duration, size};
use crate::config::variables::{
    PLUGIN_CACHE, PLUGIN_MEMORY, PLUGIN_TIMEOUT, PLUGIN_WATCH, PLUGINS, VARIABLES,
};
use crate::plugin::files;
use crate::plugin::settings::{Cache, MEMORY, Setting, Settings, TIMEOUT};
use crate::secret::Secret;
use std::path::PathBuf;

impl Reader<'_> {
    pub(super) fn plugins(&mut self) -> Settings {
        let split = |text: &str| {
            let paths = std::env::split_paths(text).filter(|path| !path.as_os_str().is_empty());
            Some(paths.collect::<Vec<_>>())
        };
        let paths = self.or(&PLUGINS, "paths separated by colons", split, Vec::new());
        let paths: Vec<_> = paths
            .iter()
            .filter_map(|path| self.path_in(PLUGINS.name, &path.to_string_lossy()))
            .collect();
        self.mistakes.extend(files::find(&paths).err().into_iter().flatten());
        self.plugins_of(paths)
    }

    /// The settings of plugins that were found in another way than by `PLUGINS`.
    pub(super) fn plugins_of(&mut self, paths: Vec<PathBuf>) -> Settings {
        let timeout = self.or(&PLUGIN_TIMEOUT, DURATION, duration(1), TIMEOUT);
        let memory = self.or(&PLUGIN_MEMORY, SIZE, size, MEMORY);
        let watch = self.flag(&PLUGIN_WATCH);
        let cache = match self.text(&PLUGIN_CACHE) {
            Some(text) if text == "off" => Some(Cache::Off),
            Some(text) => self.path_in(PLUGIN_CACHE.name, &text).map(Cache::At),
            None => None,
        };
        let settings = self.plugin_settings();
        Settings { paths, timeout, memory, watch, cache: cache.unwrap_or(Cache::User), settings }
    }

    fn plugin_settings(&mut self) -> Vec<Setting> {
        let fixed = |name: &str| VARIABLES.iter().any(|variable| variable.name == name);
        let environment = self.environment;
        let mut settings = Vec::new();
        for variable in environment.names().filter(|name| !fixed(name)) {
            let Some(name) = variable.strip_prefix("PLUGIN_") else { continue };
            let setting = match name.strip_suffix("_FILE") {
                None => environment.get(variable).map(|text| (name, text.to_owned())),
                Some(name) if environment.get(&format!("PLUGIN_{name}")).is_some() => {
                    self.mistake(format!(
                        "PLUGIN_{name}: both PLUGIN_{name} and {variable} are set; unset one"
                    ));
                    None
                }
                Some(name) => self.file(variable).map(|text| (name, text)),
            };
            if let Some((short, text)) = setting {
                let (value, from_file) = (Secret::new(text), short != name);
                settings.push(Setting { name: short.to_owned(), value, from_file });
            }
        }
        settings
    }
}
