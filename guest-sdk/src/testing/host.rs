//! What stands in for the host when nothing is built for WebAssembly.

use std::{borrow::Cow, cell::RefCell, marker::PhantomData, rc::Rc};

use crate::{Error, ModelFailure, Result, Tensor, request::Unreadable};

use super::Guard;

pub(crate) type Named = Vec<(String, Tensor)>;
pub(crate) type FakeModel = Rc<dyn Fn(Named) -> Result<Named>>;

#[derive(Clone)]
pub(crate) enum Fake {
    Model(String, FakeModel),
    Env(String, String),
}

#[derive(Default)]
struct Fakes {
    last_id: u64,
    installed: Vec<(u64, Fake)>,
}

thread_local! {
    static FAKES: RefCell<Fakes> = RefCell::default();
}

pub(crate) fn install(fake: Fake) -> Guard {
    FAKES.with_borrow_mut(|fakes| {
        fakes.last_id += 1;
        fakes.installed.push((fakes.last_id, fake));
        Guard { id: fakes.last_id, _thread: PhantomData }
    })
}

pub(crate) fn remove(id: u64) {
    FAKES.with_borrow_mut(|fakes| fakes.installed.retain(|(other, _)| *other != id));
}

/// The newest stand-in that `pick` accepts.
fn find<T>(pick: impl Fn(&Fake) -> Option<T>) -> Option<T> {
    FAKES.with_borrow(|fakes| fakes.installed.iter().rev().find_map(|(_, fake)| pick(fake)))
}

pub(crate) fn env(name: &str) -> Option<String> {
    find(|fake| match fake {
        Fake::Env(key, value) if key == name => Some(value.clone()),
        _ => None,
    })
}

#[derive(Clone, Debug)]
pub(crate) struct RawRequest {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    /// `None` is a body whose sender hangs up.
    pub(super) body: Option<Vec<u8>>,
}

impl RawRequest {
    pub(crate) fn method(&self) -> Cow<'static, str> {
        Cow::Owned(self.method.clone())
    }

    pub(crate) fn path_with_query(&self) -> String {
        self.target.clone()
    }

    pub(crate) fn headers(&self) -> Vec<(String, Vec<u8>)> {
        self.headers.clone()
    }

    pub(crate) fn read_body(&self, bytes_max: usize) -> Result<Vec<u8>, Unreadable> {
        match &self.body {
            None => Err(Unreadable::Interrupted),
            Some(body) if body.len() > bytes_max => Err(Unreadable::TooLarge),
            Some(body) => Ok(body.clone()),
        }
    }
}

pub(crate) struct RawModel(FakeModel);

impl RawModel {
    pub(crate) fn load(name: &str) -> Result<Self> {
        let model = find(|fake| match fake {
            Fake::Model(key, run) if key == name => Some(Rc::clone(run)),
            _ => None,
        });
        match model {
            Some(run) => Ok(Self(run)),
            None => Err(Error::model(
                ModelFailure::NotFound,
                format!("no stand-in for the model {name}: see `testing::model`"),
            )),
        }
    }

    pub(crate) fn compute(&self, inputs: Named) -> Result<Vec<(String, RawTensor)>> {
        let outputs = (self.0)(inputs)?;
        for (name, tensor) in &outputs {
            // No host gives such a tensor. A panic, since a test may well expect an error of the model's.
            let fault = tensor.check().err();
            assert!(fault.is_none(), "the stand-in's output {name} is wrong: {fault:?}");
        }
        Ok(outputs.into_iter().map(|(name, tensor)| (name, RawTensor(tensor))).collect())
    }
}

pub(crate) struct RawTensor(pub(crate) Tensor);

impl RawTensor {
    pub(crate) fn read(&self) -> Tensor {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Model, Tensor, testing};

    #[test]
    #[should_panic(expected = "the stand-in's output probs is wrong")]
    fn a_stand_in_that_no_host_could_be_fails_the_test() {
        let _wrong = testing::model("wrong", |_| Ok([("probs", Tensor::f32([1, 10], &[0.5]))]));
        let _ = Model::named("wrong").and_then(|model| model.run::<&str>([]));
    }
}
