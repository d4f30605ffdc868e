//! The cache of machine code on disk. Loading machine code is as good as running it, so an entry counts only when a
//! keyed tag over it is right; anything else is as if it were not there.

use std::{
    collections::HashSet,
    fs,
    hash::Hasher,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use sandpiper_domain::Digest;
use sha2::{Digest as _, Sha256};

const TAG_BYTES: usize = 32;

/// The secret that marks entries as written by this node.
#[derive(Clone)]
pub struct CacheKey(pub [u8; 32]);

pub(crate) struct CodeCache {
    folder: PathBuf,
    key: CacheKey,
    /// Changes with the engine's version, its settings and the processor's features.
    engine: Digest,
}

/// Feeds what implements `Hash` into sha256, so that the result is the same in every process.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    fn finish(&self) -> u64 {
        0
    }
}

impl CodeCache {
    pub(crate) fn open(
        folder: &Path,
        key: CacheKey,
        engine: &wasmtime::Engine,
    ) -> std::io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut hasher = Sha256Hasher(Sha256::new());
        std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut hasher);
        Ok(CodeCache { folder: folder.to_owned(), key, engine: Digest(hasher.0.finalize().into()) })
    }

    fn path(&self, component: &Digest) -> PathBuf {
        let mut hasher = Sha256::new();
        hasher.update(component.0);
        hasher.update(self.engine.0);
        self.folder.join(Digest(hasher.finalize().into()).to_string())
    }

    fn mac(&self, component: &Digest, code: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key.0).ok()?;
        mac.update(&self.engine.0);
        mac.update(&component.0);
        mac.update(code);
        Some(mac)
    }

    /// The machine code of `component`, if there is an entry and it is ours and whole.
    pub(crate) fn get(&self, component: &Digest) -> Option<Vec<u8>> {
        let mut entry = fs::read(self.path(component)).ok()?;
        let code_bytes = entry.len().checked_sub(TAG_BYTES)?;
        let (code, tag) = entry.split_at(code_bytes);
        if self.mac(component, code)?.verify_slice(tag).is_err() {
            tracing::warn!(%component, "a damaged entry of the code cache was ignored");
            return None;
        }
        entry.truncate(code_bytes);
        Some(entry)
    }

    /// Writes an entry whole or not at all. A failure costs time at the next start and nothing else.
    pub(crate) fn put(&self, component: &Digest, code: &[u8]) -> std::io::Result<()> {
        let Some(mac) = self.mac(component, code) else { return Ok(()) };
        let path = self.path(component);
        let scratch = path.with_extension(format!("{:x}", std::process::id()));
        let mut file = fs::File::create(&scratch)?;
        file.write_all(code)?;
        file.write_all(&mac.finalize().into_bytes())?;
        file.sync_all()?;
        fs::rename(&scratch, &path)
    }

    /// Deletes every entry but those of `components`: of deleted functions, and of engines that are no more. What is
    /// younger than `spared` may belong to a deployment that is not in the catalog yet, and stays.
    pub(crate) fn retain(&self, components: &[Digest], spared: Duration) -> std::io::Result<()> {
        let kept: HashSet<PathBuf> = components.iter().map(|digest| self.path(digest)).collect();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if kept.contains(&path) {
                continue;
            }
            match remove_old(&path, spared) {
                // Another process of this node was faster, or has just given it its name.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }
}

fn remove_old(path: &Path, spared: Duration) -> std::io::Result<()> {
    let age = fs::metadata(path)?.modified()?.elapsed().unwrap_or_default();
    if age < spared { Ok(()) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_to_an_entry_makes_it_vanish() {
        let folder = tempfile::tempdir().unwrap();
        let engine = wasmtime::Engine::default();
        let open = |key| CodeCache::open(folder.path(), CacheKey([key; 32]), &engine).unwrap();
        let (cache, digest) = (open(1), Digest([7; 32]));
        cache.put(&digest, b"machine code").unwrap();
        assert_eq!(cache.get(&digest).as_deref(), Some(&b"machine code"[..]));
        assert_eq!(open(2).get(&digest), None, "another node's key");
        let path = cache.path(&digest);
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).unwrap();
            assert_eq!(cache.get(&digest), None, "bit {bit}");
        }
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(cache.get(&digest), None, "length {length}");
        }
    }
}
