//! A tenant and what it does all day.

use serde_json::{Value, json};

use crate::{Answer, Call, Client, artefacts, client::multipart};

/// A tenant with a key that may do everything.
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// The key.
    pub key: String,
    /// A client with that key.
    pub client: Client,
}

impl Tenant {
    /// The path of a function: `path("hello", "/x?y")`.
    pub fn path(&self, function: &str, path: &str) -> String {
        format!("/fn/{}/{function}{path}", self.name)
    }

    /// `GET` of a function.
    pub fn invoke(&self, function: &str, path: &str) -> Answer {
        self.client.get(&self.path(function, path))
    }

    /// A request to a function, not yet sent.
    pub fn call(&self, method: &str, function: &str, path: &str) -> Call {
        self.client.call(method, &self.path(function, path))
    }

    /// Uploads a component with a manifest of its name and these lines.
    pub fn put_function(&self, name: &str, component: &[u8], manifest: &str) -> Answer {
        let manifest = format!("name = \"{name}\"\n{manifest}");
        let (kind, body) =
            multipart(&[("component", component), ("manifest", manifest.as_bytes())]);
        let call = self.client.call("PUT", &format!("/api/v1/functions/{name}"));
        call.header("content-type", &kind).body(body).send()
    }

    /// Deploys a guest of `tests/guests` under its own name.
    pub fn deploy(&self, guest: &str, manifest: &str) -> Value {
        let answer = self.put_function(guest, &artefacts::guest(guest), manifest);
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        answer.json()
    }

    /// Deploys an example with its own manifest and, if it has one, its model.
    pub fn deploy_example(&self, name: &str, model: Option<&str>) {
        if let Some(model) = model {
            self.put_model(model, &artefacts::model(model)).expect(201);
        }
        let manifest = artefacts::repository().join(format!("examples/{name}/sandpiper.toml"));
        let (component, manifest) = (artefacts::example(name), artefacts::read(manifest));
        let (kind, body) = multipart(&[("component", &component), ("manifest", &manifest)]);
        let call = self.client.call("PUT", &format!("/api/v1/functions/{name}"));
        call.header("content-type", &kind).body(body).send().expect(201);
    }

    /// Uploads a model.
    pub fn put_model(&self, name: &str, onnx: &[u8]) -> Answer {
        self.client.put(&format!("/api/v1/models/{name}"), onnx)
    }

    /// A client with a new key of these scopes.
    pub fn with_scopes(&self, scopes: &[&str]) -> Client {
        let path = format!("/api/v1/tenants/{}/keys", self.name);
        let key = self.client.post_json(&path, &json!({ "scopes": scopes })).expect(201).json();
        self.client.with_key(key["key"].as_str().unwrap())
    }
}
