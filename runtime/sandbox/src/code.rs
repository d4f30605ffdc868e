//! A function's code, linked: from here an instance is a few microseconds away.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sandpiper_domain::Digest;
use wasmtime::component::Component as Compiled;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::{
    engine::{Sandboxes, give_way},
    nesting,
    state::State,
    upload::{UploadError, short},
};

/// What WebAssembly counts memory in.
const WASM_PAGE_BYTES: u64 = 64 << 10;

/// Cached code younger than this is not swept.
const CACHE_SPARED: Duration = Duration::from_secs(600);

/// Why code could not be made ready.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CodeError {
    /// It is the component's fault.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// It is the node's fault; the text is for the log.
    #[error("{0}")]
    Node(String),
}

/// On whose behalf code is made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A deployment.
    Deploy,
    /// A request.
    Request,
}

/// The linked code of one function version. Cheap to clone.
#[derive(Clone)]
pub struct FunctionCode {
    pub(crate) pre: ProxyPre<State>,
    /// Memory that a sandbox takes before it has run.
    memory_bytes_min: u64,
    was_cached: bool,
}

impl FunctionCode {
    /// Whether it came from the cache on disk; otherwise it was compiled.
    pub fn was_cached(&self) -> bool {
        self.was_cached
    }

    /// Refuses code that could not even start under `memory_mib`.
    pub fn check_memory(&self, memory_mib: u64) -> Result<(), UploadError> {
        let needed_mib = self.memory_bytes_min.div_ceil(1 << 20);
        if needed_mib > memory_mib {
            return Err(UploadError::Memory { needed_mib, limit_mib: memory_mib });
        }
        Ok(())
    }
}

impl Sandboxes {
    /// Makes a component's code ready: from the cache on disk, or else by compiling `component()`, which is
    /// asked only then. Nothing of it runs on the caller's thread. `digest` is that of the component's bytes.
    pub async fn load(
        self: &Arc<Self>,
        purpose: Purpose,
        digest: Digest,
        component: impl FnOnce() -> Result<Bytes, String> + Send + 'static,
    ) -> Result<FunctionCode, CodeError> {
        if let Some(code) = self.on_blocking_thread(move |this| this.load_cached(&digest)).await? {
            return Ok(code);
        }
        // The others wait here without holding a thread. The permit goes with the work, which goes on when the
        // caller goes away.
        let permit = self.compiles[purpose as usize].clone().acquire_owned().await;
        let permit = permit.map_err(node_error)?;
        self.on_blocking_thread(move |this| {
            let _permit = permit;
            this.compile(&digest, component)
        })
        .await?
    }

    /// Deletes the cached machine code of all but these components, unless it is new. Blocks.
    pub fn retain_cached(&self, components: &[Digest]) {
        if let Err(error) = self.cache.retain(components, CACHE_SPARED) {
            tracing::warn!(%error, "the code cache could not be swept");
        }
    }

    async fn on_blocking_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, CodeError> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this)).await.map_err(node_error)
    }

    fn load_cached(&self, digest: &Digest) -> Option<FunctionCode> {
        let code = self.cache.get(digest)?;
        match self.link_machine_code(&code) {
            Ok(code) => Some(FunctionCode { was_cached: true, ..code }),
            Err(error) => {
                tracing::warn!(component = %digest, %error, "cached code could not be used");
                None
            }
        }
    }

    fn compile(
        &self,
        digest: &Digest,
        component: impl FnOnce() -> Result<Bytes, String>,
    ) -> Result<FunctionCode, CodeError> {
        if let Some(code) = self.load_cached(digest) {
            return Ok(code);
        }
        let component = component().map_err(CodeError::Node)?;
        nesting::check(&component)?;
        let compiled = nesting::on_deep_stack("compile", || {
            give_way();
            self.engine.precompile_component(&component)
        });
        let gave_up = || UploadError::Compile("the compiler gave up on it".to_owned());
        let code = compiled.map_err(node_error)?.ok_or_else(gave_up)?;
        let code = code.map_err(|error| UploadError::Compile(short(&format!("{error:#}"))))?;
        // The pool looks at a component only when its code is loaded.
        let linked = self.link_machine_code(&code).map_err(|error| match error {
            CodeError::Node(cause) => UploadError::Compile(short(&cause)).into(),
            error => error,
        })?;
        if let Err(error) = self.cache.put(digest, &code) {
            tracing::warn!(component = %digest, %error, "compiled code could not be cached");
        }
        Ok(linked)
    }

    /// `code` must come from this engine's compiler, directly or through the cache's keyed tag.
    #[allow(unsafe_code)]
    fn link_machine_code(&self, code: &[u8]) -> Result<FunctionCode, CodeError> {
        // SAFETY: the only callers pass what `precompile_component` has just returned, or what the cache has verified
        // with a key that only this node holds.
        let compiled = unsafe { Compiled::deserialize(&self.engine, code) }.map_err(node_error)?;
        let memory_bytes_min = compiled.resources_required().map_or(0, |needs| {
            // In pages, as WebAssembly counts; a sum too high to represent is too high anyway.
            let pages = u64::from(needs.num_memories)
                .saturating_mul(needs.max_initial_memory_size.unwrap_or(0));
            pages.saturating_mul(WASM_PAGE_BYTES)
        });
        if let Err(error) = compiled.initialize_copy_on_write_image() {
            tracing::debug!(%error, "no copy-on-write image");
        }
        let pre = self
            .linker
            .instantiate_pre(&compiled)
            .and_then(ProxyPre::new)
            .map_err(|error| UploadError::Malformed(short(&format!("{error:#}"))))?;
        Ok(FunctionCode { pre, memory_bytes_min, was_cached: false })
    }
}

fn node_error(error: impl std::fmt::Display) -> CodeError {
    CodeError::Node(error.to_string())
}
