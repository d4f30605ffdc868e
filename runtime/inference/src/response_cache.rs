//! Answers that are kept and given again, for models that ask for it. One cache for the node, bounded by its bytes.
//!
//! An answer is found by the sha256 of who asked, the digest of the model version and the exact inputs, so that nobody
//! meets an answer to somebody else's question, nor learns by any counter or time that it was asked. When the bytes run
//! out, the tenant that holds the most gives up what it used longest ago.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use lru::LruCache;
use sandpiper_domain::{
    DataType, Digest, InferenceOutput, InferenceRequest, NamedTensor, TenantName, Tensor,
};
use sha2::{Digest as _, Sha256};

use crate::ModelStats;

/// Calls with larger inputs are not looked up: hashing them would hold up the thread that asks.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// No answer takes more than this part of the cache.
const ANSWER_SHARE: u64 = 8;
/// What an entry takes beside its tensors' bytes, and a tensor beside its own.
const ENTRY_BYTES: u64 = 256;
const TENSOR_BYTES: u64 = 128;

type Key = [u8; 32];

struct Entry {
    model: Digest,
    outputs: Arc<[NamedTensor]>,
    bytes: u64,
}

/// The answers of one tenant.
struct Part {
    by_key: LruCache<Key, Entry>,
    bytes: u64,
}

#[derive(Default)]
struct Entries {
    /// Has no empty parts.
    by_tenant: HashMap<TenantName, Part>,
    bytes: u64,
}

impl Entries {
    /// Forgets the answer of the largest part that was used longest ago; says whether there was one.
    fn forget_one(&mut self) -> bool {
        let largest = self.by_tenant.iter().max_by_key(|(_, part)| part.bytes);
        let Some(tenant) = largest.map(|(tenant, _)| tenant.clone()) else { return false };
        let Some(part) = self.by_tenant.get_mut(&tenant) else { return false };
        if let Some((_, entry)) = part.by_key.pop_lru() {
            part.bytes -= entry.bytes;
            self.bytes -= entry.bytes;
        }
        if part.by_key.is_empty() {
            self.by_tenant.remove(&tenant);
        }
        true
    }
}

/// The answers of all models that are cached on this node.
pub(crate) struct ResponseCache {
    entries: Mutex<Entries>,
    bytes_max: u64,
}

impl ResponseCache {
    pub(crate) fn new(bytes_max: u64) -> Self {
        ResponseCache { entries: Mutex::default(), bytes_max }
    }

    /// The part of one model version.
    pub(crate) fn of_model(self: &Arc<Self>, model: Digest, stats: Arc<ModelStats>) -> ModelCache {
        ModelCache { responses: self.clone(), model, stats }
    }

