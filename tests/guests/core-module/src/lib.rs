//! A guest that is uploaded as a core module, and is made into a component by the server.
//!
//! It uses the environment and standard error so that, for wasm32-wasip1, the module has WASI
//! preview 1 imports that need the adapter.

use sandpiper_guest::prelude::*;

#[handler]
fn core_module(request: Request) -> Result<Response> {
    eprintln!("{} {}", request.method(), request.path());
    match request.path() {
        "/env" => {
            Ok(Response::text(env(&request.param("name").unwrap_or_default()).unwrap_or_default()))
        }
        "/model" => {
            let name = request.param("name").unwrap_or_else(|| "digits".to_owned());
            let image = Tensor::f32([1, 1, 8, 8], &[0.5; 64]);
            let outputs = Model::named(&name)?.run([("image", image)])?;
            Response::json(&outputs.get("probs")?.to_f32()?)
        }
        _ => Ok(Response::text("core module\n")),
    }
}
