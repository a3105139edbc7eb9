//! What a program needs beside itself: its loader and shared libraries, read from its ELF file.
//!
//! `ldd` would run the program; this reads. Only what Debian's own layout has is looked for.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// Where Debian keeps libraries, in the order of its loader.
const FOLDERS: [&str; 6] =
    ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib"];

/// `p_type` of a program header: mapped, the dynamic section, the loader's path.
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
/// Tags of the dynamic section: its end, a library's name, the address of the names.
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// What one file names.
#[derive(Clone, Eq, PartialEq, Default, Debug)]
pub(crate) struct Needs {
    /// The loader's path; none in libraries and in static programs.
    pub(crate) loader: Option<String>,
    /// File names of libraries.
    pub(crate) libraries: Vec<String>,
}

/// Reads what a 64-bit little-endian ELF file needs.
pub(crate) fn needs(file: &[u8]) -> Result<Needs> {
    ensure!(file.starts_with(b"\x7fELF\x02\x01"), "no 64-bit little-endian ELF file");
    let headers = headers(file).context("the program headers lie outside of the file")?;
    let mut needs = Needs::default();
    for header in &headers {
        match header.kind {
            PT_INTERP => {
                let path = text(file, header.offset).context("the loader's path is broken")?;
                needs.loader = Some(path);
            }
            PT_DYNAMIC => {
                needs.libraries =
                    libraries(file, header, &headers).context("the dynamic section is broken")?;
            }
            _ => {}
        }
    }
    Ok(needs)
}

/// A program header.
struct Header {
    kind: u32,
    offset: usize,
    address: u64,
    size: u64,
}

fn headers(file: &[u8]) -> Option<Vec<Header>> {
    let start = usize::try_from(u64_at(file, 32)?).ok()?;
    let (size, count) = (u16_at(file, 54)?, u16_at(file, 56)?);
    (0..usize::from(count))
        .map(|index| {
            let at = start.checked_add(index.checked_mul(usize::from(size))?)?;
            Some(Header {
                kind: u32_at(file, at)?,
                offset: usize::try_from(u64_at(file, at.checked_add(8)?)?).ok()?,
                address: u64_at(file, at.checked_add(16)?)?,
                size: u64_at(file, at.checked_add(32)?)?,
            })
        })
        .collect()
}

fn libraries(file: &[u8], dynamic: &Header, headers: &[Header]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut table = None;
    for index in 0..usize::try_from(dynamic.size / 16).ok()? {
        let at = dynamic.offset.checked_add(index.checked_mul(16)?)?;
        let (tag, value) = (u64_at(file, at)?, u64_at(file, at.checked_add(8)?)?);
        match tag {
            DT_NULL => break,
            DT_NEEDED => names.push(usize::try_from(value).ok()?),
            DT_STRTAB => table = Some(value),
            _ => {}
        }
    }
    if names.is_empty() {
        return Some(Vec::new());
    }
    let table = table?;
    let mapped = headers.iter().filter(|header| header.kind == PT_LOAD).find(|header| {
        table.checked_sub(header.address).is_some_and(|inside| inside < header.size)
    })?;
    let table = mapped.offset.checked_add(usize::try_from(table - mapped.address).ok()?)?;
    names.into_iter().map(|name| text(file, table.checked_add(name)?)).collect()
}

fn bytes_at<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    bytes_at(file, at).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    bytes_at(file, at).map(u32::from_le_bytes)
}

fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    bytes_at(file, at).map(u64::from_le_bytes)
}

fn text(file: &[u8], at: usize) -> Option<String> {
    let rest = file.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    String::from_utf8(rest.get(..end)?.to_vec()).ok()
}

/// The files that a program needs, out of the system whose root is `root`, each with the path a guest is to have it at,
/// without the leading `/`: the loader where the program names it, libraries in `lib`.
pub(crate) fn libraries_of(program: &Path, root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open = VecDeque::from([program.to_path_buf()]);
    let mut loader_name = String::new();
    while let Some(path) = open.pop_front() {
        let file = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let needs = needs(&file).with_context(|| path.display().to_string())?;
        let find = |name: &str| {
            FOLDERS
                .iter()
                .map(|folder| root.join(folder).join(name))
                .find(|path| path.exists())
                .with_context(|| format!("{} needs {name}, which is nowhere", path.display()))
        };
        if let Some(loader) = needs.loader {
            loader_name = loader.rsplit('/').next().unwrap_or_default().to_owned();
            found.insert(loader.trim_start_matches('/').to_owned(), find(&loader_name)?);
        }
        for name in needs.libraries {
            let inside = format!("lib/{name}");
            if name == loader_name || found.contains_key(&inside) {
                continue;
            }
            let library = find(&name)?;
            open.push_back(library.clone());
            found.insert(inside, library);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a loader and two libraries, its names mapped at 0x1000.
    fn sample() -> Vec<u8> {
        let mut file = vec![0_u8; 0x300];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&3_u16.to_le_bytes());
        let headers: [(u32, u64, u64, u64); 3] =
            [(PT_LOAD, 0x200, 0x1000, 0x100), (PT_DYNAMIC, 0x140, 0, 64), (PT_INTERP, 0x250, 0, 8)];
        for (index, (kind, offset, address, size)) in headers.into_iter().enumerate() {
            let at = 64 + 56 * index;
            file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            file[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
            file[at + 16..at + 24].copy_from_slice(&address.to_le_bytes());
            file[at + 32..at + 40].copy_from_slice(&size.to_le_bytes());
        }
        let dynamic = [(DT_NEEDED, 1), (DT_NEEDED, 8), (DT_STRTAB, 0x1000), (DT_NULL, 0)];
        for (index, (tag, value)) in dynamic.into_iter().enumerate() {
            let at = 0x140 + 16 * index;
            file[at..at + 8].copy_from_slice(&tag.to_le_bytes());
            file[at + 8..at + 16].copy_from_slice(&u64::to_le_bytes(value));
        }
        file[0x200..0x20f].copy_from_slice(b"\0libc.6\0libm.6\0");
        file[0x250..0x258].copy_from_slice(b"/lib/ld\0");
        file
    }

    #[test]
    fn loader_and_libraries_are_read() {
        let needs = needs(&sample()).unwrap();
        assert_eq!(needs.loader.as_deref(), Some("/lib/ld"));
        assert_eq!(needs.libraries, ["libc.6", "libm.6"]);
    }

    #[test]
    fn a_file_cut_short_anywhere_is_an_error_or_less_and_no_panic() {
        let whole = sample();
        for length in 0..whole.len() {
            let _ = needs(&whole[..length]);
        }
        assert!(needs(&whole[..0x150]).is_err());
        assert!(needs(b"#!/bin/sh").is_err());
    }

    #[test]
    fn each_byte_may_be_wrong_without_a_panic() {
        for at in 6..0x180 {
            for value in [0x7f, 0xff] {
                let mut file = sample();
                file[at] = value;
                let _ = needs(&file);
            }
        }
    }

    #[test]
    fn what_this_program_needs_is_found_on_this_machine() {
        let found = libraries_of(&std::env::current_exe().unwrap(), Path::new("/")).unwrap();
        assert!(found.values().all(|path| path.exists()), "{found:?}");
        assert_eq!(found.contains_key("lib/libc.so.6"), cfg!(target_env = "gnu"));
    }
}