    /// Forgets the answers of every model that `keep` refuses.
    pub(crate) fn retain(&self, keep: impl Fn(&Digest) -> bool) {
        let mut entries = self.lock();
        let mut freed = 0;
        entries.by_tenant.retain(|_, part| {
            let gone = part.by_key.iter().filter(|(_, entry)| !keep(&entry.model));
            let gone: Vec<Key> = gone.map(|(key, _)| *key).collect();
            for entry in gone.iter().filter_map(|key| part.by_key.pop(key)) {
                part.bytes -= entry.bytes;
                freed += entry.bytes;
            }
            !part.by_key.is_empty()
        });
        entries.bytes -= freed;
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn get(&self, tenant: &TenantName, key: &Key) -> Option<Arc<[NamedTensor]>> {
        let mut entries = self.lock();
        let entry = entries.by_tenant.get_mut(tenant)?.by_key.get(key)?;
        Some(entry.outputs.clone())
    }

    fn put(&self, tenant: &TenantName, key: Key, model: Digest, outputs: &[NamedTensor]) {
        let of_tensor = |output: &NamedTensor| {
            TENSOR_BYTES + (output.name.len() + output.tensor.data().len()) as u64
        };
        let bytes = ENTRY_BYTES + outputs.iter().map(of_tensor).sum::<u64>();
        if bytes > self.bytes_max / ANSWER_SHARE {
            return;
        }
        // Copied: the bytes of an output may be a slice of something much larger.
        let Some(outputs) = outputs.iter().map(copied).collect::<Option<Arc<[_]>>>() else {
            return;
        };
        let mut entries = self.lock();
        let new = || Part { by_key: LruCache::unbounded(), bytes: 0 };
        let part = entries.by_tenant.entry(tenant.clone()).or_insert_with(new);
        let replaced = part.by_key.put(key, Entry { model, outputs, bytes });
        let replaced = replaced.map_or(0, |entry| entry.bytes);
        part.bytes = part.bytes + bytes - replaced;
        entries.bytes = entries.bytes + bytes - replaced;
        while entries.bytes > self.bytes_max && entries.forget_one() {}
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn copied(output: &NamedTensor) -> Option<NamedTensor> {
    let tensor = &output.tensor;
    let shape: Vec<u64> = tensor.shape().iter().map(|size| *size as u64).collect();
    let tensor = Tensor::new(tensor.datatype(), &shape, Bytes::copy_from_slice(tensor.data()));
    Some(NamedTensor { name: output.name.clone(), tensor: tensor.ok()? })
}

/// The cache as one model sees it.
pub(crate) struct ModelCache {
    responses: Arc<ResponseCache>,
    model: Digest,
    stats: Arc<ModelStats>,
}

/// What became of a question to the cache.
pub(crate) enum Lookup {
    Hit(InferenceOutput),
    /// Where the answer is to be kept once it is there.
    Miss(Place),
    /// The inputs are too large to be looked up.
    Pass,
}

pub(crate) struct Place {
    responses: Arc<ResponseCache>,
    tenant: TenantName,
    key: Key,
    model: Digest,
    stats: Arc<ModelStats>,
    looked_for: Duration,
}

impl ModelCache {
    pub(crate) fn look_up(&self, request: &InferenceRequest) -> Lookup {
        let bytes = request.inputs.iter().map(|input| input.tensor.data().len()).sum::<usize>();
        if bytes > INPUT_BYTES_MAX {
            return Lookup::Pass;
        }
        let begun = Instant::now();
        let key = key(&request.tenant, &self.model, &request.inputs);
        let Some(outputs) = self.responses.get(&request.tenant, &key) else {
            let (responses, stats) = (self.responses.clone(), self.stats.clone());
            let (tenant, model, looked_for) = (request.tenant.clone(), self.model, begun.elapsed());
            return Lookup::Miss(Place { responses, tenant, key, model, stats, looked_for });
        };
        let outputs = outputs.to_vec();
        let took = begun.elapsed();
        self.stats.cache_hit.add(1, took);
        self.stats.succeeded(took);
        Lookup::Hit(InferenceOutput {
            outputs,
            queued: Duration::ZERO,
            computed: Duration::ZERO,
            batch_size: 0,
        })
    }
}

impl Place {
    /// Keeps the answer. Counts as a miss whether it finds room or not.
    pub(crate) fn keep(self, output: &InferenceOutput) {
        let begun = Instant::now();
        self.responses.put(&self.tenant, self.key, self.model, &output.outputs);
        self.stats.cache_miss.add(1, self.looked_for + begun.elapsed());
    }
}

/// Every field goes in with its length, so that no two questions read alike.
fn key(tenant: &TenantName, model: &Digest, inputs: &[NamedTensor]) -> Key {
    let mut hasher = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(&model.0);
    field(tenant.as_str().as_bytes());
    let mut inputs: Vec<&NamedTensor> = inputs.iter().collect();
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    for NamedTensor { name, tensor } in inputs {
        field(name.as_bytes());
        field(DataType::name(tensor.datatype()).as_bytes());
        let shape = tensor.shape().iter().flat_map(|size| (*size as u64).to_le_bytes());
        field(&shape.collect::<Vec<u8>>());
        field(tensor.data());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::f32s;

    fn cache(bytes_max: u64) -> ResponseCache {
        ResponseCache::new(bytes_max)
    }

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    #[test]
    fn every_part_of_a_question_counts() {
        let (acme, beta) = (tenant("acme"), tenant("beta"));
        let (a, b) = (f32s("a", &[2], &[1., 2.]), f32s("b", &[2], &[3., 4.]));
        let digest = Digest([1; 32]);
        let base = key(&acme, &digest, &[a.clone(), b.clone()]);
        assert_eq!(base, key(&acme, &digest, &[b.clone(), a.clone()]));
        let integers = crate::testing::named("a", DataType::I32, &[2], a.tensor.data().to_vec());
        let questions = [
            key(&beta, &digest, &[a.clone(), b.clone()]),
            key(&acme, &Digest([2; 32]), &[a.clone(), b.clone()]),
            key(&acme, &digest, std::slice::from_ref(&a)),
            key(&acme, &digest, &[f32s("a", &[2, 1], &[1., 2.]), b.clone()]),
            key(&acme, &digest, &[f32s("c", &[2], &[1., 2.]), b.clone()]),
            key(&acme, &digest, &[f32s("a", &[2], &[1., 2.5]), b.clone()]),
            key(&acme, &digest, &[integers, b]),
        ];
        for (index, other) in questions.iter().enumerate() {
            assert_ne!(*other, base, "{index}");
        }
    }

    #[test]
    fn the_cache_keeps_to_its_bytes_and_drops_what_was_used_longest_ago() {
        let cache = cache(10_000);
        let acme = tenant("acme");
        let answer = |value: f32| [f32s("y", &[200], &[value; 200])];
        for number in 0..40u8 {
            cache.put(&acme, [number; 32], Digest([number % 2; 32]), &answer(f32::from(number)));
            assert!(cache.bytes() <= 10_000);
            // The first is used all the time.
            assert!(cache.get(&acme, &[0; 32]).is_some(), "{number}");
        }
        assert!(cache.get(&acme, &[1; 32]).is_none());
        assert_eq!(&*cache.get(&acme, &[39; 32]).unwrap(), answer(39.));
        // Too large for its share.
        cache.put(&acme, [99; 32], Digest([0; 32]), &[f32s("y", &[400], &[0.; 400])]);
        assert!(cache.get(&acme, &[99; 32]).is_none());
        cache.retain(|model| *model == Digest([0; 32]));
        assert!(cache.get(&acme, &[39; 32]).is_none() && cache.get(&acme, &[38; 32]).is_some());
        cache.retain(|_| false);
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_tenant_that_fills_the_cache_drops_its_own() {
        let cache = cache(10_000);
        let (victim, flood) = (tenant("victim"), tenant("flood"));
        let answer = [f32s("y", &[100], &[1.; 100])];
        for number in 0..3 {
            cache.put(&victim, [number; 32], Digest([0; 32]), &answer);
        }
        for number in 0..200 {
            cache.put(&flood, [number; 32], Digest([0; 32]), &answer);
            assert!(cache.bytes() <= 10_000);
        }
        assert!((0..3).all(|number| cache.get(&victim, &[number; 32]).is_some()));
        assert!(cache.get(&flood, &[199; 32]).is_some() && cache.get(&flood, &[0; 32]).is_none());
        cache.retain(|_| false);
        assert!(cache.bytes() == 0 && cache.lock().by_tenant.is_empty());
    }

    #[test]
    fn inputs_that_take_long_to_hash_are_not_looked_up() {
        let cache = Arc::new(cache(10_000)).of_model(Digest([0; 32]), Arc::default());
        let of = |bytes: usize| {
            let input = crate::testing::named("x", DataType::U8, &[bytes as u64], vec![0; bytes]);
            cache.look_up(&crate::testing::request(vec![input]))
        };
        assert!(matches!(of(64 << 10), Lookup::Miss(_)));
        assert!(matches!(of((64 << 10) + 1), Lookup::Pass));
    }
}
