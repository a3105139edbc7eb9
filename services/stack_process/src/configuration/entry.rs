//! One table of the file, with the places of its settings.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Fault, Place};

/// A table of the file.
pub(super) struct Entry<'a> {
    text: &'a str,
    /// As people write it: `[[vm]]`.
    title: String,
    table: &'a DeTable<'a>,
    at: usize,
}

/// A setting with its place.
pub(super) struct Setting<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<T> Setting<T> {
    fn map<U>(self, map: impl FnOnce(T) -> U) -> Setting<U> {
        Setting { value: map(self.value), place: self.place }
    }
}

impl<'a> Entry<'a> {
    pub(super) fn new(
        text: &'a str,
        title: impl Into<String>,
        table: &'a DeTable<'a>,
        at: usize,
    ) -> Self {
        Self { text, title: title.into(), table, at }
    }

    fn line(&self, at: usize) -> usize {
        self.text.get(..at).unwrap_or_default().matches('\n').count() + 1
    }

    /// The place of a setting, or of the table if there is none.
    pub(super) fn place(&self, key: &str) -> Place {
        let found = self.table.iter().find(|(name, _)| name.get_ref().as_ref() == key);
        let at = found.map_or(self.at, |(name, _)| name.span().start);
        let key = if key.is_empty() { self.title.clone() } else { format!("{} {key}", self.title) };
        Place { line: self.line(at), key: key.trim_start().to_owned() }
    }

    /// Refuses every key that is not known; the first in the file is named.
    pub(super) fn known(&self, keys: &[&str]) -> Result<(), Fault> {
        let unknown = self
            .table
            .iter()
            .map(|(key, _)| key)
            .filter(|key| !keys.contains(&key.get_ref().as_ref()))
            .min_by_key(|key| key.span().start);
        match unknown {
            None => Ok(()),
            Some(key) => Err(self
                .place(key.get_ref())
                .fault("there is no such setting", format!("there are {}", keys.join(", ")))),
        }
    }

    fn get(&self, key: &str) -> Option<Setting<&'a DeValue<'a>>> {
        let (_, value) = self.table.iter().find(|(name, _)| name.get_ref().as_ref() == key)?;
        Some(Setting { value: value.get_ref(), place: self.place(key) })
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<Setting<&'a str>>, Fault> {
        self.get(key)
            .map(|found| match found.value {
                DeValue::String(text) => Ok(found.map(|_| text.as_ref())),
                _ => Err(found.place.fault("this is not a text", "write it in quotation marks")),
            })
            .transpose()
    }

    /// A text that must be there.
    pub(super) fn required(&self, key: &str) -> Result<Setting<&'a str>, Fault> {
        self.text(key)?.ok_or_else(|| {
            self.place("").fault(format!("{key} is missing"), format!("add {key} = \"…\""))
        })
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(
        &self,
        key: &str,
        words: &[(&str, T)],
    ) -> Result<Option<Setting<T>>, Fault> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        one_of(text.value, words, &text.place).map(|value| Some(text.map(|_| value)))
    }

    pub(super) fn number(
        &self,
        key: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, Fault> {
        self.get(key).map(|found| number(found.value, &range, &found.place)).transpose()
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Fault> {
        self.get(key)
            .map(|found| match found.value {
                DeValue::Boolean(flag) => Ok(*flag),
                _ => Err(found.place.fault("this is neither true nor false", "write one of them")),
            })
            .transpose()
    }

    /// Seconds, with or without a fraction; more than 0, at most a day.
    pub(super) fn seconds(&self, key: &str) -> Result<Option<Duration>, Fault> {
        let Some(found) = self.get(key) else { return Ok(None) };
        let seconds = match found.value {
            DeValue::Integer(integer) => integer.as_str().parse::<f64>().ok(),
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => None,
        };
        let fits = seconds.filter(|seconds| *seconds > 0.0 && *seconds <= 86_400.0);
        match fits.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
            Some(duration) => Ok(Some(duration)),
            None => Err(found
                .place
                .fault("this is no time", "write seconds: more than 0, at most 86400")),
        }
    }

    /// Words of a list.
    pub(super) fn words<T: Copy>(
        &self,
        key: &str,
        words: &[(&str, T)],
    ) -> Result<Option<Vec<T>>, Fault> {
        let Some(found) = self.get(key) else { return Ok(None) };
        let list = list(found.value, &found.place)?;
        let word = |value: &'a DeValue<'a>| match value {
            DeValue::String(text) => one_of(text, words, &found.place),
            _ => Err(found.place.fault("an element is not a text", "write it in quotation marks")),
        };
        list.map(word).collect::<Result<_, _>>().map(Some)
    }

    /// A value whose form its reader knows.
    pub(super) fn any(&self, key: &str) -> Option<Setting<&'a DeValue<'a>>> {
        self.get(key)
    }

    /// A table inside this one.
    pub(super) fn table(&self, key: &str) -> Result<Option<Self>, Fault> {
        let Some(found) = self.get(key) else { return Ok(None) };
        match found.value {
            DeValue::Table(table) => Ok(Some(self.inner(format!("[{key}]"), table, key))),
            _ => Err(found.place.fault("this is not a table", format!("write [{key}]"))),
        }
    }

    pub(super) fn inner(&self, title: String, table: &'a DeTable<'a>, key: &str) -> Self {
        let found = self.table.iter().find(|(name, _)| name.get_ref().as_ref() == key);
        let at = found.map_or(self.at, |(name, _)| name.span().start);
        Self::new(self.text, title, table, at)
    }

    /// The tables of an array of tables.
    pub(super) fn tables(&self, key: &str, title: &str) -> Result<Vec<Self>, Fault> {
        let Some(found) = self.get(key) else { return Ok(Vec::new()) };
        let wrong =
            || found.place.fault("this is not an array of tables", format!("write {title}"));
        let DeValue::Array(array) = found.value else { return Err(wrong()) };
        let entry = |value: &'a Spanned<DeValue<'a>>| match value.get_ref() {
            DeValue::Table(table) => Ok(Self::new(self.text, title, table, value.span().start)),
            _ => Err(wrong()),
        };
        array.iter().map(entry).collect()
    }
}

pub(super) fn number(
    value: &DeValue<'_>,
    range: &RangeInclusive<u32>,
    place: &Place,
) -> Result<u32, Fault> {
    let next = || format!("write a number from {} to {}", range.start(), range.end());
    let DeValue::Integer(integer) = value else {
        return Err(place.fault("this is not a whole number", next()));
    };
    let parsed = u32::from_str_radix(integer.as_str(), integer.radix());
    match parsed.ok().filter(|number| range.contains(number)) {
        Some(number) => Ok(number),
        None => Err(place.fault(format!("{} is out of range", integer.as_str()), next())),
    }
}

pub(super) fn list<'a>(
    value: &'a DeValue<'a>,
    place: &Place,
) -> Result<impl Iterator<Item = &'a DeValue<'a>>, Fault> {
    match value {
        DeValue::Array(array) => Ok(array.iter().map(Spanned::get_ref)),
        _ => Err(place.fault("this is not a list", "write […]")),
    }
}

fn one_of<T: Copy>(text: &str, words: &[(&str, T)], place: &Place) -> Result<T, Fault> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        place.fault(format!("{text:?} is not known"), format!("there are {}", words.join(", ")))
    })
}
