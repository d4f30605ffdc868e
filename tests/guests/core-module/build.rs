//! For wasm32-wasip2 the linker wraps the module into a component. This guest stays what
//! `wit-bindgen` makes: a core module that describes its imports and exports in custom sections.

#[allow(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts through the environment"
)]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // On wasm32-wasip1 a core module is what comes out anyway.
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("p2") {
        println!("cargo::rustc-cdylib-link-arg=--skip-wit-component");
    }
}
